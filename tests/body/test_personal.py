"""Offsets along and across the normal, and their smoothness."""

import numpy as np
import pytest

from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.labels import vertices_in
from threevp_nerfstudio.body.mesh import smoothness, subdivide, vertex_normals
from threevp_nerfstudio.body.personal import Offsets, chosen_faces, frames, region_offsets, smooth
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.errors import TemplateError


def test_frames_are_rotations_with_the_normal_last(portrait: BodyModel):
    F = frames(portrait.template)
    np.testing.assert_allclose(F.transpose(0, 2, 1) @ F, np.broadcast_to(np.eye(3), F.shape), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(F), 1, atol=1e-9)
    n = vertex_normals(portrait.template.vertices, portrait.template.faces)
    np.testing.assert_allclose(F[:, :, 2], n, atol=1e-9)


def test_offsets_between_two_shapes_take_one_to_the_other(portrait: BodyModel):
    goal = portrait.at(portrait.identity_from({"weight": 0.9})).template.vertices
    moved = Offsets.between(portrait.template, goal).apply(portrait.template)
    np.testing.assert_allclose(moved.vertices, goal, atol=1e-12)


def test_hair_rises_from_its_border_and_moves_nothing_else(portrait: BodyModel):
    t = portrait.template
    hairy = region_offsets(t, {"scalp": 0.02}).apply(t)
    height = np.linalg.norm(hairy.vertices - t.vertices, axis=1)
    assert 0.015 < height[vertices_in(t, ("scalp",))].max() < 0.022
    assert height[vertices_in(t, ("torso", "lips", "eyes", "teeth"))].max() < 1e-4
    np.testing.assert_array_equal(hairy.expression_basis, t.expression_basis)


def test_smoothing_fills_unknown_vertices_and_stiffness_smooths(portrait: BodyModel):
    t = portrait.template
    rng = np.random.default_rng(0)
    noisy = rng.normal(size=len(t.vertices))
    L = smoothness(t.faces.astype(np.int64), len(noisy))
    known = np.ones(len(noisy))
    rough = [np.linalg.norm(L @ smooth(t, noisy, known, s)) for s in (0.0, 1.0, 100.0)]
    assert rough[0] > 2 * rough[1] > 4 * rough[2]
    known[vertices_in(t, ("face",))] = 0
    constant = smooth(t, np.where(known > 0, 0.01, 5.0), known, 1.0)
    pieces_with_data = vertices_in(t, ("face", "scalp", "neck"))
    np.testing.assert_allclose(constant[pieces_with_data], 0.01, atol=1e-5)


def test_chosen_regions_are_subdivided_and_pose_as_before(portrait: BodyModel):
    t = portrait.template
    finer = portrait.remapped(subdivide(t.faces.astype(np.int64), chosen_faces(t, ("lips",)), len(t.vertices)))
    lips = t.region_names.index("lips")
    assert (finer.template.face_regions == lips).sum() >= 4 * (t.face_regions == lips).sum()
    np.testing.assert_array_equal(finer.template.vertices[: len(t.vertices)], t.vertices)
    np.testing.assert_array_equal(finer.template.expression_basis[:, : len(t.vertices)], t.expression_basis)
    assert finer.landmarks.keys() == portrait.landmarks.keys()
    area = [texture_area(t), texture_area(finer.template)]
    assert area[0] == pytest.approx(area[1], rel=1e-6)


def texture_area(t: RiggedTemplate) -> float:
    a, b, c = (t.uvs[t.face_uvs[:, k]] for k in range(3))
    return float(np.abs(np.cross(b - a, c - a)).sum())


def test_unknown_regions_and_impossible_offsets(portrait: BodyModel):
    with pytest.raises(TemplateError, match="region 'hair'.*scalp"):
        region_offsets(portrait.template, {"hair": 0.02})
    with pytest.raises(TemplateError, match="0.1 metres"):
        region_offsets(portrait.template, {"scalp": 2.0})
    with pytest.raises(TemplateError, match="region 'cap'"):
        chosen_faces(portrait.template, ("cap",))
