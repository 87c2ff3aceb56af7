"""Carry skeleton, skin weights and blendshapes from the wrapped body model to the scan's own mesh (the paper's way)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array
from scipy.spatial import cKDTree

from threevp_nerfstudio.body.body_model import with_texture_coordinates
from threevp_nerfstudio.body.fit import Fitted
from threevp_nerfstudio.body.labels import INSIDE, faces_in
from threevp_nerfstudio.body.mesh import remap_template, select, vertex_normals
from threevp_nerfstudio.body.scan import Scan, manifold_part
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.body.wrap import Wrapped
from threevp_nerfstudio.kernels.mesh_query import MeshQuery

KEPT_INSIDE = ("mouth_interior", "teeth", "tongue")
"""Parts a scan does not show, taken over from the body model."""
TORN = 4.0
"""A triangle at lips or lids that some expression stretches by more than this closes mouth or eye, and is opened."""
NORMAL_WEIGHT = 0.006
"""Metres that a difference of one between normals counts for, where the nearest point faces the other way."""
FARTHEST = 0.03
"""Scan vertices farther from the body model (metres) are not part of the person as registered: forearms, a chair."""


@dataclass(frozen=True)
class Correspondence:
    """For each scan vertex a point on the wrapped template."""

    face: Int[Array, "N"]
    bary: Float[Array, "N 3"]
    distance: Float[Array, "N"]


def correspond(scan: Scan, wrapped: Wrapped) -> Correspondence:
    """The nearest point on the outer surface of the wrapped template that faces the same way."""
    template = wrapped.template
    outer = np.flatnonzero(~faces_in(template, INSIDE) | faces_in(template, ("eyes",)))
    faces = template.faces[outer]
    query = MeshQuery(wrapped.posed, faces)
    hits = query.nearest(scan.vertices)
    normals = vertex_normals(wrapped.posed, template.faces)
    scan_normals = vertex_normals(scan.vertices, scan.faces)
    face, bary = hits.face.copy(), hits.bary.copy()
    against = (query.at(hits, normals) * scan_normals).sum(1) < 0.0
    if against.any():
        centre = wrapped.posed[faces].mean(1)
        direction = normals[faces].mean(1)
        tree = cKDTree(np.concatenate([centre, NORMAL_WEIGHT * direction], 1))
        turned = np.concatenate([scan.vertices[against], NORMAL_WEIGHT * scan_normals[against]], 1)
        face[against] = tree.query(turned)[1]
        bary[against] = 1.0 / 3.0
    found = np.einsum("nk,nkc->nc", bary, wrapped.posed[faces[face]])
    return Correspondence(outer[face].astype(np.int64), bary, np.linalg.norm(found - scan.vertices, axis=1))


def transfer(fitted: Fitted, wrapped: Wrapped, scan: Scan) -> tuple[RiggedTemplate, list[str]]:
    """The scan's mesh as a rigged template in the rest pose, and notes on what was changed.

    Triangles that close mouth or eyes are opened, and mouth cavity, teeth and tongue of the body model are added.
    """
    scan, dropped = manifold_part(scan)
    notes = [f"{dropped} non-manifold triangles were dropped"] if dropped else []
    found = correspond(scan, wrapped)
    far = found.distance > FARTHEST
    if far.any():
        keep = ~far[scan.faces].any(1)
        notes.append(f"{int((~keep).sum())} triangles farther than {FARTHEST * 100:.0f} cm from the body model were dropped")
        scan = _faces_of(scan, keep)
        found = correspond(scan, wrapped)
    rigged = _rigged(fitted, wrapped, scan, found)
    rigged, opened = open_seams(rigged)
    if opened:
        notes.append(f"{opened} triangles across mouth and eyes were opened")
    return _joined(rigged, _inside_of(wrapped.template)), notes


def open_seams(template: RiggedTemplate) -> tuple[RiggedTemplate, int]:
    """Remove triangles at lips and lids that an expression would tear; how many there were."""
    rows = np.flatnonzero(faces_in(template, ("lips", "mouth_interior", "eyelids", "eyes")))
    if not len(rows) or not len(template.expression_names):
        return template, 0
    corners = template.vertices[template.faces[rows]]
    rest = _edge_lengths(corners)
    worst = np.zeros(len(rows))
    for basis in template.expression_basis:
        worst = np.maximum(worst, (_edge_lengths(corners + basis[template.faces[rows]]) / np.maximum(rest, 5e-4)).max(1))
    torn = np.zeros(len(template.faces), dtype=bool)
    torn[rows[worst > TORN]] = True
    if not torn.any():
        return template, 0
    change = select(template.faces.astype(np.int64), ~torn, len(template.vertices))
    return with_texture_coordinates(template, remap_template(template, change), change), int(torn.sum())


def _rigged(fitted: Fitted, wrapped: Wrapped, scan: Scan, found: Correspondence) -> RiggedTemplate:
    t = wrapped.template
    corners = t.faces[found.face]

    def carry(values: Array) -> Array:
        return np.einsum("nk,nk...->n...", found.bary, values[corners])

    transforms = carry(fitted.transforms)
    rest = fitted.to_rest(scan.vertices, transforms)
    posed_shift = fitted.to_rest(fitted.posed, fitted.transforms) - fitted.body.template.vertices
    rest -= carry(posed_shift)  # pose correctives at the scan's pose are added again when the template is posed
    region = t.face_regions[found.face]
    corner_regions = np.sort(region[scan.faces], axis=1)
    uvs, face_uvs = (None, None) if scan.corner_uvs is None else _shared(scan.corner_uvs)
    return replace(
        t,
        vertices=rest,
        faces=scan.faces.astype(np.int32),
        skin_weights=carry(t.skin_weights),
        expression_basis=_carry_stack(t.expression_basis, carry, len(rest)),
        pose_basis=None if t.pose_basis is None else _carry_stack(t.pose_basis, carry, len(rest)),
        face_regions=corner_regions[:, 1].astype(np.uint8),
        uvs=uvs,
        face_uvs=face_uvs,
        body_model=f"own scan, rigged by {t.body_model}",
    )


def _carry_stack(basis: Array, carry, N: int) -> Array:
    return np.stack([carry(b) for b in basis]) if len(basis) else np.zeros((0, N, 3))


def _shared(corner_uvs: Float[Array, "F 3 2"]) -> tuple[Float[Array, "T 2"], Int[Array, "F 3"]]:
    uvs, index = np.unique(corner_uvs.reshape(-1, 2), axis=0, return_inverse=True)
    return uvs, index.reshape(-1, 3).astype(np.int32)


def _faces_of(scan: Scan, keep: Array) -> Scan:
    used, index = np.unique(scan.faces[keep], return_inverse=True)
    colours = None if scan.colours is None else scan.colours[used]
    uvs = None if scan.corner_uvs is None else scan.corner_uvs[keep]
    return Scan(scan.vertices[used], index.reshape(-1, 3).astype(np.int64), colours, uvs, scan.texture, scan.notes)


def _inside_of(template: RiggedTemplate) -> RiggedTemplate | None:
    inside = faces_in(template, KEPT_INSIDE)
    if not inside.any():
        return None
    change = select(template.faces.astype(np.int64), inside, len(template.vertices))
    return with_texture_coordinates(template, remap_template(template, change), change)


def _joined(a: RiggedTemplate, b: RiggedTemplate | None) -> RiggedTemplate:
    """Two meshes of one skeleton as one; the second's texture coordinates collapse to the corner (0, 0)."""
    if b is None:
        return a
    uvs, face_uvs = a.uvs, a.face_uvs
    if uvs is not None and face_uvs is not None:
        face_uvs = np.concatenate([face_uvs, np.full((len(b.faces), 3), len(uvs), dtype=np.int32)])
        uvs = np.concatenate([uvs, np.zeros((1, 2))])
    pose_basis = None
    if a.pose_basis is not None and b.pose_basis is not None:
        pose_basis = np.concatenate([a.pose_basis, b.pose_basis], axis=1)
    return replace(
        a,
        vertices=np.concatenate([a.vertices, b.vertices]),
        faces=np.concatenate([a.faces, b.faces + len(a.vertices)]).astype(np.int32),
        skin_weights=np.concatenate([a.skin_weights, b.skin_weights]),
        expression_basis=np.concatenate([a.expression_basis, b.expression_basis], axis=1),
        pose_basis=pose_basis,
        face_regions=np.concatenate([a.face_regions, b.face_regions]),
        uvs=uvs,
        face_uvs=face_uvs,
    )


def _edge_lengths(corners: Float[Array, "F 3 3"]) -> Float[Array, "F 3"]:
    return np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=-1)
