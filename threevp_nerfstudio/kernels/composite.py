"""Volume rendering of packed samples (Max 1995) with gradients, and what samples tell the occupancy grid.

The samples of each ray lie one behind the other; `ends` says where each ray's end. One thread goes along one ray.
`model/volume.py` has the same in plain torch, on rays with slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import warp as wp
from jaxtyping import Float, Int
from torch import Tensor

from threevp_nerfstudio.kernels.runtime import launch, view


@dataclass(frozen=True)
class Composite:
    """R rendered rays of N samples."""

    rgb: Float[Tensor, "R 3"]
    """Over the background; without one premultiplied by the accumulation."""
    accumulation: Float[Tensor, "R"]
    depth: Float[Tensor, "R"]
    """Expected distance, premultiplied by the accumulation."""
    weights: Float[Tensor, "N"]
    transmittance: Float[Tensor, "N"]
    """Light that is left of the ray where each sample begins; no gradient."""


@wp.kernel(enable_backward=False)
def _composite(
    density: wp.array(dtype=float),
    rgb: wp.array(dtype=wp.vec3),
    t: wp.array(dtype=float),
    width: wp.array(dtype=float),
    ends: wp.array(dtype=wp.int32),
    background: wp.array(dtype=wp.vec3),
    out_rgb: wp.array(dtype=wp.vec3),
    out_accumulation: wp.array(dtype=float),
    out_depth: wp.array(dtype=float),
    out_weights: wp.array(dtype=float),
    out_transmittance: wp.array(dtype=float),
):
    r = wp.tid()
    begin = int(0)
    if r > 0:
        begin = ends[r - 1]
    before = float(0.0)
    color = wp.vec3(0.0, 0.0, 0.0)
    accumulation = float(0.0)
    depth = float(0.0)
    for i in range(begin, ends[r]):
        optical = density[i] * width[i]
        light = wp.exp(-before)
        weight = light * (1.0 - wp.exp(-optical))
        before += optical
        accumulation += weight
        depth += weight * t[i]
        if out_rgb.shape[0] > 0:
            color += weight * rgb[i]
        out_weights[i] = weight
        out_transmittance[i] = light
    if background.shape[0] > 0:
        color += (1.0 - accumulation) * background[r]
    if out_rgb.shape[0] > 0:
        out_rgb[r] = color
    out_accumulation[r] = accumulation
    out_depth[r] = depth


@wp.kernel(enable_backward=False)
def _composite_backward(
    density: wp.array(dtype=float),
    rgb: wp.array(dtype=wp.vec3),
    t: wp.array(dtype=float),
    width: wp.array(dtype=float),
    ends: wp.array(dtype=wp.int32),
    background: wp.array(dtype=wp.vec3),
    weights: wp.array(dtype=float),
    transmittance: wp.array(dtype=float),
    grad_rgb: wp.array(dtype=wp.vec3),
    grad_accumulation: wp.array(dtype=float),
    grad_depth: wp.array(dtype=float),
    grad_weights: wp.array(dtype=float),
    out_density: wp.array(dtype=float),
    out_rgb: wp.array(dtype=wp.vec3),
):
    r = wp.tid()
    begin = int(0)
    if r > 0:
        begin = ends[r - 1]
    end = ends[r]
    color = wp.vec3(0.0, 0.0, 0.0)
    if grad_rgb.shape[0] > 0:
        color = grad_rgb[r]
    opacity = float(0.0)
    if grad_accumulation.shape[0] > 0:
        opacity = grad_accumulation[r]
    if background.shape[0] > 0:
        opacity -= wp.dot(color, background[r])
    far = float(0.0)
    if grad_depth.shape[0] > 0:
        far = grad_depth[r]
    # from the last sample on: each one takes light from those behind it
    behind = float(0.0)
    for k in range(end - begin):
        i = end - 1 - k
        own = opacity + wp.dot(color, rgb[i]) + far * t[i]
        if grad_weights.shape[0] > 0:
            own += grad_weights[i]
        left = transmittance[i] * wp.exp(-density[i] * width[i])
        out_density[i] = (own * left - behind) * width[i]
        out_rgb[i] = weights[i] * color
        behind += own * weights[i]


def _nothing(like: Tensor, *shape: int) -> Tensor:
    """In place of what is not given."""
    return torch.empty(0, *shape, device=like.device)


def _forward(
    density: Tensor, rgb: Tensor, t: Tensor, width: Tensor, ends: Tensor, background: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    R, N, device = len(ends), len(density), density.device
    out_rgb = torch.empty(R if len(rgb) == N else 0, 3, device=device)
    accumulation, depth = torch.empty(R, device=device), torch.empty(R, device=device)
    weights, transmittance = torch.empty(N, device=device), torch.empty(N, device=device)
    launch(
        _composite,
        R,
        [view(density), view(rgb, wp.vec3), view(t), view(width), view(ends), view(background, wp.vec3)],
        [view(out_rgb, wp.vec3), view(accumulation), view(depth), view(weights), view(transmittance)],
        device,
    )
    return out_rgb, accumulation, depth, weights, transmittance


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, density: Tensor, rgb: Tensor, t: Tensor, width: Tensor, ends: Tensor, background: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        density, rgb = density.contiguous(), rgb.contiguous()
        out = _forward(density, rgb, t, width, ends, background)
        ctx.save_for_backward(density, rgb, t, width, ends, background, out[3], out[4])
        ctx.mark_non_differentiable(out[4])
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        density, rgb, t, width, ends, background, weights, transmittance = ctx.saved_tensors
        none = _nothing(density, 3), *3 * (_nothing(density),)
        of_rgb, of_accumulation, of_depth, of_weights = (
            nothing if grad is None else grad.contiguous() for grad, nothing in zip(grads[:4], none, strict=True)
        )
        grad_density, grad_rgb = torch.empty_like(density), torch.empty_like(rgb)
        launch(
            _composite_backward,
            len(ends),
            [
                view(density),
                view(rgb, wp.vec3),
                view(t),
                view(width),
                view(ends),
                view(background, wp.vec3),
                view(weights),
                view(transmittance),
                view(of_rgb, wp.vec3),
                view(of_accumulation),
                view(of_depth),
                view(of_weights),
            ],
            [view(grad_density), view(grad_rgb, wp.vec3)],
            density.device,
        )
        return grad_density, grad_rgb, None, None, None, None


def composite(
    density: Float[Tensor, "N"],
    rgb: Float[Tensor, "N 3"],
    t: Float[Tensor, "N"],
    width: Float[Tensor, "N"],
    ends: Int[Tensor, "R"],
    background: Float[Tensor, "R 3"] | None = None,
) -> Composite:
    """Composite packed samples along their rays; gradients go to density and colour. `ends` are int32."""
    background = _nothing(t, 3) if background is None else background
    return Composite(*_Composite.apply(density, rgb, t, width, ends, background))


@torch.no_grad()
def weigh(
    density: Float[Tensor, "N"], width: Float[Tensor, "N"], ends: Int[Tensor, "R"]
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Weights and transmittance alone, without gradients."""
    none = _nothing(density, 3)
    return _forward(density.contiguous(), none, width, width, ends, none)[3:]


