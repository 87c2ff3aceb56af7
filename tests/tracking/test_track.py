"""Tracking a synthetic subject whose motion is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tracking.turning_person import CHAIR, LANDMARKS, exactly_fitted, film, person, pose_at
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.tracking.evidence import project
from threevp_nerfstudio.tracking.face_points import LIDS
from threevp_nerfstudio.tracking.posing import head_pose
from threevp_nerfstudio.tracking.track import Track, TrackOptions, stretches, track
from threevp_nerfstudio.workers import sharing

TURN, PLAY = 16, 14
JAW, BLINK = "jawOpen", "eyeBlinkLeft"


@pytest.fixture(scope="module")
def tracked():
    template, rig, colours = person()
    head = template.joint_names.index("head")
    jaw = template.expression_names.index(JAW)
    poses = [pose_at(rig, a) for a in np.linspace(0, 2 * np.pi, TURN)]
    for t in np.linspace(0, 1, PLAY):  # looks up and to the side, opens the mouth, and turns away from the camera
        azimuth = 2.6 * np.clip(2 * t - 1, 0, 1)
        turn = np.array([0.15 * np.sin(3 * t), 0.0, 0.2 * np.sin(6 * t)])
        poses.append(pose_at(rig, azimuth, joints={head: turn}, channels={jaw: np.clip(4 * t * (1 - t), 0, 1)}))
    static = np.arange(TURN + PLAY) < TURN
    footage = film(template, rig, colours, poses, static)
    fitted = exactly_fitted(template, rig, footage, poses)
    return template, rig, poses, footage, fitted, track(footage, fitted, TrackOptions(working_size=128))


def errors(rig, template, poses, result: Track) -> tuple[np.ndarray, np.ndarray]:
    """Degrees of the head's rotation, metres of its place."""
    head = template.joint_names.index("head")
    turns, places = [], []
    for i, pose in enumerate(poses):
        got = replace(pose, T_camera_root=result.T_camera_root[i], rotations=result.joint_rotations[i])
        a, b = head_pose(rig, pose, head), head_pose(rig, got, head)
        cosine = (np.trace(a[:3, :3] @ b[:3, :3].T) - 1) / 2
        turns.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        joint = np.append(rig.joints[head], 1.0)
        places.append(np.linalg.norm((a - b) @ joint))
    return np.array(turns), np.array(places)


def test_a_known_motion_is_recovered_all_the_way_round(tracked):
    template, rig, poses, _, _, result = tracked
    turn, place = errors(rig, template, poses, result)
    assert turn.mean() < 1.5 and turn.max() < 6.0
    assert place.mean() < 0.005
    assert not result.lost.any()


