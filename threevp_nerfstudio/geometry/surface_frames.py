"""The posed-to-canonical map near a deforming triangle mesh.

Each triangle carries the linear map from its posed to its canonical frame (edges to edges, unit normal to unit
normal), the inverse of its deformation gradient (Sumner and Popović 2004). Vertices carry the area-weighted mean over
their triangles. A point x with nearest surface point p (barycentric b on the nearest triangle) goes to

    x_c = c(b) + M(b) (x - p(b)),

where c, p and M are interpolated from the vertices, so the map is continuous across edges and vertices. M is limited
so that a squeezed triangle cannot throw points far away.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_STRETCH = 4.0
"""Largest Frobenius norm of M, in units of that of a rotation (sqrt 3)."""
MAX_OFFSET_GROWTH = 1.5
"""Largest |x_c - c| relative to |x - p|."""


def vertex_triangles(faces: Int[np.ndarray, "F 3"], num_vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """The triangles round each vertex in compressed rows: `triangles[start[v]:start[v + 1]]`, both int32."""
    flat = faces.reshape(-1)
    order = np.argsort(flat, kind="stable")
    start = np.zeros(num_vertices + 1, dtype=np.int32)
    np.cumsum(np.bincount(flat, minlength=num_vertices), out=start[1:])
    return start, (order // 3).astype(np.int32)


def vertex_maps_torch(
    posed: Float[Tensor, "V 3"], canonical: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]
) -> Float[Tensor, "V 3 3"]:
    """Posed-to-canonical linear map at each vertex; the twin of `kernels.surface.vertex_maps`."""
    faces = faces.long()

    def frame(v: Tensor) -> tuple[Tensor, Tensor]:
        a, b, c = v[faces].unbind(1)
        e1, e2 = b - a, c - a
        n = torch.linalg.cross(e1, e2)
        double_area = n.norm(dim=-1, keepdim=True)
        return torch.stack([e1, e2, n / double_area.clamp_min(1e-12)], dim=-1), double_area[..., 0]

    source, area = frame(posed)
    target, _ = frame(canonical)
    valid = area > 1e-12
    M = target @ torch.linalg.inv(torch.where(valid[:, None, None], source, torch.eye(3, dtype=posed.dtype)))
    M = M * (area * valid)[:, None, None]
    total = torch.zeros(posed.shape[0], 3, 3, dtype=posed.dtype).index_add_(0, faces.flatten(), M.repeat_interleave(3, 0))
    weight = torch.zeros(posed.shape[0], dtype=posed.dtype).index_add_(
        0, faces.flatten(), (area * valid).repeat_interleave(3, 0)
    )
    mean = total / weight.clamp_min(1e-20)[:, None, None]
    mean = torch.where((weight > 0)[:, None, None], mean, torch.eye(3, dtype=posed.dtype))
    norm = mean.flatten(1).norm(dim=-1)
    return mean * (MAX_STRETCH * 3**0.5 / norm).clamp_max(1.0)[:, None, None]


def to_canonical_torch(
    points: Float[Tensor, "N 3"],
    posed: Float[Tensor, "V 3"],
    canonical: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    maps: Float[Tensor, "V 3 3"],
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3 3"], Float[Tensor, "N"]]:
    """Canonical points, local linear maps and distances to the surface, by brute force over all triangles.

    The oracle of `kernels.surface.to_canonical`; memory grows with N x F.
    """
    faces = faces.long()
    corners = posed[faces]
    b = closest_barycentric(points[:, None], corners[None])
    nearest = (b[..., None] * corners).sum(-2)
    distance = (points[:, None] - nearest).norm(dim=-1)
    best = distance.argmin(1)
    rows = torch.arange(len(points))
    bary, ids = b[rows, best], faces[best]
    p = (bary[..., None] * posed[ids]).sum(1)
    c = (bary[..., None] * canonical[ids]).sum(1)
    M = (bary[..., None, None] * maps[ids]).sum(1)
    offset = points - p
    moved = (M @ offset[..., None]).squeeze(-1)
    limit = MAX_OFFSET_GROWTH * offset.norm(dim=-1, keepdim=True)
    moved = moved * (limit / moved.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    return c + moved, M, distance[rows, best]


def closest_barycentric(p: Float[Tensor, "*#n 3"], corners: Float[Tensor, "*#n 3 3"]) -> Float[Tensor, "... 3"]:
    """Barycentric coordinates of the point of a triangle closest to `p` (Ericson, Real-Time Collision Detection 5.1.5)."""
    a, b, c = corners.unbind(-2)
    ab, ac = b - a, c - a
    dot = lambda x, y: (x * y).sum(-1)  # noqa: E731
    d1, d2 = dot(ab, p - a), dot(ac, p - a)
    d3, d4 = dot(ab, p - b), dot(ac, p - b)
    d5, d6 = dot(ab, p - c), dot(ac, p - c)
    va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
    one, zero = torch.ones_like(d1), torch.zeros_like(d1)

    def safe(x: Tensor) -> Tensor:
        return torch.where(x.abs() < 1e-20, torch.full_like(x, 1e-20), x)

    total = safe(va + vb + vc)
    result = torch.stack([va / total, vb / total, vc / total], -1)
    w = (d4 - d3) / safe((d4 - d3) + (d5 - d6))
    result = _choose(result, (va <= 0) & (d4 >= d3) & (d5 >= d6), zero, 1 - w, w)
    w = d2 / safe(d2 - d6)
    result = _choose(result, (vb <= 0) & (d2 >= 0) & (d6 <= 0), 1 - w, zero, w)
    result = _choose(result, (d6 >= 0) & (d5 <= d6), zero, zero, one)
    w = d1 / safe(d1 - d3)
    result = _choose(result, (vc <= 0) & (d1 >= 0) & (d3 <= 0), 1 - w, w, zero)
    result = _choose(result, (d3 >= 0) & (d4 <= d3), zero, one, zero)
    return _choose(result, (d1 <= 0) & (d2 <= 0), one, zero, zero)


def _choose(result: Tensor, where: Tensor, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
    return torch.where(where[..., None], torch.stack([u, v, w], -1), result)
