"""Which pixels of a frame to train on: subject, border, background, and eyes and mouth, each by its share.

`kernels.pixels` draws them; here is what it is told, and the plain version of what it makes of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.capture.cameras import pixel_rays
from threevp_nerfstudio.capture.frames import Frames
from threevp_nerfstudio.data.picture_cache import Crop
from threevp_nerfstudio.kernels.pixels import BOX, SLOT

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels"""


@dataclass
class PixelShares:
    """Shares of a frame's rays. What a frame lacks goes to the subject."""

    face: float = 0.15
    """Eyes and mouth, where they are seen."""
    border: float = 0.25
    """A ring round the matte's edge: silhouettes and hair."""
    background: float = 0.06
    """Anywhere outside."""
    balanced: bool = True
    """False: pixels uniformly over the picture, for comparison."""

    def counts(self, rays: int) -> tuple[int, int, int]:
        """How many of a frame's rays look at eyes and mouth, at the border, and anywhere; the others look at the subject."""
        if not self.balanced:
            return 0, 0, rays
        return round(rays * self.face), round(rays * self.border), round(rays * self.background)


def slot_table(frames: Frames, chosen: list[tuple[int, Crop]], boxes: list[list[Box]]) -> Shaped[Array, "S"]:
    """What `draw_rays` has to know of frames, their crops and the boxes in their pictures."""
    index = np.array([frame for frame, _ in chosen])
    table = np.zeros(len(chosen), SLOT)
    table["frame"], table["focal"], table["centre"] = index, frames.focal[index], frames.principal_point[index]
    table["distortion"], camera = frames.distortion[index], frames.camera_to_world[index]
    table["rotation"], table["origin"] = camera[:, :3, :3], camera[:, :3, 3]
    for name in ("left", "top", "width", "height", "kinds"):
        table[name] = [getattr(crop, name) for _, crop in chosen]
    table["rgba"] = [crop.rgba.data_ptr() for _, crop in chosen]
    table["kind"] = [crop.kind.data_ptr() for _, crop in chosen]
    for slot, ((_, crop), own) in enumerate(zip(chosen, boxes, strict=True)):
        if own:
            table["num_boxes"][slot] = len(own)
            table["boxes"][slot, : len(own)] = np.array(own) - [crop.left, crop.top, crop.left, crop.top]
            table["kinds"][slot] |= BOX
    return table


@dataclass(frozen=True)
class PixelsRays:
    """Rays of some pixels of a frame, as `kernels.pixels.DrawnRays`."""

    origins: Float[Array, "n 3"]
    directions: Float[Array, "n 3"]
    across: Float[Array, "n 6"]
    patch: UInt8[Array, "n p4"]
    weight: Float[Array, "n"]


def rays_of_pixels(
    frames: Frames, frame: int, crop: Crop, boxes: list[Box], xy: Int[Array, "n 2"], radius: int, face_weight: float
) -> PixelsRays:
    """What `draw_rays` gives for pixels (column, row of the picture), in plain numpy: the oracle of its tests."""
    rays = pixel_rays(frames, frame, xy)
    patch = patches(crop.rgba.cpu().numpy(), xy - [crop.left, crop.top], radius)
    weight = np.ones(len(xy))
    for left, top, right, bottom in boxes:
        weight[(xy >= [left, top]).all(1) & (xy <= [right, bottom]).all(1)] = face_weight
    return PixelsRays(rays.origins, rays.directions, rays.across.reshape(-1, 6), patch.reshape(len(xy), -1), weight)


def patches(rgba: UInt8[Array, "h w 4"], xy: Int[Array, "n 2"], radius: int) -> UInt8[Array, "n p 4"]:
    """The (2 radius + 1)^2 pixels round each pixel (column, row), row by row; at the edge the last pixel is repeated."""
    h, w = rgba.shape[:2]
    offset = np.arange(-radius, radius + 1)
    rows = (xy[:, 1, None] + offset).clip(0, h - 1)
    columns = (xy[:, 0, None] + offset).clip(0, w - 1)
    return rgba[rows[:, :, None], columns[:, None, :]].reshape(len(xy), -1, 4)
