"""Mattes: the user's own, from a picture of the empty room, or by segmentation refined against the room learned from the video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.errors import FootageError
from threevp_nerfstudio.tracking.background import (
    Background,
    as_exposed,
    evidence,
    exposure,
    largest,
    learn_background,
    look_closer,
)
from threevp_nerfstudio.tracking.unmixing import colour_behind, unmixed, unmixed_with
from threevp_nerfstudio.workers import shared

Segment = Callable[[UInt8[Array, "h w 3"]], UInt8[Array, "h w"]]
"""Coarse person probability of a picture, 255 = person."""
WITHIN, NEAR = 6.0, 4.0
"""Log odds inside of the tracked template, and how deep that is reached; pixels where it covers 300 x 300 of them."""
BEYOND, FAR = 4.0, 16.0
"""Log odds against the subject outside of it, and how far off."""
COARSER = 4
"""Pixels across one of where the subject roughly is."""
PATIENCE = 30
"""Pictures without the subject after which somebody else, where there is one, is taken for it."""
SURE_ROOM = 8
"""Person probability (of 255) that the network gives to what is surely room."""


@dataclass(frozen=True)
class Matting:
    """What mattes were made of, for making them again once there is a track."""

    coarse: UInt8[Array, "N h w"] | None
    """Person probabilities; None without a network."""
    room: Background | None


@dataclass(frozen=True)
class MatteQuality:
    """How far mattes can be trusted; one row per picture, all 0 to 1."""

    area: Float[Array, "N"]
    """Share of the picture that the subject covers."""
    softness: Float[Array, "N"]
    """Share of the subject's area that is half transparent."""
    agreement: Float[Array, "N"]
    """Intersection over union of the matte and the network's own; 1 where there is no network."""
    steadiness: Float[Array, "N"]
    """Intersection over union with the matte before."""
    cut_off: Float[Array, "N"]
    """Share of the left, right and top picture border that the subject touches."""


def person_segmenter() -> Segment:
    """MediaPipe's selfie segmentation. Raises `FootageError` where MediaPipe is missing.

    The network sees squares. Pictures that are none go in twice, squeezed and with their mirror images beside them, since it now misses
    a body in the one and now in the other; the room behind the subject corrects what is too much.
    """
    from threevp_nerfstudio.tracking.mediapipe_home import load

    network = load().solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)

    def look(picture: UInt8[Array, "h w 3"]) -> UInt8[Array, "h w"]:
        mask = network.process(np.ascontiguousarray(picture)).segmentation_mask
        return np.round(np.asarray(mask).clip(0, 1) * 255).astype(np.uint8)

    def segment(picture: UInt8[Array, "h w 3"]) -> UInt8[Array, "h w"]:
        h, w = picture.shape[:2]
        if h == w:
            return look(picture)
        square, top, left = squared(picture)
        return np.maximum(look(picture), look(square)[top : top + h, left : left + w])

    return segment


def squared(picture: UInt8[Array, "h w 3"]) -> tuple[UInt8[Array, "s s 3"], int, int]:
    """The picture in the middle of a square, continued by its mirror images; and where its upper left corner is (row, column)."""
    h, w = picture.shape[:2]
    size = max(h, w)
    top, left = (size - h) // 2, (size - w) // 2
    return cv2.copyMakeBorder(picture, top, size - h - top, left, size - w - left, cv2.BORDER_REFLECT), top, left


def refine(
    picture: UInt8[Array, "h w 3"],
    P: UInt8[Array, "h w"] | None,
    room: Background | None,
    previous: UInt8[Array, "u v"] | None,
    silhouette: Bool[Array, "h w"] | None = None,
) -> UInt8[Array, "h w"]:
    """The matte of one picture from person probabilities `P` and from what is known of the room (at least one of them).

    `previous` is the matte before, or what else tells where the subject is: of several people or objects, the one that overlaps it
    is kept; without it the largest.
    `silhouette`: what the tracked template covers, once there is a track.
    """
    gain = None if room is None else exposure(picture, room, _surely_free(picture, P, room))
    logit = np.zeros(picture.shape[:2], np.float32)
    if P is not None:
        p = P.astype(np.float32) / 255
        logit += np.log((p + 0.007) / (1.007 - p))  # +-5 at the ends
    if room is not None:
        ratio = evidence(picture, room, gain)
        logit += cv2.boxFilter(ratio, -1, (3, 3) if P is not None else (5, 5))
    if silhouette is not None:
        logit += expected(silhouette)
    solid = _subject(logit > 0, previous)
    radius = max(2, round(max(solid.shape) / 170))
    band = border(solid, radius)
    soft = guided_filter(picture, (band | solid) / (1 + np.exp(-logit.clip(-8, 8))))
    alpha = np.where(band, soft, solid.astype(np.float32))
    alpha = ((alpha - 0.06) / 0.88).clip(0.0, 1.0)
    alpha = unmixed(picture, band, solid, alpha, None if room is None else known_room(room, gain, band), radius)
    return np.round(alpha * 255).astype(np.uint8)


