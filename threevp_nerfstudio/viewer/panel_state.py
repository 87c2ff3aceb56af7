"""What the avatar shows in the viewer: pose, mode, timeline and limits, shared by all windows. Knows no viewer.

Every change counts up `version`. A picture takes one `Shown` when it starts, so that it is of one piece whatever is
moved meanwhile, and the next picture is of the last move only.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from threevp_nerfstudio.animation.controls import AvatarControls, Limits
from threevp_nerfstudio.animation.pose import AvatarPose, from_json, to_json
from threevp_nerfstudio.errors import PoseError
from threevp_nerfstudio.model.performance import PoseState, blend, light_turn
from threevp_nerfstudio.viewer.channels import gaze_for, presets_for
from threevp_nerfstudio.viewer.joints import WIDEST_DEG, JointAngle, angle_limits, joint_angles, mirrored
from threevp_nerfstudio.viewer.timeline import Timeline

SEEN = 0.02
"""A channel whose trained range is narrower was not seen in training."""
SEEN_DEG = 0.5


@dataclass(frozen=True)
class Shown:
    """What one picture shows."""

    pose: AvatarPose | None
    """None: the tracked performance."""
    kept: AvatarPose | None
    """Pose that is blended in by `blend`, 0 to 1."""
    blend: float
    light_turn_deg: float
    beyond: bool
    """Whether the pose may go beyond what training saw."""
    version: int


class PanelState:
    """Everything that the panel can change, and the rules by which it may.

    Args:
        training_rows: rows of the motion that training saw.
    """

    def __init__(
        self, controls: AvatarControls, timeline: Timeline, training_rows: Sequence[int], seed: int | None = None
    ) -> None:
        self.controls = controls
        self.timeline = timeline
        self._rows = torch.as_tensor(list(training_rows))
        self._rng = np.random.default_rng(seed)
        self._lock = threading.RLock()
        self.neutral = controls.neutral()
        self.limits = dict(controls.limits)
        self.angles: dict[str, JointAngle] = {}
        self._measure_angles()
        self.gaze = gaze_for([name for name in controls.channels if self.seen(name)])
        self.presets = presets_for({n: limit.high for n, limit in self.limits.items()})
        self.following = False
        self.beyond = False
        self.light_turn_deg = 0.0
        self.kept: AvatarPose | None = None
        self.blend = 0.0
        self.version = 0
        self._pose = self.neutral

    def _measure_angles(self) -> None:
        """The joint angles and their limits; none for a capture without a rig."""
        controls, performance = self.controls, self.controls.performance
        self.angle_limits: dict[str, Limits] = {}
        if not controls.joints:
            return
        rows = self._rows.to(performance.joint_rotations.device)
        rotations = torch.rad2deg(performance.joint_rotations[rows]).cpu().numpy()
        for angle in joint_angles(controls.joints):
            self.angles[angle.label] = angle
            self.angle_limits[angle.label] = angle_limits(angle, controls.joints, rotations, self.neutral.joints_deg)

    # ---- what there is -----------------------------------------------------------------------------------------

    def seen(self, name: str) -> bool:
        """Whether training saw a channel or an angle move."""
        if name in self.angle_limits:
            limit = self.angle_limits[name]
            return limit.high - limit.low > SEEN_DEG
        return self.limits[name].high - self.limits[name].low > SEEN

    def slider_range(self, name: str) -> Limits:
        """Where the slider of a channel or an angle ends: as training saw it, or wider beyond that."""
        angular = name in self.angle_limits
        limit = (self.angle_limits if angular else self.limits)[name]
        if not self.beyond:
            return limit
        if angular:
            return Limits(min(limit.low, -WIDEST_DEG), max(limit.high, WIDEST_DEG))
        span = max(limit.high - limit.low, 0.5)
        return Limits(limit.low - span, limit.high + span)

    @property
    def pose(self) -> AvatarPose:
        """Of the sliders: the manual pose, or where the performance stands."""
        return self.controls.at_time(self.timeline.position) if self.following else self._pose

    def value(self, name: str, pose: AvatarPose | None = None) -> float:
        """A channel's coefficient or an angle's degrees in a pose, by default the current one."""
        pose = self.pose if pose is None else pose
        if name in self.angles:
            return self.angles[name].value(pose.joints_deg, self.neutral.joints_deg)
        return pose.expression.get(name, 0.0)

    def gaze_value(self, label: str, pose: AvatarPose | None = None) -> float:
        """-1 to 1, of the trained range; the mean of the channels of that direction."""
        pose = self.pose if pose is None else pose
        values = {1.0: 0.0, -1.0: 0.0}
        for name, sign in self.gaze[label].items():
            values[sign] += pose.expression.get(name, 0.0) / max(self.limits[name].high, 1e-6) / 2
        return min(max(values[1.0] - values[-1.0], -1.0), 1.0)

    # ---- changes -----------------------------------------------------------------------------------------------

    def set_value(self, name: str, value: float) -> None:
        """Move one channel or angle, within its range. A performance that was followed is left from where it stands."""
        with self._lock:
            value = self.slider_range(name).clip(value)
            pose = self._take_over()
            if name in self.angles:
                self._set(self.angles[name].turned(pose, self.neutral.joints_deg, value))
            else:
                self._set(pose.with_expression(**{name: value}))

    def set_gaze(self, label: str, value: float) -> None:
        """Turn both eyes by a share of the trained range, -1 to 1."""
        with self._lock:
            pose = self._take_over()
            change = {n: max(sign * value, 0.0) * self.limits[n].high for n, sign in self.gaze[label].items()}
            self._set(pose.with_expression(**change))

    def set_light(self, degrees: float) -> None:
        with self._lock:
            self.light_turn_deg = degrees
            self.version += 1

    def set_expression(self, preset: str) -> None:
        """A preset in place of the expression; head and light stay."""
        with self._lock:
            self._set(replace(self._take_over(), expression=dict(self.presets[preset])))

    def reset(self) -> None:
        """Neutral, upright, light as in a frontal frame, nothing blended in."""
        with self._lock:
            self.timeline.pause()
            self.following, self.light_turn_deg, self.blend = False, 0.0, 0.0
            self._set(self.neutral)

    def mirror(self) -> None:
        """Exchange left and right."""
        with self._lock:
            self._set(self._allowed(mirrored(self._take_over(), self.controls.channels, self.controls.joints)))

    def random(self) -> None:
        """An expression between two random frames of training; head and light stay."""
        with self._lock:
            performance = self.controls.performance
            table = performance.expression if performance.rigged else performance.conditioning
            rows = self._rng.choice(len(self._rows), 2)
            values = torch.lerp(*table[self._rows[rows]].cpu(), float(self._rng.random()))
            expression = {n: float(v) for n, v in zip(self.controls.channels, values, strict=True)}
            self._set(replace(self._take_over(), expression=expression))

    def set_beyond(self, beyond: bool) -> None:
        """Allow to go beyond what training saw, or return within it."""
        with self._lock:
            self.beyond = beyond
            self._pose = self._allowed(self._pose)
            self.version += 1

    def follow(self, following: bool) -> None:
        """Follow the performance, or go on by hand from where it stands."""
        with self._lock:
            if following:
                self.following = True
            else:
                self._pose = self._allowed(self._take_over())
            self.version += 1

    def seek(self, position: float) -> None:
        with self._lock:
            self.timeline.seek(position)
            self.follow(True)

    def tick(self, seconds: float) -> bool:
        """Let time pass; whether another moment of the performance is to be shown."""
        with self._lock:
            moved = self.timeline.advance(seconds)
            self.version += moved
            return moved

    def keep(self) -> None:
        """Keep what is shown as the pose to blend in."""
        with self._lock:
            self.kept = self.current()
            self.version += 1

    def set_blend(self, weight: float) -> None:
        with self._lock:
            self.blend = weight
            self.version += 1

    # ---- files -------------------------------------------------------------------------------------------------

    def current(self) -> AvatarPose:
        """What is shown, as a pose that names everything."""
        return self.controls.pose(self.state(self.snapshot(), self.timeline.position))

    def to_text(self) -> str:
        """The content of a pose file."""
        return json.dumps(to_json(self.current()), indent=1) + "\n"

    def read(self, text: str, source: str) -> AvatarPose:
        """A pose file's content, checked against this avatar and the ranges in force.

        Raises:
            PoseError: everything that is wrong with it, by name.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise PoseError(f"{source}: not JSON ({error}).") from error
        pose = from_json(content, source)
        self.controls.check(pose, source)
        if not self.beyond and (outside := self._outside(pose)):
            raise PoseError(
                f"{source}: beyond what training saw: {', '.join(outside)}. Allow it in the panel, or change the file."
            )
        return pose

    def load(self, text: str, source: str) -> None:
        """Show a pose file's content. Raises `PoseError` and changes nothing where `read` does."""
        self.show(self.read(text, source))

    def show(self, pose: AvatarPose) -> None:
        """Show a pose, within the ranges in force; joints that it does not name are as in the neutral pose."""
        with self._lock:
            self.timeline.pause()
            self.following, self.light_turn_deg, self.blend = False, pose.light_turn_deg, 0.0
            self._set(self._allowed(replace(pose, joints_deg={**self.neutral.joints_deg, **pose.joints_deg})))

    def load_kept(self, text: str, source: str) -> None:
        """Keep a pose file's content as the pose to blend in. Raises `PoseError` as `read` does."""
        pose = self.read(text, source)
        with self._lock:
            self.kept = pose
            self.version += 1

    # ---- what is rendered --------------------------------------------------------------------------------------

    def snapshot(self) -> Shown:
        with self._lock:
            pose = None if self.following else self._pose
            return Shown(pose, self.kept, self.blend, self.light_turn_deg, self.beyond, self.version)

    def state(self, shown: Shown, position: float) -> PoseState:
        """What the model renders; `position` is that of the performance, 0 to 1."""
        performance = self.controls.performance
        state = performance.at_time(position) if shown.pose is None else self.controls.state(shown.pose)
        if shown.kept is not None and shown.blend > 0:
            state = blend(state, self.controls.state(shown.kept), shown.blend)
        room = light_turn(np.radians(shown.light_turn_deg), state.room.device)[None]
        return replace(state, room=room, beyond_training=shown.beyond and shown.pose is not None)

    def _take_over(self) -> AvatarPose:
        """The pose to change by hand; ends following."""
        pose = self.pose
        self.timeline.pause()
        self.following = False
        return pose

    def _set(self, pose: AvatarPose) -> None:
        self._pose = pose
        self.version += 1

    def _outside(self, pose: AvatarPose) -> list[str]:
        """Channels and angles beyond what training saw, with their values and ranges."""
        found = [(n, pose.expression[n], self.limits[n], "") for n in self.controls.outside(pose)]
        for label, angle in self.angles.items():
            value, limit = angle.value(pose.joints_deg, self.neutral.joints_deg), self.angle_limits[label]
            if not limit.low - 0.01 <= value <= limit.high + 0.01:
                found.append((label, value, limit, "°"))
        return [f"{n} = {v:.3g}{u} ({r.low:.3g}{u} to {r.high:.3g}{u})" for n, v, r, u in found]

    def _allowed(self, pose: AvatarPose) -> AvatarPose:
        """The nearest pose within the ranges in force."""
        if self.beyond:
            return pose
        pose = self.controls.clip(pose)
        for label, angle in self.angles.items():
            value = angle.value(pose.joints_deg, self.neutral.joints_deg)
            pose = angle.turned(pose, self.neutral.joints_deg, self.angle_limits[label].clip(value))
        return pose
