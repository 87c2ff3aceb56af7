"""The avatar in nerfstudio's viewer: found by it on the pipeline, during training and in ns-viewer alike.

    pipeline.avatar_viewer  --_setup-->  Panel (controls)  -->  PanelState  -->  render thread: Pictures

The pose belongs to a picture, not to the model: `model.viewer_pictures` answers render threads of the viewer only, so
training batches and evaluation never see what the sliders say.
"""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.pipelines.base_pipeline import Pipeline
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer import Viewer
from nerfstudio.viewer.viewer_elements import ViewerControl
from torch import Tensor

from threevp_nerfstudio.animation.controls import AvatarControls
from threevp_nerfstudio.capture.capture import Capture, read_rgba
from threevp_nerfstudio.model.model import ThreeVPModel
from threevp_nerfstudio.render.orbit import Framing, framing_of
from threevp_nerfstudio.viewer.host import Host
from threevp_nerfstudio.viewer.panel import Hooks, Panel
from threevp_nerfstudio.viewer.panel_state import PanelState
from threevp_nerfstudio.viewer.pictures import Pictures, coefficients, field_names
from threevp_nerfstudio.viewer.timeline import Timeline
from threevp_nerfstudio.viewer.training_views import TrainingViews, bars
from threevp_nerfstudio.viewer.viser_ui import Ui, Window

WIREFRAME = "avatar_template"
WIREFRAME_COLOUR = (0, 190, 255)
TICK_SECONDS = 0.05
FOLLOW_SECONDS = 0.25
"""Between two updates of sliders, bars and overlay: they cost messages to every window."""


class AvatarViewer(ViewerControl):
    """Controls of an avatar; nothing happens before a viewer calls `_setup`."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.shown_version = -1
        """Version of the panel's state that the last finished picture shows."""

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        model: ThreeVPModel = self._pipeline.model
        capture: Capture = self._pipeline.datamanager.train_dataset.capture
        training = self._pipeline.datamanager.train_dataset.frames
        performance = model.performance

        def picture(frame: int) -> np.ndarray:
            return read_rgba(capture.frames, frame)

        self.model = model
        self.host = Host(viewer)
        self.pictures = Pictures(model, capture.frames, picture)
        self.state = PanelState(
            AvatarControls.of(model),
            Timeline(performance.timeline_times.tolist(), performance_seconds(capture)),
            performance.motion_index[torch.as_tensor(training)].tolist(),
        )
        everything = performance.at_frames(torch.arange(len(capture.frames), device=model.device))
        views = TrainingViews(capture.frames, training, everything.conditioning.cpu().numpy(), picture)
        self.faces = model.canonical.rig.faces.cpu().numpy()
        self.ui = Ui(self.viser_server, lambda error, window: self.panel.failed(error, window))
        hooks = Hooks(self.host.rerender, self.host.choose_output, self.host.split_with, self._show_frame)
        self.panel = Panel(self.ui, self.state, framing_about_head(model, capture), views, field_names(model), hooks)
        self.host.on_time(self._host_time)
        self.host.tell_port()
        self.ui.on_windows(self._opened, self.panel.closed)
        model.viewer_pictures = self.picture
        threading.Thread(target=self._keep_time, name="threevp-viewer", daemon=True).start()

    # ---- pictures ------------------------------------------------------------------------------------------------

    def picture(self, camera: Cameras) -> dict[str, Tensor] | None:
        """What a window of the viewer shows; None unless a render thread of the viewer asks."""
        machine = self.host.asking()
        if machine is None:
            return None
        shown, position = self.state.snapshot(), self.state.timeline.position
        if self.host.previewing:
            shown = replace(shown, pose=None, blend=0.0, light_turn_deg=0.0)
            position = float(camera.times.view(-1)[0])
        look = self.panel.chosen.look(self.host.outputs)
        stopper, start = self.host.stopper(machine), time.perf_counter()
        key = None if self.host.previewing else ("panel", shown.version, position)
        outputs = self.pictures.render(camera, self.state.state(shown, position), look, stopper, key)
        if machine.state != "high":
            self.host.timed(outputs["rgb"].shape[0] * outputs["rgb"].shape[1], time.perf_counter() - start)
        self.shown_version = shown.version
        return outputs

    # ---- changes from elsewhere ----------------------------------------------------------------------------------

    def _opened(self, window: Window) -> None:
        machine = self.viewer.render_statemachines.get(window.number)
        if machine is not None:
            self.host.opened(machine)
        self.panel.opened(window)

    def _host_time(self, position: float) -> None:
        self.state.seek(position)
        self.panel.sliders_stale = self.panel.stale = True
        self.host.rerender()

    def _show_frame(self, frame: int) -> None:
        state = self.model.performance.at_frames(torch.tensor([frame], device=self.model.device))
        pose = self.state.controls.pose(state)
        self.state.show(pose)

    # ---- time ----------------------------------------------------------------------------------------------------

    def _keep_time(self) -> None:
        """Play, and let the controls follow, until the viewer is gone."""
        last = followed = time.monotonic()
        while threading.main_thread().is_alive():
            time.sleep(TICK_SECONDS)
            now = time.monotonic()
            try:
                self.host.hide_cameras_once()
                playing = self.state.tick(now - last)
                if playing:
                    self.host.rerender(by_hand=False)
                    self.panel.sliders_stale = self.panel.stale = True
                if now - followed >= FOLLOW_SECONDS:
                    self.follow()
                    followed = now
            except RuntimeError as error:
                if "shutdown" in str(error) or "closed" in str(error):  # the server has stopped: training is over
                    return
                CONSOLE.print(f"[yellow]The avatar's panel: {error}")
            last = now

    def follow(self) -> None:
        """Bring sliders, coefficients and overlay to what is shown, as far as that has changed."""
        panel, state = self.panel, self.state
        if panel.sliders_stale:
            panel.sliders_stale = False
            panel.sync()
            if state.following:
                self.host.show_time(state.timeline.position)
        if panel.stale:
            panel.stale = False
            pose = state.state(state.snapshot(), state.timeline.position)
            names, values = coefficients(self.model, pose)
            panel.bars.set(f"```\n{bars(names, values)}\n```" if names else "*this avatar has no blendfields*")
            if panel.chosen.wireframe:
                vertices = self.model.canonical.posed_vertices(pose)[0].cpu().numpy()
                self.ui.mesh(WIREFRAME, vertices, self.faces, WIREFRAME_COLOUR, wireframe=True)
            else:
                self.ui.remove_mesh(WIREFRAME)


def performance_seconds(capture: Capture) -> float:
    """Duration of what a capture's `times` run over."""
    frames = capture.frames
    dynamic = frames.sequence == "dynamic"
    span = frames.times[dynamic] if dynamic.any() else frames.times
    return float(span.max() - span.min())


def framing_about_head(model: ThreeVPModel, capture: Capture) -> Framing:
    """As the capture's cameras frame the subject, but about the vertical axis through its head."""
    frames, rig = capture.frames, model.canonical.rig
    vertices = model.canonical.vertices.cpu().numpy()
    middle = (vertices.min(0) + vertices.max(0)) / 2
    framing = framing_of(frames.camera_to_world, frames.focal[:, 1], frames.size[:, 1], middle)
    heads = [i for i, name in enumerate(rig.joint_names) if "head" in str(name).lower()]
    if not heads:
        return framing
    head = vertices[(rig.skin_weights[:, heads].sum(1) > 0.5).cpu().numpy()]
    if len(head) == 0:
        return framing
    x, y = ((head.min(0) + head.max(0)) / 2)[:2]
    return replace(framing, center=np.array([x, y, framing.center[2]]))
