"""The circle on which a turning head goes round the chair's axis."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from threevp_nerfstudio.tracking.seat import find_seat
from threevp_nerfstudio.tracking.turn import FRONTAL, rotation_about_z

AXIS, ARM = np.array([0.03, -0.1, 1.6]), np.array([0.01, -0.03, 0.0])


def turn(span: float, n: int = 40, tilt: float = 0.1) -> np.ndarray:
    """Rotations of the root in the camera during a turn by `span`, seen from a little above."""
    look = Rotation.from_rotvec([tilt, 0.0, 0.0]).as_matrix()
    return look @ FRONTAL @ rotation_about_z(np.linspace(0, span, n))


def seen(R: np.ndarray, sideways: float, depth: float) -> tuple[np.ndarray, np.ndarray]:
    """True places of the head, and places that are wrong in depth by something that varies slowly with the view."""
    rng = np.random.default_rng(0)
    true = AXIS + R @ ARM
    off = rng.normal(0, sideways, true.shape)
    off[:, 2] = depth * np.sin(np.linspace(0, 9, len(R)) + 1)
    return true, true + off


def test_depths_follow_from_what_is_seen_across_the_line_of_sight():
    R = turn(2 * np.pi)
    true, heads = seen(R, 0.0005, 0.006)
    seat = find_seat(R, heads)
    assert seat is not None
    depth = (seat.head(R) - true)[:, 2]
    assert np.abs(heads - true)[:, 2].max() > 0.0055
    assert np.abs(depth - depth.mean()).max() < 0.0015 and abs(depth.mean()) < 0.002
    assert seat.sway < 0.001


def test_who_sways_is_held_less():
    R = turn(2 * np.pi)
    still, swaying = (find_seat(R, seen(R, s, 0.0)[1]) for s in (0.0003, 0.008))
    assert swaying.sway > 5 * still.sway


def test_pictures_that_are_far_off_do_not_move_the_circle():
    R = turn(2 * np.pi)
    true, heads = seen(R, 0.0003, 0.0)
    heads[[5, 20]] += [0.08, -0.05, 0.1]
    assert np.abs(find_seat(R, heads).head(R) - true).max() < 0.003


@pytest.mark.parametrize(("span", "n"), [(1.0, 40), (2 * np.pi, 4)])
def test_a_short_turn_does_not_tell(span: float, n: int):
    R = turn(span, n)
    assert find_seat(R, seen(R, 0.0003, 0.0)[1]) is None
