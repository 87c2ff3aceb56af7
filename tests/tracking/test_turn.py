"""The turn prior: direction, extent, hallucinated faces, and the chair's axis."""

from __future__ import annotations

import numpy as np
import pytest

from threevp_nerfstudio.errors import TrackError
from threevp_nerfstudio.tracking.fitted import azimuth_of
from threevp_nerfstudio.tracking.turn import Chair, find_chair, find_turn, rotation_about_z


def seen_azimuths(true: np.ndarray, limit: float, noise: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    wrapped = (true + np.pi) % (2 * np.pi) - np.pi
    found = np.abs(wrapped) < limit
    return wrapped + noise * np.random.default_rng(0).normal(size=len(true)), found


@pytest.mark.parametrize("direction", [1, -1])
def test_a_full_turn_is_followed_round_the_back(direction):
    times = np.linspace(0, 8, 240)
    true = direction * np.linspace(0, 2 * np.pi, 240)
    azimuth, found = seen_azimuths(true, 1.0)
    prior = find_turn(times, azimuth, found)
    assert prior.direction == direction
    assert np.abs(prior.at(times) - true).max() < np.radians(6)


def test_an_uneven_turn_is_monotonic_and_closes():
    times = np.linspace(0, 8, 240)
    true = 2 * np.pi * (times / 8 + 0.05 * np.sin(2 * np.pi * times / 8))
    azimuth, found = seen_azimuths(true, 1.0)
    got = find_turn(times, azimuth, found).at(times)
    assert (np.diff(got) > -1e-9).all()
    assert abs(got[-1] - 2 * np.pi) < 0.1


def test_faces_on_the_back_of_the_head_are_left_out():
    times = np.linspace(0, 8, 240)
    true = np.linspace(0, 2 * np.pi, 240)
    azimuth, found = seen_azimuths(true, 1.0)
    behind = (true > 2.6) & (true < 3.7)
    azimuth[behind] = 0.3 * np.sin(np.arange(behind.sum()))  # they do not move as a turning face does
    azimuth[behind] -= 0.02 * np.arange(behind.sum())
    found = found | behind
    assert np.abs(find_turn(times, azimuth, found).at(times) - true).max() < np.radians(8)


def test_a_partial_turn_goes_on_at_its_rate():
    times = np.linspace(0, 4, 120)
    true = np.linspace(-0.2, 2.4, 120)
    azimuth, found = seen_azimuths(true, 1.0)
    assert np.abs(find_turn(times, azimuth, found).at(times) - true).max() < np.radians(12)


def test_no_face_is_an_error_that_says_so():
    with pytest.raises(TrackError, match="face was found in none"):
        find_turn(np.arange(10.0), np.zeros(10), np.zeros(10, dtype=bool))


def test_the_chair_is_found_from_its_poses():
    tilt = np.array([[1, 0, 0], [0, np.cos(0.1), -np.sin(0.1)], [0, np.sin(0.1), np.cos(0.1)]])
    chair = Chair(tilt, np.array([0.1, 0.05, 1.6]), np.array([0.0, -0.04, 0.7]))
    azimuth = np.linspace(-1, 1, 25)
    found = find_chair(np.array([chair.pose(a) for a in azimuth]), np.array([0.0, 0.0, 0.7]))
    np.testing.assert_allclose(azimuth_of(np.array([found.pose(a) for a in azimuth])), azimuth, atol=1e-6)
    for a in (-2.5, 0.3, 3.0):  # also where it was not seen
        np.testing.assert_allclose(found.pose(a)[:3, 3], chair.pose(a)[:3, 3], atol=0.03)


def test_azimuth_grows_to_the_subjects_left():
    # a camera at the subject's left looks along -x: the format's yaw is +90 degrees there
    T = np.eye(4)
    T[:3, :3] = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ rotation_about_z(-np.pi / 2)
    camera_in_world = -T[:3, :3].T @ np.array([0, 0, 1.5])
    assert camera_in_world[0] > 1.4
    assert azimuth_of(T) == pytest.approx(np.pi / 2)
