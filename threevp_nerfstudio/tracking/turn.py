"""Which way the chair turned, and how far, from the pictures of the turn that show the face.

A turn is monotonic. Where the face is seen its landmarks give the azimuth; between those runs of pictures the azimuth is
interpolated, and beyond them it goes on at the rate of the turn. Faces that a detector sees on the back of a head do not
move the way a turning face does, and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from scipy.spatial.transform import Rotation

from threevp_nerfstudio.errors import TrackError
from threevp_nerfstudio.tracking.fitted import azimuth_of
from threevp_nerfstudio.tracking.footage import PinholeCamera
from threevp_nerfstudio.tracking.posing import orthonormal

FRONTAL = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
"""Rotation from the template's world frame to a camera in front of it."""
TRUSTED = np.radians(45.0)
"""Azimuth up to which a found face tells the azimuth: beyond, landmarks lag behind."""
WORST_FIT = 0.05
"""Mean distance of landmarks from a rigid face, of the face's width, beyond which a found face is none."""


@dataclass(frozen=True)
class TurnPrior:
    """Expected azimuth of the camera about the subject, unwrapped, radians, for any time within the turn."""

    direction: int
    times: Float[Array, "n"]
    azimuth: Float[Array, "n"]
    rate: float
    """Radians a second, with sign."""

    def at(self, t: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Azimuth at times `t`; linear beyond the anchors."""
        t = np.asarray(t, dtype=np.float64)
        inner = np.interp(t, self.times, self.azimuth)
        return inner + self.rate * (np.minimum(t - self.times[0], 0) + np.maximum(t - self.times[-1], 0))


def rotation_about_z(angle: float | Float[Array, "*n"]) -> Float[Array, "*n 3 3"]:
    """Turns about the template's vertical axis."""
    return Rotation.from_rotvec(np.asarray(angle)[..., None] * np.array([0.0, 0.0, 1.0])).as_matrix()


def pose_from_landmarks(
    points: Float[Array, "n 3"], pixels: Float[Array, "n 2"], camera: PinholeCamera
) -> tuple[Float[Array, "4 4"], float] | None:
    """Rigid pose of a face by its landmarks, and their mean distance in widths of the face. None where it fails."""
    good = np.isfinite(pixels).all(1)
    if good.sum() < 8:
        return None
    K = camera.matrix
    ok, rotation, translation = cv2.solvePnP(points[good], pixels[good], K, np.array(camera.distortion), flags=cv2.SOLVEPNP_SQPNP)
    if not ok:
        return None
    rotation, translation = cv2.solvePnPRefineLM(points[good], pixels[good], K, np.array(camera.distortion), rotation, translation)
    T = np.eye(4)
    T[:3, :3] = cv2.Rodrigues(rotation)[0]
    T[:3, 3] = translation[:, 0]
    if not np.isfinite(T).all() or T[2, 3] + (points @ T[2, :3]).min() < 0.05:
        return None
    back, _ = cv2.projectPoints(points[good], rotation, translation, K, np.array(camera.distortion))
    width = camera.fx * np.ptp(points[:, 0]) / (T[:3, :3] @ points.mean(0) + T[:3, 3])[2]
    return T, float(np.linalg.norm(back[:, 0] - pixels[good], axis=1).mean() / width)


def find_turn(times: Float[Array, "N"], azimuth: Float[Array, "N"], found: Bool[Array, "N"]) -> TurnPrior:
    """The turn, from azimuths (radians, wrapped) of the pictures where a face was `found`. Raises `TrackError`."""
    trusted = found & (np.abs(azimuth) < TRUSTED)
    runs = [run for run in _runs(trusted, longest_gap=max(2, len(times) // 60)) if len(run) >= 3]
    if not runs:
        raise TrackError(
            "the face was found in none of the pictures of the turn; the turn must show it at least once. Check the video, its "
            "start and end, and that the turn comes first."
        )
    slopes = [_slope(times[run], azimuth[run]) for run in runs]
    strength = [abs(s) * (times[r[-1]] - times[r[0]]) for s, r in zip(slopes, runs, strict=True)]
    main = int(np.argmax(strength))
    rate, direction = slopes[main], 1 if slopes[main] >= 0 else -1
    anchors = _anchors(times, azimuth, runs[main], direction)
    for later in range(main + 1, len(runs)):
        anchors = _with_run(anchors, times, azimuth, runs[later], slopes[later], direction, rate, +1)
    for earlier in range(main - 1, -1, -1):
        anchors = _with_run(anchors, times, azimuth, runs[earlier], slopes[earlier], direction, rate, -1)
    t, a = anchors
    a = a - 2 * np.pi * np.round(a[0] / (2 * np.pi))  # whichever run was the main one, the turn starts within half a turn of 0
    if len(t) > 1 and t[-1] > t[0] and abs(a[-1] - a[0]) > np.pi:
        rate = (a[-1] - a[0]) / (t[-1] - t[0])
    return TurnPrior(direction, t, a, float(rate))


def _runs(mask: Bool[Array, "N"], longest_gap: int) -> list[Array]:
    index = np.flatnonzero(mask)
    if not len(index):
        return []
    return np.split(index, np.flatnonzero(np.diff(index) > longest_gap) + 1)


def _slope(t: Array, a: Array) -> float:
    """Median slope over pairs that are far apart (Theil and Sen)."""
    half = max(1, len(t) // 2)
    return float(np.median((a[half:] - a[:-half]) / np.maximum(t[half:] - t[:-half], 1e-9)))


def _anchors(times: Array, azimuth: Array, run: Array, direction: int) -> tuple[Array, Array]:
    """A few azimuths of a run, made monotonic."""
    parts = np.array_split(run, min(len(run), 8))
    t = np.array([times[p].mean() for p in parts])
    a = np.array([np.median(azimuth[p]) for p in parts])
    return t, direction * np.maximum.accumulate(direction * a)


def _with_run(anchors, times, azimuth, run, slope, direction, rate, side) -> tuple[Array, Array]:
    """Another run, a whole turn away or on the same pass, if it moves and lies as a turn at about this rate would have it."""
    t, a = anchors
    new_t, new_a = _anchors(times, azimuth, run, direction)
    end, start = (-1, 0) if side > 0 else (0, -1)
    lapse = new_t[start] - t[end]
    expected = a[end] + rate * lapse
    turns = np.round((expected - new_a[start]) / (2 * np.pi))
    options = [new_a + 2 * np.pi * k for k in (turns - 1, turns, turns + 1)]
    ahead = [o for o in options if side * direction * (o[start] - a[end]) > -0.05]
    if not ahead:
        return anchors
    shifted = min(ahead, key=lambda o: abs(o[start] - expected))
    speed = (shifted[start] - a[end]) / lapse if lapse else rate
    moves = slope * direction > -0.2 * abs(rate)
    if not moves or not 0.25 < abs(speed / rate) < 4 or abs(shifted[-1] - a[0]) > 2 * np.pi + 1.2:
        return anchors
    t, a = (np.append(t, new_t), np.append(a, shifted)) if side > 0 else (np.append(new_t, t), np.append(shifted, a))
    return t, direction * np.maximum.accumulate(direction * a)


@dataclass(frozen=True)
class Chair:
    """The axis that the subject turns about: `T = [A F Rz(azimuth), axis]` applied to points relative to `centre`."""

    tilt: Float[Array, "3 3"]
    axis: Float[Array, "3"]
    """Camera axes: where the point `centre` of the template is at any azimuth."""
    centre: Float[Array, "3"]
    """World frame of the template."""

    def pose(self, azimuth: float) -> Float[Array, "4 4"]:
        """`T_camera_root` at an azimuth."""
        T = np.eye(4)
        T[:3, :3] = self.tilt @ FRONTAL @ rotation_about_z(-azimuth)
        T[:3, 3] = self.axis - T[:3, :3] @ self.centre
        return T


def find_chair(poses: Float[Array, "n 4 4"], head: Float[Array, "3"]) -> Chair:
    """The chair from poses of the face on the turn. `head`: the point that stays near the axis where they do not tell."""
    azimuth = azimuth_of(poses)
    tilts = poses[:, :3, :3] @ np.swapaxes(FRONTAL @ rotation_about_z(-azimuth), 1, 2)
    tilt = orthonormal(tilts.mean(0))
    A = np.zeros((3 * len(poses), 6))
    b = np.zeros(3 * len(poses))
    for i, T in enumerate(poses):
        A[3 * i : 3 * i + 3, :3] = np.eye(3)
        A[3 * i : 3 * i + 3, 3:] = -T[:3, :3]
        b[3 * i : 3 * i + 3] = T[:3, 3] + T[:3, :3] @ head
    ridge = np.diag([0, 0, 0, 1.0, 1.0, 1e6]) * len(poses) * 0.05  # offsets of a few centimetres are usual
    x = np.linalg.solve(A.T @ A + ridge, A.T @ b)
    return Chair(tilt, x[:3], head + x[3:])
