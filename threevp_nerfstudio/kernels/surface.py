"""Nearest triangle (on a CPU by `triangle_blocks.py`) and posed-to-canonical map on Warp; the mathematics and the torch twins
are in `geometry.surface_frames`."""

import numpy as np
import torch
import warp as wp
from jaxtyping import Bool, Float, Int
from torch import Tensor

from threevp_nerfstudio.geometry.surface_frames import MAX_OFFSET_GROWTH, MAX_STRETCH
from threevp_nerfstudio.kernels.runtime import array, initialise, launch, torch_stream
from threevp_nerfstudio.kernels.triangle_blocks import (
    BlocksView,
    TriangleBlocks,
    nearest_in_blocks,
    no_blocks,
    weights_of_nearest,
)

STRETCH_LIMIT = wp.constant(MAX_STRETCH * 3.0**0.5)
CUDA_BVH = {"bvh_constructor": "sah", "bvh_leaf_size": 2}
"""Built once and refitted from then on, so a good tree pays: with Warp's defaults nearest triangles took a third longer on a GPU."""
OFFSET_LIMIT = wp.constant(MAX_OFFSET_GROWTH)


@wp.struct
class SurfaceView:
    """What kernels read of a `PosedSurface`."""

    meshes: wp.array(dtype=wp.uint64)
    """Warp's tree of each slot; none where there are blocks."""
    blocks: BlocksView
    posed: wp.array2d(dtype=wp.vec3)
    faces: wp.array(dtype=wp.int32)
    canonical: wp.array(dtype=wp.vec3)
    maps: wp.array2d(dtype=wp.mat33)
    own_space: wp.array(dtype=float)
    thin: wp.array(dtype=wp.uint8)


@wp.struct
class CanonicalPoint:
    """What the map gives for one point: `found` is 0 beyond the search distance. `own` is how far the own space of the
    nearest surface, triangle `face`, reaches; a point farther out has its canonical place among other parts. `nearest` is
    the posed surface's point."""

    found: int
    face: int
    distance: float
    own: float
    nearest: wp.vec3
    position: wp.vec3
    M: wp.mat33


@wp.func
def canonical_point(x: wp.vec3, surface: SurfaceView, slot: int, max_distance: float) -> CanonicalPoint:
    out = CanonicalPoint()
    face = int(-1)
    u = float(0.0)
    v = float(0.0)
    if surface.blocks.face_of.shape[0] > 0:
        face = nearest_in_blocks(x, slot, max_distance, surface.blocks)
    else:
        query = wp.mesh_query_point_no_sign(surface.meshes[slot], x, max_distance)
        if query.result:
            face = query.face
            u = query.u
            v = query.v
    if face >= 0:
        i = surface.faces[face * 3]
        j = surface.faces[face * 3 + 1]
        k = surface.faces[face * 3 + 2]
        a = surface.posed[slot, i]
        b = surface.posed[slot, j]
        c = surface.posed[slot, k]
        if surface.blocks.face_of.shape[0] > 0:
            weights = weights_of_nearest(a, b, c, x)
            u = weights[0]
            v = weights[1]
        w = 1.0 - u - v
        out.nearest = u * a + v * b + w * c
        offset = x - out.nearest
        M = u * surface.maps[slot, i] + v * surface.maps[slot, j] + w * surface.maps[slot, k]
        moved = M * offset
        distance = wp.length(offset)
        growth = wp.length(moved) / wp.max(distance, 1.0e-12)
        if growth > OFFSET_LIMIT:
            moved = moved * (OFFSET_LIMIT / growth)
        out.found = 1
        out.face = face
        out.distance = distance
        out.position = u * surface.canonical[i] + v * surface.canonical[j] + w * surface.canonical[k] + moved
        out.M = M
        out.own = u * surface.own_space[i] + v * surface.own_space[j] + w * surface.own_space[k]
        if wp.dot(offset, wp.cross(b - a, c - a)) < 0.0:
            out.own = wp.inf  # inside
    return out


