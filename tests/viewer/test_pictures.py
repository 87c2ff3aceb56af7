"""Pictures for the viewer, and who gets them: a real nerfstudio viewer on an untrained avatar, without a browser."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException

from tests.tiny_capture import make_tiny_capture
from tests.tiny_training import mapped
from threevp_nerfstudio.viewer.pictures import FAR, OUTPUTS, Look, Pictures, coefficients, normals, seen_by_frame
from threevp_nerfstudio.viewer.viser_ui import Window

CHANNEL = "jawOpen"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory):
    from copy import deepcopy

    from threevp_nerfstudio.config import threevp_small

    capture = make_tiny_capture(tmp_path_factory.mktemp("pictures") / "capture", size=48)
    config = deepcopy(threevp_small.config.pipeline)
    config.datamanager.data = capture
    config.model.field_config.blendfields.num_fields = 0  # one per channel
    pipeline = config.setup(device="cpu", test_mode="test")
    torch.manual_seed(0)
    torch.nn.init.normal_(pipeline.model.field.blendfields.net[-1].weight, std=0.1)
    return pipeline


@pytest.fixture(scope="module")
def viewer(pipeline, tmp_path_factory: pytest.TempPathFactory):
    from nerfstudio.viewer.viewer import Viewer

    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        config = ViewerConfig(websocket_port=taken.getsockname()[1])
        folder = tmp_path_factory.mktemp("log")
        viewer = Viewer(
            config, folder / "viewer.log", Path(folder), pipeline, train_lock=threading.Lock()
        )  # the port that was asked for is in use
    yield viewer
    viewer.viser_server.stop()


@pytest.fixture
def avatar(viewer, pipeline):
    yield pipeline.avatar_viewer
    pipeline.avatar_viewer.state.reset()


@pytest.fixture(scope="module")
def camera(pipeline):
    return pipeline.datamanager.train_dataset.cameras[0:1]


def in_a_window(viewer, act):
    """Run something in a render thread of the viewer; its result or exception."""
    machine, results = RenderStateMachine(viewer, 10.0, client=None), []

    def run() -> None:
        try:
            results.append(act())
        except BaseException as error:
            results.append(error)

    machine.run = run
    machine.start()
    machine.join()
    return results[0]


def test_only_windows_see_what_the_sliders_say(viewer, avatar, pipeline, camera):
    model = pipeline.model
    before = model.get_outputs_for_camera(camera)["rgb"]
    avatar.state.set_value(CHANNEL, 0.6)
    avatar.state.set_light(90.0)
    assert torch.equal(model.get_outputs_for_camera(camera)["rgb"], before)  # evaluation, ns-render
    assert avatar.picture(camera) is None
    window = in_a_window(viewer, lambda: model.get_outputs_for_camera(camera))
    expected = model.render_camera(camera, avatar.state.state(avatar.state.snapshot(), 0.0))
    torch.testing.assert_close(window["rgb"], expected["rgb"])
    assert (window["rgb"] - before).abs().max() > 0.02
    assert avatar.shown_version == avatar.state.version


def test_training_batches_are_the_same_whatever_the_sliders_say(avatar, pipeline):
    model = pipeline.model
    bundle, _ = pipeline.datamanager.next_eval(0)

    def batch() -> torch.Tensor:
        rays = mapped(model, bundle, seed=3)
        return rays.position[rays.mask]

    before = batch()
    avatar.state.set_value(CHANNEL, 0.6)
    assert torch.equal(batch(), before)


def test_a_window_of_another_viewer_is_not_ours(avatar, pipeline, camera):
    assert in_a_window(SimpleNamespace(), lambda: avatar.picture(camera)) is None


def test_the_preview_of_a_camera_path_plays_the_performance_as_ns_render_does(viewer, avatar, pipeline, camera):
    from dataclasses import replace

    avatar.state.set_value(CHANNEL, 0.6)
    avatar.state.set_light(120.0)
    at = replace(camera, times=torch.tensor([[0.5]]), metadata=None)
    viewer.render_tab_state.preview_render = True
    try:
        window = in_a_window(viewer, lambda: pipeline.model.get_outputs_for_camera(at))
    finally:
        viewer.render_tab_state.preview_render = False
    torch.testing.assert_close(window["rgb"], pipeline.model.get_outputs_for_camera(at)["rgb"])


def test_going_beyond_training_reaches_the_blendfields(avatar, pipeline):
    state, model = avatar.state, pipeline.model
    state.set_beyond(True)
    state.set_value(CHANNEL, 1.4)
    index = model.performance.conditioning_names.index(CHANNEL)
    beyond = state.state(state.snapshot(), 0.0)
    assert model.condition(beyond)[0, index] == pytest.approx(1.4)
    state.set_beyond(False)
    within = state.state(state.snapshot(), 0.0)
    assert model.condition(within)[0, index] == pytest.approx(float(model.conditioning_high[index]))
    names, values = coefficients(model, within)
    assert names[index] == CHANNEL and len(values) == len(names)


def test_without_a_field_for_each_channel_the_bars_show_the_channels(avatar, pipeline, monkeypatch: pytest.MonkeyPatch):
    state, model = avatar.state, pipeline.model
    state.set_value(CHANNEL, 0.3)
    pose = state.state(state.snapshot(), 0.0)
    monkeypatch.setattr(model.field.blendfields, "num_fields", 2)
    names, values = coefficients(model, pose)
    assert names == list(model.performance.conditioning_names)
    assert values[names.index(CHANNEL)] == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize(
    ("state", "action", "stops"),
    [("high", "move", True), ("high", "step", False), ("low_static", "move", True), ("low_move", "move", False), ("high", None, False)],
)
def test_a_picture_stops_for_a_move_unless_it_is_the_quick_one(viewer, avatar, state: str, action: str | None, stops: bool):
    machine = RenderStateMachine(viewer, 10.0, client=None)
    machine.state = state
    stop = avatar.host.stopper(machine)
    machine.next_action = None if action is None else RenderAction(action, None)
    if stops:
        with pytest.raises(IOChangeException):
            stop()
    else:
        stop()


def test_a_fine_picture_makes_way_for_another_window_and_starts_anew_later(viewer, avatar):
    ours, other = (RenderStateMachine(viewer, 10.0, client=None) for _ in range(2))
    ours.state, other.state = "high", "low_move"
    viewer.render_statemachines.update({1: ours, 2: other})
    try:
        with pytest.raises(IOChangeException):
            avatar.host.stopper(ours)()
        assert ours.transitions[ours.state]["static"] == "high"
        avatar.host.stopper(other)()
    finally:
        viewer.render_statemachines.clear()


def test_moving_pictures_keep_to_their_time(viewer, avatar):
    machine = RenderStateMachine(viewer, 10.0, client=None)
    avatar.host.opened(machine)
    machine.state, machine.interrupt_render_flag = "low_move", True
    avatar.host.timed(1000, 0.1)  # 10,000 rays in a second: believed at once
    height, width = machine._calculate_image_res(1.0)
    assert (height, width) == (48, 48) and not machine.interrupt_render_flag
    for _ in range(40):
        avatar.host.timed(10_000, 0.01)
    assert machine._calculate_image_res(2.0)[0] == 256
    machine.state = "high"
    assert max(machine._calculate_image_res(1.0)) == viewer.control_panel.max_res


def test_a_port_in_use_is_told(viewer):
    actual = viewer.viser_server.get_port()
    assert actual != viewer.config.websocket_port
    assert any(str(actual) in line and "in use" in line for line in viewer.viewer_info)


# ---- outputs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(pipeline) -> Pictures:
    from threevp_nerfstudio.capture.capture import read_rgba

    frames = pipeline.datamanager.train_dataset.capture.frames
    return Pictures(pipeline.model, frames, lambda i: read_rgba(frames, i))


def test_outputs_that_nobody_looks_at_are_blank_and_change_nothing(pictures, pipeline, camera):
    state = pipeline.model.performance.at_time(0.4)
    quiet = pictures.render(camera, state, Look())
    assert tuple(quiet) == OUTPUTS
    for name in ("normals", "displacement", "blendfield", "training_frame"):
        assert (quiet[name] == 1).all() and quiet[name].shape == quiet["rgb"].shape
    everything = pictures.render(camera, state, Look(frozenset(OUTPUTS), blendfield=24, frame=0))
    torch.testing.assert_close(everything["rgb"], quiet["rgb"])
    assert all(torch.isfinite(v).all() for v in everything.values())
    empty = quiet["accumulation"] < 0.4
    assert (quiet["depth"][empty] == FAR).all()
    assert (everything["depth"] < FAR).all()


def test_displacement_is_nought_at_neutral_and_grows_with_expression(pictures, pipeline, camera, avatar):
    look = Look(frozenset(["displacement", "blendfield"]), full_mm=0.5)

    def coloured(name: str, value: float) -> float:
        avatar.state.set_value(CHANNEL, value)
        state = avatar.state.state(avatar.state.snapshot(), 0.0)
        index = pipeline.model.performance.conditioning_names.index(CHANNEL)
        out = pictures.render(camera, state, Look(look.outputs, index, look.full_mm))[name]
        return float((out.amax(-1) - out.amin(-1)).max())

    for name in ("displacement", "blendfield"):
        assert coloured(name, 0.6) > 0.2
        if name == "blendfield":  # of this channel alone: the neutral frame's jaw may turn other fields
            assert coloured(name, 0.0) < 1e-5


def test_pictures_stop_between_chunks(pictures, pipeline, camera):
    def stop() -> None:
        raise IOChangeException

    with pytest.raises(IOChangeException):
        pictures.render(camera, pipeline.model.performance.neutral(), Look(), stop)


def test_a_frame_seen_from_its_own_camera_is_its_picture(pictures, pipeline):
    dataset = pipeline.datamanager.train_dataset
    frame = int(dataset.frames[3])
    bundle = dataset.cameras[3:4].generate_rays(camera_indices=0, keep_shape=True)
    truth = dataset.get_data(3)["image"]
    seen = seen_by_frame(pictures.frames, frame, pictures._picture(frame), bundle.directions)
    assert (seen - truth).abs().mean() < 0.005
    assert (seen_by_frame(pictures.frames, frame, truth, -bundle.directions) == 1).all()


def test_normals_of_a_ball_are_its_radii():
    x, y = torch.meshgrid(torch.linspace(-0.6, 0.6, 81), torch.linspace(-0.6, 0.6, 81), indexing="xy")
    points = torch.stack([x, y, (1 - x * x - y * y).sqrt()], -1)
    directions = torch.tensor([0.0, 0.0, -1.0]).expand_as(points)
    inner = (slice(2, -2), slice(2, -2))
    torch.testing.assert_close(normals(points, directions)[inner], points[inner], atol=2e-3, rtol=0)


class StillWindow(Window):
    """A window that only remembers where it was told to look."""

    def __init__(self, aspect: float) -> None:
        self._client = SimpleNamespace(camera=SimpleNamespace(aspect=aspect))

    def look(self, position, target, fov_y) -> None:
        self.looked = (position, target, fov_y)


def test_the_first_camera_orbits_about_the_head_and_frames_as_the_capture_does(avatar, pipeline):
    framing, template = avatar.panel.framing, pipeline.datamanager.train_dataset.capture.template
    head = template.vertices[template.skin_weights[:, list(template.joint_names).index("head")] > 0.5]
    middle = (head.min(0) + head.max(0)) / 2
    np.testing.assert_allclose(framing.center[:2], middle[:2], atol=0.005)
    wide, narrow = StillWindow(1.5), StillWindow(0.4)  # a narrow window sees it from further off
    avatar.panel.view(wide, 0.0)
    avatar.panel.view(narrow, 90.0)
    (front, target, fov), (side, _, _) = wide.looked, narrow.looked
    assert front[1] < target[1] and front[0] == pytest.approx(target[0]) and fov == framing.fov_y
    assert side[0] - target[0] == pytest.approx(2 * framing.distance)  # the subject's left
