"""Arches of teeth stay with skull and jaw, whatever the lips do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.body import synthetic_smplx
from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.smplx_body import smplx_body
from threevp_nerfstudio.body.smplx_file import read_smplx
from threevp_nerfstudio.body.teeth import find_mouth, with_teeth
from threevp_nerfstudio.body.template import RiggedTemplate


def without_teeth(template: RiggedTemplate) -> RiggedTemplate:
    keep = template.face_regions != template.region_names.index("teeth")
    names = tuple("gone" if n == "teeth" else n for n in template.region_names)
    faces = template.faces[keep]
    used, packed = np.unique(faces, return_inverse=True)
    return replace(
        template,
        vertices=template.vertices[used],
        faces=packed.reshape(-1, 3).astype(np.int32),
        face_regions=template.face_regions[keep],
        region_names=names,
        skin_weights=template.skin_weights[used],
        expression_basis=template.expression_basis[:, used],
        uvs=None,
        face_uvs=None,
    )


@pytest.fixture(scope="module")
def bare(portrait: BodyModel) -> RiggedTemplate:
    return without_teeth(portrait.template)


def arches(template: RiggedTemplate) -> tuple[np.ndarray, np.ndarray]:
    """Vertices of the upper and of the lower arch."""
    index = np.unique(template.faces[template.face_regions == template.region_names.index("teeth")])
    return np.split(index, 2)


def edge_lengths(vertices: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vertices[1:] - vertices[:-1], axis=1)


def test_arches_lie_where_a_body_with_teeth_has_its_own(portrait: BodyModel, bare: RiggedTemplate):
    full = portrait.template
    own = full.vertices[np.unique(full.faces[full.face_regions == full.region_names.index("teeth")])]
    made = with_teeth(bare).vertices[np.concatenate(arches(with_teeth(bare)))]
    assert abs(own[:, 1].min() - made[:, 1].min()) < 0.005  # the incisors
    assert np.abs(np.median(own, 0) - np.median(made, 0))[[0, 2]].max() < 0.005


def test_the_upper_arch_never_moves_and_the_lower_goes_with_the_jaw(bare: RiggedTemplate):
    template = with_teeth(bare)
    upper, lower = arches(template)
    names = list(template.expression_names)
    rig, expression = Rig.from_template(template), torch.zeros(3, len(names))
    expression[1, names.index("jawOpen")] = 0.7
    expression[2, names.index("mouthSmileLeft")] = expression[2, names.index("mouthUpperUpLeft")] = 1.0
    rest, opened, smiling = rig.pose(torch.zeros(3, len(template.joint_names), 3), torch.zeros(3, 3), expression).numpy()
    np.testing.assert_allclose(opened[upper], rest[upper], atol=1e-6)
    np.testing.assert_allclose(smiling[upper], rest[upper], atol=1e-6)
    np.testing.assert_allclose(smiling[lower], rest[lower], atol=1e-6)
    chin = find_mouth(bare).chin
    moved = np.linalg.norm(opened[lower] - rest[lower], axis=1)
    of_chin = np.linalg.norm(opened[chin] - rest[chin], axis=1)
    assert 0.6 * of_chin.mean() < moved.mean() < 1.2 * of_chin.mean()
    np.testing.assert_allclose(edge_lengths(opened[lower]), edge_lengths(rest[lower]), rtol=0.1)  # rigid to first order


def test_arches_follow_a_jaw_joint(anny: BodyModel, tmp_path):
    file = synthetic_smplx.write(tmp_path / "SMPLX_NEUTRAL.npz", synthetic_smplx.arrays(anny))
    template = smplx_body(read_smplx(file)).template
    made = with_teeth(template)
    assert made is not template
    upper, lower = arches(made)
    jaw = next(i for i, n in enumerate(made.joint_names) if "jaw" in n)
    assert (made.skin_weights[lower, jaw] == 1).all() and (made.skin_weights[upper, jaw] == 0).all()
    assert not made.expression_basis[:, upper].any()


def test_templates_with_teeth_and_without_a_mouth_stay_as_they_are(portrait: BodyModel, bare: RiggedTemplate):
    assert with_teeth(portrait.template) is portrait.template
    still = replace(bare, expression_basis=np.zeros_like(bare.expression_basis))
    assert with_teeth(still) is still
    added = with_teeth(bare)
    assert with_teeth(added) is added
    np.testing.assert_array_equal(added.vertices[: len(bare.vertices)], bare.vertices)
    assert np.isclose(added.skin_weights.sum(1), 1, atol=1e-3).all()
