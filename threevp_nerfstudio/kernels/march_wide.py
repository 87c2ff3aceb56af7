"""Marching with many threads to a ray, for a GPU: it has room for far more threads than a step or a picture has rays, and each
of them waits for memory most of the time, a tenth of a millisecond for one nearest triangle.

The samples are those of `march.py`'s walk, and a few more, as each thread looks from where it begins.
"""

from __future__ import annotations

import torch
import warp as wp
from jaxtyping import Int
from torch import Tensor

from threevp_nerfstudio.kernels.hull import PosedHull
from threevp_nerfstudio.kernels.look import (
    END,
    LAST_SAMPLE,
    LATTICE,
    QUARTERS,
    SAMPLE,
    SEARCH_IN_HULL,
    Arguments,
    MarchedSamples,
    MarchSettings,
    box_bounds,
    farthest_in_hull,
    free_distance,
    hull_arguments,
    look,
    place_in_step,
)
from threevp_nerfstudio.kernels.runtime import launch, view
from threevp_nerfstudio.kernels.surface import SurfaceView, canonical_point

STRETCH = wp.constant(16)
"""Lattice points (quarters of a step) that one thread walks where rays are walked in stretches: as few as pay, for threads that take
longest hold up the others. They are noted in as many bits."""
WORD = wp.constant(64)
"""Lattice points whose bits are read at once."""
LONGEST = 2.0
"""Diagonals of the canonical template's box: the longest way of a ray through a posed one."""


# ---- training rays, in stretches -----------------------------------------------------------------------------------------
# Every stretch of a ray is walked by a thread of its own, which notes what it found in a few bits; then one thread per ray puts
# the stretches one behind the other, and one per sample maps it to canonical space.


@wp.kernel(enable_backward=False)
def _probe(
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    slots: wp.array(dtype=wp.int32),
    lower: wp.array(dtype=wp.vec3),
    upper: wp.array(dtype=wp.vec3),
    surface: SurfaceView,
    skip: wp.array3d(dtype=wp.uint8),
    grid_origin: wp.vec3,
    cell: float,
    base_step: float,
    reach: float,
    stop_at_hidden: int,
    seed: int,
    found: wp.array2d(dtype=wp.uint16),
    fine: wp.array2d(dtype=wp.uint16),
    end: wp.array2d(dtype=wp.int32),
):
    stretch, r = wp.tid()
    slot = slots[r]
    o = origins[r]
    d = wp.normalize(directions[r])
    bounds = box_bounds(o, d, lower[slot], upper[slot])
    quarter = float(base_step) / float(QUARTERS)
    steps = int(wp.ceil((bounds[1] - bounds[0]) / quarter))
    first = stretch * STRETCH
    last = wp.min(first + STRETCH, steps)
    search = reach + float(STRETCH) * quarter  # where nothing is as near as that, the stretch is empty
    near = wp.vec3(0.0, 0.0, 0.0)
    known = bool(False)
    careful = bool(False)
    bits = wp.uint32(0)
    quarters = wp.uint32(0)
    ended = int(-1)
    k = int(first)
    while k < last:
        stride = int(QUARTERS)
        if careful or k % QUARTERS != 0:
            stride = int(1)
        width = float(stride) * quarter
        p = o + (bounds[0] + float(k) * quarter + place_in_step(seed, r, k) * width) * d
        bound = float(search)
        if known:
            bound = wp.min(search, wp.length(p - near) + 1.0e-5)
        seen = look(
            p, surface, slot, skip, grid_origin, cell, reach, search, bound
        )
        if seen.hit.found == 1:
            near = seen.hit.nearest
            known = bool(True)
        careful = seen.thin == 1
        if careful and stride > 1:
            continue
        advance = float(width)
        if seen.state == SAMPLE or seen.state == LAST_SAMPLE:
            bit = wp.uint32(1) << wp.uint32(k - first)
            bits = bits | bit
            if stride == 1:
                quarters = quarters | bit
            if seen.state == LAST_SAMPLE and stop_at_hidden != 0:
                ended = int(k)
                k = last
        elif seen.state == END:
            ended = int(steps)
            k = last
        else:
            advance = seen.advance
        k += stride * wp.max(1, int(wp.floor(advance / width)))
    found[r, stretch] = wp.uint16(bits)
    fine[r, stretch] = wp.uint16(quarters)
    end[r, stretch] = ended


