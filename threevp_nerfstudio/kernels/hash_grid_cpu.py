"""The hash encoding of `hash_grid.py` for CPUs: blocks of points, in loops that the compiler turns into vector instructions.

A Warp kernel is compiled for one point at a time, and a CPU then works on one of its lanes: forward took 10 ms where this takes 4 (13,000
points, 16 levels). So the inner loops are written out in C++, over the points of a block: places and weights of a corner for all
of them, then their entries, gathered. Entries of a level stay in the cache, since levels are the outer loop. Values are the same, bit for
bit, as sums are made in the same order; those of gradients of points may differ in the last.
"""

from functools import cache

import warp as wp

BLOCK = 64
"""Points that are worked on together."""
LEVELS = wp.constant(2)
"""Levels that a thread works through at a time; each such part has gradients of points of its own, which are summed at the end."""
PRIMES = (1, 2654435761, 805459861)
"""Of the hash, by axis."""

PLACES = """
    const int count = wp::min(BLOCK, points.shape[0] - block * BLOCK);
    const int r = resolutions.data[level];
    const unsigned size = (unsigned)table.shape[1];
    const unsigned long long stride = (unsigned long long)r + 1;
    const bool dense = stride * stride * stride <= size;
    const unsigned by_y = dense ? (unsigned)stride : PRIME_Yu;
    const unsigned by_z = dense ? (unsigned)(stride * stride) : PRIME_Zu;
    const float* entries = (const float*)table.data + (size_t)level * size * F;
    const float* place = (const float*)points.data + (size_t)block * BLOCK * 3;
    unsigned ix[BLOCK], iy[BLOCK], iz[BLOCK];
    float fx[BLOCK], fy[BLOCK], fz[BLOCK];
    for (int j = 0; j < BLOCK; ++j) {
        const int k = j < count ? j : 0;
        const float x = place[3 * k] * r, y = place[3 * k + 1] * r, z = place[3 * k + 2] * r;
        const int bx = wp::max(wp::min((int)x, r - 1), 0), by = wp::max(wp::min((int)y, r - 1), 0), bz = wp::max(wp::min((int)z, r - 1), 0);
        ix[j] = (unsigned)bx; iy[j] = (unsigned)by * by_y; iz[j] = (unsigned)bz * by_z;
        fx[j] = x - (float)bx; fy[j] = y - (float)by; fz[j] = z - (float)bz;
    }
"""
"""Of each point of the block: its cell's lowest corner, each axis' share of an index, and how far into the cell it lies."""

FETCH = """
    if (block == 0 && points.shape[0] * 8 > (int)size) {
        float total = 0.0f;
        for (unsigned i = 0; i < size * F; i += 16) total += WHAT[i];
        volatile float kept = total; (void)kept;
    }
"""
"""A level's entries, read in order: that brings them into the core's cache several times as fast as looking them up at random would."""

CORNER = """
        const unsigned x1 = corner & 1, y1 = (corner >> 1) & 1, z1 = (corner >> 2) & 1;
        const unsigned up_y = y1 * by_y, up_z = z1 * by_z;
"""
AT = """
            const unsigned a = ix[j] + x1, b = iy[j] + up_y, c = iz[j] + up_z;
            const int at = (int)((dense ? a + b + c : (a ^ b ^ c) & (size - 1)) * F);
            const float wx = x1 ? fx[j] : 1.0f - fx[j], wy = y1 ? fy[j] : 1.0f - fy[j], wz = z1 ? fz[j] : 1.0f - fz[j];
"""

FORWARD = """{FETCH entries}
    float sum[F][BLOCK];
    for (int f = 0; f < F; ++f)
        for (int j = 0; j < BLOCK; ++j) sum[f][j] = 0.0f;
    for (int corner = 0; corner < 8; ++corner) {CORNER
        for (int j = 0; j < BLOCK; ++j) {AT
            const float w = wx * wy * wz;
            for (int f = 0; f < F; ++f) sum[f][j] += w * entries[at + f];
        }
    }
    float* to = (float*)out.data + ((size_t)block * BLOCK * out.shape[1] + level) * F;
    for (int j = 0; j < count; ++j)
        for (int f = 0; f < F; ++f) to[(size_t)j * out.shape[1] * F + f] = sum[f][j];
"""

