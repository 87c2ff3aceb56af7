"""Cameras over the time of a film: orbits, a fixed front camera, the tracked camera, and the viewer's path files."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from threevp_nerfstudio.capture.frames import Frames, yaw_deg
from threevp_nerfstudio.errors import PoseError
from threevp_nerfstudio.render.orbit import Framing, orbit

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras

ROTATION_TOLERANCE = 1e-3
MAX_SIZE = 8192


@dataclass(frozen=True)
class CameraTrack:
    """N cameras, independent of the size of the picture: lengths of the picture plane are in picture heights."""

    camera_to_world: Float[Array, "N 4 4"]
    focal: Float[Array, "N 2"]
    offset: Float[Array, "N 2"]
    """Of the principal point from the middle of the picture."""
    distortion: Float[Array, "N 6"] | None = None
    """nerfstudio's k1 k2 k3 k4 p1 p2."""
    room: Float[Array, "N 3 3"] | None = None
    """Turn of the light, where the track knows it; else the light follows the camera's yaw or stands still."""

    def __len__(self) -> int:
        return len(self.camera_to_world)

    def yaw(self, framing: Framing) -> Float[Array, "N"]:
        """Azimuth about the subject, radians: 0 in front, positive to its left."""
        return np.radians(yaw_deg(self.camera_to_world, (float(framing.center[0]), float(framing.center[1]))))

    def camera(self, index: int, width: int, height: int) -> Cameras:
        """One of them as nerfstudio's, for a picture of a size."""
        import torch
        from nerfstudio.cameras.cameras import Cameras, CameraType

        def tensor(values: Array) -> torch.Tensor:
            return torch.from_numpy(np.atleast_1d(values[index])).float()[None]

        return Cameras(
            camera_to_worlds=tensor(self.camera_to_world)[:, :3],
            fx=tensor(self.focal[:, 0] * height),
            fy=tensor(self.focal[:, 1] * height),
            cx=tensor(self.offset[:, 0] * height + width / 2),
            cy=tensor(self.offset[:, 1] * height + height / 2),
            width=width,
            height=height,
            distortion_params=None if self.distortion is None else tensor(self.distortion),
            camera_type=CameraType.PERSPECTIVE,
        )


@dataclass(frozen=True)
class PathFile:
    """A camera path as nerfstudio's viewer saves it: one camera per picture."""

    path: Path
    track: CameraTrack
    width: int
    height: int
    fps: float
    times: Float[Array, "N"] | None
    """Time of the performance, 0 to 1, at each picture; None where the path has none."""


def orbit_track(framing: Framing, yaws: Float[Array, "N"], elevation: float, distance: float, zoom: float) -> CameraTrack:
    """Cameras round the subject at `yaws`; angles in radians, `distance` in metres."""
    poses = orbit(framing.center, distance, elevation, yaws)
    focal = np.full((len(yaws), 2), zoom / (2.0 * math.tan(framing.fov_y / 2.0)))
    return CameraTrack(poses, focal, np.zeros((len(yaws), 2)))


def tracked_track(frames: Frames, times: Float[Array, "N"]) -> CameraTrack:
    """The capture's own camera at times of its performance (seconds from its start), blended between its frames.

    The light turns as it did: the subject turns on the chair before the camera.
    """
    dynamic = frames.sequence == "dynamic"
    index = np.flatnonzero(dynamic) if dynamic.any() else np.arange(len(frames))
    own, first = np.unique(frames.times[index], return_index=True)
    index, own = index[first], own - own[0]
    position = np.interp(times, own, np.arange(len(own)))
    height = frames.size[index, 1:].astype(np.float64)
    distortion = np.zeros((len(frames.times), 6))
    distortion[:, [0, 1, 4, 5]] = frames.distortion
    track = CameraTrack(
        frames.camera_to_world[index],
        frames.focal[index] / height,
        (frames.principal_point[index] - frames.size[index] / 2.0) / height,
        distortion[index] if np.any(distortion) else None,
        frames.room_to_world[index, :3, :3],
    )
    return blended(track, position)


def path_track(file: PathFile, count: int) -> CameraTrack:
    """The path over `count` pictures: its own cameras where it has as many, else blended between them."""
    own = len(file.track)
    if count == own:
        return file.track
    return blended(file.track, _stretched(own, count))


def path_times(file: PathFile, count: int) -> Float[Array, "N"]:
    """The path's times of the performance (0 to 1) over `count` pictures."""
    assert file.times is not None
    return np.interp(_stretched(len(file.times), count), np.arange(len(file.times)), file.times).clip(0.0, 1.0)


