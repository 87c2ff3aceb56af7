"""Depths of a head over time, by the motion that is seen across the line of sight."""

from __future__ import annotations

import numpy as np
import pytest

from threevp_nerfstudio.tracking.depth import motion_across, smoothed_depth


def smooth_noise(n: int, lasts: float, rate: float, seed: int) -> np.ndarray:
    """A Gaussian process of unit variance that changes within `lasts` seconds."""
    t = np.arange(n) / rate
    K = np.exp(-0.5 * ((t[:, None] - t[None]) / lasts) ** 2) + 1e-6 * np.eye(n)
    return np.linalg.cholesky(K) @ np.random.default_rng(seed).normal(size=n)


def head(n: int, rate: float = 30.0, size: float = 0.01, lasts: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    place = np.stack([size * smooth_noise(n, lasts, rate, k) for k in range(3)], -1) + [0.02, -0.05, 1.7]
    return np.arange(n) / rate, place


def test_errors_of_size_are_taken_out_and_motion_stays():
    times, true = head(400)
    distance = np.linalg.norm(true, axis=1)
    wrong = true * (1 + 0.003 * smooth_noise(400, 0.2, 30, 7))[:, None]
    found = smoothed_depth(times, wrong, np.broadcast_to(wrong.mean(0), wrong.shape), np.ones(400, bool))
    before = np.std(np.linalg.norm(wrong, axis=1) - distance)
    assert np.std(found - distance) < 0.75 * before
    # without errors the motion loses little
    kept = smoothed_depth(times, true, np.broadcast_to(true.mean(0), true.shape), np.ones(400, bool))
    assert np.std(kept - distance) < 0.35 * np.std(distance)


def test_a_head_that_keeps_still_is_held_still():
    times, true = head(200, size=0.0002)
    wrong = true * (1 + 0.003 * smooth_noise(200, 0.2, 30, 3))[:, None]
    found = smoothed_depth(times, wrong, np.broadcast_to(wrong.mean(0), wrong.shape), np.ones(200, bool))
    assert found.std() < 0.4 * np.linalg.norm(wrong, axis=1).std()


def test_long_videos_are_smoothed_in_windows_without_seams():
    times, true = head(2100)
    mean = np.broadcast_to(true.mean(0), true.shape)
    found = smoothed_depth(times, true, mean, np.ones(2100, bool))
    assert np.abs(np.diff(found - np.linalg.norm(true, axis=1))).max() < 0.002


def test_lost_pictures_and_short_videos_keep_their_depths():
    times, true = head(60)
    usable = np.arange(60) % 7 != 3
    found = smoothed_depth(times, true, np.broadcast_to(true.mean(0), true.shape), usable)
    assert (found == np.linalg.norm(true, axis=1))[~usable].all()
    few = np.arange(60) < 5
    assert (smoothed_depth(times, true, true, few) == np.linalg.norm(true, axis=1)).all()


@pytest.mark.parametrize("lasts", [0.3, 0.8])
def test_the_time_scale_is_that_of_the_motion(lasts: float):
    times, true = head(1200, lasts=lasts)
    true[:, 2] = 0
    size, found = motion_across(times, true)
    assert size == pytest.approx(0.01, rel=0.3) and found == pytest.approx(lasts, rel=0.3)
