"""From the names of one face to those of another: expression channels and joints, as pure functions.

Joints are taken relative to each one's neutral pose. Where one skeleton has more joints than the other (three neck joints
against one), the rotations of those between two matched joints are taken together, so that the head ends up turned as
in the source.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import roma
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from torch import Tensor

from threevp_nerfstudio.animation.names import match_channels, match_skeletons
from threevp_nerfstudio.body.expressions import JAW_COMPONENTS, Conversion
from threevp_nerfstudio.errors import PoseError

STILL_DEG = 0.5
"""A joint that turns less than this is not missed."""


@dataclass(frozen=True)
class Skeleton:
    """Joints of a rig by name; parents come first, the root's is -1. `neutral`: local rotations (axis-angle, radians)."""

    names: tuple[str, ...]
    parents: tuple[int, ...]
    neutral: Float[Array, "J 3"]

    def path(self, joint: int, ancestor: int | None) -> list[int] | None:
        """Joints from below `ancestor` (None: from the root) down to `joint`; None if it is no ancestor."""
        path, j = [], joint
        while j >= 0 and j != ancestor:
            path.append(j)
            j = self.parents[j]
        return path[::-1] if ancestor is None or j == ancestor else None


@dataclass(frozen=True)
class ChannelTransfer:
    """Channels on the target, and what could not be carried over."""

    values: Float[Array, "N T"]
    jaw: Float[Array, "N 3"] | None = None
    """Rotation of the target's jaw joint that the conversion asks for."""
    matched: int = 0
    dropped: tuple[str, ...] = ()
    """Source channels without a counterpart that are used."""
    unused: tuple[str, ...] = ()
    """Source channels without a counterpart that are 0 throughout."""
    undriven: tuple[str, ...] = ()
    """Target channels that nothing drives."""


@dataclass(frozen=True)
class JointTransfer:
    """Local rotations (axis-angle, radians) on the target, and what could not be carried over."""

    rotations: Float[Array, "N J 3"]
    matched: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()
    """Source joints whose motion is part of a matched joint below them."""
    dropped: tuple[str, ...] = field(default=())
    """Source joints that move and have no counterpart."""


def transfer_channels(
    names: tuple[str, ...],
    values: Float[Array, "N S"],
    target: tuple[str, ...],
    conversion: Conversion | None,
    source: str,
) -> ChannelTransfer:
    """Expression by channel name, or through a conversion between body models.

    Raises:
        PoseError: no channel has a counterpart, or the conversion is for other channels.
    """
    jaw = None
    if conversion is not None:
        order = dict((t, s) for t, s in match_channels(names, conversion.source_names))
        if not order:
            raise PoseError(f"{source}: none of its channels is one that the conversion takes: {_some(conversion.source_names)}.")
        given = np.zeros((len(values), len(conversion.source_names)))
        for t, s in order.items():
            given[:, t] = values[:, s]
        left_out = [i for i in range(len(names)) if i not in order.values()]
        converted = conversion.apply(given)
        if JAW_COMPONENTS[0] in conversion.target_names:
            jaw = converted[:, [conversion.target_names.index(n) for n in JAW_COMPONENTS]]
        dropped, unused = _split_by_use(names, values, left_out)
        names, values = conversion.target_names, converted
    pairs = match_channels(names, target)
    if not pairs and jaw is None:
        raise PoseError(
            f"{source}: no channel has the name of one of this avatar's. It drives {_some(names)}; the avatar has "
            f"{_some(target)}. Between body models, make a conversion with threevp convert-expressions and give it as "
            "--drive.conversion."
        )
    out = np.zeros((len(values), len(target)))
    for t, s in pairs:
        out[:, t] = values[:, s]
    if conversion is None:
        used = {s for _, s in pairs}
        dropped, unused = _split_by_use(names, values, [i for i in range(len(names)) if i not in used])
    driven = {t for t, _ in pairs}
    undriven = tuple(n for i, n in enumerate(target) if i not in driven)
    return ChannelTransfer(out, jaw, len(pairs), dropped, unused, undriven)


def transfer_joints(rotations: Float[Array, "N S 3"], source: Skeleton, target: Skeleton) -> JointTransfer:
    """Local rotations of `target` that turn its joints, from its neutral pose, as those of `source` turn from theirs."""
    pairs = match_skeletons(source.names, target.names)
    R, neutral = _matrices(rotations), _matrices(source.neutral)
    base = _matrices(target.neutral)
    out = base.expand(len(rotations), -1, -1, -1).clone()
    covered: set[int] = set(pairs.values())
    folded: set[int] = set()
    for t, s in pairs.items():
        path_t, path_s = _paths(t, s, pairs, source, target)
        folded |= set(path_s[:-1])
        turned, calm = _chain(R, path_s), _chain(neutral[None], path_s)
        aim = turned @ calm.mT @ _chain(base[None], path_t)
        between = _chain(base[None], path_t[:-1])
        out[:, t] = between.mT @ aim
    moved = _largest_turn_deg(R, neutral) > STILL_DEG
    dropped = [source.names[j] for j in np.flatnonzero(moved) if j not in covered and j not in folded]
    return JointTransfer(
        roma.rotmat_to_rotvec(out).numpy(),
        tuple(source.names[s] for s in pairs.values()),
        tuple(source.names[j] for j in sorted(folded - covered) if moved[j]),
        tuple(dropped),
    )


