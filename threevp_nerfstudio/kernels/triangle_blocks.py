"""Nearest triangles on a CPU: a shallow tree whose nodes have sixteen children, looked at all at once by vector instructions.

Warp's tree has two children to a node and is walked box by box, which takes a CPU core 2 to 5 µs for a nearest triangle; this
takes a third of it. Sixteen triangles that lie together are a leaf, sixteen leaves a group, and boxes of groups, boxes of a group's
leaves and triangles of a leaf are each looked at in loops over sixteen numbers that lie side by side, written out in C++
within a Warp kernel. What lies together is worked out once, from one pose; other poses only measure the boxes anew.
"""

from __future__ import annotations

import numpy as np
import torch
import warp as wp
from jaxtyping import Float, Int
from torch import Tensor

from threevp_nerfstudio.kernels.runtime import array, launch

WIDTH = 16
"""Children of a node: the lanes of AVX-512, twice those of AVX2."""
BOX, TRIANGLE = 6, 13
"""Rows of numbers of a box (lower and upper corner) and of a triangle: a corner, two edges, and 1 / of the squares of three edges and of
the area."""
MOST_GROUPS = 512
"""A template with more triangles than fill these is left to Warp's tree."""
FAR = 1e15
"""Where nothing is, metres."""

SIZES = f"""
    constexpr int W = {WIDTH}, BOX = {BOX}, TRIANGLE = {TRIANGLE}, MOST = {MOST_GROUPS};
    constexpr float FAR = {FAR}f;
    const auto least_of = [](float a, float b) {{ return b < a ? b : a; }};
    const auto most_of = [](float a, float b) {{ return a < b ? b : a; }};
"""