@wp.kernel(enable_backward=False)
def _join(
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    slots: wp.array(dtype=wp.int32),
    lower: wp.array(dtype=wp.vec3),
    upper: wp.array(dtype=wp.vec3),
    base_step: float,
    seed: int,
    found: wp.array2d(dtype=wp.uint64),
    fine: wp.array2d(dtype=wp.uint64),
    end: wp.array2d(dtype=wp.int32),
    out_t: wp.array2d(dtype=float),
    out_width: wp.array2d(dtype=float),
    out_count: wp.array(dtype=wp.int32),
):
    r = wp.tid()
    slot = slots[r]
    room = out_t.shape[1]
    length = wp.length(directions[r])
    bounds = box_bounds(origins[r], directions[r] / length, lower[slot], upper[slot])
    quarter = float(base_step) / float(QUARTERS)
    words = int(found.shape[1])
    total = int(0)
    last = int(-1)
    closed = wp.uint64(0)  # of the last word: what lies in front of the ray's end
    w = int(0)
    while w < words:
        closed = ~wp.uint64(0)
        for part in range(WORD / STRETCH):
            if last < 0:
                last = end[r, w * (WORD / STRETCH) + part]
                if last >= 0 and part + 1 < WORD / STRETCH:
                    closed = (wp.uint64(1) << wp.uint64((part + 1) * STRETCH)) - wp.uint64(1)
        bits = found[r, w] & closed
        while bits != wp.uint64(0):
            bits = bits & (bits - wp.uint64(1))
            total += 1
        w += 1
        if last >= 0:
            words = w
    # with too little room every so manieth sample stands for its neighbours, but for the one that closes the ray
    every = (total + room - 1) / room
    due = int(0)
    if every > 1:
        due = int(place_in_step(seed, r, LATTICE - 1) * float(every))
    count = int(0)
    passed = int(0)
    for word in range(words):
        bits = found[r, word]
        if word == words - 1:
            bits = bits & closed
        if bits != wp.uint64(0):
            for b in range(WORD):
                bit = wp.uint64(1) << wp.uint64(b)
                if bits & bit != wp.uint64(0):
                    k = word * WORD + b
                    closes = k == last
                    if (passed % wp.max(every, 1) == due and count < room) or closes:
                        stride = float(QUARTERS)
                        if fine[r, word] & bit != wp.uint64(0):
                            stride = float(1.0)
                        width = stride * quarter
                        t = bounds[0] + float(k) * quarter + place_in_step(seed, r, k) * width
                        at = wp.min(count, room - 1)
                        out_t[r, at] = t / length
                        out_width[r, at] = width * float(wp.max(every, 1))
                        if closes:
                            out_width[r, at] = float(QUARTERS) * quarter
                        count = at + 1
                    passed += 1
    out_count[r] = count


@wp.kernel(enable_backward=False)
def _map_samples(
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    slots: wp.array(dtype=wp.int32),
    surface: SurfaceView,
    reach: float,
    t: wp.array2d(dtype=float),
    count: wp.array(dtype=wp.int32),
    out_position: wp.array2d(dtype=wp.vec3),
    out_M: wp.array2d(dtype=wp.mat33),
):
    r, i = wp.tid()
    if i < count[r]:
        slot = slots[r]
        p = origins[r] + t[r, i] * directions[r]
        hit = canonical_point(p, surface, slot, 1.01 * reach)
        out_position[r, i] = hit.position
        out_M[r, i] = hit.M


