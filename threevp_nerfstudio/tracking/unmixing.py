"""Alpha of half-covered pixels by unmixing: what share of the subject's and of the room's colour explains what is seen.

A pixel at the border shows alpha F + (1 - alpha) B, in linear light: a camera's pixel sums up light before the tone curve is applied
(by signals alone, dark hair that covers half of a pixel before a bright wall seems to cover a third). The room's colour B is known from
the video, or taken from the nearest pixel that is surely room; the subject's colour F is one of several pixels nearby that are surely
subject, the one that explains the pixel best. Where both colours are alike, or no pair explains the pixel (hair in front of skin), the
caller's own guess stands.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.tracking.srgb import srgb_decode, srgb_encode, srgb_slope

ALIKE = 12.0
"""Distance of two colours, in 8-bit levels, at which unmixing has half of the say."""
UNEXPLAINED = 18.0
"""Distance of a pixel from the mixture of both colours, in 8-bit levels, that takes the say from it."""
SEEN_WITHIN, EXPLAINED_WITHIN = 12.0, 25.0
"""8-bit levels by which the mixture of known colours is off what is seen, and from which it is no explanation."""
EXPECTED_WITHIN, EVEN_WHERE_SURE = 0.4, 0.2
"""Deviation of an expected alpha of one half, and the share of it that is left where 0 or 1 is expected."""
OFF_AT_MOST, OFF_FADES = 0.35, 0.15
"""Share of a stretch of the band in which the outline expected is another than that of the matte (a width apart makes one half), and the
share below it over which trust in it grows."""
SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
"""Where else to look for the subject's colour, in radii of the band."""
Pixels = tuple[Int[Array, "n"], Int[Array, "n"]]
"""Rows and columns."""


class Mixture:
    """What pixels show between two colours, 8-bit levels: sums in linear light, differences in levels, in which noise is even."""

    def __init__(self, seen: Float[Array, "n 3"], own: Float[Array, "n 3"], behind: Float[Array, "n 3"]) -> None:
        self.seen, self.behind = seen, srgb_decode(behind / 255)
        self.apart = srgb_decode(own / 255) - self.behind
        light = srgb_decode(seen / 255)
        slope = 255 * srgb_slope(light)  # levels per light at what is seen
        of_seen, of_apart = slope * (light - self.behind), slope * self.apart
        self.told = (of_seen * of_apart).sum(-1)
        self.span = (of_apart**2).sum(-1)
        """Right side and weight of the least squares for the share of the subject; the latter in levels squared."""

    def left(self, share: Float[Array, "n"]) -> Float[Array, "n"]:
        """Squared distance of what is seen from the mixture, levels."""
        return ((self.seen - 255 * srgb_encode(self.behind + share[..., None] * self.apart)) ** 2).sum(-1)


