"""Decoded pictures, cropped to the subject, on the training device and within a bound on its memory; what does not fit is read
again from disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from threevp_nerfstudio.kernels.pixels import RING, SUBJECT

CROP_MARGIN = 0.06


@dataclass(frozen=True)
class Crop:
    """Part of a picture that holds the whole subject; outside of it everything is transparent."""

    rgba: UInt8[Tensor, "h w 4"]
    kind: UInt8[Tensor, "h w"]
    """Bits of `kernels.pixels`: `SUBJECT` and `RING`."""
    kinds: int
    """Those of them that any of its pixels has."""
    left: int
    top: int

    @property
    def width(self) -> int:
        return self.rgba.shape[1]

    @property
    def height(self) -> int:
        return self.rgba.shape[0]

    @property
    def bytes(self) -> int:
        return self.rgba.numel() + self.kind.numel()


def crop_to_subject(rgba: UInt8[np.ndarray, "h w 4"], device: torch.device | str = "cpu") -> Crop:
    """Cut to the matte's bounding box with a margin, in a copy of its own on a device."""
    h, w = rgba.shape[:2]
    rows, columns = np.flatnonzero(rgba[..., 3].any(1)), np.flatnonzero(rgba[..., 3].any(0))
    if len(rows) == 0:
        left, top, cut = 0, 0, rgba[:1, :1]
    else:
        margin = int(np.ceil(CROP_MARGIN * max(h, w)))
        top, bottom = max(int(rows[0]) - margin, 0), min(int(rows[-1]) + margin + 1, h)
        left, right = max(int(columns[0]) - margin, 0), min(int(columns[-1]) + margin + 1, w)
        cut = rgba[top:bottom, left:right]
    kind = pixel_kinds(cut[..., 3])
    kinds = sum(bit for bit in (SUBJECT, RING) if (kind & bit).any())
    return Crop(to_device(torch.from_numpy(cut.copy()), device), to_device(torch.from_numpy(kind), device), kinds, left, top)


def pixel_kinds(alpha: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """`SUBJECT` where the matte is solid, `RING` at the border."""
    return np.where(alpha > 127, np.uint8(SUBJECT), np.uint8(0)) | np.where(border_ring(alpha), np.uint8(RING), np.uint8(0))


def border_ring(alpha: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels within about 2 % of the picture's height of the matte's edge, and everything half transparent. The picture's own
    edge is not a silhouette."""
    radius = max(2, round(0.02 * alpha.shape[0]))
    solid = (alpha > 127).astype(np.uint8)
    far = [cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for inside in (solid, 1 - solid)]
    return (np.maximum(*far) <= radius) | ((alpha > 2) & (alpha < 253))


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copied through pinned memory, which a CUDA device fetches without holding up the step before."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class PictureCache:
    """Least recently used pictures are dropped once `capacity_bytes` are exceeded. Safe to use from threads.

    On CUDA, threads copy on the device's default stream: `hand_over` before another stream reads what they brought.
    """

    def __init__(
        self,
        read: Callable[[int], UInt8[np.ndarray, "h w 4"]],
        capacity_bytes: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._read = read
        self._capacity = capacity_bytes
        self._device = torch.device(device)
        if self._device.type == "cuda" and self._device.index is None:  # what is current in this thread need not be in others
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._crops: OrderedDict[int, Crop] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def enter_thread(self) -> None:
        """Once in each thread that gets pictures: on CUDA a thread starts on the first device, and would pin memory there."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def get(self, frame: int) -> Crop:
        with self._lock:
            if frame in self._crops:
                self._crops.move_to_end(frame)
                return self._crops[frame]
        crop = crop_to_subject(self._read(frame), self._device)
        with self._lock:
            if frame not in self._crops:
                self._crops[frame] = crop
                self.bytes += crop.bytes
            while self.bytes > self._capacity and len(self._crops) > 1:
                self.bytes -= self._crops.popitem(last=False)[1].bytes
        return crop

    def hand_over(self, crops: list[Crop]) -> None:
        """Let the current stream read crops: it waits for their copies, and their memory is not reused before it has read."""
        if self._device.type != "cuda":
            return
        stream, loading = torch.cuda.current_stream(self._device), torch.cuda.default_stream(self._device)
        if stream != loading:
            stream.wait_stream(loading)
            for tensor in (t for crop in crops for t in (crop.rgba, crop.kind)):
                tensor.record_stream(stream)
