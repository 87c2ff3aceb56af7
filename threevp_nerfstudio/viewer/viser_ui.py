"""Everything that touches viser (0.2.7): widgets, windows, scene nodes. A newer viser costs this file.

Callbacks of widgets run only for what a person does; what the program sets moves the widget in all windows and calls
nothing. An error of ours (`ThreeVPError`) in a callback goes to `on_error`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import viser
from jaxtyping import Float, Int
from numpy import ndarray as Array
from viser._messages import GuiUpdateMessage

from threevp_nerfstudio.errors import ThreeVPError

SCALE = 10.0
"""Units of nerfstudio's scene per metre."""


def serve(port: int) -> viser.ViserServer:
    """A page of our own, z upwards."""
    server = viser.ViserServer(port=port, verbose=False)
    server.scene.set_up_direction("+z")
    return server


class Window:
    """One browser window, with a camera of its own."""

    def __init__(self, client: viser.ClientHandle, scale: float = SCALE) -> None:
        self._client = client
        self._scale = scale

    @property
    def number(self) -> int:
        return self._client.client_id

    @property
    def aspect(self) -> float:
        """Width by height of what the camera shows."""
        return float(self._client.camera.aspect)

    @property
    def camera_position(self) -> Float[Array, "3"]:
        """Metres."""
        return np.asarray(self._client.camera.position) / self._scale

    def look(self, position: Float[Array, "3"], target: Float[Array, "3"], fov_y: float | None = None) -> None:
        """Put the camera somewhere, upright; it orbits about `target`. Metres, radians."""
        camera = self._client.camera
        with self._client.atomic():
            camera.up_direction = np.array([0.0, 0.0, 1.0])
            camera.position = np.asarray(position) * self._scale
            camera.look_at = np.asarray(target) * self._scale
            if fov_y is not None:
                camera.fov = fov_y

    def say(self, title: str, text: str, bad: bool = False) -> None:
        """A note that goes away again."""
        self._client.add_notification(title, text, color="red" if bad else "green", auto_close=6000)

    def download(self, name: str, content: bytes) -> None:
        """Hand a file to the browser."""
        self._client.send_file_download(name, content)


