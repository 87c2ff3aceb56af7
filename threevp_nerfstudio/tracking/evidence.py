"""What one picture says, prepared for sampling at any point: blurred colours, and the distance to the matte's edge."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from threevp_nerfstudio.tracking.footage import Footage, PinholeCamera

SIGMAS = (4.0, 2.0, 1.0)
"""Blur of the pyramid's levels, pixels of a picture 256 pixels wide: coarse to fine."""
FAR = 40.0
"""Pixels beyond which the distance to the edge does not grow."""


@dataclass(frozen=True)
class Field:
    """Channels over the picture with their derivatives, sampled bilinearly. Pixel centres are at +0.5."""

    values: Float[Array, "h w C"]
    """C is three times the number of channels: values, derivatives by x, derivatives by y."""

    @classmethod
    def of(cls, picture: Float[Array, "h w c"]) -> Field:
        padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
        by_x = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
        by_y = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
        return cls(np.concatenate([picture, by_x, by_y], axis=2).astype(np.float32))

    def at(self, xy: Float[Array, "N 2"]) -> tuple[Float[Array, "N c"], Float[Array, "N c 2"]]:
        """Values, and their derivatives by x and y. Points outside take the border's values."""
        h, w, C = self.values.shape
        u = np.clip(xy[:, 0] - 0.5, 0, w - 1.001)
        v = np.clip(xy[:, 1] - 0.5, 0, h - 1.001)
        i, j = u.astype(np.int64), v.astype(np.int64)
        a, b = (u - i)[:, None], (v - j)[:, None]
        flat, at = self.values.reshape(-1, C), j * w + i
        top = flat[at] * (1 - a) + flat[at + 1] * a
        bottom = flat[at + w] * (1 - a) + flat[at + w + 1] * a
        out = top * (1 - b) + bottom * b
        c = C // 3
        return out[:, :c], np.stack([out[:, c : 2 * c], out[:, 2 * c :]], axis=-1)


@dataclass(frozen=True)
class Evidence:
    """One picture at the working resolution."""

    camera: PinholeCamera
    levels: tuple[Field, ...]
    """Colours (0 to 1) of the subject alone, from most to least blurred."""
    edge: Field
    """Signed distance to the matte's edge in pixels, positive inside."""
    inside: Float[Array, "h w"]
    """The matte, 0 to 1."""
    landmarks: Float[Array, "L 2"]
    """Pixels; NaN where not found."""
    landmark_score: float


def working_camera(camera: PinholeCamera, longest: int) -> PinholeCamera:
    """The camera of pictures reduced so that the longer side has at most `longest` pixels."""
    scale = min(1.0, longest / max(camera.width, camera.height))
    w, h = max(1, round(camera.width * scale)), max(1, round(camera.height * scale))
    sx, sy = w / camera.width, h / camera.height
    return replace(camera, fx=camera.fx * sx, fy=camera.fy * sy, cx=camera.cx * sx, cy=camera.cy * sy, width=w, height=h)


def evidence(footage: Footage, i: int, longest: int) -> Evidence:
    """Picture `i` of the footage, reduced and undistorted."""
    camera = working_camera(footage.camera, longest)
    size = (camera.width, camera.height)
    rgb, alpha = np.asarray(footage.rgb[i]), np.asarray(footage.alpha[i])
    landmarks = np.array(footage.landmarks[i], dtype=np.float64)
    if any(footage.camera.distortion):
        K, d = footage.camera.matrix, np.array(footage.camera.distortion)
        shift = K - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # OpenCV's pixel centres are whole numbers
        rgb, alpha = cv2.undistort(rgb, shift, d), cv2.undistort(alpha, shift, d)
        if len(landmarks):
            landmarks = cv2.undistortPoints(landmarks[:, None], K, d, P=K)[:, 0]
        camera = replace(camera, distortion=(0.0, 0.0, 0.0, 0.0))
    rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    matte = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    landmarks = landmarks * (np.array(size) / (footage.camera.width, footage.camera.height))
    unit = max(size) / 256
    levels = tuple(Field.of(blurred_inside(rgb, matte, sigma * unit)) for sigma in SIGMAS)
    edge = Field.of(signed_distance(matte)[..., None])
    return Evidence(camera, levels, edge, matte, landmarks, float(footage.landmark_score[i]))


def blurred_inside(rgb: Float[Array, "h w 3"], matte: Float[Array, "h w"], sigma: float) -> Float[Array, "h w 3"]:
    """Blur that takes no colour from outside the matte: the background must not pull the head along."""
    weight = np.clip(matte * 2 - 1, 0, 1)[..., None] + 1e-4
    top = cv2.GaussianBlur(rgb * weight, (0, 0), sigma)
    bottom = cv2.GaussianBlur(weight, (0, 0), sigma)
    return top / bottom[..., None]


def signed_distance(matte: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """Pixels from each pixel's centre to the edge of the matte, positive inside, at most `FAR`.

    The picture's border is no edge. An empty or full matte gives `FAR` outside or inside everywhere.
    """
    h, w = matte.shape
    fine = cv2.resize(matte, (4 * w, 4 * h), interpolation=cv2.INTER_LINEAR)  # below a pixel the matte's ramp tells
    inside = (fine > 0.5).astype(np.uint8)
    if not inside.any() or inside.all():
        return np.full((h, w), FAR if inside.all() else -FAR, dtype=np.float32)
    within = cv2.distanceTransform(inside, cv2.DIST_L2, 5)
    without = cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
    distance = np.where(inside > 0, within - 0.5, 0.5 - without) / 4
    distance = cv2.resize(distance.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA)
    return np.clip(cv2.GaussianBlur(distance, (0, 0), 0.7), -FAR, FAR)


def project(camera: PinholeCamera, x: Float[Array, "N 3"]) -> tuple[Float[Array, "N 2"], Float[Array, "N 2 3"]]:
    """Pixels of points in camera axes, and their derivatives. Evidence is undistorted, so the camera is a plain pinhole."""
    z = np.maximum(x[:, 2], 1e-3)
    u, v = x[:, 0] / z, x[:, 1] / z
    J = np.zeros((len(x), 2, 3))
    J[:, 0, 0], J[:, 0, 2] = camera.fx / z, -camera.fx * u / z
    J[:, 1, 1], J[:, 1, 2] = camera.fy / z, -camera.fy * v / z
    return np.stack([camera.fx * u + camera.cx, camera.fy * v + camera.cy], axis=1), J
