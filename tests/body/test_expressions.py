"""Expressions converted to another body model move the same face the same way.

The target is the synthetic SMPL-X file, whose first 52 components are Anny's actions mixed by a known rotation.
"""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.body import synthetic_smplx
from tests.body.synthetic_smplx import mixing
from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.crop import crop
from threevp_nerfstudio.body.expressions import (
    JAW_COMPONENTS,
    Conversion,
    convert_motion,
    fit_conversion,
    load_conversion,
    match_joints,
)
from threevp_nerfstudio.body.fit import pose_body
from threevp_nerfstudio.body.smplx_body import smplx_body
from threevp_nerfstudio.body.smplx_file import read_smplx
from threevp_nerfstudio.body.template import Motion, RiggedTemplate
from threevp_nerfstudio.errors import TemplateError


@pytest.fixture(scope="module")
def smplx_portrait(anny: BodyModel, tmp_path_factory) -> BodyModel:
    path = tmp_path_factory.mktemp("smplx") / "SMPLX_NEUTRAL.npz"
    return crop(smplx_body(read_smplx(synthetic_smplx.write(path, synthetic_smplx.arrays(anny))), expressions=52))


@pytest.fixture(scope="module")
def conversion(portrait: BodyModel, smplx_portrait: BodyModel) -> Conversion:
    return fit_conversion(portrait, smplx_portrait)


@pytest.fixture(scope="module")
def back(portrait: BodyModel, smplx_portrait: BodyModel) -> Conversion:
    return fit_conversion(smplx_portrait, portrait)


def test_anny_becomes_smplx_with_little_lost(conversion):
    assert conversion.target_names[-3:] == JAW_COMPONENTS
    assert conversion.total_residual < 0.15, conversion.report()
    assert "lost" in conversion.report()


def test_the_converted_face_moves_as_the_original(portrait, smplx_portrait, conversion):
    source, target = portrait.template, smplx_portrait.template
    for name in ("mouthSmileLeft", "browInnerUp", "jawOpen"):
        k = source.expression_names.index(name)
        coefficients = conversion.matrix[k][: len(target.expression_names)]
        jaw = conversion.matrix[k][len(target.expression_names) :]
        moved = np.tensordot(coefficients, target.expression_basis, 1)
        for landmark in ("left_mouth", "upper_lip", "nose_tip"):
            here = moved[smplx_portrait.landmarks[landmark]].mean(0)
            there = source.expression_basis[k][portrait.landmarks[landmark]].mean(0)
            if np.abs(jaw).max() < 0.02:
                np.testing.assert_allclose(here, there, atol=2.5e-3)


def test_there_and_back_is_nearly_the_identity(portrait, conversion, back):
    energy = np.linalg.norm(portrait.template.expression_basis.reshape(52, -1), axis=1)
    visible = energy > np.quantile(energy, 0.3)
    visible[portrait.template.expression_names.index("tongueOut")] = False
    round_trip = conversion.matrix @ back.matrix
    shown = (round_trip[visible] @ portrait.template.expression_basis.reshape(52, -1)).reshape(visible.sum(), -1)
    true = portrait.template.expression_basis.reshape(52, -1)[visible]
    assert np.linalg.norm(shown - true) < 0.5 * np.linalg.norm(true)


def test_the_known_mixing_is_what_a_perfect_correspondence_would_give():
    mix = mixing()
    np.testing.assert_allclose(mix @ mix.T, np.eye(52), atol=1e-12)


def test_a_conversion_survives_the_disk(conversion, tmp_path):
    conversion.save(tmp_path / "conversion.npz")
    back = load_conversion(tmp_path / "conversion.npz")
    np.testing.assert_allclose(back.matrix, conversion.matrix, rtol=1e-5, atol=1e-6)
    assert back.source_names == conversion.source_names
    (tmp_path / "other.npz").write_bytes(b"no")
    with pytest.raises(TemplateError, match="no expression conversion"):
        load_conversion(tmp_path / "other.npz")


def test_a_motion_is_converted_by_names(portrait, smplx_portrait, conversion):
    source, target = portrait.template, smplx_portrait.template
    rng = np.random.default_rng(0)
    N, J = 3, len(source.joint_names)
    assert "neck02" in source.joint_names, "a joint without a counterpart, whose turn must not be lost"
    motion = Motion(
        times=np.arange(N, dtype=np.float32),
        joint_rotations=rng.normal(size=(N, J, 3)) * 0.1,
        root_translation=rng.normal(size=(N, 3)),
        expression=rng.uniform(0, 1, (N, 52)),
    )
    result = convert_motion(motion, conversion, source, target)
    assert result.expression.shape == (N, 52) and result.joint_rotations.shape == (N, len(target.joint_names), 3)
    for name, other in (("head", "head"), ("left_eye_smplhf", "eye.L"), ("left_shoulder", "upperarm01.L")):
        here = world_rotation(result.joint_rotations, target, target.joint_names.index(name))
        there = world_rotation(motion.joint_rotations, source, source.joint_names.index(other))
        np.testing.assert_allclose(here, there, atol=1e-9, err_msg=name)
    with pytest.raises(TemplateError, match="expression channels"):
        convert_motion(motion, conversion, target, source)


def world_rotation(rotations: np.ndarray, template: RiggedTemplate, joint: int) -> np.ndarray:
    R = np.eye(3)
    while joint >= 0:
        R = Rotation.from_rotvec(rotations[:, joint]).as_matrix() @ R
        joint = int(template.parents[joint])
    return R


def test_a_jaw_joint_opens_the_mouth_of_a_body_without_one(portrait, smplx_portrait, back):
    assert back.source_names[-3:] == JAW_COMPONENTS and not set(JAW_COMPONENTS) & set(back.target_names)
    source, target = smplx_portrait.template, portrait.template
    rotations = np.zeros((1, len(source.joint_names), 3))
    rotations[0, source.joint_names.index("jaw")] = [0.3, 0, 0]
    still = Motion(np.zeros(1), rotations, np.zeros((1, 3)), np.zeros((1, 52)))
    opened = convert_motion(still, back, source, target)
    lip = (opened.expression[0] @ target.expression_basis[:, portrait.landmarks["lower_lip"][0]].reshape(52, 3))[2]
    posed = pose_body(smplx_portrait, rotations[0], np.zeros(3)).posed - source.vertices
    assert lip == pytest.approx(posed[smplx_portrait.landmarks["lower_lip"][0], 2], rel=0.3) and lip < -0.004
    with pytest.raises(TemplateError, match="none of the channels"):
        convert_motion(still, back, source, replace(target, expression_names=tuple(f"x{k}" for k in range(52))))


def test_joints_match_by_name_or_meaning():
    pairs = match_joints(("root", "neck01", "head", "eye.L"), ("pelvis", "neck", "head", "jaw", "left_eye_smplhf"))
    assert pairs == [(0, 0), (1, 1), (2, 2), (4, 3)]