NEAREST = SIZES + """
#if defined(__CUDA_ARCH__)
    return -1;
#else
    const int count = face_of.shape[0] / (W * W);
    const float* group_boxes = groups.data + (size_t)slot * groups.shape[1];
    const float* leaf_boxes = leaves.data + (size_t)slot * leaves.shape[1];
    const float* corners = triangles.data + (size_t)slot * triangles.shape[1];
    const float px = x[0], py = x[1], pz = x[2];
    float best = limit * limit;
    int found = -1;

    // squares are never negative, and such numbers are in the order of their bits: integers have a vector instruction for the least of many
    const auto least = [](const float* values, int& where) {
        int bits[W], lowest = 0x7fffffff, at = 0;
        __builtin_memcpy(bits, values, sizeof(bits));
        for (int l = 0; l < W; ++l) lowest = bits[l] < lowest ? bits[l] : lowest;
        for (int l = 0; l < W; ++l) at = bits[l] == lowest ? l : at;
        where = at;
        return values[at];
    };
    const auto nearer = [](const float* values, float than) {
        unsigned which = 0;
        for (int l = 0; l < W; ++l) which |= (unsigned)(values[l] < than) << l;
        return which;
    };
    const auto to_boxes = [&](const float* box, float* away) {
        for (int l = 0; l < W; ++l) {
            const float ax = most_of(most_of(box[l] - px, px - box[3 * W + l]), 0.0f);
            const float ay = most_of(most_of(box[W + l] - py, py - box[4 * W + l]), 0.0f);
            const float az = most_of(most_of(box[2 * W + l] - pz, pz - box[5 * W + l]), 0.0f);
            away[l] = ax * ax + ay * ay + az * az;
        }
    };
    const auto look_at_leaf = [&](int leaf) {
        const float* t = corners + (size_t)leaf * TRIANGLE * W;
        float square[W];
        for (int l = 0; l < W; ++l) {
            const float ax = px - t[l], ay = py - t[W + l], az = pz - t[2 * W + l];
            const float bx = t[3 * W + l], by = t[4 * W + l], bz = t[5 * W + l];
            const float cx = t[6 * W + l], cy = t[7 * W + l], cz = t[8 * W + l];
            const float aa = ax * ax + ay * ay + az * az, ab = ax * bx + ay * by + az * bz, ac = ax * cx + ay * cy + az * cz;
            const float bb = bx * bx + by * by + bz * bz, bc = bx * cx + by * cy + bz * cz, cc = cx * cx + cy * cy + cz * cz;
            // weights of the two edges at the foot of the perpendicular
            const float v = (cc * ab - bc * ac) * t[12 * W + l], w = (bb * ac - bc * ab) * t[12 * W + l];
            // to the three edges
            const float t1 = least_of(most_of(ab * t[9 * W + l], 0.0f), 1.0f);
            const float t2 = least_of(most_of(ac * t[10 * W + l], 0.0f), 1.0f);
            const float dd = cc - 2.0f * bc + bb, da = ac - ab - bc + bb;
            const float t3 = least_of(most_of(da * t[11 * W + l], 0.0f), 1.0f);
            const float e1 = aa + t1 * (t1 * bb - 2.0f * ab), e2 = aa + t2 * (t2 * cc - 2.0f * ac);
            const float e3 = aa - 2.0f * ab + bb + t3 * (t3 * dd - 2.0f * da);
            // squares that were made from squares, like these, tell which place of the triangle is nearest, but err by micrometres
            const bool inside = (v >= 0.0f) & (w >= 0.0f) & (v + w <= 1.0f), one = (e1 <= e2) & (e1 <= e3), two = e2 <= e3;
            const float of_b = inside ? v : one ? t1 : two ? 0.0f : 1.0f - t3, of_c = inside ? w : one ? 0.0f : two ? t2 : t3;
            const float rx = ax - of_b * bx - of_c * cx, ry = ay - of_b * by - of_c * cy, rz = az - of_b * bz - of_c * cz;
            square[l] = rx * rx + ry * ry + rz * rz;
        }
        int at;
        const float nearest = least(square, at);
        if (nearest < best) {
            best = nearest;
            found = leaf * W + at;
        }
    };
    const auto look_at_group = [&](int group) {
        float away[W];
        int first;
        to_boxes(leaf_boxes + (size_t)group * BOX * W, away);
        if (!(least(away, first) < best)) return;
        look_at_leaf(group * W + first);
        for (unsigned rest = nearer(away, best) & ~(1u << first); rest; rest &= rest - 1) {
            const int l = __builtin_ctz(rest);
            if (away[l] < best) look_at_leaf(group * W + l);
        }
    };

    float away[MOST];
    int first = 0;
    for (int b = 0; b < count; b += W) {
        int at;
        to_boxes(group_boxes + (size_t)b * BOX, away + b);
        if (least(away + b, at) < away[first]) first = b + at;
    }
    if (!(away[first] < best)) return -1;
    look_at_group(first);
    for (int b = 0; b < count; b += W)
        for (unsigned rest = nearer(away + b, best); rest; rest &= rest - 1) {
            const int g = b + __builtin_ctz(rest);
            if (g != first && away[g] < best) look_at_group(g);
        }
    return found < 0 ? -1 : face_of.data[found];
#endif
"""

