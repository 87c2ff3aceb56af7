"""The posed template over the pictures: outline, shading by lighting, and the face's landmarks."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.body.mesh import vertex_normals
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.capture.cameras import pixel_directions
from threevp_nerfstudio.kernels.raycast import RayMesh
from threevp_nerfstudio.tracking.fitted import FittedTemplate
from threevp_nerfstudio.tracking.footage import Footage, PinholeCamera
from threevp_nerfstudio.tracking.trajectory import Track
from threevp_nerfstudio.workers import shared

OUTLINE, LOST = (30, 220, 90), (235, 50, 40)


class OverlayRenderer:
    """Draws the tracked template as its colours, seen through the fitted camera."""

    def __init__(self, fitted: FittedTemplate, track: Track, width: int, height: int) -> None:
        self.fitted, self.found = fitted, track
        self.rig = Rig.from_template(fitted.template)
        self.mesh = RayMesh(self.rig.vertices, self.rig.faces)
        self.size = (width, height)
        camera: PinholeCamera = fitted.camera
        K = np.diag([width / camera.width, height / camera.height, 1.0]) @ camera.matrix
        directions = pixel_directions(K, np.array(camera.distortion), width, height)
        self.directions = torch.as_tensor(directions.reshape(-1, 3), dtype=torch.float32)
        self.cameras = track.camera_to_world()

    def posed(self, i: int) -> Float[Array, "V 3"]:
        """Vertices of picture `i`, world frame."""
        rotations = torch.as_tensor(self.found.joint_rotations[[i]], dtype=torch.float32)
        expression = torch.as_tensor(self.found.expression[[i]], dtype=torch.float32)
        return self.rig.pose(rotations, torch.zeros(1, 3), expression)[0].numpy()

    def render(self, i: int) -> tuple[UInt8[Array, "h w 3"], Bool[Array, "h w"]]:
        """The template in its own colours with a little shading, and what it covers."""
        posed = self.posed(i)
        self.mesh.update(torch.as_tensor(posed))
        hits = self.mesh.cast(torch.as_tensor(self.cameras[i]), self.directions)
        found = hits.found.numpy()
        corners = self.fitted.template.faces[hits.face.numpy()[found]]
        bary = hits.barycentric.numpy()[found]
        colour = np.einsum("nk,nkc->nc", bary, self.fitted.albedo[corners])
        normals = np.einsum("nk,nkc->nc", bary, vertex_normals(posed.astype(np.float64), self.fitted.template.faces)[corners])
        facing = (normals @ self.cameras[i][:3, 2]).clip(0.0, 1.0) / np.linalg.norm(normals, axis=1).clip(1e-9)
        picture = np.full((len(found), 3), 255.0)
        picture[found] = 255 * colour * (0.45 + 0.55 * facing)[:, None]
        width, height = self.size
        return picture.clip(0, 255).astype(np.uint8).reshape(height, width, 3), found.reshape(height, width)


def outlined(
    picture: UInt8[Array, "H W 3"], covered: Bool[Array, "h w"], lost: bool = False, landmarks: Float[Array, "L 2"] | None = None
) -> UInt8[Array, "H W 3"]:
    """The picture with the template's outline (red where the picture is lost), and landmarks as dots."""
    h, w = picture.shape[:2]
    mask = cv2.resize(covered.astype(np.uint8), (w, h), interpolation=cv2.INTER_LINEAR)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    drawn = picture.copy()
    cv2.drawContours(drawn, contours, -1, LOST if lost else OUTLINE, max(1, round(w / 320)), cv2.LINE_AA)
    if landmarks is not None and np.isfinite(landmarks).all():
        for x, y in landmarks[::4]:
            cv2.circle(drawn, (int(x), int(y)), 1, (255, 220, 0), -1)
    return drawn


def overlays(footage: Footage, fitted: FittedTemplate, track: Track, longest: int = 256) -> Iterator[UInt8[Array, "H W2 3"]]:
    """Per picture: outline and landmarks on the left, the posed template on the right."""
    height, width = footage.rgb.shape[1:3]
    scale = min(1.0, longest / max(width, height))
    renderer = OverlayRenderer(fitted, track, round(width * scale), round(height * scale))

    def drawn(i: int) -> UInt8[Array, "H W2 3"]:
        look, covered = renderer.render(i)
        used = footage.landmarks[i] if np.isfinite(track.landmark_error_px[i]) else None
        left = outlined(np.asarray(footage.rgb[i]), covered, bool(track.lost[i]), used)
        return np.concatenate([left, cv2.resize(look, (width, height), interpolation=cv2.INTER_LINEAR)], axis=1)

    return shared(range(len(track)), lambda: drawn)
