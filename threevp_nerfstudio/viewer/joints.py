"""Head, neck, jaw and gaze as a few angles in degrees, over the joints of any skeleton. Pure functions of poses.

An angle is the sum over its joints of one component of their axis-angle rotation, relative to the neutral pose: small
rotations about one axis add up. World-aligned axes: x to the subject's left, z up, the subject faces -y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from threevp_nerfstudio.animation.controls import Limits
from threevp_nerfstudio.animation.pose import AvatarPose
from threevp_nerfstudio.viewer.channels import mirror_name

X, Y, Z = 0, 1, 2
WIDEST_DEG = 45.0
"""Where a slider ends that goes beyond training."""
Joints = Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class JointAngle:
    """One slider: a rotation of some joints together about an axis."""

    label: str
    joints: tuple[str, ...]
    axis: int
    shared: bool = True
    """The joints form a chain and each takes its share; otherwise each turns by the whole angle (a pair of eyes)."""

    def value(self, joints: Joints, neutral: Joints) -> float:
        """Degrees; joints that are not named are as in the neutral pose."""
        parts = [joints.get(n, neutral[n])[self.axis] - neutral[n][self.axis] for n in self.joints]
        return sum(parts) if self.shared else sum(parts) / len(parts)

    def turned(self, pose: AvatarPose, neutral: Joints, degrees: float) -> AvatarPose:
        """The pose with this angle at `degrees`; what the joints do beside it stays."""
        change = degrees - self.value(pose.joints_deg, neutral)
        if self.shared:
            change /= len(self.joints)
        joints = dict(pose.joints_deg)
        for name in self.joints:
            vector = list(joints.get(name, neutral[name]))
            vector[self.axis] += change
            joints[name] = (vector[0], vector[1], vector[2])
        return replace(pose, joints_deg=joints)


def joint_angles(names: Sequence[str]) -> list[JointAngle]:
    """Angles of the skeleton's head, neck, jaw and eyes, as far as its joints have such names."""
    lower = {name: name.lower() for name in names}
    head = tuple(n for n in names if lower[n] == "head") or tuple(n for n in names if "head" in lower[n])[:1]
    neck = tuple(n for n in names if "neck" in lower[n])
    jaw = tuple(n for n in names if "jaw" in lower[n])[:1]
    eyes = tuple(n for n in names if "eye" in lower[n] and not any(w in lower[n] for w in ("brow", "lid")))
    angles = []
    for part, joints in (("head", head), ("neck", neck)):
        if joints:
            turns = (("turn", Z), ("nod", X), ("tilt", Y))
            angles += [JointAngle(f"{part} {word} (°)", joints, axis) for word, axis in turns]
    if jaw:
        angles += [JointAngle("jaw open (°)", jaw, X), JointAngle("jaw sideways (°)", jaw, Z)]
    if eyes:
        angles += [JointAngle("gaze left / right (°)", eyes, Z, False), JointAngle("gaze down (°)", eyes, X, False)]
    return angles


def angle_limits(
    angle: JointAngle, names: Sequence[str], rotations_deg: Float[Array, "N J 3"], neutral: Joints
) -> Limits:
    """Range of an angle over the poses that training saw, neutral included."""
    rows = rotations_deg[:, [list(names).index(n) for n in angle.joints], angle.axis]
    values = rows - np.array([neutral[n][angle.axis] for n in angle.joints])
    values = values.sum(1) if angle.shared else values.mean(1)
    return Limits(min(float(values.min(initial=0.0)), 0.0), max(float(values.max(initial=0.0)), 0.0))


def mirrored(pose: AvatarPose, channels: Sequence[str], joints: Sequence[str]) -> AvatarPose:
    """Left and right exchanged: channels, joints and the shift; the light stays."""
    expression = {mirror_name(n, channels): v for n, v in pose.expression.items()}
    turned = {mirror_name(n, joints): (v[0], -v[1], -v[2]) for n, v in pose.joints_deg.items()}
    shift = pose.root_translation
    return replace(
        pose,
        expression=expression,
        joints_deg=turned,
        root_translation=None if shift is None else (-shift[0], shift[1], shift[2]),
    )
