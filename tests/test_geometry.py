"""The rig and the posed-to-canonical map, by invariants."""

from __future__ import annotations

import numpy as np
import pytest
import roma
import torch

from tests.shapes import ball_template, sphere
from threevp_nerfstudio.body.mesh import vertex_normals
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.geometry.own_space import medial_radius
from threevp_nerfstudio.geometry.surface_frames import closest_barycentric, to_canonical_torch, vertex_maps_torch
from threevp_nerfstudio.model.canonical import CanonicalTemplate
from threevp_nerfstudio.model.performance import PoseState
from threevp_nerfstudio.render.orbit import axes_center, framing_of, look_at, orbit


def random_pose(batch: int, expressions: int = 3, bend: float = 0.4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 2, 3) * bend, torch.randn(batch, 3) * 0.1, torch.rand(batch, expressions)


# ---- skinning --------------------------------------------------------------------------------------------------------


def test_the_rest_pose_is_the_template():
    template = ball_template()
    rig = Rig.from_template(template)
    posed = rig.pose(torch.zeros(1, 2, 3), torch.zeros(1, 3), torch.zeros(1, 3))
    torch.testing.assert_close(posed[0], torch.from_numpy(template.vertices))


def test_skinning_commutes_with_a_rigid_motion_of_everything():
    torch.manual_seed(0)
    rig = Rig.from_template(ball_template(), torch.float64)
    joints, translation, expression = (x.double() for x in random_pose(4))
    R, t = roma.random_rotmat(dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    posed = rig.pose(joints, translation, expression)
    root = rig.joints[0]
    turned = joints.clone()
    turned[:, 0] = roma.rotmat_to_rotvec(R @ roma.rotvec_to_rotmat(joints[:, 0]))
    # the root joint stands at `root + translation` and is carried along
    carried = rig.pose(turned, (R @ (root + translation).T).T + t - root, expression)
    torch.testing.assert_close(carried, posed @ R.T + t)


def test_expressions_add_up_linearly():
    rig = Rig.from_template(ball_template())
    a, b = torch.rand(1, 3), torch.rand(1, 3)
    rest = rig.rest_shape(torch.zeros(1, 3))
    torch.testing.assert_close(rig.rest_shape(a + b) - rest, rig.rest_shape(a) + rig.rest_shape(b) - 2 * rest)


def test_gradients_are_finite_at_zero_rotation():
    rig = Rig.from_template(ball_template())
    inputs = [torch.zeros(2, 2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)]
    rig.pose(*inputs).square().sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in inputs)


# ---- posed to canonical ----------------------------------------------------------------------------------------------


def test_nearest_points_lie_on_the_triangle_and_none_is_nearer():
    torch.manual_seed(1)
    corners, p = torch.randn(200, 3, 3, dtype=torch.float64), torch.randn(200, 3, dtype=torch.float64) * 2
    b = closest_barycentric(p, corners)
    assert (b >= -1e-9).all()
    torch.testing.assert_close(b.sum(-1), torch.ones(200, dtype=torch.float64))
    best = ((b[..., None] * corners).sum(-2) - p).norm(dim=-1)
    u = torch.rand(200, 500, 3, dtype=torch.float64)
    others = (u / u.sum(-1, keepdim=True)) @ corners
    assert (best[:, None] <= (others - p[:, None]).norm(dim=-1) + 1e-9).all()


@pytest.mark.parametrize("offset", [0.0, 0.002, 0.01])
def test_posed_to_canonical_inverts_canonical_to_posed_near_the_surface(offset: float):
    torch.manual_seed(2)
    canonical = CanonicalTemplate(ball_template(), None)
    joints, translation, expression = random_pose(3)
    state = PoseState(expression, torch.eye(3).expand(3, 3, 3), joints, translation, expression)
    surface = canonical.pose(state)
    faces = canonical.rig.faces.long()
    pick = torch.randint(len(faces), (400,))
    slots = torch.arange(400) % 3
    bary = torch.distributions.Dirichlet(torch.ones(3)).sample((400,))

    def off_the_surface(vertices: torch.Tensor) -> torch.Tensor:
        corners = vertices[faces[pick]] if vertices.ndim == 2 else vertices[slots[:, None], faces[pick]]
        normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        return (bary[..., None] * corners).sum(1) + offset * torch.nn.functional.normalize(normal, dim=-1)

    x, _, distance = surface.to_canonical(off_the_surface(surface.posed[:3]), slots, 0.1)
    error = (x - off_the_surface(canonical.vertices)).norm(dim=-1)
    # on the surface it is exact; off it the blended frames bend the normals of a coarse mesh a little, and where the
    # pose folds the mesh another triangle may be nearer
    assert error.quantile(0.95) < 1e-4 + 0.5 * offset
    assert offset > 0 or error.max() < 1e-4
    assert error.median() < 1e-5 + 0.25 * offset
    assert distance.max() <= offset + 1e-5


