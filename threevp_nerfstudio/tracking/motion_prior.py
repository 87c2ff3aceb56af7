"""What is expected of pose and expression before a picture is looked at."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from threevp_nerfstudio.tracking.parts import Parts
from threevp_nerfstudio.tracking.posing import Freedoms, Pose, PosedRig, head_pivot, pose_difference, step_pose
from threevp_nerfstudio.tracking.seat import Seat
from threevp_nerfstudio.tracking.shape import SWAY_SPREAD
from threevp_nerfstudio.tracking.solver import Prior

RATE = 30.0
"""Pictures a second for which the spreads below hold; they grow with the square root of the time between pictures."""
ANYWHERE = np.array([1.5] * 3 + [0.5] * 3)
"""Radians and metres: the rigid pose is not expected anywhere."""
MOVES = np.array([0.03] * 3 + [0.006] * 3)
"""How far the rigid pose strays from constant velocity in one picture."""
USUAL_JOINT = {"spine": 0.10, "neck": 0.20, "head": 0.20, "jaw": 0.15, "eyes": 0.2}
"""Radians that a joint usually turns against the stance of the turn."""
JOINT_MOVES = 0.04
ARKIT_SPREAD, COMPONENT_SPREAD = 0.35, 1.0
"""Usual size of a channel: coefficients from 0 to 1, or components of unit variance."""
CHANNEL_MOVES = 0.6
"""Change of a channel in one picture, of its usual size."""
KEEPS_SPEED = 0.7
"""Share of the velocity that lasts from picture to picture."""


@dataclass(frozen=True)
class Usual:
    """What a person usually does, and the limits of the channels."""

    freedoms: Freedoms
    stance: Float[Array, "J 3"]
    joint_spread: Float[Array, "q"]
    channel_spread: float
    limits: tuple[float, float]

    @property
    def spread(self) -> Float[Array, "D"]:
        """Spread of each parameter before looking, with nothing known of other pictures."""
        channels = np.full(len(self.freedoms.channels), self.channel_spread)
        return np.concatenate([ANYWHERE, self.joint_spread, channels])


def usual(parts: Parts, names: tuple[str, ...], channels: tuple[int, ...], stance: Float[Array, "J 3"], face: bool) -> Usual:
    """For the performance (`face`), or for the turn, in which neither spine nor face move."""
    eyes = () if any("eyeLook" in n for n in names) else parts.eye_joints
    groups = [("spine", parts.spine), ("neck", parts.neck), ("head", parts.skull)]
    groups += [("jaw", parts.jaw), ("eyes", eyes)] if face else []
    joints = tuple(j for _, group in groups for j in group)
    spread = np.concatenate([np.full(3 * len(g), USUAL_JOINT[n] if face else SWAY_SPREAD) for n, g in groups])
    arkit = any(n.startswith(("jawOpen", "mouth", "eyeBlink")) for n in names)
    limits = (0.0, 1.0) if arkit else (-3.0, 3.0)
    free = Freedoms(joints, channels if face else ())
    return Usual(free, stance, spread, ARKIT_SPREAD if arkit else COMPONENT_SPREAD, limits)


def neutral(who: Usual, T_camera_root: Float[Array, "4 4"], channels: int) -> Pose:
    """The stance of the turn, at rest."""
    return Pose(T_camera_root, who.stance.copy(), np.zeros(channels))


def loose_prior(who: Usual, pose: Pose) -> Prior:
    """Nothing is known from other pictures."""
    return Prior(Pose(pose.T_camera_root, who.stance, np.zeros_like(pose.expression)), who.spread)


def predicted(rig: PosedRig, parts: Parts, who: Usual, last: Pose, before: Pose | None, lapse: float, lapse_before: float) -> Pose:
    """The pose at constant, slowly fading velocity. Lapses in seconds."""
    if before is None or lapse_before <= 0:
        return last
    rigid = Freedoms((), ())
    pivot = head_pivot(rig, last, parts.skull[0])
    velocity = pose_difference(last, before, rigid, head_pivot(rig, before, parts.skull[0]))
    here = pivot - head_pivot(rig, before, parts.skull[0])
    velocity[3:6] = here  # the head's own displacement; `pose_difference` refers to the pivot before
    step = KEEPS_SPEED * velocity * np.clip(lapse / lapse_before, 0, 3)
    step[:3] = np.clip(step[:3], -0.3, 0.3)
    step[3:] = np.clip(step[3:], -0.05, 0.05)
    return step_pose(last, step, rigid, pivot)


def following(who: Usual, guess: Pose, last: Pose, lapse: float) -> Prior:
    """Near the predicted pose, near the last rotations and channels, and near the usual ones: the product of all three.

    Unseen, joints and channels drift back to the stance and to neutral.
    """
    grow = np.sqrt(np.clip(lapse * RATE, 0.25, 9.0))
    joints, channels = list(who.freedoms.joints), list(who.freedoms.channels)
    per_joint = who.joint_spread.reshape(-1, 3)
    keep = 1 / (JOINT_MOVES * grow) ** 2
    pull = 1 / per_joint**2
    rotations = last.rotations.copy()
    rotations[joints] = (keep * last.rotations[joints] + pull * who.stance[joints]) / (keep + pull)
    expression = np.zeros_like(last.expression)
    moves = CHANNEL_MOVES * who.channel_spread * grow
    keep_channel, pull_channel = 1 / moves**2, 1 / who.channel_spread**2
    expression[channels] = keep_channel * last.expression[channels] / (keep_channel + pull_channel)
    spread = np.concatenate(
        [
            MOVES * grow,
            1 / np.sqrt(keep + pull).reshape(-1),
            np.full(len(channels), 1 / np.sqrt(keep_channel + pull_channel)),
        ]
    )
    return Prior(replace(guess, rotations=rotations, expression=expression), spread)


def between(rig: PosedRig, parts: Parts, who: Usual, before: Pose, after: Pose, share: float, lapse: float) -> Prior:
    """Near the middle of both neighbours, at `share` of the way, and near the usual."""
    free = who.freedoms
    pivot = head_pivot(rig, before, parts.skull[0])
    step = share * pose_difference(after, before, free, pivot)
    middle = step_pose(before, step, free, pivot)
    prior = following(who, middle, middle, lapse)
    spread = prior.spread.copy()
    spread[:6] = 0.6 * spread[:6]
    return Prior(prior.mean, spread)


def seated(prior: Prior, rig: PosedRig, parts: Parts, seat: Seat) -> Prior:
    """The same on the turn, where the head keeps to its circle about the chair's axis."""
    T = prior.mean.T_camera_root.copy()
    T[:3, 3] += seat.head(T[:3, :3]) - head_pivot(rig, prior.mean, parts.skull[0])
    spread = prior.spread.copy()
    spread[3:6] = seat.sway
    return Prior(replace(prior.mean, T_camera_root=T), spread)
