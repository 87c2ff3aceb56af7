"""Pose and expression in one picture: Levenberg and Marquardt's method on colours, outline, landmarks and priors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from threevp_nerfstudio.tracking.appearance import Appearance
from threevp_nerfstudio.tracking.evidence import SIGMAS, Evidence, project
from threevp_nerfstudio.tracking.face_points import FacePoints
from threevp_nerfstudio.tracking.fitted import azimuth_of
from threevp_nerfstudio.tracking.parts import Parts, vertex_areas
from threevp_nerfstudio.tracking.posing import (
    Freedoms,
    Placed,
    Points,
    Pose,
    PosedRig,
    head_pivot,
    head_pose,
    middle,
    pose_difference,
    step_pose,
)
from threevp_nerfstudio.tracking.terms import (
    DETECTOR_LAG,
    LANDMARK_OUTLIER,
    System,
    add_colours,
    add_landmarks,
    add_outline,
    colour_term,
)
from threevp_nerfstudio.tracking.visibility import Observer, View, overlap

MOST_VERTICES = (900, 1500, 2500)
"""Vertices whose colours are compared, by level of the pyramid: where pictures are blurred, few tell as much."""
COLOURS_COUNT = 500.0
"""Colours of one picture count as at most so many independent measurements: errors of the model are shared by neighbours."""
OUTLINE_COUNT, LANDMARKS_COUNT = 60.0, 60.0
DETECTOR_NOISE = 1.0
"""Pixels at a width of 256 by which landmarks jitter, once they are where this person has them."""
LIDS_COUNT, LIDS_OUTLIER = 4.0, 8.0
"""How often a lid's landmark counts, and the deviations from which on it counts less: nothing else tells a blink, which moves lids far and
is over after four pictures."""
LANDMARKS_SEEN, LANDMARKS_FADE = np.radians(60.0), np.radians(25.0)
"""Azimuth of the head beyond which landmarks do not count, and over which they fade out before."""
PLACED = 4
"""Sets of points whose places are kept: colours, outline and landmarks at one pose."""
CLIP = np.array([0.15] * 3 + [0.03] * 3)
"""Largest step of the rigid pose, radians and metres."""


@dataclass(frozen=True)
class Subject:
    """What is known of the person: rig, parts, looks."""

    rig: PosedRig
    faces: Int[Array, "F 3"]
    parts: Parts
    looks: Appearance | None
    landmarks: FacePoints | None
    outline_trust: Float[Array, "V"]
    """How far each part's outline is the body's own: 1 for skin, less where hair or clothes may hide it."""


@dataclass(frozen=True)
class Prior:
    """Where pose and expression are expected before looking."""

    mean: Pose
    spread: Float[Array, "D"]


@dataclass(frozen=True)
class Solution:
    """A solved picture."""

    pose: Pose
    cost: float
    information: Float[Array, "D D"]
    """Second derivative of the cost without the priors: what the picture said."""
    photometric: float
    iou: float
    landmark_px: float
    view: View
    x: Float[Array, "V 3"]


@dataclass(frozen=True)
class Selection:
    """What is compared with a picture, as seen from one pose; it holds for the next few steps."""

    view: View
    rows: Int[Array, "n"]
    """Vertices whose colours count."""
    weight: Float[Array, "n"]
    coloured: Points
    outline: Points
    """Middles of the edges that make the outline."""
    trust: Float[Array, "m"]
    """How far each of them can be believed."""


class FrameSolver:
    """Solves pictures for one subject. Keeps the mesh's bounding volumes between pictures."""

    def __init__(self, subject: Subject, freedoms: Freedoms, with_landmarks: bool = True) -> None:
        self.subject, self.freedoms = subject, freedoms
        self.observer = Observer(subject.rig.points.rest, subject.faces)
        areas = vertex_areas(subject.rig.points.rest, subject.faces)
        emphasis = np.where(subject.parts.face, 2.0, 1.0)
        self.importance = areas * emphasis
        self.order = np.random.default_rng(0).permutation(len(areas))
        points = subject.landmarks.points(subject.rig.points) if subject.landmarks is not None and with_landmarks else None
        self.landmark_points: Points | None = points
        self.landmark_weight = np.ones(0) if points is None else mobility(points)
        self.lids = np.zeros(0, dtype=bool) if points is None else subject.landmarks.lids
        self._landmarks_of: tuple[Evidence, Int[Array, "n"], Points] | None = None
        self._placed: list[tuple[Points, Pose, Placed]] = []

    def renew(self, subject: Subject) -> None:
        """The same mesh with other looks or rest shape."""
        self.subject = subject
        if self.landmark_points is not None and subject.landmarks is not None:
            self.landmark_points = subject.landmarks.points(subject.rig.points)
            self.landmark_weight, self.lids = mobility(self.landmark_points), subject.landmarks.lids
        self._landmarks_of, self._placed = None, []

    def solve(
        self,
        picture: Evidence,
        start: Pose,
        prior: Prior,
        schedule: tuple[tuple[int, int], ...] = ((0, 3), (1, 3), (2, 4)),
        limits: tuple[float, float] = (0.0, 1.0),
    ) -> Solution:
        """Refine `start` by `schedule`: pairs of pyramid level and iterations. Channels stay within `limits`."""
        pose, damping = start, 1e-3
        system = System.empty(self.freedoms.count)
        for level, iterations in schedule:
            for n in range(iterations):
                if n % 3 == 0:
                    selection = self._select(picture, pose, level)
                pivot = head_pivot(self.subject.rig, pose, self.subject.parts.skull[0])
                system = self._system(picture, pose, pivot, level, selection, prior, True)
                pose, damping, gain = self._step(picture, pose, pivot, level, selection, prior, system, damping, limits)
                if gain < 1e-3 * max(system.cost, 1.0):
                    break
        return self._solution(picture, pose, schedule[-1][0], prior)

    # ---- one iteration ---------------------------------------------------------------------------------------------

    def _select(self, picture: Evidence, pose: Pose, level: int) -> Selection:
        """What is seen at a pose."""
        subject, points = self.subject, self.subject.rig.points
        x = subject.rig.place(points, pose).camera
        view = self.observer.look(x, picture.camera)
        a, b = view.outline.T
        outline, trust = middle(points, a, b), np.minimum(subject.outline_trust[a], subject.outline_trust[b])
        rows, weight = self._coloured(picture, x, view, MOST_VERTICES[level])
        return Selection(view, rows, weight, points.take(rows), outline, trust)

    def _coloured(
        self, picture: Evidence, x: Float[Array, "V 3"], view: View, most: int
    ) -> tuple[Int[Array, "n"], Float[Array, "n"]]:
        """Vertices whose colours count, and their weights."""
        looks = self.subject.looks
        if looks is None:
            return np.zeros(0, dtype=np.int64), np.zeros(0)
        usable = view.visible & (looks.trust > 0.25) & (view.facing > 0.15)
        rows = self.order[usable[self.order]][:most]
        unit = max(picture.camera.width, picture.camera.height) / 256
        xy, _ = project(picture.camera, x[rows])
        depth = picture.edge.at(xy)[0][:, 0]
        rows, depth = rows[depth > 0.5 * unit], depth[depth > 0.5 * unit]
        scale = (picture.camera.fx / np.maximum(x[rows, 2], 0.05) / unit) ** 2
        weight = self.importance[rows] * scale * view.facing[rows] * looks.trust[rows] * np.clip(depth / (2 * unit), 0, 1)
        return rows, weight * (usable.sum() / max(len(rows), 1))

    def _system(self, picture, pose, pivot, level, selection: Selection, prior, with_jacobian) -> System:
        subject, rig, freedoms = self.subject, self.subject.rig, self.freedoms
        system = System.empty(freedoms.count)

        def placed_with_jacobian(points: Points) -> tuple[Array, Array | None]:
            placed = self._place(points, pose)
            J = rig.jacobian(points, placed, pose, freedoms, pivot) if with_jacobian else None
            return placed.camera, J

        rows, weight = selection.rows, selection.weight
        if subject.looks is not None and len(rows):
            x, J = placed_with_jacobian(selection.coloured)
            predicted = subject.looks.predicted(level, rows, selection.view.normals[rows])
            term = colour_term(picture, level, x, J, predicted, weight / weight.mean())
            pixels = weight.sum() / (4 * np.pi * SIGMAS[level] ** 2)
            add_colours(system, term, min(pixels, COLOURS_COUNT))
        if len(selection.trust):
            x, J = placed_with_jacobian(selection.outline)
            add_outline(system, picture, x, J, selection.trust, OUTLINE_COUNT)
        self._landmarks(system, picture, pose, pivot, with_jacobian)
        system.add_prior(pose_difference(pose, prior.mean, freedoms, pivot), prior.spread)
        return system

    def _landmarks(self, system: System, picture: Evidence, pose: Pose, pivot: Array, with_jacobian: bool) -> Array:
        """Landmarks tell the expression. A detector lags behind a turning head as a whole, so that share of the residuals that
        a small rigid motion explains is taken out."""
        face, rig = self.subject.landmarks, self.subject.rig
        if self.landmark_points is None or face is None or picture.landmark_score < 0.3:
            return np.zeros(0)
        azimuth = abs(azimuth_of(head_pose(rig, pose, self.subject.parts.skull[0])))
        seen = float(np.clip((LANDMARKS_SEEN - azimuth) / LANDMARKS_FADE, 0, 1))
        if seen == 0.0:
            return np.zeros(0)
        target = picture.landmarks[face.ids]
        if self._landmarks_of is None or self._landmarks_of[0] is not picture:
            kept = np.flatnonzero(np.isfinite(target).all(1))
            self._landmarks_of = (picture, kept, self.landmark_points.take(kept))
        _, kept, points = self._landmarks_of
        freedoms = self.freedoms if with_jacobian else Freedoms((), ())
        placed = self._place(points, pose)
        J = rig.jacobian(points, placed, pose, freedoms, pivot)
        weight, lids = self.landmark_weight[kept], self.lids[kept]
        weight = weight / (weight[~lids].mean() if (~lids).any() else 1.0)
        part = System.empty(freedoms.count)
        off = add_landmarks(
            part, picture, placed.camera, J, target[kept], face.noise[kept], seen * LANDMARKS_COUNT,
            np.where(lids, LIDS_COUNT, 1.0) * weight, DETECTOR_NOISE, np.where(lids, LIDS_OUTLIER, LANDMARK_OUTLIER),
        )  # fmt: skip
        part.marginalise(slice(6), DETECTOR_LAG)
        system.cost += part.cost
        if with_jacobian:
            system.H += part.H
            system.g += part.g
        return off

    def _place(self, points: Points, pose: Pose) -> Placed:
        """`PosedRig.place`, whose latest results are kept: a step that is taken is where the next one begins."""
        for of, at, placed in self._placed:
            if of is points and at is pose:
                return placed
        placed = self.subject.rig.place(points, pose)
        self._placed = [(points, pose, placed), *self._placed[: PLACED - 1]]
        return placed

    def _step(self, picture, pose, pivot, level, selection, prior, system, damping, limits):
        """Damped steps until one lowers the cost; the pose stays where none does."""
        for _ in range(4):
            H = system.H + damping * np.diag(np.diag(system.H) + 1e-6)
            step = np.linalg.solve(H, system.g)
            step[:6] = np.clip(step[:6], -CLIP, CLIP)
            step[self.freedoms.joint_slice] = np.clip(step[self.freedoms.joint_slice], -0.2, 0.2)
            moved = step_pose(pose, step, self.freedoms, pivot)
            moved = replace(moved, expression=np.clip(moved.expression, *limits))
            cost = self._system(picture, moved, pivot, level, selection, prior, False).cost
            if cost < system.cost:
                return moved, max(damping / 5, 1e-6), system.cost - cost
            damping = max(damping * 8, 1e-4)
        return pose, damping, 0.0

    def _solution(self, picture: Evidence, pose: Pose, level: int, prior: Prior) -> Solution:
        subject = self.subject
        selection = self._select(picture, pose, level)
        view, rows, weight = selection.view, selection.rows, selection.weight
        pivot = head_pivot(subject.rig, pose, subject.parts.skull[0])
        system = self._system(picture, pose, pivot, level, selection, prior, True)
        information = system.H - np.diag(1.0 / prior.spread**2)
        x = subject.rig.place(subject.rig.points, pose).camera
        photometric = np.nan
        if subject.looks is not None and len(rows):
            predicted = subject.looks.predicted(level, rows, view.normals[rows])
            term = colour_term(picture, level, x[rows], None, predicted, weight)
            photometric = float((weight[:, None] * np.abs(term.residual)).sum() / (3 * weight.sum()))
        px = self._landmarks(System.empty(6), picture, pose, pivot, False)
        iou = overlap(view.covered, picture.inside, self.observer.coarseness)
        return Solution(
            pose, system.cost, information, photometric, iou, float(np.mean(px)) if len(px) else np.nan, view, x
        )


def mobility(points: Points) -> Float[Array, "n"]:
    """Importance of landmarks: lips and eyelids, which expressions move most, tell what the colours do not."""
    if not len(points.basis):
        return np.ones(len(points.rest))
    motion = np.sqrt((points.basis**2).sum(-1)).max(0)
    return 0.3 + np.clip(motion / 0.006, 0, 2)
