"""A grid in posed space that says where a ray can pass without looking.

The occupancy grid lies in canonical space, so that one serves all poses; but asking it takes a nearest-triangle query
for each point on the way. For a whole picture of one pose it pays to ask once for each coarse cell of posed space. Near
the middle of a cell the map to canonical space is linear, so its parts can be looked up without further queries, and so can
points in the parts that are left: triangles are queried only within millimetres of what the field fills.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
import warp as wp
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from threevp_nerfstudio.kernels.runtime import launch, view
from threevp_nerfstudio.kernels.surface import PosedSurface, SurfaceView, canonical_point

FARTHEST = 6
PARTS = wp.constant(3)
"""Parts of a cell along each axis; 27 of them are the bits of one number."""
LINEAR = wp.constant(0.25)
"""Of the side of a cell: the most by which a neighbour may differ from what the linear map says."""
TOLERANCE = wp.constant(0.002)
"""Metres by which the linear map of a cell may be wrong inside of it, where it does not break."""
BROKEN = wp.constant(1 << 30)
"""Bit of cells in which the map breaks."""


@dataclass(frozen=True)
class PosedHull:
    """Cells of posed space for one pose."""

    away: UInt8[Tensor, "X Y Z"]
    """0: something may be in the cell; else the Chebyshev distance in cells to the nearest such, saturated."""
    parts: Int[Tensor, "X Y Z"]
    """Bits of the parts of the cell to look at, x fastest; and `BROKEN`."""
    position: Float[Tensor, "X Y Z 3"]
    """Canonical position of the cell's centre, where something may be in it."""
    M: Float[Tensor, "X Y Z 3 3"]
    """Linear part of the map to canonical space there."""
    distance: Float[Tensor, "X Y Z"]
    """From the cell's centre to the surface, metres; infinite where that is out of reach."""
    lower: tuple[float, float, float]
    """Lower corner, metres."""
    cell: float


@wp.func
def clearance(
    position: wp.vec3, skip: wp.array3d(dtype=wp.uint8), grid_origin: wp.vec3, cell: float
) -> float:
    """Metres of canonical space round `position` that are surely empty; 0 in hidden cells and in the core, which rays
    have to meet."""
    g = (position - grid_origin) / cell
    # to the nearest cell of the grid, and from there what the grid says
    i = wp.clamp(int(wp.floor(g[0])), 0, skip.shape[0] - 1)
    j = wp.clamp(int(wp.floor(g[1])), 0, skip.shape[1] - 1)
    k = wp.clamp(int(wp.floor(g[2])), 0, skip.shape[2] - 1)
    away = int(skip[i, j, k])
    if away >= 254:
        return float(0.0)
    outside = wp.max(
        wp.max(wp.abs(wp.floor(g[0]) - float(i)), wp.abs(wp.floor(g[1]) - float(j))), wp.abs(wp.floor(g[2]) - float(k))
    )
    return (outside + float(away) - 1.0) * cell


@wp.func
def filled(g: wp.vec3, skip: wp.array3d(dtype=wp.uint8)) -> int:
    """Whether rays have to look at the cell of the canonical occupancy grid at `g`, in cells."""
    x = int(wp.floor(g[0]))
    y = int(wp.floor(g[1]))
    z = int(wp.floor(g[2]))
    if x < 0 or y < 0 or z < 0 or x >= skip.shape[0] or y >= skip.shape[1] or z >= skip.shape[2]:
        return int(0)
    away = int(skip[x, y, z])
    if away == 0 or away >= 254:
        return int(1)
    return int(0)


@wp.func
def filled_near(p: wp.vec3, skip: wp.array3d(dtype=wp.uint8), grid_origin: wp.vec3, cell: float) -> int:
    """Whether rays have to look at a cell within `TOLERANCE` of a canonical position along each axis. The corners of that
    cube meet all of its cells only where cells are as large; smaller ones are always looked at."""
    if cell < 2.0 * TOLERANCE:
        return int(1)
    g = (p - grid_origin) / cell
    e = TOLERANCE / cell
    for corner in range(8):
        offset = wp.vec3(float(2 * (corner & 1) - 1), float((corner & 2) - 1), float((corner >> 1 & 2) - 1))
        if filled(g + e * offset, skip) == 1:
            return int(1)
    return int(0)


@wp.kernel(enable_backward=False)
def _map_cells(
    lower: wp.vec3,
    hull_cell: float,
    surface: SurfaceView,
    reach: float,
    position: wp.array3d(dtype=wp.vec3),
    M: wp.array3d(dtype=wp.mat33),
    distance: wp.array3d(dtype=float),
):
    x, y, z = wp.tid()
    centre = lower + hull_cell * wp.vec3(float(x) + 0.5, float(y) + 0.5, float(z) + 0.5)
    hit = canonical_point(centre, surface, 0, reach + 0.866 * hull_cell)
    distance[x, y, z] = wp.inf
    if hit.found == 1:
        distance[x, y, z] = hit.distance
        position[x, y, z] = hit.position
        M[x, y, z] = hit.M


