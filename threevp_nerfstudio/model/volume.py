"""Volume rendering of packed samples (Max 1995), as pure functions.

Samples of R rays sit in (R, S) slots, real ones first; networks see only the N real ones, packed in ray order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


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


def packed_weights(
    density: Float[Tensor, "N"], width: Float[Tensor, "R S"], mask: Bool[Tensor, "R S"]
) -> Float[Tensor, "R S"]:
    """`ray_weights` of packed samples; 0 where there is none."""
    return ray_weights(torch.zeros_like(width).masked_scatter(mask, density), width)


def accumulate(
    weights: Float[Tensor, "R S"], rgb: Float[Tensor, "N 3"], t: Float[Tensor, "R S"], mask: Bool[Tensor, "R S"]
) -> Rendered:
    """Colour, accumulation and depth of rays from their samples' weights."""
    ray = mask.nonzero()[:, 0]
    color = torch.zeros(len(weights), 3, device=weights.device).index_add(0, ray, weights[mask][:, None] * rgb)
    return Rendered(color, weights.sum(-1), (weights * t).sum(-1), weights)


def composite(
    density: Float[Tensor, "N"],
    rgb: Float[Tensor, "N 3"],
    t: Float[Tensor, "R S"],
    width: Float[Tensor, "R S"],
    mask: Bool[Tensor, "R S"],
) -> Rendered:
    """Composite packed samples along their rays."""
    return accumulate(packed_weights(density, width, mask), rgb, t, mask)


def over(rgb: Float[Tensor, "R 3"], accumulation: Float[Tensor, "R"], background: Tensor) -> Float[Tensor, "R 3"]:
    """Premultiplied colour over a background of (3,) or (R, 3)."""
    return rgb + (1.0 - accumulation)[:, None] * background
