"""Corrections that were learned in canonical space, as poses of the rig.

Seen by the camera, a point x of a part with the transform `G_part` stands at `T G_part x`. With the chest, which bears the neck, really
moved on by `B` in the rest pose, all of the body stands at `T C G_part x`, where `C = G_chest B G_chest^-1`: the root at `T C`. Turns
of neck and head in the rest pose come before those that were tracked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import roma
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array
from torch import Tensor

from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.model.refinement import bearer, neck_and_head
from threevp_nerfstudio.tracking.trajectory import Track


@dataclass(frozen=True)
class Corrections:
    """Motions in the rest pose, which go before the tracked pose; axis-angle in radians, metres."""

    body: Float[Array, "N 6"]
    """Turn about `pivot`, and shift, as the joint that bears the neck would make them."""
    head: Float[Array, "N 6"]
    """Turns of neck and head about their joints."""
    pivot: Float[Array, "3"]


def folded(track: Track, template: RiggedTemplate, rows: Int[Array, "n"], corrections: Corrections) -> Track:
    """The track with the corrections of its pictures `rows` in cameras, neck and head."""
    body = rigid(torch.as_tensor(corrections.body, dtype=torch.float64), torch.as_tensor(corrections.pivot, dtype=torch.float64))
    joints, T = track.joint_rotations.copy(), track.T_camera_root.copy()
    rotations = torch.as_tensor(joints[rows], dtype=torch.float64)
    chain = neck_and_head(template)
    base = 0 if chain is None else bearer(template, chain)
    rig = Rig.from_template(template, torch.float64)
    nowhere = torch.zeros(len(rows), 3, dtype=torch.float64)
    G = rig.joint_transforms(rotations, nowhere, torch.as_tensor(track.expression[rows], dtype=torch.float64))[:, base]
    T[rows] = T[rows] @ (G @ body @ torch.linalg.inv(G)).numpy()
    if chain is not None:
        turns = torch.as_tensor(corrections.head, dtype=torch.float64).split(3, -1)
        for joint, turn in zip(chain, turns[-len(chain) :], strict=True):
            joints[rows, joint] = roma.rotvec_composition((rotations[:, joint], turn)).numpy()
    return replace(track, T_camera_root=T, joint_rotations=joints)


def rigid(twist: Float[Tensor, "N 6"], pivot: Float[Tensor, "3"]) -> Float[Tensor, "N 4 4"]:
    """`x -> R (x - pivot) + pivot + t`."""
    R = roma.rotvec_to_rotmat(twist[:, :3])
    T = torch.eye(4, dtype=twist.dtype).repeat(len(twist), 1, 1)
    T[:, :3, :3], T[:, :3, 3] = R, pivot + twist[:, 3:] - (R @ pivot[:, None])[..., 0]
    return T
