"""Find a subject whose track was lost, from nothing: poses of the turn, and the landmarks where there are any."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from threevp_nerfstudio.tracking.evidence import Evidence
from threevp_nerfstudio.tracking.motion_prior import Usual, loose_prior, neutral
from threevp_nerfstudio.tracking.posing import Pose, head_pose
from threevp_nerfstudio.tracking.solver import FrameSolver, Solution
from threevp_nerfstudio.tracking.turn import WORST_FIT, pose_from_landmarks

TRIED, FOLLOWED = 12, 2
"""Poses that are tried coarsely, and how many of the best are followed to the end."""


def restart(
    solver: FrameSolver, picture: Evidence, who: Usual, turn: Float[Array, "K 4 4"], more: tuple[Pose, ...] = ()
) -> Solution:
    """The best fit among poses of the turn, the pose that the landmarks give, and `more` guesses."""
    channels = len(solver.subject.rig.points.basis)
    chosen = turn[np.unique(np.linspace(0, len(turn) - 1, min(TRIED, len(turn))).astype(int))]
    guesses = [neutral(who, T, channels) for T in chosen] + list(more)
    by_face = _from_landmarks(solver, picture, who, channels)
    if by_face is not None:
        guesses.append(by_face)
    coarse = [solver.solve(picture, g, loose_prior(who, g), ((0, 2),), who.limits) for g in guesses]
    best = sorted(range(len(coarse)), key=lambda k: _misfit(coarse[k]))[:FOLLOWED]
    fine = [
        solver.solve(picture, coarse[k].pose, loose_prior(who, coarse[k].pose), ((0, 3), (1, 3), (2, 4)), who.limits) for k in best
    ]
    return min(fine, key=_misfit)


def _misfit(solution: Solution) -> float:
    """Lower is better. The cost alone would favour poses that show few known vertices."""
    seen = solution.photometric if np.isfinite(solution.photometric) else 1.0
    return seen + 0.3 * (1.0 - solution.iou)


def _from_landmarks(solver: FrameSolver, picture: Evidence, who: Usual, channels: int) -> Pose | None:
    face = solver.subject.landmarks
    if face is None or picture.landmark_score < 0.3:
        return None
    rig, skull = solver.subject.rig, solver.subject.parts.skull[0]
    found = pose_from_landmarks(face.at(rig.points.rest), picture.landmarks[face.ids], picture.camera)
    if found is None or found[1] > 2 * WORST_FIT:
        return None
    still = neutral(who, np.eye(4), channels)
    return neutral(who, found[0] @ np.linalg.inv(head_pose(rig, still, skull)), channels)
