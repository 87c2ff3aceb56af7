"""Vectors of three numbers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def unit(x: Float[Tensor, "*n"], dim: int = -1) -> Float[Tensor, "*n"]:
    """Vectors along `dim` at unit length; near zero they stay short.

    Written out: torch reduces over a dimension of three entries seven times slower than it adds three tensors.
    """
    a, b, c = x.unbind(dim)
    return x * (a * a + b * b + c * c).clamp_min(1e-12).rsqrt().unsqueeze(dim)
