"""Posing a rigged template: linear blendshapes, then linear blend skinning.

    v = sum_j w_j G_j (v_rest + sum_e psi_e B_e + pose correctives)
    G_j = G_parent [R_j, p_j - R_j p_j]

with `R_j` the local rotation of joint j about its rest position `p_j`, in world-aligned axes (the SMPL convention).
Where a template says that its joints follow the expression (`joint_basis`), `p_j` moves by `sum_e psi_e b_ej`.
"""

from __future__ import annotations

import numpy as np
import roma
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from threevp_nerfstudio.body.template import RiggedTemplate


class Rig(nn.Module):
    """A `RiggedTemplate` as torch buffers, which poses batches of frames on any device."""

    def __init__(self, template: RiggedTemplate, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.joint_names = tuple(template.joint_names)
        self.expression_names = tuple(template.expression_names)
        self.parents = tuple(int(p) for p in template.parents)
        self.register_buffer("ancestors", _ancestors(self.parents), persistent=False)

        def buffer(name: str, value: np.ndarray) -> None:
            self.register_buffer(name, torch.as_tensor(np.ascontiguousarray(value), dtype=dtype))

        buffer("vertices", template.vertices)
        buffer("joints", template.joints)
        buffer("skin_weights", template.skin_weights)
        buffer("expression_basis", template.expression_basis)
        self.register_buffer("faces", torch.as_tensor(np.ascontiguousarray(template.faces), dtype=torch.int32))
        for name in ("pose_basis", "joint_basis"):
            value = getattr(template, name)
            if value is None:
                setattr(self, name, None)
            else:
                buffer(name, value)

    @classmethod
    def from_template(cls, template: RiggedTemplate, dtype: torch.dtype = torch.float32) -> Rig:
        return cls(template, dtype)

    def joint_transforms(
        self,
        joint_rotations: Float[Tensor, "B J 3"],
        root_translation: Float[Tensor, "B 3"],
        expression: Float[Tensor, "B E"] | None = None,
    ) -> Float[Tensor, "B J 4 4"]:
        """`G_j`: from the rest pose to posed space, for each joint. Without `expression`, joints rest where the neutral
        face has them."""
        R = roma.rotvec_to_rotmat(joint_rotations)
        joints = self.joints
        if self.joint_basis is not None and expression is not None:
            joints = joints + torch.einsum("be,ejc->bjc", expression, self.joint_basis)
        offset = joints - (R @ joints[..., None]).squeeze(-1)
        local = torch.zeros(*R.shape[:2], 4, 4, dtype=R.dtype, device=R.device)
        local[..., :3, :3] = R
        local[..., :3, 3] = offset
        local[..., 3, 3] = 1.0
        for j, parent in enumerate(self.parents):
            if parent < 0:
                local[:, j, :3, 3] += root_translation
        return self._chained(local)

    def _chained(self, local: Float[Tensor, "B J 4 4"]) -> Float[Tensor, "B J 4 4"]:
        """Products of local transforms from the root to each joint. Each round doubles how far up they reach, so that a few
        products of all joints do the work of one for each joint."""
        identity = torch.eye(4, dtype=local.dtype, device=local.device).expand(len(local), 1, 4, 4)
        G = torch.cat([local, identity], 1)
        for above in self.ancestors:
            G = G[:, above] @ G
        return G[:, :-1]

    def rest_shape(
        self, expression: Float[Tensor, "B E"], joint_rotations: Float[Tensor, "B J 3"] | None = None
    ) -> Float[Tensor, "B V 3"]:
        """Rest pose with expression and, where the template has them, pose correctives."""
        B, V = expression.shape[0], self.vertices.shape[0]
        shape = self.vertices + (expression @ self.expression_basis.flatten(1)).view(B, V, 3)
        if self.pose_basis is not None and joint_rotations is not None:
            R = roma.rotvec_to_rotmat(joint_rotations[:, 1:])
            feature = (R - torch.eye(3, dtype=R.dtype, device=R.device)).flatten(1)
            shape = shape + (feature @ self.pose_basis.flatten(1)).view(B, V, 3)
        return shape

    def pose(
        self,
        joint_rotations: Float[Tensor, "B J 3"],
        root_translation: Float[Tensor, "B 3"],
        expression: Float[Tensor, "B E"],
    ) -> Float[Tensor, "B V 3"]:
        """Posed vertices in metres, world frame."""
        shape = self.rest_shape(expression, joint_rotations)
        G = self.joint_transforms(joint_rotations, root_translation, expression)
        return skin(shape, self.skin_weights, G)


def skin(
    x: Float[Tensor, "B V 3"], weights: Float[Tensor, "V J"], T: Float[Tensor, "B J 4 4"]
) -> Float[Tensor, "B V 3"]:
    """Linear blend skinning. `weights` rows sum to one; `T` maps the rest pose to posed space."""
    blended = torch.einsum("vj,bjrc->bvrc", weights, T[:, :, :3])
    return (blended[..., :3] @ x[..., None]).squeeze(-1) + blended[..., 3]


def _ancestors(parents: tuple[int, ...]) -> Int[Tensor, "rounds Jp"]:
    """Parents, their parents' parents, and so on in powers of two, until there are none. J, the last, stands for no joint."""
    J = len(parents)
    rounds = [torch.tensor([J if p < 0 else p for p in parents] + [J])]
    while bool((rounds[-1] < J).any()):
        rounds.append(rounds[-1][rounds[-1]])
    return torch.stack(rounds[:-1] or rounds)
