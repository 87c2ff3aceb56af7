"""What a synthetic subject looks like: hair and clothes that the template does not have, colours, and light.

Everything is placed by a few measurements of the template's rest pose, so that any rigged template can be dressed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray as Array

from threevp_nerfstudio.body.regions import part_vertices
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.capture.demo_person import BODY_MODEL, EYE_OPENING, bump, smoothstep
from threevp_nerfstudio.errors import CaptureError

# angle from the front in degrees: height of the hairline over the eyes, metres for a head of usual size
_HAIRLINE = ((0, 35, 65, 85, 112, 140, 180), (0.062, 0.060, 0.038, 0.024, 0.012, -0.050, -0.072))
_EYES_TO_MOUTH = 0.067
SKIN, HAIR, LIPS = np.array([0.66, 0.43, 0.33]), np.array([0.10, 0.055, 0.035]), np.array([0.52, 0.16, 0.15])
CLOTH, STRIPE, BADGE = np.array([0.10, 0.16, 0.38]), np.array([0.62, 0.60, 0.54]), np.array([0.75, 0.16, 0.07])
AMBIENT, SKY, KEY = np.array([0.34, 0.35, 0.38]), np.array([0.10, 0.11, 0.13]), np.array([0.78, 0.73, 0.66])
KEY_FROM = np.array([0.52, -0.70, 0.49])
"""Direction to the key light in the room: from the front, the subject's left and above at a chair angle of zero."""
KEY_WRAP = 0.3
"""How far a soft light reaches round the edge, as a cosine."""


@dataclass(frozen=True)
class Anatomy:
    """Where things are in the rest pose, metres."""

    scale: float
    """Size against a usual head: the height from mouth to eyes over 67 mm."""
    axis: Float[Array, "2"]
    """x and y of the head's vertical axis."""
    crown_z: float
    eyes: Float[Array, "2 3"]
    mouth: Float[Array, "3"]
    """Its middle, as far forward as the lips."""
    eye_opening: tuple[float, float] | None
    """Half axes of the visible eye where it is painted on the skin; None where the template has eyeballs."""


@dataclass(frozen=True)
class Subject:
    """A dressed template: what is rendered, in place of the template itself."""

    template: RiggedTemplate
    """Finer, with hair and clothes as displacement."""
    bare: Float[Array, "V 3"]
    """Its rest positions before displacement: where colours are looked up."""
    hair: Float[Array, "V"]
    cloth: Float[Array, "V"]
    anatomy: Anatomy


def measure(template: RiggedTemplate) -> Anatomy:
    """Find eyes, mouth and the head's axis. Raises `CaptureError` where the template does not tell."""
    parts = part_vertices(template)
    missing = [name for name in ("eye_left", "eye_right", "mouth") if name not in parts]
    if missing:
        raise CaptureError(f"the template does not tell where {', '.join(missing)} are; name those face regions.")
    centre = {name: template.vertices[index].astype(np.float64).mean(0) for name, index in parts.items()}
    eyes = np.stack([centre["eye_left"], centre["eye_right"]])
    mouth = centre["mouth"]
    mouth[1] = template.vertices[parts["mouth"], 1].min()
    head = template.vertices[template.vertices[:, 2] > eyes[:, 2].mean()]
    return Anatomy(
        scale=float(eyes[:, 2].mean() - mouth[2]) / _EYES_TO_MOUTH,
        axis=(head.min(0) + head.max(0))[:2].astype(np.float64) / 2,
        crown_z=float(head[:, 2].max()),
        eyes=eyes,
        mouth=mouth,
        eye_opening=EYE_OPENING if template.body_model == BODY_MODEL else None,
    )


def dress(template: RiggedTemplate, seed: int) -> Subject:
    """Refine the template once, and push out hair (1 to 4 cm) and clothes (about 1 cm)."""
    anatomy = measure(template)
    fine = subdivide(template)
    bare = fine.vertices.astype(np.float64)
    hair, cloth = hair_cover(bare, anatomy), cloth_cover(bare, anatomy)
    s = anatomy.scale
    lobes = waves(bare, 0.045 * s, seed) + 0.5 * waves(bare, 0.018 * s, seed + 1)
    volume = 0.011 + 0.013 * smoothstep(bare[:, 2], anatomy.eyes[0, 2], anatomy.crown_z) + 0.006 * lobes
    folds = 0.007 + 0.003 * waves(bare, 0.07 * s, seed + 2)
    thickness = s * (hair * volume + cloth * folds)
    normals = vertex_normals(bare, fine.faces)
    dressed = (bare + normals * thickness[:, None]).astype(np.float32)
    return Subject(replace(fine, vertices=dressed), bare, hair, cloth, anatomy)


def hair_cover(points: Float[Array, "N 3"], anatomy: Anatomy) -> Float[Array, "N"]:
    """1 where hair grows, 0 elsewhere, smooth over about a centimetre."""
    s = anatomy.scale
    around = np.degrees(np.arctan2(np.abs(points[:, 0] - anatomy.axis[0]), anatomy.axis[1] - points[:, 1]))
    line = anatomy.eyes[:, 2].mean() + s * np.interp(around, *_HAIRLINE)
    return smoothstep(points[:, 2] - line + 0.003 * s * waves(points, 0.02 * s, 5), -0.004 * s, 0.006 * s)


