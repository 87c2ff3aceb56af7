"""The avatar's panel: which controls there are, what each changes, and how they follow what is shown."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from threevp_nerfstudio.errors import PoseError, ThreeVPError
from threevp_nerfstudio.render.orbit import Framing, orbit
from threevp_nerfstudio.viewer.channels import FIRST_COMPONENTS, grouped, spoken
from threevp_nerfstudio.viewer.panel_state import PanelState
from threevp_nerfstudio.viewer.pictures import OUTPUTS, Look
from threevp_nerfstudio.viewer.timeline import SPEEDS
from threevp_nerfstudio.viewer.training_views import TrainingViews
from threevp_nerfstudio.viewer.viser_ui import Slider, Ui, Window

VIEWS_DEG = {"front": 0.0, "¾": 40.0, "back": 180.0, "left": 90.0, "right": -90.0}
"""Yaw of the camera; left and right are the subject's."""
TOP = -1000.0
"""Order of what stands above nerfstudio's own controls."""
NOTE_LENGTH = 200
"""Characters of a passing note; the whole text stands above the tabs."""
MOST_WINDOW_ASPECT = 0.8
"""Windows narrower than this see the avatar from further off."""
BEYOND = "⚠ **Beyond training**: what was never seen is guessed, and faces may tear."
SHARED = "*{} open: one expression for all windows, a camera for each.*"


@dataclass
class Hooks:
    """What the panel asks of the outside."""

    changed: Callable[[], None]
    """The avatar is to be rendered anew."""
    choose_output: Callable[[str], None]
    split_with: Callable[[str | None], None]
    showing: Callable[[int], None]
    """Show a frame of the capture: its tracked pose and light."""


@dataclass
class Chosen:
    """Inspection settings that are no part of the pose."""

    blendfield: int = 0
    full_mm: float = 5.0
    frame: int | None = None
    wireframe: bool = False
    windows: set[int] = field(default_factory=set)

    def look(self, outputs: frozenset[str]) -> Look:
        return Look(outputs, self.blendfield, self.full_mm, self.frame, self.wireframe)


