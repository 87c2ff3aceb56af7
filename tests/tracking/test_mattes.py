"""Mattes follow the true outline better than the segmentation they start from; decoys in the room are not the subject."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.tracking.footage_files import scene
from threevp_nerfstudio.errors import FootageError
from threevp_nerfstudio.tracking import mediapipe_home
from threevp_nerfstudio.tracking.background import diverse, from_plate, learn_background, look_closer
from threevp_nerfstudio.tracking.mattes import (
    PATIENCE,
    Follower,
    fill_holes,
    guided_filter,
    iou,
    learn_room,
    matte_quality,
    read_matte,
    refine,
    squared,
    user_mattes,
)
from threevp_nerfstudio.tracking.quality import exposure_notes, picture_quality, spans, usable_pictures
from threevp_nerfstudio.tracking.srgb import srgb_decode, srgb_encode
from threevp_nerfstudio.tracking.unmixing import unmixed, unmixed_with

SIZE = 128


def coarse(mask: np.ndarray, shift: int = 3) -> np.ndarray:
    """What a segmentation network makes of a mask: soft, and a few pixels off."""
    moved = np.roll(mask.astype(np.float32), shift, axis=1)
    return (cv2.GaussianBlur(moved, (0, 0), 2.0) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def known() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pictures, true masks, coarse probabilities, and the empty room: noise, and a ball that the network takes for a person."""
    wall = scene(1, SIZE, SIZE)[0][0] * 0 + 120
    wall = (wall + 40 * np.sin(np.arange(SIZE)[:, None, None] / 9) + 20 * np.cos(np.arange(SIZE)[None, :, None] / 5)).astype(np.uint8)
    ball = (np.hypot(*(np.mgrid[0:SIZE, 0:SIZE] - np.array([70, 112])[:, None, None])) < 9)
    wall[ball] = (20, 150, 140)
    pictures, masks = scene(24, SIZE, SIZE, background=wall)
    rng = np.random.default_rng(0)
    noisy = (pictures + rng.normal(0, 1.5, pictures.shape)).clip(0, 255).astype(np.uint8)
    P = np.stack([np.maximum(coarse(m), coarse(ball & ~m, 0)) for m in masks])
    return noisy, masks, P, wall


def test_refined_mattes_are_better_than_what_they_start_from(known):
    pictures, masks, P, _ = known
    room = learn_room(pictures, P)
    plain = [iou(p > 127, m) for p, m in zip(P, masks, strict=True)]
    fine = [iou(refine(x, p, room, None) > 127, m) for x, p, m in zip(pictures, P, masks, strict=True)]
    assert np.mean(plain) < 0.93 < 0.97 < np.mean(fine)
    assert min(fine) > 0.94


def test_the_room_is_learned_where_it_is_uncovered(known):
    pictures, masks, P, wall = known
    room = learn_background(pictures, P)
    assert not room.known[masks.all(0)].any()  # what is always covered stays unknown
    assert room.known[~masks.any(0)].mean() > 0.8
    assert np.abs(room.colour - wall)[room.known].mean() < 2.5


def test_the_room_right_beside_the_subject_is_learned_from_finished_mattes(known):
    pictures, masks, P, wall = known
    room = learn_background(pictures, P)
    closer = look_closer(room, pictures, P, 255 * masks.astype(np.uint8))
    new = closer.known & ~room.known
    assert new.sum() > 0.02 * masks[0].sum()
    assert np.abs(closer.colour - wall)[new].mean() < 3.0
    assert not closer.known[masks.all(0)].any()
    # what changes its colour all the time is the subject, though the mattes leave it out
    flicker = pictures.copy()
    flicker[:, new] = np.random.default_rng(1).integers(0, 255, (len(pictures), 1, 3))
    assert not (look_closer(room, flicker, P, np.zeros_like(P)).known & new).any()


def test_an_arm_that_rests_is_no_part_of_the_room():
    """Of a subject who sits still nothing can be told by standing still."""
    wall = np.full((SIZE, SIZE, 3), 150, np.uint8)
    pictures, masks = np.stack([wall] * 24), np.zeros((24, SIZE, SIZE), dtype=bool)
    masks[:, 40:, 30:90] = True
    masks[:18, 70:80, 90:110] = True  # the arm, which is lifted in the end
    pictures[masks] = (20, 22, 30)
    room = learn_background(pictures, np.stack([coarse(m, 0) for m in masks]))
    assert np.abs(room.colour[74, 95:105] - 150).max() < 3 or not room.known[74, 95:105].any()


