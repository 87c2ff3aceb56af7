"""Drives: states at times, blending, easing, smoothing, clipping."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.shapes import ball_template
from tests.test_pose import controls
from threevp_nerfstudio.animation.controls import AvatarControls
from threevp_nerfstudio.animation.drives import (
    EASINGS,
    Drive,
    beyond,
    check_times,
    clipped,
    own_drive,
    pose_drive,
    smoothed,
    states_of,
)
from threevp_nerfstudio.animation.pose import AvatarPose
from threevp_nerfstudio.body.template import Motion
from threevp_nerfstudio.errors import PoseError
from threevp_nerfstudio.model.performance import Performance


def wave(count: int = 40, jitter: float = 0.0) -> Drive:
    """Two seconds in which the first channel rises from 0 to 1."""
    c, rng = controls(), np.random.default_rng(0)
    values = np.zeros((count, len(c.channels)))
    values[:, 0] = np.linspace(0, 1, count) + jitter * rng.normal(size=count)
    joints = np.zeros((count, len(c.joints), 3))
    joints[:, 1, 2] = values[:, 0]
    return Drive(np.linspace(0, 2, count), states_of(c, values, joints), 20.0)


def test_the_own_performance_is_what_the_model_plays():
    c = controls()
    drive = own_drive(c.performance, seconds=4.0, fps=30.0)
    assert drive.duration == pytest.approx(4.0)
    for time in (0.0, 0.8, 1.3, 4.0, 9.0):
        state, played = drive.at(time), c.performance.at_time(time / 4.0)
        for name in ("expression", "conditioning", "joint_rotations", "room"):
            torch.testing.assert_close(getattr(state, name), getattr(played, name), atol=1e-5, rtol=0)


def test_at_its_times_a_drive_is_exactly_its_states():
    drive = wave()
    for i in (0, 7, 39):
        assert torch.equal(drive.at(float(drive.times[i])).expression[0], drive.states.expression[i])
    assert torch.equal(drive.at(-3.0).expression[0], drive.states.expression[0])


@pytest.mark.parametrize("name", EASINGS)
def test_easings_start_and_end_at_the_keyframes_and_never_go_back(name: str):
    ease = EASINGS[name]
    values = [ease(u) for u in np.linspace(0, 1, 21)]
    assert values[0] == 0.0 and values[-1] == 1.0
    assert (np.diff(values) >= 0).all()


def test_easing_shapes_the_passage():
    drive = replace(wave(2), easings=("hold",))
    assert not drive.at(1.99).expression.any() and drive.at(2.0).expression[0, 0] == 1.0
    assert replace(wave(2), easings=("ease-in",)).at(1.0).expression[0, 0] == pytest.approx(0.25)


def test_smoothing_takes_out_jitter_and_keeps_what_is_slow():
    p = controls().performance
    noisy, clean = wave(jitter=0.1), wave()
    even = smoothed(noisy, 0.15, p)
    times = np.linspace(0.5, 1.5, 30)

    def error(drive: Drive) -> float:
        return float(np.mean((drive.sampled(times).expression[:, 0].numpy() - times / 2) ** 2))

    assert error(even) < 0.4 * error(noisy)
    assert error(smoothed(clean, 0.1, p)) < 1e-5
    still = pose_drive(AvatarPose({"jawOpen": 0.3}), controls())
    assert smoothed(still, 0.5, p) is still and smoothed(clean, 0.0, p) is clean


def test_smoothing_averages_rotations_whatever_the_sign_of_their_quaternions():
    drive, p = wave(), controls().performance
    joints = drive.states.joint_rotations.clone()
    joints[:, 1] = torch.tensor([0.0, 0.0, 1.0]) * torch.linspace(2.9, 3.4, 40)[:, None]  # through half a turn
    even = smoothed(replace(drive, states=replace(drive.states, joint_rotations=joints)), 0.05, p)
    turn = even.at(1.0).joint_rotations[0, 1]
    assert float(turn.norm()) == pytest.approx(3.15, abs=0.02) or float(turn.norm()) == pytest.approx(2 * np.pi - 3.15, abs=0.02)
    assert abs(float(turn[2])) == pytest.approx(float(turn.norm()), abs=1e-4)


def test_clipping_keeps_to_the_trained_range_and_says_what_leaves_it():
    c = controls()
    drive = replace(wave(), states=states_of(c, np.linspace(-3, 3, 40)[:, None] * np.array([1.0, 0.1, 0.0])))
    assert beyond(drive, c) == [c.channels[0], c.channels[1]]
    inside = clipped(drive, c)
    assert beyond(inside, c) == []
    assert float(inside.states.expression[:, 0].max()) == pytest.approx(1.0)
    torch.testing.assert_close(inside.states.conditioning[:, :3], inside.states.expression)


@pytest.mark.parametrize(
    ("times", "message"), [([], "no poses"), ([0.0, np.nan], "entry 2"), ([0.0, 1.0, 1.0], "entry 3"), ([1.0, 0.5], "out of order")]
)
def test_times_that_do_not_ascend_are_refused(times: list, message: str):
    with pytest.raises(PoseError, match=message):
        check_times(np.array(times, dtype=float), "drive")


def test_a_capture_with_explicit_vertices_plays_too():
    template = ball_template()
    rng = np.random.default_rng(0)
    motion = Motion(
        times=np.arange(4) / 4,
        vertices=(template.vertices + 0.01 * np.arange(4)[:, None, None]).astype(np.float32),
        conditioning=rng.random((4, 2)).astype(np.float32),
        conditioning_names=("open", "wide"),
    )
    times = np.linspace(0, 1, 4, dtype=np.float32)
    p = Performance(template, motion, np.arange(4), times, np.repeat(np.eye(3, dtype=np.float32)[None], 4, 0), np.ones(4, bool))
    c = AvatarControls(p, (), torch.zeros(2), torch.ones(2) * 0.5)
    own = own_drive(p, 3.0, 30.0)
    torch.testing.assert_close(own.at(1.5).vertices, p.at_time(0.5).vertices)
    assert smoothed(own, 0.1, p).at(1.5).vertices.shape == (1, len(template.vertices), 3)
    driven = clipped(Drive(np.arange(2.0), states_of(c, np.array([[0.0, 0.1], [1.0, 0.2]]))), c)
    assert driven.at(1.0).conditioning[0].tolist() == pytest.approx([0.5, 0.2])
    torch.testing.assert_close(driven.at(1.0).vertices, p.neutral().vertices)
