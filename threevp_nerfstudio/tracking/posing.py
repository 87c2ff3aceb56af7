"""The template in front of the camera, and how each of its points answers to pose and expression.

Vocabulary: a `Pose` is the rigid pose of the root in the camera, local joint rotations and expression coefficients. A
step changes it by a vector in the order of `Freedoms`:

    rigid rotation (3, camera axes, about a pivot) | rigid translation (3) | 3 per free joint | 1 per free channel

Rotations are updated from the left, `R <- exp(step) R`, so that derivatives are taken at zero and stay exact for any
pose. Camera axes are OpenCV's: x right, y down, z forward; metres.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array
from scipy.spatial.transform import Rotation

from threevp_nerfstudio.body.template import RiggedTemplate


@dataclass(frozen=True)
class Pose:
    """Where the template is in one picture, and what it does."""

    T_camera_root: Float[Array, "4 4"]
    rotations: Float[Array, "J 3"]
    expression: Float[Array, "E"]


@dataclass(frozen=True)
class Freedoms:
    """What a step may change."""

    joints: tuple[int, ...]
    channels: tuple[int, ...]

    @property
    def count(self) -> int:
        return 6 + 3 * len(self.joints) + len(self.channels)

    @property
    def joint_slice(self) -> slice:
        return slice(6, 6 + 3 * len(self.joints))

    @property
    def channel_slice(self) -> slice:
        return slice(6 + 3 * len(self.joints), self.count)


@dataclass(frozen=True)
class Points:
    """What posing needs of some points of a template: rest positions, weights, blendshapes and pose correctives."""

    rest: Float[Array, "N 3"]
    weights: Float[Array, "N J"]
    basis: Float[Array, "E N 3"]
    correctives: Float[Array, "P N 3"] | None = None
    _by_point: dict[tuple[int, ...], Array] = field(default_factory=dict, init=False, repr=False, compare=False)

    def by_point(self, channels: tuple[int, ...]) -> Float[Array, "N 3 C"]:
        """Blendshapes of some channels, those of a point side by side; kept for the next time."""
        if channels not in self._by_point:
            self._by_point[channels] = np.ascontiguousarray(self.basis[list(channels)].transpose(1, 2, 0))
        return self._by_point[channels]

    def take(self, rows: Int[Array, "n"]) -> Points:
        """Some of the points."""
        kept = None if self.correctives is None else np.take(self.correctives, rows, axis=1)
        # `basis[:, rows]` would take longer and be copied once more by each product
        return Points(self.rest[rows], self.weights[rows], np.take(self.basis, rows, axis=1), kept)


@dataclass(frozen=True)
class Placed:
    """Points in front of the camera, with what their derivatives need."""

    camera: Float[Array, "N 3"]
    linear: Float[Array, "N 3 3"]
    """The blended rotation of each point, from the rest pose to the camera."""
    shape: Float[Array, "N 3"]
    """Rest positions with expression and pose correctives."""
    transforms: Float[Array, "J 3 4"]
    """Of the joints, from the rest pose to the template's world frame."""


