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
from threevp_nerfstudio.kernels.runtime import array, launch
from threevp_nerfstudio.kernels.surface import PosedSurface, canonical_point

MAX_PASSES = wp.constant(4)
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
    search = 3.0 * reach
    random = wp.rand_init(seed, r)
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
            jitter = float(0.5)
            if seed >= 0:
                jitter = wp.randf(random)
            t = bounds[0] + float(k) * quarter + jitter * width
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
            hit = canonical_point(p, meshes[slot], slot, faces, canonical, maps, own_space, bound)
            if hit.found == 1:
                near = hit.nearest
                known = bool(True)
            careful = hit.found == 1 and hit.distance <= reach and thin[hit.face] == wp.uint8(1)
            if careful and stride > 1:
                continue  # once more from where this step began
            advance = float(width)
            if hit.found == 0:
                advance = search - reach
            elif hit.distance > reach:
                advance = hit.distance - reach
            elif not (hit.distance > hit.own):  # `own` may be NaN. Else on by a step: farther on, another part may be nearest
                g = (hit.position - grid_origin) / cell
                x = int(wp.floor(g[0]))
                y = int(wp.floor(g[1]))
                z = int(wp.floor(g[2]))
                if x >= 0 and y >= 0 and z >= 0 and x < skip.shape[0] and y < skip.shape[1] and z < skip.shape[2]:
                    away = int(skip[x, y, z])
                    if away == 0 or away == HIDDEN_CELL:
                        out_t[r, count] = t / length
                        out_width[r, count] = width
                        out_position[r, count] = hit.position
                        out_M[r, count] = hit.M
                        if away != 0 and stop_at_hidden != 0:
                            # a whole step closes the ray; what a quarter of one let through would be background
                            out_width[r, count] = float(QUARTERS) * quarter
                            k = steps
                        count += 1
                    elif away == CORE_CELL:
                        k = steps
                    else:
                        # another part of the surface may be no farther than this one, and what lies round it
                        # has its own place in canonical space: do not skip past it
                        advance = wp.min(float(away - 1) * cell, 0.5 * hit.distance)
            k += stride * wp.max(1, int(wp.floor(advance / width)))
        if start.shape[0] > 0:
            if k < steps:
                out_next[r] = k
            break
        if k >= steps:
            break
        quarter = quarter * 2.0
    out_count[r] = count


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
) -> MarchedSamples:
    """March R rays through the posed slots of `surface`.

    Args:
        start: walk in parts: go on from here (0 at first, then `next`), and stop when there is no more room, in place
            of walking again in wider steps.
        hull: of the pose, where all rays are of one; pays for whole pictures.
        seed: of the stratified jitter; negative puts every sample in the middle of its interval.
    """
    device, R, S = origins.device, origins.shape[0], settings.max_samples
    t = torch.zeros(R, S, device=device)
    width = torch.zeros(R, S, device=device)
    # not cleared: most of it is never written nor read, and touching it would cost more than the samples
    position = torch.empty(R, S, 3, device=device)
    M = torch.empty(R, S, 3, 3, device=device)
    count = torch.zeros(R, dtype=torch.int32, device=device)
    following = torch.full((R,), -1, dtype=torch.int32, device=device)
    begin = torch.zeros(0, dtype=torch.int32, device=device) if start is None else start.int().contiguous()
    lower = surface.posed.amin(1) - settings.reach
    upper = surface.posed.amax(1) + settings.reach
    if hull is None:
        hull = no_hull(device)
    launch(
        _march,
        R,
        [
            array(origins.contiguous().float(), wp.vec3),
            array(directions.contiguous().float(), wp.vec3),
            array(slots.int().contiguous()),
            array(lower, wp.vec3),
            array(upper, wp.vec3),
            surface.mesh_ids,
            array(surface.flat_faces),
            array(surface.canonical, wp.vec3),
            array(surface.maps, wp.mat33),
            array(surface.own_space),
            array(surface.thin, wp.uint8),
            array(occupancy.skip, wp.uint8),
            wp.vec3(*occupancy.origin),
            float(occupancy.cell),
            array(hull.away, wp.uint8),
            array(hull.parts),
            array(hull.position, wp.vec3),
            array(hull.M, wp.mat33),
            wp.vec3(*hull.lower),
            float(hull.cell),
            float(settings.step),
            float(settings.reach),
            int(settings.stop_at_hidden),
            int(seed),
            array(begin),
        ],
        [array(t), array(width), array(position, wp.vec3), array(M, wp.mat33), array(count), array(following)],
        device,
    )
    return MarchedSamples(t, width, position, M, count, following)
