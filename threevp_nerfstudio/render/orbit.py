"""Cameras on a circle about the subject, as pure functions. World frame: metres, +z up, the subject faces -y."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

DEPTH_PRIOR = 0.01
"""Weight of the subject's own middle where the optical axes leave a direction open (a camera that never turned)."""


@dataclass(frozen=True)
class Framing:
    """What a capture's cameras look at, and from how far."""

    center: Float[Array, "3"]
    distance: float
    """Metres."""
    fov_y: float
    """Vertical field of view, radians."""


def axes_center(
    camera_to_world: Float[Array, "N 4 4"], middle: Float[Array, "3"], prior: float = DEPTH_PRIOR
) -> Float[Array, "3"]:
    """The point nearest to all optical axes, in the least-squares sense, drawn weakly to `middle`."""
    origin, axis = camera_to_world[:, :3, 3], -camera_to_world[:, :3, 2]
    off_axis = np.eye(3) - axis[:, :, None] * axis[:, None, :]
    A = off_axis.mean(0) + prior * np.eye(3)
    b = (off_axis @ origin[..., None])[..., 0].mean(0) + prior * middle
    return np.linalg.solve(A, b)


def framing_of(
    camera_to_world: Float[Array, "N 4 4"],
    focal_y: Float[Array, "N"],
    height: Float[Array, "N"],
    middle: Float[Array, "3"],
) -> Framing:
    """Framing of a capture: its new views then show the subject as large as its pictures do."""
    center = axes_center(camera_to_world, middle)
    distance = float(np.median(np.linalg.norm(camera_to_world[:, :3, 3] - center, axis=1)))
    return Framing(center, distance, float(2.0 * np.arctan(np.median(height / (2.0 * focal_y)))))


def look_at(position: Float[Array, "3"], target: Float[Array, "3"]) -> Float[Array, "4 4"]:
    """Camera-to-world matrix (OpenGL axes: x right, y up, looks along -z) with the world's z upwards."""
    backward = (position - target) / np.linalg.norm(position - target)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right = right / np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([right, np.cross(backward, right), backward], axis=1)
    matrix[:3, 3] = position
    return matrix


def orbit(
    center: Float[Array, "3"], distance: float, elevation: float, yaws: Float[Array, "N"]
) -> Float[Array, "N 4 4"]:
    """Cameras about `center`; yaw 0 sees the face, a positive yaw its left side. `elevation` and `yaws` in radians,
    |elevation| < pi / 2."""
    level = distance * np.cos(elevation)
    offsets = np.stack([level * np.sin(yaws), -level * np.cos(yaws), np.full(len(yaws), distance * np.sin(elevation))], 1)
    return np.stack([look_at(center + offset, center) for offset in offsets])