class Panel:
    """Builds the controls above nerfstudio's own and keeps them in step with `state`."""

    def __init__(
        self, ui: Ui, state: PanelState, framing: Framing, views: TrainingViews, fields: list[str], hooks: Hooks
    ) -> None:
        self.ui = ui
        self.state = state
        self.framing = framing
        self.views = views
        self.fields = fields
        self.hooks = hooks
        self.chosen = Chosen()
        self.sliders: dict[str, Slider] = {}
        self.gaze: dict[str, Slider] = {}
        self.components_open = False
        self.shared = ui.note(SHARED.format("1 window"), order=TOP)
        ui.buttons("View from", tuple(VIEWS_DEG), lambda name, window: self.view(window, VIEWS_DEG[name]), 3, TOP + 1)
        self.problem = ui.note("", order=TOP + 2, visible=False)
        tabs = ui.tabs(order=TOP + 3)
        for label, build in (
            ("Face", self._face_tab),
            ("Head, light", self._head_tab),
            ("Play", self._play_tab),
            ("Inspect", self._inspect_tab),
        ):
            with ui.tab(tabs, label):
                build()

    # ---- tabs ----------------------------------------------------------------------------------------------------

    def _face_tab(self) -> None:
        ui, state = self.ui, self.state
        if len(state.presets) > 1:
            ui.buttons("Presets", tuple(state.presets), self._then(state.set_expression))
        actions = {"reset": state.reset, "mirror": state.mirror, "random": state.random}
        ui.buttons("Pose", tuple(actions), self._then(lambda name: actions[name]()))
        ui.checkbox("go beyond training", False, self._then(self._set_beyond), hint="Sliders end where training ended.")
        self.beyond_note = ui.note(BEYOND, visible=False)
        for group, names in grouped(state.controls.channels).items():
            with ui.folder(group):
                if group == "eyes":
                    for label in state.gaze:
                        self.gaze[label] = ui.slider(
                            label, -1.0, 1.0, 0.01, 0.0, self._then(lambda v, label=label: state.set_gaze(label, v), False)
                        )
                for name in names:
                    self._value_slider(name, 0.01, visible=self._is_open(name))
                if group == "components" and len(names) > FIRST_COMPONENTS:
                    ui.checkbox(f"all {len(names)} components", False, self._then(self._open_components))
        self.unseen = [n for n in state.controls.channels if not state.seen(n)]
        if self.unseen:
            ui.note(f"*Not seen in training, hidden unless one goes beyond it: {', '.join(self.unseen)}*")
        with ui.folder("Pose files", open=False):
            self._pose_files()

    def _pose_files(self) -> None:
        ui, state = self.ui, self.state
        ui.button("Save pose", lambda window: window.download("pose.json", state.to_text().encode()))
        ui.upload("Load pose", lambda name, content, window: self._load(state.load, name, content, window))
        text = ui.text("Pose as text", hint="A pose file's content, to copy from here or to paste here")
        ui.button("Copy current pose to text", lambda _: text.show(" ".join(state.to_text().split())))
        ui.button("Use text", lambda window: self._load(state.load, "text", text.value.encode(), window))

    def _head_tab(self) -> None:
        for label in self.state.angles:
            self._value_slider(label, 0.1, visible=self.state.seen(label))
        still = [n for n in self.state.angles if not self.state.seen(n)]
        if still:
            self.ui.note(f"*Not seen moving in training: {', '.join(still)}*")
        self.light = self.ui.slider(
            "light turn (°)", -180.0, 180.0, 1.0, 0.0, self._then(self.state.set_light, False),
            hint="The lights of the room turn about the avatar; 0 is as in a frontal picture",
        )  # fmt: skip

    def _play_tab(self) -> None:
        ui, state, timeline = self.ui, self.state, self.state.timeline
        self.mode = ui.dropdown(
            "Mode", ("manual", "follow performance"), self._then(lambda mode: state.follow(mode != "manual"))
        )
        steps = {"play": self._play, "pause": timeline.pause, "◂ frame": lambda: self._step(-1), "frame ▸": lambda: self._step(1)}
        ui.buttons("Performance", tuple(steps), self._then(lambda name: steps[name]()))
        self.time = ui.slider(
            "time (s)", 0.0, timeline.duration, 0.01, 0.0, self._then(lambda s: state.seek(s / timeline.duration))
        )
        speed = ui.dropdown("speed", SPEEDS, lambda name, _: setattr(timeline, "speed", float(name.rstrip("x"))))
        speed.show("1x")
        ui.checkbox("loop", True, lambda loop, _: setattr(timeline, "loop", loop))
        with ui.folder("Blend in a pose"):
            self.kept = ui.note("no pose is kept yet")
            ui.button("Keep what is shown", lambda window: (state.keep(), self._kept("kept: what was shown", window)))
            ui.upload("Keep a pose file", lambda name, content, window: self._keep_file(name, content, window))
            self.blend = ui.slider("blend", 0.0, 1.0, 0.01, 0.0, self._then(state.set_blend, False))

    def _inspect_tab(self) -> None:
        ui, chosen = self.ui, self.chosen
        ui.dropdown("Picture", OUTPUTS, lambda name, _: self.hooks.choose_output(name))
        if self.fields:
            ui.dropdown("Blendfield", self.fields, self._chooser(lambda n: setattr(chosen, "blendfield", self.fields.index(n))))
            ui.slider("full colour at (mm)", 0.5, 20.0, 0.5, chosen.full_mm, self._chooser(lambda v: setattr(chosen, "full_mm", v)))
        ui.checkbox("template as wireframe", False, self._chooser(lambda on: setattr(chosen, "wireframe", on)))
        with ui.folder("Training frames"):
            self.yaw = ui.slider("yaw (°)", -180.0, 180.0, 1.0, 0.0, lambda yaw, _: self.show_frame(self.views.nearest(yaw)))
            self.frame_note = ui.note("")
            ui.button("Nearest to this view", lambda window: self.show_frame(self._nearest(window)))
            ui.button("Go to its camera", self._go_to_frame)
            ui.button("Show its pose and light", lambda _: self._show_frame_pose())
            ui.checkbox("compare in the right half", False, lambda on, _: self._compare(on))
        with ui.folder("Coefficients"):
            self.bars = ui.note("")

    # ---- what they do ----------------------------------------------------------------------------------------------

    def _then(self, act: Callable, sync: bool = True) -> Callable[[object, Window], None]:
        """Act, render, and let all controls follow if others than the one that was moved may have changed."""

        def callback(value: object, window: Window) -> None:
            followed = self.state.following
            act(value)
            self.say_problem("")
            self.hooks.changed()
            self.stale = True
            if sync or followed or self.sliders_stale:
                self.sliders_stale = True

        return callback

    stale = True
    """Whether bars and overlay show something older than `state`."""
    sliders_stale = True

    def _chooser(self, act: Callable) -> Callable[[object, Window], None]:
        def callback(value: object, window: Window) -> None:
            act(value)
            self.stale = True
            self.hooks.changed()

        return callback

    def _value_slider(self, name: str, step: float, visible: bool) -> None:
        state = self.state
        seen, value = state.slider_range(name), state.value(name)
        low, high = _outwards(seen.low, seen.high, step)
        self.sliders[name] = self.ui.slider(
            spoken(name), low, high, step, value, self._then(lambda v: self._set_value(name, v, step), False),
            hint=f"{name}: training saw {seen.low:.2f} to {seen.high:.2f}", visible=visible,
        )  # fmt: skip

    def _set_value(self, name: str, value: float, step: float) -> None:
        self.state.set_value(name, value)
        if abs(self.state.value(name) - value) > step:  # typed, and beyond the slider's end: show what it became
            self.sliders_stale = True

    def _is_open(self, name: str) -> bool:
        """Whether a slider is shown: seen in training (or beyond), and of the first components (or all of them)."""
        state = self.state
        if name in state.angles:
            return state.beyond or state.seen(name)
        components = grouped(state.controls.channels).get("components", [])
        first = name not in components[FIRST_COMPONENTS:] or self.components_open
        return first and (state.beyond or state.seen(name))

    def _open_components(self, all_of_them: bool) -> None:
        self.components_open = all_of_them
        for name, slider in self.sliders.items():
            slider.set_visible(self._is_open(name))

    def _set_beyond(self, beyond: bool) -> None:
        self.state.set_beyond(beyond)
        self.beyond_note.set_visible(beyond)
        for name, slider in self.sliders.items():
            angular = name in self.state.angles
            wide = self.state.slider_range(name)
            seen = (self.state.angle_limits if angular else self.state.limits)[name]
            low, high = _outwards(wide.low, wide.high, 0.1 if angular else 0.01)
            slider.set_range(low, high, (seen.low, seen.high) if beyond else (low, high))
            slider.set_visible(self._is_open(name))

    def _play(self) -> None:
        self.state.follow(True)
        self.state.timeline.play()

    def _step(self, frames: int) -> None:
        self.state.timeline.step(frames)
        self.state.follow(True)

    def _load(self, use: Callable[[str, str], None], name: str, content: bytes, window: Window) -> None:
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise PoseError(f"{name}: not text ({error.reason}); a pose file is JSON.") from error
        self._then(lambda text: use(text, name))(text, window)
        window.say("Pose loaded", name)

    def _keep_file(self, name: str, content: bytes, window: Window) -> None:
        self._load(self.state.load_kept, name, content, window)
        self._kept(f"kept: {name}", window)

    def _kept(self, text: str, window: Window) -> None:
        self.kept.set(text)
        self._then(lambda _: None)(None, window)

    def say_problem(self, text: str) -> None:
        """Show what went wrong above the tabs until the next change; empty: nothing did."""
        self.problem.set(f"🛑 {text}" if text else "")
        self.problem.set_visible(bool(text))

    def failed(self, error: ThreeVPError, window: Window) -> None:
        self.say_problem(str(error))
        window.say("Not done", str(error)[:NOTE_LENGTH], bad=True)

    # ---- cameras and frames ----------------------------------------------------------------------------------------

    def view(self, window: Window, yaw: float) -> None:
        """Frame the avatar as its capture does, from a yaw in degrees."""
        distance = self.framing.distance * max(MOST_WINDOW_ASPECT / max(window.aspect, 1e-3), 1.0)
        pose = orbit(self.framing.center, distance, 0.0, np.array([math.radians(yaw)]))[0]
        window.look(pose[:3, 3], self.framing.center, self.framing.fov_y)

    def opened(self, window: Window) -> None:
        self.chosen.windows.add(window.number)
        self._say_windows()
        self.view(window, 0.0)

    def closed(self, window: Window) -> None:
        self.chosen.windows.discard(window.number)
        self._say_windows()

    def _say_windows(self) -> None:
        count = len(self.chosen.windows)
        self.shared.set(SHARED.format(f"{count} window{'s' * (count != 1)}"))

    def _nearest(self, window: Window) -> int:
        position = window.camera_position - self.framing.center
        yaw = math.degrees(math.atan2(position[0], -position[1]))
        state = self.state.state(self.state.snapshot(), self.state.timeline.position)
        return self.views.nearest(yaw, state.conditioning[0].cpu().numpy())

    def show_frame(self, frame: int) -> None:
        """Show a training frame's picture in the panel, and in the output `training_frame`."""
        self.chosen.frame = frame
        yaw, frames = self.views.yaw_of(frame), self.views.frames
        self.yaw.show(round(yaw))
        name = frames.image_paths[frame].name
        self.frame_note.set(f"![frame]({self.views.thumbnail(frame)})\n\n{name}: yaw {yaw:.0f}°, {frames.sequence[frame]}")
        self.hooks.changed()

    def _some_frame(self) -> int:
        if self.chosen.frame is None:
            self.show_frame(self.views.nearest(0.0))
        return self.chosen.frame

    def _go_to_frame(self, window: Window) -> None:
        frame = self._some_frame()
        matrix = self.views.frames.camera_to_world[frame]
        reach = float(np.linalg.norm(matrix[:3, 3] - self.framing.center))
        window.look(matrix[:3, 3], matrix[:3, 3] - reach * matrix[:3, 2], self.views.fov_y(frame))

    def _show_frame_pose(self) -> None:
        self.hooks.showing(self._some_frame())
        self.sliders_stale = self.stale = True
        self.hooks.changed()

    def _compare(self, on: bool) -> None:
        if on:
            self._some_frame()
        self.hooks.split_with("training_frame" if on else None)

    # ---- following what is shown -----------------------------------------------------------------------------------

    def sync(self) -> None:
        """Bring all sliders to what is shown."""
        state, pose = self.state, self.state.pose
        for name, slider in self.sliders.items():
            step = 0.1 if name in state.angles else 0.01
            _show_about(slider, state.value(name, pose), step)
        for label, slider in self.gaze.items():
            _show_about(slider, state.gaze_value(label, pose), 0.01)
        self.light.show(state.light_turn_deg)
        self.blend.show(state.blend)
        self.mode.show("follow performance" if state.following else "manual")
        self.sync_time()

    def sync_time(self) -> None:
        self.time.show(round(self.state.timeline.seconds, 2))


def _show_about(slider: Slider, value: float, step: float) -> None:
    """Set a slider unless it stands there already, but for rounding."""
    if abs(slider.value - value) > step / 2:
        slider.show(round(value / step) * step)


def _outwards(low: float, high: float, step: float) -> tuple[float, float]:
    """Round a range to steps, to its outside, so that its ends can be reached; never empty."""
    low, high = math.floor(low / step + 1e-6) * step, math.ceil(high / step - 1e-6) * step
    return round(low, 6), round(max(high, low + step), 6)
