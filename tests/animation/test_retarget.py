"""From one face to another: channels by name, joints relative to each neutral pose, whatever the skeletons."""

from __future__ import annotations

import numpy as np
import pytest
import roma
import torch

from threevp_nerfstudio.animation.retarget import (
    Skeleton,
    face_rotation,
    transfer_channels,
    transfer_joints,
    turn_head,
)
from threevp_nerfstudio.body.expressions import Conversion
from threevp_nerfstudio.errors import PoseError

ANNY = Skeleton(("root", "spine01", "neck01", "neck02", "neck03", "head", "eye.L"), (-1, 0, 1, 2, 3, 4, 5), np.zeros((7, 3)))
SMPLX = Skeleton(("pelvis", "neck", "head", "jaw", "left_eye_smplhf"), (-1, 0, 1, 2, 2), np.zeros((5, 3)))


def random_pose(skeleton: Skeleton, count: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, len(skeleton.names), 3)) * 0.3


def with_neutral(skeleton: Skeleton, seed: int) -> Skeleton:
    return Skeleton(skeleton.names, skeleton.parents, random_pose(skeleton, 1, seed)[0] * 0.5)


def turned(rotations: np.ndarray, skeleton: Skeleton, name: str) -> torch.Tensor:
    """Rotation of a joint in the world."""
    R = torch.eye(3, dtype=torch.float64).expand(len(rotations), 3, 3)
    for j in skeleton.path(skeleton.names.index(name), None):
        R = R @ roma.rotvec_to_rotmat(torch.from_numpy(rotations[:, j]))
    return R


def test_onto_the_same_skeleton_nothing_changes():
    skeleton, rotations = with_neutral(ANNY, 1), random_pose(ANNY)
    np.testing.assert_allclose(transfer_joints(rotations, skeleton, skeleton).rotations, rotations, atol=1e-9)


@pytest.mark.parametrize(("source", "target"), [(ANNY, SMPLX), (SMPLX, ANNY), (ANNY, ANNY)])
def test_the_neutral_pose_of_one_becomes_that_of_the_other(source: Skeleton, target: Skeleton):
    source, target = with_neutral(source, 1), with_neutral(target, 2)
    result = transfer_joints(source.neutral[None], source, target)
    np.testing.assert_allclose(result.rotations[0], target.neutral, atol=1e-9)


@pytest.mark.parametrize(("source", "target"), [(ANNY, SMPLX), (SMPLX, ANNY)])
def test_the_head_ends_up_turned_as_in_the_source_with_more_or_fewer_neck_joints(source: Skeleton, target: Skeleton):
    rotations = random_pose(source)
    rotations[:, source.names.index("head") - 1 : source.names.index("head")] *= 1.5
    result = transfer_joints(rotations, source, target)
    torch.testing.assert_close(
        turned(result.rotations, target, "head"), turned(rotations, source, "head"), atol=1e-9, rtol=0
    )


def test_joints_without_a_counterpart_are_listed():
    result = transfer_joints(random_pose(SMPLX), SMPLX, ANNY)
    assert result.dropped == ("jaw",)
    assert set(transfer_joints(random_pose(ANNY), ANNY, SMPLX).folded) == {"spine01", "neck02", "neck03"}
    still = random_pose(SMPLX) * np.array([1, 1, 1, 0, 1])[None, :, None]
    assert transfer_joints(still, SMPLX, ANNY).dropped == ()


def test_channels_go_by_name_and_the_rest_is_listed():
    values = np.array([[0.1, 0.2, 0.0, 0.4], [0.5, 0.6, 0.0, 0.8]])
    result = transfer_channels(("JawOpen", "tail", "fin", "mouth_smile_L"), values, ("mouthSmileLeft", "x", "jawOpen"), None, "t")
    np.testing.assert_allclose(result.values, [[0.4, 0, 0.1], [0.8, 0, 0.5]])
    assert result.matched == 2 and result.dropped == ("tail",) and result.unused == ("fin",) and result.undriven == ("x",)


def test_a_conversion_stands_between_body_models():
    matrix = np.array([[0.0, 0.3, 0, 0], [2.0, 0, 0, 0]])
    conversion = Conversion(("jawOpen", "smile"), ("e0", "jaw_x", "jaw_y", "jaw_z"), matrix, np.zeros(2), 0.0)
    result = transfer_channels(("smile", "jawOpen", "blink"), np.array([[0.5, 1.0, 0.7]]), ("e0", "e1"), conversion, "t")
    np.testing.assert_allclose(result.values, [[1.0, 0.0]])
    np.testing.assert_allclose(result.jaw, [[0.3, 0.0, 0.0]])
    assert result.dropped == ("blink",)
    with pytest.raises(PoseError, match="conversion takes"):
        transfer_channels(("other",), np.zeros((1, 1)), ("e0",), conversion, "t")


def test_a_drive_without_any_matching_channel_is_refused():
    with pytest.raises(PoseError, match="no channel has the name.*convert-expressions"):
        transfer_channels(("a", "b"), np.ones((2, 2)), ("jawOpen",), None, "t")


def test_head_angles_turn_the_face_to_its_left_down_and_to_its_right():
    nose, crown, left = np.array([0, -1.0, 0]), np.array([0, 0, 1.0]), np.array([1.0, 0, 0])
    yaw, pitch, roll = (face_rotation(np.array([a])).numpy()[0] for a in ([0.2, 0, 0], [0, 0.2, 0], [0, 0, 0.2]))
    assert (yaw @ nose)[0] > 0.19  # towards the own left, +x
    assert (pitch @ nose)[2] < -0.19  # down
    assert (roll @ left)[2] > 0.19 and (roll @ crown)[0] < -0.19  # the left side rises, the crown goes right
    np.testing.assert_allclose(yaw @ crown, crown, atol=1e-12)


def test_a_head_turn_is_spread_over_neck_and_head_and_adds_up():
    angles = np.array([[0.4, 0.2, -0.3], [0.0, 0.0, 0.0]])
    rotations = np.zeros((2, 7, 3))
    assert turn_head(angles, ANNY, rotations) == ["neck01", "neck02", "neck03", "head"]
    torch.testing.assert_close(turned(rotations, ANNY, "head"), face_rotation(angles), atol=1e-9, rtol=0)
    assert not rotations[1].any() and not rotations[:, :2].any()
    assert turn_head(angles, Skeleton(("root",), (-1,), np.zeros((1, 3))), np.zeros((2, 1, 3))) == []
