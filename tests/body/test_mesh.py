"""Changes of a mesh keep what they should: closedness, area, and how the vertices that stay are posed."""

import numpy as np
import pytest
import trimesh

from threevp_nerfstudio.body import mesh


@pytest.fixture
def sphere() -> tuple[np.ndarray, np.ndarray]:
    ball = trimesh.creation.icosphere(subdivisions=3)
    return np.asarray(ball.vertices, dtype=float), np.asarray(ball.faces, dtype=np.int64)


def test_subdividing_a_part_leaves_no_cracks_and_keeps_the_surface(sphere):
    v, f = sphere
    chosen = v[f].mean(1)[:, 2] > 0.3
    change = mesh.subdivide(f, chosen, len(v))
    after = trimesh.Trimesh(change.matrix @ v, change.faces, process=False)
    assert after.is_watertight and after.is_winding_consistent
    assert after.area == pytest.approx(trimesh.Trimesh(v, f).area)
    assert after.volume == pytest.approx(trimesh.Trimesh(v, f).volume)
    inner = np.bincount(change.face_source[chosen[change.face_source]])
    assert (inner[inner > 0] == 4).all()


def test_the_middle_of_an_edge_is_shared_by_its_faces(sphere):
    v, f = sphere
    change = mesh.subdivide(f, np.ones(len(f), dtype=bool), len(v))
    assert change.matrix.shape[0] == len(v) + len(mesh.edges_of(f)[0])
    np.testing.assert_allclose(change.matrix.sum(1), 1.0)


def test_closing_a_cut_makes_the_mesh_watertight(sphere):
    v, f = sphere
    cut = mesh.select(f, v[f].mean(1)[:, 2] > -0.5, len(v))
    loops = mesh.boundary_loops(cut.faces)
    assert len(loops) == 1
    whole = cut.then(mesh.close_loops(cut.faces, cut.matrix.shape[0], loops))
    closed = trimesh.Trimesh(whole.matrix @ v, whole.faces, process=False)
    assert closed.is_watertight and closed.is_winding_consistent
    assert closed.volume > 0
    assert (whole.face_source[-len(loops[0]) :] == -1).all()


def test_smoothness_vanishes_on_constants_and_normals_point_outwards(sphere):
    v, f = sphere
    L = mesh.smoothness(f, len(v))
    np.testing.assert_allclose(L @ np.ones(len(v)), 0, atol=1e-12)
    assert (mesh.vertex_normals(v, f) * v).sum(1).min() > 0.99


def test_components_count_separate_pieces(sphere):
    v, f = sphere
    two = np.concatenate([f, f + len(v)])
    labels = mesh.components(two, 2 * len(v))
    assert len(np.unique(labels)) == 2 and (labels[: len(v)] == labels[0]).all()
