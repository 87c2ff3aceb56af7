"""Draw the body model's surface onto a scan: smooth offsets by closest points, from stiff to soft.

Each round moves vertices towards the scan along their normals and a little along the surface, and keeps the Laplacian
of the offsets small, so that holes are bridged by the body model's own shape. Eyes, teeth and tongue, which are
separate pieces that a scan does not show, follow the skin round them as rigid bodies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from threevp_nerfstudio.body.align import best_similarity
from threevp_nerfstudio.body.fit import Fitted, Progress
from threevp_nerfstudio.body.labels import INSIDE, vertices_in
from threevp_nerfstudio.body.mesh import border_vertices, components, smoothness, vertex_normals
from threevp_nerfstudio.body.scan import Scan
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.kernels.mesh_query import MeshQuery

STIFFNESS = tuple(float(s) for s in np.geomspace(300.0, 0.3, 24))
"""Weight of the smoothness of the offsets in each round, against one for a vertex on the scan."""
REACH = (0.06, 0.03)
"""Metres within which a scan point may claim a vertex, in the first and in the last round."""
SOFT = {"scalp": 0.3, "torso": 0.6, "arms": 0.6, "lips": 3.0, "eyelids": 4.0, "ears": 2.0}
"""Regions that are more (hair, clothes) or less (features that must not slide) free than the rest."""


@dataclass(frozen=True)
class Wrapped:
    """The template on the scan: `posed` as scanned, `template` in the rest pose."""

    template: RiggedTemplate
    posed: Float[Array, "V 3"]
    touched: Bool[Array, "V"]  # vertices that ended on the scan


def wrap(
    fitted: Fitted,
    scan: Scan,
    landmarks: Mapping[str, Float[Array, "3"]] | None = None,
    progress: Progress = lambda _: None,
) -> Wrapped:
    """Wrap the fitted body onto a scan in the world frame."""
    template = fitted.body.template
    faces = template.faces.astype(np.int64)
    V = len(template.vertices)
    query = MeshQuery(scan.vertices, scan.faces)
    scan_normals = vertex_normals(scan.vertices, scan.faces)
    border = border_vertices(scan.faces, len(scan.vertices))
    skin = ~vertices_in(template, INSIDE)
    soft = _softness(template)
    L = smoothness(faces, V)
    bending = (L.T @ sp.diags(soft) @ L).tocsr()
    start, x = fitted.posed, fitted.posed.copy()
    touched = np.zeros(V, dtype=bool)
    for step, stiffness in enumerate(STIFFNESS):
        share = step / (len(STIFFNESS) - 1)
        reach = REACH[0] + share * (REACH[1] - REACH[0])
        normals = vertex_normals(x, template.faces)
        hits = query.nearest(x, reach)
        agree = (normals * query.at(hits, scan_normals)).sum(1)
        gap = np.where(hits.found[:, None], query.at(hits) - x, 0.0)
        off_border = ~border[scan.faces[hits.face]].any(1)
        touched = skin & hits.found & (agree > 0.3 + 0.3 * share) & off_border
        along = (gap * normals).sum(1, keepdims=True) * normals
        target = x + along + (0.1 + 0.5 * share) * (gap - along)
        weight = touched.astype(float)
        if landmarks:
            _pull_landmarks(fitted, landmarks, weight, target)
        system = sp.diags(weight + 1e-6) + stiffness * bending
        solver = splu(system.tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
        x = start + solver.solve(weight[:, None] * (target - start))
        if step % 6 == 5 or step == len(STIFFNESS) - 1:
            reached = hits.distance[touched]
            progress(f"wrapping {step + 1}/{len(STIFFNESS)}: {1000 * (reached.mean() if len(reached) else np.nan):.2f} mm")
    x = _carry_pieces(template, start, x, skin)
    rest = fitted.to_rest(x, fitted.transforms)
    rest -= _correctives(fitted)
    return Wrapped(replace(template, vertices=rest), x, touched)


def _correctives(fitted: Fitted) -> Float[Array, "V 3"]:
    """Pose correctives at the scan's pose: they are added again when the template is posed."""
    rest = fitted.to_rest(fitted.posed, fitted.transforms)
    return rest - fitted.body.template.vertices


def _softness(template: RiggedTemplate) -> Float[Array, "V"]:
    soft = np.ones(len(template.vertices))
    for region, value in SOFT.items():
        soft[vertices_in(template, (region,))] = value
    return soft


def _pull_landmarks(fitted: Fitted, landmarks, weight: Array, target: Array) -> None:
    for name, point in landmarks.items():
        if name in fitted.body.landmarks:
            vertex = fitted.body.landmarks[name][0]
            weight[vertex] = 20.0
            target[vertex] = point


def _carry_pieces(template: RiggedTemplate, start: Array, x: Array, skin: Array) -> Float[Array, "V 3"]:
    """Move pieces that have no skin with the skin (or mouth) nearest to them, as similar bodies."""
    piece = components(template.faces.astype(np.int64), len(x))
    with_skin = np.unique(piece[skin])
    anchored = np.isin(piece, with_skin)
    tree, anchors = cKDTree(start[anchored]), np.flatnonzero(anchored)
    result = x.copy()
    for label in np.setdiff1d(np.unique(piece), with_skin):
        members = piece == label
        near = np.unique(tree.query(start[members], k=8)[1])
        around = anchors[near]
        motion = best_similarity(start[around], x[around])
        result[members] = motion.apply(start[members])
    return result
