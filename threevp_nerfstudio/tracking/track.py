"""Pose and expression in every picture, by analysis by synthesis against the fitted template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from threevp_nerfstudio.tracking.fit import Progress
from threevp_nerfstudio.tracking.fitted import FittedTemplate
from threevp_nerfstudio.tracking.footage import Footage
from threevp_nerfstudio.tracking.trajectory import Track

__all__ = ["Track", "TrackOptions", "track"]


@dataclass(frozen=True)
class TrackOptions:
    """How pictures are tracked."""

    working_size: int = 256
    """Longer side of the pictures that are tracked, pixels."""
    backward_pass: bool = True
    """Go over the pictures once more from the end, each drawn to the estimates on both sides of it."""


def track(
    footage: Footage,
    fitted: FittedTemplate,
    options: TrackOptions,
    resume: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Track:
    """Track all pictures of the footage. With `resume`, the state is kept in that .npz every few seconds and taken up from it.

    Raises `TrackError`.
    """
    raise NotImplementedError
