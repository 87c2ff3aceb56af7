"""Identity of the body model, stance, camera and poses of the turn, together: outline, landmarks and colours of all pictures.

One Gauss-Newton system over

    identity (K) | log of the focal length | shared joint rotations (the stance) | per picture: rigid 6, neck and head

Colours are those that the pictures agree on at the present estimate (gathered anew in each iteration). Until offsets carry
hair and clothes, those lie outside the body model: there the outline may lie inside the matte, and hardly pulls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from scipy.spatial.transform import Rotation

from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.errors import TrackError
from threevp_nerfstudio.tracking.appearance import Appearance, Sight, gather, sight
from threevp_nerfstudio.tracking.evidence import Evidence, project
from threevp_nerfstudio.tracking.face_points import FacePoints
from threevp_nerfstudio.tracking.fitted import azimuth_of
from threevp_nerfstudio.tracking.footage import PinholeCamera
from threevp_nerfstudio.tracking.parts import Parts, vertex_areas
from threevp_nerfstudio.tracking.posing import (
    Freedoms,
    Points,
    Pose,
    PosedRig,
    between_transforms,
    head_pivot,
    middle,
    step_pose,
)
from threevp_nerfstudio.tracking.shared_colours import SharedColours
from threevp_nerfstudio.tracking.terms import ColourTerm, System, add_colours, add_landmarks, add_outline, colour_term
from threevp_nerfstudio.tracking.visibility import Observer, View, overlap
from threevp_nerfstudio.workers import shared

LANDMARKS_SEEN = np.radians(60.0)
STANCE_SPREAD = {"spine": 0.1, "neck": 0.2, "head": 0.2, "arms": 0.4}
SWAY_SPREAD = 0.01
"""Radians that neck and head move against the stance during the turn."""
LANDMARKS_COUNT, OUTLINE_COUNT, COLOURS_COUNT = 30.0, 60.0, 40.0
"""As how many independent measurements landmarks, outline and colours of one picture count. Colours say little as long as those of hair
and clothes are compared on a body centimetres inside them."""
DRESSED_OUTLINE_COUNT, DRESSED_COLOURS_COUNT = 15.0, 150.0
"""The same once offsets carry hair and clothes: these come from outlines themselves, whose errors turn the head (by 1 to 2 degrees
at the back), which colours alone would not."""
LOPSIDED = 0.08
"""How far a shape parameter usually differs between the two sides of a face."""
TURN_SPREAD, TURN_UNEVEN = np.radians(2.0), 0.4
"""Radians by which the step from one picture of the turn to the next is off what the faces seen before and after let one expect, and the
share of the step that comes to it."""
HEAD_STAYS, HEAD_ARM = 0.008, 0.1
"""Metres that the head moves in such a step, and metres per radian of it: it sits beside the axis."""
MOST_OFF, MOST_MOVED = np.radians(15.0), 0.1
"""Radians and metres by which such a step is off where poses have gone astray."""
STRAY = 0.5
"""Share of the usual overlap with the matte below which a picture's pose has gone astray."""
WORSE, SHORTENED = 1.03, 0.3
"""Rise of the cost at which a step is taken back, and the share of it that is tried instead."""
GONE = (
    "the template left the pictures while it was fitted to the turn. Give the focal length if you know it (--focal-px, --focal-35mm), "
    "and check with --from mattes that the mattes show the subject alone."
)
COLOURED = 2400
"""Vertices whose colours are compared; a third of them are seen in a picture."""


@dataclass(frozen=True)
class TurnEstimate:
    """What is known of the turn's pictures so far. `poses` hold stance and sway together."""

    values: Float[Array, "K"]
    camera: PinholeCamera
    stance: Float[Array, "J 3"]
    poses: tuple[Pose, ...]
    offset: Float[Array, "V 3"]
    """The person's own shape on top of the identity's, metres, rest pose."""


@dataclass(frozen=True)
class ShapeReport:
    """How the estimate meets the pictures."""

    cost: float
    landmark_px: float
    outline_px: float
    iou: float
    photometric: float
    overlaps: tuple[float, ...] = ()
    """Intersection over union of template and matte in each picture."""


@dataclass(frozen=True)
class _Picture:
    """What one picture says at an estimate. All but the overlap are missing where nothing of the template is in view."""

    overlap: float
    part: System | None = None
    outline: Float[Array, "n"] | None = None
    landmarks: Float[Array, "l"] | None = None
    rows: Int[Array, "m"] | None = None
    """Vertices whose colours were compared."""
    term: ColourTerm | None = None


