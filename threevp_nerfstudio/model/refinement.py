"""Small corrections of the tracking, learned with the avatar: per training frame a rigid motion of the body, one of the head on
it, and an offset of the expression.

Banked rays are mapped ahead of time and carry no gradient to the pose. None is needed: a head that is tracked as T but
is really at T exp(d) carries each of its points rigidly, so a point x that T maps to x_c = T^-1 x belongs at

    (T exp(d))^-1 x = exp(-d) x_c.

The correction is the same motion for every point of the head, in canonical space, whatever the pose: exact where points
ride on the head, and faded out below the neck. The expression's offset goes the way that expression goes beside the
mesh, through the conditioning.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.model.field import CanonicalSamples

FADE = 0.06
"""Metres above the pivot over which the correction grows from nothing to the whole."""
EXPECTED = (0.02, 0.003, 0.1)
"""Typical errors of tracking, of which corrections are multiples: radians, metres, expression units."""


@dataclass
class RefinementConfig:
    """Correction of the tracking during training."""

    enabled: bool = False
    """Learn a small head motion and expression offset for each training frame. For captures whose tracking is noisy;
    held-out frames are rendered as tracked."""
    start: int = 1000
    """Training step at which corrections set in: the avatar has to be there first."""
    prior: float = 1e-5
    """Weight of the squared corrections, in units of the usual tracking errors. Without it all frames may drift
    together."""


def correct_points(
    x: Float[Tensor, "N 3"],
    rotation: Float[Tensor, "N 3"],
    translation: Float[Tensor, "N 3"],
    pivot: Float[Tensor, "3"],
    weight: Float[Tensor, "N"],
) -> Float[Tensor, "N 3"]:
    """`exp(-d) x`, where d turns about `pivot` by `rotation` (axis-angle, radians) and then moves by `translation`
    (metres); `weight` 0..1 fades between x and the result."""
    moved = rotate(x - pivot - translation, -rotation) + pivot
    return x + weight[:, None] * (moved - x)


def rotate(v: Float[Tensor, "N 3"], rotation: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """Rodrigues' formula, with series about zero: values and gradients are finite there."""
    square = (rotation * rotation).sum(-1, keepdim=True)
    small = square < 1e-6
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    sine = torch.where(small, 1.0 - square / 6.0, angle.sin() / angle)
    cosine = torch.where(small, 0.5 - square / 24.0, (1.0 - angle.cos()) / angle.square())
    once = torch.linalg.cross(rotation, v)
    return v + sine * once + cosine * torch.linalg.cross(rotation, once)


def head_weight(x: Float[Tensor, "N 3"], pivot: Float[Tensor, "3"]) -> Float[Tensor, "N"]:
    """0 below the pivot (world +z is up in canonical space), 1 from `FADE` above it, smooth in between."""
    t = ((x[:, 2] - pivot[2]) / FADE).clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def head_pivot(template: RiggedTemplate) -> Float[Tensor, "3"]:
    """Rest position of the head's joint, else of the neck's, else far below everything: all of the body then moves."""
    names = [str(name).lower() for name in template.joint_names]
    for wanted in ("head", "neck"):
        for i, name in enumerate(names):
            if wanted in name:
                return torch.as_tensor(template.joints[i], dtype=torch.float32)
    middle, low = template.vertices.mean(0), template.vertices[:, 2].min()
    return torch.tensor([middle[0], middle[1], low - 2 * FADE], dtype=torch.float32)


class FrameCorrections(nn.Module):
    """Corrections of all frames, zero at the start, in units of `EXPECTED`. Looked up by frame, so only frames of a batch get
    gradients.

    Args:
        num_frames: of the capture.
        num_conditioning: channels of the conditioning.
        pivot: about which body and head turn.
    """

    def __init__(self, num_frames: int, num_conditioning: int, pivot: Float[Tensor, "3"]) -> None:
        super().__init__()
        self.register_buffer("pivot", pivot)
        self.body = nn.Parameter(torch.zeros(num_frames, 6))
        self.head = nn.Parameter(torch.zeros(num_frames, 6))
        self.expression = nn.Parameter(torch.zeros(num_frames, num_conditioning))

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # corrections belong to the frames that they were learned from: on other data they start anew
        for name, own in self.named_parameters(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is None or saved.shape != own.shape:
                state_dict[prefix + name] = own.detach()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def twists(self, frame: Int[Tensor, "N"]) -> tuple[Float[Tensor, "N 3"], ...]:
        """Rotation and translation of the body, then of the head; radians and metres."""
        return tuple(
            scale * part
            for twist in (self.body, self.head)
            for part, scale in zip(twist[frame].split(3, dim=-1), EXPECTED[:2], strict=True)
        )

    def points(self, x: Float[Tensor, "N 3"], frame: Int[Tensor, "N"]) -> Float[Tensor, "N 3"]:
        """Corrected canonical points: the body's correction moves all of them, the head's those above the neck."""
        body_turn, body_shift, head_turn, head_shift = self.twists(frame)
        everywhere = torch.ones_like(x[:, 0])
        x = correct_points(x, body_turn, body_shift, self.pivot, everywhere)
        return correct_points(x, head_turn, head_shift, self.pivot, head_weight(x, self.pivot))

    def conditioning(self, tracked: Float[Tensor, "B C"], frame: Int[Tensor, "B"]) -> Float[Tensor, "B C"]:
        """Corrected conditioning."""
        return tracked + EXPECTED[2] * self.expression[frame]

    def apply_to(self, samples: CanonicalSamples, frames: Int[Tensor, "B"]) -> CanonicalSamples:
        """Samples of a batch, whose rows of conditioning belong to `frames`. Light and view would turn by a degree or two,
        which smooth colour hardly sees, and stay."""
        return replace(
            samples,
            position=self.points(samples.position, frames[samples.frame]),
            conditioning=self.conditioning(samples.conditioning, frames),
        )

    def size(self, frame: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """Mean squared correction of some frames, in units of the usual errors."""
        parts = (self.body, self.head, self.expression)
        return sum(part[frame].square().sum(-1).mean() for part in parts if part.shape[1])
