"""The training frames as places to compare with: by yaw and by expression, with small pictures of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray as Array
from PIL import Image

from threevp_nerfstudio.capture.frames import Frames, yaw_deg

THUMBNAIL_PX = 200
NEAR_DEG = 12.0
"""Frames whose yaw differs by no more than this compete by expression."""


class TrainingViews:
    """Which frame shows what is on screen best.

    Args:
        index: the training frames, as indices of the capture's frames.
        conditioning: expression (and jaw) of every frame of the capture.
    """

    def __init__(
        self,
        frames: Frames,
        index: Int[Array, "M"],
        conditioning: Float[Array, "N C"],
        read_rgba: Callable[[int], UInt8[np.ndarray, "h w 4"]],
    ) -> None:
        self.frames = frames
        self.index = index
        self.conditioning = conditioning
        self.read_rgba = read_rgba
        self.yaw = yaw_deg(frames.camera_to_world[self.index])

    def nearest(self, yaw: float, conditioning: Float[Array, "C"] | None = None) -> int:
        """The training frame with the nearest yaw (degrees); of those about as near, with the nearest expression."""
        apart = np.abs((self.yaw - yaw + 180.0) % 360.0 - 180.0)
        if conditioning is None:
            return int(self.index[apart.argmin()])
        near = np.flatnonzero(apart <= max(NEAR_DEG, float(apart.min())))
        distance = np.linalg.norm(self.conditioning[self.index[near]] - conditioning, axis=1)
        return int(self.index[near[distance.argmin()]])

    def yaw_of(self, frame: int) -> float:
        return float(yaw_deg(self.frames.camera_to_world[frame : frame + 1])[0])

    def fov_y(self, frame: int) -> float:
        """Vertical field of view of a frame, radians."""
        return float(2.0 * np.arctan(self.frames.size[frame, 1] / (2.0 * self.frames.focal[frame, 1])))

    def thumbnail(self, frame: int) -> str:
        """A small picture of a frame over white, as the text of a data address."""
        rgba = Image.fromarray(self.read_rgba(frame))
        rgba.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        white = Image.new("RGBA", rgba.size, "white")
        white.alpha_composite(rgba)
        buffer = io.BytesIO()
        white.convert("RGB").save(buffer, "JPEG", quality=85)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def bars(names: Sequence[str], values: Float[Array, "K"], most: int = 12, width: int = 14) -> str:
    """The largest coefficients as bars of text, largest first; empty where all are about zero."""
    order = [i for i in np.argsort(-np.abs(values), kind="stable")[:most] if abs(values[i]) >= 0.005]
    if not order:
        return "all about zero"
    full = max(float(np.abs(values[order]).max()), 1.0)
    longest = max(len(names[i]) for i in order)
    lines = [
        f"{names[i]:<{longest}} {values[i]:+.2f} " + "█" * max(round(abs(float(values[i])) / full * width), 1) for i in order
    ]
    return "\n".join(lines)
