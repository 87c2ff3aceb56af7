"""Which vertices the camera sees, what the template covers, and where its outline is."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from threevp_nerfstudio.body.mesh import border_vertices, edges_of, face_normals, vertex_normals
from threevp_nerfstudio.kernels.raster import covered
from threevp_nerfstudio.kernels.raycast import RayMesh
from threevp_nerfstudio.tracking.evidence import project
from threevp_nerfstudio.tracking.footage import PinholeCamera

TOLERANCE = 0.0015
"""Metres that a surface may lie in front of a vertex and not hide it: neighbours of a vertex on the same skin do."""


@dataclass(frozen=True)
class View:
    """The posed template as one camera sees it."""

    visible: Bool[Array, "V"]
    facing: Float[Array, "V"]
    """Cosine between the normal and the direction to the camera."""
    normals: Float[Array, "V 3"]
    """Camera axes."""
    covered: Bool[Array, "h w"]
    """What the template covers, on a grid `coarseness` times as coarse as the pictures."""
    outline: Int[Array, "n 2"]
    """Pairs of vertices whose middle lies on the outline."""


class Observer:
    """Looks at one template's mesh in any pose. Reuses its bounding volumes: only the vertices move."""

    def __init__(self, vertices: Float[Array, "V 3"], faces: Int[Array, "F 3"], coarseness: int = 2) -> None:
        self.faces = faces.astype(np.int64)
        self.coarseness = coarseness
        self.mesh = RayMesh(torch.as_tensor(vertices, dtype=torch.float32), torch.as_tensor(self.faces))
        self.edges, face_edges = edges_of(self.faces)
        flat = face_edges.reshape(-1)
        order = np.argsort(flat, kind="stable")
        count = np.bincount(flat, minlength=len(self.edges))
        first = np.cumsum(count) - count
        self.paired = np.flatnonzero(count == 2)
        self.sides = np.stack([order[first[self.paired]] // 3, order[first[self.paired] + 1] // 3], axis=1)
        self.border = border_vertices(self.faces, len(vertices))

    def look(self, x: Float[Array, "V 3"], camera: PinholeCamera, with_outline: bool = True) -> View:
        """The template with its vertices at `x` in camera axes."""
        self.mesh.update(torch.as_tensor(x, dtype=torch.float32))
        of_faces = face_normals(x, self.faces)
        normals = vertex_normals(x, self.faces, of_faces)
        distance = np.linalg.norm(x, axis=1)
        facing = -(normals * x).sum(1) / np.maximum(distance, 1e-9)
        xy, _ = project(camera, x)
        inside = (xy > 0).all(1) & (xy[:, 0] < camera.width) & (xy[:, 1] < camera.height) & (x[:, 2] > 0.05)
        visible = inside & (facing > 0.05)
        rows = np.flatnonzero(visible)
        if len(rows):
            hits = self.mesh.cast(torch.eye(4), torch.as_tensor(x[rows], dtype=torch.float32))
            visible[rows] = hits.distance.numpy() > distance[rows] - TOLERANCE / np.maximum(facing[rows], 0.2)
        if not with_outline:
            return View(visible, facing, normals, np.zeros((0, 0), dtype=bool), np.zeros((0, 2), dtype=np.int64))
        xy[x[:, 2] <= 0] = np.nan
        height, width = camera.height // self.coarseness, camera.width // self.coarseness
        cover = covered(torch.from_numpy(xy / self.coarseness).float(), self.mesh.faces, height, width).numpy()
        return View(visible, facing, normals, cover, self._outline(x, of_faces, camera, cover))

    def _outline(
        self, x: Float[Array, "V 3"], of_faces: Float[Array, "F 3"], camera: PinholeCamera, cover: Bool[Array, "h w"]
    ) -> Int[Array, "n 2"]:
        """Edges between a face that looks at the camera and one that looks away, on the border of what is covered."""
        front = np.einsum("fc,fc->f", of_faces, x[self.faces[:, 0]]) < 0
        turning = front[self.sides[:, 0]] != front[self.sides[:, 1]]
        edges = self.edges[self.paired[turning]]
        edges = edges[~self.border[edges].any(1)]
        middle, _ = project(camera, x[edges].mean(1))
        step = self.coarseness
        own = edge_distance(cover)
        h, w = cover.shape
        i = np.clip((middle / step).astype(np.int64), 0, np.array([w, h]) - 1)
        margin = 2.0
        within = (middle > margin).all(1) & (middle[:, 0] < camera.width - margin) & (middle[:, 1] < camera.height - margin)
        return edges[within & (own[i[:, 1], i[:, 0]] < 1.2)]


def edge_distance(cover: Bool[Array, "h w"]) -> Float[Array, "h w"]:
    """Pixels from each pixel's centre to the edge of what is covered; the picture's border is none."""
    inside = cover.astype(np.uint8)
    return np.where(cover, cv2.distanceTransform(inside, cv2.DIST_L2, 5), cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)) - 0.5


def overlap(cover: Bool[Array, "h w"], matte: Float[Array, "H W"], coarseness: int) -> float:
    """Intersection over union of what the template covers and the matte."""
    h, w = cover.shape
    coarse = matte[: h * coarseness, : w * coarseness].reshape(h, coarseness, w, coarseness).mean((1, 3)) > 0.5
    union = int((cover | coarse).sum())
    return 1.0 if union == 0 else float((cover & coarse).sum() / union)
