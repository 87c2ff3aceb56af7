"""Mattes made anew by what the tracked template covers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from threevp_nerfstudio.tracking.background import Background, from_plate
from threevp_nerfstudio.tracking.footage import Footage, PinholeCamera
from threevp_nerfstudio.tracking.mattes import Matting, expected, refine
from threevp_nerfstudio.tracking.settling import Settling

SIZE = 96


@pytest.fixture(scope="module")
def alike():
    """A subject whose right half has the colour of the room behind it, its mask, person probabilities, and the room."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    mask = np.hypot(y - 48, x - 48) < 30
    room = np.full((SIZE, SIZE, 3), (150, 90, 70), np.uint8)
    picture = room.copy()
    picture[mask] = (40, 40, 160)
    picture[mask & (x > 55)] = (150, 90, 70)
    return picture, mask, np.where(mask, 230, 5).astype(np.uint8), from_plate(room)


def test_inside_the_tracked_template_there_is_no_hole(alike):
    picture, mask, P, room = alike
    before = refine(picture, P, room, None)
    after = refine(picture, P, room, before, mask)
    assert (before[mask] < 128).mean() > 0.2
    assert (after[mask] < 128).mean() < 0.04
    assert (after[~mask] > 127).mean() < 0.01


def test_hair_beside_the_template_stays(alike):
    picture, mask, P, room = alike
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    template = mask & (y > 26)  # ends 8 px below the top of the head
    picture = picture.copy()
    picture[mask] = (40, 40, 160)
    after = refine(picture, P, room, None, template)
    assert (after[mask] > 127).mean() > 0.97


def test_odds_grow_into_the_template_and_fall_away_from_it():
    template = np.zeros((SIZE, SIZE), bool)
    template[20:70, 30:70] = True
    odds = expected(template)
    assert (odds[template] > 0).all() and (odds[~template] < 0).all()
    assert odds[45, 50] >= odds[20, 50] > odds[18, 50] > odds[5, 50]


def test_lost_pictures_keep_their_mattes_and_the_work_is_not_done_twice(alike, tmp_path: Path):
    picture, mask, P, room = alike
    first = refine(picture, P, room, None)
    footage = Footage(
        rgb=np.stack([picture] * 2), alpha=np.stack([first] * 2), times=np.arange(2.0), static=np.ones(2, dtype=bool),
        camera=PinholeCamera(200.0, 200.0, 48.0, 48.0, SIZE, SIZE), landmarks=np.full((2, 3, 2), np.nan), landmark_score=np.zeros(2),
    )  # fmt: skip

    def silhouette(i: int) -> np.ndarray | None:
        return None if i == 1 else mask[::2, ::2]

    def never(i: int) -> np.ndarray | None:
        raise AssertionError(i)

    settle = Settling(footage, Matting(np.stack([P] * 2), room), tmp_path / "alpha.npy", lambda *_: None)
    alpha = settle(silhouette)
    assert (alpha[1] == first).all() and (alpha[0] != first).any()
    assert (settle(never) == alpha).all()


def test_a_room_survives_saving(alike, tmp_path: Path):
    room = alike[3]
    room.save(tmp_path / "room.npz")
    back = Background.load(tmp_path / "room.npz")
    assert np.abs(back.colour - room.colour).max() < 0.1 and (back.known == room.known).all()
