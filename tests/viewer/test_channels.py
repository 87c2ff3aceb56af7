"""What channel names say, and the angles of a skeleton."""

from __future__ import annotations

import numpy as np
import pytest

from threevp_nerfstudio.animation.pose import AvatarPose
from threevp_nerfstudio.viewer.channels import (
    GROUPS,
    PRESETS,
    gaze_for,
    group_of,
    grouped,
    mirror_name,
    presets_for,
    spoken,
)
from threevp_nerfstudio.viewer.joints import JointAngle, angle_limits, joint_angles, mirrored

ARKIT = [
    "browDownLeft",
    "browDownRight",
    "browInnerUp",
    "browOuterUpLeft",
    "browOuterUpRight",
    "cheekPuff",
    "cheekSquintLeft",
    "cheekSquintRight",
    "eyeBlinkLeft",
    "eyeBlinkRight",
    "eyeLookDownLeft",
    "eyeLookDownRight",
    "eyeLookInLeft",
    "eyeLookInRight",
    "eyeLookOutLeft",
    "eyeLookOutRight",
    "eyeLookUpLeft",
    "eyeLookUpRight",
    "eyeSquintLeft",
    "eyeSquintRight",
    "eyeWideLeft",
    "eyeWideRight",
    "jawForward",
    "jawLeft",
    "jawOpen",
    "jawRight",
    "mouthClose",
    "mouthDimpleLeft",
    "mouthDimpleRight",
    "mouthFrownLeft",
    "mouthFrownRight",
    "mouthFunnel",
    "mouthLeft",
    "mouthPressLeft",
    "mouthPressRight",
    "mouthPucker",
    "mouthRight",
    "mouthSmileLeft",
    "mouthSmileRight",
    "noseSneerLeft",
    "noseSneerRight",
    "tongueOut",
]
COMPONENTS = [f"smplx_expression_{k:03d}" for k in range(100)]


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("browDownLeft", "brows"), ("cheekSquintLeft", "cheeks"), ("noseSneerLeft", "cheeks"), ("eyeSquintLeft", "eyes"),
        ("jawOpen", "jaw"), ("mouthSmileLeft", "mouth"), ("tongueOut", "mouth"), ("left_eyebrow_up", "brows"),
        ("smplx_expression_003", "components"), ("c7", "components"),
    ],
)  # fmt: skip
def test_a_channel_is_in_the_group_of_what_it_moves(name: str, group: str):
    assert group_of(name) == group


def test_every_channel_is_in_one_group():
    groups = grouped([*ARKIT, *COMPONENTS])
    assert sorted(sum(groups.values(), [])) == sorted([*ARKIT, *COMPONENTS])
    assert list(groups) == list(GROUPS) and groups["components"] == COMPONENTS


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("mouthSmileLeft", "mouthSmileRight"), ("jawRight", "jawLeft"), ("eye.L", "eye.R"), ("brow_R_up", "brow_L_up"),
        ("right_eye", "left_eye"), ("jawOpen", "jawOpen"), ("eyeLookInLeft", "eyeLookInRight"),
    ],
)  # fmt: skip
def test_the_mirror_of_a_name_is_the_other_side(name: str, other: str):
    assert mirror_name(name, {name, other}) == other
    assert mirror_name(other, {name, other}) == name
    assert mirror_name(name, {name}) == name  # where the avatar has no other side


def test_names_are_spoken_without_their_group():
    assert spoken("mouthSmileLeft") == "smile left"
    assert spoken("eyeLookInLeft") == "look in left"
    assert spoken("noseSneerLeft") == "nose sneer left"
    assert spoken("smplx_expression_003") == "smplx expression 003"
    assert spoken("mouth") == "mouth"


