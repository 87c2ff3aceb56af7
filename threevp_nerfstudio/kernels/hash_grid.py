"""Multiresolution hash encoding (Müller et al. 2022, Instant-NGP) on Warp, with gradients for table and points.

The kernels here are for GPUs; `hash_grid_cpu.py` has those for CPUs.

Points lie in [0, 1]^3; a level of resolution r has (r + 1)^3 corners, stored densely where they fit into the table
and hashed where they do not. Features of all levels are concatenated, coarse first.
"""

from functools import cache
from typing import Any

import torch
import warp as wp
from jaxtyping import Bool, Float, Int
from torch import Tensor

from threevp_nerfstudio.kernels import hash_grid_cpu
from threevp_nerfstudio.kernels.hash_grid_cpu import PRIMES
from threevp_nerfstudio.kernels.runtime import launch, view
from threevp_nerfstudio.kernels.threads import in_parts

PRIME_Y = wp.constant(wp.uint32(PRIMES[1]))
PRIME_Z = wp.constant(wp.uint32(PRIMES[2]))


@wp.func
def corner_index(x: wp.uint32, y: wp.uint32, z: wp.uint32, resolution: wp.uint32, size: wp.uint32) -> wp.int32:
    stride = resolution + wp.uint32(1)
    # (r + 1)^3 <= size, without overflow for any r up to 2^21
    index = wp.uint32(0)
    if wp.uint64(stride) * wp.uint64(stride) * wp.uint64(stride) <= wp.uint64(size):
        index = x + stride * (y + stride * z)
    else:
        index = (x ^ (y * PRIME_Y) ^ (z * PRIME_Z)) & (size - wp.uint32(1))
    return wp.int32(index)


@wp.func
def axis_weight(bit: int, f: float) -> float:
    return wp.where(bit == 1, f, 1.0 - f)


@cache
def _entry(features: int):
    return wp.types.vector(length=features, dtype=wp.float32)


@cache
def _kernels(features: int):
    """Forward and backward kernels for `features` values per entry."""
    vec = _entry(features)

    def forward(
        points: wp.array(dtype=wp.vec3),
        table: wp.array2d(dtype=vec),
        resolutions: wp.array(dtype=wp.int32),
        out: wp.array2d(dtype=vec),
    ):
        level, i = wp.tid()
        size = wp.uint32(table.shape[1])
        r = wp.float32(resolutions[level])
        p = points[i] * r
        base = wp.vec3(
            wp.clamp(wp.floor(p[0]), 0.0, r - 1.0),
            wp.clamp(wp.floor(p[1]), 0.0, r - 1.0),
            wp.clamp(wp.floor(p[2]), 0.0, r - 1.0),
        )
        f = p - base
        ix = wp.uint32(base[0])
        iy = wp.uint32(base[1])
        iz = wp.uint32(base[2])
        total = vec()
        for corner in range(8):
            bx = corner & 1
            by = (corner >> 1) & 1
            bz = (corner >> 2) & 1
            w = axis_weight(bx, f[0]) * axis_weight(by, f[1]) * axis_weight(bz, f[2])
            index = corner_index(
                ix + wp.uint32(bx), iy + wp.uint32(by), iz + wp.uint32(bz), wp.uint32(resolutions[level]), size
            )
            total += w * table[level, index]
        out[i, level] = total

    def backward(
        points: wp.array(dtype=wp.vec3),
        table: wp.array2d(dtype=vec),
        resolutions: wp.array(dtype=wp.int32),
        grad_out: wp.array2d(dtype=vec),
        moving: wp.array(dtype=wp.bool),
        want_points: int,
        grad_table: wp.array2d(dtype=vec),
        grad_points: wp.array(dtype=wp.vec3),
    ):
        level, i = wp.tid()
        g = grad_out[i, level]
        size = wp.uint32(table.shape[1])
        r = wp.float32(resolutions[level])
        p = points[i] * r
        base = wp.vec3(
            wp.clamp(wp.floor(p[0]), 0.0, r - 1.0),
            wp.clamp(wp.floor(p[1]), 0.0, r - 1.0),
            wp.clamp(wp.floor(p[2]), 0.0, r - 1.0),
        )
        f = p - base
        ix = wp.uint32(base[0])
        iy = wp.uint32(base[1])
        iz = wp.uint32(base[2])
        slope = wp.vec3(0.0, 0.0, 0.0)
        want = want_points
        if moving.shape[0] > 0:  # noqa: SIM102 (Warp evaluates both sides of `and`)
            if not moving[i]:
                want = int(0)
        for corner in range(8):
            bx = corner & 1
            by = (corner >> 1) & 1
            bz = (corner >> 2) & 1
            wx = axis_weight(bx, f[0])
            wy = axis_weight(by, f[1])
            wz = axis_weight(bz, f[2])
            index = corner_index(
                ix + wp.uint32(bx), iy + wp.uint32(by), iz + wp.uint32(bz), wp.uint32(resolutions[level]), size
            )
            if grad_table.shape[0] > 0:
                wp.atomic_add(grad_table, level, index, (wx * wy * wz) * g)
            if want != 0:
                value = wp.dot(g, table[level, index])
                sx = wp.float32(2 * bx - 1)
                sy = wp.float32(2 * by - 1)
                sz = wp.float32(2 * bz - 1)
                slope += value * wp.vec3(sx * wy * wz, wx * sy * wz, wx * wy * sz)
        if want != 0:
            wp.atomic_add(grad_points, i, slope * r)

    name = f"hash_grid_{features}"
    module = wp.get_module(f"{__name__}.{name}")
    return (
        wp.Kernel(func=forward, key=f"{name}_forward", module=module, options={"enable_backward": False}),
        wp.Kernel(func=backward, key=f"{name}_backward", module=module, options={"enable_backward": False}),
    )


