"""Rays through some pixels of a frame's picture, whatever size that was reduced to."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from numpy import ndarray as Array

from threevp_nerfstudio.capture.capture import Capture
from threevp_nerfstudio.data.dataparser import cameras_of


def rays_through(capture: Capture, frame: int, places: Float[Array, "R 2"], size: tuple[int, int]) -> RayBundle:
    """`places` (row and column) in a picture of `size` (width, height), brought to the frame's own size: rounding of a reduced size would
    be another focal length."""
    camera = cameras_of(capture, np.array([frame]))
    width, height = size
    scale = np.array([float(camera.height) / height, float(camera.width) / width])
    return camera.generate_rays(camera_indices=0, coords=torch.from_numpy(places * scale).float())
