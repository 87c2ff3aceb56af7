"""Small corrections of the tracking, learned with the avatar: per training frame a rigid motion of the body, a turn of the neck and
one of the head on it, and an offset of the expression.

Banked rays are mapped ahead of time and carry no gradient to the pose. None is needed: what is tracked as G but is really at
G exp(d) carries each of its points rigidly, so a point x that G maps to x_c = G^-1 x belongs at

    (G exp(d))^-1 x = exp(-d) x_c.

For a part of the body, d is a twist that is linear in the frame's corrections: a turn of the neck moves the head about a point and an
axis that depend on how the head is held. What lies between the parts gets a mixture of their twists, as in skinning, so that the
corrections are motions of the rig and nothing else. The expression's offset goes the way that expression goes beside the mesh,
through the conditioning.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor, nn

from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.model.field import CanonicalSamples
from threevp_nerfstudio.model.performance import Performance

EXPECTED = (0.02, 0.003, 0.1)
"""Typical errors of tracking, of which corrections are multiples: radians, metres, expression units."""
WEIGHT_CELL, WEIGHT_MARGIN = 0.015, 0.1
"""Cells of the grid that says which part a place belongs to, and how far it reaches beyond the template; metres."""


@dataclass
class RefinementConfig:
    """Correction of the tracking during training."""

    enabled: bool = False
    """Learn a small motion of body, neck and head and an expression offset for each training frame. For captures whose tracking is noisy;
    held-out frames are rendered as tracked."""
    start: int = 1000
    """Training step at which corrections set in: the avatar has to be there first."""
    prior: float = 1e-5
    """Weight of the squared corrections, in units of the usual tracking errors. Without it all frames may drift
    together."""


# ---- the parts of a rig ---------------------------------------------------------------------------------------------


def neck_and_head(template: RiggedTemplate) -> tuple[int, ...] | None:
    """The lowest joint of the neck and the head's, or one joint that is all there is of both. None where there is none."""
    names = [str(name).lower() for name in template.joint_names]
    heads = (
        [j for j, name in enumerate(names) if name == "head"]
        or [j for j, name in enumerate(names) if "head" in name]
        or [j for j, name in enumerate(names) if "neck" in name]
    )
    if not heads:
        return None
    head = lowest = heads[0]
    j = int(template.parents[head])
    while j >= 0:
        lowest = j if "neck" in names[j] else lowest
        j = int(template.parents[j])
    return (head,) if lowest == head else (lowest, head)


def bearer(template: RiggedTemplate, chain: tuple[int, ...]) -> int:
    """The joint that neck and head sit on, in whose rest frame the body's correction is said."""
    parent = int(template.parents[chain[0]])
    return parent if parent >= 0 else chain[0]


def part_weights(template: RiggedTemplate) -> Float[np.ndarray, "V 3"]:
    """How far each vertex goes with body, neck and head; rows sum to one."""
    weights = np.zeros((len(template.vertices), 3), np.float32)
    chain = neck_and_head(template)
    if chain is not None:
        parents = [int(p) for p in template.parents]

        def below(joint: int) -> list[int]:
            def under(j: int) -> bool:
                return j == joint or (j >= 0 and under(parents[j]))

            return [j for j in range(len(parents)) if under(j)]

        weights[:, 2] = template.skin_weights[:, below(chain[-1])].sum(1)
        weights[:, 1] = template.skin_weights[:, below(chain[0])].sum(1) - weights[:, 2]
    weights[:, 0] = 1 - weights[:, 1:].sum(1)
    return weights.clip(0.0, 1.0)


def turn_about(points: Float[Tensor, "... 3"]) -> Float[Tensor, "... 6 3"]:
    """Twists (angular velocity, then velocity of the origin) of turns about the three axes through points."""
    unit = torch.eye(3, dtype=points.dtype, device=points.device)
    moved = -torch.linalg.cross(unit.expand(*points.shape[:-1], 3, 3), points[..., None, :].expand(*points.shape[:-1], 3, 3))
    return torch.cat([unit.expand(*points.shape[:-1], 3, 3), moved.transpose(-1, -2)], -2)


