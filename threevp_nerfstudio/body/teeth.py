"""Arches of teeth for templates that have none.

What is seen in an open mouth is mostly teeth; SMPL-X, FLAME and most scans have none (Anny has). Points of the mouth's inside
then ride on whatever is nearest, the lips or the tongue, and are torn between them as the mouth moves. Two arches behind the
lips, one that stays with the skull and one that goes with the jaw, carry them as they really move (as the teeth of
GaussianAvatars, Qian et al. 2024, do for FLAME). They say how space moves there, not where the teeth are: a rigid motion is
the same for every point, so an arch that is some millimetres off does its work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array
from scipy.spatial import cKDTree

from threevp_nerfstudio.body.regions import part_vertices
from threevp_nerfstudio.body.template import RiggedTemplate

REGION = "teeth"
JAW_CHANNELS = ("jawopen", "jawforward", "jawleft", "jawright")
TOUCHING = 0.006
"""Metres between the lips of a closed mouth, at most."""
RESTS, MOVES = 0.25, 0.5
"""Of the largest motion as the jaw opens: the upper lip moves by less than the one, lower lip and chin by more than the other."""
BEHIND_LIPS = 0.004
"""Metres from the back of the lips to the arches."""
OVERBITE = 0.002
"""Metres by which the lower arch is behind the upper, and the upper below the line of the lips."""
HEIGHT = 0.016
HALF_WIDTH = 0.024
CURVATURE = 50.0
"""The arches run along y = CURVATURE x^2 (1/m): 29 mm deep at their ends, as in adults."""
COLUMNS, ROWS = 15, 4
FEWEST = 6
"""Vertices below which lips or chin count as not found."""


@dataclass(frozen=True)
class Mouth:
    """A closed mouth: where its lips touch, and which vertices go with the jaw."""

    middle: Float[Array, "3"]
    """Of the line of the lips, at their back."""
    chin: Int[Array, "n"]


def with_teeth(template: RiggedTemplate) -> RiggedTemplate:
    """The template with an upper and a lower arch as a further region, `teeth`; the same template where it has teeth, or no
    mouth that a jaw opens. Texture coordinates are left out."""
    names = template.region_names
    label = next((i for i, name in enumerate(names) if REGION in str(name).lower()), len(names))
    if (template.face_regions == label).any():
        return template
    mouth = find_mouth(template)
    if mouth is None:
        return template
    x, y, z = mouth.middle
    y = y + BEHIND_LIPS
    upper, faces = _arch(x, y, z - OVERBITE, z - OVERBITE + HEIGHT)
    lower, _ = _arch(x, y + OVERBITE, z - OVERBITE - HEIGHT, z - OVERBITE)
    V, U = len(template.vertices), len(upper)
    head, jaw = _skull_joint(template, mouth), template.jaw_joint
    weights = np.zeros((2 * U, len(template.joint_names)), dtype=np.float32)
    weights[:U, head] = weights[U:, head if jaw is None else jaw] = 1.0
    basis = np.zeros((len(template.expression_names), 2 * U, 3), dtype=np.float32)
    for e, name in enumerate(template.expression_names):
        if str(name).lower().replace("_", "") in JAW_CHANNELS:
            basis[e, U:] = _carried(template.vertices[mouth.chin], template.expression_basis[e, mouth.chin], lower)

    def more(rows: Array, new: Array, axis: int = 0) -> Array:
        return np.concatenate([rows, new.astype(rows.dtype)], axis)

    no_correctives = None
    if template.pose_basis is not None:
        no_correctives = more(template.pose_basis, np.zeros((len(template.pose_basis), 2 * U, 3)), 1)
    return replace(
        template,
        vertices=more(template.vertices, np.concatenate([upper, lower])),
        faces=more(template.faces, np.concatenate([faces + V, faces + V + U])),
        skin_weights=more(template.skin_weights, weights),
        expression_basis=more(template.expression_basis, basis, 1),
        pose_basis=no_correctives,
        face_regions=more(template.face_regions, np.full(2 * len(faces), label)),
        region_names=names if label < len(names) else (*names, REGION),
        uvs=None,
        face_uvs=None,
    )


def find_mouth(template: RiggedTemplate) -> Mouth | None:
    """Where the lips touch while the mouth is closed, told by what opening the jaw moves; None where nothing does."""
    part = part_vertices(template).get("mouth")
    motion = jaw_motion(template)
    if part is None or motion is None:
        return None
    v = template.vertices.astype(np.float64)
    speed = np.linalg.norm(motion, axis=1)
    speed = speed / max(speed[part].max(), 1e-9)
    upper, lower = part[speed[part] < RESTS], part[speed[part] > MOVES]
    if min(len(upper), len(lower)) < FEWEST:
        return None
    distance, nearest = cKDTree(v[lower]).query(v[upper])
    contact = (v[upper] + v[lower[nearest]])[distance < TOUCHING] / 2
    if len(contact) < FEWEST:
        return None
    middle = np.median(contact[:, 0])
    centre = contact[np.abs(contact[:, 0] - middle) < HALF_WIDTH / 3]
    line = np.median(v[part], axis=0)
    chin = np.flatnonzero((speed > MOVES) & (v[:, 2] < line[2]) & (v[:, 1] < line[1]))
    if len(centre) < 2 or len(chin) < FEWEST:
        return None
    return Mouth(np.array([middle, centre[:, 1].max(), np.median(centre[:, 2])]), chin)


def jaw_motion(template: RiggedTemplate) -> Float[Array, "V 3"] | None:
    """How far each vertex moves as the mouth opens: by the channel `jawOpen`, else by 15 degrees of the jaw joint."""
    names = [str(name).lower().replace("_", "") for name in template.expression_names]
    if "jawopen" in names:
        return template.expression_basis[names.index("jawopen")].astype(np.float64)
    jaw = template.jaw_joint
    if jaw is None:
        return None
    angle = math.radians(15.0)
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    arm = template.vertices.astype(np.float64) - template.joints[jaw]
    return template.skin_weights[:, jaw, None] * (arm @ turn.T - arm)


def _skull_joint(template: RiggedTemplate, mouth: Mouth) -> int:
    """The joint that carries the face above the mouth."""
    v = template.vertices
    above = (np.abs(v - (mouth.middle + [0.0, 0.0, 0.05])).max(1)) < 0.03
    weights = template.skin_weights[above].sum(0) if above.any() else template.skin_weights.sum(0)
    return int(weights.argmax())


def _arch(x: float, y: float, low: float, high: float) -> tuple[Float[Array, "n 3"], Int[Array, "m 3"]]:
    """A strip from `low` to `high` along a parabola whose foremost point is at (x, y); triangles face forward."""
    across = np.linspace(-HALF_WIDTH, HALF_WIDTH, COLUMNS)
    up = np.linspace(low, high, ROWS)
    grid = np.empty((ROWS, COLUMNS, 3))
    grid[..., 0], grid[..., 1], grid[..., 2] = x + across, y + CURVATURE * across**2, up[:, None]
    i, j = np.meshgrid(np.arange(ROWS - 1), np.arange(COLUMNS - 1), indexing="ij")
    a = (i * COLUMNS + j).ravel()
    faces = np.concatenate([np.stack([a, a + 1, a + COLUMNS + 1], 1), np.stack([a, a + COLUMNS + 1, a + COLUMNS], 1)])
    return grid.reshape(-1, 3), faces


def _carried(
    points: Float[Array, "n 3"], motion: Float[Array, "n 3"], others: Float[Array, "m 3"]
) -> Float[Array, "m 3"]:
    """How `others` move with the rigid motion, to first order, that fits the motion of some points best."""
    middle = points.mean(0)
    arm = (points - middle).astype(np.float64)
    translation = motion.mean(0)
    # motion = translation + turn x arm, in least squares
    inertia = (arm**2).sum() * np.eye(3) - arm.T @ arm
    turn = np.linalg.lstsq(inertia, np.cross(arm, motion - translation).sum(0), rcond=None)[0]
    return translation + np.cross(turn, others - middle)
