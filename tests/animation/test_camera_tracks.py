"""Cameras of films: the viewer's path files, the tracked camera, orbits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from threevp_nerfstudio.data.dataparser import cameras_of
from threevp_nerfstudio.errors import PoseError
from threevp_nerfstudio.render.avatar import Avatar
from threevp_nerfstudio.render.camera_tracks import orbit_track, path_times, path_track, read_path, tracked_track


def test_a_path_file_is_read_as_nerfstudio_reads_it(path_file: Path):
    from nerfstudio.cameras.camera_paths import get_path_from_json

    theirs = get_path_from_json(json.loads(path_file.read_text()))
    ours = read_path(path_file)
    for i in range(4):
        camera = ours.track.camera(i, ours.width, ours.height)
        torch.testing.assert_close(camera.camera_to_worlds[0], theirs.camera_to_worlds[i])
        torch.testing.assert_close(camera.get_intrinsics_matrices()[0], theirs.get_intrinsics_matrices()[i])
    np.testing.assert_allclose(ours.times, theirs.times[:, 0])


def test_without_a_rate_a_path_takes_its_seconds(path_file: Path):
    content = json.loads(path_file.read_text())
    del content["fps"]
    path_file.write_text(json.dumps({**content, "seconds": 2.0}))
    assert read_path(path_file).fps == 2.0


def test_more_pictures_than_cameras_are_blended_between_them(path_file: Path):
    file = read_path(path_file)
    assert path_track(file, 4) is file.track
    dense = path_track(file, 7)
    np.testing.assert_allclose(dense.camera_to_world[::2], file.track.camera_to_world, atol=1e-9)
    R = dense.camera_to_world[1, :3, :3]
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-9)
    a, b = file.track.camera_to_world[:2, :3, 2]
    assert R[:, 2] @ a == pytest.approx(R[:, 2] @ b)  # half way on the arc
    np.testing.assert_allclose(path_times(file, 7)[:3], [0.0, 0.25, 0.5])


def test_the_tracked_camera_is_the_captures_at_its_frames(avatar: Avatar):
    frames = avatar.capture.frames
    index = np.flatnonzero(frames.sequence == "dynamic")
    index = index[np.argsort(frames.times[index], kind="stable")][[0, 5, 11]]
    start = frames.times[frames.sequence == "dynamic"].min()
    track = tracked_track(frames, frames.times[index] - start)
    theirs = cameras_of(avatar.capture, index)
    for k, i in enumerate(index):
        same_time = np.flatnonzero((frames.times == frames.times[i]) & (frames.sequence == "dynamic"))
        if same_time[0] != i:
            continue
        width, height = frames.size[i]
        camera = track.camera(k, int(width), int(height))
        torch.testing.assert_close(camera.camera_to_worlds[0], theirs.camera_to_worlds[k])
        torch.testing.assert_close(camera.get_intrinsics_matrices()[0], theirs.get_intrinsics_matrices()[k])
        np.testing.assert_allclose(track.room[k], frames.room_to_world[i, :3, :3])


def test_twice_the_size_shows_the_same(avatar: Avatar):
    track = tracked_track(avatar.capture.frames, np.array([0.1]))
    small, large = track.camera(0, 20, 20), track.camera(0, 40, 40)
    torch.testing.assert_close(large.fx, 2 * small.fx)
    torch.testing.assert_close(large.cx, 2 * small.cx)


def test_a_positive_yaw_sees_the_left_side(avatar: Avatar):
    track = orbit_track(avatar.framing, np.radians([0.0, 90.0, -90.0]), 0.0, 1.0, 1.0)
    np.testing.assert_allclose(np.degrees(track.yaw(avatar.framing)), [0, 90, -90], atol=1e-6)
    assert track.camera_to_world[1, 0, 3] > avatar.framing.center[0] + 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera_path": []}, "not a camera path"),
        ({"camera_path": None}, "not a camera path"),
        ({"camera_type": "equirectangular"}, "use ns-render"),
        ({"render_width": 0}, "render_width is 0"),
        ({"render_height": 1e9}, "render_height"),
        ({"fps": "many"}, "fps is 'many'"),
        ({"fps": 0}, "fps is 0"),
        ({"camera_path": [{"fov": 30}]}, "no 'camera_to_world'"),
        ({"camera_path": [{"camera_to_world": [1, 2], "fov": 30}]}, "not 16 numbers"),
        ({"camera_path": [{"camera_to_world": [float("nan")] * 16, "fov": 30}]}, "NaN"),
        ({"camera_path": [{"camera_to_world": [2.0] * 16, "fov": 30}]}, "not a rotation"),
        ({"camera_path": [{"camera_to_world": np.eye(4).flatten().tolist(), "fov": 190}]}, "fov is 190"),
        ({"camera_path": [{"camera_to_world": np.eye(4).flatten().tolist()}]}, "fov is None"),
    ],
)
def test_what_is_wrong_with_a_path_is_named(path_file: Path, change: dict, message: str):
    path_file.write_text(json.dumps({**json.loads(path_file.read_text()), **change}))
    with pytest.raises(PoseError, match=message):
        read_path(path_file)


def test_other_files_are_no_paths(tmp_path: Path):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text(json.dumps({"frames": []}))
    for name, message in (("a", "not JSON"), ("b", "not a camera path"), ("c", "cannot be read")):
        with pytest.raises(PoseError, match=message):
            read_path(tmp_path / f"{name}.json")
