"""Warp's first hits are those of the brute-force twin."""

from __future__ import annotations

import torch

from threevp_nerfstudio.kernels.raycast import RayMesh, cast_reference


def scene(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A soup of triangles round the origin, a camera 3 m off, and rays of any length."""
    g = torch.Generator().manual_seed(seed)
    vertices = torch.randn(60, 3, generator=g)
    faces = torch.randint(0, 60, (40, 3), generator=g)
    faces = faces[(faces != faces.roll(1, 1)).all(1)]
    camera = torch.eye(4)
    camera[:3, :3] = torch.linalg.qr(torch.randn(3, 3, generator=g))[0]
    camera[:3, 3] = camera[:3, 2] * 3
    rays = torch.randn(500, 3, generator=g) * 0.4 + torch.tensor([0.0, 0.0, -1.0])
    return vertices, faces, camera, rays * (0.1 + 3 * torch.rand(500, 1, generator=g))


def test_first_hits_agree_with_the_twin_also_after_a_refit() -> None:
    vertices, faces, camera, rays = scene(0)
    mesh = RayMesh(vertices, faces)
    for moved in (vertices, 0.7 * vertices + 0.1):
        mesh.update(moved)
        fast, slow = mesh.cast(camera, rays), cast_reference(moved, faces, camera, rays)
        same = fast.face == slow.face
        assert same.float().mean() > 0.99  # rays through an edge may name either triangle
        assert 0.2 < fast.found.float().mean() < 1
        both = same & fast.found
        torch.testing.assert_close(fast.distance[both], slow.distance[both], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(fast.barycentric[both], slow.barycentric[both], atol=5e-4, rtol=0)


def test_barycentric_coordinates_rebuild_the_point_on_the_ray() -> None:
    vertices, faces, camera, rays = scene(1)
    hits = RayMesh(vertices, faces).cast(camera, rays)
    found = hits.found
    corners = vertices[faces[hits.face[found].long()]]
    point = (hits.barycentric[found][..., None] * corners).sum(1)
    world = torch.nn.functional.normalize(rays[found] @ camera[:3, :3].T, dim=-1)
    torch.testing.assert_close(point, camera[:3, 3] + world * hits.distance[found, None], atol=1e-4, rtol=1e-4)


def test_a_missed_ray_has_no_face_and_infinite_distance() -> None:
    vertices, faces, camera, _ = scene(2)
    hits = RayMesh(vertices, faces).cast(camera, torch.tensor([[0.0, 0.0, 1.0]]))  # looks away
    assert hits.face.tolist() == [-1]
    assert torch.isinf(hits.distance).all()
    assert (hits.barycentric == 0).all()
