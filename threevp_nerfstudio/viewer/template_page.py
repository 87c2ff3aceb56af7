"""A page that shows a rigged template: turn its joints, play its expressions, colour its regions (`threevp template --show`)."""

from __future__ import annotations

import threading
import time

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array

from threevp_nerfstudio.body.labels import INSIDE, face_colours, faces_in
from threevp_nerfstudio.body.mesh import vertex_normals
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.viewer.viser_ui import Slider, Ui, Window, serve

LIMIT = 0.8
"""Radians a joint slider reaches either way."""
SKIN = (222, 196, 178)
LARGEST_EXPRESSION = 1.0
LARGEST_COMPONENT = 3.0
"""SMPL-X's components are in standard deviations."""


class TemplatePage:
    """Joint, expression and region controls of a template, served by viser."""

    def __init__(self, template: RiggedTemplate, port: int = 7008) -> None:
        self.template = template
        self.rig = Rig.from_template(template)
        self.rotations = torch.zeros(1, len(template.joint_names), 3)
        self.expression = torch.zeros(1, len(template.expression_names))
        self.by_region = False
        self.hidden: set[str] = set()
        self._changed = threading.Event()
        self._sliders: list[Slider] = []
        self.server = serve(port)
        self.ui = Ui(self.server, scale=1.0)
        self._first_camera()
        self._controls()
        self.redraw()

    def posed(self) -> Float[Array, "V 3"]:
        """Vertices at the sliders' values."""
        with torch.no_grad():
            return self.rig.pose(self.rotations, torch.zeros(1, 3), self.expression)[0].numpy()

    def parts(self) -> dict[str, tuple[Array, tuple[int, int, int]]]:
        """What is drawn: name -> (faces, colour)."""
        t = self.template
        shown = [i for i, name in enumerate(t.region_names) if name not in self.hidden]
        coloured = np.ones(len(t.faces), dtype=bool) if self.by_region else faces_in(t, INSIDE)
        drawn = {"skin": (t.faces[np.isin(t.face_regions, shown) & ~coloured], SKIN)}
        colours = face_colours(t)
        for label in np.unique(t.face_regions[coloured]):
            if label in shown:
                rows = t.face_regions == label
                drawn[str(t.region_names[label])] = (t.faces[rows], tuple(int(c) for c in colours[rows][0]))
        return {name: part for name, part in drawn.items() if len(part[0])}

    def redraw(self) -> None:
        """Send the posed mesh; parts that are no longer drawn are removed."""
        vertices = self.posed()
        parts = {name: value for name, value in self.parts().items() if len(value[0])}
        with self.ui.together():
            for name in set(self.ui.meshes) - set(parts):
                self.ui.remove_mesh(name)
            for name, (faces, colour) in parts.items():
                self.ui.mesh(name, vertices, faces, colour)

    def reset(self) -> None:
        """The neutral face in the rest pose."""
        for slider in self._sliders:
            slider.show(0.0)
        self.rotations.zero_()
        self.expression.zero_()
        self._changed.set()

    def serve_forever(self) -> None:
        """Draw at most 20 times a second, until interrupted."""
        print(f"template page at http://localhost:{self.server.get_port()} (ctrl-c ends it)", flush=True)
        try:
            while True:
                self._changed.wait()
                self._changed.clear()
                self.redraw()
                time.sleep(0.05)
        finally:
            self.server.stop()

    def _first_camera(self) -> None:
        v = self.template.vertices
        centre, size = (v.min(0) + v.max(0)) / 2, float(np.ptp(v, axis=0).max())

        def opened(window: Window) -> None:
            window.look(centre + np.array([0.0, -1.6 * size, 0.1 * size]), centre)

        self.ui.on_windows(opened, lambda window: None)

    def _controls(self) -> None:
        ui, t = self.ui, self.template
        facing = float((vertex_normals(t.vertices, t.faces) * (t.vertices - t.vertices.mean(0))).sum())
        ui.note(
            f"**{t.body_model}**  \n{len(t.vertices)} vertices, {len(t.faces)} triangles  \nlicence: {t.license}"
            + ("" if facing > 0 else "  \n**the triangles face inwards**")
        )
        ui.button("Reset", lambda _: self.reset())
        with ui.folder("Regions", open=False):
            ui.checkbox("colour by region", False, lambda on, _: self._colour(on))
            for label in np.unique(t.face_regions):
                self._region_box(str(t.region_names[label]))
        with ui.folder("Expressions"):
            largest = LARGEST_COMPONENT if t.body_model.startswith("smplx") else LARGEST_EXPRESSION
            for k, name in enumerate(t.expression_names):
                low = -largest if largest > 1 else 0.0
                self._slider(str(name), low, largest, self.expression, (0, k))
        with ui.folder("Joints", open=False):
            for j, name in enumerate(t.joint_names):
                with ui.folder(str(name), open=False):
                    for axis in range(3):
                        self._slider("xyz"[axis], -LIMIT, LIMIT, self.rotations, (0, j, axis))

    def _colour(self, by_region: bool) -> None:
        self.by_region = by_region
        self._changed.set()

    def _region_box(self, name: str) -> None:
        def show(on: bool, _: Window) -> None:
            (self.hidden.discard if on else self.hidden.add)(name)
            self._changed.set()

        self.ui.checkbox(name, True, show)

    def _slider(self, name: str, low: float, high: float, values: torch.Tensor, at: tuple[int, ...]) -> None:
        def move(value: float, _: Window) -> None:
            values[at] = value
            self._changed.set()

        self._sliders.append(self.ui.slider(name, low, high, 0.01, 0.0, move))
