"""Marching rays through posed space: where to put samples, and where each lies in canonical space.

One Warp kernel walks every ray along a lattice of step `step`; where the template is thin (lids, lips) in quarters of it, as
a whole step could pass through a closed lid. At each lattice point the nearest triangle of the posed template gives
either the distance that can be skipped, or a canonical point, whose cell in the canonical occupancy grid says
whether the field has anything there. Only occupied points become samples. The walk ends at the far bound,
at `max_samples`, or (in training) in a cell that is hidden from everywhere. A ray that would need more samples
than there is room for is walked again at twice the step, so that no ray is cut short in front of its surface; or,
for pictures, in parts: whoever evaluates the field knows after each part which rays still let light through.

On a GPU, many threads share a ray (`march_wide.py`).
"""

from __future__ import annotations

import torch
import warp as wp
from jaxtyping import Float, Int
from torch import Tensor

from threevp_nerfstudio.kernels.hull import PosedHull, no_hull
from threevp_nerfstudio.kernels.look import (
    END,
    LAST_SAMPLE,
    QUARTERS,
    SAMPLE,
    SEARCH,
    SEARCH_IN_HULL,
    Arguments,
    MarchedSamples,
    MarchSettings,
    OccupancyView,
    box_bounds,
    farthest_in_hull,
    free_distance,
    hull_arguments,
    look,
    place_in_step,
)
from threevp_nerfstudio.kernels.march_wide import march_all_at_once, march_in_stretches
from threevp_nerfstudio.kernels.runtime import launch, view
from threevp_nerfstudio.kernels.surface import PosedSurface, SurfaceView
from threevp_nerfstudio.kernels.threads import in_parts

MAX_PASSES = wp.constant(4)
PARTS, SMALLEST_PART = 32, 16
"""Parts that threads of a CPU march, and rays of the smallest."""


@wp.kernel(enable_backward=False)
def _march(
    first: int,
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    slots: wp.array(dtype=wp.int32),
    lower: wp.array(dtype=wp.vec3),
    upper: wp.array(dtype=wp.vec3),
    surface: SurfaceView,
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
    r = first + wp.tid()
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
                p, surface, slot, skip, grid_origin, cell, reach, search, bound
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
        wide: many threads to a ray, see `march_wide`; None: on a GPU. For whole rays of any pose, or parts of a picture's (with
            `hull` and `start`, without `seed`); others are walked by a thread each.
    """
    device, R = origins.device, len(origins)
    arguments = Arguments.of(origins, directions, slots, surface, occupancy, settings.reach)
    if device.type == "cuda" if wide is None else wide:
        if hull is None and start is None:
            return march_in_stretches(arguments, R, settings, seed, surface.extent, device)
        if hull is not None and start is not None and seed < 0:
            return march_all_at_once(arguments, R, settings, hull, start, device)
    out = MarchedSamples.room_for(R, settings.max_samples, device)
    begin = torch.zeros(0, dtype=torch.int32, device=device) if start is None else start.int().contiguous()
    a, cells = arguments, hull_arguments(no_hull(device) if hull is None else hull)
    walk = [float(settings.step), float(settings.reach), int(settings.stop_at_hidden), int(seed)]
    inputs = [*a.rays, *a.box, a.surface, *a.grid, *cells, *walk, view(begin)]
    outputs = [view(out.t), view(out.width), view(out.position, wp.vec3), view(out.M, wp.mat33), view(out.count), view(out.next)]

    def part(first: int, rays: int) -> None:
        launch(_march, rays, [first, *inputs], outputs, device)

    in_parts(_march, R, max(SMALLEST_PART, -(-R // PARTS)), part, device)
    return out
