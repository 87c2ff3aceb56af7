"""The room behind the subject, learned from the video itself: the camera stands still, so what is uncovered comes back.

`P` are coarse person probabilities of a segmentation network (uint8, 255 = person). They are wrong where the room looks
like a person; what they take for a person but what is there unchanged whenever nothing moves before it, is room all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.tracking.store import read_arrays, write_arrays
from threevp_nerfstudio.workers import shared

LOW_RESOLUTION = 128
FREE_BELOW = 40
"""Person probability (of 255) below which a pixel may be room."""
MARGIN = 0.02
"""Share of the picture's size that is kept clear of possible person."""
STILL = 0.3
"""Share of the subject's core that keeps its colour in half of the pictures when the subject sits still."""
CLEAR = 0.008
"""Share of the picture's size that is kept clear of a finished matte."""
COVERED, SURE_PERSON = 20, 230
"""Alpha (of 255) from which a pixel may be the subject, and person probability from which it is."""
STEADY = 4.0
"""8-bit levels of deviation up to which a colour counts as always the same."""
UNSTEADY, UNSTEADY_TIMES = 8.0, 3.0
"""8-bit levels of deviation from which a colour is none of the room's, and as many times the usual deviation (of a picture whose exposure
drifts)."""
SAME = 8.0
"""8-bit levels by which a pixel that shows the room is off it at most ..."""
CONTRADICTED = 0.25
"""... and the share of the pictures with surely a person there that may show the room's colour. Where it is more, the network took a
part of the subject (a back without a face above it) for room in others."""
AMONG, MOSTLY = 0.03, 0.3
"""Share of the picture's size round a pixel, and the share of the pixels there that are doubted, from which it is, too."""
NOISE_FLOOR = 1.5
"""8-bit levels; codecs leave at least that."""


@dataclass(frozen=True)
class Background:
    """Colours of the empty room."""

    colour: Float[Array, "h w 3"]
    known: Bool[Array, "h w"]
    noise: Float[Array, "h w"]
    """Standard deviation in 8-bit levels."""
    usual: Float[Array, "h w"] | None = None
    """Share of the pictures in which the network is sure of a person at a pixel and all round it; None without a network."""

    def save(self, path: Path) -> None:
        """Write an .npz without pickled objects."""
        usual = {} if self.usual is None else {"usual": self.usual.astype(np.float16)}
        write_arrays(path, colour=self.colour.astype(np.float16), known=self.known, noise=self.noise.astype(np.float16), **usual)

    @classmethod
    def load(cls, path: Path) -> Background:
        """Read what `save` wrote. Raises `TrackError`."""
        arrays = read_arrays(path)
        usual = arrays["usual"].astype(np.float32) if "usual" in arrays else None
        return cls(arrays["colour"].astype(np.float32), arrays["known"], arrays["noise"].astype(np.float32), usual)


def from_plate(plate: UInt8[Array, "h w 3"], noise: float = 3.0) -> Background:
    """A picture of the empty room, taken by the user."""
    return Background(
        plate.astype(np.float32), np.ones(plate.shape[:2], dtype=bool), np.full(plate.shape[:2], noise, dtype=np.float32)
    )


def diverse(thumbs: UInt8[Array, "N t u 3"], count: int) -> Int[Array, "K"]:
    """Pictures that differ most from each other, in order of time: they show different parts of the room."""
    x = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    chosen = [0]
    distance = np.abs(x - x[0]).mean(1)
    while len(chosen) < min(count, len(x)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.abs(x - x[chosen[-1]]).mean(1))
    return np.unique(chosen)


