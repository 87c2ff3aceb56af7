"""The frames of a capture: `transforms.json`, read strictly.

Cameras are OpenGL (x right, y up, looks along -z) and map to the world: metres, +z up, the subject faces -y.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray as Array

from threevp_nerfstudio.body.template import FORMAT_VERSION
from threevp_nerfstudio.errors import CaptureError

SPLITS = ("train", "val", "test")
SEQUENCES = ("static", "dynamic")
CAMERA_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "RADIAL", "SIMPLE_RADIAL")
R_FRONTAL = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
"""Camera-to-world rotation of a camera that stands at -y and looks along +y, upright."""
ROTATION_TOLERANCE = 1e-4
_INTRINSICS = ("fl_x", "fl_y", "cx", "cy", "w", "h")
_DISTORTION = ("k1", "k2", "p1", "p2")
_REFUSED_DISTORTION = ("k3", "k4")


@dataclass(frozen=True)
class Frames:
    """All frames of a capture, of every split, in file order: a struct of arrays."""

    image_paths: tuple[Path, ...]
    mask_paths: tuple[Path | None, ...]
    camera_to_world: Float[Array, "N 4 4"]
    room_to_world: Float[Array, "N 4 4"]
    focal: Float[Array, "N 2"]
    principal_point: Float[Array, "N 2"]
    distortion: Float[Array, "N 4"]
    size: Int[Array, "N 2"]
    times: Float[Array, "N"]
    motion_index: Int[Array, "N"]
    split: Shaped[Array, "N"]
    sequence: Shaped[Array, "N"]

    def __len__(self) -> int:
        return len(self.image_paths)

    def select(self, index: Shaped[Array, "M"]) -> Frames:
        """The frames at `index` (integers or a boolean mask), in that order."""
        rows = np.arange(len(self))[index]
        chosen = {
            name: tuple(value[i] for i in rows) if isinstance(value, tuple) else value[rows]
            for name, value in vars(self).items()
        }
        return Frames(**chosen)


def yaw_deg(camera_to_world: Float[Array, "N 4 4"], centre: tuple[float, float] = (0.0, 0.0)) -> Float[Array, "N"]:
    """Azimuth of each camera about the vertical axis through `centre` (x, y), in degrees within (-180, 180].

    0 is in front of the subject (camera at -y), positive towards +x, the subject's left.
    """
    x = camera_to_world[:, 0, 3] - centre[0]
    y = camera_to_world[:, 1, 3] - centre[1]
    yaw = np.degrees(np.arctan2(x, -y))
    return np.where(yaw <= -180.0, 180.0, yaw)


def default_room(camera_to_world: Float[Array, "4 4"]) -> Float[Array, "4 4"]:
    """Room-to-world where the file has none: the camera stands still in the room. Identity for a frontal camera."""
    room = np.eye(4)
    room[:3, :3] = camera_to_world[:3, :3] @ R_FRONTAL.T
    return room


def read_frames(directory: Path) -> tuple[Frames, float]:
    """Parse `directory/transforms.json` into frames and frames per second.

    Raises `CaptureError` on anything that the format does not allow. Does not touch the pictures.
    """
    path = directory / "transforms.json"
    document = _read_document(directory, path)
    fps = _number(document, "fps", f"{path}")
    if fps <= 0:
        raise CaptureError(f"{path}: fps is {fps:g}; give the video's frames per second, a positive number.")
    model = document.get("camera_model", "OPENCV")
    if model not in CAMERA_MODELS:
        raise CaptureError(
            f"{path}: camera_model {model!r} is not supported; undistort the pictures to one of "
            f"{', '.join(CAMERA_MODELS)}."
        )
    entries = document.get("frames")
    if not isinstance(entries, list) or not entries:
        raise CaptureError(f"{path}: 'frames' must be a list with at least one frame.")
    root = directory.resolve()
    rows = [_read_frame(document, entry, root, f"{path}: frames[{i}]") for i, entry in enumerate(entries)]
    _refuse_duplicates(path, [row["image"] for row in rows])
    frames = Frames(
        image_paths=tuple(row["image"] for row in rows),
        mask_paths=tuple(row["mask"] for row in rows),
        camera_to_world=np.stack([row["camera"] for row in rows]),
        room_to_world=np.stack([row["room"] for row in rows]),
        focal=np.array([row["intrinsics"][:2] for row in rows]),
        principal_point=np.array([row["intrinsics"][2:4] for row in rows]),
        distortion=np.array([row["distortion"] for row in rows]),
        size=np.array([row["intrinsics"][4:] for row in rows], dtype=np.int64),
        times=np.array([row["time"] for row in rows]),
        motion_index=np.array([row["motion_index"] for row in rows], dtype=np.int64),
        split=np.array([row["split"] for row in rows]),
        sequence=np.array([row["sequence"] for row in rows]),
    )
    if not (frames.split == "train").any():
        raise CaptureError(f"{path}: no frame has split 'train'; mark the frames to learn from as 'train'.")
    return frames, fps


def _read_document(directory: Path, path: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise CaptureError(f"{directory} is not a folder; give the folder that holds transforms.json.")
    if not path.is_file():
        raise CaptureError(
            f"{directory} has no transforms.json; give the folder of a tracked portrait capture "
            "(docs/capture_format.md), or make one with `threevp demo`."
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CaptureError(f"{path} is not readable JSON ({error}); write the file again.") from error
    if not isinstance(document, dict):
        raise CaptureError(f"{path} holds a {type(document).__name__} where an object is expected.")
    if "threevp_version" not in document:
        raise CaptureError(
            f"{path} has no 'threevp_version': a nerfstudio capture of a scene, not a tracked portrait. An avatar "
            "also needs template.npz and motion.npz (docs/capture_format.md); for a scene use e.g. `ns-train nerfacto`."
        )
    version = document["threevp_version"]
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise CaptureError(
            f"{path} is version {version!r}, this release reads version {FORMAT_VERSION}; "
            "write the capture again with the matching release, or install the one that reads it."
        )
    return document


def _read_frame(document: dict[str, Any], entry: Any, root: Path, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise CaptureError(f"{where} is a {type(entry).__name__}; each frame is an object.")
    merged = {**{k: document[k] for k in _INTRINSICS + _DISTORTION + _REFUSED_DISTORTION if k in document}, **entry}
    intrinsics = [_number(merged, key, where) for key in _INTRINSICS]
    for key, value in zip(_INTRINSICS, intrinsics, strict=True):
        if key in ("fl_x", "fl_y", "w", "h") and value <= 0:
            raise CaptureError(f"{where}: {key} is {value:g}; it must be positive (pixels).")
        if key in ("w", "h") and value != int(value):
            raise CaptureError(f"{where}: {key} is {value:g}; picture sizes are whole pixels.")
    for key in _REFUSED_DISTORTION:
        if key in merged and _number(merged, key, where) != 0:
            raise CaptureError(f"{where}: {key} is not supported; undistort the pictures, or fit k1, k2, p1, p2 only.")
    camera = _rigid(entry, "transform_matrix", where)
    return {
        "image": _inside(entry, "file_path", root, where),
        "mask": _inside(entry, "mask_path", root, where) if entry.get("mask_path") is not None else None,
        "camera": camera,
        "room": _rigid(entry, "room_matrix", where) if entry.get("room_matrix") is not None else default_room(camera),
        "intrinsics": intrinsics,
        "distortion": [_number(merged, key, where) if key in merged else 0.0 for key in _DISTORTION],
        "time": _number(entry, "time", where),
        "motion_index": _motion_index(entry, where),
        "split": _one_of(entry, "split", SPLITS, where),
        "sequence": _one_of(entry, "sequence", SEQUENCES, where),
    }


def _require(entry: dict[str, Any], key: str, where: str) -> Any:
    if key not in entry:
        raise CaptureError(f"{where} has no '{key}'; the format requires it (docs/capture_format.md).")
    return entry[key]


def _number(entry: dict[str, Any], key: str, where: str) -> float:
    value = _require(entry, key, where)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise CaptureError(f"{where}: {key} is {value!r}; a finite number is expected.")
    return float(value)


def _motion_index(entry: dict[str, Any], where: str) -> int:
    value = _require(entry, "motion_index", where)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CaptureError(f"{where}: motion_index is {value!r}; give a row of motion.npz, counted from 0.")
    return value


def _one_of(entry: dict[str, Any], key: str, choices: tuple[str, ...], where: str) -> str:
    value = _require(entry, key, where)
    if value not in choices:
        raise CaptureError(f"{where}: {key} is {value!r}; one of {', '.join(choices)} is expected.")
    return value


def _rigid(entry: dict[str, Any], key: str, where: str) -> Float[Array, "4 4"]:
    value = _require(entry, key, where)
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (4, 4):
        raise CaptureError(f"{where}: {key} is not a 4x4 matrix of numbers.")
    if not np.isfinite(matrix).all():
        raise CaptureError(f"{where}: {key} holds NaN or infinity; drop the frame, or track it again.")
    R = matrix[:3, :3]
    off = np.abs(R @ R.T - np.eye(3)).max()
    if off > ROTATION_TOLERANCE or np.linalg.det(R) < 0:
        raise CaptureError(
            f"{where}: {key} is not a rigid transform (R R^T is {off:.2g} off the identity, det "
            f"{np.linalg.det(R):.3g}); write a rotation without scale or mirroring, and metres."
        )
    if np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise CaptureError(f"{where}: {key} has the last row {matrix[3].tolist()}; it must be 0 0 0 1.")
    return matrix


def _inside(entry: dict[str, Any], key: str, root: Path, where: str) -> Path:
    """The absolute path of a file named relative to the capture, which must not lead out of it (links followed)."""
    value = _require(entry, key, where)
    if not isinstance(value, str) or not value:
        raise CaptureError(f"{where}: {key} is {value!r}; give a path relative to the capture folder.")
    path = root / value
    if Path(value).is_absolute() or not path.resolve().is_relative_to(root):
        raise CaptureError(
            f"{where}: {key} '{value}' leads out of the capture folder; copy the file into it and name it by a "
            "relative path."
        )
    return path


def _refuse_duplicates(path: Path, images: list[Path]) -> None:
    seen: dict[Path, int] = {}
    for i, image in enumerate(images):
        if image in seen:
            raise CaptureError(
                f"{path}: frames[{seen[image]}] and frames[{i}] name the same picture {image.name}; "
                "each frame has a picture of its own."
            )
        seen[image] = i
