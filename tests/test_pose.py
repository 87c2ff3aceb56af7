"""Named poses: files, blending, and the way to and from what the model renders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_model import performance
from threevp_nerfstudio.animation.controls import AvatarControls
from threevp_nerfstudio.animation.pose import AvatarPose, from_json, load_pose, mix, save_pose, to_json
from threevp_nerfstudio.errors import PoseError

POSE = AvatarPose({"smile": 0.5, "jawOpen": -0.25}, {"neck": (1.0, 2.0, 3.0)}, (0.0, 0.01, 0.0), 30.0)


def controls() -> AvatarControls:
    p = performance()
    count = p.num_conditioning
    return AvatarControls(p, ("root", "jaw"), -0.2 * torch.ones(count), torch.ones(count))


def test_a_pose_survives_its_file(tmp_path: Path):
    save_pose(POSE, tmp_path / "pose.json")
    assert load_pose(tmp_path / "pose.json") == POSE
    assert [p.name for p in tmp_path.iterdir()] == ["pose.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threevp_pose": 7}, "version 7"),
        ({"colour": 1}, "unknown keys"),
        ({"expression": [1]}, "an object of names"),
        ({"expression": {"smile": "wide"}}, "'smile'"),
        ({"expression": {"smile": float("nan")}}, "finite"),
        ({"joints_deg": {"neck": [1, 2]}}, "three numbers"),
        ({"light_turn_deg": True}, "light_turn_deg"),
    ],
)
def test_what_is_wrong_with_a_pose_is_named(change: dict, message: str):
    with pytest.raises(PoseError, match=message):
        from_json({**to_json(POSE), **change}, "pose.json")


def test_files_that_are_no_poses_are_refused(tmp_path: Path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text(json.dumps({"keyframes": []}))
    for name, message in (("a", "not JSON"), ("b", "not a pose file"), ("c", "cannot be read")):
        with pytest.raises(PoseError, match=message):
            load_pose(tmp_path / f"{name}.json")


def test_mixing_ends_at_the_ends_and_is_linear_between():
    other = AvatarPose({"smile": 1.5}, {"neck": (3.0, 2.0, 1.0)}, (0.0, 0.03, 0.0), 90.0)
    assert mix(POSE, other, 1.0).joints_deg == other.joints_deg
    half = mix(POSE, other, 0.5)
    assert half.expression == {"smile": 1.0, "jawOpen": -0.125}
    assert half.joints_deg == {"neck": (2.0, 2.0, 2.0)}
    assert half.root_translation == (0.0, 0.02, 0.0) and half.light_turn_deg == 60.0


@pytest.mark.parametrize("frame", [0, 3, 5])
def test_a_state_and_its_named_pose_are_the_same(frame: int):
    c = controls()
    state = c.performance.at_frames(torch.tensor([frame]))
    again = c.state(c.pose(state))
    for name in ("expression", "conditioning", "joint_rotations", "root_translation", "room"):
        torch.testing.assert_close(getattr(again, name), getattr(state, name), atol=1e-5, rtol=0)


def test_unknown_names_are_refused_together_and_ranges_are_kept():
    c = controls()
    with pytest.raises(PoseError, match=r"\['nose', 'tail'\]"):
        c.check(AvatarPose({"nose": 1.0, "tail": 1.0}))
    with pytest.raises(PoseError, match="joints"):
        c.state(AvatarPose(joints_deg={"knee": (0.0, 0.0, 0.0)}))
    wild = AvatarPose({c.channels[0]: 4.0, c.channels[1]: 0.5})
    assert c.outside(wild) == [c.channels[0]]
    assert c.outside(c.clip(wild)) == []
    assert np.isclose(c.clip(wild).expression[c.channels[0]], 1.0)


def test_the_neutral_pose_moves_nothing():
    c = controls()
    assert not c.neutral().expression and set(c.neutral().joints_deg) == set(c.joints)
    assert not c.state(AvatarPose()).conditioning[:, : len(c.channels)].any()
