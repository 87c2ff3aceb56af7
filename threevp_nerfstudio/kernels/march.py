"""Marching rays through posed space: where to put samples, and where each lies in canonical space.

One Warp kernel walks every ray along a lattice of step `step`; where the template is thin (lids, lips) in quarters of it, as
a whole step could pass through a closed lid. At each lattice point the nearest triangle of the posed template gives
either the distance that can be skipped, or a canonical point, whose cell in the canonical occupancy grid says
whether the field has anything there. Only occupied points become samples. The walk ends at the far bound,
at `max_samples`, or (in training) in a cell that is hidden from everywhere. A ray that would need more samples
than there is room for is walked again at twice the step, so that no ray is cut short in front of its surface; or,
for pictures, in parts: whoever evaluates the field knows after each part which rays still let light through.
"""

from dataclasses import dataclass

import torch
import warp as wp
from jaxtyping import Bool, Float, Int
from torch import Tensor

from threevp_nerfstudio.kernels.hull import BROKEN, PARTS, PosedHull, filled_near, no_hull
from threevp_nerfstudio.kernels.runtime import launch, view
from threevp_nerfstudio.kernels.surface import CanonicalPoint, PosedSurface, canonical_point

MAX_PASSES = wp.constant(4)
SEARCH = wp.constant(3.0)
"""How far off the nearest triangle is looked for, in half-widths of the shell: where there is none, rays jump."""
SEARCH_IN_HULL = wp.constant(1.2)
"""The same in the parts of a hull that have to be looked at."""
LATTICE = wp.constant(1 << 16)
"""More than any ray has lattice points."""
STRETCH = wp.constant(16)
"""Lattice points (quarters of a step) that one thread walks where rays are walked in stretches: as few as pay, for threads that take
longest hold up the others. They are noted in as many bits."""
WORD = wp.constant(64)
"""Lattice points whose bits are read at once."""
LONGEST = 2.0
"""Diagonals of the canonical template's box: the longest way of a ray through a posed one."""
NOTHING = wp.constant(0)
SAMPLE = wp.constant(1)
LAST_SAMPLE = wp.constant(2)
END = wp.constant(3)
QUARTERS = wp.constant(4)
"""Parts of a step that are walked one by one where the template is thin."""
CORE = 255
"""`skip` of cells in which rays end."""
HIDDEN = 254
"""`skip` of cells that no ray of late had any light left for: training rays end there after one sample."""
CORE_CELL = wp.constant(CORE)
HIDDEN_CELL = wp.constant(HIDDEN)


@dataclass(frozen=True)
class OccupancyView:
    """What the kernel reads of the canonical occupancy grid."""

    skip: Int[Tensor, "X Y Z"]
    """uint8: 0 where occupied, else how many cells (Chebyshev) to the nearest occupied one, saturated; `HIDDEN`; `CORE`."""
    origin: tuple[float, float, float]
    cell: float


@dataclass(frozen=True)
class MarchSettings:
    step: float
    """Distance between samples, metres."""
    reach: float
    """Half-width of the shell round the template, metres."""
    max_samples: int
    stop_at_hidden: bool = True
    """For training. A picture asks the field instead."""


@dataclass(frozen=True)
class MarchedSamples:
    """Samples of R rays with room for S each; only those with `mask` are real, others have arbitrary `position`, `M`."""

    t: Float[Tensor, "R S"]
    """Distance of the sample from the origin, in units of the direction's length."""
    width: Float[Tensor, "R S"]
    """Length of the ray that the sample stands for, metres."""
    position: Float[Tensor, "R S 3"]
    """Canonical position."""
    M: Float[Tensor, "R S 3 3"]
    """Linear part of the posed-to-canonical map."""
    count: Int[Tensor, "R"]
    next: Int[Tensor, "R"]
    """Where to go on, of a walk in parts; -1 where the ray has ended."""

    @property
    def mask(self) -> Bool[Tensor, "R S"]:
        return torch.arange(self.t.shape[1], device=self.t.device) < self.count[:, None]


