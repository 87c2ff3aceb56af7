"""Make the world stand upright: the chair's axis becomes the vertical, and the body leans against it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.spatial.transform import Rotation

from threevp_nerfstudio.tracking.fitted import Turn, azimuth_of
from threevp_nerfstudio.tracking.posing import Pose, PosedRig

ENOUGH_TURN = np.radians(60.0)
"""A turn by less does not tell its axis."""
MOST_LEAN = np.radians(25.0)
"""An axis further from the body's own is a mistake."""


def chair_axis(T_camera_root: Float[Array, "K 4 4"]) -> Float[Array, "3"] | None:
    """Direction of the axis in the template's world frame, upwards, or None where the turn does not tell."""
    R = T_camera_root[:, :3, :3]
    if np.ptp(np.unwrap(azimuth_of(T_camera_root))) < ENOUGH_TURN:
        return None
    relative = np.einsum("nji,mjk->nmik", R, R).reshape(-1, 3, 3) - np.eye(3)  # R_n^T R_m leaves the axis in place
    _, vectors = np.linalg.eigh(np.einsum("nji,njk->ik", relative, relative))
    axis = vectors[:, 0] * (np.sign(vectors[2, 0]) or 1.0)
    return axis if np.arccos(np.clip(axis[2], -1, 1)) < MOST_LEAN else None


def upright(rig: PosedRig, poses: tuple[Pose, ...]) -> tuple[tuple[Pose, ...], Float[Array, "3"]]:
    """The same poses with the chair's axis as the world's z, and the lean (root's rotation vector) that makes up for it."""
    axis = chair_axis(np.array([p.T_camera_root for p in poses]))
    if axis is None:
        return poses, np.zeros(3)
    turn = np.cross(axis, [0.0, 0.0, 1.0])
    length = np.linalg.norm(turn)
    lean = turn / max(length, 1e-12) * np.arctan2(length, axis[2])
    return tuple(leaned(rig, p, lean) for p in poses), lean


def leaned(rig: PosedRig, pose: Pose, lean: Float[Array, "3"]) -> Pose:
    """The same place in the picture, with `lean` moved from the rigid pose into the root's rotation."""
    root = rig.parents.index(-1)
    C = Rotation.from_rotvec(lean)
    G = np.eye(4)
    G[:3, :3] = C.as_matrix()
    G[:3, 3] = rig.joints[root] - G[:3, :3] @ rig.joints[root]
    rotations = pose.rotations.copy()
    rotations[root] = (C * Rotation.from_rotvec(rotations[root])).as_rotvec()
    return replace(pose, T_camera_root=pose.T_camera_root @ np.linalg.inv(G), rotations=rotations)


def summary_of_turn(T_camera_root: Float[Array, "K 4 4"]) -> Turn:
    """Direction, extent and widest unseen sector."""
    azimuth = np.unwrap(azimuth_of(T_camera_root))
    covered = float(np.ptp(azimuth))
    around = np.sort(azimuth % (2 * np.pi))
    gaps = np.diff(np.append(around, around[0] + 2 * np.pi))
    return Turn(1 if azimuth[-1] >= azimuth[0] else -1, covered, float(gaps.max()))
