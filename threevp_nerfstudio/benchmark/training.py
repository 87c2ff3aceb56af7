"""Training for a given time or number of steps, and PSNR on a fixed sample of held-out pixels meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from threevp_nerfstudio.benchmark.measure import Clock
from threevp_nerfstudio.capture.capture import Capture, read_rgba, yaw_deg
from threevp_nerfstudio.data.dataparser import cameras_of
from threevp_nerfstudio.data.parts import part_boxes
from threevp_nerfstudio.engine.short_training import Trainee
from threevp_nerfstudio.model.metrics import box_mask, subject_mask


@dataclass(frozen=True)
class FramePixels:
    """Some of a frame's pixels, with their rays and colours over white."""

    frame: int
    group: str
    """What the frame stands for: `val` (held-out performance) or `static`."""
    yaw_deg: float
    origins: Tensor
    directions: Tensor
    colours: Tensor
    face: Tensor
    """Which of them lie in the boxes of eyes and mouth, bool; the others are drawn from the subject."""


def sample_frames(capture: Capture, count: int) -> tuple[list[tuple[int, str]], str]:
    """Up to `count` frames of each group, evenly spread, and what the static ones are."""
    frames = capture.frames
    dynamic = np.flatnonzero((frames.split == "val") & (frames.sequence == "dynamic"))
    if not len(dynamic):
        dynamic = np.flatnonzero((frames.split != "train") & (frames.sequence == "dynamic"))
    static = np.flatnonzero((frames.split != "train") & (frames.sequence == "static"))
    kind = "held out"
    if not len(static):
        static, kind = np.flatnonzero(frames.sequence == "static"), "training frames"

    def spread(index: np.ndarray) -> list[int]:
        return [int(i) for i in index[np.unique(np.linspace(0, len(index) - 1, min(count, len(index))).astype(int))]]

    return [(i, "val") for i in spread(dynamic)] + [(i, "static") for i in spread(static)], kind


def sample_pixels(
    capture: Capture, frames: list[tuple[int, str]], count: int, seed: int, device: str
) -> list[FramePixels]:
    """`count` pixels of each frame's subject (grown by 3 px) and a quarter as many of its face."""
    boxes = part_boxes(capture)
    cameras = cameras_of(capture, np.arange(len(capture.frames)))
    rng = np.random.default_rng(seed)
    yaw = yaw_deg(capture.frames.camera_to_world)
    result = []
    for frame, group in frames:
        rgba = torch.from_numpy(read_rgba(capture.frames, frame)).float() / 255.0
        subject = subject_mask(rgba[..., 3:])
        inside = box_mask(list(boxes[frame].values()), tuple(rgba.shape[:2]))
        chosen = _draw(subject, count, rng)
        face = _draw(inside, count // 4, rng) if inside.any() else chosen[:0]
        rc = torch.cat([chosen, face])
        rays = cameras.generate_rays(camera_indices=torch.full((len(rc), 1), frame), coords=rc.float() + 0.5)
        colour = rgba[rc[:, 0], rc[:, 1]]
        is_face = torch.arange(len(rc)) >= len(chosen)
        over_white = colour[:, :3] * colour[:, 3:] + 1.0 - colour[:, 3:]
        result.append(
            FramePixels(
                frame, group, float(yaw[frame]), rays.origins.to(device), rays.directions.to(device),
                over_white.to(device), is_face.to(device),
            )
        )  # fmt: skip
    return result


def _draw(mask: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    rc = mask.nonzero()
    if len(rc) <= count:
        return rc
    return rc[torch.from_numpy(rng.choice(len(rc), count, replace=False))]


def evaluate(trainee: Trainee, pixels: list[FramePixels]) -> dict[str, float]:
    """Mean over frames of the PSNR (dB) over subject and face: `val`, `val face`, `static`."""
    rows: dict[str, list[float]] = {}
    for entry in pixels:
        error = (trainee.colours(entry.origins, entry.directions, entry.frame) - entry.colours).square().mean(-1)
        rows.setdefault(entry.group, []).append(_psnr(error[~entry.face]))
        if entry.face.any():
            rows.setdefault(f"{entry.group} face", []).append(_psnr(error[entry.face]))
    return {name: float(np.mean(values)) for name, values in rows.items()}


def _psnr(error: Tensor) -> float:
    return float(-10.0 * torch.log10(error.mean().clamp_min(1e-10)))


@dataclass
class Course:
    """How a training went."""

    name: str
    seconds: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    psnr: list[dict[str, float]] = field(default_factory=list)

    @property
    def final(self) -> dict[str, float]:
        return self.psnr[-1]

    def seconds_to(self, level: float, key: str = "val") -> float | None:
        """Seconds of training until a PSNR (dB) is reached, interpolated; None if it never is."""
        previous = (0.0, -np.inf)
        for second, row in zip(self.seconds, self.psnr, strict=True):
            value = row.get(key, -np.inf)
            if value >= level:
                if not np.isfinite(previous[1]):
                    return second
                share = (level - previous[1]) / (value - previous[1])
                return previous[0] + share * (second - previous[0])
            previous = (second, value)
        return None


def train(
    trainee: Trainee,
    pixels: list[FramePixels],
    *,
    seconds: float | None = None,
    steps: int | None = None,
    looks: int = 5,
    report: Callable[[float], None] = lambda progress: None,
) -> Course:
    """Train for `seconds` of the clock or a number of `steps`; evaluation, `looks` times, does not count.

    A single step that would end after the time is still made: courses say how long they really took.
    """
    if (seconds is None) == (steps is None):
        raise ValueError("train for either seconds or steps")
    clock, course, spent, looked = Clock(trainee.device), Course(trainee.name), 0.0, 0
    progress = 0.0
    while progress < 1.0:
        start = clock.now()
        trainee.step(progress)
        spent += clock.now() - start
        progress = spent / seconds if seconds is not None else trainee.steps / steps
        report(min(progress, 1.0))
        if progress >= (looked + 1) / looks or progress >= 1.0:
            looked = int(progress * looks)
            course.seconds.append(spent)
            course.steps.append(trainee.steps)
            course.psnr.append(evaluate(trainee, pixels))
    return course