def learn_background(rgb: UInt8[Array, "K h w 3"], P: UInt8[Array, "K h w"]) -> Background:
    """From diverse pictures and their person probabilities."""
    _, h, w = P.shape
    margin = 2 * int(MARGIN * max(h, w)) + 1
    kernel = np.ones((margin, margin), np.uint8)
    free = np.stack([cv2.dilate((p >= FREE_BELOW).astype(np.uint8), kernel) == 0 for p in P])
    colour, noise, count = _statistics(rgb, free)
    seen = count >= max(3, len(P) // 16)
    doubted = _doubted(seen, rgb, P, colour, noise)
    known = seen & ~doubted
    static = unmoved(rgb, P, colour, known, doubted)
    if static.any():
        up = np.stack([cv2.resize(s.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST) > 0 for s in static])
        more, more_noise, more_count = _statistics(rgb, up & ~known)
        new = (more_count >= 3) & ~known & ~doubted & (more_noise <= UNSTEADY)
        colour[new], noise[new] = more[new], more_noise[new]
        known = known | new
    return Background(colour, known, np.maximum(noise, NOISE_FLOOR))


def _doubted(
    seen: Bool[Array, "h w"], rgb: UInt8[Array, "K h w 3"], P: UInt8[Array, "K h w"], colour: Float[Array, "h w 3"],
    noise: Float[Array, "h w"],
) -> Bool[Array, "h w"]:  # fmt: skip
    """Pixels that were seen free and are the subject's all the same: free, they do not always show one colour, or they also show it where
    there is surely a person. With them goes what lies among them."""
    if not seen.any():
        return seen
    wrong = seen & (noise > max(UNSTEADY, UNSTEADY_TIMES * float(np.median(noise[seen]))))
    sure, same, shown = np.zeros(seen.shape, np.float32), np.zeros(seen.shape, np.float32), np.where(seen[..., None], colour, 0.0)
    for picture, p in zip(rgb, P, strict=True):
        person = p >= SURE_PERSON
        sure += person
        same += person & (largest(np.abs(picture.astype(np.float32) - shown)) < SAME)
    wrong |= seen & (same > CONTRADICTED * sure)
    size = 2 * int(AMONG * max(seen.shape)) + 1
    share = cv2.blur(wrong.astype(np.float32), (size, size)) / np.maximum(cv2.blur(seen.astype(np.float32), (size, size)), 1e-3)
    return seen & (wrong | (share > MOSTLY))


def look_closer(
    room: Background, rgb: UInt8[Array, "K h w 3"], P: UInt8[Array, "K h w"], mattes: UInt8[Array, "K h w"]
) -> Background:
    """Learn what is still unknown right beside the subject, where the network's wide margin never lets anything count as free.

    A pixel counts as room while a finished matte ends some pixels away, unless the network is sure of a person; and only
    if it then always has the same colour, which a subject that moves does not have.
    """
    clear, margin = max(3, round(CLEAR * max(room.known.shape))), 2 * int(MARGIN * max(room.known.shape)) + 1
    kernel = np.ones((2 * clear + 1, 2 * clear + 1), np.uint8)
    free = np.stack([cv2.dilate((m >= COVERED).astype(np.uint8), kernel) == 0 for m in mattes])
    colour, noise, count = _statistics(rgb, free & (P < SURE_PERSON) & ~room.known)
    new = ~room.known & (count >= 3) & (noise < STEADY)
    new &= ~_doubted(new, rgb, P, colour, noise)
    usual = cv2.erode(np.mean([p >= SURE_PERSON for p in P], axis=0, dtype=np.float32), np.ones((margin, margin), np.uint8))
    return Background(
        np.where(new[..., None], colour, room.colour),
        room.known | new,
        np.where(new, np.maximum(noise, NOISE_FLOOR), room.noise),
        usual,
    )


def _statistics(
    rgb: UInt8[Array, "K h w 3"], use: Bool[Array, "K h w"]
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"], Int[Array, "h w"]]:
    """Median colour, robust deviation and number of the samples in use, in strips of rows to save memory."""
    _, h, w = use.shape
    colour, noise = np.zeros((h, w, 3), np.float32), np.zeros((h, w), np.float32)
    count = use.sum(0)
    strips = [slice(a, a + 32) for a in range(0, h, 32)]

    def strip(rows: slice) -> tuple[Float[Array, "n 3"], Float[Array, "n"]]:
        some = count[rows] > 0
        part = np.ascontiguousarray(np.moveaxis(rgb[:, rows][:, some], 0, -1), dtype=np.float32)  # (n, 3, K)
        part[np.broadcast_to(~use[:, rows][:, some].T[:, None], part.shape)] = np.inf
        middle = _medians(part, count[rows][some])
        return middle, 1.48 * largest(_medians(np.abs(part - middle[..., None]), count[rows][some]))

    for rows, (middle, deviation) in zip(strips, shared(strips, lambda: strip), strict=True):
        some = count[rows] > 0
        colour[rows][some], noise[rows][some] = middle, deviation
    return colour, noise, count


def _medians(x: Float[Array, "n 3 K"], count: Int[Array, "n"]) -> Float[Array, "n 3"]:
    """Of the finite values, of which there are `count`; the others are infinite."""
    ordered, last = np.sort(x, axis=-1), count[:, None, None] - 1
    lower, upper = (np.take_along_axis(ordered, np.broadcast_to(k, (*x.shape[:2], 1)), -1)[..., 0] for k in (last // 2, (last + 1) // 2))
    return (lower + upper) / 2


def largest(x: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
    """Of three values each: several times as fast as `max`."""
    return np.maximum(np.maximum(x[..., 0], x[..., 1]), x[..., 2])


def unmoved(
    rgb: UInt8[Array, "K h w 3"], P: UInt8[Array, "K h w"], colour: Float[Array, "h w 3"], known: Bool[Array, "h w"],
    doubted: Bool[Array, "h w"],
) -> Bool[Array, "K t u"]:  # fmt: skip
    """Per sample, at low resolution, where things stand that the network takes for a person but that never move.

    A pixel has such a thing when one exact colour returns again and again; it counts as room when its neighbours are seen to
    be room at the same time (a dark jacket also keeps its colour, but then its neighbours are covered). Grows inwards from
    the room that is known.
    """
    h, w = known.shape
    scale = min(1.0, LOW_RESOLUTION / max(h, w))
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    S = np.stack([cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in rgb]).astype(np.float32)
    B = cv2.resize(colour, size, interpolation=cv2.INTER_AREA)
    K = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.9
    doubt = cv2.resize(doubted.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.1
    tolerance = 6.0
    empty = (largest(np.abs(S - B)) < tolerance + 2) & K
    best, reference = np.zeros(K.shape, int), np.zeros_like(B)
    for candidate in S:
        support = (largest(np.abs(S - candidate)) < tolerance).sum(0)
        better = support > best
        best[better], reference[better] = support[better], candidate[better]
    if not _turns(P, best, size):
        return np.zeros((len(S), *K.shape), dtype=bool)
    returns = ~K & ~doubt & (best >= 0.15 * len(S)) & (best <= 0.97 * len(S))
    state = (largest(np.abs(S - reference)) < tolerance) & returns
    accepted = np.zeros_like(returns)
    shown = empty & K  # samples in which a pixel of the room, as far as it is known, is uncovered
    inside = K
    for _ in range(max(size)):
        near = (cv2.dilate(inside.astype(np.uint8), CROSS) > 0) & returns & ~inside
        if not near.any():
            break
        around = np.stack([_neighbours(s) for s in shown])
        of = _neighbours(inside)
        together = (state * around).sum(0) / (state * of).sum(0).clip(1.0)
        new = near & (together > 0.7)
        if not new.any():
            break
        accepted |= new
        inside = inside | new
        shown |= state & new
    return state & accepted


def _turns(P: UInt8[Array, "K h w"], best: Int[Array, "t u"], size: tuple[int, int]) -> bool:
    """Whether the subject turns: then what is always covered by it changes its colour all the time.

    An arm that rests looks like a thing of the room; of a subject who sits still nothing can be told by standing still.
    `best` is in how many samples a pixel shows one and the same colour.
    """
    core = np.stack([cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in P]).mean(0) > 0.85 * 255
    return bool(core.any()) and float((best[core] >= 0.5 * len(P)).mean()) < STILL


ENOUGH_FOR_EXPOSURE = 8000
"""Pixels, spread over the picture, whose median tells its exposure."""
CROSS = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], np.uint8)


def _neighbours(mask: Bool[Array, "t u"]) -> Float[Array, "t u"]:
    """How many of the 24 pixels round each one are set."""
    return 25 * cv2.boxFilter(mask.astype(np.float32), -1, (5, 5), borderType=cv2.BORDER_CONSTANT)


def exposure(picture: UInt8[Array, "h w 3"], room: Background, free: Bool[Array, "h w"]) -> Float[Array, "3"]:
    """By what a picture is brighter than the room as it was learned, where it is surely room; see `as_exposed`."""
    use = np.flatnonzero(free & room.known)
    if len(use) <= 100:
        return np.ones(3, np.float32)
    use = use[:: 1 + len(use) // ENOUGH_FOR_EXPOSURE]
    seen, empty = (x.reshape(-1, 3)[use].astype(np.float32) for x in (picture, room.colour))
    return (np.median(seen + 8, axis=0) / np.median(empty + 8, axis=0)).clip(0.5, 2.0)


def as_exposed(colour: Float[Array, "*n 3"], gain: Float[Array, "3"]) -> Float[Array, "*n 3"]:
    """The room's colours in a picture with that exposure."""
    return (colour + 8) * gain - 8


def evidence(picture: UInt8[Array, "h w 3"], room: Background, gain: Float[Array, "3"]) -> Float[Array, "h w"]:
    """Log likelihood ratio of subject against room per pixel, in [-6, 4]. Where the room is not known, there is nearly always the
    subject, or one cannot tell (0): a network that sees a person in front and misses its back is outvoted by its own other pictures.

    A shadow (darker by up to 45 %, same hue) speaks for the subject only weakly. `gain`: the picture's `exposure`.
    """
    C, B = picture.astype(np.float32), as_exposed(room.colour, gain)
    sigma = 1.5 * room.noise + 1.0
    off = squared_norm(cv2.blur(C - B, (3, 3))) / sigma**2
    BB, CB = squared_norm(B), np.einsum("hwc,hwc->hw", C, B)
    darker = (CB / np.maximum(BB, 1.0)).clip(0.55, 1.0)
    hue = squared_norm(C) - 2 * darker * CB + darker**2 * BB  # |C - darker B|^2
    shadow = (darker < 0.97) & (hue < 9.0 * sigma**2)
    ratio = (off / 3 - 6.0).clip(-6.0, 4.0)
    ratio = np.where(shadow, np.minimum(ratio, 0.5), ratio)
    return np.where(room.known, ratio, _usually(room)).astype(np.float32)


def _usually(room: Background) -> Float[Array, "h w"] | float:
    """Log odds, from 0 on, of the subject where it is in most pictures."""
    if room.usual is None:
        return 0.0
    share = room.usual.clip(0.5, 0.98)
    return np.log(share / (1 - share))


def squared_norm(x: Float[Array, "h w 3"]) -> Float[Array, "h w"]:
    return np.einsum("hwc,hwc->hw", x, x)
