"""Where the landmarks of MediaPipe's face mesh lie on a template.

`face_points.npz` was measured with our own pictures: Anny at fourteen identities, dressed and rendered by `capture.demo`
in five views each, the landmarks found there cast back onto the mesh; the median of each, at Anny's default identity, and
the median distance from it (`examples/measure_face_points.py`). Points
that slide with the view (the face's outline) have a large spread and count little.

Lips touch and lids fold away in a neutral face: the nearest triangle may be of the other lip, or of the eyeball, and would move with
it. So lips and lids are told apart by how they move.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from scipy.spatial import cKDTree

from threevp_nerfstudio.body.align import best_similarity
from threevp_nerfstudio.body.labels import vertices_in
from threevp_nerfstudio.body.landmarks import find_landmarks, points_of
from threevp_nerfstudio.body.regions import part_vertices
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.errors import TrackError
from threevp_nerfstudio.kernels.mesh_query import MeshQuery
from threevp_nerfstudio.tracking.evidence import project
from threevp_nerfstudio.tracking.footage import PinholeCamera
from threevp_nerfstudio.tracking.parts import INNER, JAW, MOVES
from threevp_nerfstudio.tracking.posing import Placed, Points

WIDEST_SPREAD = 0.0045
"""Metres beyond which a landmark says nothing."""
ANCHORS = {
    "nose_tip": (1,), "chin": (152,), "left_eye_outer": (263,), "left_eye_inner": (362,), "right_eye_inner": (133,),
    "right_eye_outer": (33,), "left_mouth": (291,), "right_mouth": (61,), "upper_lip": (0,), "lower_lip": (17,),
}  # fmt: skip
"""Our named landmarks as means of MediaPipe's."""
ROUGH_ANCHORS = {"eye_left": (263, 362), "eye_right": (33, 133), "mouth": (61, 291, 0, 17), "nose": (1,)}
"""The same for templates whose regions tell no more than where eyes and mouth are."""
ODDLY = 0.012
"""Metres from its usual place beyond which a landmark is not believed to be this person's."""
TRANSFERRED = {True: 0.003, False: 0.006}
"""Metres that landmarks are less certain on a template that they were brought to, by named and by rough anchors."""

LIPS = (
    (185, 40, 39, 37, 0, 267, 269, 270, 409, 191, 80, 81, 82, 13, 312, 311, 310, 415),
    (146, 91, 181, 84, 17, 314, 405, 321, 375, 95, 88, 178, 87, 14, 317, 402, 318, 324),
)
"""Upper and lower lip, between the corners."""
LIDS = {
    "eyeBlinkRight": ((246, 161, 160, 159, 158, 157, 173), (7, 163, 144, 145, 153, 154, 155)),
    "eyeBlinkLeft": ((466, 388, 387, 386, 385, 384, 398), (249, 390, 373, 374, 380, 381, 382)),
}
"""Upper and lower lid of each eye, between its corners, and the channel that closes it."""
APART = 0.008
"""Metres round a landmark within which one lip, or one lid, is told from the other."""


@dataclass(frozen=True)
class FacePoints:
    """Landmarks as points that ride on a template's surface."""

    ids: Int[Array, "n"]
    """Which landmarks."""
    corners: Int[Array, "n 3"]
    """Vertices of the triangle each lies in."""
    bary: Float[Array, "n 3"]
    noise: Float[Array, "n"]
    """Metres by which each is uncertain on the surface."""
    offset: Float[Array, "n 3"]
    """Metres of the rest pose from the point of the surface that a landmark moves with to where this person has it."""

    @property
    def lids(self) -> Bool[Array, "n"]:
        """Which of them are of the lids."""
        return np.isin(self.ids, [i for upper, lower in LIDS.values() for i in (*upper, *lower)])

    def blend(self, values: Float[Array, "V *c"]) -> Float[Array, "n *c"]:
        """Per-vertex values at the points."""
        return np.einsum("nk,nk...->n...", self.bary, values[self.corners])

    def at(self, rest: Float[Array, "V 3"]) -> Float[Array, "n 3"]:
        """Where the landmarks are at rest."""
        return self.blend(rest) + self.offset

    def points(self, all_points: Points) -> Points:
        """The points as posing needs them."""
        basis = np.einsum("nk,enkc->enc", self.bary, all_points.basis[:, self.corners])
        correctives = all_points.correctives
        if correctives is not None:
            correctives = np.einsum("nk,pnkc->pnc", self.bary, correctives[:, self.corners])
        return Points(self.at(all_points.rest), self.blend(all_points.weights), basis, correctives)


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
    corners, bary = _riding_on(template, vertices, ids, points[ids])
    return FacePoints(ids, corners, bary, np.hypot(spread[ids], extra), np.zeros((len(ids), 3)))


