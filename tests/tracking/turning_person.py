"""A small synthetic subject on a turning chair, rendered from vertex colours, for tests of the tracker."""

from __future__ import annotations

import numpy as np
import torch

from threevp_nerfstudio.capture.demo_person import demo_template
from threevp_nerfstudio.kernels.raycast import RayMesh
from threevp_nerfstudio.tracking.appearance import gather, sight
from threevp_nerfstudio.tracking.evidence import evidence
from threevp_nerfstudio.tracking.fitted import FittedTemplate
from threevp_nerfstudio.tracking.footage import Footage, PinholeCamera
from threevp_nerfstudio.tracking.lighting import EVEN
from threevp_nerfstudio.tracking.posing import Pose, PosedRig
from threevp_nerfstudio.tracking.turn import Chair
from threevp_nerfstudio.tracking.upright import summary_of_turn
from threevp_nerfstudio.tracking.visibility import Observer

SIZE = 128
CAMERA = PinholeCamera(3.3 * SIZE, 3.3 * SIZE, SIZE / 2, SIZE / 2, SIZE, SIZE)
CHAIR = Chair(np.eye(3), np.array([0.0, 0.03, 1.7]), np.array([0.0, 0.0, 0.85]))
LANDMARKS = 40


def person():
    """Template, rig and a colour per vertex with detail everywhere."""
    template = demo_template(48)
    v = np.asarray(template.vertices, dtype=np.float64)
    rng = np.random.default_rng(3)
    colours = np.full((len(v), 3), 0.5)
    for _ in range(16):
        wave = rng.normal(size=3) * 60
        colours += 0.06 * np.sin(v @ wave + rng.uniform(0, 6))[:, None] * rng.normal(size=3)
    return template, PosedRig(template), np.clip(colours, 0.05, 0.95)


def pose_at(rig: PosedRig, azimuth: float, **changes) -> Pose:
    pose = Pose(CHAIR.pose(azimuth), np.zeros((len(rig.joints), 3)), np.zeros(len(rig.points.basis)))
    for joint, turn in changes.get("joints", {}).items():
        pose.rotations[joint] = turn
    for channel, value in changes.get("channels", {}).items():
        pose.expression[channel] = value
    return pose


def landmark_vertices(template) -> np.ndarray:
    """Vertices of the face that play the landmarks, spread evenly."""
    moves = np.linalg.norm(template.expression_basis, axis=-1).max(0)
    v = template.vertices
    face = np.flatnonzero((v[:, 1] < -0.05) & (v[:, 2] > 0.79) & (v[:, 2] < 0.95) & (moves < 0.05))
    return face[np.linspace(0, len(face) - 1, LANDMARKS).astype(int)]


def render(template, rig: PosedRig, colours: np.ndarray, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Picture on grey, and matte; twice supersampled."""
    x = rig.place(rig.points, pose).camera
    mesh = RayMesh(torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(np.asarray(template.faces)))
    n = 2 * SIZE
    u = (np.arange(n) + 0.5 - n / 2) / (2 * CAMERA.fx)
    grid = np.stack([*np.meshgrid(u, u), np.ones((n, n))], -1).reshape(-1, 3)
    hits = mesh.cast(torch.eye(4), torch.as_tensor(grid, dtype=torch.float32))
    face, bary, found = hits.face.numpy(), hits.barycentric.numpy(), hits.found.numpy()
    rgb = np.full((n * n, 3), 0.5)
    rgb[found] = np.einsum("nk,nkc->nc", bary[found], colours[np.asarray(template.faces)[face[found]]])
    picture = rgb.reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3))
    matte = found.reshape(SIZE, 2, SIZE, 2).mean((1, 3))
    return (picture * 255).round().astype(np.uint8), (matte * 255).round().astype(np.uint8)


def film(template, rig: PosedRig, colours: np.ndarray, poses: list[Pose], static: np.ndarray) -> Footage:
    """The poses as footage, at 30 pictures a second, with exact landmarks where the face looks at the camera."""
    pictures = [render(template, rig, colours, p) for p in poses]
    chosen = landmark_vertices(template)
    landmarks = np.full((len(poses), LANDMARKS, 2), np.nan)
    for n, pose in enumerate(poses):
        x = rig.place(rig.points.take(chosen), pose).camera
        if pose.T_camera_root[2, 1] > 0.5:  # the camera looks along the template's +y: at the face
            landmarks[n] = CAMERA.fx * x[:, :2] / x[:, 2:] + np.array([CAMERA.cx, CAMERA.cy])
    return Footage(
        rgb=np.stack([p for p, _ in pictures]),
        alpha=np.stack([m for _, m in pictures]),
        times=np.arange(len(poses)) / 30,
        static=static,
        camera=CAMERA,
        landmarks=landmarks,
        landmark_score=np.isfinite(landmarks).all((1, 2)).astype(np.float64),
    )


def exactly_fitted(template, rig: PosedRig, footage: Footage, poses: list[Pose]) -> FittedTemplate:
    """What a perfect fit to the turn would have given."""
    rows = np.flatnonzero(footage.static)
    observer = Observer(rig.points.rest, np.asarray(template.faces))
    sights = []
    for i in rows:
        picture = evidence(footage, int(i), SIZE)
        x = rig.place(rig.points, poses[i]).camera
        sights.append(sight(picture, x, observer.look(x, picture.camera, with_outline=False)))
    looks = gather(sights)
    chosen = landmark_vertices(template)
    T = np.array([poses[i].T_camera_root for i in rows])
    return FittedTemplate(
        template=template,
        texture=None,
        albedo=looks.albedo[-1].astype(np.float32),
        blurred_albedo=looks.albedo.astype(np.float32),
        albedo_trust=looks.trust.astype(np.float32),
        lighting=EVEN.copy(),
        landmark_ids=np.arange(LANDMARKS),
        landmark_corners=np.repeat(chosen[:, None], 3, axis=1),
        landmark_bary=np.tile([1.0, 0.0, 0.0], (LANDMARKS, 1)),
        landmark_offset=np.zeros((LANDMARKS, 3)),
        landmark_noise=np.full(LANDMARKS, 1e-3),
        camera=footage.camera,
        frames=rows,
        T_camera_root=T,
        joint_rotations=np.array([poses[i].rotations for i in rows]),
        turn=summary_of_turn(T),
        report={"photometric": 0.01, "silhouette_iou": 0.98},
    )
