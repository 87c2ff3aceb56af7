"""Networks on a CPU's matrix units: the same function, its rounding aside, wherever they are; and only where they help."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from threevp_nerfstudio.model import networks
from threevp_nerfstudio.model.networks import ROWS, has_matrix_units, layers, mlp


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every CPU multiplies matrices of bfloat16, if only slowly."""
    monkeypatch.setattr(networks, "has_matrix_units", lambda device_type: device_type == "cpu")


def ways(rows: int, sizes: list[int]) -> list[list[torch.Tensor]]:
    """Output, then gradients of input and parameters: in single precision and on matrix units."""
    torch.manual_seed(0)
    network, x = mlp(sizes), torch.randn(rows, sizes[0], requires_grad=True)
    pull = torch.randn(rows, sizes[-1])
    result = []
    for network.matrix_units in (False, True):
        y = network(x)
        result.append([y.detach(), *torch.autograd.grad((y * pull).sum(), [x, *network.parameters()])])
    return result


@pytest.mark.parametrize("rows", [1, 700, ROWS, 2 * ROWS + 3])
@pytest.mark.parametrize("sizes", [[32, 64, 16], [53, 64, 64, 3]])
def test_matrix_units_give_the_same_up_to_rounding(units: None, rows: int, sizes: list[int]):
    single, half = ways(rows, sizes)
    assert (single[0] - half[0]).norm() < 0.01 * single[0].norm()
    for a, b in zip(single, half, strict=True):
        assert b.dtype == torch.float32 and b.shape == a.shape
        assert torch.cosine_similarity(a.flatten(), b.flatten(), 0) > 0.99  # a unit that is nearly off may be on by rounding
    assert not torch.equal(single[0], half[0])  # they were used


def test_rows_that_fill_up_are_not_seen(units: None):
    network = mlp([4, 8, 2])
    network.matrix_units = True
    x = torch.randn(ROWS, 4)
    torch.testing.assert_close(network(x[:10]), network(x)[:10])


def test_no_rows(units: None):
    network = mlp([4, 8, 2])
    network.matrix_units = True
    x = torch.zeros(0, 4, requires_grad=True)
    y = network(x)
    y.sum().backward()
    assert y.shape == (0, 2) and all(not p.grad.any() for p in network.parameters())


def test_input_without_a_gradient(units: None):
    network = mlp([4, 8, 2])
    network.matrix_units = True
    network(torch.randn(5, 4)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_autocast_and_other_cpus_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    def forbidden(*_):
        raise AssertionError("matrix units were used")

    monkeypatch.setattr(networks._Half, "apply", forbidden)
    network, x = mlp([4, 8, 2]), torch.randn(5, 4)
    network.matrix_units = True
    monkeypatch.setattr(networks, "has_matrix_units", lambda device_type: False)
    torch.testing.assert_close(network(x), nn.Sequential(*network)(x))
    monkeypatch.setattr(networks, "has_matrix_units", lambda device_type: True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(x).dtype == torch.bfloat16
    network.matrix_units = False
    assert layers(x, list(network.parameters()), False).shape == (5, 2)


def test_no_gpu_is_taken_for_such_a_cpu():
    assert not has_matrix_units("cuda")
