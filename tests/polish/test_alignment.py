"""Pictures find their place on an avatar that is held still."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiny_training import tiny_trainer
from threevp_nerfstudio.capture.capture import load_capture, read_rgba
from threevp_nerfstudio.data.dataparser import cameras_of
from threevp_nerfstudio.polish.alignment import OnePicture, TellingPixels, align_pictures, held_still, in_order

FRAMES = (2, 11, 30)


@pytest.fixture(scope="module")
def avatar(tiny_capture: Path, tmp_path_factory: pytest.TempPathFactory):
    """Trained for a minute's fraction on known poses, with corrections that have not set in."""

    def enabled(config) -> None:
        config.pipeline.model.refinement.enabled = True

    trainer = tiny_trainer(tiny_capture, tmp_path_factory.mktemp("align"), before=enabled)
    model = trainer.pipeline.model
    for step in range(120):
        model.before_step(step)
        trainer.train_iteration(step)
        model.after_step(step)
    return model


def test_pixels_are_drawn_where_pictures_change():
    picture = np.full((64, 80, 4), 255, np.uint8)
    picture[:, :40, :3] = (200, 40, 90)
    picture[:, 60:, 3] = 0
    found = TellingPixels.of(picture, 400, np.random.default_rng(0))
    assert found.size == (80, 64) and len(found.places) > 100
    x = found.places[:, 1]
    assert (np.minimum(abs(x - 40), abs(x - 60)) < 4).all() and (abs(x - 40) < 4).any() and (abs(x - 60) < 4).any()
    inner, outer = abs(x - 40) < 2, abs(x - 60) < 2
    black = found.direction(np.zeros((len(x), 3), np.float32))
    change = np.array([55, 215, 165]) / np.linalg.norm([55, 215, 165])
    np.testing.assert_allclose(np.abs(black[inner]), np.tile(change, (inner.sum(), 1)), atol=1e-3)
    np.testing.assert_allclose(np.abs(black[outer]), 3**-0.5, atol=1e-3)
    nothing = TellingPixels.of(np.zeros((20, 20, 4), np.uint8), 50, np.random.default_rng(0))
    assert len(nothing.places) == 0


def test_a_picture_that_was_put_off_comes_back(avatar, tiny_capture: Path):
    """The pictures are the avatar's own, so that no correction is the truth."""
    capture = load_capture(tiny_capture)
    corrections = avatar.corrections
    off = torch.tensor([0.6, -0.5, 0.8, 0.7, -0.8, 0.2, 0, 0, 0, 0, 0, 0])
    left = []
    with held_still(avatar):
        assert not any(p.requires_grad for p in avatar.field.parameters())
        for frame in FRAMES:
            with torch.no_grad():
                own = avatar.get_rgba_image(avatar.get_outputs_for_camera(cameras_of(capture, np.array([frame]))))
            picture = (255 * own).round().byte().numpy()
            pixels = TellingPixels.of(picture, 900, np.random.default_rng(0))
            corrections.body.data[frame], corrections.head.data[frame] = off.split(6)
            OnePicture(avatar, capture, frame, pixels, 1).align()
            left.append(float(corrections.body[frame, 3:].norm() / off[3:6].norm()))
    assert all(p.requires_grad for p in avatar.field.parameters()) and avatar.training
    assert np.mean(left) < 0.7  # what was put off is the prior, too


def test_all_frames_get_one(avatar, tiny_capture: Path):
    capture = load_capture(tiny_capture)
    corrections, seen = avatar.corrections, []
    with torch.no_grad():
        corrections.body.zero_(), corrections.head.zero_()
    align_pictures(avatar, capture, 200, progress=lambda what, done, of: seen.append((done, of)))
    frames = len(capture.frames)
    assert seen == [(i + 1, frames) for i in range(frames)]
    assert corrections.body.abs().sum(1).bool().sum() > frames // 2 and torch.isfinite(corrections.body).all()


def test_those_between_have_what_their_neighbours_have(avatar, tiny_capture: Path):
    capture = load_capture(tiny_capture)
    corrections, seen = avatar.corrections, []
    with torch.no_grad():
        corrections.body.zero_(), corrections.head.zero_()
    align_pictures(avatar, capture, 200, every=3, progress=lambda what, done, of: seen.append((done, of)))
    for rows in in_order(capture):
        between = corrections.body[rows]
        assert between[:4].abs().sum() > 0
        torch.testing.assert_close(between[1], (2 * between[0] + between[3]) / 3, atol=1e-4, rtol=1e-3)
    assert seen[-1] == (len(seen), sum(-(-len(rows) // 3) for rows in in_order(capture)))


def test_a_step_into_nowhere_is_not_taken(avatar, tiny_capture: Path, monkeypatch: pytest.MonkeyPatch):
    capture = load_capture(tiny_capture)
    corrections = avatar.corrections
    with torch.no_grad():
        corrections.body.zero_(), corrections.head.zero_()
    monkeypatch.setattr(corrections, "sensitivity", lambda x, g, ray, rays, frame: torch.full((rays, 12), torch.nan))
    pixels = TellingPixels.of(read_rgba(capture.frames, 4), 100, np.random.default_rng(0))
    with held_still(avatar):
        OnePicture(avatar, capture, 4, pixels, 1).align()
    assert not corrections.body[4].any()