def _riding_on(
    template: RiggedTemplate, vertices: Float[Array, "V 3"], ids: Int[Array, "n"], points: Float[Array, "n 3"]
) -> tuple[Int[Array, "n 3"], Float[Array, "n 3"]]:
    """The nearest triangle of the skin to each landmark, of the right lip or lid, and the weights of its corners."""
    faces = np.asarray(template.faces, dtype=np.int64)
    faces = faces[~vertices_in(template, INNER)[faces].any(1)]
    corners, bary = _nearest(vertices, faces, points)
    tree = cKDTree(vertices[faces].mean(1))
    for group, speed, faster in _sides(template):
        for n in np.flatnonzero(np.isin(ids, group)):
            near = np.array(tree.query_ball_point(points[n], APART), dtype=np.int64)
            s = speed[faces[near]].mean(1)
            if len(near) and np.ptp(s) > MOVES:
                middle = (s.min() + s.max()) / 2
                side = near[s > middle] if faster else near[s < middle]
                at, weights = _nearest(vertices, faces[side], points[[n]])
                corners[n], bary[n] = at[0], weights[0]
    return corners, bary


def _nearest(vertices: Array, faces: Int[Array, "f 3"], points: Float[Array, "n 3"]) -> tuple[Int[Array, "n 3"], Float[Array, "n 3"]]:
    hits = MeshQuery(vertices, faces).nearest(points)
    return faces[hits.face], hits.bary.astype(np.float64)


def _sides(template: RiggedTemplate) -> list[tuple[tuple[int, ...], Float[Array, "V"], bool]]:
    """Landmarks of one lip or lid, how far each vertex moves as mouth or eye opens, and whether theirs are those that move."""
    names = list(template.expression_names)

    def moved(channel: str) -> Float[Array, "V"]:
        return np.linalg.norm(np.asarray(template.expression_basis[names.index(channel)], dtype=np.float64), axis=1)

    sides = []
    jaw = [j for j, n in enumerate(template.joint_names) if n in JAW]
    if "jawOpen" in names or jaw:
        speed = moved("jawOpen") if "jawOpen" in names else 0.03 * np.asarray(template.skin_weights)[:, jaw[0]].astype(np.float64)
        sides += [(LIPS[0], speed, False), (LIPS[1], speed, True)]
    for channel, (upper, lower) in LIDS.items():
        if channel in names:
            sides += [(upper, moved(channel), True), (lower, moved(channel), False)]
    return sides


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


def personal_points(seen: list[tuple[Placed, PinholeCamera, Float[Array, "L 2"]]], usual: FacePoints) -> FacePoints:
    """Where this person has the landmarks: the mean of frontal, neutral pictures, at the depth at which they usually lie.

    This takes out what a detector gets wrong in the same way in every picture of one person. `seen`: the usual points placed
    in those pictures, the camera, and the landmarks found. Landmarks that are seen too seldom or lie oddly are left out.
    """
    offsets = []
    for placed, camera, found in seen:
        gap = found[usual.ids] - project(camera, placed.camera)[0]
        shift = np.concatenate([gap / np.array([camera.fx, camera.fy]), np.zeros((len(gap), 1))], axis=1) * placed.camera[:, 2:]
        offsets.append(np.linalg.solve(placed.linear, shift[:, :, None])[:, :, 0])
    if len(offsets) < 3:
        return usual
    each = np.array(offsets)
    enough = np.isfinite(each).all(2).sum(0) >= 3
    kept = np.flatnonzero(enough)
    centre = np.nanmedian(each[:, kept], axis=0)
    spread = np.nanmedian(np.linalg.norm(each[:, kept] - centre, axis=2), axis=0)
    good = (np.linalg.norm(centre, axis=1) < ODDLY) & (spread < WIDEST_SPREAD)  # else a hair or an ear lies before it
    if good.sum() < 30:
        return usual
    kept = kept[good]
    return FacePoints(usual.ids[kept], usual.corners[kept], usual.bary[kept], np.maximum(spread[good], 5e-4), centre[good])
