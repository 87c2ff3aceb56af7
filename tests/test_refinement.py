"""Corrections of tracking: exact for rigid heads, finite at zero, recovered from pictures of a known head."""

from __future__ import annotations

from pathlib import Path

import pytest
import roma
import torch

from tests.shapes import ball_template
from tests.tiny_training import tiny_trainer
from threevp_nerfstudio.model.refinement import (
    EXPECTED,
    FrameCorrections,
    correct_points,
    head_pivot,
    head_weight,
    rotate,
)

torch.manual_seed(0)
PIVOT = torch.tensor([0.02, 0.0, 1.5])


def rigid(rotation: torch.Tensor, translation: torch.Tensor) -> torch.Tensor:
    """x -> R (x - pivot) + pivot + t"""
    T = torch.eye(4, dtype=torch.float64)
    T[:3, :3] = roma.rotvec_to_rotmat(rotation.double())
    T[:3, 3] = PIVOT.double() + translation - T[:3, :3] @ PIVOT.double()
    return T


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e-3, 0.3, 2.0])
def test_rotation_is_the_exponential_and_its_gradient_is_finite(scale: float):
    rotation = (torch.randn(20, 3) * scale).requires_grad_()
    v = torch.randn(20, 3)
    expected = (roma.rotvec_to_rotmat(rotation) @ v[..., None])[..., 0]
    torch.testing.assert_close(rotate(v, rotation), expected, atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(rotate(v, rotation).sum(), rotation)
    assert torch.isfinite(gradient).all() and gradient.any()


def test_the_correction_undoes_a_wrong_pose_of_a_rigid_head():
    """Whatever the pose T: points tracked with T and really at T exp(d) come to their true canonical places."""
    rotation, translation = torch.tensor([0.03, -0.05, 0.02]), torch.tensor([0.004, -0.002, 0.006])
    T = rigid(torch.tensor([0.4, 1.1, -0.3]), torch.tensor([0.3, 0.1, -0.2]))
    truth = torch.randn(50, 3, dtype=torch.float64) * 0.1 + PIVOT
    homogeneous = torch.cat([truth, torch.ones(50, 1)], 1)
    seen = homogeneous @ (T @ rigid(rotation, translation)).T
    tracked = (seen @ torch.linalg.inv(T).T)[:, :3].float()
    assert (tracked - truth).norm(dim=1).max() > 0.005
    corrected = correct_points(
        tracked, rotation.expand(50, 3), translation.expand(50, 3), PIVOT, torch.ones(50)
    )
    torch.testing.assert_close(corrected.double(), truth, atol=1e-6, rtol=0)


def test_nothing_moves_below_the_neck_or_without_a_correction():
    x = torch.randn(100, 3) + PIVOT
    below = x[:, 2] <= PIVOT[2]
    moved = correct_points(x, torch.full((100, 3), 0.1), torch.full((100, 3), 0.01), PIVOT, head_weight(x, PIVOT))
    assert torch.equal(moved[below], x[below]) and not torch.allclose(moved[~below], x[~below])
    corrections = FrameCorrections(4, 2, PIVOT)
    frames = torch.arange(100) % 4
    assert torch.equal(corrections.points(x, frames), x)
    assert corrections.size(frames) == 0
    fade = head_weight(PIVOT + torch.linspace(-0.1, 0.2, 200)[:, None] * torch.tensor([0.0, 0.0, 1.0]), PIVOT)
    assert (fade.diff() >= 0).all() and fade[0] == 0 and fade[-1] == 1


def test_wrong_poses_are_found_from_what_is_seen():
    """Colours are a smooth function of the true canonical place; gradients through the points find each frame's error."""
    generator = torch.Generator().manual_seed(1)
    frames = 3
    truth = torch.rand(600, 3, generator=generator) * 0.2 - 0.1 + PIVOT + torch.tensor([0, 0, 0.25])
    frame = torch.arange(600) % frames
    errors = torch.randn(frames, 6, generator=generator) * torch.tensor([0.03] * 3 + [0.006] * 3)
    rotation, translation = errors[frame].split(3, -1)
    tracked = rotate(truth - PIVOT, rotation) + PIVOT + translation  # exp(d), which the correction takes back

    def colour(x: torch.Tensor) -> torch.Tensor:
        return torch.sin((x - PIVOT) @ torch.tensor([[20.0, 3, 1], [4, 25, -7], [-3, 6, 30]]))

    corrections = FrameCorrections(frames, 1, PIVOT)
    optimizer = torch.optim.LBFGS([corrections.head], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (colour(corrections.points(tracked, frame)) - colour(truth)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = torch.cat(corrections.twists(torch.arange(frames))[2:], -1)
    torch.testing.assert_close(found.detach(), errors, atol=2e-3, rtol=0)


def test_expression_offsets_belong_to_their_frames():
    corrections = FrameCorrections(5, 3, PIVOT)
    with torch.no_grad():
        corrections.expression[2] = torch.tensor([0.1, 0.0, -0.2])
    tracked = torch.rand(3, 3)
    out = corrections.conditioning(tracked, torch.tensor([0, 2, 4]))
    assert torch.equal(out[[0, 2]], tracked[[0, 2]])
    torch.testing.assert_close(out[1] - tracked[1], EXPECTED[2] * torch.tensor([0.1, 0.0, -0.2]))
    out.sum().backward()
    assert corrections.expression.grad.abs().sum(1).bool().tolist() == [True, False, True, False, True]


def test_the_pivot_is_the_heads_joint_or_the_necks():
    template = ball_template()  # joints: root, neck
    torch.testing.assert_close(head_pivot(template), torch.tensor([0.0, 0.0, 0.0]))
    bare = ball_template()
    object.__setattr__(bare, "joint_names", ("a", "b"))
    x = torch.as_tensor(bare.vertices)
    assert (head_weight(x, head_pivot(bare)) == 1).all()


def test_training_learns_corrections_only_when_asked_to(tiny_capture: Path, tmp_path: Path):
    def learned(enabled: bool):
        trainer = tiny_trainer(tiny_capture, tmp_path / str(enabled), before=lambda c: setattr(
            c.pipeline.model.refinement, "enabled", enabled))  # fmt: skip
        model = trainer.pipeline.model
        model.config.refinement.start = 2
        for step in range(6):
            model.before_step(step)
            _, losses, _ = trainer.train_iteration(step)
            model.after_step(step)
        return model, losses

    model, losses = learned(False)
    assert model.corrections is None and "refinement_loss" not in losses
    model, losses = learned(True)
    assert model.corrections.head.any() and model.corrections.body.any() and losses["refinement_loss"] >= 0
    train = torch.zeros(len(model.corrections.head), dtype=torch.bool)
    train[torch.from_numpy(model.kwargs["metadata"]["capture"].frames.split == "train")] = True
    assert not model.corrections.head[~train].any()
