"""First hits of camera rays on a triangle mesh, on Warp: silhouettes, synthetic pictures."""

from dataclasses import dataclass

import torch
import warp as wp
from jaxtyping import Bool, Float, Int
from torch import Tensor

from threevp_nerfstudio.kernels.runtime import array, launch, torch_stream


@dataclass(frozen=True)
class Hits:
    """First hits of N rays. `face` is -1 where a ray misses; then the rest is zero, and the distance infinite."""

    face: Int[Tensor, "N"]
    barycentric: Float[Tensor, "N 3"]
    distance: Float[Tensor, "N"]

    @property
    def found(self) -> Bool[Tensor, "N"]:
        return self.face >= 0


@wp.kernel(enable_backward=False)
def _cast(
    mesh: wp.uint64,
    origin: wp.vec3,
    rotation: wp.mat33,
    directions: wp.array(dtype=wp.vec3),
    out_face: wp.array(dtype=wp.int32),
    out_barycentric: wp.array(dtype=wp.vec3),
    out_distance: wp.array(dtype=float),
):
    i = wp.tid()
    query = wp.mesh_query_ray(mesh, origin, wp.normalize(rotation * directions[i]), 1.0e6)
    if query.result:
        out_face[i] = query.face
        out_barycentric[i] = wp.vec3(query.u, query.v, 1.0 - query.u - query.v)
        out_distance[i] = query.t
    else:
        out_face[i] = -1
        out_distance[i] = wp.inf


class RayMesh:
    """A triangle mesh with a BVH that is refitted when its vertices move."""

    def __init__(self, vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> None:
        self.vertices = vertices.detach().clone().contiguous().float()
        self.faces = faces.contiguous().int()
        self.device = self.vertices.device
        self._flat_faces = self.faces.flatten()
        with torch_stream(self.device):  # Warp's own stream would not wait for the vertices
            self._mesh = wp.Mesh(points=array(self.vertices, wp.vec3), indices=array(self._flat_faces, wp.int32))

    def update(self, vertices: Float[Tensor, "V 3"]) -> None:
        """Move the vertices and refit the BVH."""
        self.vertices.copy_(vertices)
        with torch_stream(self.device):
            self._mesh.refit()

    def cast(self, camera_to_world: Float[Tensor, "4 4"], directions: Float[Tensor, "N 3"]) -> Hits:
        """First hits of rays from the camera's centre along `directions`, given in the camera's axes, of any length."""
        N = directions.shape[0]
        pose = camera_to_world.detach().cpu().double()
        face = torch.empty(N, dtype=torch.int32, device=self.device)
        barycentric = torch.zeros(N, 3, device=self.device)
        distance = torch.empty(N, device=self.device)
        launch(
            _cast,
            N,
            [
                self._mesh.id,
                wp.vec3(*pose[:3, 3].tolist()),
                wp.mat33(*pose[:3, :3].flatten().tolist()),
                array(directions.contiguous().float().to(self.device), wp.vec3),
            ],
            [array(face), array(barycentric, wp.vec3), array(distance)],
            self.device,
        )
        return Hits(face, barycentric, distance)


def cast_reference(
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    camera_to_world: Float[Tensor, "4 4"],
    directions: Float[Tensor, "N 3"],
) -> Hits:
    """Torch twin of `RayMesh.cast`: every ray against every triangle (Möller and Trumbore 1997)."""
    origin = camera_to_world[:3, 3]
    d = torch.nn.functional.normalize(directions @ camera_to_world[:3, :3].T, dim=-1)[:, None]
    a, b, c = vertices[faces.long()].unbind(1)
    e1, e2, s = b - a, c - a, origin - a
    p = torch.linalg.cross(d, e2[None])
    det = (e1 * p).sum(-1)
    u = (s * p).sum(-1) / det
    q = torch.linalg.cross(s, e1)
    v = (d * q).sum(-1) / det
    t = (e2 * q).sum(-1) / det
    inside = (det.abs() > 1e-12) & (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)
    distance, face = torch.where(inside, t, torch.inf).min(dim=1)
    found = torch.isfinite(distance)
    row = torch.arange(len(face), device=face.device)
    u, v = u[row, face], v[row, face]
    barycentric = torch.stack([1 - u - v, u, v], dim=-1) * found[:, None]
    return Hits(torch.where(found, face, -1).int(), torch.where(found[:, None], barycentric, 0.0), distance)