class Widget:
    """A slider, box, list or text of the panel; `value` may be set from any thread."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @property
    def value(self) -> Any:
        return self._handle.value

    def show(self, value: Any) -> None:
        """Set the value without anybody having moved it."""
        if self._handle.value != value:
            self._handle.value = value

    def set_visible(self, visible: bool) -> None:
        self._handle.visible = visible


class Slider(Widget):
    """A slider whose ends can be moved."""

    def __init__(self, handle: Any, low: float, high: float) -> None:
        super().__init__(handle)
        self.low, self.high = low, high

    def show(self, value: float) -> None:
        super().show(float(min(max(value, self.low), self.high)))

    def set_range(self, low: float, high: float, marks: Sequence[float]) -> None:
        """Move the ends, and the marks. viser has setters for a value only; its page takes any property."""
        self.low, self.high = low, high
        updates = {"min": low, "max": high, "marks": [{"value": m, "label": f"{m:.3g}"} for m in marks]}
        self._handle._impl.gui_api._websock_interface.queue_message(GuiUpdateMessage(self._handle._impl.id, updates))
        self.show(self.value)


class Note:
    """A piece of markdown that can change or hide."""

    def __init__(self, handle: viser.GuiMarkdownHandle) -> None:
        self._handle = handle

    def set(self, text: str) -> None:
        if self._handle.content != text:
            self._handle.content = text

    def set_visible(self, visible: bool) -> None:
        self._handle.visible = visible


class Ui:
    """Builds widgets where the surrounding `with` says; `scale` is that of the scene, in units per metre."""

    def __init__(
        self,
        server: viser.ViserServer,
        on_error: Callable[[ThreeVPError, Window], None] | None = None,
        scale: float = SCALE,
    ) -> None:
        self._server = server
        self._on_error = on_error
        self._scale = scale
        self._meshes: dict[str, Any] = {}

    def _when_done(self, act: Callable[[Any, Window], None]) -> Callable[[Any], None]:
        def callback(event: Any) -> None:
            if event.client is None:  # set by the program
                return
            window = Window(event.client, self._scale)
            try:
                act(event.target.value, window)
            except ThreeVPError as error:
                if self._on_error is None:
                    raise
                self._on_error(error, window)

        return callback

    # ---- where ---------------------------------------------------------------------------------------------------

    def tabs(self, order: float | None = None) -> Any:
        return self._server.gui.add_tab_group(order=order)

    def tab(self, tabs: Any, label: str) -> AbstractContextManager:
        return tabs.add_tab(label)

    def folder(self, label: str, open: bool = True) -> AbstractContextManager:
        return self._server.gui.add_folder(label, expand_by_default=open)

    # ---- widgets -------------------------------------------------------------------------------------------------

    def slider(
        self,
        label: str,
        low: float,
        high: float,
        step: float,
        value: float,
        act: Callable[[float, Window], None],
        hint: str | None = None,
        visible: bool = True,
    ) -> Slider:
        low, high, value = float(low), float(high), float(min(max(value, low), high))
        marks = ((low, f"{low:.3g}"), (high, f"{high:.3g}"))  # by itself, viser writes the ends as whole numbers
        handle = self._server.gui.add_slider(label, low, high, float(step), value, marks, hint=hint, visible=visible)
        handle.on_update(self._when_done(act))
        return Slider(handle, low, high)

    def checkbox(self, label: str, value: bool, act: Callable[[bool, Window], None], hint: str | None = None) -> Widget:
        handle = self._server.gui.add_checkbox(label, value, hint=hint)
        handle.on_update(self._when_done(act))
        return Widget(handle)

    def dropdown(self, label: str, options: Sequence[str], act: Callable[[str, Window], None]) -> Widget:
        handle = self._server.gui.add_dropdown(label, tuple(options))
        handle.on_update(self._when_done(act))
        return Widget(handle)

    def buttons(
        self,
        label: str,
        options: Sequence[str],
        act: Callable[[str, Window], None],
        columns: int = 2,
        order: float | None = None,
    ) -> None:
        """Rows of small buttons; a row of the panel has room for two words."""
        for i in range(0, len(options), columns):
            place = None if order is None else order + 0.01 * i
            handle = self._server.gui.add_button_group(label if i == 0 else " ", options[i : i + columns], order=place)
            handle._impl.is_button = True  # viser 0.2.7 takes a second click on the same one for no change
            handle.on_click(self._when_done(act))

    def button(self, label: str, act: Callable[[Window], None], hint: str | None = None) -> None:
        self._server.gui.add_button(label, hint=hint).on_click(self._when_done(lambda _, window: act(window)))

    def upload(self, label: str, act: Callable[[str, bytes, Window], None]) -> None:
        """A button that takes a JSON file: `act(name, content, window)`."""
        handle = self._server.gui.add_upload_button(label, mime_type="application/json")
        handle.on_upload(self._when_done(lambda file, window: act(file.name, file.content, window)))

    def text(self, label: str, hint: str | None = None) -> Widget:
        return Widget(self._server.gui.add_text(label, "", hint=hint))

    def note(self, text: str, order: float | None = None, visible: bool = True) -> Note:
        # without a root for pictures viser warns, even of pictures that are in the text itself
        handle = self._server.gui.add_markdown(text, image_root=Path.cwd(), order=order, visible=visible)
        return Note(handle)

    # ---- windows and scene ---------------------------------------------------------------------------------------

    def on_windows(self, opened: Callable[[Window], None], closed: Callable[[Window], None]) -> None:
        """Called within viser's lock of its windows: neither may ask for all of them."""
        self._server.on_client_connect(lambda client: opened(Window(client, self._scale)))
        self._server.on_client_disconnect(lambda client: closed(Window(client, self._scale)))

    def mesh(
        self,
        name: str,
        vertices: Float[Array, "V 3"],
        faces: Int[Array, "F 3"],
        colour: tuple[int, int, int],
        wireframe: bool = False,
    ) -> None:
        """Draw a mesh in place of what was there under this name; metres."""
        # a mesh handle of viser 0.2.7 has no vertices to set: a mesh that is added under its name replaces the old one
        look = {"wireframe": True, "opacity": 0.5} if wireframe else {"side": "double"}
        self._meshes[name] = self._server.scene.add_mesh_simple(
            f"/{name}", vertices * self._scale, faces, color=colour, **look
        )

    def remove_mesh(self, name: str) -> None:
        """Take a mesh away, if it is there."""
        handle = self._meshes.pop(name, None)
        if handle is not None:
            handle.remove()

    @property
    def meshes(self) -> tuple[str, ...]:
        return tuple(self._meshes)

    def together(self) -> AbstractContextManager:
        """What is sent within is shown at once."""
        return self._server.atomic()