BACKWARD = """
    float* grad_entries = (float*)grad_table.data + (size_t)level * size * F;
    const bool want_table = grad_table.shape[0] > 0;
    if (want_table) {{FETCH grad_entries}
    }
    float g[F][BLOCK];
    const float* from = (const float*)grad_out.data + ((size_t)block * BLOCK * grad_out.shape[1] + level) * F;
    for (int j = 0; j < BLOCK; ++j)
        for (int f = 0; f < F; ++f) g[f][j] = j < count ? from[(size_t)j * grad_out.shape[1] * F + f] : 0.0f;
    if (want_table) for (int corner = 0; corner < 8; ++corner) {CORNER
        int where[BLOCK];
        float weight[BLOCK];
        for (int j = 0; j < BLOCK; ++j) {AT
            where[j] = at;
            weight[j] = wx * wy * wz;
        }
        for (int j = 0; j < count; ++j)
            for (int f = 0; f < F; ++f) grad_entries[where[j] + f] += weight[j] * g[f][j];
    }
    int moved[BLOCK], number = 0;  // points whose gradient is wanted, moved to the front of the block
    for (int j = 0; j < count; ++j)
        if (want_points && (moving.shape[0] == 0 || moving.data[block * BLOCK + j])) {
            const int k = number++;
            moved[k] = j;
            ix[k] = ix[j]; iy[k] = iy[j]; iz[k] = iz[j];
            fx[k] = fx[j]; fy[k] = fy[j]; fz[k] = fz[j];
            for (int f = 0; f < F; ++f) g[f][k] = g[f][j];
        }
    if (number == 0) return;
    float sx[BLOCK], sy[BLOCK], sz[BLOCK];
    for (int j = 0; j < BLOCK; ++j) sx[j] = sy[j] = sz[j] = 0.0f;
    for (int corner = 0; corner < 8; ++corner) {CORNER
        const float sign_x = x1 ? 1.0f : -1.0f, sign_y = y1 ? 1.0f : -1.0f, sign_z = z1 ? 1.0f : -1.0f;
        for (int first = 0; first < number; first += 16) for (int j = first; j < first + 16; ++j) {AT
            float value = 0.0f;
            for (int f = 0; f < F; ++f) value += g[f][j] * entries[at + f];
            sx[j] += value * sign_x * wy * wz;
            sy[j] += value * wx * sign_y * wz;
            sz[j] += value * wx * wy * sign_z;
        }
    }
    float* to = (float*)grad_points.data + ((size_t)part * grad_points.shape[1] + (size_t)block * BLOCK) * 3;
    for (int k = 0; k < number; ++k) {
        float* of = to + 3 * moved[k];
        of[0] += sx[k] * r; of[1] += sy[k] * r; of[2] += sz[k] * r;
    }
"""


@cache
def _kernels(features: int):
    """Forward and backward kernels for `features` values per entry, over some levels (from `first` on) and blocks of points."""
    vec = wp.types.vector(length=features, dtype=wp.float32)

    def native(code: str) -> str:
        sizes = f"\n    constexpr int F = {features}, BLOCK = {BLOCK};"
        for what in ("entries", "grad_entries"):
            code = code.replace(f"{{FETCH {what}}}", FETCH.replace("WHAT", what))
        places = PLACES.replace("PRIME_Y", str(PRIMES[1])).replace("PRIME_Z", str(PRIMES[2]))
        return sizes + places + code.replace("{CORNER", "{" + CORNER).replace("{AT", "{" + AT)

    @wp.func_native(native(FORWARD))
    def encode(
        points: wp.array(dtype=wp.vec3),
        table: wp.array2d(dtype=vec),
        resolutions: wp.array(dtype=wp.int32),
        level: int,
        block: int,
        out: wp.array2d(dtype=vec),
    ): ...

    @wp.func_native(native(BACKWARD))
    def spread(
        points: wp.array(dtype=wp.vec3),
        table: wp.array2d(dtype=vec),
        resolutions: wp.array(dtype=wp.int32),
        level: int,
        block: int,
        grad_out: wp.array2d(dtype=vec),
        moving: wp.array(dtype=wp.bool),
        want_points: int,
        grad_table: wp.array2d(dtype=vec),
        grad_points: wp.array2d(dtype=wp.vec3),
        part: int,
    ): ...

    def forward(
        first: int,
        points: wp.array(dtype=wp.vec3),
        table: wp.array2d(dtype=vec),
        resolutions: wp.array(dtype=wp.int32),
        out: wp.array2d(dtype=vec),
    ):
        level, block = wp.tid()
        encode(points, table, resolutions, first + level, block, out)

    def backward(
        first: int,
        points: wp.array(dtype=wp.vec3),
        table: wp.array2d(dtype=vec),
        resolutions: wp.array(dtype=wp.int32),
        grad_out: wp.array2d(dtype=vec),
        moving: wp.array(dtype=wp.bool),
        want_points: int,
        grad_table: wp.array2d(dtype=vec),
        grad_points: wp.array2d(dtype=wp.vec3),
    ):
        level, block = wp.tid()
        part = (first + level) // LEVELS
        spread(points, table, resolutions, first + level, block, grad_out, moving, want_points, grad_table, grad_points, part)

    name = f"hash_grid_cpu_{features}"
    module = wp.get_module(f"{__name__}.{name}")
    return (
        wp.Kernel(func=forward, key=f"{name}_forward", module=module, options={"enable_backward": False}),
        wp.Kernel(func=backward, key=f"{name}_backward", module=module, options={"enable_backward": False}),
    )
