"""Nearest triangles by blocks of sixteen, against Warp's own tree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import warp as wp

from tests.shapes import sphere
from threevp_nerfstudio.kernels.runtime import array, launch
from threevp_nerfstudio.kernels.triangle_blocks import (
    MOST_GROUPS,
    WIDTH,
    BlocksView,
    TriangleBlocks,
    blocks_of,
    nearest_in_blocks,
    weights_of_nearest,
)

CPU = torch.device("cpu")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@wp.kernel(enable_backward=False)
def _ask(
    points: wp.array(dtype=wp.vec3),
    limit: float,
    slot: int,
    posed: wp.array2d(dtype=wp.vec3),
    faces: wp.array(dtype=wp.int32),
    mesh: wp.uint64,
    blocks: BlocksView,
    found: wp.array2d(dtype=wp.int32),
    nearest: wp.array2d(dtype=wp.vec3),
):
    i = wp.tid()
    query = wp.mesh_query_point_no_sign(mesh, points[i], limit)
    found[0, i] = -1
    if query.result:
        found[0, i] = query.face
        nearest[0, i] = wp.mesh_eval_position(mesh, query.face, query.u, query.v)
    face = nearest_in_blocks(points[i], slot, limit, blocks)
    found[1, i] = face
    if face >= 0:
        a = posed[slot, faces[3 * face]]
        b = posed[slot, faces[3 * face + 1]]
        c = posed[slot, faces[3 * face + 2]]
        weights = weights_of_nearest(a, b, c, points[i])
        nearest[1, i] = weights[0] * a + weights[1] * b + (1.0 - weights[0] - weights[1]) * c


def ask(vertices: np.ndarray, faces: np.ndarray, poses: list[np.ndarray], points: np.ndarray, limit: float):
    """Face and distance, by Warp's tree and by blocks, each (poses, N)."""
    posed = torch.from_numpy(np.stack(poses).astype(np.float32))
    corners = torch.from_numpy(faces.astype(np.int32))
    blocks = TriangleBlocks(torch.from_numpy(vertices.astype(np.float32)), corners, len(poses))
    flat, x = array(corners.flatten()), torch.from_numpy(points.astype(np.float32))
    blocks.measure(posed, flat, len(poses))
    faces_found, distances = [], []
    for slot in range(len(poses)):
        mesh = wp.Mesh(points=array(posed[slot].contiguous(), wp.vec3), indices=flat)
        found = torch.empty(2, len(x), dtype=torch.int32)
        nearest = torch.full((2, len(x), 3), torch.inf)
        inputs = [array(x, wp.vec3), float(limit), slot, array(posed, wp.vec3), flat, mesh.id, blocks.view]
        launch(_ask, len(x), inputs, [array(found), array(nearest, wp.vec3)], CPU)
        faces_found.append(found.numpy())
        distances.append((nearest - x).norm(dim=-1).numpy())
    return np.stack(faces_found, 1), np.stack(distances, 1)


@pytest.mark.parametrize("size", [(3, 4), (6, 9), (24, 30), (80, 100)])
@pytest.mark.parametrize("limit", [0.02, 0.3])
def test_the_nearest_triangle_is_the_one_that_warp_finds(size: tuple[int, int], limit: float, rng: np.random.Generator):
    vertices, faces = sphere(0.1, *size)
    poses = [vertices, vertices * [1.0, 0.3, 1.7] + rng.normal(size=3), vertices + rng.normal(scale=0.01, size=vertices.shape)]
    points = np.concatenate([poses[k % 3][rng.integers(0, len(vertices), 200)] for k in range(3)])
    points = np.concatenate([points + rng.normal(scale=s, size=points.shape) for s in (0.0, 1e-3, 0.05, 0.2)])
    (theirs, ours), (far, ours_far) = ask(vertices, faces, poses, points, limit)
    assert (theirs >= 0).any() and (theirs < 0).any()
    np.testing.assert_array_equal(ours >= 0, theirs >= 0)
    np.testing.assert_allclose(ours_far, far, atol=1e-6)


def test_slivers_points_and_large_triangles(rng: np.random.Generator):
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [2, 0, 0], [40, 0, 3], [0, 30, 3], [-30, -30, 3]], dtype=float)
    faces = np.array([[0, 1, 2], [0, 1, 4], [0, 3, 3], [5, 6, 7]])  # a proper one, a sliver, a point, a large one
    points = rng.normal(scale=2.0, size=(300, 3))
    (_, ours), (far, ours_far) = ask(vertices, faces, [vertices], points, 100.0)
    assert set(np.unique(ours)) <= {0, 3}
    np.testing.assert_allclose(ours_far, far, rtol=1e-5, atol=1e-5)


def test_where_nothing_is_near_nothing_is_found():
    vertices, faces = sphere()
    (theirs, ours), _ = ask(vertices, faces, [vertices], vertices + [10.0, 0.0, 0.0], 1.0)
    assert (theirs == -1).all() and (ours == -1).all()


@pytest.mark.parametrize("count", [1, 16, 17, 255, 256, 257, 3000])
def test_every_triangle_has_one_place(count: int, rng: np.random.Generator):
    places = blocks_of(rng.random((count, 3)))
    assert places.shape == (-(-count // WIDTH**2), WIDTH, WIDTH)
    used = places[places >= 0]
    assert len(used) == count and (np.sort(used) == np.arange(count)).all()


def test_what_lies_together_is_in_one_leaf(rng: np.random.Generator):
    centres = rng.random((4096, 3))
    spread = np.ptp(centres[blocks_of(centres).reshape(-1, WIDTH)], axis=1).mean()
    assert spread < 2.5 * (WIDTH / 4096) ** (1 / 3)


def test_large_meshes_are_left_to_warp():
    most = MOST_GROUPS * WIDTH**2
    assert TriangleBlocks.suits(torch.zeros(most, 3, dtype=torch.int32))
    assert not TriangleBlocks.suits(torch.zeros(most + 1, 3, dtype=torch.int32))