def test_a_back_that_the_network_misses_is_no_room():
    """A shirt with level stripes looks the same from everywhere, and from behind, without a face, the network takes it for the room."""
    rng = np.random.default_rng(3)
    wall = (120 + 50 * np.sin(np.arange(SIZE)[:, None] / 7 + np.arange(SIZE)[None] / 11))[..., None] * np.array([1.0, 0.9, 0.8])
    pictures, masks, P = [], [], []
    for k in range(30):
        turned = np.radians(12.0 * k)
        body, head = np.zeros((SIZE, SIZE), dtype=bool), np.zeros((SIZE, SIZE), dtype=bool)
        half = int(30 - 10 * abs(np.sin(turned)))
        body[76:, 64 - half : 64 + half] = True
        x = 64 + 5 * np.sin(turned)
        head |= np.hypot(np.arange(SIZE)[None] - x, np.arange(SIZE)[:, None] - 48.0) < 28
        picture = wall.copy()
        level = (np.arange(SIZE) // 10 % 2 == 0)[:, None, None]
        picture[body] = np.where(level, (70.0, 80.0, 120.0), (160.0, 150.0, 140.0)).repeat(SIZE, 1)[body]
        picture[body] *= 1 + 0.1 * np.sin(turned)  # another side, another light
        picture[head] = (90 + 60 * np.cos(turned), 70, 60)
        behind = np.cos(turned) < -0.5
        pictures.append((picture + rng.normal(0, 1.5, picture.shape)).clip(0, 255).astype(np.uint8))
        masks.append(head | body)
        seen = np.maximum(coarse(head, 0), coarse(body, 0) * 0.1 if behind else coarse(body, 0))
        P.append(seen.astype(np.uint8))
    pictures, masks, P = np.stack(pictures), np.stack(masks), np.stack(P)
    assert min(iou(p > 127, m) for p, m in zip(P, masks, strict=True)) < 0.65
    room = learn_room(pictures, P)
    always = masks.all(0)
    assert room.known[always].mean() < 0.02
    assert np.abs(room.colour - wall)[room.known & ~always].mean() < 3.0 and room.known[~masks.any(0)].mean() > 0.8
    fits = [iou(refine(x, p, room, None) > 127, m) for x, p, m in zip(pictures, P, masks, strict=True)]
    plain = [iou(p > 127, m) for p, m in zip(P, masks, strict=True)]
    assert min(np.array(fits) - plain) > -0.05 and np.mean(fits) > 0.8  # no body is eaten by the room


@pytest.mark.parametrize("shape", [(60, 100), (100, 60), (50, 50), (30, 200)])
def test_pictures_are_made_square_for_the_network(shape: tuple[int, int]):
    picture = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    square, top, left = squared(picture)
    assert square.shape == (max(shape), max(shape), 3)
    assert np.array_equal(square[top : top + shape[0], left : left + shape[1]], picture)


def test_a_plate_alone_is_enough(known):
    pictures, masks, _, wall = known
    fits = [iou(refine(x, None, from_plate(wall), None) > 127, m) for x, m in zip(pictures, masks, strict=True)]
    assert np.mean(fits) > 0.96


def test_of_two_people_the_one_before_is_kept():
    picture = np.full((160, 160, 3), 90, np.uint8)
    left, right = np.zeros((160, 160), np.uint8), np.zeros((160, 160), np.uint8)
    left[20:150, 10:75], right[50:130, 100:150] = 255, 255
    P = np.maximum(left, right)
    assert iou(refine(picture, P, None, None) > 127, left > 0) > 0.95
    assert iou(refine(picture, P, None, right) > 127, right > 0) > 0.95


def test_guided_filter_keeps_constants_and_follows_edges():
    picture = np.zeros((40, 40, 3), np.uint8)
    picture[:, 20:] = 200
    ones = np.ones((40, 40), np.float32)
    np.testing.assert_allclose(guided_filter(picture, 0.3 * ones), 0.3, atol=1e-3)
    step = (np.arange(40) >= 20).astype(np.float32)[None] * ones
    smooth = guided_filter(picture, cv2.GaussianBlur(step, (0, 0), 1.5))
    assert smooth[20, 16] < 0.25 and smooth[20, 23] > 0.75


def half_covered(subject: tuple[int, ...], room: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A picture of a slanted edge with its true alpha, its band, and the subject, roughly."""
    h, w = 60, 80
    x = np.arange(w)[None] - 40.3 - 0.21 * (np.arange(h)[:, None] - 30)
    alpha = (0.5 - x / 2.0).clip(0.0, 1.0)  # two pixels wide
    own, behind = (srgb_decode(np.array(colour) / 255) for colour in (subject, room))
    picture = 255 * srgb_encode(alpha[..., None] * own + (1 - alpha[..., None]) * behind)  # as a camera's pixel sums up light
    return picture.round().astype(np.uint8), alpha, np.abs(x) < 5, x < 1.5


def shifted(alpha: np.ndarray, pixels: int) -> np.ndarray:
    return cv2.warpAffine(alpha, np.float32([[1, 0, pixels], [0, 1, 0]]), alpha.shape[::-1], borderMode=cv2.BORDER_REPLICATE)


@pytest.mark.parametrize("known", [True, False])
def test_half_covered_pixels_are_unmixed(known: bool):
    picture, alpha, band, solid = half_covered((40, 30, 20), (200, 180, 90))
    guess = cv2.blur(solid.astype(np.float32), (7, 7))
    room = np.tile((200.0, 180.0, 90.0) if known else np.full(3, np.nan), (band.sum(), 1))
    found = unmixed(picture, band, solid, guess, room, 5)
    assert np.abs(found - alpha).max() < 0.05 < np.abs(guess - alpha).max()


def test_the_guess_stands_where_colours_do_not_tell():
    picture, _, band, solid = half_covered((100, 100, 100), (102, 101, 100))
    guess = cv2.blur(solid.astype(np.float32), (7, 7))
    np.testing.assert_allclose(unmixed(picture, band, solid, guess, None, 5), guess, atol=0.1)
    strange = picture.copy()
    strange[band] = (255, 0, 255)  # neither the subject's nor the room's
    np.testing.assert_allclose(unmixed(strange, band, solid, guess, None, 5), guess, atol=1e-6)
    assert unmixed(picture, np.zeros_like(band), solid, guess, None, 5) is guess


def test_known_colours_mend_an_outline_that_is_off():
    own, room = (40.0, 30.0, 20.0), (200.0, 180.0, 90.0)
    picture, alpha, band, _ = half_covered(own, room)
    off, expected = (shifted(alpha, pixels) for pixels in (2, -1))
    same = np.ones((band.sum(), 3))
    found = unmixed_with(picture, off, band, same * own, expected, same * room, 5)
    assert np.abs(found - alpha).max() < 0.1 < 0.4 < np.abs(expected - alpha).max()
    assert np.array_equal(found[~band], off[~band] > 0.5)
    plain = np.tile(np.round(own).astype(np.uint8), (*alpha.shape, 1))
    alike = unmixed_with(plain, off, band, same * own, expected, same * own, 5)  # tells nothing
    np.testing.assert_allclose(alike[band], expected[band], atol=1e-6)


def test_what_nobody_expects_stays():
    picture, alpha, band, _ = half_covered((40, 30, 20), (200, 180, 90))
    picture[band & (alpha > 0)] = (230, 120, 255)  # a hand, where the avatar has nothing
    same = np.ones((band.sum(), 3))
    found = unmixed_with(picture, alpha, band, same * (40, 30, 20), np.zeros_like(alpha), same * (200, 180, 90), 5)
    inside = band & (alpha == 1)
    inside[:8], inside[-8:] = False, False
    assert np.abs(found - alpha)[inside].max() < 0.05


def test_holes_are_filled_and_gaps_are_not():
    mask = np.ones((20, 20), dtype=bool)
    mask[8:10, 8:10] = False
    mask[0:6, 0:3] = False
    filled = fill_holes(mask, 10)
    assert filled[8, 8] and not filled[2, 1]


def test_diverse_pictures_differ():
    thumbs = np.zeros((20, 4, 4, 3), np.uint8)
    thumbs[7], thumbs[15] = 200, 100
    assert {7, 15} <= set(diverse(thumbs, 3).tolist())


def test_pictures_without_the_subject_are_left_out(known):
    _, masks, _, _ = known
    alpha = masks.astype(np.uint8) * 255
    alpha[5:8] = 0
    said: list[str] = []
    keep = usable_pictures(matte_quality(alpha, None), np.arange(24) / 10, said.append)
    assert np.flatnonzero(~keep).tolist() == [5, 6, 7] and "0.5 to 0.7 s: 3 pictures" in said[0]
    with pytest.raises(FootageError, match="found in 0 of 24 pictures"):
        usable_pictures(matte_quality(0 * alpha, None), np.arange(24.0), said.append)


def test_blur_and_exposure_are_told(known):
    pictures, masks, _, _ = known
    alpha, times, keep = masks.astype(np.uint8) * 255, np.arange(24) / 10, np.ones(24, dtype=bool)
    said: list[str] = []
    exposure_notes(picture_quality(pictures, alpha), keep, times, said.append)
    sharp = len(said)
    exposure_notes(picture_quality((pictures * 0.25).astype(np.uint8), alpha), keep, times, said.append)
    assert any("under-exposed" in s for s in said[sharp:])
    with pytest.raises(FootageError, match="almost black"):
        exposure_notes(picture_quality((pictures * 0.04).astype(np.uint8), alpha), keep, times, said.append)
    with pytest.raises(FootageError, match="almost white"):
        exposure_notes(picture_quality(np.full_like(pictures, 255), alpha), keep, times, said.append)
    soft = [picture_quality(np.stack([cv2.GaussianBlur(p, (0, 0), b) for p in pictures]), alpha) for b in (1, 3, 6)]
    assert soft[0].sharpness.mean() > 1.1 * soft[2].sharpness.mean()
    said.clear()
    exposure_notes(replace(soft[2], sharpness=0.1 * soft[2].sharpness), keep, times, said.append)
    assert any("very blurred" in s for s in said)
    once = picture_quality(pictures, alpha)
    once.sharpness[3:7] *= 0.2
    exposure_notes(once, keep, times, said.append)
    assert any("4 pictures are much more blurred" in s for s in said)


def test_spans():
    assert spans(np.array([1, 1, 0, 1], bool), np.array([0.0, 0.1, 0.2, 0.3])) == "0.0 to 0.1 s, 0.3 s"


def test_the_users_mattes(tmp_path: Path):
    with pytest.raises(FootageError, match="is no folder"):
        user_mattes(tmp_path / "absent")
    with pytest.raises(FootageError, match="holds no pictures"):
        user_mattes(tmp_path)
    Image.fromarray(np.full((4, 6), 200, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("broken")
    files = user_mattes(tmp_path)
    assert (read_matte(files[0]) == 200).all()
    with pytest.raises(FootageError, match="b.png is not a readable matte"):
        read_matte(files[1])


def test_a_missing_mediapipe_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(mediapipe_home.HOME_VARIABLE, str(tmp_path))
    monkeypatch.setattr(mediapipe_home.importlib.util, "find_spec", lambda name: None)
    assert not mediapipe_home.available()
    with pytest.raises(FootageError, match="threevp install-mediapipe"):
        mediapipe_home.load()


MEDIAPIPE_TWICE = """
import numpy as np
from threevp_nerfstudio.tracking.landmarks import face_detector
from threevp_nerfstudio.tracking.mattes import person_segmenter
from threevp_nerfstudio.workers import shared, sharing

pictures = np.random.default_rng(0).integers(0, 255, (24, 96, 96, 3), dtype=np.uint8)

def segment():
    look = person_segmenter()
    return lambda picture: look(picture).shape

def detect():
    look = face_detector()
    return lambda picture: len(look(picture))

with sharing(2):
    for make in (segment, segment, detect):  # as the stages frames, mattes and landmarks do
        assert len(list(shared(pictures, make, apart=True))) == 24
    segment()(pictures[0])
    assert len(list(shared(pictures, segment, apart=True))) == 24
"""


@pytest.mark.skipif(not mediapipe_home.available(), reason="MediaPipe is not installed (threevp install-mediapipe)")
def test_mediapipe_works_in_workers_stage_after_stage():
    found = subprocess.run([sys.executable, "-c", MEDIAPIPE_TWICE], capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr[-2000:]


def test_who_was_followed_is_followed_on():
    P = np.zeros((6, 96, 128), np.uint8)
    for k, p in enumerate(P):
        p[20:90, 10:40] = 200  # one who sits
        p[8:92, 128 - 14 * k : 168 - 14 * k] = 250  # one who walks in, and is larger
    P[3] = 0  # both are missed once
    follow = Follower()
    for k, p in enumerate(P[:5]):
        where = follow(p)
        assert where[:, :11].any() and (where[:, 12:] == 0).all(), k


def test_who_is_missed_is_waited_for():
    """The network does not see the back of a head, and sees somebody else."""
    both, other = np.zeros((2, 96, 128), np.uint8)
    both[20:90, 10:60], both[30:90, 90:120] = 250, 250
    other[30:90, 90:120] = 250
    follow = Follower()
    assert follow(np.zeros_like(both)).max() == 0
    for p in [both, *[other] * PATIENCE, both, *[other] * PATIENCE]:
        where = follow(p)
        assert where[:, :15].any() and not where[:, 16:].any()
    assert follow(other)[:, 22:].any()  # who was there does not come back
