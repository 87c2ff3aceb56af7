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


def composite(
    density: Float[Tensor, "N"],
    rgb: Float[Tensor, "N 3"],
    t: Float[Tensor, "R S"],
    width: Float[Tensor, "R S"],
    mask: Bool[Tensor, "R S"],
) -> Rendered:
    """Composite packed samples along their rays."""
    dense = torch.zeros_like(width).masked_scatter(mask, density)
    weights = ray_weights(dense, width)
    packed = weights[mask]
    ray = mask.nonzero()[:, 0]
    color = torch.zeros(len(width), 3, device=width.device).index_add(0, ray, packed[:, None] * rgb)
    return Rendered(color, weights.sum(-1), (weights * t).sum(-1), weights)


def over(rgb: Float[Tensor, "R 3"], accumulation: Float[Tensor, "R"], background: Tensor) -> Float[Tensor, "R 3"]:
    """Premultiplied colour over a background of (3,) or (R, 3)."""
    return rgb + (1.0 - accumulation)[:, None] * background
