"""A pose of an avatar by the names of its channels and joints, and the small JSON file that holds one.

It is what the viewer's sliders show, what a keyframe of a film names, and what another person's track is turned into.
Nothing in it depends on a model: `animation.controls` turns it into what a model renders.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from threevp_nerfstudio.errors import PoseError

POSE_VERSION = 1


@dataclass(frozen=True)
class AvatarPose:
    """Expression, joints and light. What is not named is as in the avatar's neutral pose."""

    expression: Mapping[str, float] = field(default_factory=dict)
    """Coefficient of each named expression channel; others are 0."""
    joints_deg: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """Local rotation of each named joint about its rest position: axis-angle in world-aligned axes, degrees."""
    root_translation: tuple[float, float, float] | None = None
    """Of the root joint after its rotation, metres; None: the neutral pose's."""
    light_turn_deg: float = 0.0
    """Turn of the room's light about the vertical axis; 0 is as in a frontal picture."""

    def with_expression(self, **channels: float) -> AvatarPose:
        """The same with some channels set."""
        return replace(self, expression={**self.expression, **channels})


def mix(a: AvatarPose, b: AvatarPose, weight: float) -> AvatarPose:
    """From `a` (weight 0) to `b` (1), linearly in all channels. Joints that only one of them names are left out unless
    the weight is at their end, as the other one does not say where they are; name all joints to blend smoothly."""
    channels = dict.fromkeys([*a.expression, *b.expression])
    expression = {n: (1 - weight) * a.expression.get(n, 0.0) + weight * b.expression.get(n, 0.0) for n in channels}
    joints = {
        name: tuple((1 - weight) * x + weight * y for x, y in zip(a.joints_deg[name], b.joints_deg[name], strict=True))
        for name in a.joints_deg
        if name in b.joints_deg
    }
    end = a if weight <= 0 else b if weight >= 1 else None
    if end is not None:
        joints = dict(end.joints_deg)
    translation = None if end is None else end.root_translation
    if a.root_translation is not None and b.root_translation is not None:
        pairs = zip(a.root_translation, b.root_translation, strict=True)
        translation = tuple((1 - weight) * x + weight * y for x, y in pairs)
    light = (1 - weight) * a.light_turn_deg + weight * b.light_turn_deg
    return AvatarPose(expression, joints, translation, light)


def to_json(pose: AvatarPose) -> dict[str, Any]:
    """What a pose file holds."""
    content: dict[str, Any] = {
        "threevp_pose": POSE_VERSION,
        "expression": {name: float(value) for name, value in pose.expression.items()},
        "joints_deg": {name: [float(v) for v in value] for name, value in pose.joints_deg.items()},
        "light_turn_deg": float(pose.light_turn_deg),
    }
    if pose.root_translation is not None:
        content["root_translation"] = [float(v) for v in pose.root_translation]
    return content


def from_json(content: Any, source: str) -> AvatarPose:
    """A pose from the content of a pose file; `source` names it in messages.

    Raises:
        PoseError: what is wrong, by name.
    """
    if not isinstance(content, dict) or "threevp_pose" not in content:
        raise PoseError(f'{source}: not a pose file: an object with "threevp_pose": {POSE_VERSION} is expected.')
    if content["threevp_pose"] != POSE_VERSION:
        raise PoseError(f"{source}: pose version {content['threevp_pose']!r}; this release reads {POSE_VERSION}.")
    known = {"threevp_pose", "expression", "joints_deg", "light_turn_deg", "root_translation"}
    if unknown := sorted(set(content) - known):
        raise PoseError(f"{source}: unknown keys {unknown}; a pose has {sorted(known)}.")
    expression = _mapping(content, "expression", source)
    joints = _mapping(content, "joints_deg", source)
    translation = content.get("root_translation")
    return AvatarPose(
        expression={n: _number(v, f"{source}: expression {n!r}") for n, v in expression.items()},
        joints_deg={n: _triple(v, f"{source}: joints_deg {n!r}") for n, v in joints.items()},
        root_translation=None if translation is None else _triple(translation, f"{source}: root_translation"),
        light_turn_deg=_number(content.get("light_turn_deg", 0.0), f"{source}: light_turn_deg"),
    )


def load_pose(path: Path | str) -> AvatarPose:
    """Read a pose file.

    Raises:
        PoseError: it cannot be read, or is not a pose.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PoseError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise PoseError(f"{path}: not JSON ({error}).") from error
    return from_json(content, str(path))


def save_pose(pose: AvatarPose, path: Path | str) -> None:
    """Write a pose file, atomically."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(to_json(pose), indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _mapping(content: dict, key: str, source: str) -> dict:
    value = content.get(key, {})
    if not isinstance(value, dict):
        raise PoseError(f"{source}: {key} is a {type(value).__name__}; an object of names and values is expected.")
    return value


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PoseError(f"{what} is {value!r}; a finite number is expected.")
    return float(value)


def _triple(value: Any, what: str) -> tuple[float, float, float]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise PoseError(f"{what} is {value!r}; three numbers are expected.")
    return tuple(_number(v, what) for v in value)
