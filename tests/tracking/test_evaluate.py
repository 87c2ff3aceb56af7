"""The comparison finds the errors that were put in, and none that one similarity explains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.template import Motion
from threevp_nerfstudio.capture.capture import Capture, load_capture
from threevp_nerfstudio.errors import CaptureError
from threevp_nerfstudio.tracking.evaluate import (
    angle_deg,
    compare_captures,
    correlate,
    match_frames,
    nearest_rotation,
    rigid_fit,
)


@pytest.fixture(scope="module")
def truth(tiny_capture: Path) -> Capture:
    return load_capture(tiny_capture)


def with_cameras(capture: Capture, cameras: np.ndarray) -> Capture:
    return replace(capture, frames=replace(capture.frames, camera_to_world=cameras))


def test_a_similarity_of_the_whole_is_no_error(truth: Capture):
    """The same track by a template that is larger, turned and shifted in its rest frame, and cameras to match."""
    s, R, t = 1.07, Rotation.from_rotvec([0.1, -0.2, 0.3]).as_matrix(), np.array([0.3, -0.1, 0.2])
    T = truth.template
    template = replace(
        T,
        vertices=(s * T.vertices @ R.T + t).astype(np.float32),
        joints=(s * T.joints @ R.T + t).astype(np.float32),
        expression_basis=(s * T.expression_basis @ R.T).astype(np.float32),
    )
    motion = replace(truth.motion, joint_rotations=(truth.motion.joint_rotations @ R.T).astype(np.float32))
    cameras = truth.frames.camera_to_world.copy()
    cameras[:, :3, :3] = R @ cameras[:, :3, :3]
    cameras[:, :3, 3] = s * cameras[:, :3, 3] @ R.T + t
    found = compare_captures(with_cameras(replace(truth, template=template, motion=motion), cameras), truth)
    assert found.scale == pytest.approx(1 / s, rel=1e-3)
    assert found.all.rotation_p95_deg < 0.02 and found.all.position_max_mm < 0.2 and found.all.face_mm < 0.1


def test_a_wrong_pose_is_found_where_it_is(truth: Capture):
    """Back views turned by 5 degrees about the vertical axis, every other one by the opposite."""
    cameras = truth.frames.camera_to_world.copy()
    yaw = np.degrees(np.arctan2(cameras[:, 0, 3], -cameras[:, 1, 3]))
    for n, i in enumerate(np.flatnonzero((np.abs(yaw) > 120) & (truth.frames.split != "test"))):
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("z", 5.0 * (-1) ** n, degrees=True).as_matrix()
        cameras[i] = turn @ cameras[i]
    found = compare_captures(with_cameras(truth, cameras), truth)
    assert found.sectors["150-180"].rotation_mean_deg == pytest.approx(5.0, abs=0.7)
    assert found.sectors["0-30"].rotation_mean_deg < 0.5
    assert found.all.rotation_p95_deg > 3


def test_a_head_that_is_too_far_away(truth: Capture):
    motion = replace(truth.motion, joint_rotations=truth.motion.joint_rotations.copy())
    shifted = truth.motion.root_translation.copy()
    shifted[::2, 0] += 0.010
    found = compare_captures(replace(truth, motion=replace(motion, root_translation=shifted)), truth)
    assert 3 < found.all.position_mean_mm < 8


def test_explicit_vertices_are_compared_too(truth: Capture):
    rig = Rig.from_template(truth.template)
    import torch

    m = truth.motion
    vertices = rig.pose(*(torch.as_tensor(x) for x in (m.joint_rotations, m.root_translation, m.expression))).numpy()
    names = truth.template.expression_names
    free = Motion(times=m.times, vertices=vertices, conditioning=m.expression, conditioning_names=names)
    found = compare_captures(replace(truth, motion=free), truth)
    assert found.all.rotation_mean_deg < 1.0 and found.all.face_mm < 0.1
    assert found.correlation["jaw opening"] > 0.999


def test_expressions_that_do_not_follow(truth: Capture):
    rng = np.random.default_rng(0)
    motion = replace(truth.motion, expression=rng.uniform(0, 1, truth.motion.expression.shape).astype(np.float32))
    found = compare_captures(replace(truth, motion=motion), truth)
    assert abs(found.correlation["smile"]) < 0.7


def test_another_video_is_refused(truth: Capture):
    frames = replace(truth.frames, times=truth.frames.times + 1000.0)
    with pytest.raises(CaptureError, match="are they of the same video"):
        match_frames(truth, replace(truth, frames=frames))


def test_small_pieces():
    R = Rotation.from_rotvec([[0.0, 0.0, 1e-4], [0.0, 2.0, 0.0]]).as_matrix()
    np.testing.assert_allclose(angle_deg(np.stack([np.eye(3)] * 2), R), np.degrees([1e-4, 2.0]), rtol=1e-6)
    points = np.random.default_rng(0).normal(size=(6, 3))
    T = rigid_fit(points, points @ R[1].T + [1.0, 2.0, 3.0])
    np.testing.assert_allclose(T[:3, :3], R[1], atol=1e-9)
    assert np.linalg.det(nearest_rotation(np.diag([1.0, 1.0, -1.0]))) == pytest.approx(1.0)
    assert np.isnan(correlate(np.zeros(5), np.arange(5.0))) and correlate(np.arange(5.0), 2 * np.arange(5.0)) == pytest.approx(1.0)


def test_the_command_compares_and_refuses_to_guess(tiny_capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import json
    import shutil

    from threevp_nerfstudio.cli import entry_point

    ours = tmp_path / "ours"
    shutil.copytree(tiny_capture, ours)
    entry_point(["track", "--output", str(ours), "--evaluate", str(tiny_capture)])
    assert "42 of 42 pictures of the truth are tracked" in capsys.readouterr().out
    found = json.loads((ours / "evaluation.json").read_text())
    assert found["all"]["rotation_mean_deg"] < 1e-3 and found["jaw_deg"] is None
    with pytest.raises(SystemExit, match="what shall be tracked"):
        entry_point(["track", "--output", str(ours)])
