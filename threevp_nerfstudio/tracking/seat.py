"""Where a turning subject sits: the head goes round the chair's axis, and what it strays from that sideways it may stray in depth.

Of a head's place a picture tells what is across the line of sight ten times as well as what is along it: a template that is a
little too wide for this view, or a shadow, moves it by a centimetre in depth and by nothing sideways. On the turn its places
across the lines of sight alone say where the axis is and how far from it the head sits, hence also the depths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

DEPTH_TRUST = 0.2
"""Weight of a place along the line of sight, against 1 across it."""
USUAL_ARM = np.array([0.05, 0.05, 1.0])
"""Metres that a head is usually beside the axis. Along the axis no turn tells."""
STILL = 0.0007
"""Metres that the best of models and subjects sway."""
LEAST_TURN = np.radians(90.0)
"""Turns by less tell the depths no better than the pictures do."""


@dataclass(frozen=True)
class Seat:
    """`axis + R arm` is where the head is when the root is turned by `R`; camera axes, metres."""

    axis: Float[Array, "3"]
    arm: Float[Array, "3"]
    sway: float
    """Standard deviation of the head's place about that, metres, as seen across the line of sight."""

    def head(self, R: Float[Array, "*n 3 3"]) -> Float[Array, "*n 3"]:
        return self.axis + R @ self.arm


def find_seat(R: Float[Array, "n 3 3"], heads: Float[Array, "n 3"]) -> Seat | None:
    """From the root's rotations in the camera and the places of the head. None where the turn is too short to tell."""
    if len(R) < 6 or _turned(R) < LEAST_TURN:
        return None
    middle = heads.mean(0)
    ray = heads / np.linalg.norm(heads, axis=1, keepdims=True)
    across = np.eye(3) - ray[:, :, None] * ray[:, None]
    whiten = across + DEPTH_TRUST * ray[:, :, None] * ray[:, None]
    A = np.concatenate([np.broadcast_to(np.eye(3), R.shape), R], axis=2)
    weight = np.ones(len(R))
    x = np.zeros(6)
    for _ in range(5):  # the worst fitted pictures of a turn may be far off
        W = whiten * weight[:, None, None]
        ridge = np.diag(np.concatenate([np.zeros(3), (STILL / USUAL_ARM) ** 2]))
        B = (W @ A).reshape(-1, 6)
        b = np.einsum("nij,nj->ni", W, heads - middle).reshape(-1)
        x = np.linalg.solve(B.T @ B + ridge, B.T @ b)
        off = np.linalg.norm(np.einsum("nij,nj->ni", across, heads - middle - A @ x), axis=1)
        scale = max(float(np.median(off)), STILL)
        weight = 1.0 / np.sqrt(1.0 + (off / (3.0 * scale)) ** 2)
    return Seat(middle + x[:3], x[3:], max(scale, STILL))


def _turned(R: Float[Array, "n 3 3"]) -> float:
    """Largest angle between two of the rotations, radians."""
    cosine = (np.einsum("aij,bij->ab", R, R) - 1.0) / 2.0
    return float(np.arccos(np.clip(cosine.min(), -1.0, 1.0)))
