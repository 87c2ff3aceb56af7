"""Bake a scan's colours into the texture of the template that was wrapped onto it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray as Array
from scipy.ndimage import distance_transform_edt

from threevp_nerfstudio.body.labels import INSIDE, face_colours, faces_in
from threevp_nerfstudio.body.mesh import vertex_normals
from threevp_nerfstudio.body.scan import Scan
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.body.wrap import Wrapped
from threevp_nerfstudio.kernels.mesh_query import MeshQuery

REACH = 0.01
"""Metres from the wrapped surface within which the scan colours a texel."""


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

    Eyes, teeth and mouth, which a scan does not show, are given plain colours.
    """
    template = wrapped.template
    at, face, bary = texels(template, size)
    corners = template.faces[face]
    points = np.einsum("nk,nkc->nc", bary, wrapped.posed[corners])
    normals = np.einsum("nk,nkc->nc", bary, vertex_normals(wrapped.posed, template.faces)[corners])
    query = MeshQuery(scan.vertices, scan.faces)
    hits = query.nearest(points, REACH)
    colours = scan.colour_at(np.maximum(hits.face, 0), hits.bary)
    assert colours is not None, "the caller bakes scans that have colours"
    facing = (query.at(hits, vertex_normals(scan.vertices, scan.faces)) * normals).sum(1) > 0.2
    inside = faces_in(template, INSIDE)[face]
    good = hits.found & facing & ~inside
    picture = np.zeros((size, size, 3))
    known = np.zeros((size, size), dtype=bool)
    picture[tuple(at[good].T)] = colours[good]
    known[tuple(at[good].T)] = True
    picture[tuple(at[inside].T)] = face_colours(template)[face[inside]]
    painted = known.copy()
    painted[tuple(at[inside].T)] = True
    nearest = distance_transform_edt(~painted, return_distances=False, return_indices=True)
    return picture[tuple(nearest)].astype(np.uint8)
