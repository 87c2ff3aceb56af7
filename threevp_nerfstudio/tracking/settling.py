"""Mattes made anew once there is a track: what the posed template covers is the subject, whatever colour the room behind has.

A network's person probabilities are coarse, and the room learned from the video says "room" wherever the subject happens to have its
colour: a chin in front of bricks gets a hole. What the template covers in its tracked pose decides such places, and what is far
from it is somebody's or something else's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.tracking.footage import Footage
from threevp_nerfstudio.tracking.mattes import Matting, refine
from threevp_nerfstudio.tracking.store import PictureWriter, open_pictures
from threevp_nerfstudio.workers import shared

Silhouette = Callable[[int], Bool[Array, "u v"] | None]
"""What the template covers in picture `i`, at any resolution; None where it was lost."""


class Settling:
    """Makes the mattes of a footage anew, into `path`; where that is done already, they are read.

    Args:
        progress: called with "mattes", pictures done and pictures in all.
    """

    def __init__(self, footage: Footage, source: Matting, path: Path, progress: Callable[[str, int, int], None]) -> None:
        self.footage, self.source, self.path, self.progress = footage, source, path, progress

    def __call__(self, silhouette: Silhouette) -> UInt8[Array, "N h w"]:
        """The mattes; mapped into memory."""
        if not self.path.is_file():
            N, h, w = self.footage.alpha.shape

            def settled(i: int) -> UInt8[Array, "h w"]:
                covered = silhouette(i)
                return np.asarray(self.footage.alpha[i]) if covered is None else self._settled(i, covered)

            with PictureWriter(self.path, (h, w)) as writer:
                for i, alpha in enumerate(shared(range(N), lambda: settled)):
                    writer.append(alpha)
                    self.progress("mattes", i + 1, N)
        return open_pictures(self.path)

    def _settled(self, i: int, covered: Bool[Array, "u v"]) -> UInt8[Array, "h w"]:
        picture, before = np.asarray(self.footage.rgb[i]), np.asarray(self.footage.alpha[i])
        h, w = before.shape
        full = cv2.resize(covered.astype(np.float32), (w, h), interpolation=cv2.INTER_LINEAR) > 0.5
        P = None if self.source.coarse is None else np.asarray(self.source.coarse[i])
        return refine(picture, P, self.source.room, before, full)
