"""Cutting pictures to the subject, so that pixels are spent on it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.errors import FootageError
from threevp_nerfstudio.tracking.ingest import Source
from threevp_nerfstudio.tracking.mattes import Segment
from threevp_nerfstudio.tracking.video import pictures, resized
from threevp_nerfstudio.workers import shared

LOOKED_AT = 40
WORTHWHILE = 0.7
"""A crop is made when it leaves less than this share of the picture."""
MARGIN = 0.12
"""Of the subject's size, on all sides."""
LOOK = 384


def parse_crop(text: str) -> tuple[int, int, int, int] | None:
    """`left,top,width,height`; None for `auto` and `none`. Raises `FootageError`."""
    if text in ("auto", "none"):
        return None
    try:
        x, y, w, h = (int(part) for part in text.replace(" ", ",").split(","))
    except ValueError as error:
        raise FootageError(f"--crop {text!r}: auto, none, or left,top,width,height in pixels of the video.") from error
    return x, y, w, h


def automatic_crop(
    sources: list[Source], segmenter: Callable[[], Segment], note: Callable[[str], None]
) -> tuple[int, int, int, int] | None:
    """A crop that holds the subject in all pictures looked at, or None where it would hardly leave anything out. `segmenter` is called
    in a worker process."""
    clip = sources[0].clip
    width, height = clip.width, clip.height
    scale = LOOK / max(width, height)
    looked = []
    for source in sources:
        step = max(1, source.expected() * len(sources) // LOOKED_AT)
        for n, picture in enumerate(pictures(source.clip, [], source.start, source.end, source.stride)):
            if n % step == 0:
                looked.append(resized(picture.rgb, max(2, round(width * scale)), max(2, round(height * scale))))

    def finder() -> Callable[[Array], tuple[int, int, int, int] | None]:
        segment = segmenter()
        return lambda picture: subject_box(segment(picture))

    boxes = [np.array(box) / scale for box in shared(looked, finder, apart=True) if box is not None]
    if len(boxes) < 3:
        return None
    corners = np.array(boxes)
    low, high = np.quantile(corners[:, :2], 0.02, axis=0), np.quantile(corners[:, 2:], 0.98, axis=0)
    margin = MARGIN * float((high - low).max())
    x0, y0 = np.floor(np.maximum(low - margin, 0)).astype(int)
    x1, y1 = np.ceil(np.minimum(high + margin, (width, height))).astype(int)
    if (x1 - x0) * (y1 - y0) > WORTHWHILE * width * height:
        return None
    note(f"pictures are cut to the subject: {x1 - x0}x{y1 - y0} at {x0},{y0} of {width}x{height} (--crop none keeps them whole).")
    return int(x0), int(y0), int(x1 - x0), int(y1 - y0)


def subject_box(P: UInt8[Array, "h w"]) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom of the largest person; None where there is none."""
    import cv2

    number, _, stats, _ = cv2.connectedComponentsWithStats((P > 127).astype(np.uint8), connectivity=4)
    if number < 2:
        return None
    x, y, w, h, area = stats[1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())]
    return (int(x), int(y), int(x + w), int(y + h)) if area > 0.004 * P.size else None
