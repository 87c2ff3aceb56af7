"""Volume rendering of packed samples (Max 1995), as pure functions.

Samples of R rays sit in (R, S) slots, real ones first; networks see only N real ones, packed in ray order. `place` says
where each of them sits. Training composites in a kernel (`kernels/composite.py`), of which `composite` here is the twin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Place = tuple[Int[Tensor, "N"], Int[Tensor, "N"]]
"""Ray and slot of each packed sample."""


@dataclass(frozen=True)
class Rendered:
    """Rendered rays, before a background is put behind them."""

    rgb: Float[Tensor, "R 3"]
    """Premultiplied by the accumulation."""
    accumulation: Float[Tensor, "R"]
    depth: Float[Tensor, "R"]
    """Expected distance, premultiplied by the accumulation."""
    weights: Float[Tensor, "R S"]


def ray_weights(density: Float[Tensor, "R S"], width: Float[Tensor, "R S"]) -> Float[Tensor, "R S"]:
    """Share of each sample in its ray's colour; sums to at most one."""
    optical = density * width
    before = torch.cumsum(optical, dim=-1) - optical
    return torch.exp(-before) * (1.0 - torch.exp(-optical))


def packed_weights(density: Float[Tensor, "N"], width: Float[Tensor, "R S"], place: Place) -> Float[Tensor, "R S"]:
    """`ray_weights` of packed samples; 0 where there is none."""
    return ray_weights(torch.zeros_like(width).index_put(place, density), width)


def accumulate(
    weights: Float[Tensor, "R S"], rgb: Float[Tensor, "N 3"], t: Float[Tensor, "R S"], place: Place
) -> Rendered:
    """Colour, accumulation and depth of rays from their samples' weights."""
    color = torch.zeros(len(weights), 3, device=weights.device).index_add(0, place[0], weights[place][:, None] * rgb)
    return Rendered(color, weights.sum(-1), (weights * t).sum(-1), weights)


def composite(
    density: Float[Tensor, "N"],
    rgb: Float[Tensor, "N 3"],
    t: Float[Tensor, "R S"],
    width: Float[Tensor, "R S"],
    place: Place,
) -> Rendered:
    """Composite packed samples along their rays."""
    return accumulate(packed_weights(density, width, place), rgb, t, place)


def with_slots(
    packed: Float[Tensor, "N"], ray: Int[Tensor, "N"], ends: Int[Tensor, "R"], room: int
) -> Float[Tensor, "R S"]:
    """Packed values in slots of rays; 0 where there is none. `ends`: where each ray's samples end."""
    begin = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])
    slot = torch.arange(len(packed), device=packed.device) - begin[ray]
    return torch.zeros(len(ends), room, device=packed.device).index_put((ray, slot), packed)


def over(rgb: Float[Tensor, "R 3"], accumulation: Float[Tensor, "R"], background: Tensor) -> Float[Tensor, "R 3"]:
    """Premultiplied colour over a background of (3,) or (R, 3)."""
    return rgb + (1.0 - accumulation)[:, None] * background