@wp.func
def box_bounds(o: wp.vec3, d: wp.vec3, lower: wp.vec3, upper: wp.vec3) -> wp.vec2:
    """Entry and exit distance of a ray through a box; exit < entry where it misses."""
    near = float(0.0)
    far = float(1.0e10)
    for axis in range(3):
        if wp.abs(d[axis]) < 1.0e-9:
            if o[axis] < lower[axis] or o[axis] > upper[axis]:
                far = -1.0
        else:
            a = (lower[axis] - o[axis]) / d[axis]
            b = (upper[axis] - o[axis]) / d[axis]
            near = wp.max(near, wp.min(a, b))
            far = wp.min(far, wp.max(a, b))
    return wp.vec2(near, far)


@wp.func
def free_distance(
    p: wp.vec3,
    d: wp.vec3,
    away: wp.array3d(dtype=wp.uint8),
    parts: wp.array3d(dtype=wp.int32),
    position: wp.array3d(dtype=wp.vec3),
    M: wp.array3d(dtype=wp.mat33),
    lower: wp.vec3,
    cell: float,
    skip: wp.array3d(dtype=wp.uint8),
    grid_origin: wp.vec3,
    grid_cell: float,
) -> float:
    """How far a ray at `p` may go before it comes to a part of the hull that has to be looked at; 0: look here."""
    g = (p - lower) / cell
    x = int(wp.floor(g[0]))
    y = int(wp.floor(g[1]))
    z = int(wp.floor(g[2]))
    if x < 0 or y < 0 or z < 0 or x >= away.shape[0] or y >= away.shape[1] or z >= away.shape[2]:
        return float(0.0)
    base = wp.vec3(float(x), float(y), float(z))
    cells = int(away[x, y, z])
    low = base - wp.vec3(1.0, 1.0, 1.0) * float(cells - 1)
    side = float(2 * cells - 1)
    if cells == 0:
        bits = parts[x, y, z]
        f = (g - base) * float(PARTS)
        i = wp.clamp(int(f[0]), 0, PARTS - 1)
        j = wp.clamp(int(f[1]), 0, PARTS - 1)
        k = wp.clamp(int(f[2]), 0, PARTS - 1)
        if (bits >> (i + PARTS * (j + PARTS * k))) & 1 == 1:
            if bits & BROKEN != 0:
                return float(0.0)
            centre = lower + cell * (base + wp.vec3(0.5, 0.5, 0.5))
            if filled_near(position[x, y, z] + M[x, y, z] * (p - centre), skip, grid_origin, grid_cell) == 1:
                return float(0.0)
            return float(1.0e-6)
        side = 1.0 / float(PARTS)
        low = base + wp.vec3(float(i), float(j), float(k)) * side
    # to the wall of the free cube
    free = float(1.0e10)
    for axis in range(3):
        if wp.abs(d[axis]) > 1.0e-9:
            wall = low[axis]
            if d[axis] > 0.0:
                wall = low[axis] + side
            free = wp.min(free, (wall - g[axis]) / d[axis])
    return wp.max(free * cell, 1.0e-6)


@wp.func
def farthest_in_hull(p: wp.vec3, distance: wp.array3d(dtype=float), lower: wp.vec3, cell: float) -> float:
    """No more than so many metres are from a point of the hull to the surface."""
    g = (p - lower) / cell
    x = wp.clamp(int(wp.floor(g[0])), 0, distance.shape[0] - 1)
    y = wp.clamp(int(wp.floor(g[1])), 0, distance.shape[1] - 1)
    z = wp.clamp(int(wp.floor(g[2])), 0, distance.shape[2] - 1)
    centre = lower + cell * wp.vec3(float(x) + 0.5, float(y) + 0.5, float(z) + 0.5)
    return distance[x, y, z] + wp.length(p - centre) + 1.0e-5


@wp.struct
class Look:
    """What a ray finds at one point."""

    state: int
    """`NOTHING`, `SAMPLE`, `LAST_SAMPLE` (in a hidden cell) or `END` (in the core)."""
    thin: int
    """Whether the template is thin there."""
    advance: float
    """Metres to the next place that is worth a look, where there is nothing."""
    hit: CanonicalPoint


