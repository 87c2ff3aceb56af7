"""Pose and shape of the body model on an aligned scan: Gauss-Newton on closest points along the scan's normals.

The result places the skeleton and brings every feature near its place; what the parameters cannot say (hair, clothes, a
person's own face) is left to `wrap`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray as Array

from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.labels import vertices_in
from threevp_nerfstudio.body.mesh import border_vertices, vertex_normals
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.scan import Scan
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.kernels.mesh_query import MeshQuery

Progress = Callable[[str], None]

TRUST = {"face": 1.0, "lips": 1.0, "eyelids": 1.0, "ears": 0.1, "neck": 0.1, "scalp": 0.02, "torso": 0.05, "arms": 0.05}
"""How much each region says about the body under it: hair and clothes hide all but the face. With more of it, long hair
drags the face, which `align.seat_face` has put in its place, down by centimetres."""
POSED_JOINTS = ("neck", "head", "clavicle", "upperarm01", "collar", "left_shoulder", "right_shoulder")
JOINT_SPREAD = 0.15
"""Radians that a joint usually turns while a person sits for a scan."""
NOISE = 0.004
"""Metres of disagreement that weigh as much as a shape parameter that is off by its spread."""
DAMPING = (1.0, 0.001)
"""Marquardt's damping in the first and the last iteration: root, neck and head can turn against each other, and large turns
are not linear."""
SCHEDULE = tuple(zip(np.geomspace(0.03, 0.006, 16).tolist(), np.geomspace(100.0, 1500.0, 16).tolist(), strict=True))
"""Per iteration: the distance in metres at which a closest point begins to count as an outlier, and as how many
independent points those of the face count (neighbours on a surface tell the same; early ones tell wrong things). The
face alone, so that a scan with more torso says no less about the face."""


@dataclass(frozen=True)
class Fitted:
    """The body at the person's shape, and the pose of the scan."""

    body: BodyModel
    joint_rotations: Float[Array, "J 3"]
    root_translation: Float[Array, "3"]
    posed: Float[Array, "V 3"]
    transforms: Float[Array, "V 3 4"]  # of each vertex from the rest pose

    def to_rest(self, points: Float[Array, "N 3"], transforms: Float[Array, "N 3 4"]) -> Float[Array, "N 3"]:
        """Points in the scan's pose, brought to the rest pose by the inverse of their blended transforms."""
        return np.linalg.solve(transforms[:, :, :3], (points - transforms[:, :, 3])[..., None])[..., 0]


def fit_body(
    body: BodyModel,
    scan: Scan,
    landmarks: Mapping[str, Float[Array, "3"]] | None = None,
    progress: Progress = lambda _: None,
) -> Fitted:
    """Fit to a scan in the world frame. `landmarks` are points on it, world frame."""
    query = MeshQuery(scan.vertices, scan.faces)
    normals = vertex_normals(scan.vertices, scan.faces)
    border = border_vertices(scan.faces, len(scan.vertices))
    weight = _trust(body.template)
    rows = np.flatnonzero(weight > 0)
    face = weight[rows] >= 1.0
    joints = [
        j for j, n in enumerate(body.template.joint_names) if j == 0 or any(n.startswith(w) for w in POSED_JOINTS)
    ]
    state = _State(body.values.copy(), np.zeros((len(body.template.joint_names), 3)), np.zeros(3))
    spread = np.concatenate([body.identity.spread, np.full(3 * len(joints), JOINT_SPREAD), np.full(3, 1.0)])
    spread[len(body.values) : len(body.values) + 3] = 1.0  # the root turns freely
    basis = body.identity_basis(state.values)
    for step, (sigma, evidence) in enumerate(SCHEDULE):
        if step == 7:
            basis = body.identity_basis(state.values)
        fitted = _posed(body, state)
        J = _jacobian(fitted, basis, joints, rows)
        hits = query.nearest(fitted.posed[rows], 0.08)
        target, target_normal = query.at(hits), query.at(hits, normals)
        own_normal = vertex_normals(fitted.posed, body.template.faces)[rows]
        gap = target - fitted.posed[rows]
        agree = (own_normal * target_normal).sum(1)
        distance = (gap * target_normal).sum(1)
        robust = (sigma**2 / (sigma**2 + distance**2)) ** 2
        w = weight[rows] * robust * (agree > 0.4) * hits.found * ~border[scan.faces[hits.face]].any(1)
        w *= evidence / (max(w[face].sum(), 0.2 * w.sum(), 1e-9) * NOISE**2)
        A = np.einsum("nc,ncp->np", target_normal, J)
        H, g = A.T @ (w[:, None] * A), A.T @ (w * distance)
        slip = 0.02 * w  # a little of the tangential gap keeps features from sliding
        H += np.einsum("ncp,n,ncq->pq", J, slip, J, optimize=True)
        g += np.einsum("ncp,n,nc->p", J, slip, gap)
        if landmarks:
            _add_landmarks(H, g, body, fitted, basis, joints, landmarks)
        offset = np.concatenate(
            [state.values - body.identity.default, state.rotations[joints].reshape(-1), state.translation]
        )
        prior = 1.0 / spread**2
        damping = DAMPING[0] * (DAMPING[1] / DAMPING[0]) ** (step / (len(SCHEDULE) - 1)) * np.diag(H)
        update = np.linalg.solve(H + np.diag(prior + damping), g - prior * offset)
        state = state.updated(update, body, joints)
        progress(f"pose and shape {step + 1}/{len(SCHEDULE)}: {1000 * np.average(np.abs(distance), weights=w + 1e-12):.2f} mm")
    return _posed(body, state)