def test_the_jaw_is_seen_from_the_front(tracked):
    template, _, poses, _, _, result = tracked
    jaw = template.expression_names.index(JAW)
    seen = slice(TURN, TURN + PLAY // 2)
    true = np.array([p.expression[jaw] for p in poses])[seen]
    assert np.corrcoef(true, result.expression[seen, jaw])[0, 1] > 0.9


def test_a_blink_is_followed_by_what_landmarks_say_of_the_lids():
    """Lids move far from one picture to the next, are few of many points, and colours know nothing of them. Under names of the cheek
    the same points count less."""
    template, rig, colours = person()
    blink = template.expression_names.index(BLINK)
    lids = np.array([i for side in LIDS[BLINK] for i in side])
    moved = np.linalg.norm(template.expression_basis[blink], axis=-1)
    closing = np.argsort(-moved)[: len(lids)]
    closed = np.array([0, 0, 1, 1, 0])
    poses = [pose_at(rig, a) for a in (-0.3, -0.15, 0.15, 0.3)] + [pose_at(rig, 0.0, channels={blink: c}) for c in closed]
    open_eyed = [replace(pose, expression=np.zeros_like(pose.expression)) for pose in poses]
    footage = film(template, rig, colours, open_eyed, np.arange(len(poses)) < 4)
    fitted = exactly_fitted(template, rig, footage, open_eyed)
    every_lid = [i for sides in LIDS.values() for side in sides for i in side]
    free = np.setdiff1d(np.arange(478), every_lid)
    others, instead = free[: 8 * LANDMARKS], free[-len(lids) :]

    def followed(names: np.ndarray) -> np.ndarray:
        landmarks = np.full((len(poses), 478, 2), np.nan)
        landmarks[:, others] = np.tile(footage.landmarks, (1, 8, 1))
        for n, pose in enumerate(poses):
            x = rig.place(rig.points.take(closing), pose).camera
            landmarks[n, names] = footage.camera.fx * x[:, :2] / x[:, 2:] + np.array([footage.camera.cx, footage.camera.cy])
        corners = np.concatenate([np.tile(fitted.landmark_corners, (8, 1)), np.repeat(closing[:, None], 3, axis=1)])
        count = len(corners)
        known = replace(
            fitted, landmark_ids=np.concatenate([others, names]), landmark_corners=corners,
            landmark_bary=np.tile([1.0, 0.0, 0.0], (count, 1)), landmark_offset=np.zeros((count, 3)), landmark_noise=np.full(count, 1e-3),
        )  # fmt: skip
        return track(replace(footage, landmarks=landmarks), known, TrackOptions(working_size=128)).expression[4:, blink]

    by_lids, by_others = followed(lids), followed(instead)
    assert by_lids[2:4].min() > 0.5 > 0.25 > by_lids[[0, 1, 4]].max()
    assert by_lids[2:4].min() > 1.3 * by_others[2:4].min()


def test_an_unseen_expression_returns_to_neutral_with_low_confidence(tracked):
    _, _, poses, _, _, result = tracked
    front, behind = TURN + PLAY // 2, TURN + PLAY - 1
    assert abs(poses[behind].T_camera_root[2, 0]) < 1 and poses[behind].T_camera_root[2, 1] < 0
    assert np.abs(result.expression[behind]).max() < 0.4 < result.expression[TURN : TURN + PLAY // 2].max()
    assert result.confidence[behind, 1] < 0.5 * result.confidence[front, 1]


def test_folding_into_the_cameras_keeps_every_point_of_the_picture(tracked):
    template, rig, _, footage, _, result = tracked
    motion, cameras = result.to_motion(), result.camera_to_world()
    parts = (motion.joint_rotations, motion.root_translation, motion.expression)
    posing = Rig(template, torch.float64)
    world = posing.pose(*(torch.as_tensor(np.asarray(part, dtype=np.float64)) for part in parts)).numpy()
    for i in (0, 7, TURN + 3, TURN + PLAY - 1):
        local = (world[i] - cameras[i, :3, 3]) @ cameras[i, :3, :3]  # OpenGL axes
        seen = footage.camera.fx * np.stack([local[:, 0], -local[:, 1]], 1) / -local[:, 2:] + footage.camera.cx
        pose = replace(pose_at(rig, 0.0), T_camera_root=result.T_camera_root[i], rotations=result.joint_rotations[i])
        pose = replace(pose, expression=result.expression[i])
        tracked_xy, _ = project(footage.camera, rig.place(rig.points, pose).camera)
        np.testing.assert_allclose(seen, tracked_xy, atol=1e-3)


def test_a_track_survives_saving_and_stops_and_goes_on(tracked, tmp_path):
    _, _, _, footage, fitted, result = tracked
    file, calls = tmp_path / "state.npz", 0

    def stop(*_):
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        track(footage, fitted, TrackOptions(working_size=128), file, stop)
    left = []
    again = track(footage, fitted, TrackOptions(working_size=128), file, lambda *a: left.append(a))
    assert left[0][1] in (10, 11)  # the last of the turn came before the others
    np.testing.assert_allclose(again.T_camera_root, result.T_camera_root, atol=1e-6)
    result.save(tmp_path / "track.npz")
    np.testing.assert_array_equal(Track.load(tmp_path / "track.npz").expression, result.expression)


def test_stretches_come_to_the_same_as_one_and_do_not_depend_on_workers(tracked, monkeypatch: pytest.MonkeyPatch):
    template, rig, poses, footage, fitted, whole = tracked
    monkeypatch.setattr("threevp_nerfstudio.tracking.track.STRETCH", 5)
    parts = stretches(footage.static)
    assert sorted(i for part in parts for i in part) == list(range(TURN + PLAY)) and len(parts) == 6
    found = []
    for workers in (1, 3):
        with sharing(workers):
            found.append(track(footage, fitted, TrackOptions(working_size=128)))
    np.testing.assert_allclose(found[0].T_camera_root, found[1].T_camera_root, atol=1e-6)
    np.testing.assert_allclose(found[0].expression, found[1].expression, atol=1e-6)
    turn, place = errors(rig, template, poses, found[0])
    turn_whole, place_whole = errors(rig, template, poses, whole)
    assert turn.max() < turn_whole.max() + 1.0 and place.max() < place_whole.max() + 0.003
    assert not found[0].lost.any() and found[0].restarted.sum() <= whole.restarted.sum() + 1  # the turn away is too fast for any


def test_a_jump_is_found_again(tracked):
    template, rig, poses, footage, fitted, _ = tracked
    order = np.concatenate([np.arange(TURN), [TURN, TURN + 1, TURN + PLAY - 1]])  # a cut: from the front to the back
    cut = replace(
        footage, rgb=footage.rgb[order], alpha=footage.alpha[order], times=np.arange(len(order)) / 30, static=footage.static[order],
        landmarks=footage.landmarks[order], landmark_score=footage.landmark_score[order],
    )  # fmt: skip
    result = track(cut, fitted, TrackOptions(working_size=128, backward_pass=False))
    turn, _ = errors(rig, template, [poses[i] for i in order], result)
    assert result.restarted[-1] and turn[-1] < 8.0
    assert CHAIR.axis[2] == pytest.approx(1.7)