@wp.func
def look(
    p: wp.vec3,
    mesh: wp.uint64,
    slot: int,
    faces: wp.array(dtype=wp.int32),
    canonical: wp.array(dtype=wp.vec3),
    maps: wp.array2d(dtype=wp.mat33),
    own_space: wp.array(dtype=float),
    thin: wp.array(dtype=wp.uint8),
    skip: wp.array3d(dtype=wp.uint8),
    grid_origin: wp.vec3,
    cell: float,
    reach: float,
    search: float,
    bound: float,
) -> Look:
    """What is at a point of posed space. Triangles farther than `bound` are not looked for; that is `search`, or less where
    it is known that there is one nearer."""
    out = Look()
    out.state = int(NOTHING)
    hit = canonical_point(p, mesh, slot, faces, canonical, maps, own_space, bound)
    if hit.found == 0:
        out.advance = search - reach
    elif hit.distance > reach:
        out.advance = hit.distance - reach
    else:
        out.thin = int(thin[hit.face])
        if not (hit.distance > hit.own):  # `own` may be NaN. Else on by a step: farther on, another part may be nearest
            g = (hit.position - grid_origin) / cell
            x = int(wp.floor(g[0]))
            y = int(wp.floor(g[1]))
            z = int(wp.floor(g[2]))
            if x >= 0 and y >= 0 and z >= 0 and x < skip.shape[0] and y < skip.shape[1] and z < skip.shape[2]:
                away = int(skip[x, y, z])
                if away == 0:
                    out.state = int(SAMPLE)
                elif away == HIDDEN_CELL:
                    out.state = int(LAST_SAMPLE)
                elif away == CORE_CELL:
                    out.state = int(END)
                else:
                    # another part of the surface may be no farther than this one, and what lies round it
                    # has its own place in canonical space: do not skip past it
                    out.advance = wp.min(float(away - 1) * cell, 0.5 * hit.distance)
    out.hit = hit
    return out


@wp.func
def place_in_step(seed: int, ray: int, k: int) -> float:
    """Where in its interval, 0 to 1, the sample at lattice point `k` of a ray lies: the same whoever asks."""
    if seed < 0:
        return float(0.5)
    random = wp.rand_init(seed, ray * LATTICE + k)
    return wp.randf(random)


