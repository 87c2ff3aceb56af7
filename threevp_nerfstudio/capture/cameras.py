"""Pinhole cameras with OpenCV's radial and tangential distortion, as arrays. Pixel centres are at +0.5."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from threevp_nerfstudio.capture.frames import Frames


def intrinsic_matrix(frames: Frames, i: int, scale: float = 1.0) -> Float[Array, "3 3"]:
    """Of frame `i`, for pictures scaled by `scale`."""
    (fx, fy), (cx, cy) = frames.focal[i] * scale, frames.principal_point[i] * scale
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def pixel_directions(
    K: Float[Array, "3 3"], distortion: Float[Array, "4"], width: int, height: int
) -> Float[Array, "H W 3"]:
    """Directions through the pixel centres in the camera's OpenGL axes, with z = -1. `distortion` is k1, k2, p1, p2."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return _directions(np.stack([x, y], axis=-1), K, distortion)


@dataclass(frozen=True)
class PixelRays:
    """Rays through n pixel centres, world frame."""

    origins: Float[Array, "n 3"]
    directions: Float[Array, "n 3"]
    """Unit."""
    across: Float[Array, "n 3 2"]
    """What a step of one pixel to the right, and one down, adds to the direction."""


def pixel_rays(frames: Frames, i: int, xy: Int[Array, "n 2"]) -> PixelRays:
    """Rays of frame `i` through pixels (column, row)."""
    K, pixels = intrinsic_matrix(frames, i), xy + 0.5
    camera = frames.camera_to_world[i]
    steps = np.stack([pixels, pixels + [1.0, 0.0], pixels + [0.0, 1.0]])
    centre, right, down = _directions(steps, K, frames.distortion[i]) @ camera[:3, :3].T
    length = np.linalg.norm(centre, axis=-1, keepdims=True)
    across = np.stack([right - centre, down - centre], axis=-1) / length[..., None]
    return PixelRays(np.broadcast_to(camera[:3, 3], centre.shape), centre / length, across)


def _directions(pixels: Float[Array, "*n 2"], K: Float[Array, "3 3"], distortion: Float[Array, "4"]) -> Float[Array, "*n 3"]:
    if np.any(distortion):
        criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 50, 1e-9)
        points = pixels.reshape(-1, 1, 2)
        plane = cv2.undistortPointsIter(points, K, distortion, None, None, criteria).reshape(pixels.shape)
    else:
        plane = (pixels - K[:2, 2]) / [K[0, 0], K[1, 1]]
    return np.concatenate([plane[..., :1], -plane[..., 1:], -np.ones_like(plane[..., :1])], axis=-1)


def project(
    points: Float[Array, "V 3"],
    camera_to_world: Float[Array, "4 4"],
    K: Float[Array, "3 3"],
    distortion: Float[Array, "4"],
) -> tuple[Float[Array, "V 2"], Float[Array, "V"]]:
    """Pixel coordinates and depths (metres along the viewing axis) of world points; behind the camera depth is <= 0."""
    local = (points - camera_to_world[:3, 3]) @ camera_to_world[:3, :3]
    depth = -local[:, 2]
    x, y = np.divide([local[:, 0], -local[:, 1]], depth, where=depth > 0, out=np.zeros((2, len(depth))))
    k1, k2, p1, p2 = distortion
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * k2)
    xd = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    yd = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return np.stack([K[0, 0] * xd + K[0, 2], K[1, 1] * yd + K[1, 2]], axis=-1), depth