@dataclass(frozen=True)
class _State:
    values: Array
    rotations: Array
    translation: Array

    def updated(self, update: Array, body: BodyModel, joints: list[int]) -> _State:
        K = len(self.values)
        step = np.clip(update[:K], -2 * body.identity.spread, 2 * body.identity.spread)
        values = np.clip(self.values + step, body.identity.lower, body.identity.upper)
        rotations = self.rotations.copy()
        rotations[joints] += np.clip(update[K:-3], -0.3, 0.3).reshape(-1, 3)
        return _State(values, rotations, self.translation + update[-3:])


def _trust(template: RiggedTemplate) -> Float[Array, "V"]:
    weight = np.zeros(len(template.vertices))
    for region, value in TRUST.items():
        weight[vertices_in(template, (region,))] = value
    return weight


def pose_body(body: BodyModel, rotations: Float[Array, "J 3"], translation: Float[Array, "3"]) -> Fitted:
    """The body in a pose, at a neutral expression."""
    t = body.template
    rig = Rig.from_template(t, torch.float64)
    with torch.no_grad():
        turn = torch.as_tensor(rotations)[None]
        G = rig.joint_transforms(turn, torch.as_tensor(translation)[None])[0].numpy()
        rest = rig.rest_shape(torch.zeros(1, len(t.expression_names), dtype=torch.float64), turn)[0].numpy()
    T = np.einsum("vj,jrc->vrc", t.skin_weights, G[:, :3])
    posed = np.einsum("vrc,vc->vr", T[:, :, :3], rest) + T[:, :, 3]
    return Fitted(body, rotations, translation, posed, T)


def _posed(body: BodyModel, state: _State) -> Fitted:
    return pose_body(body.at(state.values), state.rotations, state.translation)


def _jacobian(
    fitted: Fitted, basis: Float[Array, "K V 3"], joints: list[int], rows: Int[Array, "N"]
) -> Float[Array, "N 3 P"]:
    """Derivative of posed vertices: identity, joint rotations, root translation (joints' own shift with shape left out)."""
    t = fitted.body.template
    linear = fitted.transforms[rows][:, :, :3]
    identity = np.einsum("nrc,knc->nrk", linear, basis[:, rows])
    columns = [identity]
    rig = Rig.from_template(t, torch.float64)
    with torch.no_grad():
        zero = torch.as_tensor(fitted.root_translation)[None]
        base = rig.joint_transforms(torch.as_tensor(fitted.joint_rotations)[None], zero)[0, :, :3].numpy()
        step = 1e-4
        moved = np.repeat(fitted.joint_rotations[None], 3 * len(joints), axis=0)
        for i, j in enumerate(joints):
            for c in range(3):
                moved[3 * i + c, j, c] += step
        G = rig.joint_transforms(torch.as_tensor(moved), zero.expand(len(moved), 3))[:, :, :3].numpy()
    rest = np.concatenate([fitted.to_rest(fitted.posed[rows], fitted.transforms[rows]), np.ones((len(rows), 1))], 1)
    weights = t.skin_weights[rows]
    for change in (G - base) / step:
        columns.append(np.einsum("nj,jrc,nc->nr", weights, change, rest, optimize=True)[..., None])
    columns.append(np.broadcast_to(np.eye(3), (len(rows), 3, 3)))
    return np.concatenate(columns, axis=2)


def _add_landmarks(H: Array, g: Array, body: BodyModel, fitted: Fitted, basis: Array, joints: list[int], landmarks) -> None:
    names = [n for n in landmarks if n in body.landmarks]
    rows = np.array([body.landmarks[n][0] for n in names])
    J = _jacobian(fitted, basis, joints, rows)
    gap = np.array([landmarks[n] for n in names]) - fitted.posed[rows]
    weight = 1.0 / 0.005**2
    H += weight * np.einsum("ncp,ncq->pq", J, J)
    g += weight * np.einsum("ncp,nc->p", J, gap)