def carried(twist: Float[Tensor, "*N 6 C"], A: Float[Tensor, "*N 4 4"]) -> Float[Tensor, "*N 6 C"]:
    """The same motions as they are seen in the frame that A maps from: `A^-1 d A`."""
    R, t = A[..., :3, :3], A[..., :3, 3:]
    turn, shift = twist[..., :3, :], twist[..., 3:, :]
    shift = shift + torch.linalg.cross(turn, t.expand_as(turn), dim=-2)
    return torch.cat([R.mT @ turn, R.mT @ shift], -2)


def part_twists(rig: Rig, template: RiggedTemplate, performance: Performance) -> Float[Tensor, "F 3 6 12"]:
    """Canonical twist of each part for each of a frame's corrections, which are in units of `EXPECTED`: turn and shift of the body, turn of
    the neck, turn of the head."""
    frames = len(performance.motion_index)
    chain = neck_and_head(template)
    pivot = rig.joints.mean(0) if chain is None else rig.joints[chain[-1]]
    body = torch.cat([EXPECTED[0] * turn_about(pivot), EXPECTED[1] * torch.eye(6, dtype=pivot.dtype)[:, 3:]], -1)
    out = torch.zeros(frames, 3, 6, 12, dtype=pivot.dtype)
    out[..., :6] = body
    if chain is None or not performance.rigged:
        return out
    G = rig.joint_transforms(performance.joint_rotations, performance.root_translation, performance.expression)[performance.motion_index]
    base, neck, head = G[:, bearer(template, chain)], G[:, chain[0]], G[:, chain[-1]]
    turns = [EXPECTED[0] * turn_about(rig.joints[j]).expand(frames, 6, 3) for j in (chain[0], chain[-1])]
    for part, at in ((1, neck), (2, head)):
        out[:, part, :, :6] = carried(body.expand(frames, 6, 6), torch.linalg.solve(base, at))
    if len(chain) > 1:
        out[:, 1, :, 6:9] = turns[0]
        out[:, 2, :, 6:9] = carried(turns[0], torch.linalg.solve(neck, head))
    out[:, 2, :, 9:] = turns[1]
    return out


class PartGrid(nn.Module):
    """To which part of the body places in canonical space belong: weights of the nearest vertex, in a grid, interpolated."""

    def __init__(self, vertices: Float[np.ndarray, "V 3"], weights: Float[np.ndarray, "V 3"]) -> None:
        super().__init__()
        low, high = vertices.min(0) - WEIGHT_MARGIN, vertices.max(0) + WEIGHT_MARGIN
        count = np.ceil((high - low) / WEIGHT_CELL).astype(int) + 1
        axes = [lo + WEIGHT_CELL * np.arange(n) for lo, n in zip(low, count, strict=True)]
        places = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
        nearest = cKDTree(vertices).query(places.reshape(-1, 3))[1].reshape(places.shape[:3])
        grid = torch.from_numpy(weights[nearest].astype(np.float32)).permute(3, 2, 1, 0)[None].contiguous()
        self.register_buffer("grid", grid, persistent=False)
        self.register_buffer("low", torch.from_numpy(low).float(), persistent=False)
        self.register_buffer("span", torch.from_numpy(WEIGHT_CELL * (count - 1)).float(), persistent=False)

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        where = (2 * (x - self.low) / self.span - 1)[None, :, None, None]
        return F.grid_sample(self.grid, where, padding_mode="border", align_corners=True)[0, :, :, 0, 0].T


# ---- corrections ----------------------------------------------------------------------------------------------------


def correct_points(x: Float[Tensor, "N 3"], twist: Float[Tensor, "N 6"], pivot: Float[Tensor, "3"]) -> Float[Tensor, "N 3"]:
    """`exp(-d) x`, each point by its own twist: turned back about `pivot`, after it was moved back by what the twist moves that."""
    turn, shift = twist.split(3, -1)
    shift = shift + torch.linalg.cross(turn, pivot.expand_as(turn))
    return rotate(x - pivot - shift, -turn) + pivot


