"""The clock of the tracked performance: play, pause, step, loop, speed. No threads, no wall clock: time is handed in."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

SPEEDS = ("0.25x", "0.5x", "1x", "2x")


class Timeline:
    """Position within a performance, 0 to 1 as nerfstudio's `times` count it.

    Args:
        times: of the tracked frames, ascending, 0 to 1.
        duration: seconds of the whole performance.
    """

    def __init__(self, times: Sequence[float], duration: float) -> None:
        self.times = list(times)
        self.duration = max(duration, 1e-6)
        self.position = self.times[0]
        self.playing = False
        self.loop = True
        self.speed = 1.0

    @property
    def seconds(self) -> float:
        return self.position * self.duration

    def seek(self, position: float) -> None:
        """Go to a position; beyond the ends it holds."""
        self.position = min(max(position, self.times[0]), self.times[-1])

    def advance(self, seconds: float) -> bool:
        """Let time pass; whether the position moved. At the end it starts anew, or stops where it does not loop."""
        if not self.playing:
            return False
        start, end = self.times[0], self.times[-1]
        position = self.position + seconds * self.speed / self.duration
        if position >= end:
            if self.loop and end > start:
                position = start + (position - start) % (end - start)
            else:
                position, self.playing = end, False
        moved, self.position = position != self.position, position
        return moved

    def play(self) -> None:
        """From the start again, if it stands at the end."""
        if self.position >= self.times[-1]:
            self.position = self.times[0]
        self.playing = True

    def pause(self) -> None:
        self.playing = False

    def step(self, frames: int) -> None:
        """To the next (+1) or previous (-1) tracked frame; pauses."""
        self.playing = False
        tolerance = 1e-6
        for _ in range(abs(frames)):
            if frames > 0:
                i = min(bisect_right(self.times, self.position + tolerance), len(self.times) - 1)
            else:
                i = max(bisect_left(self.times, self.position - tolerance) - 1, 0)
            self.position = self.times[i]
