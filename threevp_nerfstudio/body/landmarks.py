"""Named points of a face, found on a rigged template by its regions."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from threevp_nerfstudio.body.labels import faces_in
from threevp_nerfstudio.body.template import RiggedTemplate

LANDMARKS = (
    "nose_tip",
    "chin",
    "left_eye_outer",
    "left_eye_inner",
    "right_eye_inner",
    "right_eye_outer",
    "left_mouth",
    "right_mouth",
    "upper_lip",
    "lower_lip",
    "left_ear",
    "right_ear",
)
"""Left and right are the subject's. Ears: the top of the ear lobe's attachment, roughly the ear canal."""


def find_landmarks(template: RiggedTemplate) -> dict[str, Int[Array, "_"]]:
    """Vertices of each landmark on a neutral template in the rest pose. Those whose region is missing are left out."""
    found: dict[str, int] = {}
    v = template.vertices
    lips, ears = _corners(template, "lips"), _corners(template, "ears")
    eyes = np.intersect1d(_corners(template, "eyelids"), _corners(template, "eye_sockets"))
    face = _corners(template, "face")
    middle = np.median(v[face, 0]) if len(face) else 0.0
    if len(lips):
        found["left_mouth"], found["right_mouth"] = lips[v[lips, 0].argmax()], lips[v[lips, 0].argmin()]
        centre = lips[np.abs(v[lips, 0] - middle) < 0.006]
        found["upper_lip"], found["lower_lip"] = _lip_fronts(v, centre)
    if len(face):
        line = face[np.abs(v[face, 0] - middle) < 0.012]
        found["nose_tip"] = line[v[line, 1].argmin()]
        if len(lips):
            below = line[v[line, 2] < v[lips, 2].min() - 0.01]
            front = below[v[below, 1] < np.quantile(v[below, 1], 0.5)]
            found["chin"] = front[(v[front] @ np.array([0.0, 0.7, 0.7])).argmin()]
    for side, sign in (("left", 1.0), ("right", -1.0)):
        lids = eyes[sign * (v[eyes, 0] - middle) > 0]
        if len(lids):
            found[f"{side}_eye_outer"] = lids[(sign * v[lids, 0]).argmax()]
            found[f"{side}_eye_inner"] = lids[(sign * v[lids, 0]).argmin()]
        ear = ears[sign * (v[ears, 0] - middle) > 0]
        if len(ear):
            front = ear[v[ear, 1] < np.quantile(v[ear, 1], 0.25)]
            target = v[ear].mean(0)
            found[f"{side}_ear"] = front[np.linalg.norm(v[front] - target, axis=1).argmin()]
    return {name: np.array([int(found[name])]) for name in LANDMARKS if name in found}


def points_of(template: RiggedTemplate, landmarks: dict[str, Int[Array, "_"]]) -> dict[str, Float[Array, "3"]]:
    """Landmark positions on the rest shape."""
    return {name: template.vertices[index].mean(0) for name, index in landmarks.items()}


def _corners(template: RiggedTemplate, region: str) -> Int[Array, "n"]:
    return np.unique(template.faces[faces_in(template, (region,))])


def _lip_fronts(v: Float[Array, "V 3"], centre: Int[Array, "n"]) -> tuple[int, int]:
    """The foremost point of the upper and of the lower lip on the mid line."""
    height = v[centre, 2]
    split = (height.min() + height.max()) / 2
    upper, lower = centre[height >= split], centre[height < split]
    return int(upper[v[upper, 1].argmin()]), int(lower[v[lower, 1].argmin()])