class PosedRig:
    """Poses points of a template by blendshapes and linear blend skinning, with analytic derivatives."""

    def __init__(self, template: RiggedTemplate) -> None:
        self.joints = np.asarray(template.joints, dtype=np.float64)
        self.parents = [int(p) for p in template.parents]
        self._kept: tuple[Float[Array, "J 3"], Float[Array, "J 3 4"]] | None = None
        J = len(self.parents)
        self.below = np.eye(J, dtype=bool)
        for j in range(J - 1, -1, -1):
            if self.parents[j] >= 0:
                self.below[self.parents[j]] |= self.below[j]
        correctives = template.pose_basis
        self.points = Points(
            np.asarray(template.vertices, dtype=np.float64),
            np.asarray(template.skin_weights, dtype=np.float64),
            np.asarray(template.expression_basis, dtype=np.float64),
            None if correctives is None else np.asarray(correctives, dtype=np.float64),
        )

    def with_rest(self, vertices: Float[Array, "V 3"], joints: Float[Array, "J 3"] | None = None) -> PosedRig:
        """The same rig on another rest shape."""
        other = object.__new__(PosedRig)
        other.__dict__.update(self.__dict__)
        other.points, other._kept = replace(self.points, rest=vertices), None
        if joints is not None:
            other.joints = joints
        return other

    def joint_transforms(self, rotations: Float[Array, "J 3"]) -> Float[Array, "J 3 4"]:
        """`G_j`, from the rest pose to the template's world frame; not to be changed, since those asked for last are kept."""
        if self._kept is not None and np.array_equal(self._kept[0], rotations):
            return self._kept[1]
        R = Rotation.from_rotvec(rotations).as_matrix()
        G = np.empty((len(self.parents), 3, 4))
        for j, parent in enumerate(self.parents):
            offset = self.joints[j] - R[j] @ self.joints[j]
            if parent < 0:
                G[j, :, :3], G[j, :, 3] = R[j], offset
            else:
                G[j, :, :3] = G[parent, :, :3] @ R[j]
                G[j, :, 3] = G[parent, :, :3] @ offset + G[parent, :, 3]
        self._kept = (rotations.copy(), G)
        return G

    def shape(self, points: Points, pose: Pose) -> Float[Array, "N 3"]:
        """Rest positions with expression and pose correctives."""
        x = points.rest + np.tensordot(pose.expression, points.basis, axes=1)
        if points.correctives is not None:
            R = Rotation.from_rotvec(pose.rotations[1:]).as_matrix()
            x = x + np.tensordot((R - np.eye(3)).reshape(-1), points.correctives, axes=1)
        return x

    def place(self, points: Points, pose: Pose) -> Placed:
        """Points as the camera has them."""
        G = self.joint_transforms(pose.rotations)
        blended = (points.weights @ G.reshape(len(G), 12)).reshape(-1, 3, 4)
        R, t = pose.T_camera_root[:3, :3], pose.T_camera_root[:3, 3]
        shape = self.shape(points, pose)
        world = np.einsum("nrc,nc->nr", blended[:, :, :3], shape) + blended[:, :, 3]
        return Placed(world @ R.T + t, np.matmul(R, blended[:, :, :3]), shape, G)

    def jacobian(
        self, points: Points, placed: Placed, pose: Pose, freedoms: Freedoms, pivot: Float[Array, "3"]
    ) -> Float[Array, "N 3 D"]:
        """Derivative of the placed points by a step. Pose correctives, which are small, count as constant."""
        N = len(points.rest)
        J = np.empty((N, 3, freedoms.count))
        J[:, :, :3] = -cross_matrices(placed.camera - pivot)
        J[:, :, 3:6] = np.eye(3)
        R = pose.T_camera_root[:3, :3]
        G, shape = placed.transforms, placed.shape
        for i, j in enumerate(freedoms.joints):
            members = np.flatnonzero(self.below[j])
            w = points.weights[:, members]
            blended = (w @ G[members].reshape(len(members), 12)).reshape(-1, 3, 4)
            part = np.einsum("nrc,nc->nr", blended[:, :, :3], shape) + blended[:, :, 3]
            up = G[self.parents[j]] if self.parents[j] >= 0 else np.eye(3, 4)
            centre = up[:, :3] @ self.joints[j] + up[:, 3]
            arm = part - w.sum(1, keepdims=True) * centre
            by_arm = R @ -cross_matrices(np.eye(3)) @ up[:, :3]  # `-R [arm]x up`, which is linear in the arm
            J[:, :, 6 + 3 * i : 9 + 3 * i] = (arm @ by_arm.reshape(3, 9)).reshape(-1, 3, 3)
        if freedoms.channels:
            J[:, :, freedoms.channel_slice] = np.matmul(placed.linear, points.by_point(freedoms.channels))
        return J


