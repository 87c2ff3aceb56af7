"""What `--performance` names: files are read and checked here before a model is loaded, then turned into drives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from threevp_nerfstudio.animation.controls import AvatarControls
from threevp_nerfstudio.animation.drives import Drive, beyond, clipped, own_drive, pose_drive, smoothed
from threevp_nerfstudio.animation.keyframes import keyframe_drive, pose_files, read_json, read_keyframes
from threevp_nerfstudio.animation.livelink import read_face_csv
from threevp_nerfstudio.animation.pose import AvatarPose, from_json
from threevp_nerfstudio.animation.reenact import Track, read_track, take_drive, track_drive
from threevp_nerfstudio.body.expressions import load_conversion
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.errors import PoseError

NAMED = 8
"""Channels that are named where many leave their range; those that leave it farthest."""


@dataclass
class DriveSettings:
    """How a performance is read and carried over to the avatar."""

    smooth: float = 0.0
    """Standard deviation of a Gaussian average over time, seconds; 0: as recorded. 0.05 takes the jitter out of a
    tracker."""
    range: Literal["clip", "beyond"] = "clip"
    """Expression channels stay within the range that training saw, or go beyond it where the drive does. The avatar's
    own performance is never clipped."""
    conversion: Path | None = None
    """conversion.npz of `threevp convert-expressions`, for a drive with the channels of another body model."""
    timecode_fps: float | None = None
    """CSV: frames per second that its timecodes count in; default: read from the file, else 60."""
    max_gap: float = 0.0
    """CSV: bridge gaps and rows in which no face was seen up to this many seconds; 0: refuse them."""
    angle_unit: Literal["radians", "degrees"] = "radians"
    """CSV: of the rotations of head and eyes."""
    head: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """CSV: factors of the head's yaw, pitch and roll. -1 turns a sign round (a phone held sideways), 0 0 0 keeps the head
    still."""
    head_zero: Literal["camera", "median"] = "camera"
    """CSV: what counts as straight ahead: the phone, or the take's median pose."""

    def check(self) -> None:
        """Raises `PoseError` for values out of reason."""
        if not 0.0 <= self.smooth <= 10.0:
            raise PoseError(f"--drive.smooth {self.smooth}: seconds from 0 to 10 are expected.")
        if not 0.0 <= self.max_gap < 3600.0:
            raise PoseError(f"--drive.max-gap {self.max_gap}: seconds of at least 0 are expected.")
        if self.timecode_fps is not None and not 1.0 <= self.timecode_fps <= 1000.0:
            raise PoseError(f"--drive.timecode-fps {self.timecode_fps}: frames per second from 1 to 1000 are expected.")


@dataclass(frozen=True)
class Source:
    """A performance that has been read, and waits for an avatar."""

    name: str
    kind: Literal["own", "track", "keyframes", "csv", "pose"]
    make: Callable[[AvatarControls, Rig], Drive] | None = None
    """None for the avatar's own performance."""
    files: tuple[Path, ...] = ()
    """What it was read from."""
    track: Track | None = None


def read_source(choice: str, settings: DriveSettings) -> Source:
    """Read what `--performance` names: "own", "neutral", or a file by its kind.

    Raises:
        PoseError, CaptureError, TemplateError: the file is missing, of no known kind, or wrong.
    """
    settings.check()
    if choice == "own":
        return Source("own", "own")
    if choice == "neutral":
        return Source("neutral", "pose", lambda controls, rig: pose_drive(AvatarPose(), controls))
    path = Path(choice).expanduser()
    if not path.exists():
        raise PoseError(
            f"--performance {choice}: no such file. Give own, neutral, a motion.npz (or the capture's folder), a CSV of a "
            "face-capture app, keyframes or a pose (JSON)."
        )
    suffix = path.suffix.lower()
    if path.is_dir() or suffix == ".npz":
        return _track_source(path, settings)
    if suffix == ".csv":
        return _csv_source(path, settings)
    if suffix == ".json":
        return _json_source(path)
    raise PoseError(f"--performance {choice}: {suffix or 'a file without ending'} is not read; .npz, .csv or .json are.")


def drive_of(source: Source, controls: AvatarControls, rig: Rig, own: tuple[float, float], settings: DriveSettings) -> Drive:
    """The drive of an avatar. `own`: length in seconds and frames per second of its own performance.

    Raises:
        PoseError: the performance does not fit the avatar.
    """
    if source.make is None:
        drive = own_drive(controls.performance, *own)
    else:
        drive = source.make(controls, rig)
        drive = _in_range(drive, controls, settings.range)
    return smoothed(drive, settings.smooth, controls.performance)


def _in_range(drive: Drive, controls: AvatarControls, choice: str) -> Drive:
    outside = beyond(drive, controls)
    if not outside:
        return drive
    what = "clipped to" if choice == "clip" else "beyond"
    names = ", ".join(outside[:NAMED]) + (f" and {len(outside) - NAMED} more" if len(outside) > NAMED else "")
    note = f"{what} the range that training saw: {names}"
    return replace(clipped(drive, controls) if choice == "clip" else drive, notes=(*drive.notes, note))


def _track_source(path: Path, settings: DriveSettings) -> Source:
    track = read_track(path)
    conversion = _conversion(settings)
    files = [track.path, track.path.with_name("template.npz"), track.path.with_name("transforms.json"), settings.conversion]
    return Source(
        str(path),
        "track",
        lambda controls, rig: track_drive(track, controls, rig, conversion),
        tuple(f for f in files if f is not None and f.is_file()),
        track,
    )


def _csv_source(path: Path, settings: DriveSettings) -> Source:
    take = read_face_csv(path, settings.timecode_fps, settings.max_gap, settings.angle_unit)
    if settings.head_zero == "median" and "head" in take.rotations:
        head = take.rotations["head"]
        take = replace(take, rotations={**take.rotations, "head": head - np.median(head, axis=0)})
    conversion, factors = _conversion(settings), np.array(settings.head)
    files = (path,) if settings.conversion is None else (path, settings.conversion)
    return Source(
        str(path), "csv", lambda controls, rig: take_drive(take, controls, rig, conversion, factors, str(path)), files
    )


def _json_source(path: Path) -> Source:
    content = read_json(path)
    if isinstance(content, dict) and "threevp_keyframes" in content:
        keyframes = read_keyframes(content, path)
        files = (path, *pose_files(content, path))
        return Source(str(path), "keyframes", lambda controls, rig: keyframe_drive(keyframes, controls, str(path)), files)
    if isinstance(content, dict) and "threevp_pose" in content:
        pose = from_json(content, str(path))
        return Source(str(path), "pose", lambda controls, rig: pose_drive(pose, controls, str(path)), (path,))
    hint = ""
    if isinstance(content, dict) and "camera_path" in content:
        hint = " It is a camera path: give it as --camera."
    raise PoseError(
        f'{path}: neither a pose ("threevp_pose") nor keyframes ("threevp_keyframes").{hint} docs/animation.md has the formats.'
    )


def _conversion(settings: DriveSettings):
    return None if settings.conversion is None else load_conversion(settings.conversion)
