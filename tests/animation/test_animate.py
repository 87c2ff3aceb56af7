"""`threevp animate`, `turntable` and `sheet` on an untrained avatar, at tiny size."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.animation.conftest import SIZE, write_take
from tests.animation.test_outputs import decoded
from threevp_nerfstudio.animation.pose import AvatarPose, save_pose
from threevp_nerfstudio.animation.reenact import read_track, track_drive
from threevp_nerfstudio.animation.sources import DriveSettings
from threevp_nerfstudio.body.template import Motion
from threevp_nerfstudio.capture.capture import load_motion, load_template
from threevp_nerfstudio.errors import PoseError, ThreeVPError
from threevp_nerfstudio.render.animate import Animate, Orbit, played
from threevp_nerfstudio.render.avatar import Avatar
from threevp_nerfstudio.render.camera_tracks import orbit_track
from threevp_nerfstudio.render.film import Shot, lit, parse_shard, picture, rendering
from threevp_nerfstudio.render.join import Join
from threevp_nerfstudio.render.sheet import Sheet, farthest, grid
from threevp_nerfstudio.render.turntable import Turntable

CAMERAS = ("front", "orbit", "tracked", "path")
PERFORMANCES = ("own", "neutral", "track", "keyframes", "csv", "pose")


def film(avatar: Avatar, config: Path, output: Path, **settings) -> Path:
    command = Animate(load_config=config, output=output, **{"size": (SIZE,), **settings})
    command.render(avatar, command.plan())
    return output


def frames_in(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(p)) for p in sorted(folder.glob("*.png"))])


@pytest.fixture()
def performances(tmp_path: Path, tiny_capture: Path, take: Path) -> dict[str, str]:
    """What --performance may name."""
    save_pose(AvatarPose({"jawOpen": 0.4, "mouthPucker": 0.5}), tmp_path / "pose.json")
    keyframes = [{"time": 0, "pose": "neutral"}, {"time": 1, "pose": "pose.json"}]
    (tmp_path / "keys.json").write_text(json.dumps({"threevp_keyframes": 1, "keyframes": keyframes}))
    return {
        "own": "own", "neutral": "neutral", "track": str(tiny_capture / "motion.npz"), "csv": str(take),
        "keyframes": str(tmp_path / "keys.json"), "pose": str(tmp_path / "pose.json"),
    }  # fmt: skip


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("performance", PERFORMANCES)
def test_every_camera_goes_with_every_performance(
    avatar: Avatar, config_file: Path, tmp_path: Path, path_file: Path, performances: dict, camera: str, performance: str
):
    folder = film(
        avatar, config_file, tmp_path / "out", camera=str(path_file) if camera == "path" else camera,
        performance=performances[performance], seconds=1.0, fps=3, background="transparent", orbit=Orbit(turns=0.5),
    )  # fmt: skip
    seen = frames_in(folder)
    assert seen.shape == (3, SIZE, SIZE, 4)
    assert (seen[..., 3].max((1, 2)) > 100).all()
    still = camera == "front" and performance in ("neutral", "pose")
    assert np.array_equal(seen[0], seen[2]) == still


@pytest.mark.parametrize(("ending", "background"), [(".mp4", "#204060"), (".webm", "transparent"), (".gif", "white")])
def test_films_have_the_asked_count_size_and_rate(avatar: Avatar, config_file: Path, tmp_path: Path, ending: str, background: str):
    path = film(
        avatar, config_file, tmp_path / f"film{ending}", size=(24, 16), seconds=0.5, fps=8, background=background, performance="neutral"
    )
    about, seen = decoded(path, alpha=background == "transparent")
    assert seen.shape[:3] == (4, 16, 24) and about["fps"] == pytest.approx(8, rel=0.05)
    corner = seen[0, 0, 0]
    if background == "transparent":
        assert corner[3] < 20
    else:
        assert np.abs(corner.astype(int) - ((32, 64, 96) if ending == ".mp4" else (255, 255, 255))).max() < 25


def test_lengths_follow_the_camera_path_then_the_performance(avatar: Avatar, config_file: Path, path_file: Path, take: Path):
    def count(**settings) -> tuple[int, float]:
        command = Animate(load_config=config_file, output=Path("x"), **settings)
        from threevp_nerfstudio.animation.sources import drive_of, read_source
        from threevp_nerfstudio.render.animate import Plan
        from threevp_nerfstudio.render.camera_tracks import read_path

        path = read_path(Path(command.camera)) if command.camera.endswith(".json") else None
        plan = Plan(path, read_source(command.performance, command.drive), None, (0, 1), None)
        own = (avatar.own_seconds, avatar.capture.fps)
        drive = drive_of(plan.source, avatar.controls, avatar.model.canonical.rig, own, command.drive)
        fps = command._fps(plan, drive)
        return command._count(plan, drive, fps), fps

    dynamic = int((avatar.capture.frames.sequence == "dynamic").sum())
    own = round(avatar.own_seconds * avatar.capture.fps) + 1
    assert own <= dynamic
    assert count() == (own, avatar.capture.fps)
    assert count(camera=str(path_file)) == (4, 4.0)
    assert count(camera=str(path_file), fps=8.0) == (8, 8.0)
    assert count(performance=str(take), fps=60.0) == (31, 60.0)
    assert count(performance="neutral", camera="orbit", fps=10.0) == (60, 10.0)
    assert count(performance="neutral", seconds=0.2, fps=10.0) == (2, 10.0)


def test_a_performance_that_is_over_holds_loops_or_bounces():
    times = np.array([0.0, 1.0, 2.0, 2.5, 4.0, 5.0])
    np.testing.assert_allclose(played(times, 2.0, "hold"), [0, 1, 2, 2, 2, 2])
    np.testing.assert_allclose(played(times, 2.0, "loop"), [0, 1, 2, 0.5, 0, 1])
    np.testing.assert_allclose(played(times, 2.0, "bounce"), [0, 1, 2, 1.5, 0, 1])
    assert not played(times, 0.0, "loop").any()


def test_along_a_path_with_times_the_own_performance_plays_at_those_times(
    avatar: Avatar, config_file: Path, path_file: Path, tmp_path: Path
):
    content = json.loads(path_file.read_text())
    for camera in content["camera_path"]:
        camera["camera_to_world"] = content["camera_path"][0]["camera_to_world"]
    path_file.write_text(json.dumps(content))
    seen = frames_in(film(avatar, config_file, tmp_path / "out", camera=str(path_file)))
    assert not np.array_equal(seen[0], seen[1]) and np.array_equal(seen[2], seen[3])


# ---- the same picture, however it is made ----------------------------------------------------------------------------


def test_pictures_do_not_depend_on_the_chunk_size_or_on_what_was_rendered_before(avatar: Avatar):
    model = avatar.model
    track = orbit_track(avatar.framing, np.array([0.3, 2.0]), 0.1, avatar.framing.distance, 1.0)
    shot = Shot(track, lambda i: lit(model.performance.at_time(0.3 + 0.4 * i), 0.2 * i), 40, 40, None)
    chunk = model.config.eval_num_rays_per_chunk
    try:
        seen = []
        with rendering(model):
            for size in (chunk, 401, 64, 1600):
                model.config.eval_num_rays_per_chunk = size
                seen.append([picture(model, shot, 0), picture(model, shot, 1)])
    finally:
        model.config.eval_num_rays_per_chunk = chunk
    for first, second in seen[1:]:
        assert np.array_equal(first, seen[0][0]) and np.array_equal(second, seen[0][1])


def test_shards_are_the_whole(avatar: Avatar, config_file: Path, tmp_path: Path, performances: dict):
    settings = {"performance": performances["keyframes"], "camera": "orbit", "fps": 5, "seconds": 1.0}
    whole = film(avatar, config_file, tmp_path / "whole", **settings)
    for shard in ("1/3", "3/3"):
        film(avatar, config_file, tmp_path / "shards", shard=shard, **settings)
    assert sorted(p.stem for p in (tmp_path / "shards").glob("*.png")) == ["000000", "000001", "000003", "000004"]
    with pytest.raises(ThreeVPError, match="1 of 5"):
        Join(tmp_path / "shards").join()
    film(avatar, config_file, tmp_path / "shards", shard="2/3", **settings)
    for path in whole.iterdir():
        assert path.read_bytes() == (tmp_path / "shards" / path.name).read_bytes()
    assert len(decoded(Join(tmp_path / "shards").join())[1]) == 5


@pytest.mark.parametrize(("text", "message"), [("4", "i/n"), ("5/4", "i/n"), ("1/0", "i/n"), ("a/b", "i/n"), ("-1/2", "i/n")])
def test_shards_that_are_none_are_refused(text: str, message: str):
    with pytest.raises(ThreeVPError, match=message):
        parse_shard(text, True)
    with pytest.raises(ThreeVPError, match="threevp join"):
        parse_shard("1/2", False)


def in_a_child(work, number: int, folder: Path, pattern: str) -> int:
    """Run `work` in a process of its own, and send it a signal once it has written files of a pattern; its status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child, number)
    return os.waitpid(child, 0)[1]


