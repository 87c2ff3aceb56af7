"""Operations on triangle meshes, and on rigged templates as meshes with attributes.

A change of mesh (crop, caps, subdivision) is a `Remap`: new vertices as weighted means of old ones. Because posing is
linear in everything a template stores per vertex, the same matrix carries positions, blendshapes, pose correctives and
skin weights, and a vertex that is kept poses exactly as before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from scipy.sparse.csgraph import connected_components

from threevp_nerfstudio.body.template import RiggedTemplate


@dataclass(frozen=True)
class Remap:
    """A new mesh in terms of an old one. `rows` of the matrix sum to one."""

    matrix: sp.csr_matrix  # (V', V)
    faces: Int[Array, "G 3"]
    face_source: Int[Array, "G"]  # the old face each new one lies in; -1 for a cap

    def then(self, later: Remap) -> Remap:
        """This change followed by `later`."""
        source = np.where(later.face_source >= 0, self.face_source[later.face_source], -1)
        return Remap((later.matrix @ self.matrix).tocsr(), later.faces, source)


def edges_of(faces: Int[Array, "F 3"]) -> tuple[Int[Array, "E 2"], Int[Array, "F 3"]]:
    """Undirected edges (sorted pairs), and for each face the edges 01, 12, 20."""
    directed = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    edges, index = np.unique(np.sort(directed, axis=1), axis=0, return_inverse=True)
    return edges, index.reshape(-1, 3)


def face_normals(vertices: Float[Array, "V 3"], faces: Int[Array, "F 3"]) -> Float[Array, "F 3"]:
    """Unit normals times twice the area."""
    a, b, c = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 2]]
    return np.cross(b - a, c - a)


def vertex_normals(
    vertices: Float[Array, "V 3"], faces: Int[Array, "F 3"], of_faces: Float[Array, "F 3"] | None = None
) -> Float[Array, "V 3"]:
    """Area-weighted unit normals; zero at vertices without a face. `of_faces`: `face_normals`, where they are known."""
    weighted, corners = face_normals(vertices, faces) if of_faces is None else of_faces, faces.T.reshape(-1)
    sums = [np.bincount(corners, np.tile(weighted[:, axis], 3), len(vertices)) for axis in range(3)]
    normals = np.stack(sums, axis=-1).astype(vertices.dtype)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)


def components(faces: Int[Array, "F 3"], num_vertices: int) -> Int[Array, "V"]:
    """Label of the connected piece each vertex belongs to."""
    edges, _ = edges_of(faces)
    graph = sp.coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(num_vertices, num_vertices))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def smoothness(faces: Int[Array, "F 3"], num_vertices: int) -> sp.csr_matrix:
    """The graph Laplacian with rows divided by their degree: `L x` is a vertex minus the mean of its neighbours."""
    edges, _ = edges_of(faces)
    i, j = np.concatenate([edges, edges[:, ::-1]]).T
    adjacency = sp.coo_matrix((np.ones(len(i)), (i, j)), shape=(num_vertices, num_vertices)).tocsr()
    degree = np.maximum(np.asarray(adjacency.sum(1)).ravel(), 1.0)
    used = sp.diags((np.diff(adjacency.indptr) > 0).astype(float))
    return (used - sp.diags(1.0 / degree) @ adjacency).tocsr()


def boundary_loops(faces: Int[Array, "F 3"]) -> list[Int[Array, "_"]]:
    """Closed loops of vertices along edges that have one face, in the direction of those faces' edges."""
    directed = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    forward = {(int(a), int(b)) for a, b in directed}
    following: dict[int, list[int]] = {}
    for a, b in forward:
        if (b, a) not in forward:
            following.setdefault(a, []).append(b)
    loops = []
    while following:
        start = min(following)
        loop, at = [start], start
        while True:
            choices = following[at]
            step = choices.pop()
            if not choices:
                del following[at]
            if step == start or step not in following:
                break
            loop.append(step)
            at = step
        loops.append(np.array(loop, dtype=np.int64))
    return loops


def border_vertices(faces: Int[Array, "F 3"], num_vertices: int) -> Bool[Array, "V"]:
    """Vertices on an open border: closest points there are no correspondences."""
    edges, index = edges_of(faces)
    single = np.bincount(index.reshape(-1), minlength=len(edges)) == 1
    border = np.zeros(num_vertices, dtype=bool)
    border[edges[single].reshape(-1)] = True
    return border


def select(faces: Int[Array, "F 3"], keep: Bool[Array, "F"], num_vertices: int) -> Remap:
    """Keep some faces, and the vertices they use."""
    index = np.flatnonzero(keep)
    used, inverse = np.unique(faces[index], return_inverse=True)
    shape = (len(used), num_vertices)
    matrix = sp.csr_matrix((np.ones(len(used)), (np.arange(len(used)), used)), shape=shape)
    return Remap(matrix, inverse.reshape(-1, 3).astype(np.int64), index)


