"""Where the fit of the template begins: how the chair turned, how much of the body is in view, and a mesh fine enough."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.crop import crop, neck_height
from threevp_nerfstudio.body.labels import faces_in
from threevp_nerfstudio.body.mesh import subdivide
from threevp_nerfstudio.body.personal import chosen_faces
from threevp_nerfstudio.errors import TrackError
from threevp_nerfstudio.tracking.face_points import FacePoints
from threevp_nerfstudio.tracking.fitted import azimuth_of
from threevp_nerfstudio.tracking.footage import Footage, PinholeCamera
from threevp_nerfstudio.tracking.posing import Pose
from threevp_nerfstudio.tracking.turn import (
    TRUSTED,
    WORST_FIT,
    Chair,
    TurnPrior,
    find_chair,
    find_turn,
    pose_from_landmarks,
)

FINE = {"scalp": 0.010, "neck": 0.015, "torso": 0.020, "arms": 0.020, "face": 0.007}
"""Longest edge, metres, by region: hair and clothes are carried by offsets and need vertices of their own."""
MOST_TORSO, LEAST_TORSO = 0.5, 0.15
FEWEST = 8
"""Pictures of a turn."""
USUAL_DISTANCE, DISTANCE_TRUST = 1.4, 0.6
"""Metres from the camera at which people usually sit, and how far that counts against a guessed focal length (log scale)."""


def portrait_body(whole: BodyModel, reach: float) -> BodyModel:
    """The body down to `reach` metres below the neck, with enough vertices for hair, clothes and colours."""
    body = crop(whole, float(np.clip(reach, LEAST_TORSO, MOST_TORSO)))
    for region, longest in FINE.items():
        for _ in range(2):
            if not faces_in(body.template, (region,)).any():
                break
            chosen = chosen_faces(body.template, (region,), longest)
            if chosen.mean() < 0.002:
                break
            body = body.remapped(subdivide(body.template.faces.astype(np.int64), chosen, len(body.template.vertices)))
    return body


def face_poses(
    footage: Footage, rows: Int[Array, "n"], points: Float[Array, "m 3"], face: FacePoints
) -> tuple[Float[Array, "n 4 4"], Array]:
    """Rigid pose of the face in each picture, and whether a believable face was found there."""
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    found = np.zeros(len(rows), dtype=bool)
    for n, i in enumerate(rows):
        if footage.landmark_score[i] < 0.3:
            continue
        result = pose_from_landmarks(points, np.asarray(footage.landmarks[i], dtype=np.float64)[face.ids], footage.camera)
        if result is not None:
            poses[n], error = result
            found[n] = error < WORST_FIT
    return poses, found


def turn_rows(footage: Footage) -> Int[Array, "n"]:
    """Pictures of the turn. Raises `TrackError` where they are too few."""
    rows = np.flatnonzero(footage.static)
    if len(rows) < FEWEST:
        raise TrackError(
            f"{len(rows)} pictures of the turn; a template needs a turn of at least {FEWEST}. Check where the turn starts and ends."
        )
    return rows


def start_of_turn(footage: Footage, points: Float[Array, "m 3"], face: FacePoints) -> tuple[TurnPrior, Chair]:
    """The turn and the chair, by the landmarks alone. Raises `TrackError`."""
    rows = turn_rows(footage)
    poses, found = face_poses(footage, rows, points, face)
    azimuth = azimuth_of(poses)
    prior = find_turn(footage.times[rows], azimuth, found)
    off = np.abs((azimuth - prior.at(footage.times[rows]) + np.pi) % (2 * np.pi) - np.pi)
    good = found & (np.abs(azimuth) < TRUSTED) & (off < 0.5)
    if good.sum() < 3:
        raise TrackError("the faces found during the turn do not fit one turn; record one slow turn, or give its start and end.")
    return prior, find_chair(poses[good], points.mean(0))


def turn_frames(footage: Footage, prior: TurnPrior, count: int) -> Int[Array, "K"]:
    """Pictures of the turn, evenly over its azimuth."""
    rows = np.flatnonzero(footage.static)
    azimuth = prior.direction * prior.at(footage.times[rows])
    wanted = np.linspace(azimuth[0], azimuth[-1], min(count, len(rows)))
    return np.unique(rows[np.abs(azimuth[:, None] - wanted).argmin(0)])


def starting_poses(prior: TurnPrior, chair: Chair, times: Float[Array, "K"], joints: int, channels: int) -> tuple[Pose, ...]:
    """A pose for each picture, from the turn alone."""
    return tuple(Pose(chair.pose(float(a)), np.zeros((joints, 3)), np.zeros(channels)) for a in prior.at(times))


def torso_in_view(footage: Footage, chair: Chair, whole: BodyModel) -> float:
    """Metres below the base of the neck that the pictures show, and a little more."""
    camera = footage.camera
    point = np.array([0.0, 0.0, neck_height(whole.template)])
    in_camera = chair.tilt @ np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]) @ (point - chair.centre) + chair.axis
    bottom = (camera.height - camera.cy) / camera.fy * in_camera[2]
    return float(bottom - in_camera[1]) + 0.06


def guessed_camera(footage: Footage, points: Float[Array, "m 3"], face: FacePoints) -> PinholeCamera:
    """The footage's camera with a focal length between its own and the one that puts the face at the usual distance."""
    rows = turn_rows(footage)
    poses, found = face_poses(footage, rows[:: max(1, len(rows) // 24)], points, face)
    if not found.any():
        return footage.camera
    depth = np.median((poses[found] @ np.append(points.mean(0), 1.0))[:, 2])
    usual = np.log(USUAL_DISTANCE / depth)  # the focal length that puts it there, against the footage's
    zoom = float(np.exp(np.clip(usual * DISTANCE_TRUST, -1.2, 1.2)))
    return replace(footage.camera, fx=footage.camera.fx * zoom, fy=footage.camera.fy * zoom)
