"""Posing agrees with the rig that trains and renders, and derivatives with finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.capture.demo_person import demo_template
from threevp_nerfstudio.tracking.evidence import project
from threevp_nerfstudio.tracking.footage import PinholeCamera
from threevp_nerfstudio.tracking.posing import Freedoms, Pose, PosedRig, head_pivot, pose_difference, step_pose
from threevp_nerfstudio.tracking.turn import Chair


@pytest.fixture(scope="module")
def subject():
    template = demo_template(32)
    rng = np.random.default_rng(0)
    chair = Chair(np.eye(3), np.array([0.02, 0.05, 1.5]), np.array([0.0, 0.0, 0.8]))
    pose = Pose(chair.pose(0.7), 0.3 * rng.normal(size=(4, 3)), rng.uniform(size=len(template.expression_names)))
    return template, PosedRig(template), pose


def test_posing_agrees_with_the_rig(subject):
    template, rig, pose = subject
    world = Rig(template, torch.float64).pose(
        torch.as_tensor(pose.rotations)[None], torch.zeros(1, 3, dtype=torch.float64), torch.as_tensor(pose.expression)[None]
    )[0].numpy()
    T = pose.T_camera_root
    np.testing.assert_allclose(rig.place(rig.points, pose).camera, world @ T[:3, :3].T + T[:3, 3], atol=1e-9)


def test_derivatives_agree_with_finite_differences(subject):
    _, rig, pose = subject
    freedoms = Freedoms((0, 1, 2, 3), (0, 2, 5))
    points = rig.points.take(np.arange(0, len(rig.points.rest), 37))
    pivot = head_pivot(rig, pose, 3)
    J = rig.jacobian(points, rig.place(points, pose), pose, freedoms, pivot)
    for d in range(freedoms.count):
        step = np.zeros(freedoms.count)
        step[d] = 1e-5
        ahead = rig.place(points, step_pose(pose, step, freedoms, pivot)).camera
        behind = rig.place(points, step_pose(pose, -step, freedoms, pivot)).camera
        np.testing.assert_allclose(J[:, :, d], (ahead - behind) / 2e-5, atol=1e-7)


def test_a_step_is_undone_by_the_difference(subject):
    _, rig, pose = subject
    freedoms = Freedoms((1, 3), (1, 4))
    pivot = head_pivot(rig, pose, 3)
    step = 0.2 * np.random.default_rng(1).normal(size=freedoms.count)
    moved = step_pose(pose, step, freedoms, pivot)
    np.testing.assert_allclose(pose_difference(moved, pose, freedoms, pivot), step, atol=1e-9)


def test_rotations_stay_rotations(subject):
    _, rig, pose = subject
    freedoms = Freedoms((3,), ())
    for _ in range(300):
        pose = step_pose(pose, np.full(9, 0.3), freedoms, np.array([0.0, 0.0, 1.0]))
    R = pose.T_camera_root[:3, :3]
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(R) == pytest.approx(1.0)


def test_projection_derivatives():
    camera = PinholeCamera(300.0, 310.0, 64.0, 60.0, 128, 128)
    x = np.random.default_rng(0).normal(size=(20, 3)) * 0.2 + np.array([0, 0, 1.5])
    _, J = project(camera, x)
    for c in range(3):
        step = np.eye(3)[c] * 1e-6
        numeric = (project(camera, x + step)[0] - project(camera, x - step)[0]) / 2e-6
        np.testing.assert_allclose(J[:, :, c], numeric, rtol=1e-5, atol=1e-5)