def head_joints(skeleton: Skeleton) -> list[int]:
    """The joints that share a turn of the head: the head and the neck joints above it, from the neck up."""
    head = next((i for i, n in enumerate(skeleton.names) if n.lower() == "head"), None)
    chain = [] if head is None else skeleton.path(head, None)
    return [j for j in chain if j == head or "neck" in skeleton.names[j].lower()]


def turn_head(angles: Float[Array, "N 3"], skeleton: Skeleton, into: Float[Array, "N J 3"]) -> list[str]:
    """Spread head rotations (yaw, pitch, roll) evenly over neck and head, on top of their neutral pose; returns the
    names of the joints that took part, none if the avatar has no head joint."""
    joints = head_joints(skeleton)
    if joints:
        share = roma.rotmat_to_rotvec(face_rotation(angles)).numpy() / len(joints)
        for j in joints:
            into[:, j] = _on_top(share, skeleton.neutral[j])
    return [skeleton.names[j] for j in joints]


def face_rotation(angles: Float[Array, "N 3"]) -> Float[Tensor, "N 3 3"]:
    """Rotation in the avatar's world of ARKit's yaw, pitch and roll (radians), in which the face has x to its left, y up
    and z out of the face: yaw turns to the own left, pitch downwards, roll tilts to the own right. Applied roll first."""
    yaw, pitch, roll = torch.from_numpy(np.ascontiguousarray(angles, dtype=np.float64)).T
    zero = torch.zeros_like(yaw)
    turn = roma.rotvec_to_rotmat(torch.stack([zero, zero, yaw], -1))
    nod = roma.rotvec_to_rotmat(torch.stack([pitch, zero, zero], -1))
    tilt = roma.rotvec_to_rotmat(torch.stack([zero, -roll, zero], -1))
    return turn @ nod @ tilt


def set_joint(rotation: Float[Array, "N 3"], joint: int, skeleton: Skeleton, into: Float[Array, "N J 3"]) -> None:
    """Turn one joint (axis-angle) on top of its neutral pose."""
    into[:, joint] = _on_top(rotation, skeleton.neutral[joint])


def _on_top(rotation: Float[Array, "N 3"], neutral: Float[Array, "3"]) -> Float[Array, "N 3"]:
    return roma.rotmat_to_rotvec(_matrices(rotation) @ _matrices(neutral)).numpy()


def _paths(t: int, s: int, pairs: dict[int, int], source: Skeleton, target: Skeleton) -> tuple[list[int], list[int]]:
    """Joints below the nearest matched ancestor that both skeletons share, down to a matched pair."""
    above = target.parents[t]
    while above >= 0:
        if above in pairs:
            below_s = source.path(s, pairs[above])
            if below_s is not None:
                return target.path(t, above), below_s
        above = target.parents[above]
    return target.path(t, None), source.path(s, None)


def _chain(R: Float[Tensor, "N J 3 3"], path: Int[Array, "P"] | list[int]) -> Float[Tensor, "N 3 3"]:
    out = torch.eye(3, dtype=R.dtype).expand(len(R), 3, 3)
    for j in path:
        out = out @ R[:, j]
    return out


def _matrices(rotvec: Float[Array, "*n 3"]) -> Float[Tensor, "*n 3 3"]:
    return roma.rotvec_to_rotmat(torch.from_numpy(np.ascontiguousarray(rotvec, dtype=np.float64)))


def _largest_turn_deg(R: Float[Tensor, "N J 3 3"], neutral: Float[Tensor, "J 3 3"]) -> Float[Array, "J"]:
    return np.degrees(roma.rotmat_to_rotvec(R @ neutral.mT).norm(dim=-1).amax(0).numpy())


def _split_by_use(names: tuple[str, ...], values: Float[Array, "N S"], index: list[int]) -> tuple[tuple, tuple]:
    used = [i for i in index if np.abs(values[:, i]).max(initial=0.0) > 1e-4]
    return tuple(names[i] for i in used), tuple(names[i] for i in index if i not in used)


def _some(names: tuple[str, ...], count: int = 4) -> str:
    rest = f" ... ({len(names)} in all)" if len(names) > count else ""
    return ", ".join(names[:count]) + rest if names else "nothing"