@wp.kernel(enable_backward=False)
def _march(
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    slots: wp.array(dtype=wp.int32),
    lower: wp.array(dtype=wp.vec3),
    upper: wp.array(dtype=wp.vec3),
    meshes: wp.array(dtype=wp.uint64),
    faces: wp.array(dtype=wp.int32),
    canonical: wp.array(dtype=wp.vec3),
    maps: wp.array2d(dtype=wp.mat33),
    own_space: wp.array(dtype=float),
    thin: wp.array(dtype=wp.uint8),
    skip: wp.array3d(dtype=wp.uint8),
    grid_origin: wp.vec3,
    cell: float,
    hull_away: wp.array3d(dtype=wp.uint8),
    hull_parts: wp.array3d(dtype=wp.int32),
    hull_position: wp.array3d(dtype=wp.vec3),
    hull_M: wp.array3d(dtype=wp.mat33),
    hull_distance: wp.array3d(dtype=float),
    hull_lower: wp.vec3,
    hull_cell: float,
    base_step: float,
    reach: float,
    stop_at_hidden: int,
    seed: int,
    start: wp.array(dtype=wp.int32),
    out_t: wp.array2d(dtype=float),
    out_width: wp.array2d(dtype=float),
    out_position: wp.array2d(dtype=wp.vec3),
    out_M: wp.array2d(dtype=wp.mat33),
    out_count: wp.array(dtype=wp.int32),
    out_next: wp.array(dtype=wp.int32),
):
    r = wp.tid()
    slot = slots[r]
    room = out_t.shape[1]
    o = origins[r]
    length = wp.length(directions[r])
    d = directions[r] / length
    bounds = box_bounds(o, d, lower[slot], upper[slot])
    search = SEARCH * reach
    if hull_cell > 0.0:
        search = SEARCH_IN_HULL * reach  # what is far off, the hull leaves out
    count = int(0)
    quarter = float(base_step) / float(QUARTERS)
    for attempt in range(MAX_PASSES):
        count = int(0)
        k = int(0)
        if start.shape[0] > 0:
            k = start[r]
        near = wp.vec3(0.0, 0.0, 0.0)  # the last nearest point: the next one is no farther
        known = bool(False)
        steps = int(wp.ceil((bounds[1] - bounds[0]) / quarter))
        careful = bool(False)
        while k < steps and count < room:
            stride = int(QUARTERS)
            if careful or k % QUARTERS != 0:
                stride = int(1)
            width = float(stride) * quarter
            t = bounds[0] + float(k) * quarter + place_in_step(seed, r, k) * width
            if hull_cell > 0.0:
                free = free_distance(
                    o + t * d, d, hull_away, hull_parts, hull_position, hull_M, hull_lower, hull_cell,
                    skip, grid_origin, cell,
                )
                if free > 0.0:
                    k += stride * wp.max(1, int(wp.floor(free / width)))
                    continue
            p = o + t * d
            bound = float(search)
            if known:
                bound = wp.min(search, wp.length(p - near) + 1.0e-5)
            elif hull_cell > 0.0:
                bound = wp.min(search, farthest_in_hull(p, hull_distance, hull_lower, hull_cell))
            seen = look(
                p, meshes[slot], slot, faces, canonical, maps, own_space, thin, skip, grid_origin, cell, reach, search, bound
            )
            if seen.hit.found == 1:
                near = seen.hit.nearest
                known = bool(True)
            careful = seen.thin == 1
            if careful and stride > 1:
                continue  # once more from where this step began
            advance = float(width)
            if seen.state == SAMPLE or seen.state == LAST_SAMPLE:
                out_t[r, count] = t / length
                out_width[r, count] = width
                out_position[r, count] = seen.hit.position
                out_M[r, count] = seen.hit.M
                if seen.state == LAST_SAMPLE and stop_at_hidden != 0:
                    # a whole step closes the ray; what a quarter of one let through would be background
                    out_width[r, count] = float(QUARTERS) * quarter
                    k = steps
                count += 1
            elif seen.state == END:
                k = steps
            else:
                advance = seen.advance
            k += stride * wp.max(1, int(wp.floor(advance / width)))
        if start.shape[0] > 0:
            if k < steps:
                out_next[r] = k
            break
        if k >= steps:
            break
        quarter = quarter * 2.0
    out_count[r] = count


# ---- the same in stretches: for a GPU ----------------------------------------------------------------------------------
# A GPU has room for far more threads than a training step has rays, and each of them waits for memory most of the time. So
# every stretch of a ray is walked by a thread of its own, which notes what it found in a few bits; then one thread per ray puts
# the stretches one behind the other, and one per sample maps it to canonical space.


