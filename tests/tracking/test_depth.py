"""Depths of a head over time, by the motion that is seen across the line of sight."""

from __future__ import annotations

import numpy as np
import pytest

from threevp_nerfstudio.tracking.depth import motion_across, smoothed_depth, steadied
from threevp_nerfstudio.tracking.turn import FRONTAL, rotation_about_z


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


def test_sizes_that_are_off_throughout_are_mended_and_another_posture_stays():
    times, true = head(400, size=0.005)
    seat = np.broadcast_to(true.mean(0), true.shape)
    every = np.ones(400, bool)

    def error(seen: np.ndarray, truth: np.ndarray) -> float:
        return float((smoothed_depth(times, seen, seat, every) - np.linalg.norm(truth, axis=1)).mean())

    assert abs(error(true * 1.002, true)) < 0.002 * 1.7 / 2
    for leant in (true + [0.0, 0.0, -0.05], true + [0.02, 0.005, 0.01]):
        assert abs(error(leant, leant)) < 0.001
    assert abs(error(true, true)) < 0.0005


@pytest.mark.parametrize("lasts", [0.3, 0.8])
def test_the_time_scale_is_that_of_the_motion(lasts: float):
    times, true = head(1200, lasts=lasts)
    true[:, 2] = 0
    size, found = motion_across(times, true)
    assert size == pytest.approx(0.01, rel=0.3) and found == pytest.approx(lasts, rel=0.3)


def sitting(span: float, n: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Root poses of a turn and then a performance, true heads, and which pictures are the turn's. The root is at the head."""
    angle = np.concatenate([np.linspace(0, span, n), np.zeros(n)])
    R = FRONTAL @ rotation_about_z(angle)
    heads = np.array([0.02, -0.1, 1.7]) + R @ np.array([0.01, -0.03, 0.0])
    heads[n:] += 0.01 * np.stack([smooth_noise(n, 0.8, 30, k) for k in range(3)], -1)
    T = np.tile(np.eye(4), (2 * n, 1, 1))
    T[:, :3, :3] = R
    return T, heads, np.arange(2 * n) < n


def test_a_turning_head_is_put_back_on_its_circle():
    T, true, static = sitting(2 * np.pi)
    wrong = true * (1 + 0.003 * np.sin(np.linspace(0, 20, len(true))))[:, None]
    T[:, :3, 3] = wrong
    found = np.arange(len(T)) != 50
    moved = steadied(T, wrong, np.arange(len(T)) / 30, static, found, None)[:, :3, 3]
    off, before = (np.abs(np.linalg.norm(x[static & found], axis=1) - np.linalg.norm(true[static & found], axis=1)) for x in (moved, wrong))
    assert before.max() > 0.005 and off.max() < 0.0015
    assert (moved[50] == wrong[50]).all()  # a lost picture
    # only along the lines of sight
    across = np.cross(moved, wrong) / np.linalg.norm(wrong, axis=1)[:, None]
    assert np.abs(across).max() < 1e-9


def test_a_quick_nod_is_not_flattened():
    T, heads, static = sitting(2 * np.pi)
    t = np.arange(120) / 30
    arm = np.stack([np.zeros(120), 0.02 * np.exp(-(((t - 2) / 0.15) ** 2)), np.zeros(120)], -1)  # by the neck, to the front
    T[:, :3, 3] = heads
    nodding = heads.copy()
    nodding[~static] += np.einsum("nij,nj->ni", T[~static, :3, :3], arm)
    wrong = 1 + 0.003 * np.concatenate([np.zeros(120), smooth_noise(120, 0.2, 30, 5)])[:, None]
    T[:, :3, 3] += nodding * (wrong - 1)
    seen = nodding * wrong
    moved = steadied(T, seen, np.arange(240) / 30, static, np.ones(240, bool), None)
    found = np.linalg.norm(seen + moved[:, :3, 3] - T[:, :3, 3], axis=1)[~static]
    off = found - np.linalg.norm(nodding, axis=1)[~static]
    assert np.abs(off - off.mean())[55:66].max() < 0.006  # of 20 mm


@pytest.mark.parametrize("span", [0.0, 0.9])
def test_a_short_turn_keeps_its_depths(span: float):
    T, heads, static = sitting(span)
    T[:, :3, 3] = heads
    moved = steadied(T, heads, np.arange(len(T)) / 30, static, np.ones(len(T), bool), None)
    assert (moved[static] == T[static]).all()
    assert np.isfinite(moved).all()


def test_footage_without_a_turn_or_without_a_performance():
    T, heads, static = sitting(2 * np.pi)
    T[:, :3, 3] = heads
    for part in (np.zeros_like(static), np.ones_like(static)):
        moved = steadied(T, heads, np.arange(len(T)) / 30, part, np.ones(len(T), bool), None)
        assert np.isfinite(moved).all() and moved.shape == T.shape
