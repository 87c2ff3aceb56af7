"""Identity of the body model, stance, camera and poses of the turn, together: outline and landmarks of all pictures.

One Gauss-Newton system over

    identity (K) | log of the focal length | shared joint rotations (the stance) | per picture: rigid 6, neck and head

Hair and clothes lie outside the body model: there the outline may lie inside the matte, and hardly pulls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.tracking.evidence import Evidence
from threevp_nerfstudio.tracking.face_points import FacePoints
from threevp_nerfstudio.tracking.footage import PinholeCamera
from threevp_nerfstudio.tracking.fitted import azimuth_of
from threevp_nerfstudio.tracking.parts import Parts
from threevp_nerfstudio.tracking.posing import Freedoms, Points, Pose, PosedRig, head_pivot, middle, step_pose
from threevp_nerfstudio.tracking.terms import System, add_landmarks, add_outline
from threevp_nerfstudio.tracking.visibility import Observer, overlap

LANDMARKS_SEEN = np.radians(60.0)
STANCE_SPREAD = {"spine": 0.1, "neck": 0.2, "head": 0.2, "arms": 0.4}
SWAY_SPREAD = 0.03
"""Radians that neck and head move against the stance during the turn."""
FOCAL_SPREAD = 0.35
"""Of the log focal length, where it is only guessed."""
LANDMARKS_COUNT, OUTLINE_COUNT = 30.0, 60.0
"""As how many independent measurements the landmarks and the outline of one picture count."""


@dataclass(frozen=True)
class TurnEstimate:
    """What is known of the turn's pictures so far. `poses` hold stance and sway together."""

    values: Float[Array, "K"]
    camera: PinholeCamera
    stance: Float[Array, "J 3"]
    poses: tuple[Pose, ...]


@dataclass(frozen=True)
class ShapeReport:
    """How the estimate meets the pictures."""

    cost: float
    landmark_px: float
    outline_px: float
    iou: float


