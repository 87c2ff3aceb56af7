"""A picture's rays, part by part: samples of a part packed for the field, and what they add to the picture.

One thread takes a ray. `model/volume.py` has the mathematics in plain torch; `model/rendering.py` says what the parts are for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import warp as wp
from jaxtyping import Bool, Float, Int
from torch import Tensor

from threevp_nerfstudio.kernels.bank import mat32, unit
from threevp_nerfstudio.kernels.look import MarchedSamples
from threevp_nerfstudio.kernels.runtime import launch, view


@dataclass(frozen=True)
class Film:
    """What R rays have gathered so far, before a background."""

    rgb: Float[Tensor, "R 3"]
    accumulation: Float[Tensor, "R"]
    depth: Float[Tensor, "R"]
    """Expected distance, premultiplied by the accumulation."""

    @staticmethod
    def empty(rays: int, device: torch.device) -> Film:
        return Film(*(torch.zeros(rays, *shape, device=device) for shape in ((3,), (), ())))


@dataclass(frozen=True)
class Part:
    """One part of the walk of A rays, whose N samples are packed ray after ray."""

    marched: MarchedSamples
    row: Int[Tensor, "A"]
    """Of each ray in the film."""
    ends: Int[Tensor, "A"]
    """Where each ray's samples end; the next one's begin there."""
    ray: Int[Tensor, "N"]
    """Row in the film, of each sample."""
    position: Float[Tensor, "N 3"]
    direction: Float[Tensor, "N 3"]
    """View direction in the local canonical frame, unit."""
    light: Float[Tensor, "N 3 2"]
    """The room's x and y axes in the local canonical frame, unit columns."""

    def __len__(self) -> int:
        return len(self.ray)


@wp.kernel(enable_backward=False)
def _pack(
    position: wp.array2d(dtype=wp.vec3),
    M: wp.array2d(dtype=wp.mat33),
    directions: wp.array(dtype=wp.vec3),
    room: wp.array(dtype=wp.mat33),
    row: wp.array(dtype=wp.int64),
    ends: wp.array(dtype=wp.int32),
    out_ray: wp.array(dtype=wp.int64),
    out_position: wp.array(dtype=wp.vec3),
    out_direction: wp.array(dtype=wp.vec3),
    out_light: wp.array(dtype=mat32),
):
    a = wp.tid()
    begin = int(0)
    if a > 0:
        begin = ends[a - 1]
    turn = room[0]
    x = wp.vec3(turn[0, 0], turn[1, 0], turn[2, 0])
    y = wp.vec3(turn[0, 1], turn[1, 1], turn[2, 1])
    for i in range(begin, ends[a]):
        m = M[a, i - begin]
        u = unit(m * x)
        v = unit(m * y)
        out_ray[i] = row[a]
        out_position[i] = position[a, i - begin]
        out_direction[i] = unit(m * directions[a])
        out_light[i] = mat32(u[0], v[0], u[1], v[1], u[2], v[2])


@wp.kernel(enable_backward=False)
def _weigh(
    density: wp.array(dtype=float),
    width: wp.array2d(dtype=float),
    row: wp.array(dtype=wp.int64),
    ends: wp.array(dtype=wp.int32),
    accumulation: wp.array(dtype=float),
    weights: wp.array(dtype=float),
):
    a = wp.tid()
    begin = int(0)
    if a > 0:
        begin = ends[a - 1]
    light = 1.0 - accumulation[wp.int32(row[a])]
    for i in range(begin, ends[a]):
        left = wp.exp(-density[i] * width[a, i - begin])
        weights[i] = light * (1.0 - left)
        light = light * left


@wp.kernel(enable_backward=False)
def _add(
    weights: wp.array(dtype=float),
    color: wp.array(dtype=wp.vec3),
    t: wp.array2d(dtype=float),
    next: wp.array(dtype=wp.int32),
    row: wp.array(dtype=wp.int64),
    ends: wp.array(dtype=wp.int32),
    opaque: float,
    rgb: wp.array(dtype=wp.vec3),
    accumulation: wp.array(dtype=float),
    depth: wp.array(dtype=float),
    on: wp.array(dtype=wp.bool),
):
    a = wp.tid()
    begin = int(0)
    if a > 0:
        begin = ends[a - 1]
    r = wp.int32(row[a])
    total = accumulation[r]
    far = depth[r]
    seen = rgb[r]
    for i in range(begin, ends[a]):
        w = weights[i]
        total += w
        far += w * t[a, i - begin]
        seen += w * color[i]
    rgb[r] = seen
    accumulation[r] = total
    depth[r] = far
    on[a] = next[a] >= 0 and 1.0 - total > opaque


def pack(
    marched: MarchedSamples, row: Int[Tensor, "A"], directions: Float[Tensor, "A 3"], room: Float[Tensor, "3 3"]
) -> Part:
    """Pack what was marched. The host waits for the number of samples."""
    device = row.device
    ends = torch.cumsum(marched.count, 0, dtype=torch.int32)
    N = int(ends[-1])
    ray = torch.empty(N, dtype=torch.int64, device=device)
    position, direction, light = (torch.empty(N, *shape, device=device) for shape in ((3,), (3,), (3, 2)))
    launch(
        _pack,
        len(row),
        [
            view(marched.position, wp.vec3),
            view(marched.M, wp.mat33),
            view(directions.contiguous(), wp.vec3),
            view(room[None].contiguous(), wp.mat33),
            view(row),
            view(ends),
        ],
        [view(ray), view(position, wp.vec3), view(direction, wp.vec3), view(light, mat32)],
        device,
    )
    return Part(marched, row, ends, ray, position, direction, light)


def weigh(film: Film, part: Part, density: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
    """Share of each sample in its ray's colour, behind what the ray has gathered."""
    weights = torch.empty(len(part), device=density.device)
    launch(
        _weigh,
        len(part.row),
        [view(density.contiguous()), view(part.marched.width), view(part.row), view(part.ends), view(film.accumulation)],
        [view(weights)],
        density.device,
    )
    return weights


def add(
    film: Film, part: Part, weights: Float[Tensor, "N"], color: Float[Tensor, "N 3"], opaque: float
) -> Bool[Tensor, "A"]:
    """Put a part behind what its rays have gathered, in place. Returns which of them go on: those that have not ended and let
    more light through than `opaque`."""
    on = torch.empty(len(part.row), dtype=torch.bool, device=weights.device)
    launch(
        _add,
        len(part.row),
        [
            view(weights),
            view(color.contiguous(), wp.vec3),
            view(part.marched.t),
            view(part.marched.next),
            view(part.row),
            view(part.ends),
            float(opaque),
        ],
        [view(film.rgb, wp.vec3), view(film.accumulation), view(film.depth), view(on)],
        weights.device,
    )
    return on
