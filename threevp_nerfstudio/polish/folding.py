"""Corrections that were learned in canonical space, as poses of the rig.

A body that was tracked with its root at `T` and joints at `G`, and really moved on by `B` in the rest pose, stands at `T G B`. With
`C = G_root B G_root^-1` this is the root at `T C`, and a head that was at `G_head` is at `C^-1 G_head B H`, if its own correction is `H`.
Neck and head turn so that it comes there; only along the neck nothing can move it.
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
from threevp_nerfstudio.tracking.trajectory import Track

HEAD_SIZE = 0.08
"""Metres of the points that stand for the head."""
ITERATIONS, STEP, RIDGE = 4, 1e-5, 1e-6
"""Of the least squares for neck and head: radians of a difference; weight of the squared turns, metres per radian."""


@dataclass(frozen=True)
class Corrections:
    """Rigid motions in the rest pose, which go before the tracked pose: of the body, and of the head on it. Axis-angle in radians about
    `pivot`, then metres."""

    body: Float[Array, "N 6"]
    head: Float[Array, "N 6"]
    pivot: Float[Array, "3"]


def folded(track: Track, template: RiggedTemplate, rows: Int[Array, "n"], corrections: Corrections) -> Track:
    """The track with the corrections of its pictures `rows` in cameras, neck and head."""
    pivot = torch.as_tensor(corrections.pivot, dtype=torch.float64)
    body, head_own = (rigid(torch.as_tensor(c, dtype=torch.float64), pivot) for c in (corrections.body, corrections.head))
    rig = Rig.from_template(template, torch.float64)
    rotations = torch.as_tensor(track.joint_rotations[rows], dtype=torch.float64)
    expression = torch.as_tensor(track.expression[rows], dtype=torch.float64)
    nowhere = torch.zeros(len(rows), 3, dtype=torch.float64)
    G = rig.joint_transforms(rotations, nowhere, expression)
    root = G[:, 0]
    moved = root @ body @ torch.linalg.inv(root)
    T = track.T_camera_root.copy()
    T[rows] = T[rows] @ moved.numpy()
    joints = track.joint_rotations.copy()
    if (chain := neck_and_head(template)) is not None:
        goal = torch.linalg.inv(moved) @ G[:, chain[-1]] @ body @ head_own
        joints[rows] = reached(rig, rotations, expression, chain, goal).numpy()
    return replace(track, T_camera_root=T, joint_rotations=joints)


def rigid(twist: Float[Tensor, "N 6"], pivot: Float[Tensor, "3"]) -> Float[Tensor, "N 4 4"]:
    """`x -> R (x - pivot) + pivot + t`."""
    R = roma.rotvec_to_rotmat(twist[:, :3])
    T = torch.eye(4, dtype=twist.dtype).repeat(len(twist), 1, 1)
    T[:, :3, :3], T[:, :3, 3] = R, pivot + twist[:, 3:] - (R @ pivot[:, None])[..., 0]
    return T


def neck_and_head(template: RiggedTemplate) -> tuple[int, ...] | None:
    """The lowest joint of the neck and the head's, or the head's alone. None where there is no head."""
    names = [str(name).lower() for name in template.joint_names]
    heads = [j for j, name in enumerate(names) if name == "head"] or [j for j, name in enumerate(names) if "head" in name]
    if not heads:
        return None
    head = lowest = heads[0]
    j = int(template.parents[head])
    while j >= 0:
        lowest = j if "neck" in names[j] else lowest
        j = int(template.parents[j])
    return (head,) if lowest == head else (lowest, head)


def reached(
    rig: Rig, rotations: Float[Tensor, "N J 3"], expression: Float[Tensor, "N E"], chain: tuple[int, ...], goal: Float[Tensor, "N 4 4"]
) -> Float[Tensor, "N J 3"]:
    """Rotations with which the last joint of `chain` comes to `goal` as nearly as its joints let it."""
    nowhere = torch.zeros(len(rotations), 3, dtype=rotations.dtype)
    around = torch.tensor([[0, 0, 1], [1, 0, 1], [-1, 0, 1], [0, 1, 1], [0, -1, 1], [0, 0, 2]], dtype=rotations.dtype)
    points = torch.cat([rig.joints[chain[-1]] + HEAD_SIZE * around, torch.ones(6, 1, dtype=rotations.dtype)], 1)

    def turned(x: Float[Tensor, "N D"]) -> Float[Tensor, "N J 3"]:
        result = rotations.clone()
        for k, joint in enumerate(chain):
            own = roma.rotvec_to_rotmat(rotations[:, joint])
            result[:, joint] = roma.rotmat_to_rotvec(roma.rotvec_to_rotmat(x[:, 3 * k : 3 * k + 3]) @ own)
        return result

    def placed(x: Float[Tensor, "N D"]) -> Float[Tensor, "N P"]:
        G = rig.joint_transforms(turned(x), nowhere, expression)[:, chain[-1]]
        return (points @ G.transpose(1, 2))[..., :3].flatten(1)

    wanted = (points @ goal.transpose(1, 2))[..., :3].flatten(1)
    x = torch.zeros(len(rotations), 3 * len(chain), dtype=rotations.dtype)
    unit = torch.eye(x.shape[1], dtype=x.dtype)
    for _ in range(ITERATIONS):
        here = placed(x)
        J = torch.stack([(placed(x + STEP * e) - here) / STEP for e in unit], -1)
        H = J.transpose(1, 2) @ J + RIDGE * unit
        g = (J.transpose(1, 2) @ (wanted - here)[..., None])[..., 0] - RIDGE * x
        x = x + torch.linalg.solve(H, g)
    return turned(x)