def test_a_killed_render_goes_on_where_it_stopped(avatar: Avatar, config_file: Path, tmp_path: Path):
    settings = {"performance": "own", "fps": 30, "seconds": 1.0}
    status = in_a_child(
        lambda: film(avatar, config_file, tmp_path / "out", **settings), signal.SIGKILL, tmp_path / "out", "000003.png"
    )
    assert os.WIFSIGNALED(status)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.png")}
    assert 4 <= len(before) < 30
    film(avatar, config_file, tmp_path / "out", **settings)
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.png")}
    assert len(after) == 30 and before.items() <= after.items()
    with pytest.raises(ThreeVPError, match="another film .other performance"):
        film(avatar, config_file, tmp_path / "out", **{**settings, "performance": "neutral"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_film_leaves_a_playable_part(avatar: Avatar, config_file: Path, tmp_path: Path, number: int):
    status = in_a_child(
        lambda: film(avatar, config_file, tmp_path / "film.mp4", size=(64,), fps=60, seconds=30.0, performance="neutral"),
        number, tmp_path, ".film.partial.mp4",
    )  # fmt: skip
    if os.waitstatus_to_exitcode(status) == 130 and (tmp_path / "film.part.mp4").exists():
        assert 1 <= len(decoded(tmp_path / "film.part.mp4")[1]) < 1800
    else:
        assert os.waitstatus_to_exitcode(status) == 130
    assert not (tmp_path / "film.mp4").exists() and not list(tmp_path.glob(".*"))


# ---- reenactment -----------------------------------------------------------------------------------------------------


def other_capture(folder: Path, tiny_capture: Path) -> Path:
    """A track of the same performance on a rig with two more neck joints, and channels in another order and spelling."""
    folder.mkdir()
    template = load_template(tiny_capture / "template.npz")
    motion = load_motion(tiny_capture / "motion.npz", template)
    head = template.joint_names.index("head")
    names = (*template.joint_names[:head], "neckMiddle", "neckUpper", *template.joint_names[head:])
    parents = [*template.parents[:head], head - 1, head, head + 1, *template.parents[head + 1 :] + 2]
    joints = np.insert(template.joints, [head, head], template.joints[head], axis=0)
    weights = np.insert(template.skin_weights, [head, head], 0.0, axis=1)
    rotations = np.insert(motion.joint_rotations, [head, head], 0.0, axis=1)
    share = rotations[:, head + 2] / 3  # about one axis: the shares add up
    rotations[:, head], rotations[:, head + 1], rotations[:, head + 2] = share, share, share
    order = np.arange(len(template.expression_names))[::-1]
    replace(
        template, joint_names=names, parents=np.array(parents, np.int32), joints=joints, skin_weights=weights,
        expression_names=(*(template.expression_names[i].upper() for i in order), "tailWag"),
        expression_basis=np.concatenate([template.expression_basis[order], template.expression_basis[:1]]),
    ).save(folder / "template.npz")  # fmt: skip
    expression = np.concatenate([motion.expression[:, order], np.full((len(motion), 1), 0.5, np.float32)], 1)
    replace(motion, joint_rotations=rotations, expression=expression).save(folder / "motion.npz")
    return folder


def test_reenactment_onto_a_template_with_other_joints(avatar: Avatar, tiny_capture: Path, tmp_path: Path):
    rig, controls = avatar.model.canonical.rig, avatar.controls
    own = track_drive(read_track(tiny_capture), controls, rig, None)
    other = other_capture(tmp_path / "other", tiny_capture)
    (other / "transforms.json").write_bytes((tiny_capture / "transforms.json").read_bytes())
    drive = track_drive(read_track(other / "motion.npz"), controls, rig, None)
    np.testing.assert_allclose(drive.times, own.times)
    torch.testing.assert_close(drive.states.expression, own.states.expression)
    torch.testing.assert_close(drive.states.joint_rotations, own.states.joint_rotations, atol=1e-4, rtol=0)
    notes = "\n".join(drive.notes)
    assert "not carried over, the avatar has none of that name: tailWag" in notes
    assert "neckMiddle, neckUpper" in notes


def test_the_track_of_the_own_capture_is_the_own_performance(avatar: Avatar, tiny_capture: Path):
    drive = track_drive(read_track(tiny_capture), avatar.controls, avatar.model.canonical.rig, None)
    for time_ in (0.0, 0.31, drive.duration):
        state, played_ = drive.at(time_), avatar.model.performance.at_time(time_ / drive.duration)
        torch.testing.assert_close(state.expression, played_.expression, atol=1e-4, rtol=0)
        torch.testing.assert_close(state.joint_rotations, played_.joint_rotations, atol=1e-4, rtol=0)


def test_tracks_without_their_names_or_their_timing(avatar: Avatar, tiny_capture: Path, tmp_path: Path):
    motion = tmp_path / "motion.npz"
    motion.write_bytes((tiny_capture / "motion.npz").read_bytes())
    with pytest.raises(PoseError, match="no template.npz beside it"):
        read_track(motion)
    (tmp_path / "template.npz").write_bytes((tiny_capture / "template.npz").read_bytes())
    track = read_track(motion)
    assert track.frames is None and (np.diff(track.times) > 0).all()
    with pytest.raises(PoseError, match="no such file"):
        read_track(tmp_path / "none.npz")


def test_a_track_with_other_channels_is_refused(avatar: Avatar, tiny_capture: Path, tmp_path: Path):
    template = load_template(tiny_capture / "template.npz")
    names = tuple(f"component{i}" for i in range(len(template.expression_names)))
    replace(template, expression_names=names).save(tmp_path / "template.npz")
    (tmp_path / "motion.npz").write_bytes((tiny_capture / "motion.npz").read_bytes())
    with pytest.raises(PoseError, match="convert-expressions"):
        track_drive(read_track(tmp_path), avatar.controls, avatar.model.canonical.rig, None)


def test_a_jaw_joint_opens_the_mouth_of_an_avatar_with_the_channel(avatar: Avatar, tiny_capture: Path, tmp_path: Path):
    template = load_template(tiny_capture / "template.npz")
    jaw = template.expression_basis[template.expression_names.index("jawOpen")]
    weight = np.linalg.norm(jaw, axis=1, keepdims=True) / np.linalg.norm(jaw, axis=1).max()
    head = template.joint_names.index("head")
    skin = np.concatenate([template.skin_weights * (1 - weight), weight], 1).astype(np.float32)
    replace(
        template, joint_names=(*template.joint_names, "jaw"), parents=np.append(template.parents, head).astype(np.int32),
        joints=np.concatenate([template.joints, [[0.0, 0.005, 0.880]]]).astype(np.float32), skin_weights=skin,
    ).save(tmp_path / "template.npz")  # fmt: skip
    count = 3
    rotations = np.zeros((count, len(template.joint_names) + 1, 3), np.float32)
    rotations[:, -1, 0] = [0.0, 0.15, 0.30]  # the channel is a turn of 0.30
    values = np.zeros((count, len(template.expression_names)), np.float32)
    times = np.arange(count, dtype=np.float32)
    Motion(times, rotations, np.zeros((count, 3), np.float32), values).save(tmp_path / "motion.npz")
    drive = track_drive(read_track(tmp_path), avatar.controls, avatar.model.canonical.rig, None)
    opened = drive.states.expression[:, avatar.controls.channels.index("jawOpen")].numpy()
    np.testing.assert_allclose(opened, [0.0, 0.5, 1.0], atol=0.08)


def test_a_take_drives_channels_and_head(avatar: Avatar, take: Path):
    from threevp_nerfstudio.animation.sources import drive_of, read_source

    settings = DriveSettings(range="beyond")
    source = read_source(str(take), settings)
    drive = drive_of(source, avatar.controls, avatar.model.canonical.rig, (1.0, 30.0), settings)
    state = drive.at(0.5)
    named = avatar.controls.pose(state)
    assert named.expression["jawOpen"] == pytest.approx(0.5, abs=1e-5)
    neutral = avatar.controls.neutral()
    turn = sum(named.joints_deg[j][2] - neutral.joints_deg[j][2] for j in ("neck", "head"))
    assert turn == pytest.approx(np.degrees(0.3), abs=2.0)
    clip = DriveSettings(range="clip")
    inside = drive_of(source, avatar.controls, avatar.model.canonical.rig, (1.0, 30.0), clip)
    limit = avatar.controls.limits["jawOpen"].high
    assert float(inside.states.expression.max()) <= max(limit, 0.5) + 1e-6


# ---- side by side ----------------------------------------------------------------------------------------------------


def test_side_by_side_shows_the_driving_picture_of_each_time(avatar: Avatar, config_file: Path, tmp_path: Path):
    from threevp_nerfstudio.capture.capture import read_rgba
    from threevp_nerfstudio.render.pixels import over_color

    size = int(avatar.capture.frames.size[0, 0])
    settings = {"camera": "tracked", "side_by_side": True, "size": (), "seconds": 0.1, "background": "white"}
    seen = frames_in(film(avatar, config_file, tmp_path / "out", **settings))
    assert seen.shape == (3, size, 2 * size, 3)
    frames = avatar.capture.frames
    index = np.flatnonzero(frames.sequence == "dynamic")
    first = index[frames.times[index].argmin()]
    white = (1.0, 1.0, 1.0)
    assert np.array_equal(seen[0, :, :size], over_color(read_rgba(frames, int(first)), white))


def test_side_by_side_with_a_video_or_a_folder(avatar: Avatar, config_file: Path, tmp_path: Path, take: Path):
    folder = film(avatar, config_file, tmp_path / "pictures", seconds=0.5, fps=4, performance="neutral", background="red")
    video = film(avatar, config_file, tmp_path / "video.mp4", seconds=0.5, fps=4, performance="neutral", background="red")
    for driving in (folder, video):
        out = tmp_path / f"beside_{driving.stem}"
        film(avatar, config_file, out, performance=str(take), driving_frames=driving, seconds=0.5, fps=4, background="white")
        seen = frames_in(out)
        assert seen.shape == (2, SIZE, 2 * SIZE, 3)
        assert np.abs(seen[:, 0, 0].astype(int) - (255, 0, 0)).max() < 30 and (seen[:, 0, -1] == 255).all()


# ---- bad input: one clear error before a model is loaded -------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_config": Path("none.yml")}, "no such file"),
        ({"camera": "none.json"}, "cannot be read"),
        ({"performance": "none.csv"}, "no such file"),
        ({"performance": __file__}, ".py is not read"),
        ({"fps": 0.0}, "--fps 0"),
        ({"fps": float("nan")}, "--fps nan"),
        ({"size": (8,)}, "--size"),
        ({"size": (1, 2, 3)}, "--size"),
        ({"seconds": -1.0}, "--seconds"),
        ({"zoom": 0.0}, "--zoom"),
        ({"orbit": Orbit(elevation_deg=90)}, "elevation"),
        ({"orbit": Orbit(turns=float("inf"))}, "finite"),
        ({"background": "nothing"}, "no such colour"),
        ({"background": "transparent", "output": Path("film.mp4")}, "no transparency"),
        ({"output": Path("film.mov")}, ".mov is neither"),
        ({"pace": "path"}, "camera path whose keyframes have times"),
        ({"shard": "1/2", "output": Path("film.mp4")}, "threevp join"),
        ({"side_by_side": True, "performance": "neutral"}, "has no pictures"),
        ({"driving_frames": Path("none.mov")}, "no such file or folder"),
        ({"drive": DriveSettings(smooth=-1.0)}, "--drive.smooth"),
        ({"drive": DriveSettings(max_gap=float("nan"))}, "--drive.max-gap"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(config_file: Path, tmp_path: Path, monkeypatch, settings: dict, message: str):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("threevp_nerfstudio.render.animate.load_avatar", lambda path: pytest.fail("it was loaded"))
    with pytest.raises(ThreeVPError, match=message):
        Animate(**{"load_config": config_file, "output": tmp_path / "out", **settings}).main()
    assert not list(tmp_path.glob("*.png"))


def test_a_camera_path_as_performance_is_pointed_out(config_file: Path, path_file: Path, tmp_path: Path):
    with pytest.raises(PoseError, match="give it as --camera"):
        Animate(load_config=config_file, output=tmp_path / "out", performance=str(path_file)).plan()


def test_what_does_not_fit_the_avatar_is_said_before_it_is_rendered(avatar: Avatar, config_file: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(type(avatar.model), "render_camera", lambda *a: pytest.fail("it was rendered"))
    save_pose(AvatarPose({"tail": 1.0}), tmp_path / "tail.json")
    take = write_take(tmp_path / "take.csv", {"JawOpen": np.zeros(3)})
    text = take.read_text().split("\n")
    strange = tmp_path / "strange.csv"
    strange.write_text("time,antennaLeft\n0,0.1\n1,0.2\n")
    assert text
    for performance, message in ((tmp_path / "tail.json", "tail"), (strange, "no channel has the name")):
        with pytest.raises(PoseError, match=message):
            film(avatar, config_file, tmp_path / "out", performance=str(performance))


# ---- nerfstudio's own rendering --------------------------------------------------------------------------------------


def test_interpolated_and_spiral_paths_of_nerfstudio_show_a_sensible_expression(avatar: Avatar):
    from nerfstudio.cameras.camera_paths import get_interpolated_camera_path, get_spiral_path

    from threevp_nerfstudio.data.dataparser import cameras_of

    model = avatar.model
    cameras = cameras_of(avatar.capture, np.array([0, 1]))
    small = get_interpolated_camera_path(cameras, steps=2, order_poses=False)
    small.rescale_output_resolution(0.25)
    seen = model.get_outputs_for_camera(small[0:1])["rgb"]
    assert torch.equal(seen, model.render_camera(small[0:1], model.performance.neutral())["rgb"])
    spiral = get_spiral_path(cameras[0:1], steps=3, radius=0.1)
    spiral.rescale_output_resolution(0.25)
    seen = [model.get_outputs_for_camera(spiral[i : i + 1])["rgb"] for i in range(3)]
    assert torch.equal(seen[1], model.render_camera(spiral[1:2], model.performance.at_time(0.5))["rgb"])


# ---- turntables and sheets -------------------------------------------------------------------------------------------


def test_a_turntable_is_an_orbit_of_animate(avatar: Avatar, config_file: Path, tmp_path: Path):
    command = Turntable(config_file, tmp_path / "turn.mp4", seconds=0.5, fps=8, size=SIZE, sheet=tmp_path / "sheet.png")
    animate = command.animate()
    command.film(avatar, animate, animate.plan())
    assert len(decoded(tmp_path / "turn.mp4")[1]) == 4
    assert Image.open(tmp_path / "sheet.png").size == (4 * SIZE, SIZE)
    with pytest.raises(ThreeVPError, match="H.264"):
        Turntable(config_file, tmp_path / "turn.gif").animate()


def test_a_sheet_has_a_row_per_expression_and_a_column_per_view(avatar: Avatar, config_file: Path, tmp_path: Path):
    save_pose(AvatarPose({"cheekPuff": 0.5}), tmp_path / "puff.json")
    rows = ("neutral", "@0.5", "jawOpen", "jawOpen=0.3+mouthPucker=0.2", str(tmp_path / "puff.json"))
    command = Sheet(config_file, tmp_path / "s.png", views=(0, 90), expressions=rows, size=SIZE, labels=False, background="transparent")
    command.check()
    sheet = command.render(avatar)
    assert sheet.shape == (5 * SIZE, 2 * SIZE, 4)
    assert not np.array_equal(sheet[:SIZE, :SIZE], sheet[2 * SIZE : 3 * SIZE, :SIZE])
    labelled = Sheet(config_file, tmp_path / "s.png", views=(0, 90), picks=1, size=SIZE)
    assert [name for name, _ in labelled.rows(avatar)][0] == "neutral" and len(labelled.rows(avatar)) == 2
    larger = labelled.render(avatar)
    assert larger.shape[0] > 2 * SIZE and larger.shape[1] > 2 * SIZE and larger.shape[2] == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": Path("s.mp4")}, ".png or .jpg"),
        ({"output": Path("s.jpg"), "background": "transparent"}, "transparent"),
        ({"size": 4}, "--size"),
        ({"views": ()}, "--views"),
        ({"expressions": ("@2",)}, "0 to 1"),
        ({"expressions": ("jawOpen=wide",)}, "no number"),
        ({"expressions": ("none.json",)}, "cannot be read"),
        ({"picks": -1}, "--picks"),
    ],
)
def test_sheets_out_of_reason_are_refused(config_file: Path, tmp_path: Path, settings: dict, message: str):
    with pytest.raises(ThreeVPError, match=message):
        Sheet(**{"load_config": config_file, "output": tmp_path / "s.png", **settings}).check()


def test_a_sheet_names_channels_that_the_avatar_does_not_have(avatar: Avatar, config_file: Path):
    with pytest.raises(PoseError, match="antenna"):
        Sheet(config_file, expressions=("antenna",)).rows(avatar)


def test_picks_differ_most_and_grids_are_filled_up():
    values = np.array([[0.0, 0], [1, 0], [0.9, 0], [0, 0.5], [0, 0]])
    assert farthest(values, 3).tolist() == [1, 3, 2] and len(farthest(np.zeros((3, 2)), 2)) == 0
    sheet = grid([np.zeros((4, 6, 3), np.uint8)] * 3, 2)
    assert sheet.shape == (8, 12, 3) and (sheet[4:, 6:] == 255).all() and not sheet[:4].any()
