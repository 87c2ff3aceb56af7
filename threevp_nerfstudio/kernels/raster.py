"""Which pixels a triangle mesh covers, on Warp: each triangle marks the few pixels that it lies on. For silhouettes; what is in front
of what, `raycast.py` knows."""

from __future__ import annotations

import torch
import warp as wp
from jaxtyping import Bool, Float, Int
from torch import Tensor

from threevp_nerfstudio.kernels.runtime import array, launch


@wp.func
def side(a: wp.vec2, b: wp.vec2, p: wp.vec2) -> float:
    """On which side of the line from a to b a point lies."""
    return (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])


@wp.kernel(enable_backward=False)
def _cover(xy: wp.array(dtype=wp.vec2), faces: wp.array(dtype=wp.vec3i), out: wp.array2d(dtype=wp.bool)):
    face = faces[wp.tid()]
    a = xy[face[0]]
    b = xy[face[1]]
    c = xy[face[2]]
    low = wp.min(a, wp.min(b, c))
    high = wp.max(a, wp.max(b, c))
    if not wp.isfinite(a[0] + a[1] + b[0] + b[1] + c[0] + c[1]):  # least and largest leave NaN out
        return
    width = float(out.shape[1])
    height = float(out.shape[0])
    # the centres of pixels are at halves
    left = int(wp.ceil(wp.clamp(low[0], 0.0, width) - 0.5))
    right = int(wp.floor(wp.clamp(high[0], 0.0, width) - 0.5))
    top = int(wp.ceil(wp.clamp(low[1], 0.0, height) - 0.5))
    bottom = int(wp.floor(wp.clamp(high[1], 0.0, height) - 0.5))
    for y in range(top, bottom + 1):
        for x in range(left, right + 1):
            p = wp.vec2(float(x) + 0.5, float(y) + 0.5)
            u = side(a, b, p)
            v = side(b, c, p)
            w = side(c, a, p)
            if wp.min(u, wp.min(v, w)) >= 0.0 or wp.max(u, wp.max(v, w)) <= 0.0:
                out[y, x] = True


def covered(xy: Float[Tensor, "V 2"], faces: Int[Tensor, "F 3"], height: int, width: int) -> Bool[Tensor, "h w"]:
    """Pixels whose centres lie on triangles, whichever way these face.

    Args:
        xy: pixels of the vertices, the upper left pixel's centre at (0.5, 0.5). Triangles with a vertex that is not finite (behind the
            camera) cover nothing.
    """
    out = torch.zeros(height, width, dtype=torch.bool, device=xy.device)
    corners = array(faces.int().contiguous(), wp.vec3i)
    launch(_cover, len(faces), [array(xy.float().contiguous(), wp.vec2), corners], [array(out)], xy.device)
    return out


def covered_reference(xy: Float[Tensor, "V 2"], faces: Int[Tensor, "F 3"], height: int, width: int) -> Bool[Tensor, "h w"]:
    """Torch twin of `covered`: every pixel against every triangle."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    p = torch.stack([x, y], -1).reshape(-1, 1, 2)
    sides = []
    corners = xy[faces.long()]
    for k in range(3):
        a, b = corners[:, k], corners[:, (k + 1) % 3]
        sides.append((b - a)[:, 0] * (p - a)[..., 1] - (b - a)[:, 1] * (p - a)[..., 0])
    sides = torch.stack(sides)
    return ((sides.amin(0) >= 0) | (sides.amax(0) <= 0)).any(1).reshape(height, width)
