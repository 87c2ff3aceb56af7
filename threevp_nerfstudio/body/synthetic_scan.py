"""A scan whose truth is known: a posed person with hair and clothes, remeshed so that nothing of the topology remains.

For tests and `examples/benchmark_scan.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from scipy.spatial import cKDTree

from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.labels import INSIDE, face_colours, faces_in, vertices_in
from threevp_nerfstudio.body.mesh import components, vertex_normals
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.scan import Scan
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.kernels.mesh_query import MeshQuery


@dataclass(frozen=True)
class KnownScan:
    """A scan in the world frame, and the person it was made from."""

    scan: Scan
    person: RiggedTemplate  # displaced by hair and clothes, rest pose
    joint_rotations: Float[Array, "J 3"]
    posed: Float[Array, "V 3"]
    face: Int[Array, "N"]  # of each scan vertex: the triangle of `person` it lies on, and where
    bary: Float[Array, "N 3"]
    is_hair: Bool[Array, "N"]
    is_cloth: Bool[Array, "N"]


def synthetic_scan(
    body: BodyModel, seed: int = 0, voxel: float = 0.003, hair: float = 0.025, long_hair: bool = False
) -> KnownScan:
    """Make a scan of a random person. `hair` is its mean thickness in metres; `voxel` the size of the new triangles.

    `long_hair` adds hair that hides ears and neck and ends on the shoulders.
    """
    rng = np.random.default_rng(seed)
    spread = np.where(np.arange(len(body.values)) < 6, 0.2, 0.25)
    values = np.clip(
        body.identity.default + spread * rng.uniform(-1, 1, len(body.values)), body.identity.lower, body.identity.upper
    )
    person = body.at(values).template
    offset = _hair_and_clothes(person, rng, hair)
    person = RiggedTemplate(**{**person.__dict__, "vertices": person.vertices + offset})
    rotations = _mild_pose(person, rng)
    posed = pose_rest(person, person.vertices, rotations)
    solid = (posed, person.faces)
    if long_hair:
        solid = _with_strands(body, posed, person.faces)
    vertices, faces = seen_from_outside(*remesh(*solid, voxel))
    skin = np.flatnonzero(~faces_in(person, INSIDE) | faces_in(person, ("eyes", "cap")))
    hits = MeshQuery(posed, person.faces[skin]).nearest(vertices)
    face = skin[hits.face]
    thick = np.linalg.norm(offset, axis=1)
    scalp = person.face_regions[face] == person.region_names.index("scalp")
    at = np.einsum("nk,nk->n", hits.bary, thick[person.faces[face]])
    colours = face_colours(person)[face].astype(np.float64)
    strands = hits.distance > 0.003
    is_hair = scalp & (at > 0.004) | strands
    return KnownScan(
        Scan(vertices, faces, colours), person, rotations, posed, face, hits.bary, is_hair, ~is_hair & (at > 0.002)
    )


def pose_rest(
    template: RiggedTemplate, vertices: Float[Array, "V 3"], rotations: Float[Array, "J 3"]
) -> Float[Array, "V 3"]:
    """Skin `vertices` with the template's weights, at a neutral expression."""
    T = skin_transforms(template, rotations)
    return np.einsum("vrc,vc->vr", T[:, :, :3], vertices) + T[:, :, 3]


def skin_transforms(template: RiggedTemplate, rotations: Float[Array, "J 3"]) -> Float[Array, "V 3 4"]:
    """The blended transform of each vertex from the rest pose."""
    rig = Rig.from_template(template, torch.float64)
    G = rig.joint_transforms(torch.as_tensor(rotations)[None], torch.zeros(1, 3, dtype=torch.float64))[0].numpy()
    return np.einsum("vj,jrc->vrc", template.skin_weights, G[:, :3])