@wp.kernel(enable_backward=False)
def _probe(
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    slots: wp.array(dtype=wp.int32),
    lower: wp.array(dtype=wp.vec3),
    upper: wp.array(dtype=wp.vec3),
    meshes: wp.array(dtype=wp.uint64),
    faces: wp.array(dtype=wp.int32),
    canonical: wp.array(dtype=wp.vec3),
    maps: wp.array2d(dtype=wp.mat33),
    own_space: wp.array(dtype=float),
    thin: wp.array(dtype=wp.uint8),
    skip: wp.array3d(dtype=wp.uint8),
    grid_origin: wp.vec3,
    cell: float,
    base_step: float,
    reach: float,
    stop_at_hidden: int,
    seed: int,
    found: wp.array2d(dtype=wp.uint16),
    fine: wp.array2d(dtype=wp.uint16),
    end: wp.array2d(dtype=wp.int32),
):
    stretch, r = wp.tid()
    slot = slots[r]
    o = origins[r]
    d = wp.normalize(directions[r])
    bounds = box_bounds(o, d, lower[slot], upper[slot])
    quarter = float(base_step) / float(QUARTERS)
    steps = int(wp.ceil((bounds[1] - bounds[0]) / quarter))
    first = stretch * STRETCH
    last = wp.min(first + STRETCH, steps)
    search = reach + float(STRETCH) * quarter  # where nothing is as near as that, the stretch is empty
    near = wp.vec3(0.0, 0.0, 0.0)
    known = bool(False)
    careful = bool(False)
    bits = wp.uint32(0)
    quarters = wp.uint32(0)
    ended = int(-1)
    k = int(first)
    while k < last:
        stride = int(QUARTERS)
        if careful or k % QUARTERS != 0:
            stride = int(1)
        width = float(stride) * quarter
        p = o + (bounds[0] + float(k) * quarter + place_in_step(seed, r, k) * width) * d
        bound = float(search)
        if known:
            bound = wp.min(search, wp.length(p - near) + 1.0e-5)
        seen = look(
            p, meshes[slot], slot, faces, canonical, maps, own_space, thin, skip, grid_origin, cell, reach, search, bound
        )
        if seen.hit.found == 1:
            near = seen.hit.nearest
            known = bool(True)
        careful = seen.thin == 1
        if careful and stride > 1:
            continue
        advance = float(width)
        if seen.state == SAMPLE or seen.state == LAST_SAMPLE:
            bit = wp.uint32(1) << wp.uint32(k - first)
            bits = bits | bit
            if stride == 1:
                quarters = quarters | bit
            if seen.state == LAST_SAMPLE and stop_at_hidden != 0:
                ended = int(k)
                k = last
        elif seen.state == END:
            ended = int(steps)
            k = last
        else:
            advance = seen.advance
        k += stride * wp.max(1, int(wp.floor(advance / width)))
    found[r, stretch] = wp.uint16(bits)
    fine[r, stretch] = wp.uint16(quarters)
    end[r, stretch] = ended


@wp.kernel(enable_backward=False)
def _join(
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    slots: wp.array(dtype=wp.int32),
    lower: wp.array(dtype=wp.vec3),
    upper: wp.array(dtype=wp.vec3),
    base_step: float,
    seed: int,
    found: wp.array2d(dtype=wp.uint64),
    fine: wp.array2d(dtype=wp.uint64),
    end: wp.array2d(dtype=wp.int32),
    out_t: wp.array2d(dtype=float),
    out_width: wp.array2d(dtype=float),
    out_count: wp.array(dtype=wp.int32),
):
    r = wp.tid()
    slot = slots[r]
    room = out_t.shape[1]
    length = wp.length(directions[r])
    bounds = box_bounds(origins[r], directions[r] / length, lower[slot], upper[slot])
    quarter = float(base_step) / float(QUARTERS)
    words = int(found.shape[1])
    total = int(0)
    last = int(-1)
    closed = wp.uint64(0)  # of the last word: what lies in front of the ray's end
    w = int(0)
    while w < words:
        closed = ~wp.uint64(0)
        for part in range(WORD / STRETCH):
            if last < 0:
                last = end[r, w * (WORD / STRETCH) + part]
                if last >= 0 and part + 1 < WORD / STRETCH:
                    closed = (wp.uint64(1) << wp.uint64((part + 1) * STRETCH)) - wp.uint64(1)
        bits = found[r, w] & closed
        while bits != wp.uint64(0):
            bits = bits & (bits - wp.uint64(1))
            total += 1
        w += 1
        if last >= 0:
            words = w
    # with too little room every so manieth sample stands for its neighbours, but for the one that closes the ray
    every = (total + room - 1) / room
    due = int(0)
    if every > 1:
        due = int(place_in_step(seed, r, LATTICE - 1) * float(every))
    count = int(0)
    passed = int(0)
    for word in range(words):
        bits = found[r, word]
        if word == words - 1:
            bits = bits & closed
        if bits != wp.uint64(0):
            for b in range(WORD):
                bit = wp.uint64(1) << wp.uint64(b)
                if bits & bit != wp.uint64(0):
                    k = word * WORD + b
                    closes = k == last
                    if (passed % wp.max(every, 1) == due and count < room) or closes:
                        stride = float(QUARTERS)
                        if fine[r, word] & bit != wp.uint64(0):
                            stride = float(1.0)
                        width = stride * quarter
                        t = bounds[0] + float(k) * quarter + place_in_step(seed, r, k) * width
                        at = wp.min(count, room - 1)
                        out_t[r, at] = t / length
                        out_width[r, at] = width * float(wp.max(every, 1))
                        if closes:
                            out_width[r, at] = float(QUARTERS) * quarter
                        count = at + 1
                    passed += 1
    out_count[r] = count