def march_in_stretches(
    arguments: Arguments, rays: int, settings: MarchSettings, seed: int, extent: float, device: torch.device
) -> MarchedSamples:
    """Walk whole rays. Those that have too many samples keep every so manieth of them, with wider intervals.

    Args:
        extent: diagonal of the canonical template's box, metres.
    """
    out = MarchedSamples.room_for(rays, settings.max_samples, device)
    words = int((LONGEST * extent + 4.0 * settings.reach) / (settings.step * WORD / QUARTERS)) + 1
    stretches = words * (WORD // STRETCH)
    found = torch.empty(2, rays, words, dtype=torch.int64, device=device)
    end = torch.empty(rays, stretches, dtype=torch.int32, device=device)
    short = [view(bits, wp.uint16) for bits in found.view(torch.int16)]
    long = [view(bits, wp.uint64) for bits in found]
    a, t, width, count = arguments, view(out.t), view(out.width), view(out.count)
    step, reach = float(settings.step), float(settings.reach)
    walk = [step, reach, int(settings.stop_at_hidden), int(seed)]
    launch(_probe, (stretches, rays), [*a.rays, *a.box, a.surface, *a.grid, *walk], [*short, view(end)], device)
    launch(_join, rays, [*a.rays, *a.box, step, int(seed), *long, view(end)], [t, width, count], device)
    mapped = [view(out.position, wp.vec3), view(out.M, wp.mat33)]
    launch(_map_samples, (rays, settings.max_samples), [*a.rays, a.surface, reach, t, count], mapped, device)
    return out


# ---- a part of a picture, all steps at once --------------------------------------------------------------------------------
# The hull alone says which whole steps have to be looked at; all of them are looked at at once, by a thread each. So the slowest
# ray takes no longer than one query, where the plain walk adds up those of a ray.


@wp.kernel(enable_backward=False)
def _list(
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    slots: wp.array(dtype=wp.int32),
    lower: wp.array(dtype=wp.vec3),
    upper: wp.array(dtype=wp.vec3),
    skip: wp.array3d(dtype=wp.uint8),
    grid_origin: wp.vec3,
    cell: float,
    hull_away: wp.array3d(dtype=wp.uint8),
    hull_parts: wp.array3d(dtype=wp.int32),
    hull_position: wp.array3d(dtype=wp.vec3),
    hull_M: wp.array3d(dtype=wp.mat33),
    hull_distance: wp.array3d(dtype=float),
    hull_lower: wp.vec3,
    hull_cell: float,
    step: float,
    start: wp.array(dtype=wp.int32),
    listed: wp.array2d(dtype=wp.int32),
    count: wp.array(dtype=wp.int32),
    next: wp.array(dtype=wp.int32),
    end: wp.array(dtype=wp.int32),
):
    r = wp.tid()
    slot = slots[r]
    room = listed.shape[1]
    o = origins[r]
    d = wp.normalize(directions[r])
    bounds = box_bounds(o, d, lower[slot], upper[slot])
    steps = int(wp.ceil((bounds[1] - bounds[0]) / step))
    k = start[r] / QUARTERS
    n = int(0)
    while k < steps and n < room:
        p = o + (bounds[0] + (float(k) + 0.5) * step) * d
        free = free_distance(
            p, d, hull_away, hull_parts, hull_position, hull_M, hull_lower, hull_cell, skip, grid_origin, cell
        )
        if free > 0.0:
            k += wp.max(1, int(wp.floor(free / step)))
        else:
            listed[r, n] = k
            n += 1
            k += 1
    count[r] = n
    end[r] = n
    next[r] = -1
    if k < steps:
        next[r] = k * QUARTERS


@wp.kernel(enable_backward=False)
def _look_at(
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    slots: wp.array(dtype=wp.int32),
    lower: wp.array(dtype=wp.vec3),
    upper: wp.array(dtype=wp.vec3),
    surface: SurfaceView,
    skip: wp.array3d(dtype=wp.uint8),
    grid_origin: wp.vec3,
    cell: float,
    hull_distance: wp.array3d(dtype=float),
    hull_lower: wp.vec3,
    hull_cell: float,
    step: float,
    reach: float,
    listed: wp.array2d(dtype=wp.int32),
    count: wp.array(dtype=wp.int32),
    end: wp.array(dtype=wp.int32),
    out_t: wp.array2d(dtype=float),
    out_width: wp.array2d(dtype=float),
    out_position: wp.array2d(dtype=wp.vec3),
    out_M: wp.array2d(dtype=wp.mat33),
):
    r, i = wp.tid()
    if i >= count[r]:
        return
    slot = slots[r]
    o = origins[r]
    length = wp.length(directions[r])
    d = directions[r] / length
    bounds = box_bounds(o, d, lower[slot], upper[slot])
    begin = bounds[0] + float(listed[r, i]) * step
    search = SEARCH_IN_HULL * reach
    width = float(step)
    looks = int(1)  # one of the whole step, and where the template is thin, four of its quarters
    at = int(0)
    while at < looks:
        j = int(at)
        if looks > 1:
            j = at - 1
        t = begin + (float(j) + 0.5) * width
        p = o + t * d
        bound = wp.min(search, farthest_in_hull(p, hull_distance, hull_lower, hull_cell))
        seen = look(
            p, surface, slot, skip, grid_origin, cell, reach, search, bound
        )
        if at == 0 and seen.thin == 1:
            looks = 1 + QUARTERS
            width = step / float(QUARTERS)
        elif seen.state == SAMPLE or seen.state == LAST_SAMPLE:
            out_t[r, QUARTERS * i + j] = t / length
            out_width[r, QUARTERS * i + j] = width
            out_position[r, QUARTERS * i + j] = seen.hit.position
            out_M[r, QUARTERS * i + j] = seen.hit.M
        elif seen.state == END:
            wp.atomic_min(end, r, i)
            at = looks
        at += 1


@wp.kernel(enable_backward=False)
def _close_up(
    count: wp.array(dtype=wp.int32),
    end: wp.array(dtype=wp.int32),
    t: wp.array2d(dtype=float),
    width: wp.array2d(dtype=float),
    position: wp.array2d(dtype=wp.vec3),
    M: wp.array2d(dtype=wp.mat33),
    out_count: wp.array(dtype=wp.int32),
    next: wp.array(dtype=wp.int32),
):
    """Move samples of each ray to the front of its slots."""
    r = wp.tid()
    last = count[r]
    if end[r] < last:
        last = end[r] + 1  # what quarters of a step found in front of the core
        next[r] = -1
    n = int(0)
    for i in range(QUARTERS * last):
        if width[r, i] > 0.0:
            if n < i:
                t[r, n] = t[r, i]
                width[r, n] = width[r, i]
                position[r, n] = position[r, i]
                M[r, n] = M[r, i]
            n += 1
    out_count[r] = n


def march_all_at_once(
    arguments: Arguments, rays: int, settings: MarchSettings, hull: PosedHull, start: Int[Tensor, "R"], device: torch.device
) -> MarchedSamples:
    """Look at the next `max_samples` steps of each ray from `start` on. There is room for four times as many samples, as each
    step may be taken in quarters."""
    out = MarchedSamples.room_for(rays, settings.max_samples * QUARTERS, device)
    listed = torch.empty(rays, settings.max_samples, dtype=torch.int32, device=device)
    found, end = torch.empty_like(out.count), torch.empty_like(out.count)
    a, cells, step = arguments, hull_arguments(hull), float(settings.step)
    known, next = [view(listed), view(found), view(end)], view(out.next)
    samples = [view(out.t), view(out.width), view(out.position, wp.vec3), view(out.M, wp.mat33)]
    begin = view(start.int().contiguous())
    launch(_list, rays, [*a.rays, *a.box, *a.grid, *cells, step, begin], [*known[:2], next, known[2]], device)
    looked = [*a.rays, *a.box, a.surface, *a.grid, *cells[4:], step, float(settings.reach), *known]
    launch(_look_at, (rays, settings.max_samples), looked, samples, device)
    launch(_close_up, rays, known[1:], [*samples, view(out.count), next], device)
    return out