def remesh(vertices: Float[Array, "V 3"], faces: Array, voxel: float) -> tuple[Array, Array]:
    """The outer surface by surface nets over the winding number: new vertices, new triangles, one piece."""
    low, high = vertices.min(0) - 4 * voxel, vertices.max(0) + 4 * voxel
    shape = np.ceil((high - low) / voxel).astype(int) + 1
    query = MeshQuery(vertices, faces, winding=True)
    coarse = 4
    field = np.empty(shape, dtype=np.float32)
    nodes = np.stack(np.meshgrid(*[np.arange(0, n + coarse, coarse) for n in shape], indexing="ij"), -1)
    rough = query.signed_distance((low + voxel * nodes).reshape(-1, 3)).reshape(nodes.shape[:3])
    field[:] = np.kron(rough, np.ones((coarse,) * 3, dtype=np.float32))[: shape[0], : shape[1], : shape[2]]
    near = np.argwhere(np.abs(field) < 2 * coarse * voxel)
    field[tuple(near.T)] = query.signed_distance(low + voxel * near)
    found, triangles = surface_nets(field)
    found = low + voxel * found
    piece = components(triangles, len(found))[triangles[:, 0]]
    triangles = triangles[piece == np.bincount(piece).argmax()]
    used, index = np.unique(triangles, return_inverse=True)
    result, triangles = found[used], index.reshape(-1, 3)
    normals = np.cross(*(result[triangles[:, k]] - result[triangles[:, 0]] for k in (1, 2)))
    if (normals * (result[triangles].mean(1) - result.mean(0))).sum() < 0:
        triangles = triangles[:, ::-1].copy()
    return result, triangles


def seen_from_outside(vertices: Float[Array, "V 3"], faces: Array, views: int = 48) -> tuple[Array, Array]:
    """What a scanner sees: triangles with a corner from which some direction is free. The rest leaves holes."""
    query = MeshQuery(vertices, faces)
    normals = vertex_normals(vertices, faces)
    k = np.arange(views) + 0.5
    height, turn = 1 - 2 * k / views, np.pi * (1 + 5**0.5) * k
    ring = np.sqrt(1 - height**2)
    seen = np.zeros(len(vertices), dtype=bool)
    for direction in np.column_stack([ring * np.cos(turn), ring * np.sin(turn), height]):
        rows = np.flatnonzero(~seen & (normals @ direction > 0.15))
        ahead = np.tile(direction, (len(rows), 1))
        seen[rows] = ~query.cast(vertices[rows] + 5e-4 * normals[rows], ahead).found
    kept = faces[seen[faces].all(1)]
    piece = components(kept, len(vertices))[kept[:, 0]]
    kept = kept[piece == np.bincount(piece).argmax()]
    used, index = np.unique(kept, return_inverse=True)
    return vertices[used], index.reshape(-1, 3)


def surface_nets(field: Float[Array, "X Y Z"]) -> tuple[Float[Array, "V 3"], Int[Array, "F 3"]]:
    """The zero level of a field on a grid, in grid units (Gibson 1998): a vertex per crossed cell, a quad per crossed edge."""
    inside = field < 0
    cells = np.array(field.shape) - 1
    total, count = np.zeros((*cells, 3)), np.zeros(tuple(cells))
    quads = []
    for axis in range(3):
        a = np.moveaxis(field, axis, 0)
        crossed = np.moveaxis(inside, axis, 0)
        at = np.argwhere(crossed[1:] != crossed[:-1])
        lower, upper = a[:-1][tuple(at.T)], a[1:][tuple(at.T)]
        others = [k for k in range(3) if k != axis]
        edge = np.empty_like(at)
        edge[:, axis], edge[:, others[0]], edge[:, others[1]] = at.T
        point = edge.astype(float)
        point[:, axis] += lower / (lower - upper)
        ok = np.all([(edge[:, k] > 0) & (edge[:, k] < cells[k]) for k in others], axis=0)
        edge, point, flip = edge[ok], point[ok], (lower[ok] < 0) ^ (axis == 1)
        ring = []
        for d0, d1 in ((0, 0), (1, 0), (1, 1), (0, 1)):
            cell = edge.copy()
            cell[:, others[0]] -= d0
            cell[:, others[1]] -= d1
            np.add.at(total, tuple(cell.T), point)
            np.add.at(count, tuple(cell.T), 1)
            ring.append(np.ravel_multi_index(tuple(cell.T), tuple(cells)))
        quad = np.stack(ring, 1)
        quads.append(np.where(flip[:, None], quad, quad[:, ::-1]))
    quad = np.concatenate(quads)
    used, index = np.unique(quad, return_inverse=True)
    vertices = total.reshape(-1, 3)[used] / count.reshape(-1)[used, None]
    index = index.reshape(-1, 4)
    return vertices, np.concatenate([index[:, [0, 1, 2]], index[:, [0, 2, 3]]])


