"""What lies between the field's networks, on Warp, is what torch makes of it, gradients included."""

from __future__ import annotations

import pytest
import torch

from tests.test_kernels import DEVICES
from threevp_nerfstudio.kernels.heads import density_head, lit
from threevp_nerfstudio.model.encodings import spherical_harmonics

N, OWN, ENCODED = 200, 5, 6
NUMBERS = {"strength": 1.5, "bias": 3.0, "ceiling": 6.0}


def density_head_torch(
    head: torch.Tensor, encoded: torch.Tensor, direction: torch.Tensor | None, strength: float, bias: float, ceiling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    value = head[:, 0] + bias
    if direction is not None:
        x, y, _ = direction.unbind(-1)
        grain = torch.stack([x * x - y * y, 2 * x * y], -1)
        value = value + strength * (head[:, 1 + OWN :] * grain).sum(-1).tanh()
    return value.clamp_max(ceiling).exp(), torch.cat([head[:, 1 : 1 + OWN], encoded], -1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("grain", ["seen", "not asked for", "none"])
@pytest.mark.parametrize("only", ["both", "density", "features"])
def test_density_and_features_agree_with_their_twin(grain: str, only: str, device: str):
    torch.manual_seed(0)
    head = (2 * torch.randn(N, 1 + OWN + (grain != "none") * 2, device=device)).requires_grad_()
    encoded = torch.randn(N, ENCODED, device=device, requires_grad=True)
    direction = torch.nn.functional.normalize(torch.randn(N, 3, device=device), dim=-1) if grain == "seen" else None
    upstream = torch.randn(N, device=device), torch.randn(N, OWN + ENCODED, device=device)
    results = []
    for twin in (False, True):
        if twin:
            out = density_head_torch(head, encoded, direction, **NUMBERS)
        else:
            out = density_head(head, encoded, direction, features=OWN, **NUMBERS)
        named = zip(("density", "features"), out, upstream, strict=True)
        parts = [(value * up).sum() for name, value, up in named if only in ("both", name)]
        gradients = torch.autograd.grad(sum(parts), (head, encoded), allow_unused=True, materialize_grads=True)
        results.append((*out, *gradients))
    assert (results[1][0] == torch.tensor(6.0).exp()).any() and (results[1][0] < 400).any()  # some are at the ceiling
    for fast, oracle in zip(*results, strict=True):
        torch.testing.assert_close(fast, oracle, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_features_are_lit_as_by_their_twin(degree: int, device: str):
    torch.manual_seed(0)
    features = torch.randn(N, 7, device=device, requires_grad=True)
    light = torch.nn.functional.normalize(torch.randn(N, 3, 2, device=device), dim=1)
    out = lit(features, light, degree)
    oracle = torch.cat([features, *(spherical_harmonics(light[..., axis], degree) for axis in (0, 1))], -1)
    torch.testing.assert_close(out, oracle)
    upstream = torch.randn_like(out)
    fast, exact = (torch.autograd.grad((value * upstream).sum(), features)[0] for value in (out, oracle))
    assert torch.equal(fast, exact)


def test_no_samples_at_all():
    density, features = density_head(torch.zeros(0, 8), torch.zeros(0, 6), torch.zeros(0, 3), features=5, **NUMBERS)
    assert density.shape == (0,) and lit(features, torch.zeros(0, 3, 2), 2).shape == (0, 11 + 16)
