"""Corrections of tracking: exact for rigid heads, finite at zero, recovered from pictures of a known head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import roma
import torch

from tests.shapes import ball_template
from tests.tiny_training import tiny_trainer
from threevp_nerfstudio.body.template import Motion, RiggedTemplate
from threevp_nerfstudio.capture.demo_person import demo_template
from threevp_nerfstudio.model.performance import Performance
from threevp_nerfstudio.model.refinement import (
    EXPECTED,
    FrameCorrections,
    carried,
    correct_points,
    neck_and_head,
    part_weights,
    rotate,
    turn_about,
)

torch.manual_seed(0)
PIVOT = torch.tensor([0.02, 0.0, 1.5])


def corrections_of(template: RiggedTemplate, frames: int, turned: float = 0.0) -> FrameCorrections:
    """Of a performance in which joints are turned by chance by so many radians."""
    rng = np.random.default_rng(3)
    joints = rng.normal(0, turned, (frames, len(template.joint_names), 3)).astype(np.float32)
    expression = np.zeros((frames, len(template.expression_names)), np.float32)
    motion = Motion(np.arange(frames) / 30, joints, np.zeros((frames, 3), np.float32), expression)
    room = np.tile(np.eye(3, dtype=np.float32), (frames, 1, 1))
    performance = Performance(template, motion, np.arange(frames), np.arange(frames) / frames, room, np.ones(frames, bool))
    return FrameCorrections(template, performance, torch.as_tensor(template.vertices))


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e-3, 0.3, 2.0])
def test_rotation_is_the_exponential_and_its_gradient_is_finite(scale: float):
    rotation = (torch.randn(20, 3) * scale).requires_grad_()
    v = torch.randn(20, 3)
    expected = (roma.rotvec_to_rotmat(rotation) @ v[..., None])[..., 0]
    torch.testing.assert_close(rotate(v, rotation), expected, atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(rotate(v, rotation).sum(), rotation)
    assert torch.isfinite(gradient).all() and gradient.any()


def test_twists_are_what_moves_and_are_seen_from_other_frames():
    point, x = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    turns = turn_about(point)
    for axis in range(3):
        turn, shift = turns[:, axis].split(3)
        assert torch.allclose(turn, torch.eye(3, dtype=torch.float64)[axis])
        torch.testing.assert_close(torch.linalg.cross(turn, x) + shift, torch.linalg.cross(turn, x - point))
    A = torch.eye(4, dtype=torch.float64)
    A[:3, :3], A[:3, 3] = roma.random_rotmat(dtype=torch.float64), torch.randn(3)
    turn, shift = carried(turns, A)[:, 1].split(3)
    there = A[:3, :3] @ x + A[:3, 3]
    moved = torch.linalg.cross(turns[:3, 1], there) + turns[3:, 1]
    torch.testing.assert_close(A[:3, :3] @ (torch.linalg.cross(turn, x) + shift), moved)


def test_the_correction_undoes_a_wrong_pose_of_a_rigid_head():
    """Whatever the pose T: points tracked with T and really at T exp(d) come to their true canonical places."""
    turn, shift = torch.tensor([0.03, -0.05, 0.02]), torch.tensor([0.004, -0.002, 0.006])
    d = torch.eye(4, dtype=torch.float64)
    d[:3, :3] = roma.rotvec_to_rotmat(turn.double())
    d[:3, 3] = PIVOT.double() + shift - d[:3, :3] @ PIVOT.double()
    truth = torch.randn(50, 3, dtype=torch.float64) * 0.1 + PIVOT
    tracked = (torch.cat([truth, torch.ones(50, 1)], 1) @ d.T)[:, :3].float()
    assert (tracked - truth).norm(dim=1).max() > 0.005
    twist = torch.cat([turn, shift - torch.linalg.cross(turn, PIVOT)])
    torch.testing.assert_close(correct_points(tracked, twist.expand(50, 6), PIVOT).double(), truth, atol=1e-6, rtol=0)


def test_parts_go_with_their_joints():
    template = demo_template(32)
    weights = part_weights(template)
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-5)
    chain = neck_and_head(template)
    assert chain == (2, 3)
    np.testing.assert_allclose(weights[:, 2], template.skin_weights[:, 3:].sum(1), atol=1e-5)  # jaw and eyes hang from the head
    corrections = corrections_of(template, 2)
    x = torch.as_tensor(template.vertices)
    np.testing.assert_allclose(corrections.parts(x).numpy(), weights, atol=0.35)  # cells are larger than what is between
    sure = weights.max(1) > 0.999
    assert np.abs(corrections.parts(x).numpy() - weights)[sure].mean() < 0.02
    with torch.no_grad():
        corrections.head[:, 3:] = 1.0
    moved = corrections.points(x, torch.zeros(len(x), dtype=torch.long), torch.tensor([1])) - x
    assert moved[weights[:, 2] > 0.999].norm(dim=1).mean() > 0.001 and moved[x[:, 2] < x[:, 2].min() + 0.05].abs().max() < 1e-5


def test_without_a_correction_nothing_moves():
    corrections = corrections_of(demo_template(16), 4, turned=0.3)
    x, frames = torch.randn(100, 3), torch.arange(100) % 4
    torch.testing.assert_close(corrections.points(x, frames, torch.arange(4)), x, atol=1e-6, rtol=0)
    assert corrections.size(frames) == 0


def test_a_joint_that_is_all_there_is_of_head_and_neck():
    template = ball_template()  # joints: root, neck
    assert neck_and_head(template) == (1,)
    bare = replace(template, joint_names=("a", "b"))
    assert neck_and_head(bare) is None and (part_weights(bare)[:, 0] == 1).all()
    assert neck_and_head(replace(demo_template(16), joint_names=("root", "spine", "collar", "head"))) == (3,)
    for some in (template, bare):
        corrections = corrections_of(some, 2)
        with torch.no_grad():
            corrections.body[:] = 1.0
        x = torch.as_tensor(some.vertices)
        assert (corrections.points(x, torch.zeros(len(x), dtype=torch.long), torch.tensor([0])) - x).norm(dim=1).min() > 1e-4


def colour(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(x @ torch.tensor([[20.0, 3, 1], [4, 25, -7], [-3, 6, 30]]))


def test_wrong_poses_are_found_from_what_is_seen():
    """Colours are a smooth function of the true canonical place; gradients through the points find each frame's error."""
    template, frames = demo_template(32), 3
    truth, found = corrections_of(template, frames, turned=0.3), corrections_of(template, frames, turned=0.3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in (truth.body, truth.head):
            part.copy_(torch.randn(part.shape, generator=generator))
    x = torch.as_tensor(template.vertices)
    of = torch.arange(len(x)) % frames
    goal = colour(truth.points(x, of, torch.arange(frames))).detach()
    optimizer = torch.optim.LBFGS([found.body, found.head], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (colour(found.points(x, of, torch.arange(frames))) - goal).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    for a, b in zip(found.motions(torch.arange(frames)), truth.motions(torch.arange(frames)), strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), atol=2e-3, rtol=0)


def test_sensitivity_is_the_derivative_along_rays():
    corrections = corrections_of(demo_template(32), 2, turned=0.3)
    x = torch.as_tensor(demo_template(32).vertices)[::7]
    ray = torch.arange(len(x)) // 5
    rays, direction = int(ray.max()) + 1, torch.randn(3)
    points = corrections.points(x, torch.zeros_like(ray), torch.tensor([1]))
    per_ray = torch.zeros(rays).index_add_(0, ray, colour(points) @ direction)
    held = points.detach().requires_grad_()
    (gradient,) = torch.autograd.grad((colour(held) @ direction).sum(), held)
    found = corrections.sensitivity(held.detach(), gradient, ray, rays, 1)
    for r in (0, rays // 2, rays - 1):
        body, head = torch.autograd.grad(per_ray[r], (corrections.body, corrections.head), retain_graph=True)
        torch.testing.assert_close(found[r], torch.cat([body[1], head[1]]), atol=1e-4, rtol=1e-3)


def test_expression_offsets_belong_to_their_frames():
    corrections = corrections_of(demo_template(16), 5)
    with torch.no_grad():
        corrections.expression[2, :3] = torch.tensor([0.1, 0.0, -0.2])
    tracked = torch.rand(3, corrections.expression.shape[1])
    out = corrections.conditioning(tracked, torch.tensor([0, 2, 4]))
    assert torch.equal(out[[0, 2]], tracked[[0, 2]])
    torch.testing.assert_close(out[1, :3] - tracked[1, :3], EXPECTED[2] * torch.tensor([0.1, 0.0, -0.2]))
    out.sum().backward()
    assert corrections.expression.grad.abs().sum(1).bool().tolist() == [True, False, True, False, True]


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
