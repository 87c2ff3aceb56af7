"""SMPL-X as a body model, from the user's own licensed file.

The template poses as the `smplx` package does with flat hands (`flat_hand_mean=True`, which a portrait does not show).
In SMPL-X the joints follow the expression a little; the template's `joint_basis` says how far.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from threevp_nerfstudio.body.body_model import BodyModel, Identity
from threevp_nerfstudio.body.labels import REGION_NAMES
from threevp_nerfstudio.body.smplx_file import SmplxFile
from threevp_nerfstudio.body.smplx_regions import label_faces
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.errors import TemplateError

LICENSE = "SMPL-X model licence: non-commercial scientific research only; do not pass on (https://smpl-x.is.tue.mpg.de)"
TO_WORLD = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
"""From SMPL-X's frame (+y up, facing +z) to ours (+z up, facing -y)."""
MOST_EXPRESSIONS = 100
LANDMARK_ROWS = {
    # rows of lmk_faces_idx are the iBUG landmarks 17 to 67: brows, nose, right eye, left eye, mouth
    "nose_tip": (13,),
    "right_eye_outer": (19,),
    "right_eye_inner": (22,),
    "left_eye_inner": (25,),
    "left_eye_outer": (28,),
    "right_mouth": (31,),
    "left_mouth": (37,),
    "upper_lip": (34,),
    "lower_lip": (40,),
}


def smplx_body(
    file: SmplxFile, betas: int = 10, expressions: int = 10, segmentation: Path | None = None
) -> BodyModel:
    """SMPL-X's whole body, world frame, float64. `segmentation` is a vertex part file (`smplx_vert_segmentation.json`).

    Raises `TemplateError` if the file holds fewer components than asked for.
    """
    for name, asked, held in (("--betas", betas, file.shapedirs.shape[2]), ("--expressions", expressions, file.expression.shape[2])):
        if not 1 <= asked <= held:
            raise TemplateError(f"{name} {asked}: {file.path} holds 1 to {held} of these components")
    from smplx.joint_names import JOINT_NAMES

    shape = np.einsum("rc,vck->kvr", TO_WORLD, file.shapedirs[:, :, :betas])
    base = file.v_template @ TO_WORLD.T
    base_joints = file.J_regressor @ base
    shape_joints = np.einsum("jv,kvr->kjr", file.J_regressor, shape)

    def rests(values: Array) -> tuple[Array, Array]:
        return base + np.tensordot(values, shape, 1), base_joints + np.tensordot(values, shape_joints, 1)

    template = RiggedTemplate(
        vertices=base,
        faces=file.faces.astype(np.int32),
        joint_names=tuple(JOINT_NAMES[: len(file.parents)]),
        parents=file.parents.astype(np.int32),
        joints=base_joints,
        skin_weights=file.weights,
        expression_names=tuple(f"smplx_expression_{k:03d}" for k in range(expressions)),
        expression_basis=np.einsum("rc,vck->kvr", TO_WORLD, file.expression[:, :, :expressions]),
        pose_basis=_pose_basis(file.posedirs),
        joint_basis=joint_shift(file, expressions),
        face_regions=np.zeros(len(file.faces), dtype=np.uint8),
        region_names=REGION_NAMES,
        uvs=file.vt,
        face_uvs=None if file.ft is None else file.ft.astype(np.int32),
        body_model=f"smplx ({file.path.name})",
        license=LICENSE,
    )
    points = landmark_points(file)
    regions = label_faces(template, points, segmentation)
    template = replace(template, face_regions=regions)
    identity = Identity(
        names=tuple(f"beta{k}" for k in range(betas)),
        default=np.zeros(betas),
        lower=np.full(betas, -5.0),
        upper=np.full(betas, 5.0),
        spread=np.ones(betas),
    )
    return BodyModel("smplx", template, identity, identity.default, rests, _landmarks(file, template))


def landmark_points(file: SmplxFile) -> Float[Array, "L 3"]:
    """The 51 inner face landmarks (iBUG 17 to 67) on the mean shape, world frame."""
    corners = file.v_template[file.faces[file.landmark_faces]]
    return np.einsum("lk,lkc->lc", file.landmark_bary, corners) @ TO_WORLD.T


def joint_shift(file: SmplxFile, expressions: int) -> Float[Array, "E J 3"]:
    """How far each unit expression moves each joint, world frame, metres."""
    return np.einsum("rc,jv,vck->kjr", TO_WORLD, file.J_regressor, file.expression[:, :, :expressions], optimize=True)


def _pose_basis(posedirs: Float[Array, "V 3 P"]) -> Float[Array, "P V 3"]:
    """Pose correctives over entries of R - I in our axes.

    With C = TO_WORLD, a joint turned by R in SMPL-X's axes is turned by C R C^T in ours, so the entries are mixed back:
    (R - I) = C^T (R' - I) C, and the offsets are rotated by C.
    """
    V, _, P = posedirs.shape
    C = TO_WORLD
    basis = np.einsum("rc,vck->kvr", C, posedirs).reshape(P // 9, 3, 3, V, 3)
    return np.einsum("ai,bj,nijvr->nabvr", C, C, basis, optimize=True).reshape(P, V, 3)


def _landmarks(file: SmplxFile, template: RiggedTemplate) -> dict[str, Int[Array, "_"]]:
    """The vertex nearest to each named landmark, and the chin below the lower lip."""
    points = landmark_points(file)
    head = [template.joint_names.index(n) for n in ("head", "jaw")]
    skin = np.flatnonzero(template.skin_weights[:, head].sum(1) > 0.5)
    found = {}
    for name, rows in LANDMARK_ROWS.items():
        target = points[list(rows)].mean(0)
        found[name] = skin[[np.linalg.norm(template.vertices[skin] - target, axis=1).argmin()]]
    lip = template.vertices[found["lower_lip"][0]]
    v = template.vertices[skin]
    below = (np.abs(v[:, 0] - lip[0]) < 0.012) & (v[:, 2] < lip[2] - 0.01) & (v[:, 2] > lip[2] - 0.06) & (v[:, 1] < lip[1] + 0.03)
    if below.any():
        candidates = skin[below]
        found["chin"] = candidates[[(template.vertices[candidates] @ np.array([0.0, 0.7, 0.7])).argmin()]]
    return found
