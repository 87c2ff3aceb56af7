"""Training losses, as pure functions. Each returns a scalar."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def photometric(
    predicted: Float[Tensor, "R 3"], target: Float[Tensor, "R 3"], weight: Float[Tensor, "R"]
) -> Float[Tensor, ""]:
    """Weighted mean squared error of colours over the same background."""
    return (weight * (predicted - target).square().mean(-1)).mean()


def opacity(
    accumulation: Float[Tensor, "R"], matte: Float[Tensor, "R"], weight: Float[Tensor, "R"]
) -> Float[Tensor, ""]:
    """Weighted binary cross entropy of the accumulation against the matte's alpha."""
    p = accumulation.clamp(1e-4, 1.0 - 1e-4)
    entropy = -(matte * p.log() + (1.0 - matte) * (1.0 - p).log())
    return (weight * entropy).mean()


def distortion(
    weights: Float[Tensor, "R S"], t: Float[Tensor, "R S"], width: Float[Tensor, "R S"]
) -> Float[Tensor, ""]:
    """How far a ray's weights are spread (mip-NeRF 360, eq. 15), metres."""
    sum_w = torch.cumsum(weights, -1) - weights
    sum_wt = torch.cumsum(weights * t, -1) - weights * t
    pairs = 2.0 * weights * (t * sum_w - sum_wt)
    return (pairs + weights.square() * width / 3.0).sum(-1).mean()


def displacement_size(displacement: Float[Tensor, "N 3"]) -> Float[Tensor, ""]:
    """Mean squared displacement in centimetres squared."""
    return (displacement * 100.0).square().sum(-1).mean()


def view_residual(residual: Float[Tensor, "N 3"], weight: Float[Tensor, "N"]) -> Float[Tensor, ""]:
    """Mean squared view-dependent part of the colour's logit, by the samples' weights."""
    return (weight.detach() * residual.square().sum(-1)).sum() / weight.detach().sum().clamp_min(1e-6)
