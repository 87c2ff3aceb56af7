"""What lies between the field's networks, in one kernel each: density and features out of what the first gives, and what the second
is given.

In torch each is some twenty small operators, which take a GPU longer to be told than to do.
"""

from __future__ import annotations

from typing import Any

import torch
import warp as wp
from jaxtyping import Float
from torch import Tensor

from threevp_nerfstudio.kernels.bank import mat32
from threevp_nerfstudio.kernels.runtime import launch, view

GRAIN = 2
"""Harmonics of the view's heading that density depends on."""


@wp.func
def grain(d: wp.vec3) -> wp.vec2:
    """The two harmonics of a direction's heading about the vertical (z) axis that are the same from opposite sides."""
    return wp.vec2(d[0] * d[0] - d[1] * d[1], 2.0 * d[0] * d[1])


@wp.func
def leaning(head: wp.array2d(dtype=float), i: int, own: int, g: wp.vec2) -> float:
    """How far the log density leans to one side, -1 to 1, of a sample looked at along a heading."""
    return wp.tanh(head[i, own + 1] * g[0] + head[i, own + 2] * g[1])


@wp.kernel(enable_backward=False)
def _density(
    head: wp.array2d(dtype=float),
    encoded: wp.array2d(dtype=float),
    direction: wp.array(dtype=wp.vec3),
    own: int,
    strength: float,
    bias: float,
    ceiling: float,
    density: wp.array(dtype=float),
    features: wp.array2d(dtype=float),
):
    i = wp.tid()
    value = head[i, 0] + bias
    if direction.shape[0] > 0:
        value += strength * leaning(head, i, own, grain(direction[i]))
    density[i] = wp.exp(wp.min(value, ceiling))
    for k in range(own):
        features[i, k] = head[i, k + 1]
    for k in range(encoded.shape[1]):
        features[i, own + k] = encoded[i, k]


@wp.kernel(enable_backward=False)
def _density_backward(
    head: wp.array2d(dtype=float),
    direction: wp.array(dtype=wp.vec3),
    own: int,
    strength: float,
    bias: float,
    ceiling: float,
    grad_density: wp.array(dtype=float),
    grad_features: wp.array2d(dtype=float),
    grad_head: wp.array2d(dtype=float),
    grad_encoded: wp.array2d(dtype=float),
):
    i = wp.tid()
    value = head[i, 0] + bias
    g = wp.vec2(0.0, 0.0)
    t = float(0.0)
    if direction.shape[0] > 0:
        g = grain(direction[i])
        t = leaning(head, i, own, g)
        value += strength * t
    through = float(0.0)
    if grad_density.shape[0] > 0 and value <= ceiling:
        through = grad_density[i] * wp.exp(value)
    grad_head[i, 0] = through
    for k in range(own + 1, head.shape[1]):
        grad_head[i, k] = through * strength * (1.0 - t * t) * g[k - own - 1]
    for k in range(own):
        grad_head[i, k + 1] = grad_features[i, k]
    for k in range(grad_encoded.shape[1]):
        grad_encoded[i, k] = grad_features[i, own + k]


class _DensityHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: Tensor, encoded: Tensor, direction: Tensor, own: int, strength: float, bias: float, ceiling: float
    ) -> tuple[Tensor, Tensor]:
        head, encoded, direction = head.contiguous(), encoded.contiguous(), direction.contiguous()
        N = len(head)
        density, features = head.new_empty(N), head.new_empty(N, own + encoded.shape[1])
        numbers = [own, float(strength), float(bias), float(ceiling)]
        inputs = [view(head), view(encoded), view(direction, wp.vec3), *numbers]
        launch(_density, N, inputs, [view(density), view(features)], head.device)
        ctx.save_for_backward(head, direction)
        ctx.numbers = numbers
        return density, features

    @staticmethod
    def backward(ctx: Any, grad_density: Tensor, grad_features: Tensor) -> tuple[Tensor | None, ...]:
        head, direction = ctx.saved_tensors
        grad_head = torch.empty_like(head)
        grad_encoded = head.new_empty(len(head), grad_features.shape[1] - ctx.numbers[0])
        inputs = [view(head), view(direction, wp.vec3), *ctx.numbers, view(grad_density.contiguous()), view(grad_features.contiguous())]
        launch(_density_backward, len(head), inputs, [view(grad_head), view(grad_encoded)], head.device)
        return grad_head, grad_encoded, None, None, None, None, None