def cloth_cover(points: Float[Array, "N 3"], anatomy: Anatomy) -> Float[Array, "N"]:
    """1 below the collar, which is lower in front."""
    s = anatomy.scale
    collar = anatomy.mouth[2] - s * (0.118 - 0.2 * (points[:, 1] - anatomy.axis[1]))
    return smoothstep(collar - points[:, 2], -0.003 * s, 0.004 * s)


def waves(points: Float[Array, "N 3"], wavelength: float, seed: int, count: int = 6) -> Float[Array, "N"]:
    """Smooth noise within about [-1, 1]: plane waves in random directions."""
    rng = np.random.default_rng(seed)
    k = rng.normal(size=(count, 3))
    k *= (2 * np.pi / wavelength) * rng.uniform(0.7, 1.4, (count, 1)) / np.linalg.norm(k, axis=1, keepdims=True)
    return np.sin(points @ k.T + rng.uniform(0, 2 * np.pi, count)).sum(1) / np.sqrt(count)


def albedo(
    points: Float[Array, "N 3"],
    regions: Int[Array, "N"],
    region_names: tuple[str, ...],
    hair: Float[Array, "N"],
    cloth: Float[Array, "N"],
    anatomy: Anatomy,
) -> Float[Array, "N 3"]:
    """Linear colours at points of the bare rest surface."""
    s = anatomy.scale
    x, y, z = (points - anatomy.mouth).T / s
    front = points[:, 1] < anatomy.axis[1] - 0.02 * s
    colour = SKIN * (1 + 0.05 * waves(points, 0.03 * s, 11) + 0.04 * waves(points, 0.009 * s, 12))[:, None]
    cheeks = 0.35 * bump((np.abs(x) - 0.042) / 0.018, (z - 0.033) / 0.016) * front
    colour = _mix(colour, colour * [1.05, 0.72, 0.70], cheeks)
    stubble = 0.22 * front * smoothstep(-z, -0.02, 0.0) * smoothstep(z, -0.10, -0.04)
    colour = _mix(colour, colour * [0.62, 0.66, 0.70], stubble)
    lips = front * smoothstep(1.15 - (x / 0.027) ** 2 - (z / 0.0115) ** 2, 0.0, 0.3)
    colour = _mix(colour, LIPS * (1 + 0.08 * np.sin(x / 0.0009))[:, None], lips)
    colour = _eyes_and_brows(colour, points, regions, region_names, anatomy)
    named = np.array([str(name).lower() for name in region_names])[regions]
    deep = smoothstep(y, 0.008, 0.036)[:, None]
    is_mouth = _contains(named, "cavity") & _contains(named, "mouth")
    gums = _mix(np.broadcast_to([0.42, 0.12, 0.11], colour.shape), np.array([0.05, 0.012, 0.012]), deep[:, 0])
    teeth = is_mouth & (z > 0.0015) & (y > 0.006) & (y < 0.018)
    colour = np.where(is_mouth[:, None], gums, colour)
    colour = np.where(teeth[:, None], [0.78, 0.74, 0.66], colour)
    colour = np.where(_contains(named, "tongue")[:, None], [0.48, 0.17, 0.17], colour)
    strands = np.sin(np.arctan2(x, -(points[:, 1] - anatomy.axis[1])) * 46 + 3 * waves(points, 0.03 * s, 21))
    colour = _mix(colour, HAIR * (1 + 0.35 * strands + 0.2 * waves(points, 0.02 * s, 22))[:, None], hair)
    return np.clip(_mix(colour, _cloth_colour(points, anatomy), cloth), 0.0, 1.0)


def _cloth_colour(points: Float[Array, "N 3"], anatomy: Anatomy) -> Float[Array, "N 3"]:
    x, y, z = (points - anatomy.mouth).T / anatomy.scale
    weave = 1 + 0.06 * waves(points, 0.012 * anatomy.scale, 31)
    stripes = smoothstep(np.sin(2 * np.pi * (z + 0.02 * y) / 0.036), 0.15, 0.45)
    colour = _mix(np.broadcast_to(CLOTH, points.shape), STRIPE, stripes)
    behind = points[:, 1] > anatomy.axis[1] + 0.04 * anatomy.scale
    radius = np.hypot(x - 0.055, z + 0.185)
    badge = ~behind & (radius < 0.034) & ((radius > 0.022) | (radius < 0.012))
    chevron = behind & (np.abs(z + 0.20 - 0.5 * np.abs(x)) < 0.011) & (np.abs(x) < 0.11)
    colour = np.where(badge[:, None], BADGE, colour)
    return np.where(chevron[:, None], [0.78, 0.56, 0.06], colour) * weave[:, None]


