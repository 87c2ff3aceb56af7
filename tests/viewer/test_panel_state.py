"""The rules of the panel, without a viewer: limits, presets, modes, files, and what a picture shows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.test_model import ball_template, performance
from threevp_nerfstudio.animation.controls import AvatarControls
from threevp_nerfstudio.body.template import Motion
from threevp_nerfstudio.errors import PoseError
from threevp_nerfstudio.model.performance import Performance, light_turn
from threevp_nerfstudio.viewer.panel_state import PanelState
from threevp_nerfstudio.viewer.timeline import Timeline


@pytest.fixture
def panel() -> PanelState:
    p = performance()
    count = p.num_conditioning
    low, high = torch.zeros(count), torch.full((count,), 0.8)
    high[1] = 0.0  # not seen in training
    controls = AvatarControls(p, ("root", "jaw"), low, high)
    return PanelState(controls, Timeline(p.timeline_times.tolist(), 2.0), range(6), seed=0)


def shown(panel: PanelState):
    return panel.state(panel.snapshot(), panel.timeline.position)


def test_it_starts_neutral(panel: PanelState):
    state = shown(panel)
    assert not state.expression.any() and not panel.following
    torch.testing.assert_close(state.joint_rotations, panel.controls.performance.neutral().joint_rotations)


def test_sliders_end_where_training_ended_unless_one_goes_beyond(panel: PanelState):
    name, unseen = panel.controls.channels[0], panel.controls.channels[1]
    panel.set_value(name, 5.0)
    assert panel.value(name) == pytest.approx(0.8)
    assert panel.seen(name) and not panel.seen(unseen)
    panel.set_beyond(True)
    assert panel.slider_range(name).high > 1.5
    panel.set_value(name, 1.5)
    assert panel.value(name) == 1.5 and shown(panel).beyond_training
    panel.set_beyond(False)
    assert panel.value(name) == pytest.approx(0.8) and not shown(panel).beyond_training


def test_an_angle_moves_its_joint(panel: PanelState):
    label = "jaw open (°)"
    high = panel.angle_limits[label].high
    panel.set_value(label, high)
    assert panel.value(label) == pytest.approx(high, abs=1e-4)
    moved = shown(panel).joint_rotations - panel.controls.performance.neutral().joint_rotations
    assert np.degrees(float(moved[0, 1, 0])) == pytest.approx(high, abs=1e-3)
    assert not moved[0, 0].abs().max() > 1e-6
    panel.set_value(label, high + 90.0)
    assert panel.value(label) == pytest.approx(high, abs=1e-4)


def test_every_change_counts_up_the_version(panel: PanelState):
    name = panel.controls.channels[0]
    acts = [
        lambda: panel.set_value(name, 0.3), panel.mirror, panel.random, lambda: panel.set_light(30.0), panel.keep,
        lambda: panel.set_blend(0.5), lambda: panel.follow(True), lambda: panel.seek(0.5), panel.reset,
    ]  # fmt: skip
    for act in acts:
        before = panel.version
        act()
        assert panel.version > before


def test_reset_brings_back_what_it_started_with(panel: PanelState):
    before = shown(panel)
    panel.set_value(panel.controls.channels[0], 0.5)
    panel.set_value("jaw open (°)", 5.0)
    panel.set_light(50.0)
    panel.keep()
    panel.set_blend(0.7)
    panel.seek(0.6)
    panel.reset()
    after = shown(panel)
    for key in ("expression", "joint_rotations", "root_translation", "room", "conditioning"):
        torch.testing.assert_close(getattr(after, key), getattr(before, key))


def test_following_shows_the_performance_and_a_slider_takes_over_from_where_it_stands(panel: PanelState):
    panel.seek(0.4)
    expected = panel.controls.performance.at_time(0.4)
    torch.testing.assert_close(shown(panel).expression, expected.expression)
    torch.testing.assert_close(shown(panel).joint_rotations, expected.joint_rotations)
    name, other = panel.controls.channels[0], panel.controls.channels[2]
    panel.timeline.play()
    panel.set_value(name, 0.1)
    assert not panel.following and not panel.timeline.playing
    assert panel.value(name) == pytest.approx(0.1)
    assert panel.value(other) == pytest.approx(float(expected.expression[0, 2]), abs=1e-5)


def test_playing_moves_what_is_shown_and_looking_does_not(panel: PanelState):
    panel.follow(True)
    panel.timeline.play()
    before = panel.version
    assert panel.tick(0.5) and panel.timeline.seconds == pytest.approx(0.5) and panel.version > before
    torch.testing.assert_close(shown(panel).expression, panel.controls.performance.at_time(0.25).expression)
    panel.timeline.pause()
    assert not panel.tick(0.5)


def test_blending_goes_from_what_is_shown_to_the_kept_pose(panel: PanelState):
    name = panel.controls.channels[0]
    panel.set_value(name, 0.6)
    panel.keep()
    panel.reset()
    for weight in (0.0, 0.5, 1.0):
        panel.set_blend(weight)
        assert float(shown(panel).expression[0, 0]) == pytest.approx(0.6 * weight, abs=1e-6)
    panel.seek(0.8)
    panel.set_blend(0.5)
    expected = (float(panel.controls.performance.at_time(0.8).expression[0, 0]) + 0.6) / 2
    assert float(shown(panel).expression[0, 0]) == pytest.approx(expected, abs=1e-5)


def test_the_light_turns_in_both_modes(panel: PanelState):
    panel.set_light(90.0)
    for following in (False, True):
        panel.follow(following)
        torch.testing.assert_close(shown(panel).room[0], light_turn(np.pi / 2), atol=1e-5, rtol=0)


def test_random_expressions_stay_within_training_and_vary(panel: PanelState):
    table = panel.controls.performance.expression
    seen = []
    for _ in range(5):
        panel.random()
        values = shown(panel).expression[0]
        assert (values >= table.amin(0) - 1e-6).all() and (values <= table.amax(0) + 1e-6).all()
        seen.append(values)
    assert torch.stack(seen).std(0).max() > 0.01


def test_a_pose_survives_its_file(panel: PanelState):
    panel.set_value(panel.controls.channels[0], 0.4)
    panel.set_value("jaw open (°)", 6.0)
    panel.set_light(20.0)
    text, before = panel.to_text(), shown(panel)
    panel.reset()
    panel.load(text, "pose.json")
    for key in ("expression", "joint_rotations", "root_translation", "room"):
        torch.testing.assert_close(getattr(shown(panel), key), getattr(before, key), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expression": {"nose": 1.0, "tail": 2.0}}, r"\['nose', 'tail'\]"),
        ({"expression": {"smile": "wide"}}, "'smile'"),
        ({"joints_deg": {"knee": [0, 0, 0]}}, "knee"),
        ({"joints_deg": {"jaw": [170.0, 0, 0]}}, r"jaw open \(°\) = "),
        ({"expression": None}, "NoneType"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_changes_nothing(panel: PanelState, change: dict, message: str):
    before, version = panel.to_text(), panel.version
    with pytest.raises(PoseError, match=message):
        panel.load(json.dumps({**json.loads(before), **change}), "pose.json")
    with pytest.raises(PoseError, match="pose.json"):
        panel.load_kept("{", "pose.json")
    assert panel.to_text() == before and panel.version == version and panel.kept is None


def test_values_out_of_range_are_named_with_their_range_and_allowed_beyond(panel: PanelState):
    name = panel.controls.channels[0]
    text = json.dumps({"threevp_pose": 1, "expression": {name: 1.4}})
    with pytest.raises(PoseError, match=rf"{name} = 1\.4 \(0 to 0\.8\)"):
        panel.load(text, "pose.json")
    panel.set_beyond(True)
    panel.load(text, "pose.json")
    assert panel.value(name) == 1.4


def test_a_picture_keeps_what_it_started_with(panel: PanelState):
    name = panel.controls.channels[0]
    panel.set_value(name, 0.2)
    snapshot = panel.snapshot()
    panel.set_value(name, 0.7)
    assert float(panel.state(snapshot, 0.0).expression[0, 0]) == pytest.approx(0.2)
    assert panel.snapshot().version > snapshot.version


def test_the_performance_of_the_model_is_not_touched(panel: PanelState):
    tables = {k: v.clone() for k, v in panel.controls.performance.state_dict().items()}
    panel.set_value(panel.controls.channels[0], 0.5)
    panel.mirror()
    panel.random()
    panel.seek(0.3)
    shown(panel)
    assert all(torch.equal(v, tables[k]) for k, v in panel.controls.performance.state_dict().items())


def test_captures_with_explicit_vertices_have_channels_and_follow_their_vertices():
    rng = np.random.default_rng(0)
    count = 6
    base = rng.normal(size=(count, 50, 3)).astype(np.float32)
    motion = Motion(
        times=np.arange(count) / 30, joint_rotations=None, root_translation=None, expression=None, vertices=base,
        conditioning=rng.random((count, 2)).astype(np.float32), conditioning_names=("mouthOpen", "eyeBlink"),
    )  # fmt: skip
    room = np.tile(np.eye(3, dtype=np.float32), (count, 1, 1))
    times = (np.arange(count) / (count - 1)).astype(np.float32)
    performance = Performance(ball_template(), motion, np.arange(count), times, room, np.ones(count, bool))
    controls = AvatarControls(performance, (), torch.zeros(2), torch.ones(2))
    panel = PanelState(controls, Timeline(times.tolist(), 1.0), range(count))
    assert not panel.angles and panel.controls.channels == ("mouthOpen", "eyeBlink")
    panel.set_value("mouthOpen", 0.5)
    panel.random()
    panel.mirror()
    panel.seek(0.4)
    torch.testing.assert_close(shown(panel).vertices[0].numpy(), base[2], atol=1e-5, rtol=0)
