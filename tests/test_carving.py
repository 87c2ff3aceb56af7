"""Carving: what the mattes prove to be empty goes, and nothing else does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from threevp_nerfstudio.capture.cameras import intrinsic_matrix, project
from threevp_nerfstudio.capture.capture import load_capture, read_rgba
from threevp_nerfstudio.kernels.surface import vertex_maps
from threevp_nerfstudio.model import carving
from threevp_nerfstudio.model.canonical import CanonicalTemplate
from threevp_nerfstudio.model.carving import AnchoredPoints, carving_frames, empty_cells
from threevp_nerfstudio.model.performance import performance_of


def scene(directory: Path):
    capture = load_capture(directory)
    return capture, CanonicalTemplate(capture.template, None), performance_of(capture)


def around(vertices: np.ndarray, distance: float, count: int = 400) -> np.ndarray:
    rng = np.random.default_rng(0)
    offset = rng.normal(size=(count, 3))
    offset *= distance / np.linalg.norm(offset, axis=1, keepdims=True)
    return (vertices[rng.integers(0, len(vertices), count)] + offset).astype(np.float32)


def test_anchored_points_go_with_the_surface(tiny_capture: Path):
    _, canonical, _ = scene(tiny_capture)
    vertices, faces = canonical.vertices, canonical.rig.faces
    points = around(vertices.numpy(), 0.02)
    anchored = AnchoredPoints.of(points, vertices.numpy(), faces.numpy())
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    turn = turn * torch.det(turn)
    moved = vertices @ turn.T + torch.tensor([0.1, 0.2, -0.3])
    maps = vertex_maps(vertices, moved, faces, canonical.row_start, canonical.row_faces)
    expected = points @ turn.T.numpy() + np.array([0.1, 0.2, -0.3])
    np.testing.assert_allclose(anchored.posed(moved.numpy(), maps.numpy()), expected, atol=2e-4)


def test_the_frames_come_from_all_sides_and_from_training_only(tiny_capture: Path):
    capture, _, _ = scene(tiny_capture)
    chosen = carving_frames(capture)
    assert (capture.frames.split[chosen] == "train").all() and len(np.unique(chosen)) == len(chosen) > 10


def test_the_subject_stays_and_what_is_beside_it_goes(tiny_capture: Path):
    capture, canonical, performance = scene(tiny_capture)
    vertices = canonical.vertices.numpy()
    cell = 0.006
    near = empty_cells(around(vertices, 0.001), cell, canonical, performance, capture)
    far = empty_cells(around(vertices, 0.12), cell, canonical, performance, capture)
    # what no frame has in its picture goes too: the lower rim of the torso
    seen = ever_seen(capture, canonical, performance, around(vertices, 0.001))
    assert near[seen].mean() < 0.02
    assert far.mean() > 0.5


def ever_seen(capture, canonical, performance, points: np.ndarray) -> np.ndarray:
    anchored = AnchoredPoints.of(points, canonical.vertices.numpy(), canonical.rig.faces.numpy())
    seen = np.zeros(len(points), dtype=bool)
    for frame in carving_frames(capture):
        posed = canonical.posed_vertices(performance.at_frames(torch.tensor([int(frame)])))[0]
        maps = vertex_maps(canonical.vertices, posed, canonical.rig.faces, canonical.row_start, canonical.row_faces)
        where = anchored.posed(posed.numpy(), maps.numpy())
        pixels, _ = project(
            where, capture.frames.camera_to_world[frame], intrinsic_matrix(capture.frames, int(frame)), capture.frames.distortion[frame]
        )
        h, w = read_rgba(capture.frames, int(frame)).shape[:2]
        seen |= (pixels > 4).all(1) & (pixels < [w - 4, h - 4]).all(1)
    return seen


def test_carving_is_kept_until_a_picture_changes(tiny_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = shutil.copytree(tiny_capture, tmp_path / "capture")
    capture, canonical, performance = scene(directory)
    points, calls = around(canonical.vertices.numpy(), 0.03, 50), []
    inner = carving._empty_cells
    monkeypatch.setattr(carving, "_empty_cells", lambda *args: calls.append(1) or inner(*args))
    first, second = (empty_cells(points, 0.006, canonical, performance, capture) for _ in range(2))
    assert len(calls) == 1 and np.array_equal(first, second)
    os.utime(capture.frames.image_paths[carving_frames(capture)[0]], (1, 1))
    empty_cells(points, 0.006, canonical, performance, capture)
    empty_cells(points[::-1].copy(), 0.006, canonical, performance, capture)
    assert len(calls) == 3