def nearest_colour(
    picture: Shaped[Array, "h w 3"], sure: Bool[Array, "h w"], smooth: int, pixels: Pixels
) -> Float[Array, "n 3"]:
    """Of each of some pixels, the colour at the nearest sure pixel, a mean over the sure pixels within `smooth` of it."""
    size, weight = (2 * smooth + 1, 2 * smooth + 1), sure.astype(np.uint8)

    def total(x: Array) -> Array:
        return cv2.boxFilter(x, cv2.CV_32F, size, normalize=False, borderType=cv2.BORDER_CONSTANT)

    _, labels = cv2.distanceTransformWithLabels(1 - weight, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    places = np.flatnonzero(sure)
    pixel_of = np.zeros(len(places) + 1, dtype=np.int64)
    pixel_of[labels.ravel()[places]] = places
    nearest = pixel_of[labels[pixels]]
    number = total(weight).ravel()[nearest]
    return total(picture * weight[..., None]).reshape(-1, 3)[nearest] / np.maximum(number, 1e-6)[:, None]


def colour_behind(
    picture: UInt8[Array, "h w 3"], free: Bool[Array, "h w"], room: Float[Array, "n 3"] | None, radius: int, pixels: Pixels
) -> Float[Array, "n 3"]:
    """The room's colour at some pixels: `room` where that is known (not NaN), else that of the nearest `free` pixels."""
    near = nearest_colour(picture, free, radius, pixels)
    return near if room is None else np.where(np.isfinite(room).all(-1, keepdims=True), room, near)


def unmixed(
    picture: UInt8[Array, "h w 3"],
    band: Bool[Array, "h w"],
    solid: Bool[Array, "h w"],
    guess: Float[Array, "h w"],
    room: Float[Array, "n 3"] | None,
    radius: int,
) -> Float[Array, "h w"]:
    """Alpha, 0 to 1, within `band`; `guess` elsewhere and where colours do not tell.

    Args:
        solid: the subject, roughly.
        room: colour of the room at the band's pixels, row by row, NaN where it is not known, in 8-bit levels.
        radius: half-width of the band, pixels.
    """
    subject, free = solid & ~band, ~solid & ~band
    if not (band.any() and subject.any() and free.any()):
        return guess
    h, w = band.shape
    y, x = np.nonzero(band)
    seen = picture[y, x].astype(np.float32)
    B = colour_behind(picture, free, room, radius, (y, x))
    beside = [((y + 2 * radius * dy).clip(0, h - 1), (x + 2 * radius * dx).clip(0, w - 1)) for dx, dy in SHIFTS]
    of_subject = nearest_colour(picture, subject, 1, tuple(np.concatenate(part) for part in zip(*beside, strict=True)))
    best = np.full(len(y), np.inf, np.float32)
    alpha, apart, unexplained = np.zeros((3, len(y)), np.float32)
    for F in np.split(of_subject, len(SHIFTS)):
        mixture, span = Mixture(seen, F, B), ((F - B) ** 2).sum(-1)
        share = (mixture.told / np.maximum(mixture.span, 1.0)).clip(0.0, 1.0)
        left = mixture.left(share)
        cost = left + ALIKE**2 * np.exp(-span / ALIKE**2)  # a colour like the room's explains anything and tells nothing
        better = cost < best
        best = np.where(better, cost, best)
        alpha, apart, unexplained = (np.where(better, *x) for x in ((share, alpha), (span, apart), (left, unexplained)))
    say = apart / (apart + ALIKE**2) * np.exp(-unexplained / (2 * UNEXPLAINED**2))
    out = guess.astype(np.float32).copy()
    out[y, x] = say * alpha + (1 - say) * guess[y, x]
    return out


def unmixed_with(
    picture: UInt8[Array, "h w 3"],
    alpha: Float[Array, "h w"],
    band: Bool[Array, "h w"],
    own: Float[Array, "n 3"],
    expected: Float[Array, "h w"],
    behind: Float[Array, "n 3"],
    radius: int,
) -> Float[Array, "h w"]:
    """Alpha, 0 to 1, within `band`, where the subject's own colour is known as well as the room's, and an alpha is expected; beyond the
    band `alpha` cut at one half.

    What is seen counts against what is expected: by how far the two colours are apart, and little where the expectation is sure. A pixel
    that no mixture of the two explains is as expected, if the expectation has its outline near that of `alpha`, and stays as it was
    otherwise (a hand before the body, which nobody expects).

    Args:
        own, behind: colours of subject and room at the band's pixels, row by row, 8-bit levels.
        radius: half-width of the band, pixels.
    """
    solid = (alpha > 0.5).astype(np.float32)
    y, x = np.nonzero(band)
    mixture, guess = Mixture(picture[y, x].astype(np.float32), own, behind), expected[y, x]
    spread = EXPECTED_WITHIN * (2 * np.sqrt((guess * (1 - guess)).clip(0.0)) + EVEN_WHERE_SURE)
    weight = (SEEN_WITHIN / spread) ** 2
    share = ((mixture.told + weight * guess) / (mixture.span + weight)).clip(0.0, 1.0)
    explained = np.exp(-mixture.left(share) / (2 * EXPLAINED_WITHIN**2))
    size = (4 * radius + 1, 4 * radius + 1)
    inside = band.astype(np.float32)
    off = cv2.boxFilter(np.abs(expected - solid) * inside, -1, size) / np.maximum(cv2.boxFilter(inside, -1, size), 1e-4)
    agrees = ((OFF_AT_MOST - off[y, x]) / OFF_FADES).clip(0.0, 1.0)
    otherwise = agrees * guess + (1 - agrees) * alpha[y, x]
    out = solid
    out[y, x] = explained * share + (1 - explained) * otherwise
    return out