@wp.func
def jumps(
    here: wp.vec3, M: wp.mat33, step: wp.vec3, x: int, y: int, z: int,
    position: wp.array3d(dtype=wp.vec3), distance: wp.array3d(dtype=float), limit: float,
) -> int:
    """Whether the map breaks between a cell and the neighbour at (x, y, z): another part of the surface is nearer there."""
    if x < 0 or y < 0 or z < 0 or x >= distance.shape[0] or y >= distance.shape[1] or z >= distance.shape[2]:
        return int(0)
    if not (distance[x, y, z] < wp.inf):
        return int(0)
    if wp.length(position[x, y, z] - here - M * step) > limit:
        return int(1)
    return int(0)


@wp.kernel(enable_backward=False)
def _look_up(
    position: wp.array3d(dtype=wp.vec3),
    M: wp.array3d(dtype=wp.mat33),
    distance: wp.array3d(dtype=float),
    hull_cell: float,
    skip: wp.array3d(dtype=wp.uint8),
    grid_origin: wp.vec3,
    cell: float,
    parts: wp.array3d(dtype=wp.int32),
):
    x, y, z = wp.tid()
    if not (distance[x, y, z] < wp.inf):
        return
    here = position[x, y, z]
    if clearance(here, skip, grid_origin, cell) > 0.866 * hull_cell * 2.0:
        return
    m = M[x, y, z]
    limit = LINEAR * hull_cell
    broken = int(0)
    for axis in range(3):
        step = wp.vec3(0.0, 0.0, 0.0)
        step[axis] = hull_cell
        dx = wp.where(axis == 0, 1, 0)
        dy = wp.where(axis == 1, 1, 0)
        dz = wp.where(axis == 2, 1, 0)
        broken += jumps(here, m, step, x + dx, y + dy, z + dz, position, distance, limit)
        broken += jumps(here, m, -step, x - dx, y - dy, z - dz, position, distance, limit)
    bits = int(0)
    side = hull_cell / float(PARTS)
    for i in range(PARTS):
        for j in range(PARTS):
            for k in range(PARTS):
                middle = 0.5 * float(PARTS - 1)
                offset = side * wp.vec3(float(i) - middle, float(j) - middle, float(k) - middle)
                # where the map breaks, all of the cell has to be looked at
                if broken > 0 or clearance(here + m * offset, skip, grid_origin, cell) <= 0.866 * side + TOLERANCE:
                    bits = bits | (1 << (i + PARTS * (j + PARTS * k)))
    if broken > 0:
        bits = bits | BROKEN
    parts[x, y, z] = bits


def posed_hull(
    surface: PosedSurface,
    skip: UInt8[Tensor, "X Y Z"],
    grid_origin: tuple[float, float, float],
    grid_cell: float,
    reach: float,
    cell: float,
) -> PosedHull:
    """Hull of the first pose of `surface`.

    Args:
        skip: of the canonical occupancy grid (`march.OccupancyView`), with its origin and the side of its cells.
        reach: half-width of the shell round the template, metres.
        cell: side of a cell of the hull, metres.
    """
    device, margin = surface.device, reach + cell
    ends = torch.stack([surface.lower[0] - margin, surface.upper[0] + margin]).tolist()
    lower = tuple(ends[0])
    dims = tuple(int((high - low) / cell) + 1 for low, high in zip(*ends, strict=True))
    position = torch.empty(*dims, 3, device=device)
    M = torch.empty(*dims, 3, 3, device=device)
    distance = torch.empty(dims, device=device)
    parts = torch.zeros(dims, dtype=torch.int32, device=device)
    mapped = [view(position, wp.vec3), view(M, wp.mat33), view(distance)]
    launch(_map_cells, dims, [wp.vec3(*lower), float(cell), surface.view, float(reach)], mapped, device)
    grid = [view(skip, wp.uint8), wp.vec3(*grid_origin), float(grid_cell)]
    launch(_look_up, dims, [*mapped, float(cell), *grid], [view(parts)], device)
    seen = parts != 0
    away = (~seen).to(torch.uint8)
    for _ in range(FARTHEST - 1):
        seen = _grow(seen)
        away += ~seen
    return PosedHull(away, parts, position, M, distance, lower, cell)


def _grow(cells: Tensor) -> Tensor:
    """One cell in every direction, corners included."""
    return F.max_pool3d(cells[None].float(), 3, 1, 1)[0] > 0


@cache
def no_hull(device: torch.device) -> PosedHull:
    """For rays of several poses: its cells have no size, which means that there are none."""
    away, parts = (torch.zeros(1, 1, 1, dtype=dtype, device=device) for dtype in (torch.uint8, torch.int32))
    position, M = torch.zeros(1, 1, 1, 3, device=device), torch.zeros(1, 1, 1, 3, 3, device=device)
    return PosedHull(away, parts, position, M, torch.zeros(1, 1, 1, device=device), (0.0, 0.0, 0.0), 0.0)
