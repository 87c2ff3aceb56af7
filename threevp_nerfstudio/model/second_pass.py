"""Which samples of a training step are worth their gradients.

Most samples are in front of the surface or hidden behind it and add nothing to their ray. A first pass without
gradients finds the weights; the second evaluates only what carries the colour, and some of the rest that is in the
light, so that something can still grow where there was nothing.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SLIGHT = 1e-3
"""Weight of a sample that hardly counts."""
DARK = 0.01
"""Transmittance of a ray at a sample that nobody sees."""


def transmittance(weights: Float[Tensor, "R S"]) -> Float[Tensor, "R S"]:
    """Light that is left of each ray where a sample begins."""
    return 1.0 - (weights.cumsum(1) - weights)


def worthwhile(
    weights: Float[Tensor, "N"], light: Float[Tensor, "N"], share: float, generator: torch.Generator
) -> Bool[Tensor, "N"]:
    """Samples with weight, and a random `share` of those without that light reaches; no others."""
    chance = torch.rand(len(weights), generator=generator, device=weights.device) < share
    return (light > DARK) & ((weights > SLIGHT) | chance)
