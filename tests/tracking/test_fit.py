"""The template's fit to a turn: poses, focal length and colours for a given shape; what the result keeps on disk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.tracking.turning_person import LANDMARKS, SIZE, film, landmark_vertices, person, pose_at
from threevp_nerfstudio.errors import TrackError
from threevp_nerfstudio.tracking.face_points import FacePoints
from threevp_nerfstudio.tracking.fit import FitOptions, FittedTemplate, fit_template, start_of_fit
from threevp_nerfstudio.tracking.posing import head_pose
from threevp_nerfstudio.tracking.shape import rejoined
from threevp_nerfstudio.tracking.terms import System
from threevp_nerfstudio.tracking.upright import chair_axis

OPTIONS = FitOptions(frames=20, working_size=SIZE, texture_size=0)


@pytest.fixture(scope="module")
def turned():
    template, rig, colours = person()
    poses = [pose_at(rig, a) for a in np.linspace(0, 2 * np.pi, 40)]
    footage = film(template, rig, colours, poses, np.ones(40, dtype=bool))
    wrong = replace(footage.camera, fx=0.8 * footage.camera.fx, fy=0.8 * footage.camera.fy)
    chosen = landmark_vertices(template)
    corners, bary = np.repeat(chosen[:, None], 3, axis=1), np.tile([1.0, 0.0, 0.0], (LANDMARKS, 1))
    landmarks = FacePoints(np.arange(LANDMARKS), corners, bary, np.full(LANDMARKS, 2e-3), np.zeros((LANDMARKS, 3)))
    calls = []
    fitted = fit_template(
        replace(footage, camera=wrong), OPTIONS, template=template, landmarks=landmarks, progress=lambda *a: calls.append(a)
    )
    return template, rig, poses, footage, fitted, calls


def test_the_turn_is_found_all_the_way_round(turned):
    template, rig, poses, _, fitted, calls = turned
    head = template.joint_names.index("head")
    for k, i in enumerate(fitted.frames):
        got = replace(poses[i], T_camera_root=fitted.T_camera_root[k], rotations=fitted.joint_rotations[k])
        a, b = head_pose(rig, poses[i], head), head_pose(rig, got, head)
        cosine = (np.trace(a[:3, :3] @ b[:3, :3].T) - 1) / 2
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))) < 3.0
    assert fitted.turn.direction == 1 and fitted.turn.covered > 6.0
    assert calls[-1][1] == calls[-1][2]


def test_the_focal_length_comes_nearer_to_the_truth(turned):
    _, _, _, footage, fitted, _ = turned
    assert abs(np.log(fitted.camera.fx / footage.camera.fx)) < 0.15


def test_the_world_stands_upright(turned):
    *_, fitted, _ = turned
    np.testing.assert_allclose(chair_axis(fitted.T_camera_root), [0, 0, 1], atol=1e-6)


def test_a_fit_survives_saving(turned, tmp_path):
    *_, fitted, _ = turned
    fitted.save(tmp_path / "fitted.npz")
    again = FittedTemplate.load(tmp_path / "fitted.npz")
    np.testing.assert_array_equal(again.T_camera_root, fitted.T_camera_root)
    assert again.camera == fitted.camera and again.turn == fitted.turn and again.report == fitted.report
    assert again.template.joint_names == fitted.template.joint_names
    (tmp_path / "broken.npz").write_bytes(b"no zip")
    with pytest.raises(TrackError, match="cannot be read"):
        FittedTemplate.load(tmp_path / "broken.npz")


def test_a_turn_of_few_pictures_is_refused(turned):
    template, _, _, footage, _, _ = turned
    short = np.arange(40) < 5
    with pytest.raises(TrackError, match="turn of at least 8"):
        fit_template(replace(footage, static=short), OPTIONS, template=template)


def test_a_face_that_hardly_turns_does_not_tell_the_focal_length(turned):
    template, rig, _, footage, _, _ = turned
    chosen = landmark_vertices(template)
    landmarks = FacePoints(
        np.arange(LANDMARKS), np.repeat(chosen[:, None], 3, axis=1), np.tile([1.0, 0, 0], (LANDMARKS, 1)),
        np.full(LANDMARKS, 2e-3), np.zeros((LANDMARKS, 3)),
    )  # fmt: skip
    poses = [pose_at(rig, a) for a in np.linspace(0, 0.2, 10)]
    talk = film(template, rig, np.full((len(template.vertices), 3), 0.5), poses, np.ones(10, dtype=bool))
    for seen, least, most in ((talk, 0.0, 0.01), (footage, 0.4, 0.5)):
        problem = start_of_fit(seen, OPTIONS, None, template, landmarks)[0]
        assert least < problem.focal_spread < most


def start(turned):
    template, _, _, footage, _, _ = turned
    chosen = landmark_vertices(template)
    corners, bary = np.repeat(chosen[:, None], 3, axis=1), np.tile([1.0, 0, 0], (LANDMARKS, 1))
    landmarks = FacePoints(np.arange(LANDMARKS), corners, bary, np.full(LANDMARKS, 2e-3), np.zeros((LANDMARKS, 3)))
    problem, estimate, *_ = start_of_fit(footage, OPTIONS, None, template, landmarks)
    return template, problem, estimate


def test_a_stray_rejoins_its_neighbours(turned):
    template, problem, estimate = start(turned)
    poses = list(estimate.poses)
    for k, metres in ((4, 3.0), (11, 0.25)):  # one out of sight, one beside the subject
        away = np.eye(4)
        away[0, 3] = metres
        poses[k] = replace(poses[k], T_camera_root=away @ poses[k].T_camera_root)
    found, report = problem.fit(replace(estimate, poses=tuple(poses)), np.zeros((0, len(template.vertices), 3)), 2)
    assert min(report.overlaps) > 0.85
    for k in (4, 11):
        here, before, after = (found.poses[j].T_camera_root[:3, 3] for j in (k, k - 1, k + 1))
        assert np.linalg.norm(here - (before + after) / 2) < 0.05


def test_rejoined_poses_lie_between_the_others(turned):
    _, _, estimate = start(turned)
    strays = np.zeros(len(estimate.poses), dtype=bool)
    strays[[0, 6, 7]] = True
    poses = rejoined(estimate.poses, strays)
    assert np.allclose(poses[0].T_camera_root, estimate.poses[1].T_camera_root)
    for k in (6, 7):
        np.testing.assert_allclose(poses[k].T_camera_root, estimate.poses[k].T_camera_root, atol=0.02)
    assert all(poses[k] is estimate.poses[k] for k in np.flatnonzero(~strays))


def test_the_turn_holds_pictures_together(turned):
    """The system's gradient is that of its cost, and it pulls a picture that lags behind the turn on."""
    _, problem, estimate = start(turned)
    own = problem.head + 9 * problem.sway.count

    def term(e):
        system = System.empty(problem.head + problem.sway.count * len(e.poses))
        problem._add_turn(system, e)
        return system

    turns = term(estimate).g[problem.head :].reshape(-1, problem.sway.count)[:, :3]
    assert np.abs(turns).max() < 1e-6  # as expected
    assert not problem.held and not problem.wanders(estimate)
    behind = np.zeros(len(term(estimate).g))
    behind[own : own + 6] = (0.08, 0.25, -0.1, 0.05, 0.02, -0.1)
    lagging = problem.moved(estimate, behind)
    assert problem.wanders(lagging)
    system = term(lagging)
    for i in range(own, own + 6):
        step = np.zeros_like(behind)
        step[i] = 1e-5
        slope = (term(problem.moved(lagging, step)).cost - term(problem.moved(lagging, -step)).cost) / 2e-5
        assert slope == pytest.approx(-system.g[i], rel=0.05, abs=0.1 * np.abs(system.g).max())
    assert (system.g[own : own + 3] @ behind[own : own + 3]) < 0


def test_a_template_that_leaves_the_pictures_is_said(turned):
    template, problem, estimate = start(turned)
    away = np.eye(4)
    away[0, 3] = 5.0
    poses = tuple(replace(p, T_camera_root=away @ p.T_camera_root) for p in estimate.poses)
    with pytest.raises(TrackError, match="left the pictures"):
        problem.fit(replace(estimate, poses=poses), np.zeros((0, len(template.vertices), 3)), 1)