@wp.kernel(enable_backward=False)
def _vertex_maps(
    posed: wp.array2d(dtype=wp.vec3),
    canonical: wp.array(dtype=wp.vec3),
    faces: wp.array(dtype=wp.int32),
    row_start: wp.array(dtype=wp.int32),
    row_faces: wp.array(dtype=wp.int32),
    out: wp.array2d(dtype=wp.mat33),
):
    slot, vertex = wp.tid()
    total = wp.mat33()
    weight = float(0.0)
    for entry in range(row_start[vertex], row_start[vertex + 1]):
        f = row_faces[entry] * 3
        i = faces[f]
        j = faces[f + 1]
        k = faces[f + 2]
        e1 = posed[slot, j] - posed[slot, i]
        e2 = posed[slot, k] - posed[slot, i]
        n = wp.cross(e1, e2)
        area = wp.length(n)
        if area > 1.0e-12:
            n = n / area
            # rows of the inverse of [e1 e2 n]
            r1 = wp.cross(e2, n) / area
            r2 = wp.cross(n, e1) / area
            c1 = canonical[j] - canonical[i]
            c2 = canonical[k] - canonical[i]
            cn = wp.normalize(wp.cross(c1, c2))
            total += area * (wp.outer(c1, r1) + wp.outer(c2, r2) + wp.outer(cn, n))
            weight += area
    if weight > 0.0:
        total = total / weight
        norm = wp.sqrt(wp.ddot(total, total))
        if norm > STRETCH_LIMIT:
            total = total * (STRETCH_LIMIT / norm)
        out[slot, vertex] = total
    else:
        out[slot, vertex] = wp.identity(n=3, dtype=float)


@wp.kernel(enable_backward=False)
def _to_canonical(
    points: wp.array(dtype=wp.vec3),
    slots: wp.array(dtype=wp.int32),
    surface: SurfaceView,
    max_distance: float,
    out_points: wp.array(dtype=wp.vec3),
    out_M: wp.array(dtype=wp.mat33),
    out_distance: wp.array(dtype=float),
):
    i = wp.tid()
    hit = canonical_point(points[i], surface, slots[i], max_distance)
    out_distance[i] = wp.inf
    if hit.found == 1:
        out_points[i] = hit.position
        out_M[i] = hit.M
        out_distance[i] = hit.distance


def vertex_maps(
    source: Float[Tensor, "V 3"],
    target: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    row_start: Int[Tensor, "Vp"],
    row_faces: Int[Tensor, "R"],
) -> Float[Tensor, "V 3 3"]:
    """Linear map at each vertex from one pose of a mesh to another; rows as from `surface_frames.vertex_triangles`."""
    out = torch.zeros(1, source.shape[0], 3, 3, device=source.device)
    launch(
        _vertex_maps,
        (1, source.shape[0]),
        [
            array(source.contiguous().float()[None], wp.vec3),
            array(target.contiguous().float(), wp.vec3),
            array(faces.contiguous().int().flatten(), wp.int32),
            array(row_start),
            array(row_faces),
        ],
        [array(out, wp.mat33)],
        source.device,
    )
    return out[0]


