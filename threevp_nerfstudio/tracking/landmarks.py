"""Face landmarks per picture (MediaPipe's face mesh, 478 points) with a score, and what they say of the head's yaw.

The mesh is put onto the backs of heads now and then. The tracker's gate by yaw is the real guard; here a face is believed only
if it comes and goes as faces do: turning in and out of sight, not jumping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.errors import FootageError
from threevp_nerfstudio.tracking.store import read_arrays

COUNT = 478
LEFT_CHEEK, RIGHT_CHEEK, FOREHEAD, CHIN = 454, 234, 10, 152
EYE_OUTER = (33, 263)
UPPER_LIP, LOWER_LIP = 13, 14
MOUTH_CORNERS = (61, 291)
TURNED_AWAY = 40.0
"""Degrees of yaw from which on a face may vanish or appear."""
HALF_AWAY, AWAY_WITHIN, AWAY_BY = 20.0, 0.3, 8.0
"""Hair that hangs beside a face hides it earlier: from `HALF_AWAY` degrees on, if it has turned that way by `AWAY_BY` degrees within
`AWAY_WITHIN` seconds."""
FASTEST = 400.0
"""Degrees of yaw per second that a head can turn."""
Detect = Callable[[UInt8[Array, "h w 3"]], list[Float[Array, "478 3"]]]
"""Faces in a picture, largest first: x and y in pixels, z in the same unit, towards the camera negative."""


@dataclass(frozen=True)
class Landmarks:
    """One row per picture."""

    points: Float[Array, "N 478 2"]
    """Pixels of the stored pictures; NaN where no face was found."""
    score: Float[Array, "N"]
    yaw_deg: Float[Array, "N"]
    """Of the head against the camera, rough; positive when the subject's left side shows; NaN where no face was found."""
    faces: Array
    """How many faces were found in each picture."""

    def found(self) -> Bool[Array, "N"]:
        return self.score > 0


def face_detector(most: int = 2) -> Detect:
    """MediaPipe's face mesh with attention to eyes and lips. Raises `FootageError` where MediaPipe is missing."""
    from threevp_nerfstudio.tracking.mediapipe_home import load

    mesh = load().solutions.face_mesh.FaceMesh(
        static_image_mode=True, max_num_faces=most, refine_landmarks=True, min_detection_confidence=0.4
    )

    def detect(picture: UInt8[Array, "h w 3"]) -> list[Float[Array, "478 3"]]:
        found = mesh.process(np.ascontiguousarray(picture)).multi_face_landmarks or []
        h, w = picture.shape[:2]
        faces = [np.array([(p.x * w, p.y * h, p.z * w) for p in face.landmark]) for face in found]
        return sorted(faces, key=lambda f: -float(np.ptp(f[:, 1])))

    return detect