MEASURE_LEAF = SIZES + """
#if !defined(__CUDA_ARCH__)
    const float* points = (const float*)posed.data + (size_t)slot * posed.shape[1] * 3;
    float* box = leaves.data + (size_t)slot * leaves.shape[1] + (size_t)(leaf / W) * BOX * W + leaf % W;
    float* t = triangles.data + (size_t)slot * triangles.shape[1] + (size_t)leaf * TRIANGLE * W;
    float low[3][W], high[3][W];
    for (int l = 0; l < W; ++l) {
        const int face = face_of.data[leaf * W + l], f = face < 0 ? 0 : face;
        const int i = faces.data[3 * f] * 3, j = faces.data[3 * f + 1] * 3, k = faces.data[3 * f + 2] * 3;
        float b[3], c[3];
        for (int a = 0; a < 3; ++a) {
            const float at = points[i + a];
            b[a] = points[j + a] - at; c[a] = points[k + a] - at;
            low[a][l] = at + least_of(least_of(b[a], c[a]), 0.0f);
            high[a][l] = at + most_of(most_of(b[a], c[a]), 0.0f);
            t[a * W + l] = at; t[(3 + a) * W + l] = b[a]; t[(6 + a) * W + l] = c[a];
        }
        const float bb = b[0] * b[0] + b[1] * b[1] + b[2] * b[2], cc = c[0] * c[0] + c[1] * c[1] + c[2] * c[2];
        const float bc = b[0] * c[0] + b[1] * c[1] + b[2] * c[2], dd = bb + cc - 2.0f * bc;
        const float nx = b[1] * c[2] - b[2] * c[1], ny = b[2] * c[0] - b[0] * c[2], nz = b[0] * c[1] - b[1] * c[0];
        const float area = nx * nx + ny * ny + nz * nz, all = bb + cc + dd;
        const bool usable = (face >= 0) & (area > 1e-12f * all * all);  // no sliver: as Warp's query
        t[9 * W + l] = 1.0f / bb; t[10 * W + l] = 1.0f / cc; t[11 * W + l] = 1.0f / dd; t[12 * W + l] = 1.0f / area;
        if (!usable) {
            for (int a = 0; a < TRIANGLE; ++a) t[a * W + l] = a < 3 ? FAR : 0.0f;
            for (int a = 0; a < 3; ++a) { low[a][l] = FAR; high[a][l] = -FAR; }
        }
    }
    for (int a = 0; a < 3; ++a) {
        float lower = FAR, upper = -FAR;
        for (int l = 0; l < W; ++l) { lower = least_of(lower, low[a][l]); upper = most_of(upper, high[a][l]); }
        box[a * W] = lower; box[(3 + a) * W] = upper;
    }
#endif
"""

MEASURE_GROUP = SIZES + """
#if !defined(__CUDA_ARCH__)
    const float* of = leaves.data + (size_t)slot * leaves.shape[1] + (size_t)group * BOX * W;
    float* box = groups.data + (size_t)slot * groups.shape[1] + (size_t)(group / W) * BOX * W + group % W;
    for (int a = 0; a < 3; ++a) {
        float lower = FAR, upper = -FAR;
        for (int l = 0; l < W; ++l) { lower = least_of(lower, of[a * W + l]); upper = most_of(upper, of[(3 + a) * W + l]); }
        box[a * W] = lower; box[(3 + a) * W] = upper;
    }
#endif
"""


@wp.struct
class BlocksView:
    """What kernels read of `TriangleBlocks`: boxes of groups, boxes of leaves and triangles of each slot; and the triangle at each
    place of a leaf, -1 where there is none. Empty where Warp's own tree is used."""

    groups: wp.array2d(dtype=float)
    leaves: wp.array2d(dtype=float)
    triangles: wp.array2d(dtype=float)
    face_of: wp.array(dtype=wp.int32)


@wp.func_native(NEAREST)
def _nearest(
    x: wp.vec3,
    slot: int,
    limit: float,
    groups: wp.array2d(dtype=float),
    leaves: wp.array2d(dtype=float),
    triangles: wp.array2d(dtype=float),
    face_of: wp.array(dtype=wp.int32),
) -> int: ...


@wp.func
def nearest_in_blocks(x: wp.vec3, slot: int, limit: float, blocks: BlocksView) -> int:
    """The triangle nearest to `x` and nearer than `limit`, or -1. On a CPU only."""
    return _nearest(x, slot, limit, blocks.groups, blocks.leaves, blocks.triangles, blocks.face_of)


@wp.func_native("return closest_point_to_triangle(a, b, c, x);")
def weights_of_nearest(a: wp.vec3, b: wp.vec3, c: wp.vec3, x: wp.vec3) -> wp.vec2:
    """Weights of the first two corners at the point of a triangle that is nearest to `x`: Warp's own, so both trees agree."""
    ...


