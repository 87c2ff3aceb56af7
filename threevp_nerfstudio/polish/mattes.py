"""Mattes once more, by the avatar that was trained on them.

A matte errs at its border, where a pixel shows subject and room together, and in each picture it errs differently. The avatar was trained
on all of them: its outline is where most of them say it is, and it knows the subject's own colour right there. With that colour and
the room's, a picture tells its alpha better than it did.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.capture.capture import Capture
from threevp_nerfstudio.model.model import ThreeVPModel
from threevp_nerfstudio.model.performance import performance_of
from threevp_nerfstudio.polish.rays import rays_through
from threevp_nerfstudio.tracking.footage import Footage
from threevp_nerfstudio.tracking.mattes import Matting, border, reconsidered
from threevp_nerfstudio.tracking.store import PictureWriter, open_pictures
from threevp_nerfstudio.tracking.unmixing import nearest_colour
from threevp_nerfstudio.workers import shared

RENDERED = 256
"""Longer side of the pictures that the avatar is asked for, pixels: its outline is smooth."""
LONGER = 2.0
"""Samples along rays are so much farther apart than in training: rays that graze the subject are long, and its outline hardly changes
(root mean square of the mattes' errors at edges 0.1567 in place of 0.1565, in three quarters of the time)."""
BAND = 1 / 80
"""Half-width of the border that is looked at again, as a share of a picture's longer side."""
OPAQUE = 0.6
"""Alpha from which the avatar's colour at a pixel is the subject's; elsewhere it is that of the nearest such pixel."""
Progress = Callable[[str, int, int], None]


class Rim(NamedTuple):
    """What the avatar shows along a border, at the size of the picture."""

    colour: Float[Array, "h w 3"]
    """8-bit levels, continued beyond the outline."""
    alpha: Float[Array, "h w"]


class Rims:
    """Asks an avatar for a part of a picture only: the border is a twentieth of it.

    Args:
        avatar: as it was trained.
        capture: the poses it is to be seen in.
    """

    def __init__(self, avatar: ThreeVPModel, capture: Capture) -> None:
        self.avatar, self.capture = avatar.eval(), capture
        avatar.performance = performance_of(capture).to(avatar.device)

    @torch.no_grad()
    def __call__(self, frame: int, band: Bool[Array, "h w"], solid: Bool[Array, "h w"]) -> Rim:
        """`solid` stands for the avatar's alpha outside of the band."""
        h, w = band.shape
        scale = min(1.0, RENDERED / max(h, w))
        size = (round(scale * w), round(scale * h))
        there = cv2.dilate(cv2.resize(band.astype(np.float32), size, interpolation=cv2.INTER_AREA), np.ones((3, 3))) > 0
        y, x = np.nonzero(there)
        rgba = self._rendered(frame, np.stack([y, x], -1) + 0.5, size)
        expected = np.where(there, 0.0, cv2.resize(solid.astype(np.float32), size, interpolation=cv2.INTER_AREA)).astype(np.float32)
        expected[y, x] = rgba[:, 3]
        own = np.zeros((*there.shape, 3), np.float32)
        own[y, x] = 255 * rgba[:, :3]
        sure = there & (expected > OPAQUE)
        if sure.any():
            unsure = np.nonzero((cv2.dilate(there.astype(np.uint8), np.ones((3, 3))) > 0) & ~sure)
            own[unsure] = nearest_colour(own, sure, 1, unsure)
        return Rim(*(cv2.resize(part, (w, h), interpolation=cv2.INTER_LINEAR) for part in (own, expected)))

    def _rendered(self, frame: int, places: Float[Array, "R 2"], size: tuple[int, int]) -> Float[Array, "R 4"]:
        """The avatar with straight alpha at some pixels (row, column) of a picture of `size`."""
        model = self.avatar
        rays = rays_through(self.capture, frame, places, size).to(model.device)
        pose = model.stage(model.performance.at_frames(torch.tensor([frame], device=model.device)))
        step = model.config.sample_step
        model.config.sample_step = LONGER * step
        try:
            return model.get_rgba_image(model.render_rays(rays.origins, rays.directions, pose)).cpu().numpy()
        finally:
            model.config.sample_step = step


def remade_mattes(
    footage: Footage, rows: Int[Array, "n"], source: Matting, rims: Rims, path: Path, progress: Progress = lambda *_: None
) -> UInt8[Array, "N h w"]:
    """The mattes of the pictures `rows`, which are the frames of the capture that `rims` sees, written to `path`; others stay as they were.

    Returns them mapped into memory.
    """
    frame_of = {int(row): frame for frame, row in enumerate(rows)}
    radius = max(2, round(BAND * max(footage.alpha.shape[1:])))

    def remade(i: int) -> UInt8[Array, "h w"]:
        alpha, picture = np.asarray(footage.alpha[i]), np.asarray(footage.rgb[i])
        solid = alpha > 127
        if i not in frame_of or not (band := border(solid, radius)).any():
            return alpha
        rim = rims(frame_of[i], band, solid)
        P = None if source.coarse is None else np.asarray(source.coarse[i])
        return reconsidered(picture, alpha, P, source.room, band, rim.colour[band], rim.alpha, radius)

    with PictureWriter(path, footage.alpha.shape[1:]) as writer:
        for i, alpha in enumerate(shared(range(len(footage)), lambda: remade)):
            writer.append(alpha)
            progress("mattes by the avatar", i + 1, len(footage))
    return open_pictures(path)
