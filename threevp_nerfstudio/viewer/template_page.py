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

LIMIT = 0.8
"""Radians a joint slider reaches either way."""
SKIN = (222, 196, 178)
LARGEST_EXPRESSION = 1.0
LARGEST_COMPONENT = 3.0
"""SMPL-X's components are in standard deviations."""


class TemplatePage:
    """Joint, expression and region controls of a template, served by viser."""

    def __init__(self, template: RiggedTemplate, port: int = 7008) -> None:
        import viser

        self.template = template
        self.rig = Rig.from_template(template)
        self.rotations = torch.zeros(1, len(template.joint_names), 3)
        self.expression = torch.zeros(1, len(template.expression_names))
        self.by_region = False
        self.hidden: set[str] = set()
        self._changed = threading.Event()
        self._drawn: dict = {}
        self._sliders: list = []
        self.server = viser.ViserServer(port=port, verbose=False)
        self.server.scene.set_up_direction("+z")
        self.server.gui.configure_theme(control_width="large")  # names of channels are long
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
        parts = self.parts()
        with self.server.atomic():
            for name in set(self._drawn) - set(parts):
                self._drawn.pop(name).remove()
            for name, (faces, colour) in parts.items():  # viser 0.2.7 replaces a mesh that is added under its name
                path = f"/template/{name}"
                self._drawn[name] = self.server.scene.add_mesh_simple(path, vertices, faces, color=colour, side="double")

    def reset(self) -> None:
        """The neutral face in the rest pose."""
        for slider in self._sliders:
            slider.value = 0.0
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

        @self.server.on_client_connect
        def _(client) -> None:
            client.camera.position = centre + np.array([0.0, -1.6 * size, 0.1 * size])
            client.camera.look_at = centre
            client.camera.up_direction = np.array([0.0, 0.0, 1.0])

    def _controls(self) -> None:
        gui, t = self.server.gui, self.template
        facing = float((vertex_normals(t.vertices, t.faces) * (t.vertices - t.vertices.mean(0))).sum())
        gui.add_markdown(
            f"**{t.body_model}**  \n{len(t.vertices)} vertices, {len(t.faces)} triangles  \nlicence: {t.license}"
            + ("" if facing > 0 else "  \n**the triangles face inwards**")
        )
        gui.add_button("Reset").on_click(lambda _: self.reset())
        with gui.add_folder("Regions", expand_by_default=False):
            colours = gui.add_checkbox("colour by region", False)

            @colours.on_update
            def _(_) -> None:
                self.by_region = colours.value
                self._changed.set()

            for label in np.unique(t.face_regions):
                self._region_box(str(t.region_names[label]))
        with gui.add_folder("Expressions"):
            largest = LARGEST_COMPONENT if t.body_model.startswith("smplx") else LARGEST_EXPRESSION
            for k, name in enumerate(t.expression_names):
                low = -largest if largest > 1 else 0.0
                self._slider(str(name), low, largest, self.expression, (0, k))
        with gui.add_folder("Joints", expand_by_default=False):
            for j, name in enumerate(t.joint_names):
                with gui.add_folder(str(name), expand_by_default=False):
                    for axis in range(3):
                        self._slider("xyz"[axis], -LIMIT, LIMIT, self.rotations, (0, j, axis))

    def _region_box(self, name: str) -> None:
        box = self.server.gui.add_checkbox(name, True)

        @box.on_update
        def _(_) -> None:
            (self.hidden.discard if box.value else self.hidden.add)(name)
            self._changed.set()

    def _slider(self, name: str, low: float, high: float, values: torch.Tensor, at: tuple[int, ...]) -> None:
        slider = self.server.gui.add_slider(name, min=low, max=high, step=0.01, initial_value=0.0)
        self._sliders.append(slider)

        @slider.on_update
        def _(_) -> None:
            values[at] = slider.value
            self._changed.set()