@wp.func_native(MEASURE_LEAF)
def _measure_leaf(
    slot: int,
    leaf: int,
    posed: wp.array2d(dtype=wp.vec3),
    faces: wp.array(dtype=wp.int32),
    face_of: wp.array(dtype=wp.int32),
    leaves: wp.array2d(dtype=float),
    triangles: wp.array2d(dtype=float),
): ...


@wp.func_native(MEASURE_GROUP)
def _measure_group(slot: int, group: int, leaves: wp.array2d(dtype=float), groups: wp.array2d(dtype=float)): ...


@wp.kernel(enable_backward=False)
def _measure_leaves(posed: wp.array2d(dtype=wp.vec3), faces: wp.array(dtype=wp.int32), blocks: BlocksView):
    slot, leaf = wp.tid()
    _measure_leaf(slot, leaf, posed, faces, blocks.face_of, blocks.leaves, blocks.triangles)


@wp.kernel(enable_backward=False)
def _measure_groups(blocks: BlocksView):
    slot, group = wp.tid()
    _measure_group(slot, group, blocks.leaves, blocks.groups)


class TriangleBlocks:
    """The tree of one mesh in one or more poses ("slots").

    Args:
        vertices: of the pose whose triangles are put together by where they lie.
    """

    def __init__(self, vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], num_slots: int) -> None:
        places = blocks_of(vertices[faces.long()].mean(1).cpu().numpy())
        self._groups, device = len(places), vertices.device
        boxes = -(-len(places) // WIDTH)
        groups = torch.full((num_slots, boxes, BOX, WIDTH), FAR, device=device)
        groups[:, :, BOX // 2 :] = -FAR
        leaves = torch.empty(num_slots, len(places) * BOX * WIDTH, device=device)
        triangles = torch.empty(num_slots, len(places) * WIDTH * TRIANGLE * WIDTH, device=device)
        self.view = BlocksView()
        self.view.groups, self.view.leaves, self.view.triangles = (array(x.flatten(1)) for x in (groups, leaves, triangles))
        self.view.face_of = array(torch.from_numpy(places.reshape(-1)).to(device))

    @staticmethod
    def suits(faces: Int[Tensor, "F 3"]) -> bool:
        """Whether a mesh is small enough, and on a CPU."""
        return faces.device.type == "cpu" and len(faces) <= MOST_GROUPS * WIDTH * WIDTH

    def measure(self, posed: Float[Tensor, "S V 3"], faces: wp.array, slots: int) -> None:
        """Make the boxes of the first `slots` slots anew. `faces`: the flat indices."""
        launch(_measure_leaves, (slots, self._groups * WIDTH), [array(posed, wp.vec3), faces, self.view], [], posed.device)
        launch(_measure_groups, (slots, self._groups), [self.view], [], posed.device)


def no_blocks(device: torch.device) -> BlocksView:
    """For a mesh that is left to Warp's tree."""
    none, view = torch.empty(0, 0, device=device), BlocksView()
    view.groups = view.leaves = view.triangles = array(none)
    view.face_of = array(torch.empty(0, dtype=torch.int32, device=device))
    return view


def blocks_of(centres: Float[np.ndarray, "F 3"]) -> Int[np.ndarray, "G W W"]:
    """Triangles by group, leaf and place, each leaf and group full but for the last ones; -1 where there is none."""
    groups = _halved(np.arange(len(centres)), centres, WIDTH * WIDTH)
    places = np.full((len(groups), WIDTH, WIDTH), -1, dtype=np.int32)
    for group, members in zip(places, groups, strict=True):
        for leaf, triangles in zip(group, _halved(members, centres, WIDTH), strict=False):
            leaf[: len(triangles)] = triangles
    return places


def _halved(members: np.ndarray, centres: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut across the longest side again and again, until no part has more than `size` members."""
    if len(members) <= size:
        return [members]
    longest = np.ptp(centres[members], axis=0).argmax()
    members = members[centres[members, longest].argsort(kind="stable")]
    middle = -(-len(members) // size) // 2 * size
    return _halved(members[:middle], centres, size) + _halved(members[middle:], centres, size)