@wp.kernel(enable_backward=False)
def _map_samples(
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    slots: wp.array(dtype=wp.int32),
    meshes: wp.array(dtype=wp.uint64),
    faces: wp.array(dtype=wp.int32),
    canonical: wp.array(dtype=wp.vec3),
    maps: wp.array2d(dtype=wp.mat33),
    own_space: wp.array(dtype=float),
    reach: float,
    t: wp.array2d(dtype=float),
    count: wp.array(dtype=wp.int32),
    out_position: wp.array2d(dtype=wp.vec3),
    out_M: wp.array2d(dtype=wp.mat33),
):
    r, i = wp.tid()
    if i < count[r]:
        slot = slots[r]
        p = origins[r] + t[r, i] * directions[r]
        hit = canonical_point(p, meshes[slot], slot, faces, canonical, maps, own_space, 1.01 * reach)
        out_position[r, i] = hit.position
        out_M[r, i] = hit.M


# ---- the same for a part of a picture ----------------------------------------------------------------------------------
# The hull alone says which whole steps have to be looked at; all of them are looked at at once, by a thread each. So the slowest
# ray takes no longer than one query, where the plain walk adds up those of a ray.


@wp.kernel(enable_backward=False)
def _list(
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    slots: wp.array(dtype=wp.int32),
    lower: wp.array(dtype=wp.vec3),
    upper: wp.array(dtype=wp.vec3),
    skip: wp.array3d(dtype=wp.uint8),
    grid_origin: wp.vec3,
    cell: float,
    hull_away: wp.array3d(dtype=wp.uint8),
    hull_parts: wp.array3d(dtype=wp.int32),
    hull_position: wp.array3d(dtype=wp.vec3),
    hull_M: wp.array3d(dtype=wp.mat33),
    hull_distance: wp.array3d(dtype=float),
    hull_lower: wp.vec3,
    hull_cell: float,
    step: float,
    start: wp.array(dtype=wp.int32),
    listed: wp.array2d(dtype=wp.int32),
    count: wp.array(dtype=wp.int32),
    next: wp.array(dtype=wp.int32),
    end: wp.array(dtype=wp.int32),
):
    r = wp.tid()
    slot = slots[r]
    room = listed.shape[1]
    o = origins[r]
    d = wp.normalize(directions[r])
    bounds = box_bounds(o, d, lower[slot], upper[slot])
    steps = int(wp.ceil((bounds[1] - bounds[0]) / step))
    k = start[r] / QUARTERS
    n = int(0)
    while k < steps and n < room:
        p = o + (bounds[0] + (float(k) + 0.5) * step) * d
        free = free_distance(
            p, d, hull_away, hull_parts, hull_position, hull_M, hull_lower, hull_cell, skip, grid_origin, cell
        )
        if free > 0.0:
            k += wp.max(1, int(wp.floor(free / step)))
        else:
            listed[r, n] = k
            n += 1
            k += 1
    count[r] = n
    end[r] = n
    next[r] = -1
    if k < steps:
        next[r] = k * QUARTERS


