"""The region labels that every body model's template shares, and their display colours."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.body.template import RiggedTemplate

REGIONS: dict[str, tuple[int, int, int]] = {
    "face": (240, 190, 160),
    "lips": (214, 70, 90),
    "eyelids": (150, 110, 200),
    "eyes": (245, 245, 250),
    "eye_sockets": (120, 60, 60),
    "mouth_interior": (130, 30, 40),
    "teeth": (255, 250, 220),
    "tongue": (230, 110, 120),
    "ears": (250, 160, 60),
    "scalp": (90, 120, 200),
    "neck": (120, 190, 120),
    "torso": (90, 170, 180),
    "arms": (170, 170, 90),
    "cap": (110, 110, 110),
}
"""Region name -> RGB. The position in this mapping is the label that is stored."""

REGION_NAMES = tuple(REGIONS)
INSIDE = ("eyes", "eye_sockets", "mouth_interior", "teeth", "tongue", "cap")
"""Regions that no camera outside the closed mouth and eyes sees as skin: a scan says nothing about them."""


def region_index(name: str) -> int:
    return REGION_NAMES.index(name)


def faces_in(template: RiggedTemplate, names: tuple[str, ...]) -> Bool[Array, "F"]:
    """Faces whose region is one of `names`; regions the template lacks select nothing."""
    labels = [i for i, name in enumerate(template.region_names) if name in names]
    return np.isin(template.face_regions, labels)


def vertices_in(template: RiggedTemplate, names: tuple[str, ...]) -> Bool[Array, "V"]:
    """Vertices all of whose faces lie in the regions `names`."""
    inside = faces_in(template, names)
    touched = np.zeros((2, len(template.vertices)), dtype=bool)
    touched[0, template.faces[inside].reshape(-1)] = True
    touched[1, template.faces[~inside].reshape(-1)] = True
    return touched[0] & ~touched[1]


def face_colours(template: RiggedTemplate) -> UInt8[Array, "F 3"]:
    """Display colour of each face; labels outside the vocabulary get colours of their own."""
    fallback = [(37 * i % 200 + 40, 91 * i % 200 + 40, 151 * i % 200 + 40) for i in range(256)]
    table = [REGIONS.get(str(n), fallback[i]) for i, n in enumerate(template.region_names)]
    return np.array(table, dtype=np.uint8)[template.face_regions]