def blended(track: CameraTrack, position: Float[Array, "M"]) -> CameraTrack:
    """Cameras between those of a track, at fractional indices: turned on the shortest arc, the rest linearly."""
    lower = np.floor(position).astype(np.int64).clip(0, len(track) - 1)
    upper = (lower + 1).clip(0, len(track) - 1)
    weight = position - lower
    poses = _lerp(track.camera_to_world, lower, upper, weight)
    poses[:, :3, :3] = _slerp(track.camera_to_world[:, :3, :3], lower, upper, weight)
    return CameraTrack(
        poses,
        _lerp(track.focal, lower, upper, weight),
        _lerp(track.offset, lower, upper, weight),
        None if track.distortion is None else _lerp(track.distortion, lower, upper, weight),
        None if track.room is None else _slerp(track.room, lower, upper, weight),
    )


def read_path(path: Path) -> PathFile:
    """Read a camera path that the viewer's render tab saved.

    Raises:
        PoseError: what is wrong; a JSON file of another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PoseError(f"--camera {path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise PoseError(f"--camera {path}: not JSON ({error}).") from error
    entries = content.get("camera_path") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise PoseError(
            f"--camera {path}: not a camera path, which has a list 'camera_path' of cameras. The viewer's render tab saves "
            "one with 'Generate Command'; a path with keyframes only has to be generated there first."
        )
    kind = content.get("camera_type", "perspective")
    if kind != "perspective":
        raise PoseError(f"--camera {path}: camera_type {kind!r}; perspective paths are filmed here, use ns-render for others.")
    width, height = (_whole(content, key, path) for key in ("render_width", "render_height"))
    if content.get("fps") is None and content.get("seconds"):  # paths of other programs, e.g. the Blender add-on
        content = {**content, "fps": len(entries) / _number(content["seconds"], f"--camera {path}: seconds")}
    fps = _number(content.get("fps"), f"--camera {path}: fps")
    if not 0.1 <= fps <= 1000:
        raise PoseError(f"--camera {path}: fps is {fps:g}; 0.1 to 1000 are expected.")
    poses = np.stack([_pose(entry, path, i) for i, entry in enumerate(entries)])
    focal = np.array([_focal(entry, path, i) for i, entry in enumerate(entries)])
    times = [entry.get("render_time") for entry in entries]
    times = None if any(t is None for t in times) else np.array([_number(t, f"--camera {path}: render_time") for t in times])
    track = CameraTrack(poses, np.repeat(focal[:, None], 2, axis=1), np.zeros((len(entries), 2)))
    return PathFile(path, track, width, height, fps, times)


def _pose(entry: Any, path: Path, i: int) -> Float[Array, "4 4"]:
    where = f"--camera {path}: camera_path[{i}]"
    value = entry.get("camera_to_world") if isinstance(entry, dict) else None
    if value is None:
        raise PoseError(f"{where} has no 'camera_to_world'.")
    try:
        matrix = np.array(value, dtype=np.float64).reshape(4, 4)
    except (TypeError, ValueError) as error:
        raise PoseError(f"{where}: camera_to_world is not 16 numbers.") from error
    R = matrix[:3, :3]
    if not np.isfinite(matrix).all():
        raise PoseError(f"{where}: camera_to_world holds NaN or infinity.")
    if np.abs(R @ R.T - np.eye(3)).max() > ROTATION_TOLERANCE or np.linalg.det(R) < 0:
        raise PoseError(f"{where}: camera_to_world is not a rotation and a translation.")
    return matrix


def _focal(entry: dict, path: Path, i: int) -> float:
    where = f"--camera {path}: camera_path[{i}]"
    fov = _number(entry.get("fov"), f"{where}: fov")
    if not 0.1 <= fov <= 175.0:
        raise PoseError(f"{where}: fov is {fov:g} degrees; 0.1 to 175 are expected.")
    return 0.5 / math.tan(math.radians(fov) / 2.0)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PoseError(f"{what} is {value!r}; a finite number is expected.")
    return float(value)


def _whole(content: dict, key: str, path: Path) -> int:
    value = _number(content.get(key), f"--camera {path}: {key}")
    if value != int(value) or not 1 <= value <= MAX_SIZE:
        raise PoseError(f"--camera {path}: {key} is {value:g}; whole pixels up to {MAX_SIZE} are expected.")
    return int(value)


def _stretched(own: int, count: int) -> Float[Array, "M"]:
    return np.linspace(0.0, own - 1.0, count) if count > 1 else np.zeros(1)


def _lerp(values: Array, lower: Int[Array, "M"], upper: Int[Array, "M"], weight: Float[Array, "M"]) -> Array:
    w = weight.reshape(-1, *[1] * (values.ndim - 1))
    return (1.0 - w) * values[lower] + w * values[upper]


def _slerp(
    R: Float[Array, "N 3 3"], lower: Int[Array, "M"], upper: Int[Array, "M"], weight: Float[Array, "M"]
) -> Float[Array, "M 3 3"]:
    from scipy.spatial.transform import Rotation

    start, end = Rotation.from_matrix(R[lower]), Rotation.from_matrix(R[upper])
    turned = (Rotation.from_rotvec(weight[:, None] * (end * start.inv()).as_rotvec()) * start).as_matrix()
    turned[weight == 0.0] = R[lower][weight == 0.0]  # exactly the camera, without rounding
    return turned