@wp.kernel(enable_backward=False)
def _look_at(
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    slots: wp.array(dtype=wp.int32),
    lower: wp.array(dtype=wp.vec3),
    upper: wp.array(dtype=wp.vec3),
    meshes: wp.array(dtype=wp.uint64),
    faces: wp.array(dtype=wp.int32),
    canonical: wp.array(dtype=wp.vec3),
    maps: wp.array2d(dtype=wp.mat33),
    own_space: wp.array(dtype=float),
    thin: wp.array(dtype=wp.uint8),
    skip: wp.array3d(dtype=wp.uint8),
    grid_origin: wp.vec3,
    cell: float,
    hull_distance: wp.array3d(dtype=float),
    hull_lower: wp.vec3,
    hull_cell: float,
    step: float,
    reach: float,
    listed: wp.array2d(dtype=wp.int32),
    count: wp.array(dtype=wp.int32),
    end: wp.array(dtype=wp.int32),
    out_t: wp.array2d(dtype=float),
    out_width: wp.array2d(dtype=float),
    out_position: wp.array2d(dtype=wp.vec3),
    out_M: wp.array2d(dtype=wp.mat33),
):
    r, i = wp.tid()
    if i >= count[r]:
        return
    slot = slots[r]
    o = origins[r]
    length = wp.length(directions[r])
    d = directions[r] / length
    bounds = box_bounds(o, d, lower[slot], upper[slot])
    begin = bounds[0] + float(listed[r, i]) * step
    search = SEARCH_IN_HULL * reach
    width = float(step)
    looks = int(1)  # one of the whole step, and where the template is thin, four of its quarters
    at = int(0)
    while at < looks:
        j = int(at)
        if looks > 1:
            j = at - 1
        t = begin + (float(j) + 0.5) * width
        p = o + t * d
        bound = wp.min(search, farthest_in_hull(p, hull_distance, hull_lower, hull_cell))
        seen = look(
            p, meshes[slot], slot, faces, canonical, maps, own_space, thin, skip, grid_origin, cell, reach, search, bound
        )
        if at == 0 and seen.thin == 1:
            looks = 1 + QUARTERS
            width = step / float(QUARTERS)
        elif seen.state == SAMPLE or seen.state == LAST_SAMPLE:
            out_t[r, QUARTERS * i + j] = t / length
            out_width[r, QUARTERS * i + j] = width
            out_position[r, QUARTERS * i + j] = seen.hit.position
            out_M[r, QUARTERS * i + j] = seen.hit.M
        elif seen.state == END:
            wp.atomic_min(end, r, i)
            at = looks
        at += 1


@wp.kernel(enable_backward=False)
def _close_up(
    count: wp.array(dtype=wp.int32),
    end: wp.array(dtype=wp.int32),
    t: wp.array2d(dtype=float),
    width: wp.array2d(dtype=float),
    position: wp.array2d(dtype=wp.vec3),
    M: wp.array2d(dtype=wp.mat33),
    out_count: wp.array(dtype=wp.int32),
    next: wp.array(dtype=wp.int32),
):
    """Move samples of each ray to the front of its slots."""
    r = wp.tid()
    last = count[r]
    if end[r] < last:
        last = end[r] + 1  # what quarters of a step found in front of the core
        next[r] = -1
    n = int(0)
    for i in range(QUARTERS * last):
        if width[r, i] > 0.0:
            if n < i:
                t[r, n] = t[r, i]
                width[r, n] = width[r, i]
                position[r, n] = position[r, i]
                M[r, n] = M[r, i]
            n += 1
    out_count[r] = n


