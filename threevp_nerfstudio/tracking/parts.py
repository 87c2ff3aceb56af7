"""Parts of any rigged template that the tracker treats apart, found by its joints and blendshapes, not by label names."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from threevp_nerfstudio.body.labels import INSIDE, vertices_in
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.errors import TrackError

MOVES = 4e-4
"""Metres by which some expression moves a vertex of the face."""
INNER = (*INSIDE, "eye_front", "eye_back", "eye_cavity", "mouth_cavity")
EYEBALLS = ("eyes", "eye_front", "eye_back")
SPINE = ("spine01", "spine1", "spine3", "spine", "chest")
NECK = ("neck01", "neck")
HEAD = ("head",)
ARMS = ("clavicle", "upperarm01", "collar", "shoulder")
JAW = ("jaw",)
EYES = ("eye.L", "eye.R", "left_eye_smplhf", "right_eye_smplhf", "left_eye", "right_eye")


@dataclass(frozen=True)
class Parts:
    """Masks over vertices and joints by role."""

    head: Bool[Array, "V"]
    face: Bool[Array, "V"]
    """Skin that expressions move."""
    skin: Bool[Array, "V"]
    """The outer surface, which a camera sees with mouth and eyes closed."""
    eyes: Bool[Array, "V"]
    """Eyeballs, visible between the lids."""
    hair: Bool[Array, "V"]
    """Of the head what is not face: may carry hair, which the body model lacks."""
    clothed: Bool[Array, "V"]
    """Below the neck."""
    spine: tuple[int, ...]
    neck: tuple[int, ...]
    skull: tuple[int, ...]
    arms: tuple[int, ...]
    jaw: tuple[int, ...]
    eye_joints: tuple[int, ...]


def find_parts(template: RiggedTemplate) -> Parts:
    """Raises `TrackError` for a skeleton without a head."""
    names = template.joint_names

    def joints(wanted: tuple[str, ...], exact: bool = True, most: int = 99) -> tuple[int, ...]:
        hit = [j for j, n in enumerate(names) if (n in wanted if exact else any(w in n for w in wanted))]
        return tuple(hit[:most])

    skull = joints(HEAD, most=1)
    if not skull:
        raise TrackError(f"the skeleton of {template.body_model} has no joint named 'head' among {', '.join(names)}.")
    below = _descendants(template, skull[0])
    head = np.asarray(template.skin_weights)[:, below].sum(1) > 0.5
    neck_joints = [j for j, n in enumerate(names) if n.startswith("neck")]
    neck = np.asarray(template.skin_weights)[:, neck_joints].sum(1) > 0.5
    skin = ~vertices_in(template, INNER)
    basis = np.asarray(template.expression_basis)
    motion = np.sqrt((basis**2).sum(-1)).max(0) if len(basis) else np.zeros(len(head))
    face = head & skin & (motion > MOVES)
    return Parts(
        head=head,
        face=face,
        skin=skin,
        eyes=vertices_in(template, EYEBALLS),
        hair=head & ~face & skin,
        clothed=~head & ~neck,
        spine=joints(SPINE, most=1),
        neck=joints(NECK, most=1),
        skull=skull,
        arms=tuple(j for j in joints(ARMS, exact=False) if not names[j].startswith("shoulder01")),
        jaw=joints(JAW, most=1),
        eye_joints=joints(EYES),
    )


def _descendants(template: RiggedTemplate, joint: int) -> list[int]:
    chosen = [joint]
    for j, parent in enumerate(template.parents):
        if int(parent) in chosen:
            chosen.append(j)
    return chosen


def vertex_areas(vertices: Float[Array, "V 3"], faces: Array) -> Float[Array, "V"]:
    """A third of the area of the faces round each vertex, square metres."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 6
    return np.bincount(faces.reshape(-1), np.repeat(area, 3), minlength=len(vertices))
