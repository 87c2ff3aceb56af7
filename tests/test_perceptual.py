"""The perceptual loss: squares of rays, the network's absence, and that it teaches the field."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.tiny_training import tiny_trainer
from threevp_nerfstudio.errors import ThreeVPError
from threevp_nerfstudio.model import perceptual
from threevp_nerfstudio.model.perceptual import PerceptualLoss, as_picture

SIDE = 8


def test_pixels_become_a_picture():
    rows = torch.arange(16).float()[:, None].expand(16, 3)
    assert as_picture(rows)[0, 1].tolist() == torch.arange(16).float().view(4, 4).tolist()


def test_without_weights_the_error_says_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ThreeVPError, match="AlexNet's weights.*alexnet-owt.*torchvision.*leave the loss at 0") as caught:
        PerceptualLoss()
    assert str(tmp_path) in str(caught.value)


def blurred_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """In place of LPIPS, whose weights tests may not have."""
    pool = torch.nn.functional.avg_pool2d
    return (pool(a, 2) - pool(b, 2)).square().mean()


def test_training_renders_the_square_before_one_background(tiny_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(perceptual, "load_lpips", lambda: blurred_distance)

    def prepare(config) -> None:
        config.pipeline.model.perceptual_loss = 1.0
        config.pipeline.datamanager.perceptual_patch = SIDE
        config.pipeline.datamanager.perceptual_every = 2

    trainer = tiny_trainer(tiny_capture, tmp_path, before=prepare)
    model, seen = trainer.pipeline.model, []
    inner = model.perceptual

    def watched(rendered: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(target.detach())
        return inner(rendered, target)

    model.perceptual = watched
    names = []
    for step in range(4):
        model.before_step(step)
        names.append(set(trainer.train_iteration(step)[1]))
        model.after_step(step)
    assert ["perceptual_loss" in n for n in names] == [True, False, True, False]
    assert all(len(t) == SIDE * SIDE for t in seen)
    assert not any(name.startswith("perceptual") for name in model.state_dict())


def test_without_the_loss_no_squares_are_drawn(tiny_capture: Path, tmp_path: Path):
    bundle, _ = tiny_trainer(tiny_capture, tmp_path).pipeline.datamanager.next_train(0)
    assert "perceptual" not in bundle.metadata and len(bundle) == 64


def test_the_gradient_of_the_loss_reaches_the_rendered_pixels():
    rendered = torch.rand(64, 3, requires_grad=True)
    PerceptualLoss(blurred_distance)(rendered, torch.rand(64, 3)).backward()
    assert rendered.grad.abs().sum() > 0
