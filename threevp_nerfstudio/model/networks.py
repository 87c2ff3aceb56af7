"""Small fully connected networks, in bfloat16 on CPUs that multiply matrices of it in hardware (AMX).

A third of a training step on a CPU was these networks' matrix products and the activations that they move through memory. With matrix
units, activations are bfloat16 from the first layer to the last, also those kept for the way back, and nothing is cast in between,
as autocast would. Parameters, what goes in and what comes out are single precision; products, gradients among them, are summed in it and
then rounded.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

HALF = torch.bfloat16
ROWS = 1024
"""Rows are filled up to a multiple of this: for each new size of a product oneDNN writes itself a kernel, which takes longer than
the product."""


class MLP(nn.Sequential):
    """Linear layers with ReLU between them."""

    matrix_units = False
    """Use them where the CPU has them."""

    def forward(self, x: Float[Tensor, "N A"]) -> Float[Tensor, "N B"]:
        return layers(x, [p for layer in self[::2] for p in (layer.weight, layer.bias)], self.matrix_units)


def mlp(sizes: list[int]) -> MLP:
    """Fully connected network with ReLU between the layers."""
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        parts.append(nn.Linear(a, b))
        if i < len(sizes) - 2:
            parts.append(nn.ReLU())
    return MLP(*parts)


def layers(x: Float[Tensor, "N A"], parameters: list[Tensor], matrix_units: bool) -> Float[Tensor, "N B"]:
    """Linear layers with ReLU between them; `parameters`: weight and bias of each in turn."""
    if matrix_units and has_matrix_units(x.device.type) and not torch.is_autocast_enabled(x.device.type):
        return _Half.apply(x, *parameters)
    for i in range(0, len(parameters), 2):
        x = F.linear(F.relu(x) if i else x, parameters[i], parameters[i + 1])
    return x


@cache
def has_matrix_units(device_type: str) -> bool:
    """Whether it is a CPU that multiplies matrices of bfloat16 in hardware."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return device_type == "cpu" and bool(capabilities.get("amx_tile")) and bool(capabilities.get("amx_bf16"))


class _Half(torch.autograd.Function):
    """`layers` in `HALF`."""

    @staticmethod
    def forward(ctx, x: Tensor, *parameters: Tensor) -> Tensor:
        weights = [w.to(HALF) for w in parameters[0::2]]
        inputs, h = [], _filled(x)
        for i, (weight, bias) in enumerate(zip(weights, parameters[1::2], strict=True)):
            inputs.append(h)
            h = F.linear(h, weight, bias.to(HALF))
            if i < len(weights) - 1:
                h.relu_()
        ctx.save_for_backward(*inputs, *weights)
        return h[: len(x)].float()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        inputs, weights = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        g, of_parameters, wanted = _filled(gradient), [], ctx.needs_input_grad[1:]
        for i in reversed(range(len(weights))):
            of_parameters.append(g.sum(0).float() if wanted[2 * i + 1] else None)
            of_parameters.append((g.T @ inputs[i]).float() if wanted[2 * i] else None)
            if i > 0:
                g = torch.ops.aten.threshold_backward(g @ weights[i], inputs[i], 0)
        of_x = (g @ weights[0])[: len(gradient)].float() if ctx.needs_input_grad[0] else None
        return of_x, *reversed(of_parameters)


def _filled(x: Float[Tensor, "N A"]) -> Float[Tensor, "M A"]:
    """`x` in `HALF`, with rows of zeros up to a multiple of `ROWS`."""
    out = x.new_empty(-(-len(x) // ROWS) * ROWS, x.shape[1], dtype=HALF)
    out[: len(x)] = x
    out[len(x) :] = 0
    return out
