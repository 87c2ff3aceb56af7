"""How far away the head was over time: sizes err for a while in one direction, and a head moves in depth as it does sideways.

A head's place along the line of sight is told by its size alone, of which a quarter of a percent is 4 mm. What a picture says
about that is wrong in the same way for as long as an expression lasts, so that neighbours hardly correct each other. How far and how
quickly this person moves is seen across the line of sight; in depth it is about the same. Both make a Gaussian process: the motion,
with the amplitude and the time scale of the motion across, plus an error with those of sizes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from scipy.ndimage import gaussian_filter1d

from threevp_nerfstudio.tracking.seat import Seat, find_seat

SIZE_NOISE = 0.003
"""Standard deviation of a picture's size, of 1, which is wrong ..."""
SIZE_LASTS = 0.1
"""... for about this long, seconds."""
BIAS = 0.0015
"""Standard deviation by which all sizes of a performance are off those of the turn: mouths open, and hair falls otherwise."""
DOUBTED = 2.0
"""Deviations from which a mean distance is that of another posture, and no bias."""
QUICK = 0.2
"""Seconds within which a bend of neck and spine is told better by its rotation than by sizes."""
LEAST_MOTION = 0.001
"""Metres that everybody moves."""
LAGS = (0.1, 0.2, 0.3, 0.5, 0.8)
"""Seconds between two looks at how alike places still are."""
SHORTEST, LONGEST = 0.1, 2.0
"""Bounds of the motion's time scale, seconds."""
WINDOW, OVERLAP = 900, 150
"""Pictures that are smoothed at once, and how many at its ends are left to the next."""


def steadied(
    T_camera_root: Float[Array, "N 4 4"],
    heads: Float[Array, "N 3"],
    times: Float[Array, "N"],
    static: Bool[Array, "N"],
    found: Bool[Array, "N"],
    seat: Seat | None,
) -> Float[Array, "N 4 4"]:
    """Poses moved along the line of sight of their heads, to smoothed depths.

    In the turn, heads are expected on the circle on which they are seen across the line of sight (a turn too short for that stays as
    it is). In the performance they are about where `seat`, of the pictures that the template was fitted to, has them, and as far from
    there as neck and spine bend quickly: of a nod, rotations tell depths better than sizes do. Their mean distance is drawn to the seat's
    as far as it may come from sizes alone (`bias`).

    Args:
        heads: in the camera, metres.
        static: pictures of the turn.
        found: pictures that are not lost.
    """
    T, turn = T_camera_root.copy(), static & found
    circle = find_seat(T[turn, :3, :3], heads[turn]) if turn.any() else None
    parts = [(~static, seat, True)] if circle is None else [(static, circle, False), (~static, seat or circle, True)]
    for part, place, bends in parts:
        if not part.any():
            continue
        here = heads[part]
        expected = place.head(T[part, :3, :3]) if place is not None else np.broadcast_to(here.mean(0), here.shape)
        if bends:
            expected = expected + quick_bend(T[part], here, times[part], found[part])
        depth = smoothed_depth(times[part], here, expected, found[part])
        T[part, :3, 3] += here * (depth / np.linalg.norm(here, axis=1) - 1.0)[:, None]
    return T


def quick_bend(
    T_camera_root: Float[Array, "n 4 4"], heads: Float[Array, "n 3"], times: Float[Array, "n"], found: Bool[Array, "n"]
) -> Float[Array, "n 3"]:
    """By how much bending neck and spine moves heads from their usual place within `QUICK` seconds, camera axes, metres."""
    if len(times) < 2 or not found.any():
        return np.zeros_like(heads)
    R, sigma = T_camera_root[:, :3, :3], QUICK / float(np.median(np.diff(times)))
    local = np.einsum("nji,nj->ni", R, heads - T_camera_root[:, :3, 3])
    weight = found.astype(float)
    usual = gaussian_filter1d(local * weight[:, None], sigma, axis=0) / np.maximum(gaussian_filter1d(weight, sigma), 1e-9)[:, None]
    return np.einsum("nij,nj->ni", R, local - usual)