@wp.kernel(enable_backward=False)
def _vote(
    position: wp.array(dtype=wp.vec3),
    transmittance: wp.array(dtype=float),
    origin: wp.vec3,
    cell: float,
    seen: float,
    light: float,
    dark: float,
    votes: wp.array3d(dtype=float),
):
    i = wp.tid()
    g = (position[i] - origin) / cell
    x = wp.clamp(int(wp.floor(g[0])), 0, votes.shape[0] - 1)
    y = wp.clamp(int(wp.floor(g[1])), 0, votes.shape[1] - 1)
    z = wp.clamp(int(wp.floor(g[2])), 0, votes.shape[2] - 1)
    wp.atomic_add(votes, x, y, z, wp.where(transmittance[i] > seen, light, dark))


def vote(
    votes: Float[Tensor, "X Y Z"],
    position: Float[Tensor, "N 3"],
    transmittance: Float[Tensor, "N"],
    origin: tuple[float, float, float],
    cell: float,
    seen: float,
    light: float,
    dark: float,
) -> None:
    """Add to the cell of each sample `light` where its transmittance is above `seen`, else `dark`; in place."""
    launch(
        _vote,
        len(position),
        [
            view(position.contiguous(), wp.vec3),
            view(transmittance.contiguous()),
            wp.vec3(*origin),
            float(cell),
            float(seen),
            float(light),
            float(dark),
        ],
        [view(votes)],
        position.device,
    )
