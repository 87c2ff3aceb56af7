"""The person's template from the turn: shape, pose, camera and colours, fitted to outlines, landmarks and colours.

Stages, each from the result of the one before:

1. `start`: landmarks tell how the chair turned, where it stands, and how much of the body is in view.
2. `outline`: identity, stance, focal length and poses by outlines and landmarks.
3. `colours`: the same with the colours that the pictures agree on.
4. `offsets`: hair, clothes and the person's own face as offsets of the vertices, and poses once more.
5. `texture`: colours per vertex and per texel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from threevp_nerfstudio.body.body_model import BodyModel, Identity, stored
from threevp_nerfstudio.body.crop import crop
from threevp_nerfstudio.body.landmarks import find_landmarks
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.tracking.appearance import Sight, filled, gather, sight
from threevp_nerfstudio.tracking.evidence import evidence
from threevp_nerfstudio.tracking.face_points import FacePoints, face_points, personal_points
from threevp_nerfstudio.tracking.fitted import FittedTemplate, Turn, azimuth_of
from threevp_nerfstudio.tracking.footage import Footage, PinholeCamera
from threevp_nerfstudio.tracking.offsets import fit_offsets
from threevp_nerfstudio.tracking.parts import find_parts
from threevp_nerfstudio.tracking.posing import Pose, PosedRig
from threevp_nerfstudio.tracking.shape import ShapeReport, TurnEstimate, TurnProblem
from threevp_nerfstudio.tracking.start import (
    guessed_camera,
    portrait_body,
    start_of_turn,
    starting_poses,
    torso_in_view,
    turn_frames,
    turn_rows,
)
from threevp_nerfstudio.tracking.texture import bake_texture
from threevp_nerfstudio.tracking.upright import summary_of_turn, upright
from threevp_nerfstudio.workers import shared

__all__ = ["FitOptions", "FittedTemplate", "Turn", "fit_template"]

FRONTAL_ENOUGH = np.radians(40.0)
"""Azimuth up to which pictures of the turn say where this person's landmarks lie."""
ONLY_GUESSED = 0.2
"""Spread of the focal length from which on the usual distance of people from a camera says more."""
Progress = Callable[[str, int, int], None]
"""Called with the stage's name, steps done and steps in all."""


@dataclass(frozen=True)
class FitOptions:
    """How the template is fitted."""

    frames: int = 32
    """Pictures of the turn that the shape is fitted to."""
    working_size: int = 256
    """Longer side of the pictures that are fitted, pixels."""
    focal_spread: float = 0.45
    """How uncertain the footage's focal length is, of its logarithm. 0: calibrated, it is kept."""
    texture_size: int = 1024
    """Width and height of the baked texture; 0 for none."""


def fit_template(
    footage: Footage,
    options: FitOptions,
    body: BodyModel | None = None,
    template: RiggedTemplate | None = None,
    progress: Progress = lambda *_: None,
    landmarks: FacePoints | None = None,
) -> FittedTemplate:
    """Fit `body` (a whole body model; Anny by default), or keep the shape of a given `template` and find only its poses,
    the camera and colours. `landmarks`: where the footage's landmarks lie on `template`, if they are not MediaPipe's.

    Raises `TrackError`.
    """
    progress("start", 0, 1)
    problem, estimate, footage, rows, average = start_of_fit(footage, options, body, template, landmarks)
    progress("start", 1, 1)
    estimate, report = _fit(problem, estimate, average, progress)
    rig = problem.rig(estimate)
    poses, lean = upright(rig, estimate.poses)
    template = replace(
        problem.body.template, vertices=rig.points.rest, joints=rig.joints, body_model=_name(problem.body, template)
    )
    camera = _full_camera(estimate.camera, footage.camera)

    def look(k: int) -> Sight:
        seen = problem.seen(k, estimate)
        x = rig.place(rig.points, poses[k]).camera
        return sight(seen, x, problem.observer.look(x, seen.camera, with_outline=False))

    looks = gather(list(shared(range(len(poses)), lambda: look)))
    face = _own_landmarks(problem, estimate, rig, poses)
    texture = None
    if options.texture_size:
        def step(done: int, of: int) -> None:
            progress("texture", done, of)

        texture = bake_texture(rig, template, footage, camera, rows, poses, looks.lighting, options.texture_size, step)
    T = np.array([p.T_camera_root for p in poses])
    figures = {
        "landmark_px": report.landmark_px * footage.camera.width / estimate.camera.width,
        "outline_px": report.outline_px * footage.camera.width / estimate.camera.width,
        "silhouette_iou": report.iou,
        "photometric": report.photometric,
        "focal_px": camera.fx,
        "lean_deg": float(np.degrees(np.linalg.norm(lean))),
    }
    return FittedTemplate(
        template=stored(template),
        texture=texture,
        albedo=np.clip(filled(looks.albedo[-1], looks.trust, rig.points.rest), 0, 1).astype(np.float32),
        blurred_albedo=looks.albedo.astype(np.float32),
        albedo_trust=looks.trust.astype(np.float32),
        lighting=looks.lighting,
        landmark_ids=face.ids,
        landmark_corners=face.corners,
        landmark_bary=face.bary,
        landmark_noise=face.noise,
        landmark_offset=face.offset,
        camera=camera,
        frames=rows,
        T_camera_root=T,
        joint_rotations=np.array([p.rotations for p in poses]),
        turn=summary_of_turn(T),
        report=figures,
    )


