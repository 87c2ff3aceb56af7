"""Parts of a template that training and metrics single out: eyes and mouth.

By the template's own region labels where it has them, else by what the expression channels move.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray as Array
from scipy.spatial import cKDTree

from threevp_nerfstudio.body.template import RiggedTemplate

PARTS = ("eyes", "mouth")
EYE_WORDS = ("eye",)
MOUTH_WORDS = ("mouth", "lip", "teeth", "tongue")
EYE_CHANNELS = ("eyeblink", "eyesquint", "eyewide")
MOUTH_CHANNELS = ("mouth", "jaw", "lip")
LIP_MARGIN = 0.008
"""Metres of skin round the mouth cavity that count as mouth."""


def part_vertices(template: RiggedTemplate) -> dict[str, Int[Array, "n"]]:
    """Vertex indices of each eye and of the mouth: keys `eye_left`, `eye_right` (x > 0 is the subject's left), `mouth`.

    Parts that cannot be found are absent.
    """
    eyes = _by_region(template, EYE_WORDS)
    mouth = _by_region(template, MOUTH_WORDS)
    if eyes is None:
        eyes = _by_channels(template, EYE_CHANNELS)
    if mouth is None:
        mouth = _by_channels(template, MOUTH_CHANNELS)
    else:
        mouth = _grow(template, mouth, LIP_MARGIN)
    x = template.vertices[:, 0] - np.median(template.vertices[:, 0])
    parts = {}
    if eyes is not None:
        parts["eye_left"], parts["eye_right"] = np.flatnonzero(eyes & (x > 0)), np.flatnonzero(eyes & (x <= 0))
    if mouth is not None:
        parts["mouth"] = np.flatnonzero(mouth)
    return {name: index for name, index in parts.items() if len(index) >= 3}


def thin_faces(template: RiggedTemplate) -> Bool[Array, "F"]:
    """Triangles of lids and lips and of what lies right behind them: skin that is a millimetre or two thick when eyes
    and mouth are shut."""
    thin = np.zeros(len(template.vertices), dtype=bool)
    for words, channels in ((EYE_WORDS, EYE_CHANNELS), (MOUTH_WORDS, MOUTH_CHANNELS)):
        inner = _by_region(template, words)
        if inner is None:
            by_motion = _by_channels(template, channels)
            thin |= False if by_motion is None else by_motion
        else:
            rim = _grow(template, inner, LIP_MARGIN) & ~inner
            thin |= rim | (inner & _grow(template, rim, LIP_MARGIN)) if rim.any() else inner
    return thin[template.faces].any(1)


def moved_vertices(template: RiggedTemplate, threshold: float = 5e-4) -> Bool[Array, "V"]:
    """Vertices that some expression channel moves by more than `threshold` metres per unit."""
    if template.expression_basis.shape[0] == 0:
        return np.zeros(len(template.vertices), dtype=bool)
    return np.linalg.norm(template.expression_basis, axis=-1).max(0) > threshold


def _by_region(template: RiggedTemplate, words: tuple[str, ...]) -> Bool[Array, "V"] | None:
    labels = [i for i, name in enumerate(template.region_names) if any(w in str(name).lower() for w in words)]
    chosen = np.isin(template.face_regions, labels)
    if not chosen.any():
        return None
    mask = np.zeros(len(template.vertices), dtype=bool)
    mask[template.faces[chosen].reshape(-1)] = True
    return mask


def _by_channels(template: RiggedTemplate, words: tuple[str, ...]) -> Bool[Array, "V"] | None:
    rows = [i for i, n in enumerate(template.expression_names) if any(w in str(n).lower() for w in words)]
    if not rows:
        return None
    strength = np.linalg.norm(template.expression_basis[rows], axis=-1).max(0)
    return strength > 0.5 * strength.max()


def _grow(template: RiggedTemplate, mask: Bool[Array, "V"], radius: float) -> Bool[Array, "V"]:
    distance, _ = cKDTree(template.vertices[mask]).query(template.vertices, distance_upper_bound=radius)
    return np.isfinite(distance)
