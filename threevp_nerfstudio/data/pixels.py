"""Which pixels of a frame to train on: subject, border, background, and eyes and mouth, each by its share."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Int, UInt8
from numpy import ndarray as Array

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels"""


@dataclass
class PixelShares:
    """Shares of a frame's rays. What a frame lacks goes to the subject."""

    face: float = 0.2
    """Eyes and mouth, where they are seen."""
    border: float = 0.15
    """A ring round the matte's edge: silhouettes and hair."""
    background: float = 0.06
    """Anywhere outside."""
    balanced: bool = True
    """False: pixels uniformly over the picture, for comparison."""


def sample_pixels(
    alpha: UInt8[Array, "h w"], boxes: list[Box], count: int, shares: PixelShares, rng: np.random.Generator
) -> Int[Array, "n 2"]:
    """Draw pixels (column, row), with replacement."""
    h, w = alpha.shape
    if not shares.balanced:
        return np.stack([rng.integers(0, w, count), rng.integers(0, h, count)], -1)
    subject = np.flatnonzero(alpha > 127)
    picks = []
    if boxes:
        picks.append(_in_boxes(boxes, int(round(count * shares.face)), (h, w), rng))
    ring = np.flatnonzero(border_ring(alpha))
    if len(ring):
        picks.append(_decode(rng.choice(ring, int(round(count * shares.border))), w))
    outside = int(round(count * shares.background))
    picks.append(np.stack([rng.integers(0, w, outside), rng.integers(0, h, outside)], -1))
    rest = count - sum(map(len, picks))
    if len(subject):
        picks.append(_decode(rng.choice(subject, rest), w))
    else:
        picks.append(np.stack([rng.integers(0, w, rest), rng.integers(0, h, rest)], -1))
    return np.concatenate(picks)[:count]


def square_pixels(
    alpha: UInt8[Array, "h w"], boxes: list[Box], side: int, rng: np.random.Generator
) -> Int[Array, "n 2"]:
    """All pixels (column, row) of a square, row by row, round a random place of eyes and mouth where they are seen, else
    of the subject. None where the picture is smaller than the square."""
    h, w = alpha.shape
    subject = np.flatnonzero(alpha > 127)
    if min(h, w) < side or not len(subject):
        return np.zeros((0, 2), dtype=int)
    middle = _in_boxes(boxes, 1, (h, w), rng)[0] if boxes else _decode(rng.choice(subject, 1), w)[0]
    left, top = np.clip(middle - side // 2, 0, [w - side, h - side])
    y, x = np.mgrid[top : top + side, left : left + side]
    return np.stack([x.ravel(), y.ravel()], -1)


def patches(rgba: UInt8[Array, "h w 4"], xy: Int[Array, "n 2"], radius: int) -> UInt8[Array, "n p 4"]:
    """The (2 radius + 1)^2 pixels round each pixel (column, row), row by row; at the edge the last pixel is repeated."""
    h, w = rgba.shape[:2]
    offset = np.arange(-radius, radius + 1)
    rows = (xy[:, 1, None] + offset).clip(0, h - 1)
    columns = (xy[:, 0, None] + offset).clip(0, w - 1)
    return rgba[rows[:, :, None], columns[:, None, :]].reshape(len(xy), -1, 4)


def border_ring(alpha: UInt8[Array, "h w"]) -> Array:
    """Pixels within about 2 % of the picture's height of the matte's edge, and everything half transparent."""
    radius = max(2, round(0.02 * alpha.shape[0]))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    solid = (alpha > 127).astype(np.uint8)
    # the picture's own edge is not a silhouette
    grown = cv2.dilate(solid, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    shrunk = cv2.erode(solid, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    return (grown != shrunk) | ((alpha > 2) & (alpha < 253))


def _in_boxes(boxes: list[Box], count: int, shape: tuple[int, int], rng: np.random.Generator) -> Array:
    box = np.array(boxes)[rng.integers(0, len(boxes), count)]
    u = rng.random((count, 2))
    xy = np.floor(box[:, :2] + u * (box[:, 2:] - box[:, :2])).astype(int)
    return xy.clip(0, [shape[1] - 1, shape[0] - 1])


def _decode(flat: Array, width: int) -> Array:
    return np.stack([flat % width, flat // width], -1)