def smoothed_depth(
    times: Float[Array, "N"], heads: Float[Array, "N 3"], expected: Float[Array, "N 3"], usable: Bool[Array, "N"]
) -> Float[Array, "N"]:
    """Distances of the head from the camera, metres, along the lines of sight through `heads`.

    Args:
        times: seconds, ascending.
        heads: places as tracked, camera axes.
        expected: places about which the head moves: of a seat, or the mean.
        usable: places that were found; where they are not, depths stay as they are.
    """
    distance = np.linalg.norm(heads, axis=1)
    rows = np.flatnonzero(usable)
    if len(rows) < 8:
        return distance
    ray = heads / np.maximum(distance, 1e-9)[:, None]
    off = heads - expected
    depth = (off * ray).sum(1)
    across = off - depth[:, None] * ray
    size, lasts = motion_across(times[rows], across[rows])
    shift = np.zeros(len(distance))
    for start in range(0, len(rows), WINDOW - 2 * OVERLAP):
        part = rows[start : start + WINDOW]
        lapse = times[part][:, None] - times[part][None]
        motion = size**2 * np.exp(-0.5 * (lapse / lasts) ** 2)
        noise = (SIZE_NOISE * distance[part].mean()) ** 2 * np.exp(-0.5 * (lapse / SIZE_LASTS) ** 2)
        seen = motion + noise + (0.1 * LEAST_MOTION) ** 2 * np.eye(len(part))
        middle = depth[part].mean()
        smooth = middle + motion @ np.linalg.solve(seen, depth[part] - middle)
        first = 0 if start == 0 else OVERLAP  # the window before has these
        shift[part[first:]] = (smooth - depth[part])[first:]
        if start + WINDOW >= len(rows):
            break
    shift[rows] -= bias(times[rows], distance[rows].mean(), depth[rows].mean(), across[rows].mean(0), size, lasts)
    return distance + shift


def bias(
    times: Float[Array, "n"], distance: float, depth: float, across: Float[Array, "3"], size: float, lasts: float
) -> float:
    """Metres of a mean depth that sizes make up, and that are no motion.

    A mean is moved by the motion itself, the less the longer it is looked at; by another posture, in depth about as far as across; and by
    what sizes are off. The first two are believed, and so is a mean that is too far off for the last.

    Args:
        distance: of the head from the camera.
        depth, across: means of where it is from where it is expected, along the line of sight and across.
        size, lasts: of the motion, as `motion_across` has them.
    """
    spans = max(float(np.ptp(times)) / (np.sqrt(2 * np.pi) * lasts), 1.0)
    moved, sizes = size**2 / spans, (BIAS * distance) ** 2
    posture = max(float(across @ across) / 2, depth**2 - DOUBTED**2 * (moved + sizes))
    return depth * sizes / (moved + posture + sizes)


def motion_across(times: Float[Array, "n"], across: Float[Array, "n 3"]) -> tuple[float, float]:
    """Amplitude (metres, of one direction) and time scale (seconds) of the motion across the line of sight."""
    centred = across - across.mean(0)
    variance = float((centred**2).sum(1).mean()) / 2
    size = max(np.sqrt(variance), LEAST_MOTION)
    step = float(np.median(np.diff(times)))
    scales = []
    for lag in LAGS:
        k = max(1, round(lag / step))
        if k >= len(times) // 2:
            break
        alike = float((centred[k:] * centred[:-k]).sum(1).mean()) / 2 / max(variance, 1e-12)
        if 0.05 < alike < 0.999:
            scales.append(k * step / np.sqrt(-2 * np.log(alike)))
    lasts = float(np.median(scales)) if scales else LONGEST
    return size, float(np.clip(lasts, SHORTEST, LONGEST))
