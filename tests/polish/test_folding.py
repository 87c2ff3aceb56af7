"""Corrections in the rest pose become cameras, neck and head that show the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.template import Motion
from threevp_nerfstudio.capture.demo_person import demo_template
from threevp_nerfstudio.model.performance import Performance
from threevp_nerfstudio.model.refinement import FrameCorrections
from threevp_nerfstudio.polish.folding import Corrections, folded
from threevp_nerfstudio.tracking.trajectory import Track

N = 5


@pytest.fixture(scope="module")
def tracked():
    template = demo_template(32)
    rng = np.random.default_rng(0)
    joints = rng.normal(0, 0.2, (N, len(template.joint_names), 3))
    joints[:, 0] = (0.05, 0.0, 0.02)  # how the body leans
    T = np.tile(np.eye(4), (N, 1, 1))
    T[:, :3, 3] = rng.normal(0, 0.5, (N, 3))
    none, no = np.zeros(N), np.zeros(N, dtype=bool)
    expression = np.zeros((N, len(template.expression_names)))
    track = Track(np.arange(N) / 30, T, joints, expression, np.ones((N, 2)), none, none, none, no, no)
    still = np.zeros((N, 3), np.float32)
    motion = Motion(np.arange(N) / 30, joints.astype(np.float32), still, expression.astype(np.float32))
    rows = np.arange(N)
    performance = Performance(template, motion, rows, rows / N, np.tile(np.eye(3, dtype=np.float32), (N, 1, 1)), np.ones(N, bool))
    corrections = FrameCorrections(template, performance, torch.as_tensor(template.vertices))
    with torch.no_grad():
        for part in (corrections.body, corrections.head):
            part.copy_(torch.from_numpy(rng.normal(0, 0.7, (N, 6))))
    return template, track, corrections


def of(corrections: FrameCorrections) -> Corrections:
    motions = [part.detach().double().numpy() for part in corrections.motions(torch.arange(N))]
    return Corrections(np.concatenate(motions[:2], 1), np.concatenate(motions[2:], 1), corrections.pivot.double().numpy())


def skinning(template, track: Track) -> torch.Tensor:
    """Rest pose to camera, of each vertex: (N, V, 4, 4)."""
    rig = Rig.from_template(template, torch.float64)
    G = rig.joint_transforms(torch.as_tensor(track.joint_rotations), torch.zeros(N, 3, dtype=torch.float64))
    return torch.einsum("vj,bjmn->bvmn", rig.skin_weights, torch.as_tensor(track.T_camera_root)[:, None] @ G)


def test_what_the_folded_track_shows_is_what_was_corrected(tracked):
    """A vertex as the folded rig shows it, brought to canonical space by the tracked one and corrected, is where it rests."""
    template, track, corrections = tracked
    rest = torch.as_tensor(template.vertices, dtype=torch.float64)
    points = torch.cat([rest, torch.ones(len(rest), 1, dtype=torch.float64)], 1)
    seen = skinning(template, folded(track, template, np.arange(N), of(corrections))) @ points[:, :, None]
    canonical = torch.linalg.solve(skinning(template, track), seen)[..., :3, 0].float()
    frames = torch.arange(N)
    found = corrections.points(canonical.flatten(0, 1), frames.repeat_interleave(len(rest)), frames).view_as(canonical)
    before, after = (np.linalg.norm(x.detach().numpy() - template.vertices, axis=-1) for x in (canonical, found))
    whole = (template.skin_weights[:, [1, 2, 3]] > 0.999).any(1)  # chest, neck or head alone
    assert whole.sum() > 100 and before[:, whole].mean() > 0.004
    assert after[:, whole].max() < 0.0012 and after[:, whole].mean() < 0.03 * before[:, whole].mean()
    assert after.mean() < 0.15 * before.mean()  # between the parts, roughly


def test_no_correction_changes_nothing_and_other_pictures_stay(tracked):
    template, track, corrections = tracked
    given = of(corrections)
    nothing = Corrections(np.zeros((N, 6)), np.zeros((N, 6)), given.pivot)
    same = folded(track, template, np.arange(N), nothing)
    np.testing.assert_allclose(same.T_camera_root, track.T_camera_root, atol=1e-9)
    np.testing.assert_allclose(same.joint_rotations, track.joint_rotations, atol=1e-6)
    rows = np.array([1, 3])
    some = folded(track, template, rows, Corrections(given.body[rows], given.head[rows], given.pivot))
    others = [0, 2, 4]
    assert np.array_equal(some.T_camera_root[others], track.T_camera_root[others])
    assert np.array_equal(some.joint_rotations[others], track.joint_rotations[others])
    assert not np.allclose(some.T_camera_root[rows], track.T_camera_root[rows])


def test_without_a_neck_the_head_turns_and_without_a_head_the_body_moves(tracked):
    template, track, corrections = tracked
    given = of(corrections)
    headed = replace(template, joint_names=("root", "spine", "collar", "head"))
    found = folded(track, headed, np.arange(N), given).joint_rotations
    assert np.array_equal(found[:, :3], track.joint_rotations[:, :3]) and not np.allclose(found[:, 3], track.joint_rotations[:, 3])
    bare = folded(track, replace(template, joint_names=("a", "b", "c", "d")), np.arange(N), given)
    assert np.array_equal(bare.joint_rotations, track.joint_rotations) and not np.allclose(bare.T_camera_root, track.T_camera_root)
