"""Where landmarks lie, and what they move with."""

from __future__ import annotations

import numpy as np
import pytest

from tests.body import synthetic_smplx
from threevp_nerfstudio.body.anny_body import anny_body
from threevp_nerfstudio.body.crop import crop
from threevp_nerfstudio.body.smplx_body import smplx_body
from threevp_nerfstudio.body.smplx_file import read_smplx
from threevp_nerfstudio.tracking.face_points import LIDS, LIPS, face_points, personal_points
from threevp_nerfstudio.tracking.footage import PinholeCamera
from threevp_nerfstudio.tracking.posing import Pose, PosedRig

CAMERA = PinholeCamera(900.0, 900.0, 128.0, 128.0, 256, 256)


@pytest.fixture(scope="module")
def anny():
    body = crop(anny_body(), 0.2)
    template = body.template
    return template, face_points(template, body.rest(body.identity.default)[0])


def drop(template, face, channel: str, ids) -> np.ndarray:
    """How far landmarks sink when a channel is full."""
    moved = face.blend(np.asarray(template.expression_basis[template.expression_names.index(channel)], dtype=np.float64))
    return -moved[np.isin(face.ids, ids), 2]


def test_lips_and_lids_move_each_with_its_own_side(anny):
    template, face = anny
    inner_upper, inner_lower = (81, 82, 13, 312, 311), (178, 87, 14, 317, 402)
    assert np.abs(drop(template, face, "jawOpen", inner_upper)).max() < 0.006
    assert drop(template, face, "jawOpen", inner_lower).min() > 0.015
    assert np.abs(drop(template, face, "jawOpen", LIPS[0])).max() < drop(template, face, "jawOpen", (17, 14)).min()
    for channel, (upper, lower) in LIDS.items():
        assert drop(template, face, channel, upper[2:5]).min() > 0.004
        assert np.abs(drop(template, face, channel, lower)).max() < 0.003


def test_a_person_keeps_the_landmarks_where_a_detector_sees_them(anny):
    template, face = anny
    rig = PosedRig(template)
    points = face.points(rig.points)
    rng = np.random.default_rng(0)
    habit = rng.normal(0, 0.002, (478, 2))
    seen = []
    for turn in (-0.4, 0.0, 0.3):
        T = np.eye(4)
        c, s = np.cos(turn), np.sin(turn)
        T[:3, :3] = np.array([[c, s, 0], [0, 0, -1], [-s, c, 0]])
        T[:3, 3] = [0.0, 0.65, 1.2]
        placed = rig.place(points, Pose(T, np.zeros((len(template.joint_names), 3)), np.zeros(len(template.expression_names))))
        found = np.full((478, 2), np.nan)
        x = placed.camera
        uv = x[:, :2] / x[:, 2:] * 900.0 + 128.0
        found[face.ids] = uv + habit[face.ids] * np.array([np.cos(turn), 1.0]) * 900.0 / x[:, 2:]
        seen.append((placed, CAMERA, found))
    own = personal_points(seen, face)
    assert len(own.ids) > 0.9 * len(face.ids)
    np.testing.assert_allclose(own.offset[:, [0, 2]] * [1, -1], habit[own.ids], atol=8e-4)
    np.testing.assert_allclose(own.at(rig.points.rest) - own.blend(rig.points.rest), own.offset)
    assert own.noise.mean() < face.noise.mean()


def test_too_few_pictures_leave_the_usual_places(anny):
    _, face = anny
    assert personal_points([], face) is face


def test_lips_of_smplx_move_with_its_jaw(tmp_path):
    file = read_smplx(synthetic_smplx.write(tmp_path / "SMPLX_NEUTRAL.npz", synthetic_smplx.arrays(anny_body())))
    template = crop(smplx_body(file, betas=10, expressions=20), 0.2).template
    face = face_points(template)
    jaw = face.blend(np.asarray(template.skin_weights, dtype=np.float64))[:, template.joint_names.index("jaw")]
    upper, lower = jaw[np.isin(face.ids, (82, 13, 312))], jaw[np.isin(face.ids, (87, 14, 317))]
    assert len(upper) and len(lower) and lower.min() > upper.max()
