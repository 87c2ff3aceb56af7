"""What a marched ray finds at one point of posed space: shared by the ways to walk it, in `march.py` and `march_wide.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import warp as wp
from jaxtyping import Bool, Float, Int
from torch import Tensor

from threevp_nerfstudio.kernels.hull import BROKEN, PARTS, PosedHull, filled_near
from threevp_nerfstudio.kernels.runtime import view
from threevp_nerfstudio.kernels.surface import CanonicalPoint, PosedSurface, SurfaceView, canonical_point

SEARCH = wp.constant(3.0)
"""How far off the nearest triangle is looked for, in half-widths of the shell: where there is none, rays jump."""
SEARCH_IN_HULL = wp.constant(1.2)
"""The same in the parts of a hull that have to be looked at."""
LATTICE = wp.constant(1 << 16)
"""More than any ray has lattice points."""
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

    @staticmethod
    def room_for(rays: int, samples: int, device: torch.device) -> MarchedSamples:
        """None yet. Positions and maps are not cleared: most are never written nor read, and touching them would cost more
        than the samples."""
        return MarchedSamples(
            t=torch.zeros(rays, samples, device=device),
            width=torch.zeros(rays, samples, device=device),
            position=torch.empty(rays, samples, 3, device=device),
            M=torch.empty(rays, samples, 3, 3, device=device),
            count=torch.zeros(rays, dtype=torch.int32, device=device),
            next=torch.full((rays,), -1, dtype=torch.int32, device=device),
        )

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
    surface: SurfaceView,
    slot: int,
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
    hit = canonical_point(p, surface, slot, bound)
    if hit.found == 0:
        out.advance = search - reach
    elif hit.distance > reach:
        out.advance = hit.distance - reach
    else:
        out.thin = int(surface.thin[hit.face])
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


@dataclass(frozen=True)
class Arguments:
    """Of the kernels that walk rays, in groups, in the order in which all of them take these."""

    rays: list[Any]
    """Origins, directions, slots."""
    box: list[Any]
    """Corners of each slot's box."""
    surface: SurfaceView
    grid: list[Any]
    """Of the canonical occupancy: `skip`, origin, cell."""

    @staticmethod
    def of(
        origins: Float[Tensor, "R 3"],
        directions: Float[Tensor, "R 3"],
        slots: Int[Tensor, "R"],
        surface: PosedSurface,
        occupancy: OccupancyView,
        reach: float,
    ) -> Arguments:
        directions, slots = directions.contiguous().float(), slots.int().contiguous()
        return Arguments(
            rays=[view(origins.contiguous().float(), wp.vec3), view(directions, wp.vec3), view(slots)],
            box=[view(surface.lower - reach, wp.vec3), view(surface.upper + reach, wp.vec3)],
            surface=surface.view,
            grid=[view(occupancy.skip, wp.uint8), wp.vec3(*occupancy.origin), float(occupancy.cell)],
        )


def hull_arguments(hull: PosedHull) -> list[Any]:
    """A hull for the kernels: `away`, `parts`, `position`, `M`, then what all of them take: `distance`, corner and size of a cell."""
    return [
        view(hull.away, wp.uint8), view(hull.parts), view(hull.position, wp.vec3), view(hull.M, wp.mat33),
        view(hull.distance), wp.vec3(*hull.lower), float(hull.cell),
    ]  # fmt: skip
