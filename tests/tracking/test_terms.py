"""The terms of a fit: their gradients, what limits outliers, and what the evidence of one picture says."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tracking.turning_person import SIZE, film, person, pose_at
from threevp_nerfstudio.tracking.evidence import evidence, signed_distance
from threevp_nerfstudio.tracking.lighting import EVEN, fit_lighting, harmonics
from threevp_nerfstudio.tracking.posing import Freedoms, head_pivot, step_pose
from threevp_nerfstudio.tracking.shared_colours import SharedColours
from threevp_nerfstudio.tracking.terms import ColourTerm, System, add_colours, add_landmarks, add_outline, colour_term
from threevp_nerfstudio.tracking.visibility import Observer


@pytest.fixture(scope="module")
def scene():
    template, rig, colours = person()
    pose = pose_at(rig, 0.4)
    footage = film(template, rig, colours, [pose], np.array([True]))
    view = Observer(rig.points.rest, np.asarray(template.faces)).look(rig.place(rig.points, pose).camera, footage.camera)
    return rig, colours, pose, evidence(footage, 0, SIZE), view


def test_signed_distance_is_exact_for_a_straight_edge():
    matte = np.zeros((32, 32), dtype=np.float32)
    matte[:, 10:] = 1.0
    matte[:, 9] = 0.5  # the edge runs through the middle of this column
    distance = signed_distance(matte)
    np.testing.assert_allclose(distance[16, 5:25], np.arange(5, 25) + 0.5 - 9.5, atol=0.2)


def test_the_picture_border_is_no_edge():
    assert (signed_distance(np.ones((16, 16), dtype=np.float32)) > 10).all()


def test_gradients_agree_with_finite_differences_of_the_cost(scene):
    rig, colours, true_pose, picture, view = scene
    freedoms = Freedoms((2, 3), (0,))
    rows = np.flatnonzero(view.visible)[::7]
    a, b = view.outline.T
    off = step_pose(true_pose, np.full(freedoms.count, 0.004), freedoms, head_pivot(rig, true_pose, 3))
    pivot = head_pivot(rig, off, 3)
    target = picture.landmarks

    def system(pose, derivatives: bool) -> System:
        s = System.empty(freedoms.count)

        def both(points):
            placed = rig.place(points, pose)
            return placed.camera, rig.jacobian(points, placed, pose, freedoms, pivot) if derivatives else None

        x, J = both(rig.points.take(a))
        add_outline(s, picture, x, J, np.ones(len(a)), 50.0)
        x, J = both(rig.points.take(rows[: len(target)]))
        add_landmarks(s, picture, x, J, target[: len(x)], np.full(len(x), 1e-3), 40.0)
        return s

    s = system(off, True)
    for d in range(freedoms.count):
        step = np.zeros(freedoms.count)
        step[d] = 1e-5
        ahead, behind = (system(step_pose(off, sign * step, freedoms, pivot), False).cost for sign in (1, -1))
        assert -s.g[d] == pytest.approx((ahead - behind) / 2e-5, rel=0.05, abs=0.02 * np.abs(s.g).max())


def test_colours_pull_towards_the_true_pose(scene):
    rig, colours, true_pose, picture, view = scene
    freedoms = Freedoms((), ())
    rows = np.flatnonzero(view.visible)
    pivot = head_pivot(rig, true_pose, 3)
    pose = step_pose(true_pose, np.array([0.0, 0.02, 0.0, 0.003, -0.002, 0.0]), freedoms, pivot)
    for _ in range(8):
        placed = rig.place(rig.points.take(rows), pose)
        J = rig.jacobian(rig.points.take(rows), placed, pose, freedoms, pivot)
        term = colour_term(picture, 2, placed.camera, J, colours[rows], np.ones(len(rows)))
        s = System.empty(6)
        add_colours(s, term, 400.0)
        pose = step_pose(pose, np.linalg.solve(s.H + 1e-3 * np.diag(np.diag(s.H)), s.g), freedoms, pivot)
    np.testing.assert_allclose(pose.T_camera_root[:3, :3], true_pose.T_camera_root[:3, :3], atol=0.006)


def test_a_residual_beyond_reason_hardly_counts():
    near, far = System.empty(1), System.empty(1)
    for system, residual in ((near, 1.0), (far, 100.0)):
        system.add(np.ones((1, 1)), np.array([residual]), np.ones(1), 3.0)
    assert far.cost < 5.0 and abs(far.g[0]) < 0.01 * abs(near.g[0])


def test_light_is_recovered_from_colours():
    rng = np.random.default_rng(0)
    n = rng.normal(size=(2000, 3))
    n /= np.linalg.norm(n, axis=1, keepdims=True)
    true = EVEN + 0.15 * rng.normal(size=(9, 3)) * np.array([0, 1, 1, 1, 0.3, 0.3, 0.3, 0.3, 0.3])[:, None]
    albedo = rng.uniform(0.2, 0.9, size=(2000, 3))
    seen = albedo * (harmonics(n) @ true)
    light = fit_lighting(albedo, n, seen, np.ones(2000), stiffness=1e-4)
    np.testing.assert_allclose(harmonics(n) @ light, harmonics(n) @ true, atol=0.02)


def test_eliminated_colours_solve_the_joint_system():
    # two pictures of three vertices; unknowns: one shared parameter and each vertex's colour
    rng = np.random.default_rng(1)
    J, r = rng.normal(size=(2, 3, 3, 1)), 0.01 * rng.normal(size=(2, 3, 3))
    rows, weight = np.arange(3), np.ones(3)
    system, shared = System.empty(1), SharedColours(rows, 3, 1)
    joint_H, joint_g = np.zeros((10, 10)), np.zeros(10)
    for k in range(2):
        term = ColourTerm(r[k], J[k], weight)
        add_colours(system, term, 3.0)
        shared.add(rows, term, 3.0, np.array([0]))
        A = np.concatenate([J[k].reshape(9, 1), np.eye(9)], axis=1) / 0.03
        damp = 1 / (1 + (r[k].reshape(-1) / 0.03) ** 2 / 9) ** 2
        joint_H += A.T @ (damp[:, None] * A)
        joint_g -= A.T @ (damp * r[k].reshape(-1) / 0.03)
    shared.eliminate(system)
    expected = np.linalg.solve(joint_H, joint_g)[0]
    assert np.linalg.solve(system.H, system.g)[0] == pytest.approx(expected, rel=1e-6)




def test_a_common_error_is_taken_out_of_a_term():
    # residuals that the first parameter explains tell nothing of the second any more, where the error's spread is wide
    rng = np.random.default_rng(2)
    J = rng.normal(size=(30, 2))
    system = System.empty(2)
    system.add(J, J[:, 0] * 0.5, np.ones(30), 1e6)
    system.marginalise(slice(1), np.array([1e3]))
    np.testing.assert_allclose(system.g, 0.0, atol=1e-3)
    assert system.H[0, 0] < 1e-3 and system.H[1, 1] > 1.0 and abs(system.cost) < 1e-3
