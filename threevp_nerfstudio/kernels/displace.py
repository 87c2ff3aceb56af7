"""Displacement by blendfields of the samples that they can move, on Warp: which these are, and where they end up.

    x^ = x + scale * window(x) * sum_k w_k B_k(x)

`window` is 1 inside the part of canonical space that expression moves and falls to 0 within its outer `MARGIN`. Positions carry no
gradient here; `field.py` has the same in plain torch, for positions that do and as the oracle of the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import warp as wp
from jaxtyping import Bool, Float, Int
from torch import Tensor

from threevp_nerfstudio.kernels.runtime import launch, view

MARGIN = wp.constant(0.02)
"""Metres within which the displacement fades out."""


@wp.func
def unit_position(x: wp.vec3, box: wp.array(dtype=wp.vec3)) -> wp.vec3:
    size = box[1] - box[0]
    side = wp.max(wp.max(size[0], size[1]), size[2])
    u = (x - box[0]) / side
    return wp.vec3(wp.clamp(u[0], 0.0, 1.0), wp.clamp(u[1], 0.0, 1.0), wp.clamp(u[2], 0.0, 1.0))


@wp.kernel(enable_backward=False)
def _window(
    position: wp.array(dtype=wp.vec3),
    frame: wp.array(dtype=wp.int64),
    expressive: wp.array(dtype=wp.bool),
    face_box: wp.array(dtype=wp.vec3),
    window: wp.array(dtype=float),
    moving: wp.array(dtype=wp.bool),
):
    i = wp.tid()
    value = float(0.0)
    if expressive[wp.int32(frame[i])]:
        low = position[i] - face_box[0]
        high = face_box[1] - position[i]
        inside = wp.min(wp.min(wp.min(low[0], low[1]), low[2]), wp.min(wp.min(high[0], high[1]), high[2]))
        value = wp.clamp(inside / MARGIN, 0.0, 1.0)
    window[i] = value
    moving[i] = value > 0.0


@wp.kernel(enable_backward=False)
def _gather(
    position: wp.array(dtype=wp.vec3),
    box: wp.array(dtype=wp.vec3),
    moving: wp.array(dtype=wp.bool),
    row: wp.array(dtype=wp.int32),
    where: wp.array(dtype=wp.vec3),
):
    i = wp.tid()
    if moving[i]:
        where[row[i] - 1] = unit_position(position[i], box)


@wp.kernel(enable_backward=False)
def _displace(
    position: wp.array(dtype=wp.vec3),
    frame: wp.array(dtype=wp.int64),
    box: wp.array(dtype=wp.vec3),
    window: wp.array(dtype=float),
    row: wp.array(dtype=wp.int32),
    fields: wp.array2d(dtype=float),
    coefficients: wp.array2d(dtype=float),
    scale: float,
    displacement: wp.array(dtype=wp.vec3),
    place: wp.array(dtype=wp.vec3),
):
    i = wp.tid()
    moved = wp.vec3(0.0, 0.0, 0.0)
    if window[i] > 0.0:
        m = row[i] - 1
        c = wp.int32(frame[i])
        for k in range(coefficients.shape[1]):
            moved += coefficients[c, k] * wp.vec3(fields[m, 3 * k], fields[m, 3 * k + 1], fields[m, 3 * k + 2])
        moved = scale * window[i] * moved
    displacement[i] = moved
    place[i] = unit_position(position[i] + moved, box)


@wp.kernel(enable_backward=False)
def _displace_backward(
    frame: wp.array(dtype=wp.int64),
    box: wp.array(dtype=wp.vec3),
    window: wp.array(dtype=float),
    row: wp.array(dtype=wp.int32),
    fields: wp.array2d(dtype=float),
    coefficients: wp.array2d(dtype=float),
    scale: float,
    place: wp.array(dtype=wp.vec3),
    grad_place: wp.array(dtype=wp.vec3),
    grad_displacement: wp.array(dtype=wp.vec3),
    grad_fields: wp.array2d(dtype=float),
    grad_coefficients: wp.array2d(dtype=float),
):
    i = wp.tid()
    if not (window[i] > 0.0):
        return
    size = box[1] - box[0]
    side = wp.max(wp.max(size[0], size[1]), size[2])
    g = wp.vec3(0.0, 0.0, 0.0)
    if grad_place.shape[0] > 0:
        for axis in range(3):
            if place[i][axis] > 0.0 and place[i][axis] < 1.0:
                g[axis] = grad_place[i][axis] / side
    if grad_displacement.shape[0] > 0:
        g = g + grad_displacement[i]
    g = scale * window[i] * g
    m = row[i] - 1
    c = wp.int32(frame[i])
    for k in range(coefficients.shape[1]):
        w = coefficients[c, k]
        grad_fields[m, 3 * k] = w * g[0]
        grad_fields[m, 3 * k + 1] = w * g[1]
        grad_fields[m, 3 * k + 2] = w * g[2]
        along = g[0] * fields[m, 3 * k] + g[1] * fields[m, 3 * k + 1] + g[2] * fields[m, 3 * k + 2]
        wp.atomic_add(grad_coefficients, c, k, along)


@dataclass(frozen=True)
class FaceSamples:
    """Which of N samples the blendfields can move: those in the face of frames that are not neutral."""

    position: Float[Tensor, "N 3"]
    frame: Int[Tensor, "N"]
    box: Float[Tensor, "2 3"]
    window: Float[Tensor, "N"]
    moving: Bool[Tensor, "N"]
    row: Int[Tensor, "N"]
    """Of the M samples that are moved: how many come up to each of the N."""
    where: Float[Tensor, "M 3"]
    """Their place in the unit cube."""


def face_samples(
    position: Float[Tensor, "N 3"],
    frame: Int[Tensor, "N"],
    expressive: Bool[Tensor, "B"],
    face_box: Float[Tensor, "2 3"],
    box: Float[Tensor, "2 3"],
) -> FaceSamples:
    """Find the samples that blendfields move. The host waits for their number.

    Args:
        frame: row of `expressive` for each sample.
        expressive: whether a frame's expression is other than neutral.
        face_box: lower and upper corner of the part that expression moves.
        box: corners of the canonical box; the unit cube has its largest side.
    """
    N, device = len(position), position.device
    position, frame, box = position.contiguous(), frame.long().contiguous(), box.contiguous()
    expressive, face_box = expressive.contiguous(), face_box.contiguous()
    window = torch.empty(N, device=device)
    moving = torch.empty(N, dtype=torch.bool, device=device)
    inputs = [view(position, wp.vec3), view(frame), view(expressive), view(face_box, wp.vec3)]
    launch(_window, N, inputs, [view(window), view(moving)], device)
    row = torch.cumsum(moving, 0, dtype=torch.int32)
    where = torch.empty(int(row[-1]) if N else 0, 3, device=device)
    launch(_gather, N, [view(position, wp.vec3), view(box, wp.vec3), view(moving), view(row)], [view(where, wp.vec3)], device)
    return FaceSamples(position, frame, box, window, moving, row, where)


class _Displace(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, fields: Tensor, coefficients: Tensor, face: FaceSamples, scale: float
    ) -> tuple[Tensor, Tensor]:
        fields, coefficients = fields.contiguous(), coefficients.contiguous()
        place, displacement = torch.empty_like(face.position), torch.empty_like(face.position)
        launch(
            _displace,
            len(face.position),
            [view(face.position, wp.vec3), *_common(face, fields, coefficients, scale)],
            [view(displacement, wp.vec3), view(place, wp.vec3)],
            fields.device,
        )
        ctx.face, ctx.scale = face, scale
        ctx.save_for_backward(fields, coefficients, place)
        ctx.set_materialize_grads(False)
        return place, displacement

    @staticmethod
    def backward(ctx: Any, grad_place: Tensor | None, grad_displacement: Tensor | None) -> tuple:
        fields, coefficients, place = ctx.saved_tensors
        nothing = place.new_empty(0, 3)
        gradients = [nothing if g is None else g.contiguous() for g in (grad_place, grad_displacement)]
        grad_fields, grad_coefficients = torch.empty_like(fields), torch.zeros_like(coefficients)
        launch(
            _displace_backward,
            len(place),
            [*_common(ctx.face, fields, coefficients, ctx.scale), view(place, wp.vec3), *(view(g, wp.vec3) for g in gradients)],
            [view(grad_fields), view(grad_coefficients)],
            fields.device,
        )
        return grad_fields, grad_coefficients, None, None


def _common(face: FaceSamples, fields: Tensor, coefficients: Tensor, scale: float) -> list:
    return [
        view(face.frame), view(face.box, wp.vec3), view(face.window), view(face.row), view(fields), view(coefficients),
        float(scale),
    ]  # fmt: skip


def displace(
    face: FaceSamples, fields: Float[Tensor, "M K3"], coefficients: Float[Tensor, "B K"], scale: float
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Places in the unit cube after displacement, and the displacement in metres, of all samples.

    Args:
        fields: K displacements of each of the samples that are moved, in the order of `face.where`.
        coefficients: of each frame.
        scale: metres per unit of `fields`.
    """
    return _Displace.apply(fields, coefficients, face, scale)
