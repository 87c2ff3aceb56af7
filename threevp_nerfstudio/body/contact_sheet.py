"""One picture that shows a template: its shape all round, its regions, its joints at work, its strongest expressions."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.body.labels import INSIDE, face_colours, faces_in
from threevp_nerfstudio.body.render import grid, shade
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.template import RiggedTemplate

SKIN = (222.0, 196.0, 178.0)
SIZE = 300
WANTED = ("jawOpen", "eyeBlinkLeft", "mouthSmileLeft", "mouthPucker", "browInnerUp", "tongueOut")
"""Expressions to show where the template has them; else the first components, at two units."""
HEAD_TURNS = (("head", (0.0, 0.0, 0.6)), ("head", (0.4, 0.0, 0.0)))


def contact_sheet(template: RiggedTemplate) -> UInt8[Array, "H W 3"]:
    """A sheet of four columns: views, regions, poses, expressions."""
    v, f = np.asarray(template.vertices, dtype=np.float64), template.faces
    skin = np.where(faces_in(template, INSIDE)[:, None], face_colours(template), SKIN)
    centre, radius = (v.min(0) + v.max(0)) / 2, float(np.ptp(v, axis=0).max()) / 2 * 1.03
    head, near = head_frame(template)
    pictures, titles = [], []

    def add(title: str, vertices: Array, colours: Array, yaw: float, close: bool = True) -> None:
        pictures.append(shade(vertices, f, colours, yaw, SIZE, head if close else centre, near if close else radius))
        titles.append(title)

    for degrees in (0, 90, 180, 270):
        add(f"{degrees} degrees", v, skin, np.radians(degrees), close=False)
    for degrees in (0, 60, 120, 180):
        add("regions", v, face_colours(template).astype(np.float64), np.radians(degrees))
    for name, turn in HEAD_TURNS:
        posed = pose(template, {name: turn}, {})
        if posed is not None:
            add(f"{name} turned", posed, skin, 0.3)
    for name, amount in shown_expressions(template):
        posed = pose(template, {}, {name: amount})
        assert posed is not None
        add(f"{name} = {amount:g}", posed, skin, 0.15)
    return grid(pictures, 4, titles)


def head_frame(template: RiggedTemplate) -> tuple[Float[Array, "3"], float]:
    """Centre and half height of a picture of the head."""
    v = np.asarray(template.vertices, dtype=np.float64)
    if "head" in template.joint_names:
        weight = template.skin_weights[:, template.joint_names.index("head")]
        part = v[weight > 0.9] if (weight > 0.9).sum() > 10 else v
    else:
        part = v
    return (part.min(0) + part.max(0)) / 2, float(np.ptp(part, axis=0).max()) / 2 * 1.25


def shown_expressions(template: RiggedTemplate) -> list[tuple[str, float]]:
    names = template.expression_names
    known = [(n, 1.0) for n in WANTED if n in names]
    return known or [(n, 2.0) for n in names[:6]]


def pose(
    template: RiggedTemplate, turns: dict[str, tuple[float, float, float]], expression: dict[str, float]
) -> Float[Array, "V 3"] | None:
    """Vertices with some joints turned (radians) and some channels set; None if a joint is missing."""
    if not set(turns) <= set(template.joint_names):
        return None
    rig = Rig.from_template(template)
    rotations = torch.zeros(1, len(template.joint_names), 3)
    for name, turn in turns.items():
        rotations[0, template.joint_names.index(name)] = torch.tensor(turn)
    values = torch.zeros(1, len(template.expression_names))
    for name, amount in expression.items():
        values[0, template.expression_names.index(name)] = amount
    with torch.no_grad():
        return rig.pose(rotations, torch.zeros(1, 3), values)[0].double().numpy()
