"""Volume rendering and losses, by invariants."""

from __future__ import annotations

import pytest
import torch

from threevp_nerfstudio.model import losses
from threevp_nerfstudio.model.second_pass import transmittance, worthwhile
from threevp_nerfstudio.model.volume import composite, over, ray_weights


def random_rays(rays: int = 40, room: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = torch.rand(rays, room) * 0.01
    t = torch.cumsum(width, 1) + 1.0
    mask = torch.arange(room) < torch.randint(0, room + 1, (rays, 1))
    mask[0] = False
    return t, width, mask


def test_weights_are_not_negative_and_sum_to_the_opacity_of_the_whole():
    density = torch.rand(50, 20) * 1000
    width = torch.rand(50, 20) * 0.01
    weights = ray_weights(density, width)
    assert (weights >= 0).all() and (weights.sum(1) <= 1 + 1e-6).all()
    torch.testing.assert_close(weights.sum(1), 1 - torch.exp(-(density * width).sum(1)))


def test_splitting_a_sample_changes_nothing():
    density, width = torch.rand(5, 6) * 300, torch.rand(5, 6) * 0.01
    split = ray_weights(density.repeat_interleave(2, 1), width.repeat_interleave(2, 1) / 2)
    torch.testing.assert_close(split.view(5, 6, 2).sum(-1), ray_weights(density, width))


def test_an_empty_ray_shows_the_background_and_an_opaque_one_its_surface():
    t, width, mask = random_rays()
    mask[1] = True
    count = int(mask.sum())
    rgb = torch.full((count, 3), 0.25)
    rendered = composite(torch.full((count,), 1e6), rgb, t, width, mask.nonzero(as_tuple=True))
    background = torch.rand(3)
    shown = over(rendered.rgb, rendered.accumulation, background)
    torch.testing.assert_close(shown[0], background)
    torch.testing.assert_close(shown[1], torch.full((3,), 0.25))
    assert rendered.accumulation[0] == 0 and rendered.depth[0] == 0
    torch.testing.assert_close(rendered.depth[1], t[1, 0])
    assert not rendered.weights[~mask].any()


def test_packed_rendering_equals_the_dense_sum_and_its_gradients_are_finite():
    torch.manual_seed(0)
    t, width, mask = random_rays()
    density, rgb = torch.rand(int(mask.sum())) * 400, torch.rand(int(mask.sum()), 3)
    density.requires_grad_()
    rgb.requires_grad_()
    rendered = composite(density, rgb, t, width, mask.nonzero(as_tuple=True))
    dense = torch.zeros(*mask.shape, 3)
    dense[mask] = rgb.detach()
    torch.testing.assert_close(rendered.rgb.detach(), (rendered.weights.detach()[..., None] * dense).sum(1))
    even = torch.ones(len(t))
    loss = losses.photometric(rendered.rgb, torch.rand_like(rendered.rgb), even)
    loss = loss + losses.opacity(rendered.accumulation, torch.rand(len(t)), even) + losses.distortion(rendered.weights, t, width)
    loss.backward()
    assert torch.isfinite(density.grad).all() and torch.isfinite(rgb.grad).all()


def test_opacity_loss_is_finite_at_certainty_smallest_at_the_matte_and_weighted():
    matte, even = torch.tensor([0.0, 1.0]), torch.ones(2)
    assert losses.opacity(matte, matte, even) < 1e-3
    wrong = losses.opacity(1 - matte, matte, even)
    assert torch.isfinite(wrong) and wrong > 5
    empty, full = (losses.opacity(torch.tensor([0.2, 0.6]), matte, one) for one in torch.eye(2))
    torch.testing.assert_close(losses.opacity(torch.tensor([0.2, 0.6]), matte, torch.tensor([4.0, 1.0])), 4 * empty + full)


def test_distortion_is_least_when_the_weight_sits_in_one_place():
    t = torch.linspace(1.0, 1.2, 11)[None]
    width = torch.full((1, 11), 0.02)
    one, spread = torch.zeros(1, 11), torch.full((1, 11), 1 / 11)
    one[0, 4] = 1.0
    assert losses.distortion(one, t, width) == pytest.approx(0.02 / 3)
    assert losses.distortion(spread, t, width) > losses.distortion(one, t, width)
    # eq. 15 of mip-NeRF 360, written out
    pairs = sum(float(spread[0, i] * spread[0, j] * (t[0, i] - t[0, j]).abs()) for i in range(11) for j in range(11))
    assert losses.distortion(spread, t, width) == pytest.approx(pairs + float((spread**2 * width).sum()) / 3, rel=1e-4)


def test_only_samples_with_weight_and_some_in_the_light_are_worth_gradients():
    width = torch.full((400, 6), 0.01)
    density = torch.tensor([0.0, 0.0, 1e4, 1e4, 0.0, 0.0]).expand(400, 6)  # empty, surface, hidden
    weights = ray_weights(density, width)
    light = transmittance(weights)
    keep = worthwhile(weights.flatten(), light.flatten(), 0.25, torch.Generator().manual_seed(0)).view(400, 6)
    assert keep[:, 2].all() and not keep[:, 3:].any()
    assert 0.15 < keep[:, 0].float().mean() < 0.35
    torch.testing.assert_close(light[0], torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]))