def test_the_map_is_continuous_across_edges():
    rng = np.random.default_rng(3)
    vertices, faces = sphere(rings=6, segments=8)
    posed = torch.from_numpy(vertices + rng.normal(size=vertices.shape) * 0.004)
    canonical, triangles = torch.from_numpy(vertices).double(), torch.from_numpy(faces)
    maps = vertex_maps_torch(posed, canonical, triangles)
    a, b, c = posed[triangles[20].long()]
    middle, across = (a + b) / 2, torch.linalg.cross(b - a, torch.linalg.cross(b - a, c - a))
    across = 1e-6 * across / across.norm()
    normal = torch.linalg.cross(b - a, c - a)
    outside = middle + 0.002 * normal / normal.norm()
    x, _, _ = to_canonical_torch(torch.stack([outside - across, outside + across]), posed, canonical, triangles, maps)
    assert (x[0] - x[1]).norm() < 1e-4


def test_a_rigid_pose_maps_by_its_inverse():
    torch.manual_seed(4)
    vertices, faces = sphere()
    canonical, triangles = torch.from_numpy(vertices).double(), torch.from_numpy(faces)
    R, t = roma.random_rotmat(dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    posed = canonical @ R.T + t
    maps = vertex_maps_torch(posed, canonical, triangles)
    torch.testing.assert_close(maps, R.T.expand_as(maps))
    x = torch.randn(40, 3, dtype=torch.float64) * 0.1
    back, M, _ = to_canonical_torch(x @ R.T + t, posed, canonical, triangles, maps)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(M, R.T.expand_as(M))


# ---- orbits ----------------------------------------------------------------------------------------------------------


def test_own_space_ends_half_way_to_another_part():
    vertices, faces = sphere(rings=40, segments=60)
    second = vertices + np.array([0.22, 0.0, 0.0], dtype=np.float32)
    both = np.concatenate([vertices, second])
    normals = vertex_normals(both, np.concatenate([faces, faces + len(vertices)]))
    radius = medial_radius(both, normals, largest=0.3)
    facing = np.linalg.norm(both - [0.1, 0.0, 0.0], axis=1).argmin()
    away = np.linalg.norm(both - [-0.1, 0.0, 0.0], axis=1).argmin()
    assert radius[facing] == pytest.approx(0.01, rel=0.1)
    assert radius[away] == pytest.approx(0.3)
    # no vertex lies within any ball
    centres = both + radius[:, None] * normals
    assert (np.linalg.norm(centres[:, None] - both[None, ::7], axis=2).min(1) > radius * 0.99).all()


def test_an_orbit_looks_at_its_center_from_its_distance_and_closes():
    center = np.array([0.1, -0.2, 1.5])
    poses = orbit(center, 2.0, 0.3, np.linspace(0, 2 * np.pi, 9))
    np.testing.assert_allclose(np.linalg.norm(poses[:, :3, 3] - center, axis=1), 2.0)
    np.testing.assert_allclose(poses[:, :3, 3] - 2.0 * poses[:, :3, 2], np.tile(center, (9, 1)), atol=1e-12)
    np.testing.assert_allclose(poses[0], poses[-1], atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(poses[:, :3, :3]), 1.0)
    assert poses[0, 1, 3] < center[1] and abs(poses[0, 0, 3] - center[0]) < 1e-12  # yaw 0 sees the face, which looks along -y
    assert (poses[:, 2, 1] > 0).all()  # the world's z is up in the picture


def test_framing_finds_what_cameras_look_at_also_when_they_stand_still():
    center = np.array([0.0, 0.05, 0.8])
    poses = orbit(center, 1.7, 0.0, np.linspace(0, 5, 30))
    framing = framing_of(poses, np.full(30, 800.0), np.full(30, 256.0), middle=np.zeros(3))
    np.testing.assert_allclose(framing.center, center, atol=0.03)
    assert framing.distance == pytest.approx(1.7, abs=0.03)
    assert framing.fov_y == pytest.approx(2 * np.arctan(128 / 800))
    still = np.tile(look_at(np.array([0.0, -2.0, 0.8]), np.array([0.0, 0.0, 0.8])), (5, 1, 1))
    np.testing.assert_allclose(axes_center(still, np.array([0.0, 0.1, 0.8])), [0.0, 0.1, 0.8], atol=1e-9)