def fit_shape(
    body: BodyModel,
    parts: Parts,
    face: FacePoints,
    pictures: list[Evidence],
    start: TurnEstimate,
    focal_known: bool,
    iterations: int = 12,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[TurnEstimate, ShapeReport]:
    """Refine `start`, which has a pose for each picture."""
    estimate = start
    basis = identity_basis(body, estimate.values)
    problem = _Problem(body, parts, face, pictures, focal_known)
    report = ShapeReport(np.inf, np.nan, np.nan, np.nan)
    damping = 1e-3
    for iteration in range(iterations):
        if iteration == iterations // 2:
            basis = identity_basis(body, estimate.values)
        system, report = problem.linearise(estimate, basis)
        H = system.H + damping * np.diag(np.diag(system.H))
        estimate = problem.moved(estimate, np.linalg.solve(H, system.g))
        progress(iteration + 1, iterations)
    return estimate, report


def identity_basis(body: BodyModel, values: Float[Array, "K"], step: float = 2e-2) -> Float[Array, "K V 3"]:
    """How the rest shape answers to each identity parameter, by one-sided differences into its range."""
    base, _ = body.rest(values)
    columns = []
    for k in range(len(values)):
        sign = 1.0 if values[k] + step <= body.identity.upper[k] else -1.0
        moved = values.copy()
        moved[k] += sign * step
        columns.append((body.rest(moved)[0] - base) * (sign / step))
    return np.array(columns).reshape(len(values), len(base), 3)


class _Problem:
    def __init__(self, body: BodyModel, parts: Parts, face: FacePoints, pictures: list[Evidence], focal_known: bool) -> None:
        self.body, self.parts, self.face, self.pictures = body, parts, face, pictures
        self.focal_known = focal_known
        self.observer = Observer(body.template.vertices, body.template.faces)
        self.stance = parts.spine + parts.neck + parts.skull + parts.arms
        self.sway = Freedoms(parts.neck + parts.skull, ())
        self.trust = np.where(parts.face, 1.0, np.where(parts.hair, 0.15, np.where(parts.clothed, 0.3, 0.6)))
        self.K = len(body.values)
        self.head = self.K + 1 + 3 * len(self.stance)

    def rig(self, values: Array) -> PosedRig:
        vertices, joints = self.body.rest(values)
        return PosedRig(self.body.template).with_rest(vertices, joints)

    def linearise(self, estimate: TurnEstimate, basis: Float[Array, "K V 3"]) -> tuple[System, ShapeReport]:
        rig = self.rig(estimate.values)
        each = self.sway.count
        system = System.empty(self.head + each * len(self.pictures))
        landmarks, outlines, ious = [], [], []
        for f, (picture, pose) in enumerate(zip(self.pictures, estimate.poses, strict=True)):
            seen = replace(picture, camera=replace(estimate.camera, width=picture.camera.width, height=picture.camera.height))
            part = System.empty(self.head + each)
            x = rig.place(rig.points, pose).camera
            view = self.observer.look(x, seen.camera)
            ious.append(overlap(view.covered, picture.inside, self.observer.coarseness))
            a, b = view.outline.T
            points = middle(rig.points, a, b)
            placed, J = self._jacobian(rig, points, pose, (basis[:, a] + basis[:, b]) / 2)
            inside = picture.edge.at(_pixels(seen, placed))[0][:, 0] > 0
            weight = np.minimum(self.trust[a], self.trust[b])
            weight = np.where(inside, weight, np.maximum(weight, 0.6))
            outlines.append(np.abs(add_outline(part, seen, placed, J, weight, OUTLINE_COUNT)))
            landmarks.append(self._landmarks(part, seen, rig, pose, basis))
            _scatter(system, part, f, self.head, each)
        self._priors(system, estimate)
        px = [np.median(e) for e in landmarks if len(e)]
        middle = [np.median(e) for e in outlines if len(e)]
        return system, ShapeReport(
            system.cost, float(np.mean(px)) if px else np.nan, float(np.mean(middle)) if middle else np.nan, float(np.mean(ious))
        )

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
        shared = rig.jacobian(points, placed, pose, Freedoms(self.stance, ()), pivot)[:, :, 6:]
        identity = np.einsum("nrc,knc->nrk", placed.linear, local, optimize=True)
        zoom = placed.camera * np.array([1.0, 1.0, 0.0])
        return placed.camera, np.concatenate([identity, zoom[:, :, None], shared, own], axis=2)

    def _priors(self, system: System, estimate: TurnEstimate) -> None:
        identity = self.body.identity
        size = len(system.g)
        offset, spread = np.zeros(size), np.full(size, np.inf)
        offset[: self.K], spread[: self.K] = estimate.values - identity.default, identity.spread
        start = self.pictures[0].camera
        offset[self.K] = np.log(estimate.camera.fx / start.fx)
        spread[self.K] = 1e-4 if self.focal_known else FOCAL_SPREAD
        names = [("spine", self.parts.spine), ("neck", self.parts.neck), ("head", self.parts.skull), ("arms", self.parts.arms)]
        wide = np.concatenate([np.full(3 * len(j), STANCE_SPREAD[n]) for n, j in names])
        offset[self.K + 1 : self.head] = estimate.stance[list(self.stance)].reshape(-1)
        spread[self.K + 1 : self.head] = wide
        for f, pose in enumerate(estimate.poses):
            rows = slice(self.head + f * self.sway.count + 6, self.head + (f + 1) * self.sway.count)
            offset[rows] = (pose.rotations - estimate.stance)[list(self.sway.joints)].reshape(-1)
            spread[rows] = SWAY_SPREAD
        system.add_prior(offset, spread)

    def moved(self, estimate: TurnEstimate, step: Float[Array, "D"]) -> TurnEstimate:
        identity = self.body.identity
        change = np.clip(step[: self.K], -2 * identity.spread, 2 * identity.spread)
        values = np.clip(estimate.values + change, identity.lower, identity.upper)
        zoom = float(np.exp(np.clip(step[self.K], -0.3, 0.3)))
        camera = replace(estimate.camera, fx=estimate.camera.fx * zoom, fy=estimate.camera.fy * zoom)
        rig, each = self.rig(estimate.values), self.sway.count
        shared = Freedoms(self.stance, ())
        turn = np.concatenate([np.zeros(6), np.clip(step[self.K + 1 : self.head], -0.3, 0.3)])
        rest = Pose(np.eye(4), estimate.stance, np.zeros(len(self.body.template.expression_names)))
        stance = step_pose(rest, turn, shared, np.zeros(3)).rotations
        poses = []
        for f, pose in enumerate(estimate.poses):
            own = step[self.head + f * each : self.head + (f + 1) * each].copy()
            own[:3] = np.clip(own[:3], -0.4, 0.4)
            pivot = head_pivot(rig, pose, self.parts.skull[0])
            poses.append(step_pose(step_pose(pose, turn, shared, pivot), own, self.sway, pivot))
        return TurnEstimate(values, camera, stance, tuple(poses))


def _pixels(seen: Evidence, x: Float[Array, "n 3"]) -> Float[Array, "n 2"]:
    camera = seen.camera
    return np.stack([camera.fx * x[:, 0] / x[:, 2] + camera.cx, camera.fy * x[:, 1] / x[:, 2] + camera.cy], axis=1)


def _scatter(system: System, part: System, f: int, head: int, each: int) -> None:
    index = np.concatenate([np.arange(head), head + f * each + np.arange(each)])
    system.H[np.ix_(index, index)] += part.H
    system.g[index] += part.g
    system.cost += part.cost