def _eyes_and_brows(
    colour: Float[Array, "N 3"],
    points: Float[Array, "N 3"],
    regions: Int[Array, "N"],
    region_names: tuple[str, ...],
    anatomy: Anatomy,
) -> Float[Array, "N 3"]:
    s = anatomy.scale
    is_eye = _contains(np.array([str(name).lower() for name in region_names])[regions], "eye")
    for sign, eye in zip((1.0, -1.0), anatomy.eyes, strict=True):
        x, z = sign * (points[:, 0] - eye[0]) / s, (points[:, 2] - eye[2]) / s
        own = np.sign(points[:, 0] - anatomy.axis[0]) == sign
        front = own & (points[:, 1] < anatomy.axis[1] - 0.02 * s)
        arch = z - 0.0225 - 0.10 * x + 8.0 * (x - 0.002) ** 2
        brow = front * bump(np.maximum(np.abs(x - 0.001) - 0.017, 0) / 0.004, arch / 0.0032)
        hairs = 0.93 + 0.07 * np.sin((x + 0.5 * z) / 0.0004)
        colour = _mix(colour, HAIR, np.clip(1.25 * brow, 0, 1) * hairs)
        radius = np.hypot(x, z)
        eyeball = np.where((radius < 0.0060)[:, None], [0.10, 0.20, 0.24], [0.72, 0.70, 0.68])
        eyeball = np.where((radius < 0.0026)[:, None], [0.01, 0.01, 0.01], eyeball)
        if anatomy.eye_opening is None:
            inside = (is_eye & own).astype(np.float64)
        else:
            a, b = anatomy.eye_opening
            q = np.sqrt((x / a) ** 2 + (z / b) ** 2)
            lashes = front * bump((q - 1.06) / 0.11) * (0.45 + 0.55 * smoothstep(z, -0.003, 0.002))
            inside = (is_eye & own) * smoothstep(-q, -1.06, -0.98)
            colour = _mix(colour, np.array([0.06, 0.03, 0.025]), lashes)
        colour = _mix(colour, eyeball, inside)
    return colour


def shade(
    colour: Float[Array, "N 3"],
    normals: Float[Array, "N 3"],
    to_camera: Float[Array, "N 3"],
    gloss: Float[Array, "N"],
    room_to_world: Float[Array, "3 3"],
) -> Float[Array, "N 3"]:
    """sRGB colours in [0, 1] under light that stands still in the room: ambient, one soft light, a mild highlight.

    `normals` and `to_camera` are unit vectors in the world; `gloss` scales the highlight.
    """
    n = normals @ room_to_world  # world to room
    key = KEY_FROM / np.linalg.norm(KEY_FROM)
    half = to_camera @ room_to_world + key
    half /= np.linalg.norm(half, axis=1, keepdims=True).clip(1e-9)
    diffuse = np.clip((n @ key + KEY_WRAP) / (1 + KEY_WRAP), 0, None)[:, None] * KEY
    ambient = AMBIENT + SKY * n[:, 2:] + np.array([0.0, 0.02, 0.05]) * -n[:, :1]
    highlight = gloss[:, None] * np.clip((n * half).sum(1), 0, None)[:, None] ** 28 * KEY
    return np.clip(colour * (ambient + diffuse) + highlight, 0.0, 1.0) ** (1 / 2.2)


def vertex_normals(vertices: Float[Array, "V 3"], faces: Int[Array, "F 3"]) -> Float[Array, "V 3"]:
    """Area-weighted unit normals."""
    a, b, c = vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 2]]
    n = np.cross(b - a, c - a)
    V = len(vertices)
    total = np.stack([sum(np.bincount(faces[:, k], n[:, d], V) for k in range(3)) for d in range(3)], axis=1)
    return total / np.linalg.norm(total, axis=1, keepdims=True).clip(1e-12)


def subdivide(template: RiggedTemplate) -> RiggedTemplate:
    """Each triangle in four; everything that vertices carry is averaged along the edges."""
    f = template.faces.astype(np.int64)
    V = len(template.vertices)
    edges = np.sort(np.concatenate([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]]), axis=1)
    pairs, inverse = np.unique(edges, axis=0, return_inverse=True)
    ab, bc, ca = V + inverse.reshape(3, -1)
    a, b, c = f.T
    faces = np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])

    def refined(values: Shaped[Array, "V *d"]) -> Shaped[Array, "W *d"]:
        return np.concatenate([values, (values[pairs[:, 0]] + values[pairs[:, 1]]) / 2])

    return replace(
        template,
        vertices=refined(template.vertices),
        faces=faces.astype(np.int32),
        skin_weights=refined(template.skin_weights),
        expression_basis=refined(template.expression_basis.swapaxes(0, 1)).swapaxes(0, 1),
        pose_basis=None if template.pose_basis is None else refined(template.pose_basis.swapaxes(0, 1)).swapaxes(0, 1),
        face_regions=np.tile(template.face_regions, 4),
        uvs=None,
        face_uvs=None,
    )


def _mix(a: Array, b: Array, t: Float[Array, "N"]) -> Float[Array, "N 3"]:
    return a + (b - a) * t[:, None]


def _contains(names: Shaped[Array, "N"], word: str) -> Shaped[Array, "N"]:
    return np.char.find(names, word) >= 0
