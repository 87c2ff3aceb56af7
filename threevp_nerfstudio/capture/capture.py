"""A tracked portrait capture (docs/capture_format.md), loaded strictly: what is wrong is refused, never repaired."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from threevp_nerfstudio.body.template import Motion, RiggedTemplate
from threevp_nerfstudio.capture.frames import Frames, read_frames, yaw_deg
from threevp_nerfstudio.capture.pictures import check_pictures as _check_pictures
from threevp_nerfstudio.capture.pictures import read_rgba
from threevp_nerfstudio.capture.rig_files import load_motion, load_template
from threevp_nerfstudio.errors import CaptureError

__all__ = ["Capture", "Frames", "load_capture", "load_motion", "load_template", "read_rgba", "yaw_deg"]


@dataclass(frozen=True)
class Capture:
    """A capture folder in memory, without its pictures: those are read by `read_rgba(capture.frames, i)`."""

    directory: Path
    """Absolute."""
    template: RiggedTemplate
    motion: Motion
    frames: Frames
    fps: float


def load_capture(directory: Path | str, check_pictures: bool = True) -> Capture:
    """Load and check a capture folder.

    `check_pictures` also opens the header of every picture and matte (3,000 take about a second) and decodes a few.
    Raises `CaptureError`, which names the file, what was seen and the remedy.
    """
    directory = Path(directory).expanduser().absolute()
    frames, fps = read_frames(directory)
    template = load_template(directory / "template.npz")
    motion = load_motion(directory / "motion.npz", template)
    outside = np.flatnonzero(frames.motion_index >= len(motion))
    if len(outside):
        i = int(outside[0])
        raise CaptureError(
            f"{directory / 'transforms.json'}: frames[{i}] has motion_index {frames.motion_index[i]}, but motion.npz "
            f"has {len(motion)} rows (0 to {len(motion) - 1}); the two files must come from one export."
        )
    if check_pictures:
        _check_pictures(frames)
    return Capture(directory=directory, template=template, motion=motion, frames=frames, fps=fps)
