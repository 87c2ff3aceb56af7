"""Where the turn ends and the performance begins, from when the face is seen and how it is turned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from threevp_nerfstudio.tracking.landmarks import Landmarks, mouth_opening

HIDDEN_FOR = 0.5
"""Seconds without a face that may be the back of the head."""
SIDE = 30.0
"""Degrees of yaw at which a face goes out of sight when the head turns away."""
MOST_STATIC = 0.5
"""Share of a video without a full turn that can be its static part."""


@dataclass(frozen=True)
class Split:
    """The static part: pictures `start` to `end` (not included)."""

    start: int
    end: int
    full_turn: bool
    """The face went out of sight on one side and came back on the other."""
    note: str | None = None

    def mask(self, count: int) -> Bool[Array, "N"]:
        return (np.arange(count) >= self.start) & (np.arange(count) < self.end)


def find_split(landmarks: Landmarks, times: Float[Array, "N"]) -> Split:
    """The first full turn from the video's start; without one, the first sweep with a closed mouth."""
    yaw = np.where(landmarks.score > 0, landmarks.yaw_deg, np.nan)
    seen = np.flatnonzero(np.isfinite(yaw)).tolist()
    for a, b in zip(seen[:-1], seen[1:], strict=True):
        if times[b] - times[a] < HIDDEN_FOR:
            continue
        leaves, comes = _lean(yaw, a, times, -1), _lean(yaw, b, times, +1)
        if abs(leaves) > SIDE and abs(comes) > SIDE and leaves * comes < 0:
            return Split(0, turn_end(yaw, b, len(times)), True)
    return without_turn(landmarks, yaw, times)


def _lean(yaw: Float[Array, "N"], i: int, times: Float[Array, "N"], step: int) -> float:
    """The largest yaw, with its sign, within a quarter of a second of picture `i` on the side of `step`."""
    near = (np.abs(times - times[i]) <= 0.25) & ((np.arange(len(yaw)) - i) * step >= 0) & np.isfinite(yaw)
    return float(yaw[near][np.abs(yaw[near]).argmax()])


def turn_end(yaw: Float[Array, "N"], b: int, count: int) -> int:
    """After the face has come back at `b`: the first picture in which it has turned to the front, or past it."""
    side = np.sign(yaw[b])
    least, best = np.inf, b
    for i in range(b, count):
        if not np.isfinite(yaw[i]):
            continue
        if yaw[i] * side <= 0:
            return i
        if abs(yaw[i]) < least:
            least, best = abs(yaw[i]), i
        elif least < 25.0 and abs(yaw[i]) > least + 10.0:  # it stopped before the front, and turned back
            break
    return min(best + 1, count)


def without_turn(landmarks: Landmarks, yaw: Float[Array, "N"], times: Float[Array, "N"]) -> Split:
    """No full turn: the static part is the first sweep over most of the yaws that are seen while the mouth is closed."""
    count = len(times)
    seen = np.isfinite(yaw)
    if seen.sum() < 2:
        note = "no face was found: the turn cannot be told from the performance. Give --turn-end SECONDS."
        return Split(0, max(1, count // 2), False, note)
    opening = mouth_opening(landmarks.points)
    closed = ~(opening > np.nanquantile(np.where(seen, opening, np.nan), 0.2) + 0.12)
    low, high = np.nanquantile(yaw, 0.05), np.nanquantile(yaw, 0.95)
    reach_low = np.minimum.accumulate(np.where(seen, yaw, np.inf))
    reach_high = np.maximum.accumulate(np.where(seen, yaw, -np.inf))
    swept = (np.minimum(reach_high, high) - np.maximum(reach_low, low)) >= 0.8 * (high - low)
    at_least = int(np.searchsorted(times, times[0] + 1.0))
    end = max(int(swept.argmax()) + 1, at_least)
    talking = np.flatnonzero(~closed)
    if len(talking) and talking[0] >= at_least:
        end = min(end, int(talking[0]))
    end = int(np.clip(end, 1, max(1, int(MOST_STATIC * count))))
    return Split(
        0,
        end,
        False,
        f"no full turn was seen: the head's yaw spans {np.nanmin(yaw):.0f}° to {np.nanmax(yaw):.0f}°. What was never seen stays as "
        "the body model has it. For a whole head, turn once all the way round on the chair, face neutral, before you perform.",
    )


def split_at(times: Float[Array, "N"], seconds: float) -> Split:
    """The turn ends where the user says."""
    end = int(np.clip(np.searchsorted(times, seconds), 1, len(times)))
    return Split(0, end, True)