class Follower:
    """Tells in picture after picture where the subject is: of the persons that the network sees, the one who was followed so far. Unlike
    mattes themselves this is cheap, so that mattes need not wait for each other.

    Where the network misses the subject, it is taken to be where it was, also if somebody else is seen; but not for longer than `PATIENCE`
    pictures.
    """

    def __init__(self) -> None:
        self.where: UInt8[Array, "u v"] | None = None
        self.missed = 0

    def __call__(self, P: UInt8[Array, "h w"]) -> UInt8[Array, "u v"]:
        """255 on the subject, roughly, from the next picture's person probabilities."""
        h, w = P.shape
        small = cv2.resize(P, (max(1, round(w / COARSER)), max(1, round(h / COARSER))), interpolation=cv2.INTER_AREA)
        persons = small > 127
        found = _subject(persons, self.where)
        if not found.any() and self.missed >= PATIENCE:
            found = _subject(persons, None)
        self.missed = 0 if found.any() else self.missed + 1
        if found.any() or self.where is None:
            self.where = 255 * found.astype(np.uint8)
        return self.where


def reconsidered(
    picture: UInt8[Array, "h w 3"],
    alpha: UInt8[Array, "h w"],
    P: UInt8[Array, "h w"] | None,
    room: Background | None,
    band: Bool[Array, "h w"],
    own: Float[Array, "n 3"],
    expected: Float[Array, "h w"],
    radius: int,
) -> UInt8[Array, "h w"]:
    """A finished matte anew within `band` round its outline, by the subject's `own` colour at its pixels (row by row, 8-bit levels) and the
    alpha that somebody who knows all the pictures expects there."""
    free = ~band & (alpha < 128)
    if not free.any():
        return alpha
    known = None if room is None else known_room(room, exposure(picture, room, _surely_free(picture, P, room)), band)
    behind = colour_behind(picture, free, known, radius // 2, np.nonzero(band))
    found = unmixed_with(picture, alpha.astype(np.float32) / 255, band, own, expected, behind, radius)
    return np.round(found * 255).astype(np.uint8)


def known_room(room: Background, gain: Float[Array, "3"], band: Bool[Array, "h w"]) -> Float[Array, "n 3"]:
    """The room's colours at the band's pixels, row by row, in a picture of that exposure; NaN where they are not known."""
    return np.where(room.known[band][:, None], as_exposed(room.colour[band], gain), np.nan)


def expected(silhouette: Bool[Array, "h w"]) -> Float[Array, "h w"]:
    """Log odds of the subject by what the tracked template covers.

    Inside there is the subject, also where it has the room's colour (a chin in front of bricks). Just outside there may be hair and
    clothes that the template lacks; farther off other evidence is needed.
    """
    inside = silhouette.astype(np.uint8)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
    unit = np.sqrt(max(float(silhouette.sum()), 1.0)) / 300
    return np.where(depth > 0, WITHIN * (depth / (NEAR * unit)).clip(0, 1), -BEYOND * (-depth / (FAR * unit)).clip(0, 1)).astype(np.float32)


def _surely_free(picture: Array, P: UInt8[Array, "h w"] | None, room: Background | None) -> Bool[Array, "h w"]:
    """Pixels far from any person; without a network those that look like the room already."""
    if P is not None:
        return cv2.dilate(P, np.ones((15, 15), np.uint8)) < SURE_ROOM
    assert room is not None
    return largest(np.abs(picture.astype(np.float32) - room.colour)) < 25


def _subject(mask: Bool[Array, "h w"], previous: UInt8[Array, "u v"] | None) -> Bool[Array, "h w"]:
    """Of the connected parts the one that overlaps `previous` most, or nothing if none does; without a `previous` the largest. Without
    holes and specks."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    number, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    if number < 2:
        return np.zeros_like(mask)
    area = stats[1:, cv2.CC_STAT_AREA].astype(float)
    if previous is not None and previous.any():
        previous = cv2.resize(previous, mask.shape[::-1], interpolation=cv2.INTER_NEAREST)
        overlap = np.bincount(labels.ravel(), weights=(previous > 127).ravel().astype(float), minlength=number)[1:]
        if not overlap.any():
            return np.zeros_like(mask)
        score = overlap + 0.01 * area
    else:
        score = area
    main = labels == 1 + int(score.argmax())
    return fill_holes(main, int(0.004 * mask.size))


def fill_holes(mask: Bool[Array, "h w"], largest: int) -> Bool[Array, "h w"]:
    """Fill holes of at most `largest` pixels; larger ones are real, as between arm and body."""
    number, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] <= largest
    small[0] = False
    h, w = mask.shape
    x, y = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
    touches = (x == 0) | (y == 0) | (x + stats[:, cv2.CC_STAT_WIDTH] == w) | (y + stats[:, cv2.CC_STAT_HEIGHT] == h)
    return mask | (small & ~touches)[labels]


def border(solid: Bool[Array, "h w"], radius: int) -> Bool[Array, "h w"]:
    """Pixels within `radius` of the border of the subject."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    full = solid.astype(np.uint8)
    return cv2.dilate(full, kernel) != cv2.erode(full, kernel)


def guided_filter(picture: UInt8[Array, "h w 3"], p: Float[Array, "h w"], radius: int = 2, eps: float = 1e-3) -> Float[Array, "h w"]:
    """Edge-aware smoothing of `p` along the edges of the picture (He et al. 2013, with a colour guide).

    The linear model is fitted at half resolution (He and Sun 2015), `radius` counts its pixels.
    """
    full = picture.astype(np.float32) / 255
    h, w = p.shape
    half = (max(1, w // 2), max(1, h // 2))
    guide = cv2.resize(full, half, interpolation=cv2.INTER_AREA)
    p = cv2.resize(p.astype(np.float32), half, interpolation=cv2.INTER_AREA)
    size = (2 * radius + 1, 2 * radius + 1)

    def mean(x: Array) -> Array:
        return cv2.boxFilter(x, -1, size)

    mean_I, mean_p = mean(guide), mean(p)
    cross = mean(guide * p[..., None]) - mean_I * mean_p[..., None]
    outer = np.stack([guide[..., i] * guide[..., j] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))], -1)
    xx = np.concatenate([mean(outer[..., :3]), mean(outer[..., 3:])], -1)
    a = _solve3(xx, mean_I, cross, eps)
    b = mean_p - (a * mean_I).sum(-1)
    a, b = (cv2.resize(x, (w, h), interpolation=cv2.INTER_LINEAR) for x in (mean(a), mean(b)))
    return (np.einsum("hwc,hwc->hw", a, full) + b).clip(0.0, 1.0)


def _solve3(xx: Float[Array, "h w 6"], m: Float[Array, "h w 3"], cross: Float[Array, "h w 3"], eps: float) -> Float[Array, "h w 3"]:
    """Solve (covariance + eps) a = cross per pixel, in closed form."""
    rr, rg, rb, gg, gb, bb = np.moveaxis(xx, -1, 0)
    r, g, b = np.moveaxis(m, -1, 0)
    rr, rg, rb = rr - r * r + eps, rg - r * g, rb - r * b
    gg, gb, bb = gg - g * g + eps, gb - g * b, bb - b * b + eps
    irr, irg, irb = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    igg, igb, ibb = rr * bb - rb * rb, rb * rg - rr * gb, rr * gg - rg * rg
    det = irr * rr + irg * rg + irb * rb
    x, y, z = np.moveaxis(cross, -1, 0)
    return np.stack([irr * x + irg * y + irb * z, irg * x + igg * y + igb * z, irb * x + igb * y + ibb * z], -1) / det[..., None]


def matte_quality(alphas: UInt8[Array, "N h w"], coarse: UInt8[Array, "N h w"] | None) -> MatteQuality:
    """Figures of finished mattes."""
    rows = []
    before = None
    for i, alpha in enumerate(alphas):
        hard = alpha > 127
        soft = ((alpha > 25) & (alpha < 230)).sum() / max(1, hard.sum())
        agree = 1.0 if coarse is None else iou(hard, coarse[i] > 127)
        steady = 1.0 if before is None else iou(hard, before)
        edge = np.concatenate([hard[:, 0], hard[:, -1], hard[0]])
        rows.append((hard.mean(), soft, agree, steady, edge.mean()))
        before = hard
    return MatteQuality(*np.array(rows, dtype=np.float64).T)


def iou(a: Bool[Array, "*s"], b: Bool[Array, "*s"]) -> float:
    union = int((a | b).sum())
    return 1.0 if union == 0 else float((a & b).sum() / union)


def user_mattes(directory: Path) -> list[Path]:
    """The user's matte files in order. Raises `FootageError`."""
    from threevp_nerfstudio.tracking.video import PICTURES

    if not directory.is_dir():
        raise FootageError(
            f"--mattes {directory} is no folder; give a folder with one grey picture per picture of the video, 255 on the subject."
        )
    files = sorted(p for p in directory.iterdir() if p.suffix.lower() in PICTURES)
    if not files:
        raise FootageError(f"--mattes {directory} holds no pictures; one grey picture per picture of the video is expected.")
    return files


def read_matte(file: Path) -> UInt8[Array, "H W"]:
    """A grey picture, or the alpha of one that has it. Raises `FootageError`."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return np.array(picture.getchannel("A") if "A" in picture.getbands() else picture.convert("L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FootageError(f"{file} is not a readable matte ({error}); write it again.") from error


def learn_room(rgb: UInt8[Array, "K h w 3"], P: UInt8[Array, "K h w"]) -> Background:
    """The room behind diverse pictures; what the first mattes free is looked at again, and then what is beside the subject."""

    def mattes(room: Background) -> UInt8[Array, "K h w"]:
        return np.stack(list(shared(range(len(rgb)), lambda: lambda i: refine(rgb[i], P[i], room, None))))

    room = learn_background(rgb, mattes(learn_background(rgb, P)))
    return look_closer(room, rgb, P, mattes(room))
