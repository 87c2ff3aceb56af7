"""Nearest points, rays and signed distances on a triangle mesh, as numpy arrays: what template making asks of Warp.

Every query builds its answer from the face index and barycentric coordinates, so callers can interpolate any
per-vertex attribute at the point that was found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import warp as wp

from threevp_nerfstudio.kernels.runtime import initialise


@wp.kernel
def _nearest(
    mesh: wp.uint64,
    points: wp.array(dtype=wp.vec3),
    limit: float,
    face: wp.array(dtype=int),
    uv: wp.array(dtype=wp.vec2),
):
    i = wp.tid()
    query = wp.mesh_query_point_no_sign(mesh, points[i], limit)
    if query.result:
        face[i] = query.face
        uv[i] = wp.vec2(query.u, query.v)
    else:
        face[i] = -1


@wp.kernel
def _sign(mesh: wp.uint64, points: wp.array(dtype=wp.vec3), limit: float, sign: wp.array(dtype=float)):
    i = wp.tid()
    query = wp.mesh_query_point_sign_winding_number(mesh, points[i], limit)
    sign[i] = 1.0
    if query.result:
        sign[i] = query.sign


@wp.kernel
def _cast(
    mesh: wp.uint64,
    origins: wp.array(dtype=wp.vec3),
    directions: wp.array(dtype=wp.vec3),
    limit: float,
    face: wp.array(dtype=int),
    uv: wp.array(dtype=wp.vec2),
    distance: wp.array(dtype=float),
):
    i = wp.tid()
    query = wp.mesh_query_ray(mesh, origins[i], directions[i], limit)
    if query.result:
        face[i] = query.face
        uv[i] = wp.vec2(query.u, query.v)
        distance[i] = query.t
    else:
        face[i] = -1


@dataclass(frozen=True)
class Hits:
    """Where queries met the mesh. `face` is -1 where nothing was found; `distance` is then infinite."""

    face: np.ndarray  # (N,) int32
    bary: np.ndarray  # (N, 3), weights of the face's corners
    distance: np.ndarray  # (N,) metres

    @property
    def found(self) -> np.ndarray:
        return self.face >= 0


class MeshQuery:
    """A triangle mesh with a bounding volume hierarchy. `vertices` (V,3), `faces` (F,3)."""

    def __init__(self, vertices: np.ndarray, faces: np.ndarray, winding: bool = False, device: str = "cpu") -> None:
        initialise()
        self.vertices = np.ascontiguousarray(vertices, dtype=np.float32)
        self.faces = np.ascontiguousarray(faces, dtype=np.int32)
        self.device = device
        self._mesh = wp.Mesh(
            points=wp.array(self.vertices, dtype=wp.vec3, device=device),
            indices=wp.array(self.faces.reshape(-1), dtype=int, device=device),
            support_winding_number=winding,
        )

    def nearest(self, points: np.ndarray, limit: float = 1e3) -> Hits:
        """The closest surface point to each of `points` (N,3) within `limit` metres."""
        N = len(points)
        face = wp.empty(N, dtype=int, device=self.device)
        uv = wp.zeros(N, dtype=wp.vec2, device=self.device)
        wp.launch(_nearest, N, [self._mesh.id, self._points(points), float(limit)], [face, uv], device=self.device)
        face, bary = face.numpy(), _barycentric(uv.numpy())
        found = self.interpolate_at(face, bary)
        distance = np.linalg.norm(found - points, axis=-1)
        return Hits(face, bary, np.where(face >= 0, distance, np.inf))

    def cast(self, origins: np.ndarray, directions: np.ndarray, limit: float = 1e3) -> Hits:
        """The first surface point along each ray; `directions` (N,3) are unit vectors."""
        N = len(origins)
        face = wp.empty(N, dtype=int, device=self.device)
        uv = wp.zeros(N, dtype=wp.vec2, device=self.device)
        distance = wp.full(N, np.inf, dtype=float, device=self.device)
        inputs = [self._mesh.id, self._points(origins), self._points(directions), float(limit)]
        wp.launch(_cast, N, inputs, [face, uv, distance], device=self.device)
        return Hits(face.numpy(), _barycentric(uv.numpy()), distance.numpy())

    def signed_distance(self, points: np.ndarray, limit: float = 1e3) -> np.ndarray:
        """Distance to the surface, negative inside (by winding number; build with `winding=True`)."""
        N = len(points)
        sign = wp.empty(N, dtype=float, device=self.device)
        wp.launch(_sign, N, [self._mesh.id, self._points(points), float(limit)], [sign], device=self.device)
        return sign.numpy() * self.nearest(points, limit).distance

    def interpolate_at(self, face: np.ndarray, bary: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        """Per-vertex `values` (V,...), by default the positions, at barycentric points of faces."""
        values = self.vertices if values is None else values
        return np.einsum("nk,nk...->n...", bary, values[self.faces[face]])

    def at(self, hits: Hits, values: np.ndarray | None = None) -> np.ndarray:
        """Per-vertex `values` at `hits`; meaningless where nothing was found."""
        return self.interpolate_at(hits.face, hits.bary, values)

    def _points(self, points: np.ndarray) -> wp.array:
        return wp.array(np.ascontiguousarray(points, dtype=np.float32), dtype=wp.vec3, device=self.device)


def _barycentric(uv: np.ndarray) -> np.ndarray:
    """Warp's (u, v) weigh the first two corners."""
    return np.column_stack([uv[:, 0], uv[:, 1], 1.0 - uv[:, 0] - uv[:, 1]])