class PosedSurface:
    """The template's surface in one or more poses ("slots"), each with a tree that is refitted when the pose changes.

    Holds scratch memory only: everything here follows from the rig and the pose, and is made anew on another device.

    Args:
        own_space: how far outside of each vertex marched rays find samples, metres; default: anywhere.
        thin: bool, triangles at which marched rays take finer steps; default: none.
    """

    def __init__(
        self,
        canonical: Float[Tensor, "V 3"],
        faces: Int[Tensor, "F 3"],
        row_start: Int[Tensor, "Vp"],
        row_faces: Int[Tensor, "R"],
        num_slots: int = 1,
        own_space: Float[Tensor, "V"] | None = None,
        thin: Bool[Tensor, "F"] | None = None,
    ) -> None:
        self.device = canonical.device
        self.canonical = canonical.contiguous().float()
        self.faces = faces.contiguous().int()
        self.row_start, self.row_faces = row_start, row_faces
        V = canonical.shape[0]
        self.own_space = canonical.new_full((V,), torch.inf) if own_space is None else own_space.contiguous().float()
        self.thin = (torch.zeros(len(faces), device=self.device) if thin is None else thin).to(torch.uint8).contiguous()
        self.extent = float((self.canonical.amax(0) - self.canonical.amin(0)).norm())
        """Diagonal of the canonical vertices' box, metres."""
        self.posed = self.canonical.repeat(num_slots, 1, 1)  # a copy, also for one slot
        self.lower, self.upper = self.posed.amin(1), self.posed.amax(1)
        """Corners of each slot's box, (S, 3)."""
        self.maps = torch.zeros(num_slots, V, 3, 3, device=self.device)
        self._indices = array(self.faces.flatten(), wp.int32)
        self.num_slots = num_slots
        self._blocks = TriangleBlocks(self.canonical, self.faces, num_slots) if TriangleBlocks.suits(self.faces) else None
        if self._blocks is not None:
            self._blocks.measure(self.posed, self._indices, num_slots)
        self._meshes: list[wp.Mesh] = []
        with torch_stream(self.device):  # Warp's own stream would not wait for the vertices
            if self._blocks is None:
                bvh = CUDA_BVH if self.device.type == "cuda" else {}
                points = [array(posed, wp.vec3) for posed in self.posed]
                self._meshes = [wp.Mesh(points=p, indices=self._indices, **bvh) for p in points]
            ids = wp.array([m.id for m in self._meshes], dtype=wp.uint64, device=self._indices.device)
        self.view = SurfaceView()
        self.view.meshes = ids
        self.view.blocks = no_blocks(self.device) if self._blocks is None else self._blocks.view
        self.view.posed, self.view.faces = array(self.posed, wp.vec3), self._indices
        self.view.canonical, self.view.maps = array(self.canonical, wp.vec3), array(self.maps, wp.mat33)
        self.view.own_space, self.view.thin = array(self.own_space), array(self.thin)

    def update(self, posed: Float[Tensor, "S V 3"]) -> None:
        """Pose the first `S` slots: copy vertices, refit their trees, recompute the vertex maps."""
        count = posed.shape[0]
        self.posed[:count] = posed.detach()
        self.lower, self.upper = self.posed.amin(1), self.posed.amax(1)
        if self._blocks is not None:
            self._blocks.measure(self.posed, self._indices, count)
        with torch_stream(self.device):
            for mesh in self._meshes[:count]:
                mesh.refit()
        launch(
            _vertex_maps,
            (count, self.canonical.shape[0]),
            [
                array(self.posed, wp.vec3),
                array(self.canonical, wp.vec3),
                self._indices,
                array(self.row_start),
                array(self.row_faces),
            ],
            [array(self.maps, wp.mat33)],
            self.device,
        )

    def to_canonical(
        self, points: Float[Tensor, "N 3"], slots: Int[Tensor, "N"], max_distance: float
    ) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3 3"], Float[Tensor, "N"]]:
        """Canonical points, local maps M and distances; beyond `max_distance` the distance is infinite."""
        N = points.shape[0]
        out = torch.zeros(N, 3, device=self.device)
        M = torch.zeros(N, 3, 3, device=self.device)
        distance = torch.empty(N, device=self.device)
        launch(
            _to_canonical,
            N,
            [
                array(points.contiguous().float(), wp.vec3),
                array(slots.int().contiguous()),
                self.view,
                float(max_distance),
            ],
            [array(out, wp.vec3), array(M, wp.mat33), array(distance)],
            self.device,
        )
        return out, M, distance


@wp.kernel(enable_backward=False)
def _signed_distance(
    mesh: wp.uint64, points: wp.array(dtype=wp.vec3), max_distance: float, out: wp.array(dtype=float)
):
    i = wp.tid()
    query = wp.mesh_query_point_sign_winding_number(mesh, points[i], max_distance)
    out[i] = wp.inf
    if query.result:
        p = wp.mesh_eval_position(mesh, query.face, query.u, query.v)
        out[i] = query.sign * wp.length(points[i] - p)


def signed_distance(
    vertices: Float[np.ndarray, "V 3"],
    faces: Int[np.ndarray, "F 3"],
    points: Float[np.ndarray, "N 3"],
    max_distance: float,
) -> Float[np.ndarray, "N"]:
    """Distance to the surface in metres, negative inside (by winding number, so small holes do no harm); infinite
    beyond `max_distance`. Runs on the CPU: it is needed once, when a model is made."""
    initialise()
    mesh = wp.Mesh(
        points=wp.array(np.ascontiguousarray(vertices, dtype=np.float32), dtype=wp.vec3, device="cpu"),
        indices=wp.array(np.ascontiguousarray(faces, dtype=np.int32).reshape(-1), dtype=wp.int32, device="cpu"),
        support_winding_number=True,
    )
    out = wp.empty(len(points), dtype=float, device="cpu")
    source = wp.array(np.ascontiguousarray(points, dtype=np.float32), dtype=wp.vec3, device="cpu")
    wp.launch(_signed_distance, len(points), [mesh.id, source, float(max_distance)], [out], device="cpu")
    return out.numpy()