def rotate(v: Float[Tensor, "N 3"], rotation: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """Rodrigues' formula, with series about zero: values and gradients are finite there."""
    square = (rotation * rotation).sum(-1, keepdim=True)
    small = square < 1e-6
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    sine = torch.where(small, 1.0 - square / 6.0, angle.sin() / angle)
    cosine = torch.where(small, 0.5 - square / 24.0, (1.0 - angle.cos()) / angle.square())
    once = torch.linalg.cross(rotation, v)
    return v + sine * once + cosine * torch.linalg.cross(rotation, once)


class FrameCorrections(nn.Module):
    """Corrections of all frames, zero at the start, in units of `EXPECTED`. Looked up by frame, so only frames of a batch get
    gradients.

    Args:
        template, performance: whose frames are corrected.
        canonical: the template's vertices in canonical space.
    """

    def __init__(self, template: RiggedTemplate, performance: Performance, canonical: Float[Tensor, "V 3"]) -> None:
        super().__init__()
        rig = Rig.from_template(template)
        chain = neck_and_head(template)
        frames = len(performance.motion_index)
        self.register_buffer("pivot", rig.joints.mean(0) if chain is None else rig.joints[chain[-1]].clone(), persistent=False)
        self.register_buffer("twist", part_twists(rig, template, performance).float(), persistent=False)
        self.parts = PartGrid(canonical.cpu().numpy(), part_weights(template))
        self.body = nn.Parameter(torch.zeros(frames, 6))
        """Turn about the head's joint and shift, as the joint that bears the neck would make them."""
        self.head = nn.Parameter(torch.zeros(frames, 6))
        """Turns of neck and head about their joints, in the rest pose's axes."""
        self.expression = nn.Parameter(torch.zeros(frames, performance.num_conditioning))

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        # corrections belong to the frames that they were learned from: on other data they start anew
        for name, own in self.named_parameters(recurse=False):
            saved = state_dict.get(prefix + name)
            if saved is None or saved.shape != own.shape:
                state_dict[prefix + name] = own.detach()
        state_dict.pop(prefix + "pivot", None)  # of earlier versions
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def motions(self, frame: Int[Tensor, "N"]) -> tuple[Float[Tensor, "N 3"], ...]:
        """Turn and shift of the body, turn of the neck, turn of the head; radians and metres."""
        turn, shift = self.body[frame].split(3, -1)
        return (EXPECTED[0] * turn, EXPECTED[1] * shift, *(EXPECTED[0] * part for part in self.head[frame].split(3, -1)))

    def points(self, x: Float[Tensor, "N 3"], of: Int[Tensor, "N"], frames: Int[Tensor, "B"]) -> Float[Tensor, "N 3"]:
        """Corrected canonical points; `of`: which of the `frames` each belongs to."""
        given = torch.cat([self.body[frames], self.head[frames]], -1)
        twists = torch.einsum("bptc,bc->bpt", self.twist[frames], given)
        return correct_points(x, torch.einsum("np,npt->nt", self.parts(x), twists[of]), self.pivot)

    def sensitivity(
        self, x: Float[Tensor, "N 3"], gradient: Float[Tensor, "N 3"], ray: Int[Tensor, "N"], rays: int, frame: int
    ) -> Float[Tensor, "R 12"]:
        """How what has `gradient` at corrected points, summed along rays, changes with the frame's corrections of body and head; to first
        order in these."""
        one = -torch.cat([torch.linalg.cross(x, gradient), gradient], -1)
        of_part = (self.parts(x)[:, :, None] * one[:, None]).flatten(1)
        per_ray = torch.zeros(rays, 18, device=x.device).index_add_(0, ray, of_part)
        return per_ray @ self.twist[frame].flatten(0, 1)

    def conditioning(self, tracked: Float[Tensor, "B C"], frame: Int[Tensor, "B"]) -> Float[Tensor, "B C"]:
        """Corrected conditioning."""
        return tracked + EXPECTED[2] * self.expression[frame]

    def apply_to(self, samples: CanonicalSamples, frames: Int[Tensor, "B"]) -> CanonicalSamples:
        """Samples of a batch, whose rows of conditioning belong to `frames`. Light and view would turn by a degree or two,
        which smooth colour hardly sees, and stay."""
        return replace(
            samples,
            position=self.points(samples.position, samples.frame, frames),
            conditioning=self.conditioning(samples.conditioning, frames),
        )

    def size(self, frame: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """Mean squared correction of some frames, in units of the usual errors."""
        parts = (self.body, self.head, self.expression)
        return sum(part[frame].square().sum(-1).mean() for part in parts if part.shape[1])
