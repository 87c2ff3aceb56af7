"""Where the landmarks of MediaPipe's face mesh lie on a template.

`face_points.npz` was measured with our own pictures: Anny at fourteen identities, dressed and rendered by `capture.demo`
in five views each, the landmarks found there cast back onto the mesh; the median of each, at Anny's default identity, and
the median distance from it (`examples/measure_face_points.py`). Points
that slide with the view (the face's outline) have a large spread and count little.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from threevp_nerfstudio.body.align import best_similarity
from threevp_nerfstudio.body.landmarks import find_landmarks, points_of
from threevp_nerfstudio.body.regions import part_vertices
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.errors import TrackError
from threevp_nerfstudio.kernels.mesh_query import MeshQuery
from threevp_nerfstudio.tracking.posing import Points

WIDEST_SPREAD = 0.0045
"""Metres beyond which a landmark says nothing."""
ANCHORS = {
    "nose_tip": (1,), "chin": (152,), "left_eye_outer": (263,), "left_eye_inner": (362,), "right_eye_inner": (133,),
    "right_eye_outer": (33,), "left_mouth": (291,), "right_mouth": (61,), "upper_lip": (0,), "lower_lip": (17,),
}  # fmt: skip
"""Our named landmarks as means of MediaPipe's."""
ROUGH_ANCHORS = {"eye_left": (263, 362), "eye_right": (33, 133), "mouth": (61, 291, 0, 17), "nose": (1,)}
"""The same for templates whose regions tell no more than where eyes and mouth are."""
TRANSFERRED = {True: 0.003, False: 0.006}
"""Metres that landmarks are less certain on a template that they were brought to, by named and by rough anchors."""


@dataclass(frozen=True)
class FacePoints:
    """Landmarks as points of a template's surface."""

    ids: Int[Array, "n"]
    """Which landmarks."""
    corners: Int[Array, "n 3"]
    """Vertices of the triangle each lies in."""
    bary: Float[Array, "n 3"]
    noise: Float[Array, "n"]
    """Metres by which each is uncertain on the surface."""

    def blend(self, values: Float[Array, "V *c"]) -> Float[Array, "n *c"]:
        """Per-vertex values at the points."""
        return np.einsum("nk,nk...->n...", self.bary, values[self.corners])

    def points(self, all_points: Points) -> Points:
        """The points as posing needs them."""
        basis = np.einsum("nk,enkc->enc", self.bary, all_points.basis[:, self.corners])
        correctives = all_points.correctives
        if correctives is not None:
            correctives = np.einsum("nk,pnkc->pnc", self.bary, correctives[:, self.corners])
        return Points(self.blend(all_points.rest), self.blend(all_points.weights), basis, correctives)


def face_points(template: RiggedTemplate, average: Float[Array, "V 3"] | None = None) -> FacePoints:
    """Landmarks on a template. `average`: its vertices at Anny's default identity, where it descends from Anny.

    Without them the measured points are brought to the template by its named landmarks, and are less certain.
    """
    with np.load(Path(__file__).with_name("face_points.npz"), allow_pickle=False) as file:
        points, spread = file["points"].astype(np.float64), file["spread"].astype(np.float64)
    vertices, extra = average, 0.0
    if vertices is None:
        vertices = np.asarray(template.vertices, dtype=np.float64)
        target, groups, extra = _anchors(template)
        source = np.array([points[list(group)].mean(0) for group in groups])
        points = best_similarity(source, target).apply(points)
    ids = np.flatnonzero(spread < WIDEST_SPREAD)
    hits = MeshQuery(vertices, template.faces).nearest(points[ids])
    corners = np.asarray(template.faces, dtype=np.int64)[hits.face]
    return FacePoints(ids, corners, hits.bary.astype(np.float64), np.hypot(spread[ids], extra))


def _anchors(template: RiggedTemplate) -> tuple[Float[Array, "n 3"], list[tuple[int, ...]], float]:
    """Points of a template that have a name, the landmarks each is the mean of, and the uncertainty in metres."""
    named = points_of(template, find_landmarks(template))
    common = [name for name in ANCHORS if name in named]
    if len(common) >= 6:
        return np.array([named[n] for n in common], dtype=np.float64), [ANCHORS[n] for n in common], TRANSFERRED[True]
    parts = part_vertices(template)
    missing = [n for n in ("eye_left", "eye_right", "mouth") if n not in parts]
    if missing:
        raise TrackError(
            f"the template ({template.body_model}) does not tell where {', '.join(missing)} are, so face landmarks cannot be "
            "placed on it; name those face regions, or make the template with threevp template."
        )
    v = np.asarray(template.vertices, dtype=np.float64)
    rough = {}
    for name in ("eye_left", "eye_right", "mouth"):
        part = v[parts[name]]
        front = part[part[:, 1] <= np.quantile(part[:, 1], 0.3)]
        rough[name] = np.array([part[:, 0].mean(), front[:, 1].mean(), part[:, 2].mean()])
    middle, eyes = rough["mouth"], (rough["eye_left"] + rough["eye_right"]) / 2
    bridge = (np.abs(v[:, 0] - middle[0]) < 0.01) & (v[:, 2] > middle[2] + 0.008) & (v[:, 2] < eyes[2])
    if bridge.any():
        rough["nose"] = v[bridge][v[bridge, 1].argmin()]
    return np.array(list(rough.values())), [ROUGH_ANCHORS[n] for n in rough], TRANSFERRED[False]


def personal_points(
    face_count: int,
    faces: Int[Array, "F 3"],
    rest: Float[Array, "V 3"],
    placed: list[Float[Array, "V 3"]],
    rays: list[Float[Array, "L 3"]],
    fallback: FacePoints,
) -> FacePoints:
    """Where the landmarks lie on this person: those of frontal, neutral pictures cast onto the template and averaged.

    This takes out what a detector gets wrong in the same way in every picture of one person. `placed`: the template in camera
    axes in those pictures; `rays`: directions of their landmarks. Landmarks that are hit too seldom keep `fallback`.
    """
    hits: list[list[Array]] = [[] for _ in range(face_count)]
    for x, directions in zip(placed, rays, strict=True):
        good = np.flatnonzero(np.isfinite(directions).all(1))
        found = MeshQuery(x, faces).cast(np.zeros((len(good), 3)), directions[good])
        corners = faces[np.maximum(found.face, 0)]
        points = np.einsum("nk,nkc->nc", found.bary, rest[corners])
        for n, k in enumerate(good):
            if found.face[n] >= 0:
                hits[k].append(points[n])
    known = {int(k): n for n, k in enumerate(fallback.ids)}
    usual = fallback.blend(rest)
    ids, points, noise = [], [], []
    for k, seen in enumerate(hits):
        if k not in known or len(seen) < 3:
            continue
        centre = np.median(seen, axis=0)
        spread = float(np.median(np.linalg.norm(np.array(seen) - centre, axis=1)))
        if np.linalg.norm(centre - usual[known[k]]) > 0.012 or spread > WIDEST_SPREAD:
            continue  # a hair or an ear lies before it
        ids.append(k)
        points.append(centre)
        noise.append(max(spread, 5e-4))
    if len(ids) < 30:
        return fallback
    on = MeshQuery(rest, faces).nearest(np.array(points))
    return FacePoints(np.array(ids), np.asarray(faces, dtype=np.int64)[on.face], on.bary.astype(np.float64), np.array(noise))
