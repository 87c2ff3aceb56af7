"""What a mesh covers is what rays through the pixels' centres hit, and what the twin says."""

from __future__ import annotations

import pytest
import torch

from threevp_nerfstudio.kernels.raster import covered, covered_reference
from threevp_nerfstudio.kernels.raycast import RayMesh

HEIGHT, WIDTH = 40, 56


def scene(seed: int, faces: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Triangles in front of a camera that looks along z, some of them beyond the picture's border."""
    g = torch.Generator().manual_seed(seed)
    vertices = torch.rand(3 * faces, 3, generator=g) * torch.tensor([2.4, 1.8, 1.0]) + torch.tensor([-1.2, -0.9, 1.0])
    vertices[1::3] = vertices[0::3] + 0.3 * torch.randn(faces, 3, generator=g)
    vertices[2::3] = vertices[0::3] + 0.3 * torch.randn(faces, 3, generator=g)
    return vertices.clamp(min=torch.tensor([-9.0, -9.0, 0.3])), torch.arange(3 * faces).view(faces, 3)


def pixels(vertices: torch.Tensor, focal: float = 40.0) -> torch.Tensor:
    return focal * vertices[:, :2] / vertices[:, 2:] + torch.tensor([WIDTH / 2, HEIGHT / 2])


@pytest.mark.parametrize("seed", range(5))
def test_the_same_pixels_as_by_rays_and_by_the_twin(seed: int):
    vertices, faces = scene(seed, 24)
    xy = pixels(vertices)
    found = covered(xy, faces, HEIGHT, WIDTH)
    assert torch.equal(found, covered_reference(xy, faces, HEIGHT, WIDTH)) and 0.1 < found.float().mean() < 0.9
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    rays = torch.stack([(x - WIDTH / 2) / 40.0, (y - HEIGHT / 2) / 40.0, torch.ones_like(x)], -1).reshape(-1, 3)
    hit = RayMesh(vertices, faces).cast(torch.eye(4), rays).found.reshape(HEIGHT, WIDTH)
    assert (found != hit).float().mean() < 2e-3  # by rounding, on edges


def test_what_is_behind_the_camera_covers_nothing():
    xy = torch.tensor([[0.0, 0.0], [50.0, 0.0], [torch.nan, 30.0], [10.0, 10.0], [30.0, 10.0], [10.0, 30.0]])
    found = covered(xy, torch.tensor([[0, 1, 2], [3, 5, 4]]), HEIGHT, WIDTH)
    assert found.sum() == covered_reference(xy[3:], torch.tensor([[0, 1, 2]]), HEIGHT, WIDTH).sum() > 150
    assert not covered(xy * torch.inf, torch.tensor([[3, 4, 5]]), HEIGHT, WIDTH).any()


def test_a_triangle_far_beyond_the_picture_fills_it():
    xy = torch.tensor([[-1e6, -1e6], [1e6, -1e6], [0.0, 1e6]])
    assert covered(xy, torch.tensor([[0, 2, 1]]), HEIGHT, WIDTH).all()
    assert not covered(xy + 4e6, torch.tensor([[0, 2, 1]]), HEIGHT, WIDTH).any()
