"""Keyframes: a JSON file that names poses at times.

    {"threevp_keyframes": 1,
     "easing": "smooth",
     "keyframes": [{"time": 0.0, "pose": "calm.json"},
                   {"time": 1.5, "pose": "smile.json", "easing": "hold"},
                   {"time": 2.5, "pose": {"threevp_pose": 1, "expression": {"jawOpen": 0.4}}}]}

`pose` is a pose file as the viewer saves it, relative to the folder of the keyframes and within it; "neutral"; or the
content of a pose file. The `easing` of a keyframe leads from it to the next one; the file's is for those without.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from threevp_nerfstudio.animation.controls import AvatarControls
from threevp_nerfstudio.animation.drives import EASINGS, Drive, check_times, stack
from threevp_nerfstudio.animation.pose import AvatarPose, from_json, load_pose
from threevp_nerfstudio.errors import PoseError

KEYFRAMES_VERSION = 1
DEFAULT_EASING = "smooth"


@dataclass(frozen=True)
class Keyframe:
    """A pose at a time (seconds), and how it goes over into the next."""

    time: float
    pose: AvatarPose
    easing: str = DEFAULT_EASING


def read_keyframes(content: Any, path: Path) -> list[Keyframe]:
    """Keyframes from the content of their file.

    Raises:
        PoseError: what is wrong, by keyframe.
    """
    if not isinstance(content, dict) or content.get("threevp_keyframes") != KEYFRAMES_VERSION:
        raise PoseError(f'{path}: not a keyframe file: an object with "threevp_keyframes": {KEYFRAMES_VERSION} is expected.')
    _refuse_unknown(content, {"threevp_keyframes", "easing", "keyframes"}, f"{path}")
    easing = _easing(content.get("easing", DEFAULT_EASING), f"{path}")
    entries = content.get("keyframes")
    if not isinstance(entries, list) or not entries:
        raise PoseError(f"{path}: 'keyframes' must be a list with at least one keyframe.")
    keyframes = [_keyframe(entry, easing, path, f"{path}: keyframes[{i}]") for i, entry in enumerate(entries)]
    check_times(np.array([k.time for k in keyframes]), f"{path}")
    return keyframes


def keyframe_drive(keyframes: list[Keyframe], controls: AvatarControls, source: str) -> Drive:
    """Blends of the poses. What a pose does not name is neutral in it.

    Raises:
        PoseError: names that the avatar does not have.
    """
    for i, keyframe in enumerate(keyframes):
        controls.check(keyframe.pose, f"{source}: keyframes[{i}]")
    times = np.array([k.time for k in keyframes], dtype=np.float64)
    states = stack([controls.state(k.pose) for k in keyframes])
    return Drive(times - times[0], states, easings=tuple(k.easing for k in keyframes[:-1]))


def pose_files(content: Any, path: Path) -> list[Path]:
    """The pose files that a keyframe file names (for fingerprints); the file has been read before."""
    names = [entry["pose"] for entry in content["keyframes"]]
    return [path.parent / name for name in names if isinstance(name, str) and name != "neutral"]


def _keyframe(entry: Any, easing: str, path: Path, where: str) -> Keyframe:
    if not isinstance(entry, dict) or "time" not in entry or "pose" not in entry:
        raise PoseError(f"{where}: an object with 'time' and 'pose' is expected.")
    _refuse_unknown(entry, {"time", "pose", "easing"}, where)
    time = entry["time"]
    if isinstance(time, bool) or not isinstance(time, int | float) or not math.isfinite(time):
        raise PoseError(f"{where}: time is {time!r}; a finite number of seconds is expected.")
    return Keyframe(float(time), _pose(entry["pose"], path, where), _easing(entry.get("easing", easing), where))


def _pose(value: Any, path: Path, where: str) -> AvatarPose:
    if value == "neutral":
        return AvatarPose()
    if isinstance(value, dict):
        return from_json(value, f"{where}: pose")
    if not isinstance(value, str):
        raise PoseError(f"{where}: pose is {value!r}; a pose file, \"neutral\" or the content of a pose file is expected.")
    root = path.parent.resolve()
    target = root / value
    if Path(value).is_absolute() or not target.resolve().is_relative_to(root):
        raise PoseError(f"{where}: pose '{value}' leads out of {root}; put the pose files beside the keyframes.")
    return load_pose(target)


def _easing(value: Any, where: str) -> str:
    if not isinstance(value, str) or value not in EASINGS:
        raise PoseError(f"{where}: easing is {value!r}; one of {', '.join(EASINGS)} is expected.")
    return value


def _refuse_unknown(content: dict, known: set[str], where: str) -> None:
    if unknown := sorted(set(content) - known):
        raise PoseError(f"{where}: unknown keys {unknown}; {sorted(known)} are known.")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `PoseError`."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PoseError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise PoseError(f"{path}: not JSON ({error}).") from error
