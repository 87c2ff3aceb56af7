"""Compositing of packed samples: the kernel against the same in torch, values and gradients; votes against index_add."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from threevp_nerfstudio.kernels.composite import composite, vote, weigh
from threevp_nerfstudio.model import losses, volume
from threevp_nerfstudio.model.second_pass import transmittance

ROOM = 9


def packed_rays(rays: int = 60) -> tuple[Tensor, ...]:
    """t, width, place, ends, density and colour; some rays without samples, some opaque."""
    torch.manual_seed(0)
    width = torch.rand(rays, ROOM) * 0.01
    t = width.cumsum(1) + 1.0
    count = torch.randint(0, ROOM + 1, (rays,))
    count[0] = count[-1] = 0
    place = (torch.arange(ROOM) < count[:, None]).nonzero(as_tuple=True)
    density = torch.rand(len(place[0])) * torch.tensor([1.0, 100.0, 3000.0])[torch.randint(0, 3, (len(place[0]),))]
    return t, width, place, count.cumsum(0, dtype=torch.int32), density, torch.rand(len(place[0]), 3)


def test_values_are_those_of_torch():
    t, width, place, ends, density, rgb = packed_rays()
    exact = volume.composite(density, rgb, t, width, place)
    mine = composite(density, rgb, t[place], width[place], ends)
    torch.testing.assert_close(mine.rgb, exact.rgb)
    torch.testing.assert_close(mine.accumulation, exact.accumulation)
    torch.testing.assert_close(mine.depth, exact.depth)
    torch.testing.assert_close(mine.weights, exact.weights[place])
    torch.testing.assert_close(mine.transmittance, transmittance(exact.weights)[place], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(volume.with_slots(mine.weights, place[0], ends, ROOM), exact.weights)
    weights, light = weigh(density, width[place], ends)
    assert torch.equal(weights, mine.weights) and torch.equal(light, mine.transmittance)
    background = torch.rand(len(t), 3)
    shown = composite(density, rgb, t[place], width[place], ends, background).rgb
    torch.testing.assert_close(shown, volume.over(exact.rgb, exact.accumulation, background))


@pytest.mark.parametrize("outputs", ["rgb", "accumulation", "depth", "weights", "distortion", "all"])
@pytest.mark.parametrize("over", [False, True])
def test_gradients_are_those_of_torch(outputs: str, over: bool):
    t, width, place, ends, density, rgb = packed_rays()
    background = torch.rand(len(t), 3) if over else None
    factors = torch.randn(len(t), 3), torch.randn(len(t)), torch.randn(len(t)), torch.randn(len(density))
    gradients = []
    for kernel in (False, True):
        d, c = density.clone().requires_grad_(), rgb.clone().requires_grad_()
        if kernel:
            out = composite(d, c, t[place], width[place], ends, background)
            color, weights = out.rgb, out.weights
            assert not out.transmittance.requires_grad
        else:
            out = volume.composite(d, c, t, width, place)
            color = volume.over(out.rgb, out.accumulation, background) if over else out.rgb
            weights = out.weights[place]
        slots = volume.with_slots(weights, place[0], ends, ROOM)
        terms = {
            "rgb": (color * factors[0]).sum(),
            "accumulation": (out.accumulation * factors[1]).sum(),
            "depth": (out.depth * factors[2]).sum(),
            "weights": (weights * factors[3]).sum(),
            "distortion": 100 * losses.distortion(slots, t, width),
        }
        loss = sum(terms.values()) if outputs == "all" else terms[outputs]
        gradients.append(torch.autograd.grad(loss, (d, c), allow_unused=True, materialize_grads=True))
    for mine, exact in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(mine, exact, atol=2e-7, rtol=1e-4)
    assert gradients[0][0].any()


def test_gradients_are_those_of_finite_differences():
    t, width, place, ends, density, rgb = packed_rays(8)
    density = density.clamp(20.0, 400.0)
    direction = torch.randn_like(density)

    def loss(d: Tensor) -> Tensor:
        out = composite(d, rgb, t[place], width[place], ends)
        return out.rgb.square().sum() + out.accumulation.square().sum()

    d = density.clone().requires_grad_()
    slope = (torch.autograd.grad(loss(d), d)[0] * direction).sum()
    step = 0.5
    difference = loss(density + step * direction) - loss(density - step * direction)
    torch.testing.assert_close(difference / (2 * step), slope, rtol=0.01, atol=1e-5)


def test_no_samples_at_all_show_the_background():
    ends, none = torch.zeros(5, dtype=torch.int32), torch.zeros(0)
    background = torch.rand(5, 3)
    density, rgb = none.clone().requires_grad_(), none.view(0, 3).clone().requires_grad_()
    out = composite(density, rgb, none, none, ends, background)
    assert torch.equal(out.rgb, background) and not out.accumulation.any() and not out.depth.any()
    (out.rgb.sum() + out.accumulation.sum()).backward()
    assert density.grad.shape == (0,)


def test_votes_are_counted_in_the_cells_of_the_samples_and_at_the_border():
    torch.manual_seed(0)
    votes, exact = torch.zeros(3, 4, 5), torch.zeros(60)
    origin, cell = torch.tensor([1.0, -2.0, 0.5]), 0.1
    position = origin + (torch.rand(500, 3) * 1.4 - 0.2) * torch.tensor([0.3, 0.4, 0.5])
    light = torch.rand(500)
    vote(votes, position, light, tuple(origin.tolist()), cell, 0.3, -32.0, 1.0)
    x, y, z = (
        i.clamp(0, n - 1) for i, n in zip(((position - origin) / cell).floor().long().unbind(-1), votes.shape, strict=True)
    )
    exact.index_add_(0, (x * 4 + y) * 5 + z, torch.where(light > 0.3, -32.0, 1.0))
    assert torch.equal(votes.flatten(), exact)
