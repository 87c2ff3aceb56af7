"""What can be moved on a trained avatar, by name, and within which limits; poses to and from what the model renders."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import roma
import torch
from torch import Tensor

from threevp_nerfstudio.animation.pose import AvatarPose
from threevp_nerfstudio.errors import PoseError
from threevp_nerfstudio.model.performance import Performance, PoseState, light_turn


@dataclass(frozen=True)
class Limits:
    """Range of a channel as training saw it."""

    low: float
    high: float

    def clip(self, value: float) -> float:
        return min(max(value, self.low), self.high)


class AvatarControls:
    """The channels and joints of one avatar.

    A capture with explicit vertices in place of a rig has its conditioning channels here, and no joints: they drive
    the blendfields, while the mesh stays as in the neutral frame.
    """

    def __init__(self, performance: Performance, rig_joints: tuple[str, ...], low: Tensor, high: Tensor) -> None:
        self.performance = performance
        names = performance.conditioning_names
        self.channels = names[: len(names) - 3] if performance.rigged and performance.jaw is not None else names
        self.joints = rig_joints if performance.rigged else ()
        self.limits = {n: Limits(float(low[i]), float(high[i])) for i, n in enumerate(self.channels)}
        neutral = performance.neutral()
        self._neutral = neutral

    @classmethod
    def of(cls, model: torch.nn.Module) -> AvatarControls:
        """The controls of a `ThreeVPModel` (whose module, and nerfstudio with it, is not needed to read files)."""
        return cls(
            model.performance, model.canonical.rig.joint_names, model.conditioning_low, model.conditioning_high
        )

    def check(self, pose: AvatarPose, source: str = "pose") -> None:
        """Refuse names that this avatar does not have.

        Raises:
            PoseError: with all unknown names, and those there are.
        """
        for kind, names, have in (
            ("expression channels", pose.expression, self.channels),
            ("joints", pose.joints_deg, self.joints),
        ):
            if unknown := [n for n in names if n not in have]:
                raise PoseError(f"{source}: this avatar has no {kind} {unknown}; it has {list(have)}.")

    def outside(self, pose: AvatarPose, slack: float = 1e-4) -> list[str]:
        """Channels beyond the range that training saw."""
        return [
            n
            for n, v in pose.expression.items()
            if n in self.limits and not self.limits[n].low - slack <= v <= self.limits[n].high + slack
        ]

    def clip(self, pose: AvatarPose) -> AvatarPose:
        """Every channel within the range that training saw."""
        return replace(pose, expression={n: self.limits[n].clip(v) for n, v in pose.expression.items()})

    def state(self, pose: AvatarPose) -> PoseState:
        """What the model renders.

        Raises:
            PoseError: a name that the avatar does not have.
        """
        self.check(pose)
        base, device = self._neutral_state(), self.performance.room.device
        values = torch.tensor([[pose.expression.get(n, 0.0) for n in self.channels]], device=device).float()
        room = light_turn(math.radians(pose.light_turn_deg), device)[None]
        if not self.performance.rigged:
            return replace(base, conditioning=values.view(1, -1), room=room)
        joints = base.joint_rotations.clone()
        for name, degrees in pose.joints_deg.items():
            joints[0, self.joints.index(name)] = torch.deg2rad(torch.tensor(degrees, device=device).float())
        translation = base.root_translation
        if pose.root_translation is not None:
            translation = torch.tensor([pose.root_translation], device=device).float()
        state = replace(base, joint_rotations=joints, root_translation=translation, room=room)
        return self.performance.with_expression(state, values)

    def pose(self, state: PoseState) -> AvatarPose:
        """The named pose of one state (of B = 1), all joints and channels that are not zero; inverse of `state`."""
        values = state.expression if self.performance.rigged else state.conditioning
        expression = {n: float(v) for n, v in zip(self.channels, values[0], strict=True) if abs(float(v)) > 1e-7}
        light = math.degrees(float(roma.rotmat_to_rotvec(state.room)[0, 2]))
        if not self.performance.rigged:
            return AvatarPose(expression, light_turn_deg=light)
        degrees = torch.rad2deg(state.joint_rotations[0])
        joints = {n: _floats(degrees[i]) for i, n in enumerate(self.joints)}
        return AvatarPose(expression, joints, _floats(state.root_translation[0]), light)

    def neutral(self) -> AvatarPose:
        """The neutral pose, with every joint named."""
        return self.pose(self._neutral_state())

    def at_time(self, time: float) -> AvatarPose:
        """The tracked performance at a time, 0 to 1."""
        return self.pose(self.performance.at_time(time))

    def _neutral_state(self) -> PoseState:
        if self._neutral.room.device != self.performance.room.device:
            self._neutral = self.performance.neutral()
        return self._neutral


def _floats(values: Iterable) -> tuple[float, float, float]:
    return tuple(float(v) for v in values)
