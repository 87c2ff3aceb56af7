"""Carving of the shell by the mattes (shape from silhouette, in canonical space).

A canonical cell is at a known place in every frame. Where several frames show background there, the cell is empty, and
no network has to learn it: samples start close to the subject, and there is no fog beside it. Tracks are not perfect
and hair moves, so single frames do not decide. Cells that no frame has in the picture are empty too: nothing can be
learned there, and what is not learned must not show from other cameras.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from threevp_nerfstudio.capture.cameras import intrinsic_matrix, project
from threevp_nerfstudio.capture.capture import Capture, read_rgba, yaw_deg
from threevp_nerfstudio.disk_cache import cached
from threevp_nerfstudio.geometry.surface_frames import MAX_OFFSET_GROWTH
from threevp_nerfstudio.kernels.mesh_query import MeshQuery
from threevp_nerfstudio.kernels.surface import vertex_maps
from threevp_nerfstudio.model.canonical import CanonicalTemplate
from threevp_nerfstudio.model.performance import Performance

YAW_SECTORS = 48
EMPTY_SHARE = 0.05
"""Of the frames that have a cell in the picture; as many must show background there."""
SLACK_PX = 1.5
"""How far a matte's edge may be off."""


@dataclass(frozen=True)
class AnchoredPoints:
    """Canonical points as offsets from the template's surface, so that they can be taken to any pose."""

    corners: Int[Array, "N 3"]
    """Vertices of the nearest triangle."""
    bary: Float[Array, "N 3"]
    offset: Float[Array, "N 3"]

    @classmethod
    def of(cls, points: Float[Array, "N 3"], vertices: Float[Array, "V 3"], faces: Int[Array, "F 3"]) -> AnchoredPoints:
        mesh = MeshQuery(vertices, faces)
        hits = mesh.nearest(points)
        offset = points - mesh.at(hits)
        return cls(faces[hits.face].astype(np.int64), hits.bary.astype(np.float32), offset.astype(np.float32))

    def posed(self, vertices: Float[Array, "V 3"], maps: Float[Array, "V 3 3"]) -> Float[Array, "N 3"]:
        """Where the points are when the template has these vertices; `maps` are canonical to posed."""
        on_surface = np.einsum("nk,nkd->nd", self.bary, vertices[self.corners])
        moved = np.einsum("nk,nkij,nj->ni", self.bary, maps[self.corners], self.offset, optimize="greedy")
        length = np.linalg.norm(self.offset, axis=-1, keepdims=True) * MAX_OFFSET_GROWTH
        size = np.linalg.norm(moved, axis=-1, keepdims=True)
        return on_surface + moved * np.minimum(length / np.maximum(size, 1e-12), 1.0)


def carving_frames(capture: Capture, seed: int = 0) -> Int[Array, "n"]:
    """Training frames from all sides, one of each yaw sector."""
    train = np.flatnonzero(capture.frames.split == "train")
    sector = np.floor(yaw_deg(capture.frames.camera_to_world[train]) / 360.0 * YAW_SECTORS).astype(int) % YAW_SECTORS
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(train[sector == s])[:1] for s in range(YAW_SECTORS)]
    return np.sort(np.concatenate(chosen))


def empty_cells(
    points: Float[Array, "N 3"],
    cell: float,
    canonical: CanonicalTemplate,
    performance: Performance,
    capture: Capture,
) -> Bool[Array, "N"]:
    """Which canonical cells, given by their centres and side in metres, the mattes show to be empty. Kept on disk for the
    next run on the same pictures, which are told by the sizes and dates of their files."""
    chosen, frames = carving_frames(capture), capture.frames
    paths = [p for i in chosen for p in (frames.image_paths[i], frames.mask_paths[i]) if p is not None]
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    poses = vars(performance.at_frames(torch.from_numpy(chosen).to(canonical.vertices.device))).values()
    tensors = [*canonical.buffers(), *(x for x in poses if isinstance(x, torch.Tensor))]
    cameras = [x[chosen] for x in (frames.camera_to_world, frames.focal, frames.principal_point, frames.distortion)]
    key = (points, cell, *(x.cpu().numpy() for x in tensors), *cameras, repr(stats), EMPTY_SHARE, SLACK_PX)
    return cached("carved", key, lambda: {"empty": _empty_cells(points, cell, canonical, performance, capture)})["empty"]


@torch.no_grad()
def _empty_cells(
    points: Float[Array, "N 3"],
    cell: float,
    canonical: CanonicalTemplate,
    performance: Performance,
    capture: Capture,
) -> Bool[Array, "N"]:
    """Which canonical cells, given by their centres and side in metres, the mattes show to be empty."""
    vertices = canonical.vertices.cpu()
    anchored = AnchoredPoints.of(points, vertices.numpy(), canonical.rig.faces.cpu().numpy())
    seen, empty = np.zeros(len(points), dtype=int), np.zeros(len(points), dtype=int)
    for frame in carving_frames(capture):
        state = performance.at_frames(torch.tensor([int(frame)], device=canonical.vertices.device))
        posed = canonical.posed_vertices(state)[0].cpu()
        maps = vertex_maps(vertices, posed, canonical.rig.faces.cpu(), canonical.row_start.cpu(), canonical.row_faces.cpu())
        inside, background = _against_matte(anchored.posed(posed.numpy(), maps.numpy()), cell, capture, int(frame))
        seen += inside
        empty += background
    return (empty > np.maximum(EMPTY_SHARE * seen, 1)) | (seen == 0)


def _against_matte(
    points: Float[Array, "N 3"], cell: float, capture: Capture, frame: int
) -> tuple[Bool[Array, "N"], Bool[Array, "N"]]:
    """Which points are in the picture, and which of them lie on its background with all of their cell."""
    frames = capture.frames
    K = intrinsic_matrix(frames, frame)
    pixels, depth = project(points, frames.camera_to_world[frame], K, frames.distortion[frame])
    alpha = read_rgba(frames, frame)[..., 3]
    radius = int(np.ceil(0.866 * cell * K[0, 0] / max(float(np.median(depth)), 1e-3) + SLACK_PX))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    subject = cv2.dilate(alpha, kernel) > 12
    h, w = alpha.shape
    x, y = np.floor(pixels).astype(int).T
    # a subject that is cut off by the picture's edge goes on behind it
    inside = (depth > 0) & (x >= radius) & (y >= radius) & (x < w - radius) & (y < h - radius)
    background = np.zeros(len(points), dtype=bool)
    background[inside] = ~subject[y[inside], x[inside]]
    return inside, background
