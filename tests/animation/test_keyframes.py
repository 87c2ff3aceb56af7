"""Keyframe files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_pose import controls
from threevp_nerfstudio.animation.keyframes import keyframe_drive, pose_files, read_json, read_keyframes
from threevp_nerfstudio.animation.pose import AvatarPose, save_pose
from threevp_nerfstudio.errors import PoseError


def write(folder: Path, keyframes: list, **extra) -> tuple[dict, Path]:
    content = {"threevp_keyframes": 1, "keyframes": keyframes, **extra}
    path = folder / "keys.json"
    path.write_text(json.dumps(content))
    return content, path


def test_keyframes_blend_pose_files_with_easing(tmp_path: Path):
    (tmp_path / "poses").mkdir()
    save_pose(AvatarPose({"jawOpen": 0.8}, {"jaw": (0.0, 0.0, 20.0)}), tmp_path / "poses" / "open.json")
    inline = {"threevp_pose": 1, "expression": {"mouthSmileLeft": 0.5}}
    content, path = write(
        tmp_path,
        [
            {"time": 1.0, "pose": "neutral", "easing": "linear"},
            {"time": 2.0, "pose": "poses/open.json", "easing": "hold"},
            {"time": 3.0, "pose": inline},
        ],
    )
    drive = keyframe_drive(read_keyframes(content, path), controls(), "keys")
    assert drive.duration == 2.0  # it starts with its first keyframe
    assert drive.at(0.25).expression[0, 0] == pytest.approx(0.2)
    assert drive.at(1.9).expression[0, 0] == pytest.approx(0.8)
    assert drive.at(2.0).expression[0].tolist() == pytest.approx([0.0, 0.0, 0.5])
    middle = controls().pose(drive.at(0.5)).joints_deg["jaw"][2]
    start = controls().neutral().joints_deg["jaw"][2]
    assert min(start, 20.0) - 1.0 <= middle <= max(start, 20.0) + 1.0
    assert pose_files(content, path) == [tmp_path / "poses" / "open.json"]


@pytest.mark.parametrize(
    ("keyframes", "extra", "message"),
    [
        ([], {}, "at least one keyframe"),
        ([{"time": 0}], {}, r"keyframes\[0\]: an object with 'time' and 'pose'"),
        ([{"time": "soon", "pose": "neutral"}], {}, "finite number of seconds"),
        ([{"time": 0, "pose": "neutral", "easing": "jump"}], {}, "easing is 'jump'"),
        ([{"time": 0, "pose": "neutral"}], {"easing": ["linear"]}, "easing is"),
        ([{"time": 0, "pose": "neutral", "ease": "hold"}], {}, "unknown keys"),
        ([{"time": 1, "pose": "neutral"}, {"time": 0, "pose": "neutral"}], {}, "out of order"),
        ([{"time": 0, "pose": "none.json"}], {}, "cannot be read"),
        ([{"time": 0, "pose": "../other.json"}], {}, "leads out of"),
        ([{"time": 0, "pose": 3}], {}, "pose is 3"),
        ([{"time": 0, "pose": {"threevp_pose": 1, "expression": {"jawOpen": "wide"}}}], {}, "jawOpen"),
    ],
)
def test_what_is_wrong_with_keyframes_is_named(tmp_path: Path, keyframes: list, extra: dict, message: str):
    with pytest.raises(PoseError, match=message):
        read_keyframes(*write(tmp_path, keyframes, **extra))


def test_names_that_the_avatar_does_not_have_are_refused(tmp_path: Path):
    keyframes = read_keyframes(*write(tmp_path, [{"time": 0, "pose": {"threevp_pose": 1, "expression": {"nose": 1}}}]))
    with pytest.raises(PoseError, match=r"keys: keyframes\[0\].*nose"):
        keyframe_drive(keyframes, controls(), "keys")


def test_other_json_files_are_refused(tmp_path: Path):
    with pytest.raises(PoseError, match="not a keyframe file"):
        read_keyframes({"threevp_keyframes": 2}, tmp_path / "a.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(PoseError, match="not JSON"):
        read_json(tmp_path / "b.json")