def test_presets_stay_within_what_training_saw_and_are_left_out_where_it_saw_nothing():
    highest = dict.fromkeys(ARKIT, 0.5)
    presets = presets_for(highest)
    assert set(presets) == set(PRESETS)
    assert all(0 < v <= 0.5 for values in presets.values() for v in values.values())
    assert presets["smile"]["mouthSmileLeft"] == 0.5 and presets["neutral"] == {}
    assert "pucker" not in presets_for({**highest, "mouthPucker": 0.0})
    assert list(presets_for(dict.fromkeys(COMPONENTS, 2.0))) == ["neutral"]


def test_presets_find_channels_spelt_otherwise():
    assert presets_for({"mouth_smile_left": 1.0, "Mouth.Smile.Right": 1.0})["smile"].keys() == {
        "mouth_smile_left",
        "Mouth.Smile.Right",
    }


def test_gaze_moves_both_eyes_or_is_not_offered():
    gaze = gaze_for(ARKIT)
    assert gaze["look left / right"]["eyeLookOutLeft"] == 1.0 == -gaze["look left / right"]["eyeLookOutRight"]
    assert gaze_for([n for n in ARKIT if n != "eyeLookUpLeft"]).keys() == {"look left / right"}


JOINTS = ("root", "neck01", "neck02", "head", "jaw", "eye.L", "eye.R")
NEUTRAL = {n: (1.0, 2.0, 3.0) for n in JOINTS}


@pytest.mark.parametrize("angle", joint_angles(JOINTS), ids=lambda a: a.label)
def test_turning_by_an_angle_sets_that_angle_and_nothing_else(angle: JointAngle):
    pose = AvatarPose(joints_deg={**NEUTRAL, "neck01": (4.0, 5.0, 6.0)})
    turned = angle.turned(pose, NEUTRAL, 10.0)
    assert angle.value(turned.joints_deg, NEUTRAL) == pytest.approx(10.0)
    for other in joint_angles(JOINTS):
        if other != angle:
            assert other.value(turned.joints_deg, NEUTRAL) == pytest.approx(other.value(pose.joints_deg, NEUTRAL))


def test_a_chain_shares_an_angle_and_a_pair_of_eyes_does_not():
    angles = {a.label: a for a in joint_angles(JOINTS)}
    neck = angles["neck nod (°)"].turned(AvatarPose(), NEUTRAL, 8.0)
    assert neck.joints_deg["neck01"][0] == neck.joints_deg["neck02"][0] == 1.0 + 4.0
    gaze = angles["gaze down (°)"].turned(AvatarPose(), NEUTRAL, 8.0)
    assert gaze.joints_deg["eye.L"][0] == gaze.joints_deg["eye.R"][0] == 1.0 + 8.0


def test_limits_of_an_angle_hold_every_pose_of_training_and_neutral():
    angles = joint_angles(JOINTS)
    rotations = np.random.default_rng(0).normal(5.0, 3.0, size=(40, len(JOINTS), 3))
    for angle in angles:
        limit = angle_limits(angle, JOINTS, rotations, NEUTRAL)
        values = [angle.value(dict(zip(JOINTS, map(tuple, r), strict=True)), NEUTRAL) for r in rotations]
        assert limit.low == pytest.approx(min(0.0, *values)) and limit.high == pytest.approx(max(0.0, *values))


def test_mirroring_twice_is_nothing_and_mirrors_turns():
    pose = AvatarPose(
        {"jawLeft": 0.4, "jawOpen": 0.2}, {"head": (1.0, 2.0, 3.0), "eye.L": (4.0, 5.0, 6.0)}, (0.1, 0.2, 0.3), 40.0
    )
    once = mirrored(pose, ARKIT, JOINTS)
    assert once.expression == {"jawRight": 0.4, "jawOpen": 0.2}
    assert once.joints_deg == {"head": (1.0, -2.0, -3.0), "eye.R": (4.0, -5.0, -6.0)}
    assert once.root_translation == (-0.1, 0.2, 0.3) and once.light_turn_deg == 40.0
    assert mirrored(once, ARKIT, JOINTS) == pose


def test_skeletons_without_names_have_no_angles():
    assert joint_angles([f"bone{i}" for i in range(9)]) == []