def start_of_fit(
    footage: Footage,
    options: FitOptions,
    body: BodyModel | None,
    template: RiggedTemplate | None,
    landmarks: FacePoints | None = None,
):
    """The problem, where it starts, the footage with its guessed camera, the chosen pictures, and the body on its mesh."""
    turn_rows(footage)
    if template is not None:
        whole, small = None, as_body(template)
        face = landmarks if landmarks is not None else face_points(small.template)
    else:
        whole = body if body is not None else _anny()
        small = crop(whole, 0.2)
        face = face_points(small.template, small.rest(small.identity.default)[0] if whole.name == "anny" else None)
    points = face.at(np.asarray(small.template.vertices, dtype=np.float64))
    if options.focal_spread > ONLY_GUESSED:
        footage = replace(footage, camera=guessed_camera(footage, points, face))
    prior, chair = start_of_turn(footage, points, face)
    if whole is not None:
        small = portrait_body(whole, torso_in_view(footage, chair, whole))
        face = face_points(small.template, small.rest(small.identity.default)[0] if whole.name == "anny" else None)
    rows = turn_frames(footage, prior, options.frames)
    pictures = list(shared(rows, lambda: lambda i: evidence(footage, int(i), options.working_size)))
    t = small.template
    poses = starting_poses(prior, chair, footage.times[rows], len(t.joint_names), len(t.expression_names))
    turned = float(np.ptp(prior.at(footage.times[rows])))  # a face that hardly turns tells less than errors of its shape do
    spread = options.focal_spread * min(1.0, turned / np.pi) ** 2
    turned = np.array([pose.T_camera_root[:3, :3] for pose in poses])
    problem = TurnProblem(small, find_parts(t), face, pictures, spread, template is not None, turned)
    stance, offset = np.zeros((len(t.joint_names), 3)), np.zeros(np.shape(t.vertices))
    estimate = TurnEstimate(small.values.copy(), pictures[0].camera, stance, poses, offset)
    return problem, estimate, footage, rows, small


def _fit(problem: TurnProblem, estimate: TurnEstimate, body: BodyModel, progress: Progress) -> tuple[TurnEstimate, ShapeReport]:
    """Stages 2 to 4."""
    fixed = problem.fixed_shape
    plan: list[tuple[str, int, int | None, bool]] = [
        ("outline", 5, None, fixed), ("outline", 5, None, fixed), ("colours", 3, 0, fixed), ("colours", 3, 1, fixed),
    ]  # fmt: skip
    if not fixed:
        plan += [("offsets", 2, 1, True), ("offsets", 3, 2, True)]
    else:
        plan += [("colours", 2, 2, True)]
    totals: dict[str, int] = {}
    for name, iterations, _, _ in plan:
        totals[name] = totals.get(name, 0) + iterations
    done = dict.fromkeys(totals, 0)
    start, basis = estimate, body.identity_basis(estimate.values)
    report = ShapeReport(np.inf, np.nan, np.nan, np.nan, np.nan)
    for n, (name, iterations, level, dressed) in enumerate(plan):
        if n in (1, 2) and not fixed:  # the shape has moved far enough for its derivative to differ
            basis = body.identity_basis(estimate.values)
        if name == "offsets":
            for _ in range(2):
                estimate = fit_offsets(problem, estimate, level if n > 4 else None)

        def tick(name: str = name) -> None:
            done[name] += 1
            progress(name, done[name], totals[name])

        estimate, report = problem.fit(estimate, basis, iterations, level, dressed, tick)
        if not problem.held and problem.wanders(estimate):
            problem.held = True
            return _fit(problem, start, body, progress)
    return estimate, report


def _own_landmarks(problem: TurnProblem, estimate: TurnEstimate, rig: PosedRig, poses: tuple[Pose, ...]) -> FacePoints:
    """Landmarks where this person's frontal pictures show them."""
    points = problem.face.points(rig.points)
    frontal = []
    for k, pose in enumerate(poses):
        seen = problem.seen(k, estimate)
        if seen.landmark_score >= 0.3 and abs(azimuth_of(pose.T_camera_root)) <= FRONTAL_ENOUGH:
            frontal.append((rig.place(points, pose), seen.camera, seen.landmarks))
    return personal_points(frontal, problem.face)


def as_body(template: RiggedTemplate) -> BodyModel:
    """A template whose shape is given, as a body model without shape parameters."""
    none = np.zeros(0)
    vertices, joints = np.asarray(template.vertices, dtype=np.float64), np.asarray(template.joints, dtype=np.float64)
    landmarks = find_landmarks(template)
    identity = Identity((), none, none, none, none)
    return BodyModel("template", template, identity, none, lambda _: (vertices[None], joints[None]), landmarks)


def _anny() -> BodyModel:
    from threevp_nerfstudio.body.anny_body import anny_body

    return anny_body()


def _name(body: BodyModel, given: RiggedTemplate | None) -> str:
    return body.template.body_model if given is not None else f"{body.template.body_model} fitted to a turn"


def _full_camera(working: PinholeCamera, full: PinholeCamera) -> PinholeCamera:
    """The refined camera for the footage's own pictures."""
    zoom = full.width / working.width
    stretch = working.fy / working.fx * (full.height / working.height) / zoom
    return replace(full, fx=working.fx * zoom, fy=working.fx * zoom * stretch)


def mean_stance(fitted: FittedTemplate) -> Float[Array, "J 3"]:
    """The body's usual pose during the turn."""
    return fitted.joint_rotations.mean(0)