class _HashEncode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, table: Tensor, resolutions: Tensor, moving: Tensor) -> Tensor:
        levels, _, features = table.shape
        points, table = points.contiguous().float(), table.contiguous()
        out = torch.empty(points.shape[0], levels, features, device=points.device)
        vec = _entry(features)
        inputs = [view(points, wp.vec3), view(table, vec), view(resolutions)]
        _launch(0, points, levels, features, inputs, [view(out, vec)])
        ctx.save_for_backward(points, table, resolutions, moving)
        return out.flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        points, table, resolutions, moving = ctx.saved_tensors
        levels, _, features = table.shape
        grad = grad.contiguous().float().view(-1, levels, features)
        want_points, want_table, on_cpu = *ctx.needs_input_grad[:2], _on_cpu(points)
        grad_table = torch.zeros_like(table) if want_table else table.new_empty(0, *table.shape[1:])  # not asked for: not worked out
        parts = -(-levels // hash_grid_cpu.LEVELS) if on_cpu and want_points else 1  # of the levels, which add up gradients of their own
        grad_points = points.new_zeros(parts, *points.shape)
        out_points = view(grad_points if on_cpu else grad_points[0], wp.vec3)
        vec = _entry(features)
        inputs = [view(points, wp.vec3), view(table, vec), view(resolutions), view(grad, vec), view(moving), int(want_points)]
        _launch(1, points, levels, features, inputs, [view(grad_table, vec), out_points])
        of_points = None if not want_points else grad_points[0] if parts == 1 else grad_points.sum(0)
        return of_points, grad_table if want_table else None, None, None


def _on_cpu(points: Tensor) -> bool:
    return points.device.type == "cpu"


def _launch(which: int, points: Tensor, levels: int, features: int, inputs: list, outputs: list) -> None:
    """Forward (0) or backward (1), over levels and points; on a CPU over blocks of points, and threads share the levels."""
    device = points.device
    if not _on_cpu(points):
        launch(_kernels(features)[which], (levels, points.shape[0]), inputs, outputs, device)
        return
    kernel, blocks = hash_grid_cpu._kernels(features)[which], -(-points.shape[0] // hash_grid_cpu.BLOCK)

    def part(first: int, of: int) -> None:
        launch(kernel, (of, blocks), [first, *inputs], outputs, device)

    in_parts(kernel, levels, hash_grid_cpu.LEVELS, part, device)


def hash_encode(
    points: Float[Tensor, "N 3"],
    table: Float[Tensor, "L T F"],
    resolutions: Int[Tensor, "L"],
    moving: Bool[Tensor, "N"] | None = None,
) -> Float[Tensor, "N LF"]:
    """Encode `points` in [0, 1]^3. `T` is a power of two; `resolutions` are int32 cells per axis of each level. Gradients of
    points are worked out for those that are `moving` (None: all) and 0 for others."""
    if moving is None:
        moving = torch.empty(0, dtype=torch.bool, device=points.device)
    return _HashEncode.apply(points, table, resolutions, moving)


def hash_encode_torch(
    points: Float[Tensor, "N 3"],
    table: Float[Tensor, "L T F"],
    resolutions: Int[Tensor, "L"],
    moving: Bool[Tensor, "N"] | None = None,
) -> Float[Tensor, "N LF"]:
    """The same in plain torch: slow, differentiable by autograd, the oracle of the kernel's tests."""
    if moving is not None:
        points = torch.where(moving[:, None], points, points.detach())
    levels, size, _ = table.shape
    out = []
    for level in range(levels):
        r = int(resolutions[level])
        p = points * r
        base = p.detach().floor().clamp(0, r - 1)
        f = p - base
        base = base.long()
        total = 0.0
        for corner in range(8):
            bits = torch.tensor([corner & 1, (corner >> 1) & 1, (corner >> 2) & 1], device=points.device)
            w = torch.where(bits == 1, f, 1.0 - f).prod(-1)
            x, y, z = (base + bits).unbind(-1)
            if (r + 1) ** 3 <= size:
                index = x + (r + 1) * (y + (r + 1) * z)
            else:
                mask = 0xFFFFFFFF
                index = ((x * PRIMES[0]) ^ ((y * PRIMES[1]) & mask) ^ ((z * PRIMES[2]) & mask)) & (size - 1)
            total = total + w[:, None] * table[level, index]
        out.append(total)
    return torch.cat(out, dim=-1)