def close_loops(faces: Int[Array, "F 3"], num_vertices: int, loops: list[Int[Array, "_"]]) -> Remap:
    """Close boundary loops with a fan round a new vertex, the mean of the loop."""
    rows, cols, values = [np.arange(num_vertices)], [np.arange(num_vertices)], [np.ones(num_vertices)]
    new_faces, source = [faces], [np.arange(len(faces))]
    for n, loop in enumerate(loops):
        centre = num_vertices + n
        rows.append(np.full(len(loop), centre))
        cols.append(loop)
        values.append(np.full(len(loop), 1.0 / len(loop)))
        new_faces.append(np.column_stack([np.roll(loop, -1), loop, np.full(len(loop), centre)]))
        source.append(np.full(len(loop), -1))
    triplet = (np.concatenate(values), (np.concatenate(rows), np.concatenate(cols)))
    matrix = sp.csr_matrix(triplet, shape=(num_vertices + len(loops), num_vertices))
    return Remap(matrix, np.concatenate(new_faces).astype(np.int64), np.concatenate(source).astype(np.int64))


_SPLITS: dict[int, list[tuple[int, int, int]]] = {
    # which of the edges 01, 12, 20 are split (bits 1, 2, 4) -> triangles; 3, 4, 5 are the mid points of those edges
    0b000: [(0, 1, 2)],
    0b001: [(0, 3, 2), (3, 1, 2)],
    0b010: [(0, 1, 4), (0, 4, 2)],
    0b100: [(0, 1, 5), (5, 1, 2)],
    0b011: [(3, 1, 4), (0, 3, 4), (0, 4, 2)],
    0b110: [(5, 4, 2), (0, 1, 4), (0, 4, 5)],
    0b101: [(0, 3, 5), (3, 1, 2), (3, 2, 5)],
    0b111: [(0, 3, 5), (3, 1, 4), (5, 4, 2), (3, 4, 5)],
}


def subdivide(faces: Int[Array, "F 3"], chosen: Bool[Array, "F"], num_vertices: int) -> Remap:
    """Split the edges of the chosen faces at their middle; neighbours are cut to match, so no cracks open."""
    edges, face_edges = edges_of(faces)
    split = np.zeros(len(edges), dtype=bool)
    split[face_edges[chosen].reshape(-1)] = True
    middle = np.full(len(edges), -1)
    middle[split] = num_vertices + np.arange(split.sum())
    corners = np.column_stack([faces, middle[face_edges]])
    code = (split[face_edges] * np.array([1, 2, 4])).sum(1)
    new_faces, source = [], []
    for bits, triangles in _SPLITS.items():
        rows = np.flatnonzero(code == bits)
        for triangle in triangles:
            new_faces.append(corners[np.ix_(rows, triangle)])
            source.append(rows)
    count = int(split.sum())
    rows = np.concatenate([np.arange(num_vertices), np.repeat(num_vertices + np.arange(count), 2)])
    cols = np.concatenate([np.arange(num_vertices), edges[split].reshape(-1)])
    values = np.concatenate([np.ones(num_vertices), np.full(2 * count, 0.5)])
    matrix = sp.csr_matrix((values, (rows, cols)), shape=(num_vertices + count, num_vertices))
    order = np.argsort(np.concatenate(source), kind="stable")
    return Remap(matrix, np.concatenate(new_faces)[order].astype(np.int64), np.concatenate(source)[order])


def remap_template(template: RiggedTemplate, change: Remap, cap_region: int = 0) -> RiggedTemplate:
    """The template on the changed mesh, without texture coordinates (see `body_model.with_texture_coordinates`)."""
    M = change.matrix

    def carry(basis: Array) -> Array:
        return np.stack([M @ b for b in basis]) if len(basis) else np.zeros((0, M.shape[0], 3), basis.dtype)

    regions = np.where(change.face_source >= 0, template.face_regions[change.face_source], cap_region)
    return replace(
        template,
        vertices=M @ template.vertices,
        faces=change.faces.astype(np.int32),
        skin_weights=M @ template.skin_weights,
        expression_basis=carry(template.expression_basis),
        pose_basis=None if template.pose_basis is None else carry(template.pose_basis),
        face_regions=regions.astype(np.uint8),
        uvs=None,
        face_uvs=None,
    )


def corner_coordinates(
    template: RiggedTemplate, change: Remap
) -> tuple[Float[Array, "T 2"], Int[Array, "F 3"]]:
    """Texture coordinates of a changed mesh, from where each new corner lies in its old triangle."""
    assert template.uvs is not None and template.face_uvs is not None
    old = template.faces[change.face_source]
    M = change.matrix
    corner_uv = np.zeros((*change.faces.shape, 2))
    for k in range(3):
        rows = M[change.faces[:, k]]
        for c in range(3):
            weight = np.asarray(rows[np.arange(len(old)), old[:, c]]).reshape(-1, 1)
            corner_uv[:, k] += weight * template.uvs[template.face_uvs[change.face_source, c]]
    uvs, index = np.unique(corner_uv.reshape(-1, 2).round(9), axis=0, return_inverse=True)
    return uvs, index.reshape(-1, 3).astype(np.int32)
