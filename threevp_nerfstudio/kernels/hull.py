"""A coarse grid in posed space that says which of its cells a ray can pass without looking.

The occupancy grid lies in canonical space, so that one serves all poses; but asking it takes a nearest-triangle query
for each point on the way. For a whole picture of one pose it pays to ask once for each coarse cell of posed space, and
to query triangles only inside of what is left: a hull of a centimetre or two round what the field fills.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import warp as wp
from jaxtyping import Float, UInt8
from torch import Tensor

from threevp_nerfstudio.kernels.runtime import array, launch
from threevp_nerfstudio.kernels.surface import PosedSurface, canonical_point

FARTHEST = 6


@dataclass(frozen=True)
class PosedHull:
    """Cells of posed space, one grid for each of S slots."""

    away: UInt8[Tensor, "S X Y Z"]
    """0: look here; else the Chebyshev distance in cells to the nearest cell to look at, saturated."""
    lower: Float[Tensor, "S 3"]
    """Lower corner of each grid, metres."""
    cell: float


@wp.kernel(enable_backward=False)
def _occupied_cells(
    lower: wp.array(dtype=wp.vec3),
    hull_cell: float,
    meshes: wp.array(dtype=wp.uint64),
    faces: wp.array(dtype=wp.int32),
    canonical: wp.array(dtype=wp.vec3),
    maps: wp.array2d(dtype=wp.mat33),
    skip: wp.array3d(dtype=wp.uint8),
    grid_origin: wp.vec3,
    cell: float,
    reach: float,
    out: wp.array4d(dtype=wp.uint8),
):
    slot, x, y, z = wp.tid()
    centre = lower[slot] + hull_cell * wp.vec3(float(x) + 0.5, float(y) + 0.5, float(z) + 0.5)
    radius = 0.866 * hull_cell
    hit = canonical_point(centre, meshes[slot], slot, faces, canonical, maps, reach + radius)
    if hit.found == 1:
        g = (hit.position - grid_origin) / cell
        # to the nearest cell of the canonical grid, and from there what the grid says
        i = wp.clamp(int(wp.floor(g[0])), 0, skip.shape[0] - 1)
        j = wp.clamp(int(wp.floor(g[1])), 0, skip.shape[1] - 1)
        k = wp.clamp(int(wp.floor(g[2])), 0, skip.shape[2] - 1)
        outside = wp.max(
            wp.max(wp.abs(wp.floor(g[0]) - float(i)), wp.abs(wp.floor(g[1]) - float(j))), wp.abs(wp.floor(g[2]) - float(k))
        )
        away = int(skip[i, j, k])
        # hidden cells and the core have to be met
        if away >= 254 or (outside + float(away) - 1.0) * cell <= radius:
            out[slot, x, y, z] = wp.uint8(1)


def posed_hull(
    surface: PosedSurface,
    count: int,
    skip: UInt8[Tensor, "X Y Z"],
    grid_origin: tuple[float, float, float],
    grid_cell: float,
    reach: float,
    cell: float,
) -> PosedHull:
    """Hull of the first `count` poses of `surface`.

    Args:
        skip: of the canonical occupancy grid (`march.OccupancyView`), with its origin and the side of its cells.
        reach: half-width of the shell round the template, metres.
        cell: side of a cell of the hull, metres.
    """
    margin = reach + cell
    lower = surface.posed[:count].amin(1) - margin
    extent = (surface.posed[:count].amax(1) + margin - lower).amax(0)
    dims = [int(v) for v in torch.ceil(extent / cell).tolist()]
    occupied = torch.zeros(count, *dims, dtype=torch.uint8, device=surface.device)
    launch(
        _occupied_cells,
        (count, *dims),
        [
            array(lower.contiguous(), wp.vec3),
            float(cell),
            surface.mesh_ids,
            array(surface.flat_faces),
            array(surface.canonical, wp.vec3),
            array(surface.maps, wp.mat33),
            array(skip, wp.uint8),
            wp.vec3(*grid_origin),
            float(grid_cell),
            float(reach),
        ],
        [array(occupied, wp.uint8)],
        surface.device,
    )
    # where two parts of the surface are equally near, the canonical point jumps within a cell: look at neighbours too
    seen = _grow(occupied.bool())
    away = (~seen).to(torch.uint8)
    for _ in range(FARTHEST - 1):
        seen = _grow(seen)
        away += ~seen
    return PosedHull(away, lower, cell)


def _grow(cells: Tensor) -> Tensor:
    """One cell in every direction, corners included."""
    return F.max_pool3d(cells[:, None].float(), 3, 1, 1)[:, 0] > 0
