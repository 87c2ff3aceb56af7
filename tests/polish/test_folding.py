"""Corrections in the rest pose become cameras, neck and head that show the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.capture.demo_person import demo_template
from threevp_nerfstudio.polish.folding import Corrections, folded, neck_and_head, rigid
from threevp_nerfstudio.tracking.trajectory import Track

N = 5


@pytest.fixture(scope="module")
def tracked():
    template = demo_template(32)
    rng = np.random.default_rng(0)
    joints = rng.normal(0, 0.06, (N, len(template.joint_names), 3))
    joints[:, 0] = (0.05, 0.0, 0.02)  # how the body leans
    T = rigid(torch.as_tensor(rng.normal(0, 0.5, (N, 6))), torch.zeros(3, dtype=torch.float64)).numpy()
    none, no = np.zeros(N), np.zeros(N, dtype=bool)
    expression = rng.uniform(0, 0.5, (N, len(template.expression_names)))
    track = Track(np.arange(N) / 30, T, joints, expression, np.ones((N, 2)), none, none, none, no, no)
    pivot = template.joints[3].astype(np.float64)
    body, head = (rng.normal(0, 1, (N, 6)) * np.repeat([0.02, 0.003], 3) for _ in range(2))
    return template, track, Corrections(body, head, pivot)


def seen(template, track: Track, before: torch.Tensor) -> np.ndarray:
    """All vertices in the camera, moved by `before` (N, V, 4, 4) in the rest pose."""
    rig = Rig.from_template(template, torch.float64)
    joints, expression = torch.as_tensor(track.joint_rotations), torch.as_tensor(track.expression)
    G = rig.joint_transforms(joints, torch.zeros(N, 3, dtype=torch.float64), expression)
    x = torch.cat([rig.rest_shape(expression), torch.ones(N, len(rig.vertices), 1, dtype=torch.float64)], -1)
    M = torch.einsum("vj,bjmn->bvmn", rig.skin_weights, torch.as_tensor(track.T_camera_root)[:, None] @ G)
    return (M @ before @ x[..., None])[..., :3, 0].numpy()


def test_the_folded_track_shows_what_was_corrected(tracked):
    template, track, corrections = tracked
    pivot = torch.as_tensor(corrections.pivot)
    body, own = (rigid(torch.as_tensor(c), pivot)[:, None] for c in (corrections.body, corrections.head))
    wanted_body = seen(template, track, body)
    wanted_head = seen(template, track, body @ own)
    still = torch.eye(4, dtype=torch.float64).expand(N, 1, 4, 4)
    found = seen(template, folded(track, template, np.arange(N), corrections), still)
    weights = template.skin_weights
    root, head = weights[:, 0] > 0.999, weights[:, 3] > 0.999
    assert root.sum() > 20 and head.sum() > 100
    np.testing.assert_allclose(found[:, root], wanted_body[:, root], atol=1e-6)
    off = np.linalg.norm(found[:, head] - wanted_head[:, head], axis=-1)
    before = np.linalg.norm(seen(template, track, still)[:, head] - wanted_head[:, head], axis=-1)
    assert off.mean() < 0.6 * before.mean()  # what is left goes along the neck
    flat = replace(corrections, head=corrections.head * [1, 1, 1, 0, 0, 0])
    wanted = seen(template, track, body @ rigid(torch.as_tensor(flat.head), pivot)[:, None])
    off = np.linalg.norm(seen(template, folded(track, template, np.arange(N), flat), still)[:, head] - wanted[:, head], axis=-1)
    assert off.mean() < 0.001 and off.max() < 0.004  # turns alone are reached, nearly


def test_no_correction_changes_nothing_and_other_pictures_stay(tracked):
    template, track, corrections = tracked
    nothing = Corrections(np.zeros((N, 6)), np.zeros((N, 6)), corrections.pivot)
    same = folded(track, template, np.arange(N), nothing)
    np.testing.assert_allclose(same.T_camera_root, track.T_camera_root, atol=1e-9)
    np.testing.assert_allclose(same.joint_rotations, track.joint_rotations, atol=1e-6)
    rows = np.array([1, 3])
    some = folded(track, template, rows, Corrections(corrections.body[rows], corrections.head[rows], corrections.pivot))
    others = [0, 2, 4]
    assert np.array_equal(some.T_camera_root[others], track.T_camera_root[others])
    assert np.array_equal(some.joint_rotations[others], track.joint_rotations[others])
    assert not np.allclose(some.T_camera_root[rows], track.T_camera_root[rows])


def test_joints_between_body_and_head():
    template = demo_template(16)
    assert neck_and_head(template) == (2, 3)
    assert neck_and_head(replace(template, joint_names=("root", "spine", "collar", "head"))) == (3,)
    assert neck_and_head(replace(template, joint_names=("a", "b", "c", "d"))) is None