def density_head(
    head: Float[Tensor, "N H"],
    encoded: Float[Tensor, "N E"],
    direction: Float[Tensor, "N 3"] | None,
    *,
    features: int,
    strength: float,
    bias: float,
    ceiling: float,
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N D"]]:
    """Density exp(h_0 + bias + strength * tanh(a . grain(direction))), at most exp(ceiling), and what colour is given: `features`
    columns of the head, then the encoding.

    Args:
        head: log density, `features` columns and, if there are any more, the two of `a`.
        direction: unit; None: between all headings.
    """
    if direction is None or strength == 0:
        direction = head.new_empty(0, 3)
    return _DensityHead.apply(head, encoded, direction, features, strength, bias, ceiling)


@wp.func
def harmonics(d: wp.vec3, degree: int, out: wp.array2d(dtype=float), i: int, at: int):
    """`model.encodings.spherical_harmonics` into a row of `out`, from column `at` on."""
    x = d[0]
    y = d[1]
    z = d[2]
    out[i, at] = x
    out[i, at + 1] = y
    out[i, at + 2] = z
    if degree >= 2:
        out[i, at + 3] = 2.0 * x * y
        out[i, at + 4] = 2.0 * y * z
        out[i, at + 5] = 2.0 * x * z
        out[i, at + 6] = x * x - y * y
        out[i, at + 7] = 0.5 * (3.0 * z * z - 1.0)
    if degree >= 3:
        out[i, at + 8] = y * (3.0 * x * x - y * y)
        out[i, at + 9] = 4.0 * x * y * z
        out[i, at + 10] = 0.5 * y * (5.0 * z * z - 1.0)
        out[i, at + 11] = 0.5 * z * (5.0 * z * z - 3.0)
        out[i, at + 12] = 0.5 * x * (5.0 * z * z - 1.0)
        out[i, at + 13] = 2.0 * z * (x * x - y * y)
        out[i, at + 14] = x * (x * x - 3.0 * y * y)


@wp.kernel(enable_backward=False)
def _lit(
    features: wp.array2d(dtype=float),
    light: wp.array(dtype=mat32),
    degree: int,
    out: wp.array2d(dtype=float),
):
    i = wp.tid()
    given = features.shape[1]
    for k in range(given):
        out[i, k] = features[i, k]
    axes = light[i]
    terms = (degree + 1) * (degree + 1) - 1
    harmonics(wp.vec3(axes[0, 0], axes[1, 0], axes[2, 0]), degree, out, i, given)
    harmonics(wp.vec3(axes[0, 1], axes[1, 1], axes[2, 1]), degree, out, i, given + terms)


class _Lit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, light: Tensor, degree: int) -> Tensor:
        features, light = features.contiguous(), light.contiguous()
        ctx.given = features.shape[1]
        out = features.new_empty(len(features), ctx.given + 2 * ((degree + 1) ** 2 - 1))
        launch(_lit, len(features), [view(features), view(light, mat32), degree], [view(out)], features.device)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[:, : ctx.given], None, None


def lit(features: Float[Tensor, "N D"], light: Float[Tensor, "N 3 2"], degree: int) -> Float[Tensor, "N L"]:
    """Features, and behind them the spherical harmonics (bands 1 to `degree`, at most 3) of both of the room's axes. The light gets no
    gradient."""
    return _Lit.apply(features, light, degree)
