"""Projection inverts the rays, with distortion as well."""

from __future__ import annotations

import numpy as np
import pytest

from threevp_nerfstudio.capture.cameras import pixel_directions, project
from threevp_nerfstudio.capture.demo_script import orbit_camera

K = np.array([[90.0, 0, 31.0], [0, 92.0, 23.5], [0, 0, 1]])


@pytest.mark.parametrize("distortion", [(0, 0, 0, 0), (-0.2, 0.05, 0.002, -0.003)])
@pytest.mark.parametrize("depth", [0.3, 4.0])
def test_points_on_the_rays_project_to_their_pixel_centres(distortion: tuple[float, ...], depth: float) -> None:
    distortion = np.array(distortion, dtype=np.float64)
    T_world_camera = orbit_camera(np.array([0.1, 0.2, 0.9]), 1.5, yaw=0.8, elevation=0.3)
    rays = pixel_directions(K, distortion, 64, 48).reshape(-1, 3)
    points = (depth * rays) @ T_world_camera[:3, :3].T + T_world_camera[:3, 3]
    pixels, depths = project(points, T_world_camera, K, distortion)
    x, y = np.meshgrid(np.arange(64) + 0.5, np.arange(48) + 0.5)
    np.testing.assert_allclose(pixels, np.stack([x.ravel(), y.ravel()], -1), atol=1e-4)
    np.testing.assert_allclose(depths, depth, rtol=1e-9)


@pytest.mark.parametrize(("yaw", "elevation"), [(0.0, 0.0), (1.2, 0.4), (-3.0, -0.25)])
def test_an_orbiting_camera_looks_at_its_target_from_where_it_was_asked_to(yaw: float, elevation: float) -> None:
    target = np.array([0.1, -0.2, 0.85])
    T = orbit_camera(target, 2.0, yaw, elevation)
    np.testing.assert_allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(T[:3, 3] - 2.0 * T[:3, 2], target, atol=1e-12)
    offset = T[:3, 3] - target
    np.testing.assert_allclose(np.arctan2(offset[0], -offset[1]), yaw, atol=1e-12)
    np.testing.assert_allclose(np.arcsin(offset[2] / 2.0), elevation, atol=1e-12)
    assert abs(T[2, 0]) < 1e-12  # upright


def test_a_point_behind_the_camera_has_no_positive_depth() -> None:
    T = orbit_camera(np.zeros(3), 1.0)
    _, depth = project(T[None, :3, 3] + T[None, :3, 2], T, K, np.zeros(4))
    assert depth[0] < 0