class TurnProblem:
    """The pictures of the turn and what is fitted to them.

    `turned`: rotations of the chair by which the pictures are expected to follow each other. With `held` they also hold them together;
    where pictures tell enough they had better be left alone, since what holds them biases the focal length (by 2 % on portrait_a).
    """

    def __init__(
        self, body: BodyModel, parts: Parts, face: FacePoints, pictures: list[Evidence], focal_spread: float, fixed_shape: bool,
        turned: Float[Array, "F 3 3"] | None = None,
    ) -> None:  # fmt: skip
        self.body, self.parts, self.face, self.pictures = body, parts, face, pictures
        self.turned, self.held = turned, False
        self.focal_spread, self.fixed_shape = max(focal_spread, 1e-4), fixed_shape
        self.observer = Observer(body.template.vertices, body.template.faces)
        self._views: tuple[TurnEstimate, tuple[View, ...]] | None = None
        self.stance = parts.spine + parts.neck + parts.skull + parts.arms
        self.sway = Freedoms(parts.neck + parts.skull, ())
        names = list(body.identity.names)
        self.pairs = [(i, names.index("r-" + n[2:])) for i, n in enumerate(names) if n.startswith("l-") and "r-" + n[2:] in names]
        self.K = 0 if fixed_shape else len(body.values)
        self.head = self.K + 1 + 3 * len(self.stance)
        areas = vertex_areas(body.template.vertices, body.template.faces)
        self.importance = areas * np.where(parts.face, 2.0, 1.0)
        self.order = np.random.default_rng(0).permutation(len(areas))
        self.sample = self.order[parts.skin[self.order]][:COLOURED]

    def fit(
        self,
        start: TurnEstimate,
        basis: Float[Array, "K V 3"],
        iterations: int,
        level: int | None = None,
        dressed: bool = False,
        progress: Callable[[], None] = lambda: None,
    ) -> tuple[TurnEstimate, ShapeReport]:
        """Refine `start`. `level`: pyramid level of the colours, None to leave them out. `dressed`: offsets carry hair and
        clothes by now, so the outline is trusted everywhere."""
        estimate, before = start, None
        report = ShapeReport(np.inf, np.nan, np.nan, np.nan, np.nan)
        for _ in range(iterations):
            looks = None if level is None else self.looks(estimate)
            system, now = self.linearise(estimate, basis, looks, level or 0, dressed)
            progress()
            if (strays := _strays(now.overlaps)).any():
                estimate, before = replace(estimate, poses=rejoined(estimate.poses, strays)), None
                system, now = self.linearise(estimate, basis, looks, level or 0, dressed)
            if before is not None and now.cost > WORSE * report.cost:
                estimate = self.moved(before[0], SHORTENED * before[1])  # too far: part of the step, from where it began
                before = None
                continue
            report = now
            # identity alone is damped: focal length and depth move together along a narrow ridge, which damping would block
            damping = np.where(np.arange(len(system.g)) < self.K, 1e-3, 1e-7)
            known = np.diag(system.H)
            damped = np.where(known > 0, damping * known, 1.0)  # what nothing tells of, as a picture with an empty matte, stays
            step = np.linalg.solve(system.H + np.diag(damped), system.g)
            before = (estimate, step)
            estimate = self.moved(estimate, step)
        return estimate, report

    def rig(self, estimate: TurnEstimate) -> PosedRig:
        """The rig at the estimate's rest shape."""
        vertices, joints = self.body.rest(estimate.values)
        return PosedRig(self.body.template).with_rest(vertices + estimate.offset, joints)

    def seen(self, k: int, estimate: TurnEstimate) -> Evidence:
        """Picture `k` through the camera as it is estimated."""
        size = self.pictures[k].camera
        return replace(self.pictures[k], camera=replace(estimate.camera, width=size.width, height=size.height))

    def looks(self, estimate: TurnEstimate) -> Appearance:
        """The colours that the pictures agree on."""
        rig = self.rig(estimate)

        def look(k: int) -> tuple[Sight, View]:
            seen = self.seen(k, estimate)
            x = rig.place(rig.points, estimate.poses[k]).camera
            view = self.observer.look(x, seen.camera)
            return sight(seen, x, view), view

        sights, views = zip(*shared(range(len(estimate.poses)), lambda: look), strict=True)
        self._views = (estimate, views)
        return gather(list(sights))

    def view(self, k: int, estimate: TurnEstimate, rig: PosedRig) -> View:
        """What picture `k` shows of the rig; kept from when colours were gathered at this very estimate."""
        if self._views is not None and self._views[0] is estimate:
            return self._views[1][k]
        return self.observer.look(rig.place(rig.points, estimate.poses[k]).camera, self.seen(k, estimate).camera)

    def linearise(
        self, estimate: TurnEstimate, basis: Float[Array, "K V 3"], looks: Appearance | None, level: int, dressed: bool
    ) -> tuple[System, ShapeReport]:
        """The system at an estimate, and how well it meets the pictures."""
        rig, each = self.rig(estimate), self.sway.count
        system = System.empty(self.head + each * len(self.pictures))
        shared_colours = SharedColours(self.sample, len(self.order), len(system.g))
        count = DRESSED_COLOURS_COUNT if dressed else COLOURS_COUNT
        landmarks, outlines, ious, colours = [], [], [], []

        def look(k: int) -> _Picture:
            return self._picture(k, estimate, rig, basis, looks, level, dressed, count)

        for k, found in enumerate(shared(range(len(estimate.poses)), lambda: look)):
            ious.append(found.overlap)
            if found.part is None:
                continue
            columns = _columns(k, self.head, each)
            outlines.append(found.outline)
            landmarks.append(found.landmarks)
            if found.term is not None:
                shared_colours.add(found.rows, found.term, count, columns)
                colours.append(np.abs(found.term.residual).mean(1))
            _scatter(system, found.part, columns)
        if np.mean(np.array(ious) > 0) < 0.5:
            raise TrackError(GONE)
        if looks is not None:
            shared_colours.eliminate(system)
        self._priors(system, estimate)

        def mean(values: list[Array]) -> float:
            kept = [np.median(v) for v in values if len(v)]
            return float(np.mean(kept)) if kept else np.nan

        return system, ShapeReport(system.cost, mean(landmarks), mean(outlines), float(np.mean(ious)), mean(colours), tuple(ious))

    def _picture(
        self, k: int, estimate: TurnEstimate, rig: PosedRig, basis: Array, looks: Appearance | None, level: int, dressed: bool, count: float
    ) -> _Picture:  # fmt: skip
        seen, pose = self.seen(k, estimate), estimate.poses[k]
        view = self.view(k, estimate, rig)
        if not view.visible.any():
            return _Picture(0.0)
        part = System.empty(self.head + self.sway.count)
        outlines_count = DRESSED_OUTLINE_COUNT if dressed and looks is not None else OUTLINE_COUNT
        outline = self._outline(part, seen, rig, pose, basis, view, dressed, outlines_count)
        landmarks = self._landmarks(part, seen, rig, pose, basis)
        rows, term = None, None
        if looks is not None:
            rows, term = self._colours(part, seen, rig, pose, basis, view, looks, level, count)
        return _Picture(overlap(view.covered, seen.inside, self.observer.coarseness), part, outline, landmarks, rows, term)

    def _outline(self, part, seen, rig, pose, basis, view: View, dressed: bool, count: float) -> Array:
        a, b = view.outline.T
        placed, J = self._jacobian(rig, middle(rig.points, a, b), pose, (np.take(basis, a, axis=1) + np.take(basis, b, axis=1)) / 2)
        trust = outline_trust(self.parts, dressed)
        weight = np.minimum(trust[a], trust[b])
        if not dressed:  # the body lies inside hair and clothes, never outside them
            inside = seen.edge.at(project(seen.camera, placed)[0])[0][:, 0] > 0
            weight = np.where(inside, weight, np.maximum(weight, 0.6))
        return np.abs(add_outline(part, seen, placed, J, weight, count))

    def _colours(self, part, seen, rig, pose, basis, view: View, looks: Appearance, level: int, count: float):
        usable = view.visible & (looks.trust > 0.3) & (view.facing > 0.2)
        rows = self.sample[usable[self.sample]]
        placed, J = self._jacobian(rig, rig.points.take(rows), pose, np.take(basis, rows, axis=1))
        weight = self.importance[rows] * view.facing[rows] * looks.trust[rows]
        term = colour_term(seen, level, placed, J, looks.predicted(level, rows, view.normals[rows]), weight / weight.mean())
        add_colours(part, term, count)
        return rows, term

    def _landmarks(self, part: System, seen: Evidence, rig: PosedRig, pose: Pose, basis: Array) -> Array:
        if seen.landmark_score < 0.3 or abs(azimuth_of(pose.T_camera_root)) > LANDMARKS_SEEN:
            return np.zeros(0)
        target = seen.landmarks[self.face.ids]
        kept = np.flatnonzero(np.isfinite(target).all(1))
        points = self.face.points(rig.points).take(kept)
        local = np.einsum("nk,enkc->enc", self.face.bary[kept], basis[:, self.face.corners[kept]])
        placed, J = self._jacobian(rig, points, pose, local)
        return add_landmarks(part, seen, placed, J, target[kept], self.face.noise[kept], LANDMARKS_COUNT)

    def _jacobian(self, rig: PosedRig, points: Points, pose: Pose, local: Float[Array, "K n 3"]) -> tuple[Array, Array]:
        """Placed points and their derivative by the shared parameters and this picture's own."""
        placed = rig.place(points, pose)
        pivot = head_pivot(rig, pose, self.parts.skull[0])
        own = rig.jacobian(points, placed, pose, self.sway, pivot)
        common = rig.jacobian(points, placed, pose, Freedoms(self.stance, ()), pivot)[:, :, 6:]
        identity = np.matmul(placed.linear, local[: self.K].transpose(1, 2, 0))
        zoom = placed.camera * np.array([1.0, 1.0, 0.0])
        return placed.camera, np.concatenate([identity, zoom[:, :, None], common, own], axis=2)

    def _priors(self, system: System, estimate: TurnEstimate) -> None:
        identity = self.body.identity
        size = len(system.g)
        offset, spread = np.zeros(size), np.full(size, np.inf)
        if not self.fixed_shape:
            offset[: self.K], spread[: self.K] = estimate.values - identity.default, identity.spread
        start = self.pictures[0].camera
        offset[self.K] = np.log(estimate.camera.fx / start.fx)
        spread[self.K] = self.focal_spread
        names = [("spine", self.parts.spine), ("neck", self.parts.neck), ("head", self.parts.skull), ("arms", self.parts.arms)]
        wide = np.concatenate([np.full(3 * len(j), STANCE_SPREAD[n]) for n, j in names])
        offset[self.K + 1 : self.head] = estimate.stance[list(self.stance)].reshape(-1)
        spread[self.K + 1 : self.head] = wide
        for f, pose in enumerate(estimate.poses):
            rows = slice(self.head + f * self.sway.count + 6, self.head + (f + 1) * self.sway.count)
            offset[rows] = (pose.rotations - estimate.stance)[list(self.sway.joints)].reshape(-1)
            spread[rows] = SWAY_SPREAD
        system.add_prior(offset, spread)
        if self.held:
            self._add_turn(system, estimate)
        if not self.fixed_shape:
            self._add_symmetry(system, estimate.values)

    def wanders(self, estimate: TurnEstimate) -> bool:
        """Whether the poses are no turn any more: from one picture to the next they jump, or run away from the camera."""
        return any(
            np.linalg.norm(off) > MOST_OFF or np.linalg.norm(moved) > MOST_MOVED for off, moved, _ in self._steps(estimate)
        )

    def _steps(self, estimate: TurnEstimate) -> list[tuple[Float[Array, "3"], Float[Array, "3"], float]]:
        """From picture to picture: how far the turn is off what the faces let one expect (axis-angle), how the head moved (metres), and the
        angle that was expected."""
        if self.turned is None:
            return []
        rig = self.rig(estimate)
        heads = [head_pivot(rig, pose, self.parts.skull[0]) for pose in estimate.poses]
        steps = []
        for f in range(len(estimate.poses) - 1):
            a, b = (pose.T_camera_root[:3, :3] for pose in estimate.poses[f : f + 2])
            expected = self.turned[f + 1] @ self.turned[f].T
            angle = float(np.linalg.norm(Rotation.from_matrix(expected).as_rotvec()))
            steps.append((Rotation.from_matrix(b @ (expected @ a).T).as_rotvec(), heads[f + 1] - heads[f], angle))
        return steps

    def _add_turn(self, system: System, estimate: TurnEstimate) -> None:
        """From picture to picture the chair turns on and the head stays near its place: what holds a back of plain hair, of which
        neither outline nor colours tell the azimuth."""
        for f, (off, moved, angle) in enumerate(self._steps(estimate)):
            residual = np.concatenate([off, moved])
            spread = np.repeat([TURN_SPREAD + TURN_UNEVEN * angle, HEAD_STAYS + HEAD_ARM * angle], 3)
            rows = slice(self.head + f * self.sway.count, self.head + (f + 1) * self.sway.count + 6)
            J = np.zeros((6, rows.stop - rows.start))
            J[:, :6], J[:, -6:] = -np.eye(6), np.eye(6)
            W = J / spread[:, None] ** 2
            system.H[rows, rows] += J.T @ W
            system.g[rows] -= W.T @ residual
            system.cost += 0.5 * float((residual**2 / spread**2).sum())

    def _add_symmetry(self, system: System, values: Float[Array, "K"]) -> None:
        """Both sides of a face are nearly alike: without, a lopsided face and a wrong azimuth explain each other."""
        for left, right in self.pairs:
            weight = 1.0 / LOPSIDED**2
            gap = values[left] - values[right]
            system.H[left, left] += weight
            system.H[right, right] += weight
            system.H[left, right] -= weight
            system.H[right, left] -= weight
            system.g[left] -= weight * gap
            system.g[right] += weight * gap
            system.cost += 0.5 * weight * gap**2

    def moved(self, estimate: TurnEstimate, step: Float[Array, "D"]) -> TurnEstimate:
        identity = self.body.identity
        values = estimate.values
        if not self.fixed_shape:
            change = np.clip(step[: self.K], -2 * identity.spread, 2 * identity.spread)
            values = np.clip(values + change, identity.lower, identity.upper)
        zoom = float(np.exp(np.clip(step[self.K], -0.3, 0.3)))
        camera = replace(estimate.camera, fx=estimate.camera.fx * zoom, fy=estimate.camera.fy * zoom)
        rig, each = self.rig(estimate), self.sway.count
        together = Freedoms(self.stance, ())
        turn = np.concatenate([np.zeros(6), np.clip(step[self.K + 1 : self.head], -0.3, 0.3)])
        rest = Pose(np.eye(4), estimate.stance, np.zeros(len(self.body.template.expression_names)))
        stance = step_pose(rest, turn, together, np.zeros(3)).rotations
        poses = []
        for f, pose in enumerate(estimate.poses):
            own = step[self.head + f * each : self.head + (f + 1) * each].copy()
            own[:3] = np.clip(own[:3], -0.4, 0.4)
            pivot = head_pivot(rig, pose, self.parts.skull[0])
            poses.append(step_pose(step_pose(pose, turn, together, pivot), own, self.sway, pivot))
        return TurnEstimate(values, camera, stance, tuple(poses), estimate.offset)


