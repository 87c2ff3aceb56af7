"""Footage: one video, decoded and annotated, as all stages of the tracker see it.

Pictures stay on disk and are mapped into memory, so that long videos do not fill it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray as Array


@dataclass(frozen=True)
class PinholeCamera:
    """Intrinsics of the one camera, pixels of the stored pictures. Pixel centres are at +0.5; +x right, +y down."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    distortion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """OpenCV's k1, k2, p1, p2."""

    @property
    def matrix(self) -> Float[Array, "3 3"]:
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Footage:
    """N pictures of one size from a static camera, in order of time."""

    rgb: UInt8[Array, "N h w 3"]
    """Pictures; usually a memory map."""
    alpha: UInt8[Array, "N h w"]
    """Mattes, 255 on the subject; usually a memory map."""
    times: Float[Array, "N"]
    """Seconds from the first picture."""
    static: Bool[Array, "N"]
    """Pictures of the turn, with a neutral face; the others are the performance."""
    camera: PinholeCamera
    landmarks: Float[Array, "N L 2"]
    """Face landmarks in pixels of these pictures (MediaPipe's face mesh, L = 478); NaN where no face was found."""
    landmark_score: Float[Array, "N"]
    """How well the face was found, 0 (not at all) to 1. Detectors hallucinate faces on the backs of heads: trust it only
    where the tracked yaw says that the face is seen."""

    def __len__(self) -> int:
        return len(self.times)
