"""Displacement by blendfields on Warp is that of plain torch, gradients included."""

from __future__ import annotations

import pytest
import torch

from tests.test_kernels import DEVICES
from threevp_nerfstudio.kernels.displace import displace, face_samples

BOX = torch.tensor([[-0.4, -0.3, -0.5], [0.4, 0.3, 0.5]])
FACE = torch.tensor([[-0.1, -0.3, -0.1], [0.1, 0.0, 0.15]])
SCALE = 0.01


def window(x: torch.Tensor) -> torch.Tensor:
    return (torch.minimum(x - FACE[0].to(x), FACE[1].to(x) - x).amin(-1) / 0.02).clamp(0.0, 1.0)


def unit(x: torch.Tensor) -> torch.Tensor:
    return ((x - BOX[0].to(x)) / (BOX[1] - BOX[0]).max().to(x)).clamp(0.0, 1.0)


def samples(count: int = 500) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions in and beside the face, and a few beyond the box; their frames, of which the second is neutral."""
    torch.manual_seed(0)
    position = FACE.mean(0) + 0.3 * (torch.rand(count, 3) - 0.5)
    position[:5, 1] = -0.31
    return position, torch.randint(0, 4, (count,)), torch.tensor([True, False, True, True])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("K", [1, 5])
def test_displacement_agrees_with_its_twin(K: int, device: str):
    position, frame, expressive = (x.to(device) for x in samples())
    face = face_samples(position, frame, expressive, FACE.to(device), BOX.to(device))
    w = window(position) * expressive[frame]
    index = (w > 0).nonzero().squeeze(-1)
    assert 20 < len(index) < 400 and torch.equal(face.moving, w > 0)
    torch.testing.assert_close(face.window, w)
    torch.testing.assert_close(face.where, unit(position[index]))
    fields = torch.randn(len(index), 3 * K, device=device, requires_grad=True)
    coefficients = torch.randn(4, K, device=device, requires_grad=True)
    upstream = [torch.randn(500, 3, device=device) for _ in range(2)]
    results = []
    for twin in (False, True):
        if twin:
            moved = torch.bmm(coefficients[frame[index]][:, None], fields.view(-1, K, 3)).squeeze(1)
            displacement = torch.zeros_like(position).index_add(0, index, SCALE * moved * w[index, None])
            place = unit(position + displacement)
        else:
            place, displacement = displace(face, fields, coefficients, SCALE)
        both = torch.autograd.grad(
            (place * upstream[0]).sum() + (displacement * upstream[1]).sum(), (fields, coefficients), retain_graph=True
        )
        one = torch.autograd.grad((place * upstream[0]).sum(), (fields, coefficients))
        results.append((place, displacement, *both, *one))
    for fast, oracle in zip(*results, strict=True):
        torch.testing.assert_close(fast, oracle, rtol=1e-4, atol=1e-5)


def test_where_nothing_moves_nothing_is_displaced():
    position, frame, _ = samples()
    face = face_samples(position, frame, torch.zeros(4, dtype=torch.bool), FACE, BOX)
    assert len(face.where) == 0 and not face.moving.any()
    fields, coefficients = torch.zeros(0, 6, requires_grad=True), torch.ones(4, 2, requires_grad=True)
    place, displacement = displace(face, fields, coefficients, SCALE)
    assert not displacement.any()
    torch.testing.assert_close(place, unit(position))
    place.sum().backward()
    assert fields.grad.shape == (0, 6) and not coefficients.grad.any()


def test_no_samples_at_all():
    face = face_samples(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.ones(1, dtype=torch.bool), FACE, BOX)
    place, _ = displace(face, torch.zeros(0, 3), torch.ones(1, 1), SCALE)
    assert place.shape == (0, 3)
