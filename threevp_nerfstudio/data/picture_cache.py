"""Decoded pictures, cropped to the subject, within a bound on memory; what does not fit is read again from disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

CROP_MARGIN = 0.06


@dataclass(frozen=True)
class Crop:
    """Part of a picture that holds the whole subject; outside of it everything is transparent."""

    rgba: UInt8[np.ndarray, "h w 4"]
    left: int
    top: int
    full: tuple[int, int]
    """Width and height of the whole picture."""


def crop_to_subject(rgba: UInt8[np.ndarray, "h w 4"]) -> Crop:
    """Cut to the matte's bounding box with a margin, in a copy of its own."""
    h, w = rgba.shape[:2]
    rows, columns = np.flatnonzero(rgba[..., 3].any(1)), np.flatnonzero(rgba[..., 3].any(0))
    if len(rows) == 0:
        return Crop(rgba[:1, :1].copy(), 0, 0, (w, h))
    margin = int(np.ceil(CROP_MARGIN * max(h, w)))
    top, bottom = max(rows[0] - margin, 0), min(rows[-1] + margin + 1, h)
    left, right = max(columns[0] - margin, 0), min(columns[-1] + margin + 1, w)
    return Crop(np.ascontiguousarray(rgba[top:bottom, left:right]), int(left), int(top), (w, h))


class PictureCache:
    """Least recently used pictures are dropped once `capacity_bytes` are exceeded. Safe to use from threads."""

    def __init__(self, read: Callable[[int], UInt8[np.ndarray, "h w 4"]], capacity_bytes: int) -> None:
        self._read = read
        self._capacity = capacity_bytes
        self._crops: OrderedDict[int, Crop] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, frame: int) -> Crop:
        with self._lock:
            if frame in self._crops:
                self._crops.move_to_end(frame)
                return self._crops[frame]
        crop = crop_to_subject(self._read(frame))
        with self._lock:
            if frame not in self._crops:
                self._crops[frame] = crop
                self.bytes += crop.rgba.nbytes
            while self.bytes > self._capacity and len(self._crops) > 1:
                self.bytes -= self._crops.popitem(last=False)[1].rgba.nbytes
        return crop