def head_box(alpha: UInt8[Array, "h w"]) -> tuple[int, int, int, int] | None:
    """Left, top, width, height of a square round the upper part of the matte; None where the matte is empty."""
    rows = np.flatnonzero((alpha > 127).any(1))
    if len(rows) < 4:
        return None
    top, height = int(rows[0]), int(rows[-1] - rows[0] + 1)
    upper = alpha[top : top + max(4, height // 2)] > 127
    columns = np.flatnonzero(upper.any(0))
    middle = float((upper.sum(0) * np.arange(alpha.shape[1])).sum() / upper.sum())
    side = int(min(max(0.75 * height, 0.9 * (columns[-1] - columns[0] + 1)), max(alpha.shape)))
    left = int(np.clip(middle - side / 2, 0, max(0, alpha.shape[1] - side)))
    up = int(np.clip(top - 0.12 * side, 0, max(0, alpha.shape[0] - side)))
    return left, up, min(side, alpha.shape[1] - left), min(side, alpha.shape[0] - up)


def find_in(picture: UInt8[Array, "h w 3"], alpha: UInt8[Array, "h w"], detect: Detect) -> list[Float[Array, "478 3"]]:
    """Faces whose middle lies on the matte's head; the picture is cut to the head and enlarged where that is small."""
    box = head_box(alpha)
    if box is None:
        return []
    x, y, w, h = box
    scale = max(1.0, 256 / max(w, h))
    part = picture[y : y + h, x : x + w]
    if scale > 1:
        part = cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    faces = [face / scale + np.array([x, y, 0.0]) for face in detect(part)]
    return [face for face in faces if covered(face, alpha) > 0.7]


def covered(face: Float[Array, "478 3"], alpha: UInt8[Array, "h w"]) -> float:
    """Share of the landmarks that lie on the matte."""
    x = face[:, 0].round().astype(int).clip(0, alpha.shape[1] - 1)
    y = face[:, 1].round().astype(int).clip(0, alpha.shape[0] - 1)
    return float((alpha[y, x] > 127).mean())


def yaw_of(face: Float[Array, "478 3"]) -> float:
    """Degrees of yaw from the mesh's own depth: positive when the subject's left side shows."""
    across = face[LEFT_CHEEK] - face[RIGHT_CHEEK]
    return -float(np.degrees(np.arctan2(across[2], across[0])))


def assemble(faces: list[list[Float[Array, "478 3"]]], times: Float[Array, "N"]) -> Landmarks:
    """The subject's face in each picture: the one nearest to where it was, else the largest; then the scores."""
    N = len(faces)
    points, yaw = np.full((N, COUNT, 2), np.nan), np.full(N, np.nan)
    last: Float[Array, "2"] | None = None
    for i, found in enumerate(faces):
        if not found:
            continue
        centres = np.array([f[:, :2].mean(0) for f in found])
        k = 0 if last is None else int(np.linalg.norm(centres - last, axis=1).argmin())
        last = centres[k]
        points[i], yaw[i] = found[k][:, :2], yaw_of(found[k])
    count = np.array([len(f) for f in faces])
    return Landmarks(points, believable(points, yaw, times), yaw, count)


def believable(points: Float[Array, "N 478 2"], yaw: Float[Array, "N"], times: Float[Array, "N"]) -> Float[Array, "N"]:
    """Scores 0 to 1. A run of pictures with a face must begin and end turned away, or at the video's ends, or beside a short gap."""
    seen = np.isfinite(yaw)
    score = seen.astype(float)
    runs = split_runs(yaw, times)
    usual = max((b - a for a, b in runs), default=0)
    for a, b in runs:
        entry = a == 0 or abs(yaw[a]) > TURNED_AWAY or _near_gap(runs, a, times, before=True)
        leave = b == len(yaw) or abs(yaw[b - 1]) > TURNED_AWAY or _near_gap(runs, b - 1, times, before=False)
        seconds = times[b - 1] - times[a]
        came = entry or (leave and turning_away(yaw[a:b][::-1], -times[a:b][::-1]))
        went = leave or (entry and turning_away(yaw[a:b], times[a:b]))
        if came and went:
            continue
        score[a:b] *= 0.5 if (seconds > 1.0 or b - a > 0.3 * usual) and (entry or leave) else 0.0
    size = np.linalg.norm(points[:, CHIN] - points[:, FOREHEAD], axis=1)
    odd = np.abs(np.log(size / np.nanmedian(np.where(score > 0, size, np.nan)))) > 0.5 if (score > 0).any() else ~seen
    score[odd & seen] = 0.0
    score *= np.where(seen, 1.0 - 0.5 * (np.abs(np.nan_to_num(yaw)) / 90).clip(0, 1), 0.0)
    return score


def turning_away(yaw: Float[Array, "n"], times: Float[Array, "n"]) -> bool:
    """Whether a face that is seen all along goes out of sight at the end by turning further away. Backwards in time, whether it came so."""
    late = np.flatnonzero(times >= times[-1] - AWAY_WITHIN)
    outward = yaw * np.sign(yaw[-1])
    return bool(len(late) >= 3 and outward[-1] > HALF_AWAY and outward[-1] - outward[late].min() > AWAY_BY)


def split_runs(yaw: Float[Array, "N"], times: Float[Array, "N"]) -> list[tuple[int, int]]:
    """Stretches of pictures with a face in which it turns no faster than heads do: (first, last + 1)."""
    runs: list[tuple[int, int]] = []
    for i, value in enumerate(yaw):
        if not np.isfinite(value):
            continue
        near = bool(runs) and runs[-1][1] == i
        if near and abs(value - yaw[i - 1]) < 12.0 + FASTEST * (times[i] - times[i - 1]):
            runs[-1] = (runs[-1][0], i + 1)
        else:
            runs.append((i, i + 1))
    return runs


def _near_gap(runs: list[tuple[int, int]], i: int, times: Float[Array, "N"], before: bool, longest: float = 0.4) -> bool:
    """Whether another run that lasts is within `longest` seconds of picture `i`: the face was missed for a moment only."""
    own = next(r for r in runs if r[0] <= i < r[1])
    for a, b in runs:
        gap = times[i] - times[b - 1] if before else times[a] - times[i]
        if (a, b) != own and 0 < gap <= longest and b - a >= min(5, own[1] - own[0]):
            return True
    return False


def mouth_opening(points: Float[Array, "N 478 2"]) -> Float[Array, "N"]:
    """Gap between the inner lips over the distance of the outer eye corners; NaN where no face was found."""
    gap = np.linalg.norm(points[:, UPPER_LIP] - points[:, LOWER_LIP], axis=1)
    return gap / np.linalg.norm(points[:, EYE_OUTER[0]] - points[:, EYE_OUTER[1]], axis=1)


def user_landmarks(path: Path, count: int, scale: float, offset: tuple[int, int], rows: Int[Array, "N"]) -> Landmarks:
    """Landmarks from the user's .npz: `landmarks` (N, 478, 2) in pixels of the video, NaN where there is no face, and optionally
    `score` (N,). `scale` and `offset` (left, top of the crop) bring them to the stored pictures; of `count` rows in all,
    `rows` are tracked. Raises `FootageError`.
    """
    arrays = read_arrays(path)
    points = arrays.get("landmarks")
    if points is None or points.ndim != 3 or points.shape[1:] != (COUNT, 2):
        seen = "no array 'landmarks'" if points is None else f"'landmarks' of shape {points.shape}"
        raise FootageError(f"{path} has {seen}; ({count}, {COUNT}, 2) is expected: MediaPipe's face mesh, pixels of the video.")
    if len(points) != count:
        raise FootageError(f"{path} has landmarks for {len(points)} pictures, {count} were read from the video; give one row per picture.")
    score = np.asarray(arrays.get("score", np.ones(count)), dtype=np.float64)
    if score.shape != (count,) or not np.isfinite(score).all() or score.min() < 0 or score.max() > 1:
        raise FootageError(f"{path}: 'score' must be {count} numbers from 0 to 1.")
    points = (points[rows].astype(np.float64) - np.array(offset)) * scale
    seen = np.isfinite(points).all((1, 2))
    score = score[rows] * seen
    # no depth: yaw from where the nose tip lies between the cheeks
    nose, left, right = points[:, 1, 0], points[:, LEFT_CHEEK, 0], points[:, RIGHT_CHEEK, 0]
    share = (nose - (left + right) / 2) / np.where(seen, np.maximum(np.abs(left - right), 1.0) / 2, np.nan)
    return Landmarks(np.where(seen[:, None, None], points, np.nan), score, -np.degrees(np.arcsin(share.clip(-1, 1))), seen.astype(int))