def outline_trust(parts: Parts, dressed: bool) -> Float[Array, "V"]:
    """How far each part's outline can be believed, by vertex."""
    hair, clothes = (0.7, 0.5) if dressed else (0.15, 0.3)
    return np.where(parts.face, 1.0, np.where(parts.hair, hair, np.where(parts.clothed, clothes, 0.8)))


def _strays(overlaps: tuple[float, ...]) -> Bool[Array, "F"]:
    """Pictures in which the template is beside the subject. None where it is so in most."""
    fit = np.array(overlaps)
    astray = fit < STRAY * np.median(fit)
    return astray if astray.mean() < 0.34 else np.zeros(len(fit), dtype=bool)


def rejoined(poses: tuple[Pose, ...], strays: Bool[Array, "F"]) -> tuple[Pose, ...]:
    """The same, strays between the nearest of the others on both sides: successive pictures of one turn."""
    good = np.flatnonzero(~strays)
    result = list(poses)
    for k in np.flatnonzero(strays):
        before, after = good[good < k], good[good > k]
        a, b = (before[-1] if len(before) else after[0]), (after[0] if len(after) else before[-1])
        share = 0.5 if a == b else (k - a) / (b - a)
        T = between_transforms(poses[a].T_camera_root, poses[b].T_camera_root, float(share))
        result[k] = replace(poses[a], T_camera_root=T)
    return tuple(result)


def _columns(k: int, head: int, each: int) -> Array:
    """Where the shared parameters and picture `k`'s own stand in the whole system."""
    return np.concatenate([np.arange(head), head + k * each + np.arange(each)])


def _scatter(system: System, part: System, columns: Array) -> None:
    system.H[np.ix_(columns, columns)] += part.H
    system.g[columns] += part.g
    system.cost += part.cost
