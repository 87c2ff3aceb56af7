"""nerfstudio's viewer (1.1.5) from the avatar's side: whose picture is asked for, when to stop one, its own controls."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine
from nerfstudio.viewer_legacy.server.viewer_utils import IOChangeException

if TYPE_CHECKING:
    from nerfstudio.viewer.viewer import Viewer

MOVING_SECONDS = 0.15
"""What a picture may take while something moves; its resolution follows from it."""
RESTING_SECONDS = 1.2
"""What the first picture after that may take, before the fine one."""
COARSE_HEIGHT = (48, 256)
"""Smallest and largest height of such pictures, pixels."""
FIRST_GUESS = 15_000.0
"""Rays per second, until a picture was timed."""


class NoActionLost(RenderStateMachine):
    """A window's render thread that keeps what comes while it takes what is pending.

    nerfstudio's loop looks at the pending action and then clears it; an action that comes between the two would be cleared unseen, and
    the window would stay as it is, coarse or with an earlier pose, until it is asked again. Here only the action that was looked at is
    cleared, and two threads do not decide at once which action stays.
    """

    _deciding: threading.RLock
    _taken: RenderAction | None

    @classmethod
    def adopt(cls, machine: RenderStateMachine) -> None:
        """Make one of an existing machine, whose thread may already run."""
        machine.__dict__.update(_deciding=threading.RLock(), _taken=None)
        machine.__class__ = cls

    @property
    def next_action(self) -> RenderAction | None:
        pending = self.__dict__["next_action"]
        if threading.current_thread() is self:
            self._taken = pending
        return pending

    @next_action.setter
    def next_action(self, action: RenderAction | None) -> None:
        with self._deciding:
            if action is not None or self.__dict__["next_action"] is self._taken:
                self.__dict__["next_action"] = action

    def action(self, action: RenderAction) -> None:
        with self._deciding:
            super().action(action)


class Host:
    """What the avatar's panel needs of nerfstudio's viewer.

    The host times its pictures with the wait for the training step, and would render ever smaller ones during training;
    it measures rays here, without that wait. It also stops a picture by tracing every line of Python; pictures of the
    avatar look for themselves, between chunks.
    """

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self._rays_per_second = FIRST_GUESS
        self._cameras_hidden = False

    # ---- pictures ------------------------------------------------------------------------------------------------

    def asking(self) -> RenderStateMachine | None:
        """The render thread that runs this, if it is one of this viewer's; nobody else gets the panel's pose."""
        thread = threading.current_thread()
        ours = isinstance(thread, RenderStateMachine) and thread.viewer is self.viewer
        return thread if ours else None

    @property
    def previewing(self) -> bool:
        """Whether the render tab plays its camera path: it then shows what ns-render would."""
        return bool(self.viewer.render_tab_state.preview_render)

    def stopper(self, machine: RenderStateMachine) -> Callable[[], None]:
        """To call between chunks: raises when the picture is no longer wanted.

        All but the quick picture of a move make way for what moves in their own window, which then refines anew, and
        in other windows: they share one lock.
        """
        sys.settrace(None)

        def stop_if_outdated() -> None:
            if machine.state == "low_move":
                return
            pending = machine.next_action
            if pending is not None and pending.action in ("move", "rerender"):
                raise IOChangeException
            others = list(self.viewer.render_statemachines.values())
            if any(other.state == "low_move" for other in others if other is not machine):
                machine.state = "low_static"  # from which it refines by itself when nothing moves any more
                raise IOChangeException

        return stop_if_outdated

    def timed(self, rays: int, seconds: float) -> None:
        """Note how long a picture took; a machine that has become slower is believed at once."""
        rate = rays / max(seconds, 1e-6)
        self._rays_per_second = min(rate, self._rays_per_second + 0.3 * (rate - self._rays_per_second))

    def opened(self, machine: RenderStateMachine) -> None:
        """Give a window's moving pictures a resolution that keeps up, and see to it that none is left out."""
        NoActionLost.adopt(machine)
        fine = machine._calculate_image_res

        def resolution(aspect: float) -> tuple[int, int]:  # called first in each picture
            machine.interrupt_render_flag = False  # may be left from a picture that had ended when it was set
            if machine.state == "high":
                return fine(aspect)
            low, high = COARSE_HEIGHT
            seconds = MOVING_SECONDS if machine.state == "low_move" else RESTING_SECONDS
            height = (self._rays_per_second * seconds / aspect) ** 0.5
            height = int(min(max(height, low), high, self.viewer.control_panel.max_res))
            return height, max(int(height * aspect), 1)

        machine._calculate_image_res = resolution

    def rerender(self, by_hand: bool = True) -> None:
        """New pictures for all windows; only the last request counts. By hand, training makes way for a moment."""
        if not self.viewer.ready:
            return
        if by_hand:
            self.viewer.last_move_time = time.time()
        machines = self.viewer.render_statemachines
        for number, client in self.viewer.viser_server.get_clients().items():
            if number in machines:  # a window may have closed meanwhile
                machines[number].action(RenderAction("move", self.viewer.get_camera_state(client)))

    # ---- its controls --------------------------------------------------------------------------------------------

    @property
    def outputs(self) -> frozenset[str]:
        """Names of the outputs that are looked at."""
        panel = self.viewer.control_panel
        return frozenset([panel.output_render, *([panel.split_output_render] if panel.split else [])])

    def choose_output(self, name: str) -> None:
        self.viewer.control_panel._output_render.value = name

    def split_with(self, name: str | None) -> None:
        """Show an output in the right half; None: no split."""
        panel = self.viewer.control_panel
        if name is not None:
            panel._split_output_render.value = name
        panel._split.value = name is not None

    def on_time(self, act: Callable[[float], None]) -> None:
        """Call when a person moves the host's own time slider."""
        handle = self.viewer.control_panel._time.gui_handle
        if handle is not None:
            handle.on_update(lambda event: None if event.client is None else act(float(handle.value)))

    def show_time(self, position: float) -> None:
        """Move the host's time slider, from which keyframes of the render tab take their time."""
        handle = self.viewer.control_panel._time.gui_handle
        if handle is not None and abs(handle.value - position) > 1e-6:
            handle.value = float(position)

    def hide_cameras_once(self) -> None:
        """The training cameras' frusta stand round the first view, in its way; their button brings them back."""
        if self._cameras_hidden or not hasattr(self.viewer, "train_util"):  # set when the scene is complete
            return
        self._cameras_hidden = True
        self.viewer.set_camera_visibility(False)
        self.viewer.toggle_cameravis_button()

    def tell_port(self) -> None:
        """viser takes the next free port where the one asked for is taken; nerfstudio prints the one asked for."""
        asked, port = self.viewer.config.websocket_port, self.viewer.viser_server.get_port()
        if asked is not None and asked != port:
            self.viewer.viewer_info.append(f"Port {asked} is in use: the viewer is at http://localhost:{port}")
