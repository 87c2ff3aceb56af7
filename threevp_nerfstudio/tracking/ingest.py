"""The first stage: videos to stored pictures of one size, with their times, and where the camera cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.errors import FootageError
from threevp_nerfstudio.tracking.store import PictureWriter, check_space
from threevp_nerfstudio.tracking.video import Clip, Picture, pictures, resized

Progress = Callable[[str, int, int], None]
THUMB = 32
CUT = 14.0
"""8-bit levels by which the median of the picture's border changes at a cut."""
JUMP = 12.0
"""8-bit levels of change from one picture to the next that are no motion, while the border stays."""


@dataclass(frozen=True)
class Source:
    """A clip and the part of it that is taken."""

    clip: Clip
    start: float = 0.0
    end: float | None = None
    stride: int = 1

    def expected(self) -> int:
        """Pictures to come, roughly."""
        span = (self.clip.duration or 60.0) if self.end is None else min(self.end, self.clip.duration or self.end)
        return max(1, round(max(0.0, span - self.start) * self.clip.fps / self.stride))


@dataclass(frozen=True)
class Geometry:
    """How a stored picture was cut out of the upright original, and scaled."""

    original: tuple[int, int]
    """Width and height of the original."""
    crop: tuple[int, int, int, int]
    """Left, top, width, height in the original."""
    size: tuple[int, int]
    """Width and height as stored."""

    @property
    def scale(self) -> float:
        """Stored pixels per original pixel."""
        return self.size[0] / self.crop[2]

    def apply(self, picture: UInt8[Array, "H W *c"]) -> UInt8[Array, "h w *c"]:
        x, y, w, h = self.crop
        return resized(picture[y : y + h, x : x + w], *self.size)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Geometry:
        return cls(*(tuple(content[name]) for name in ("original", "crop", "size")))


@dataclass(frozen=True)
class Ingested:
    """What was stored. Arrays have a row per picture."""

    times: Float[Array, "N"]
    """Seconds from the first picture's clip start; a second clip goes on where the first one ends."""
    clip: Array
    """Which source each picture is from."""
    first: int
    """The pictures from here ..."""
    last: int
    """... to here (not included) are one shot, and are tracked."""
    geometry: Geometry
    has_alpha: bool
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {"first": self.first, "last": self.last, "geometry": asdict(self.geometry), "has_alpha": self.has_alpha, "notes": self.notes}


def plan_geometry(clip: Clip, longest: int, crop: tuple[int, int, int, int] | None) -> Geometry:
    """Stored size for a crop (whole picture by default): longer side at most `longest`, even numbers. Raises `FootageError`."""
    x, y, w, h = crop or (0, 0, clip.width, clip.height)
    if x < 0 or y < 0 or w < 16 or h < 16 or x + w > clip.width or y + h > clip.height:
        raise FootageError(
            f"--crop {x} {y} {w} {h} (left, top, width, height) does not lie in the picture of {clip.width}x{clip.height}."
        )
    scale = min(1.0, longest / max(w, h))
    return Geometry((clip.width, clip.height), (x, y, w, h), (2 * round(w * scale / 2), 2 * round(h * scale / 2)))


def ingest(sources: list[Source], geometry: Geometry, directory: Path, progress: Progress = lambda *_: None) -> Ingested:
    """Decode all sources into `directory` (rgb.npy, given_alpha.npy where pictures bring mattes). Raises `FootageError`."""
    expected = sum(s.expected() for s in sources)
    width, height = geometry.size
    check_space(directory, expected * width * height * 6)  # colours, person probabilities, mattes twice
    notes: list[str] = []
    times, clips, thumbs = [], [], []
    alphas = PictureWriter(directory / "given_alpha.npy", (height, width))
    with PictureWriter(directory / "rgb.npy", (height, width, 3)) as colours, alphas:
        for k, offset, picture in _all(sources, notes, times):
            rgb = geometry.apply(picture.rgb)
            colours.append(rgb)
            if picture.alpha is not None:
                alphas.append(geometry.apply(picture.alpha))
            times.append(picture.time + offset)
            clips.append(k)
            thumbs.append(resized(rgb, THUMB, THUMB))
            progress("reading pictures", len(times), max(expected, len(times)))
    cuts = find_cuts(np.stack(thumbs), np.array(clips), np.array(times), notes)
    first, last = longest_shot(len(times), cuts)
    if cuts:
        shown = ", ".join(f"{times[i]:.2f} s" for i in cuts[:6])
        notes.append(
            f"the camera cuts at {shown}: only the longest shot, {times[first]:.2f} to {times[last - 1]:.2f} s "
            f"({last - first} of {len(times)} pictures), is tracked. Record in one take; --start and --end choose another part."
        )
    return Ingested(
        np.array(times), np.array(clips), first, last, geometry, 0 < alphas.count == len(times), tuple(notes)
    )


def _all(sources: list[Source], notes: list[str], times: list[float]) -> Iterator[tuple[int, float, Picture]]:
    for k, source in enumerate(sources):
        offset = 0.0 if not times else times[-1] + 1.0 / source.clip.fps - source.start
        for picture in pictures(source.clip, notes, source.start, source.end, source.stride):
            yield k, offset, picture


def find_cuts(thumbs: UInt8[Array, "N t t 3"], clips: Array, times: Array, notes: list[str]) -> list[int]:
    """Pictures that begin a new shot: subject and background changed at once. Jumps before the same background are noted."""
    border = np.ones((THUMB, THUMB), dtype=bool)
    border[3:, 5:-5] = False
    cuts, jumps = [], []
    x = thumbs.astype(np.float32)
    brightness = np.median(x[:, border].mean(-1), axis=1).clip(1.0)
    gain = (brightness[1:] / brightness[:-1]).clip(0.6, 1.7)[:, None, None, None]  # exposure may drift or flicker
    change = np.abs(x[1:] - gain * x[:-1]).mean(-1)
    usual = float(np.median(change.mean((1, 2)))) if len(change) else 0.0
    for i, moved in enumerate(change, start=1):
        whole = float(moved.mean())
        if whole < max(JUMP, 6 * usual) or clips[i] != clips[i - 1]:
            continue
        (cuts if float(np.median(moved[border])) > CUT else jumps).append(i)
    if jumps:
        shown = ", ".join(f"{times[i]:.2f} s" for i in jumps[:6])
        notes.append(f"the subject jumps at {shown} before the same background: tracking starts afresh there.")
    return cuts


def longest_shot(count: int, cuts: list[int]) -> tuple[int, int]:
    """First and last (not included) picture of the longest shot."""
    edges = [0, *cuts, count]
    spans = [(b - a, -a) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    length, first = max(spans)
    return -first, -first + length
