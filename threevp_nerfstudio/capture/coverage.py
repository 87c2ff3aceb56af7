"""What a capture shows and what it leaves out: yaw sectors, gaps in the turn, expressions. Pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray as Array

SECTORS = ("front", "front left", "left", "back left", "back", "back right", "right", "front right")
"""Eight sectors of 45 degrees, centred on yaw 0, 45, ... Left is the subject's left, positive yaw."""
ACTIVE = 0.1
"""An expression coefficient from here on shows."""


@dataclass(frozen=True)
class Channel:
    """How far one expression channel moves, and in how many frames it shows."""

    name: str
    train_low: float
    train_high: float
    train_frames: int
    held_out_low: float
    held_out_high: float
    held_out_frames: int


def sector_of(yaw: Float[Array, "N"]) -> Int[Array, "N"]:
    """Index into `SECTORS` of each yaw in degrees."""
    return np.floor((yaw + 22.5) / 45.0).astype(int) % len(SECTORS)


def yaw_gaps(yaw: Float[Array, "N"], at_least: float) -> list[tuple[float, float]]:
    """Gaps of the turn without any yaw, in degrees from 0 to 360: (start, end), the end possibly beyond 360."""
    if not len(yaw):
        return [(0.0, 360.0)]
    ordered = np.sort(yaw % 360.0)
    following = np.append(ordered[1:], ordered[0] + 360.0)
    return [(float(a), float(b)) for a, b in zip(ordered, following, strict=True) if b - a >= at_least]


def channels(names: tuple[str, ...], values: Float[Array, "N E"], split: Shaped[Array, "N"]) -> list[Channel]:
    """Ranges per channel over training and held-out frames. `values` has a row per frame."""
    train = split == "train"
    rows = []
    for e, name in enumerate(names):
        spans = []
        for part in (values[train, e], values[~train, e]):
            low, high = (float(part.min()), float(part.max())) if len(part) else (0.0, 0.0)
            spans.append((low, high, int((np.abs(part) >= ACTIVE).sum())))
        rows.append(Channel(str(name), *spans[0], *spans[1]))
    return rows


def coverage_warnings(
    yaw: Float[Array, "N"],
    split: Shaped[Array, "N"],
    sequence: Shaped[Array, "N"],
    expression: list[Channel],
    neutral: Float[Array, "N"],
    widest_gap: float = 40.0,
) -> list[str]:
    """Plain sentences on what is missing. `neutral` is the largest coefficient of each frame."""
    train = split == "train"
    said = [
        f"no training frames between {start:.0f}° and {end % 360:.0f}° of yaw ({end - start:.0f}° unseen)"
        for start, end in yaw_gaps(yaw[train], widest_gap)
    ]
    if not (sequence == "static").any():
        said.append("no static frames: hair and the back of the head are learned from moving frames alone")
    moving = int(((sequence == "static") & (neutral > 0.3)).sum())
    if moving:
        said.append(f"{moving} static frames show an expression; the static part is a neutral face")
    if train.all():
        said.append("nothing is held out: mark blocks of frames as val or test to measure novel views and expressions")
    if not any(c.train_frames for c in expression):
        said.append("no training frame shows an expression: the avatar's face will not move")
    beyond = [
        c.name
        for c in expression
        if c.held_out_frames and (c.held_out_high > c.train_high + ACTIVE or c.held_out_low < c.train_low - ACTIVE)
    ]
    if beyond:
        said.append(f"held-out frames go beyond the training range of {', '.join(beyond)}; those are clipped")
    return said
