"""The part of a body that a portrait needs: head, neck, torso and upper arms."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool
from numpy import ndarray as Array

from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.labels import region_index
from threevp_nerfstudio.body.mesh import boundary_loops, close_loops, select
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.errors import TemplateError

FOREARMS = ("lowerarm", "wrist", "finger", "metacarpal", "elbow", "hand", "thumb", "index", "middle", "ring", "pinky")
"""How the joints beyond the upper arm are named, in Anny and SMPL-X."""


def crop(body: BodyModel, torso: float = 0.33, closed: bool = False) -> BodyModel:
    """Keep what lies above `torso` metres below the base of the neck, and the arms to the elbow.

    `closed` puts a cap over each cut. Whole triangles are kept or dropped, so the vertices that stay are the body
    model's own. Raises `TemplateError` if nothing, or not even the head, would be left.
    """
    template = body.template
    keep = _kept_faces(template, torso)
    head = np.isin(template.face_regions, [region_index("face"), region_index("scalp")])
    if not keep[head].all() or not keep.any():
        raise TemplateError(f"a torso of {torso:g} m below the base of the neck cuts into the head; use 0 or more.")
    had_loops = {frozenset(loop.tolist()) for loop in boundary_loops(template.faces)}
    change = select(template.faces.astype(np.int64), keep, len(template.vertices))
    if closed:
        old_index = change.matrix.indices
        new = [
            loop
            for loop in boundary_loops(change.faces)
            if frozenset(old_index[loop].tolist()) not in had_loops and len(loop) > 2
        ]
        change = change.then(close_loops(change.faces, change.matrix.shape[0], new))
    return with_used_joints(body.remapped(change, region_index("cap")))


def neck_height(template: RiggedTemplate) -> float:
    """Height of the base of the neck in the rest pose, metres."""
    for name in ("neck01", "neck"):
        if name in template.joint_names:
            return float(template.joints[template.joint_names.index(name), 2])
    raise TemplateError(f"the skeleton of {template.body_model} has no neck joint among {', '.join(template.joint_names)}")


def with_used_joints(body: BodyModel) -> BodyModel:
    """Drop the joints that move none of the vertices and carry none that do."""
    template = body.template
    needed = set()
    for j in np.flatnonzero((template.skin_weights > 0).any(0)):
        while j >= 0 and j not in needed:
            needed.add(int(j))
            j = int(template.parents[j])
    return body.with_joints(np.array(sorted(needed)))


def _kept_faces(template: RiggedTemplate, torso: float) -> Bool[Array, "F"]:
    far = [any(word in name.lower() for word in FOREARMS) for name in template.joint_names]
    far_weight = template.skin_weights[:, np.array(far)].sum(1)
    low = template.vertices[:, 2] < neck_height(template) - torso
    outside = low | (far_weight > 0.5)
    return ~outside[template.faces].any(1)
