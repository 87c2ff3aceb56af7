"""Balanced sampling of frames, as pure functions.

Most frames are frontal and quiet. Drawn uniformly, the back of the head and the open mouth are starved. Here half of
the draws choose a yaw sector first, and half choose a group of similar expressions first; within either, frames are
equally likely.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

SECTORS = 12
EXPRESSION_GROUPS = 12


def yaw_sectors(yaw_deg: Float[Array, "N"], sectors: int = SECTORS) -> Int[Array, "N"]:
    """Sector of each yaw; sector 0 is centred on the front."""
    return np.floor((yaw_deg / 360.0 * sectors + 0.5) % sectors).astype(int)


def expression_groups(
    conditioning: Float[Array, "N C"], groups: int = EXPRESSION_GROUPS, seed: int = 0
) -> Int[Array, "N"]:
    """Group of each expression: k-means, with farthest-point starts so that rare expressions get groups of their own."""
    if conditioning.shape[1] == 0 or len(conditioning) == 0:
        return np.zeros(len(conditioning), dtype=int)
    centers = [np.zeros(conditioning.shape[1])]
    distance = np.linalg.norm(conditioning - centers[0], axis=1)
    while len(centers) < groups and distance.max() > 0.2:
        centers.append(conditioning[distance.argmax()])
        distance = np.minimum(distance, np.linalg.norm(conditioning - centers[-1], axis=1))
    centers = np.stack(centers).astype(float)
    for _ in range(8):
        group = np.linalg.norm(conditioning[:, None] - centers[None], axis=-1).argmin(1)
        for g in range(1, len(centers)):  # group 0 stays at neutral
            if np.any(group == g):
                centers[g] = conditioning[group == g].mean(0)
    return group


def uniform_over(groups: Int[Array, "N"]) -> Float[Array, "N"]:
    """Probability of each member when a group is drawn first, then one of its members."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return 1.0 / (counts[inverse] * len(counts))


def frame_probabilities(
    yaw_deg: Float[Array, "N"],
    conditioning: Float[Array, "N C"],
    balance_views: bool = True,
    balance_expressions: bool = True,
    view_share: float = 0.5,
) -> Float[Array, "N"]:
    """Probability of each frame in a draw; sums to one."""
    uniform = np.full(len(yaw_deg), 1.0 / len(yaw_deg))
    views = uniform_over(yaw_sectors(yaw_deg)) if balance_views else uniform
    expressions = uniform_over(expression_groups(conditioning)) if balance_expressions else uniform
    if not (balance_views and balance_expressions):
        return views if balance_views else expressions
    p = view_share * views + (1.0 - view_share) * expressions
    return p / p.sum()


def shard(probabilities: Float[Array, "N"], rank: int, world: int) -> Float[Array, "N"]:
    """The share of one of `world` processes: frames of its own, so that each keeps only those in memory.

    Frames are dealt out by falling probability, so that each process gets about the same of the rare ones. Where there
    are fewer than 8 frames for each, all draw from all.
    """
    if world == 1 or len(probabilities) < 8 * world:
        return probabilities
    order = np.argsort(-probabilities, kind="stable")
    own = np.zeros(len(probabilities), dtype=bool)
    own[order[rank::world]] = True
    p = np.where(own, probabilities, 0.0)
    return p / p.sum()