def march(
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    slots: Int[Tensor, "R"],
    surface: PosedSurface,
    occupancy: OccupancyView,
    settings: MarchSettings,
    seed: int = -1,
    hull: PosedHull | None = None,
    start: Int[Tensor, "R"] | None = None,
    wide: bool | None = None,
) -> MarchedSamples:
    """March R rays through the posed slots of `surface`.

    Args:
        start: walk in parts: go on from here (0 at first, then `next`), and stop when there is no more room, in place
            of walking again in wider steps.
        hull: of the pose, where all rays are of one; pays for whole pictures.
        seed: of the stratified jitter; negative puts every sample in the middle of its interval.
        wide: walk each ray with many threads; None: on a GPU. The samples are the same, and a few more, as each thread looks
            from where it begins. Rays that have too many keep every so manieth of them, with wider intervals. With `hull` and
            `start`, which then belong together and want `seed` -1, there is room for four times as many samples, as each step
            may be taken in quarters.
    """
    device, R, S = origins.device, origins.shape[0], settings.max_samples
    wide = device.type == "cuda" if wide is None else wide
    listing = wide and hull is not None and start is not None and seed < 0
    if listing:
        S *= int(QUARTERS)
    t = torch.zeros(R, S, device=device)
    width = torch.zeros(R, S, device=device)
    # not cleared: most of it is never written nor read, and touching it would cost more than the samples
    position = torch.empty(R, S, 3, device=device)
    M = torch.empty(R, S, 3, 3, device=device)
    count = torch.zeros(R, dtype=torch.int32, device=device)
    following = torch.full((R,), -1, dtype=torch.int32, device=device)
    lower = surface.posed.amin(1) - settings.reach
    upper = surface.posed.amax(1) + settings.reach
    origins, directions, slots = origins.contiguous().float(), directions.contiguous().float(), slots.int().contiguous()
    rays = [view(origins, wp.vec3), view(directions, wp.vec3), view(slots)]
    box = [view(lower, wp.vec3), view(upper, wp.vec3)]
    mesh = [
        surface.mesh_ids,
        view(surface.flat_faces),
        view(surface.canonical, wp.vec3),
        view(surface.maps, wp.mat33),
        view(surface.own_space),
    ]
    thin = view(surface.thin, wp.uint8)
    grid = [view(occupancy.skip, wp.uint8), wp.vec3(*occupancy.origin), float(occupancy.cell)]
    walk = [float(settings.step), float(settings.reach), int(settings.stop_at_hidden), int(seed)]
    mapped = [view(position, wp.vec3), view(M, wp.mat33)]
    if wide and hull is None and start is None:
        longest = LONGEST * surface.extent + 4.0 * settings.reach
        words = int(longest / (settings.step * WORD / QUARTERS)) + 1
        stretches = words * (WORD // STRETCH)
        found = torch.empty(2, R, words, dtype=torch.int64, device=device)
        end = torch.empty(R, stretches, dtype=torch.int32, device=device)
        parts, bits = ([view(x, kind) for x in found.view(dtype)] for dtype, kind in ((torch.int16, wp.uint16), (torch.int64, wp.uint64)))
        launch(_probe, (stretches, R), [*rays, *box, *mesh, thin, *grid, *walk], [*parts, view(end)], device)
        launch(_join, R, [*rays, *box, walk[0], walk[3], *bits, view(end)], [view(t), view(width), view(count)], device)
        launch(_map_samples, (R, S), [*rays, *mesh, walk[1], view(t), view(count)], mapped, device)
        return MarchedSamples(t, width, position, M, count, following)
    begin = torch.zeros(0, dtype=torch.int32, device=device) if start is None else start.int().contiguous()
    hull = no_hull(device) if hull is None else hull
    cells = [
        view(hull.away, wp.uint8), view(hull.parts), view(hull.position, wp.vec3), view(hull.M, wp.mat33),
        view(hull.distance), wp.vec3(*hull.lower), float(hull.cell),
    ]  # fmt: skip
    if listing:
        listed = torch.empty(R, settings.max_samples, dtype=torch.int32, device=device)
        found, end = torch.empty_like(count), torch.empty_like(count)
        launch(
            _list, R, [*rays, *box, *grid, *cells, walk[0], view(begin)], [view(listed), view(found), view(following), view(end)], device
        )
        known = [view(listed), view(found), view(end)]
        samples = [view(t), view(width), *mapped]
        launch(
            _look_at, (R, settings.max_samples), [*rays, *box, *mesh, thin, *grid, *cells[4:], *walk[:2], *known], samples, device
        )
        launch(_close_up, R, known[1:], [*samples, view(count), view(following)], device)
        return MarchedSamples(t, width, position, M, count, following)
    launch(
        _march,
        R,
        [*rays, *box, *mesh, thin, *grid, *cells, *walk, view(begin)],
        [view(t), view(width), *mapped, view(count), view(following)],
        device,
    )
    return MarchedSamples(t, width, position, M, count, following)