def step_pose(pose: Pose, step: Float[Array, "D"], freedoms: Freedoms, pivot: Float[Array, "3"]) -> Pose:
    """The pose after a step; rotations stay rotations."""
    turn = Rotation.from_rotvec(step[:3]).as_matrix()
    T = np.eye(4)
    T[:3, :3] = orthonormal(turn @ pose.T_camera_root[:3, :3])
    T[:3, 3] = turn @ (pose.T_camera_root[:3, 3] - pivot) + pivot + step[3:6]
    rotations = pose.rotations.copy()
    if freedoms.joints:
        index = list(freedoms.joints)
        change = Rotation.from_rotvec(step[freedoms.joint_slice].reshape(-1, 3))
        rotations[index] = (change * Rotation.from_rotvec(rotations[index])).as_rotvec()
    expression = pose.expression.copy()
    expression[list(freedoms.channels)] += step[freedoms.channel_slice]
    return Pose(T, rotations, expression)


def pose_difference(a: Pose, b: Pose, freedoms: Freedoms, pivot: Float[Array, "3"]) -> Float[Array, "D"]:
    """The step that takes `b` to `a`: `step_pose(b, step) == a` in what the freedoms cover."""
    out = np.empty(freedoms.count)
    turn = a.T_camera_root[:3, :3] @ b.T_camera_root[:3, :3].T
    out[:3] = Rotation.from_matrix(turn).as_rotvec()
    out[3:6] = a.T_camera_root[:3, 3] - (turn @ (b.T_camera_root[:3, 3] - pivot) + pivot)
    index = list(freedoms.joints)
    if index:
        change = Rotation.from_rotvec(a.rotations[index]) * Rotation.from_rotvec(b.rotations[index]).inv()
        out[freedoms.joint_slice] = change.as_rotvec().reshape(-1)
    out[freedoms.channel_slice] = (a.expression - b.expression)[list(freedoms.channels)]
    return out


def between_transforms(a: Float[Array, "4 4"], b: Float[Array, "4 4"], share: float) -> Float[Array, "4 4"]:
    """The rigid transform at `share` (0 to 1) of the way from `a` to `b`: rotated about one axis, moved along a line."""
    T = np.eye(4)
    turn = Rotation.from_matrix(b[:3, :3] @ a[:3, :3].T).as_rotvec()
    T[:3, :3] = Rotation.from_rotvec(share * turn).as_matrix() @ a[:3, :3]
    T[:3, 3] = (1 - share) * a[:3, 3] + share * b[:3, 3]
    return T


def orthonormal(R: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """The rotation closest to `R`: errors of many updates must not add up."""
    U, _, Vt = np.linalg.svd(R)
    return U @ np.diag([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))]) @ Vt


def cross_matrices(v: Float[Array, "N 3"]) -> Float[Array, "N 3 3"]:
    """`[v]x` of each vector."""
    out = np.zeros((len(v), 3, 3))
    out[:, 0, 1], out[:, 0, 2] = -v[:, 2], v[:, 1]
    out[:, 1, 0], out[:, 1, 2] = v[:, 2], -v[:, 0]
    out[:, 2, 0], out[:, 2, 1] = -v[:, 1], v[:, 0]
    return out


def middle(points: Points, a: Array, b: Array) -> Points:
    """Points halfway between pairs of vertices."""
    one, two = points.take(a), points.take(b)
    correctives = None if one.correctives is None else (one.correctives + two.correctives) / 2
    return Points((one.rest + two.rest) / 2, (one.weights + two.weights) / 2, (one.basis + two.basis) / 2, correctives)


def head_pose(rig: PosedRig, pose: Pose, head: int) -> Float[Array, "4 4"]:
    """From the rest frame of the head's joint to the camera."""
    G = np.eye(4)
    G[:3] = rig.joint_transforms(pose.rotations)[head]
    return pose.T_camera_root @ G


def head_pivot(rig: PosedRig, pose: Pose, head: int) -> Float[Array, "3"]:
    """The head's joint in camera axes: turning about it moves the head least."""
    T = head_pose(rig, pose, head)
    return T[:3, :3] @ rig.joints[head] + T[:3, 3]