def _hair_and_clothes(person: RiggedTemplate, rng: np.random.Generator, hair: float) -> Float[Array, "V 3"]:
    """Smooth offsets along the normal: locks of 2-3 cm on the scalp, cloth of about 1 cm on torso and arms."""
    v = person.vertices
    normals = vertex_normals(v, person.faces)
    skin = ~vertices_in(person, INSIDE)
    offset = np.zeros(len(v))
    for regions, thickness, taper, waves in ((("scalp",), hair, 0.02, 25), (("torso", "arms"), 0.009, 0.04, 12)):
        chosen = vertices_in(person, regions)
        others = v[~chosen & skin]
        depth = cKDTree(others).query(v[chosen])[0]
        ramp = np.clip(depth / taper, 0, 1)
        wave = np.sin(v[chosen] @ rng.normal(size=(3, 3)) * waves + rng.uniform(0, 6, 3)).mean(1)
        offset[chosen] = thickness * (1 + 0.2 * wave) * ramp**2 * (3 - 2 * ramp)
    return offset[:, None] * normals


def _with_strands(body: BodyModel, posed: Float[Array, "V 3"], faces: Array) -> tuple[Array, Array]:
    """The posed person with rows of ellipsoids from the ears and the back of the head down to the shoulders."""
    import trimesh

    ears = [posed[body.landmarks[f"{side}_ear"]].mean(0) for side in ("right", "left")]
    middle = (ears[0] + ears[1]) / 2
    pieces = []
    for height in np.linspace(0.0, -0.22, 9):
        for ear, side in zip(ears, (-1, 1), strict=True):
            pieces.append((ear + [side * 0.005, 0.02 - 0.02 * height, height], [0.03, 0.045, 0.05]))
        pieces.append((middle + [0, 0.075 - 0.015 * height, height + 0.02], [0.085, 0.045, 0.05]))
    meshes = [trimesh.Trimesh(posed, faces, process=False)]
    for centre, radii in pieces:
        ball = trimesh.creation.icosphere(subdivisions=3)
        ball.vertices = ball.vertices * radii + centre
        meshes.append(ball)
    whole = trimesh.util.concatenate(meshes)
    return np.asarray(whole.vertices), np.asarray(whole.faces)


def _mild_pose(person: RiggedTemplate, rng: np.random.Generator) -> Float[Array, "J 3"]:
    """A head that is not quite straight, and arms that hang lower."""
    rotations = np.zeros((len(person.joint_names), 3))
    for j, name in enumerate(person.joint_names):
        if name in ("neck01", "neck02", "neck03", "neck"):
            rotations[j] = rng.normal(size=3) * 0.04
        if name == "head":
            rotations[j] = rng.normal(size=3) * 0.08
        if name in ("upperarm01.L", "left_shoulder"):
            rotations[j] = [0, 0.25 + 0.1 * rng.normal(), 0]
        if name in ("upperarm01.R", "right_shoulder"):
            rotations[j] = [0, -0.25 + 0.1 * rng.normal(), 0]
    return rotations
