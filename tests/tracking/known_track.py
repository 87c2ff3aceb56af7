"""The exact track of a generated capture in the tracker's own classes, so that everything after tracking can be tested without it."""

from __future__ import annotations

import numpy as np

from threevp_nerfstudio.capture.capture import Capture, load_capture, read_rgba
from threevp_nerfstudio.tracking.fitted import FittedTemplate, Turn
from threevp_nerfstudio.tracking.footage import Footage, PinholeCamera
from threevp_nerfstudio.tracking.trajectory import OPENGL_FROM_OPENCV, Track


def known_track(directory) -> tuple[Footage, FittedTemplate, Track]:
    """Footage, template and track of the training and validation frames."""
    capture: Capture = load_capture(directory)
    frames = capture.frames.select(np.flatnonzero(capture.frames.split != "test"))
    rgba = np.stack([read_rgba(frames, i) for i in range(len(frames))])
    N, height, width = rgba.shape[:3]
    (fx, fy), (cx, cy) = frames.focal[0], frames.principal_point[0]
    camera = PinholeCamera(float(fx), float(fy), float(cx), float(cy), width, height)
    static = frames.sequence == "static"
    times = np.arange(N) / capture.fps
    footage = Footage(
        rgb=np.ascontiguousarray(rgba[..., :3]),
        alpha=np.ascontiguousarray(rgba[..., 3]),
        times=times,
        static=static,
        camera=camera,
        landmarks=np.full((N, 478, 2), np.nan),
        landmark_score=np.zeros(N),
    )
    T = np.linalg.inv(frames.camera_to_world @ np.linalg.inv(OPENGL_FROM_OPENCV))
    template, motion, rows = capture.template, capture.motion, frames.motion_index
    V, K = len(template.vertices), int(static.sum())
    fitted = FittedTemplate(
        template=template,
        texture=None,
        albedo=np.full((V, 3), 0.6),
        blurred_albedo=np.full((1, V, 3), 0.6),
        albedo_trust=np.ones(V),
        lighting=np.zeros((9, 3)),
        camera=camera,
        landmark_ids=np.zeros(0, dtype=np.int64),
        landmark_corners=np.zeros((0, 3), dtype=np.int64),
        landmark_bary=np.zeros((0, 3)),
        landmark_offset=np.zeros((0, 3)),
        landmark_noise=np.zeros(0),
        frames=np.flatnonzero(static),
        T_camera_root=T[static],
        joint_rotations=motion.joint_rotations[rows[static]].astype(np.float64),
        turn=Turn(direction=1, covered=2 * np.pi, widest_gap=0.3),
    )
    assert K and not motion.root_translation[rows].any()
    track = Track(
        times=times,
        T_camera_root=T,
        joint_rotations=motion.joint_rotations[rows].astype(np.float64),
        expression=motion.expression[rows].astype(np.float64),
        confidence=np.ones((N, 2)),
        silhouette_iou=np.full(N, 0.95),
        photometric_error=np.full(N, 0.05),
        landmark_error_px=np.full(N, np.nan),
        lost=np.zeros(N, dtype=bool),
        restarted=np.zeros(N, dtype=bool),
    )
    return footage, fitted, track
