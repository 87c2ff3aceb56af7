"""Bake a scan's colours into the texture of the template that was wrapped onto it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray as Array
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from threevp_nerfstudio.body.labels import INSIDE, face_colours, faces_in
from threevp_nerfstudio.body.mesh import vertex_normals
from threevp_nerfstudio.body.scan import Scan
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.body.wrap import Wrapped
from threevp_nerfstudio.kernels.mesh_query import MeshQuery

REACH = 0.01
"""Metres from the wrapped surface within which the scan colours a texel."""
EYE_REACH = 0.004
"""The same for eyes, which lie on the scan where it shows them."""
LID_THICKNESS = 0.02
"""Metres in front of an eye within which skin counts as its lid."""
RIM = 0.0015
"""Metres from the lids within which a scan's colour of the eye is not trusted."""


def texels(template: RiggedTemplate, size: int) -> tuple[Int[Array, "N 2"], Int[Array, "N"], Float[Array, "N 3"]]:
    """The texels that the template covers: row and column, face, and barycentric coordinates."""
    assert template.uvs is not None and template.face_uvs is not None
    corners = template.uvs[template.face_uvs].reshape(-1, 2)
    flat = np.column_stack([corners, np.zeros(len(corners))])
    query = MeshQuery(flat, np.arange(len(flat)).reshape(-1, 3))
    step = (np.arange(size) + 0.5) / size
    u, v = np.meshgrid(step, 1.0 - step)
    points = np.column_stack([u.ravel(), v.ravel(), np.zeros(size * size)])
    hits = query.nearest(points, 1.0 / size)
    inside = np.flatnonzero(hits.found)
    return np.column_stack(np.divmod(inside, size)), hits.face[inside], hits.bary[inside]


def bake(wrapped: Wrapped, scan: Scan, size: int = 1024) -> UInt8[Array, "S S 3"]:
    """Albedo of the wrapped template. Texels the scan does not colour take their nearest coloured neighbour's colour.

    Eyes are coloured where the lids leave them free, and from there under the lids. Teeth and mouth, which a scan with a
    closed mouth does not show, are given plain colours; so are eyes of which nothing is seen.
    """
    template = wrapped.template
    at, face, bary = texels(template, size)
    corners = template.faces[face]
    points = np.einsum("nk,nkc->nc", bary, wrapped.posed[corners])
    normals = np.einsum("nk,nkc->nc", bary, vertex_normals(wrapped.posed, template.faces)[corners])
    colours, distance = _scan_colours(scan, points, normals)
    inside, eyes = faces_in(template, INSIDE)[face], faces_in(template, ("eyes",))[face]
    free = np.zeros(len(face), dtype=bool)
    free[eyes] = ~_covered(wrapped, points[eyes], normals[eyes]) & (distance[eyes] < EYE_REACH)
    seen = np.isfinite(distance) & (~inside | free)
    plain = inside & ~seen
    colours[plain] = face_colours(template)[face[plain]]
    hidden = np.flatnonzero(eyes & ~seen)
    shown = np.flatnonzero(eyes & seen)
    if len(shown) and len(hidden):
        colours[hidden] = colours[shown[cKDTree(points[shown]).query(points[hidden])[1]]]
    picture = np.zeros((size, size, 3))
    painted = np.zeros((size, size), dtype=bool)
    done = seen | inside
    picture[tuple(at[done].T)] = colours[done]
    painted[tuple(at[done].T)] = True
    nearest = distance_transform_edt(~painted, return_distances=False, return_indices=True)
    return picture[tuple(nearest)].astype(np.uint8)


def _scan_colours(
    scan: Scan, points: Float[Array, "N 3"], normals: Float[Array, "N 3"]
) -> tuple[Float[Array, "N 3"], Float[Array, "N"]]:
    """The scan's colour at its point nearest to each given one, and how far that is; infinite where it faces elsewhere."""
    query = MeshQuery(scan.vertices, scan.faces)
    hits = query.nearest(points, REACH)
    colours = scan.colour_at(np.maximum(hits.face, 0), hits.bary)
    assert colours is not None, "the caller bakes scans that have colours"
    facing = (query.at(hits, vertex_normals(scan.vertices, scan.faces)) * normals).sum(1) > 0.2
    return colours, np.where(hits.found & facing, hits.distance, np.inf)


def _covered(wrapped: Wrapped, points: Float[Array, "N 3"], normals: Float[Array, "N 3"]) -> Bool[Array, "N"]:
    """Points of the eyes that lie under the lids, or so near to their rim that a scan shows the lid."""
    skin = MeshQuery(wrapped.posed, wrapped.template.faces[~faces_in(wrapped.template, INSIDE)])
    return skin.cast(points, normals, LID_THICKNESS).found | skin.nearest(points, RIM).found
