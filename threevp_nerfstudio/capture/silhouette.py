"""The silhouette of the posed template against the matte: how well a track fits, without its colours."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray as Array
from torch import Tensor

from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.template import Motion, RiggedTemplate
from threevp_nerfstudio.capture.cameras import intrinsic_matrix, project
from threevp_nerfstudio.capture.frames import Frames
from threevp_nerfstudio.kernels.raster import covered


class PosedTemplate:
    """A template that plays its motion, and can be looked at through the cameras of a capture."""

    def __init__(self, template: RiggedTemplate, motion: Motion) -> None:
        self.motion = motion
        self.rig = Rig.from_template(template)
        self._row, self._posed = -1, np.zeros((0, 3))

    def vertices(self, row: int) -> Float[Tensor, "V 3"]:
        """Posed vertices of a row of the motion, metres, world frame."""
        if not self.motion.rigged:
            return torch.as_tensor(self.motion.vertices[row])
        parts = (self.motion.joint_rotations, self.motion.root_translation, self.motion.expression)
        return self.rig.pose(*(torch.as_tensor(part[[row]]) for part in parts))[0]

    def silhouette(self, frames: Frames, i: int, width: int, height: int) -> Bool[Array, "h w"]:
        """What the template covers in frame `i`, sampled at the centres of `width` x `height` pixels."""
        row = int(frames.motion_index[i])
        if row != self._row:
            self._row, self._posed = row, self.vertices(row).double().numpy()
        K = np.diag([width / frames.size[i, 0], height / frames.size[i, 1], 1.0]) @ intrinsic_matrix(frames, i)
        return silhouette(self._posed, self.rig.faces, frames.camera_to_world[i], K, frames.distortion[i], width, height)


def silhouette(
    points: Float[Array, "V 3"], faces: Int[Tensor, "F 3"], camera_to_world: Float[Array, "4 4"], K: Float[Array, "3 3"],
    distortion: Float[Array, "4"], width: int, height: int,
) -> Bool[Array, "h w"]:  # fmt: skip
    """What a mesh covers, sampled at the centres of `width` x `height` pixels, which `K` is for."""
    xy, depth = project(points, camera_to_world, K, distortion)
    xy[depth <= 0] = np.nan
    return covered(torch.from_numpy(xy).float(), faces, height, width).numpy()


def reduced_size(frames: Frames, i: int, longest: int) -> tuple[int, int]:
    """Width and height of frame `i` with the longer side at most `longest` pixels."""
    w, h = (int(n) for n in frames.size[i])
    scale = min(1.0, longest / max(w, h))
    return max(1, round(w * scale)), max(1, round(h * scale))


def matte_at(rgba: UInt8[Array, "H W 4"], width: int, height: int) -> Bool[Array, "h w"]:
    """The matte, averaged down to `width` x `height` and cut at one half."""
    return cv2.resize(rgba[..., 3], (width, height), interpolation=cv2.INTER_AREA) > 127


def iou(a: Bool[Array, "*s"], b: Bool[Array, "*s"]) -> float:
    """Intersection over union; 1 where both are empty."""
    union = int((a | b).sum())
    return 1.0 if union == 0 else float((a & b).sum() / union)
