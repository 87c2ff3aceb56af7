"""How well a picture showed pose and expression: the posterior deviation, given what usual people do."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from threevp_nerfstudio.tracking.posing import Freedoms, Pose, PosedRig

HALF_TRUSTED = np.radians(1.0)
"""Deviation of the head's rotation at which its confidence is a half."""


def head_rotation_jacobian(rig: PosedRig, pose: Pose, freedoms: Freedoms, head: int) -> Float[Array, "3 D"]:
    """How the head's rotation in the camera (a rotation vector, from the left) answers to a step."""
    J = np.zeros((3, freedoms.count))
    J[:, :3] = np.eye(3)
    G = rig.joint_transforms(pose.rotations)
    for i, j in enumerate(freedoms.joints):
        if rig.below[j][head]:
            up = G[rig.parents[j], :, :3] if rig.parents[j] >= 0 else np.eye(3)
            J[:, 6 + 3 * i : 9 + 3 * i] = pose.T_camera_root[:3, :3] @ up
    return J


def confidence(
    information: Float[Array, "D D"],
    usual: Float[Array, "D"],
    head_jacobian: Float[Array, "3 D"],
    freedoms: Freedoms,
    quality: float,
) -> Float[Array, "2"]:
    """Confidence of head pose and of expression, 0 to 1. `usual`: spread of each parameter before looking.

    The head's falls with the deviation of its rotation, and with the `quality` of the fit (1 as good as the turn). The
    expression's is the share of its usual variance that the picture took away: 0 for a face that is not seen.
    """
    covariance = np.linalg.inv(information + np.diag(1.0 / usual**2))
    turn = head_jacobian @ covariance @ head_jacobian.T
    head = quality / (1.0 + np.trace(turn) / 3 / HALF_TRUSTED**2)
    channels = freedoms.channel_slice
    expression = 0.0
    if freedoms.channels:
        kept = np.diag(covariance)[channels] / usual[channels] ** 2
        expression = quality * float(np.mean(1.0 - np.clip(kept, 0, 1)))
    return np.clip(np.array([head, expression]), 0.0, 1.0)
