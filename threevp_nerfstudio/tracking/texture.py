"""Bake the template's texture from the pictures of the turn: each texel from the views that see it most squarely."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array
from scipy.ndimage import distance_transform_edt

from threevp_nerfstudio.body.bake import texels
from threevp_nerfstudio.body.labels import face_colours, faces_in
from threevp_nerfstudio.tracking.evidence import project
from threevp_nerfstudio.tracking.footage import Footage, PinholeCamera
from threevp_nerfstudio.tracking.lighting import harmonics
from threevp_nerfstudio.tracking.parts import INNER
from threevp_nerfstudio.tracking.posing import Pose, PosedRig
from threevp_nerfstudio.tracking.visibility import Observer
from threevp_nerfstudio.workers import shared

SHARPNESS = 6
"""Power of the cosine of the viewing angle: how strongly the best view wins over the others."""


def bake_texture(
    rig: PosedRig,
    template,
    footage: Footage,
    camera: PinholeCamera,
    frames: Array,
    poses: tuple[Pose, ...],
    lighting: Array,
    size: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> UInt8[Array, "S S 3"] | None:
    """Albedo of the template, or None where it has no texture coordinates. `camera` is that of the footage's full pictures.

    Texels that no picture shows take the colour of the nearest that one does; mouth and eyes' insides, plain colours.
    """
    if template.uvs is None:
        return None
    at, face, bary = texels(template, size)
    corners = np.asarray(template.faces, dtype=np.int64)[face]
    observer = Observer(rig.points.rest, template.faces)
    total, weight = np.zeros((len(at), 3)), np.full(len(at), 1e-12)

    def look(n: int) -> tuple[Array, Array, Array]:
        x = rig.place(rig.points, poses[n]).camera
        view = observer.look(x, camera, with_outline=False)
        rows = np.flatnonzero(view.visible[corners].all(1))
        points = np.einsum("nk,nkc->nc", bary[rows], x[corners[rows]])
        normals = np.einsum("nk,nkc->nc", bary[rows], view.normals[corners[rows]])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-9)
        facing = -(normals * points).sum(1) / np.linalg.norm(points, axis=1)
        colours, alpha = _colours(footage, int(frames[n]), camera, points)
        w = np.clip(facing, 0, 1) ** SHARPNESS * (alpha > 0.98)
        return rows, w, colours / np.maximum(harmonics(normals) @ lighting, 0.2)

    for n, (rows, w, colours) in enumerate(shared(range(len(poses)), lambda: look)):
        total[rows] += w[:, None] * colours
        weight[rows] += w
        progress(n + 1, len(frames))
    return _filled(template, size, at, face, total / weight[:, None], weight > 1e-3)


def _colours(footage: Footage, i: int, camera: PinholeCamera, points: Array) -> tuple[Array, Array]:
    """Colours and matte of the full picture at points in camera axes."""
    if any(footage.camera.distortion):
        K = camera.matrix
        xy = cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, np.array(footage.camera.distortion))[0][:, 0]
    else:
        xy, _ = project(camera, points)
    xy = (xy - 0.5).astype(np.float32)
    out = []
    for picture in (footage.rgb[i], footage.alpha[i]):
        flat = []
        for part in np.array_split(xy, max(1, -(-len(xy) // 30000))):  # OpenCV remaps at most 32767 rows at once
            flat.append(cv2.remap(np.asarray(picture), part[:, None, 0], part[:, None, 1], cv2.INTER_LINEAR)[:, 0])
        out.append(np.concatenate(flat).astype(np.float64) / 255)
    return out[0], out[1]


def _filled(template, size: int, at: Array, face: Array, colours: Array, known: Array) -> UInt8[Array, "S S 3"]:
    picture = np.zeros((size, size, 3))
    painted = np.zeros((size, size), dtype=bool)
    picture[tuple(at[known].T)] = colours[known] * 255
    painted[tuple(at[known].T)] = True
    inner = faces_in(template, INNER)[face] & ~known
    picture[tuple(at[inner].T)] = face_colours(template)[face[inner]]
    painted[tuple(at[inner].T)] = True
    if not painted.any():
        return picture.astype(np.uint8)
    nearest = distance_transform_edt(~painted, return_distances=False, return_indices=True)
    return np.clip(picture[tuple(nearest)], 0, 255).astype(np.uint8)



