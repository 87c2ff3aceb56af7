"""Where eyes and mouth are seen in each frame, from the posed template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from threevp_nerfstudio.body.regions import part_vertices
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.capture.capture import Capture
from threevp_nerfstudio.data.pixels import Box

VISIBLE_COSINE = 0.3
"""Parts count as seen while the face is turned less than about 72 degrees from the camera."""
GROW = {"eye_left": 1.25, "eye_right": 1.25, "mouth": 1.0}
HEAD_RADIUS = 0.12


def part_boxes(capture: Capture) -> list[dict[str, Box]]:
    """For each frame, the picture boxes of the parts that face the camera and lie in the picture."""
    parts = part_vertices(capture.template)
    if not parts:
        return [{} for _ in capture.frames.times]
    posed, head = _posed_parts(capture, parts)
    frames = capture.frames
    boxes: list[dict[str, Box]] = []
    for i, row in enumerate(frames.motion_index):
        camera = frames.camera_to_world[i]
        center = np.mean([v[row].mean(0) for v in posed.values()], axis=0)
        facing, view = center - head[row], camera[:3, 3] - center
        cosine = facing @ view / (np.linalg.norm(facing) * np.linalg.norm(view) + 1e-12)
        seen: dict[str, Box] = {}
        if cosine > VISIBLE_COSINE:
            for name, vertices in posed.items():
                box = _box(vertices[row], camera, frames, i, GROW[name])
                if box is not None:
                    seen[name] = box
        boxes.append(seen)
    return boxes


def _posed_parts(capture: Capture, parts: dict) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Posed vertices (N, n, 3) of each part and the centre of the head (N, 3) for every row of the motion."""
    template, motion = capture.template, capture.motion
    center = np.mean([template.vertices[index].mean(0) for index in parts.values()], axis=0)
    # the head's middle lies behind the face (the rest pose looks along -y)
    skull = np.linalg.norm(template.vertices - (center + [0.0, 0.07, 0.0]), axis=1)
    head = np.flatnonzero(skull < HEAD_RADIUS)
    chosen = np.concatenate([*parts.values(), head])
    split = np.cumsum([len(v) for v in parts.values()])
    pose = _poser(capture, chosen)
    pieces = []
    for start in range(0, len(motion), 64):  # a long capture's heads would not all fit into memory
        *own, skulls = np.split(pose(slice(start, start + 64)), split, axis=1)
        pieces.append((*own, skulls.mean(1)))
    joined = [np.concatenate(piece) for piece in zip(*pieces, strict=True)]
    return dict(zip(parts, joined[:-1], strict=True)), joined[-1]


def _poser(capture: Capture, chosen: np.ndarray) -> Callable[[slice], np.ndarray]:
    """Posed positions (n, len(chosen), 3) of some vertices for rows of the motion."""
    template, motion = capture.template, capture.motion
    if motion.vertices is not None:
        return lambda rows: motion.vertices[rows][:, chosen]
    small = replace(
        template,
        vertices=template.vertices[chosen],
        faces=np.zeros((0, 3), dtype=np.int32),
        face_regions=np.zeros(0, dtype=np.uint8),
        skin_weights=template.skin_weights[chosen],
        expression_basis=template.expression_basis[:, chosen],
        pose_basis=None if template.pose_basis is None else template.pose_basis[:, chosen],
    )
    rig = Rig.from_template(small)

    @torch.no_grad()
    def pose(rows: slice) -> np.ndarray:
        tables = (motion.joint_rotations, motion.root_translation, motion.expression)
        return rig.pose(*(torch.from_numpy(np.asarray(x[rows], dtype=np.float32)) for x in tables)).numpy()

    return pose


def _box(vertices: np.ndarray, camera: np.ndarray, frames, i: int, grow: float) -> Box | None:
    local = (vertices - camera[:3, 3]) @ camera[:3, :3]
    depth = -local[:, 2]
    if (depth < 1e-3).any():
        return None
    x = frames.focal[i, 0] * local[:, 0] / depth + frames.principal_point[i, 0]
    y = -frames.focal[i, 1] * local[:, 1] / depth + frames.principal_point[i, 1]
    cx, cy = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
    half_w, half_h = (x.max() - x.min()) / 2 * grow, (y.max() - y.min()) / 2 * grow
    w, h = frames.size[i]
    box = (max(cx - half_w, 0.0), max(cy - half_h, 0.0), min(cx + half_w, w - 1.0), min(cy + half_h, h - 1.0))
    return box if box[2] - box[0] >= 1 and box[3] - box[1] >= 1 else None
