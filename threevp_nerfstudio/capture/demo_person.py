"""A procedural person with a rig: head, neck and shoulders, a mouth that opens, twelve ARKit-named blendshapes.

The surface is a stack of horizontal slices from the waist to the crown, with a slit between the lips behind which a
pocket, the mouth cavity, goes inwards. Metres, +z up, facing -y.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array
from scipy.interpolate import PchipInterpolator

from threevp_nerfstudio.body.template import RiggedTemplate

BODY_MODEL = "threevp demo person"
MOUTH_Z, MOUTH_HALF_WIDTH, MOUTH_DEPTH = 0.836, 0.025, 0.036
EYE_X, EYE_Z = 0.032, 0.903
EYE_OPENING = (0.0135, 0.0062)
"""Half axes of the visible eye, metres."""
CROWN_Z, DOME_Z = 1.024, 0.945
CAVITY_LEVELS = 5
REGIONS = ("skin", "eyes", "lips", "mouth_cavity", "torso", "scalp")
JOINTS = {
    "root": (-1, (0.0, 0.02, 0.43)),
    "spine": (0, (0.0, 0.025, 0.56)),
    "neck": (1, (0.0, 0.03, 0.715)),
    "head": (2, (0.0, 0.012, 0.80)),
}
# height: half width, front, back (metres from the axis)
_PROFILE = np.array(
    [
        (0.430, 0.185, 0.110, 0.100),
        (0.530, 0.215, 0.122, 0.112),
        (0.600, 0.222, 0.112, 0.112),
        (0.640, 0.205, 0.094, 0.104),
        (0.665, 0.170, 0.078, 0.096),
        (0.685, 0.118, 0.062, 0.088),
        (0.705, 0.074, 0.050, 0.082),
        (0.730, 0.059, 0.044, 0.077),
        (0.765, 0.056, 0.043, 0.074),
        (0.780, 0.057, 0.050, 0.074),
        (0.790, 0.055, 0.082, 0.075),
        (0.800, 0.054, 0.095, 0.077),
        (0.815, 0.058, 0.098, 0.081),
        (0.836, 0.063, 0.096, 0.087),
        (0.870, 0.069, 0.095, 0.094),
        (0.903, 0.073, 0.094, 0.100),
        (0.925, 0.075, 0.098, 0.102),
        (0.945, 0.076, 0.098, 0.102),
    ]
)


@dataclass(frozen=True)
class _Surface:
    vertices: Float[Array, "V 3"]
    faces: Int[Array, "F 3"]
    lip_side: Float[Array, "V"]
    """+1 on the upper lip's edge and the roof of the cavity, -1 on the lower lip's and the floor, else 0."""
    in_cavity: Array


def demo_template(columns: int = 88) -> RiggedTemplate:
    """The person as a rigged template; `columns` vertices go round each slice."""
    surface = _surface(columns)
    basis = _blendshapes(surface)
    weights = _skin_weights(surface.vertices)
    return RiggedTemplate(
        vertices=surface.vertices.astype(np.float32),
        faces=surface.faces.astype(np.int32),
        joint_names=tuple(JOINTS),
        parents=np.array([parent for parent, _ in JOINTS.values()], dtype=np.int32),
        joints=np.array([position for _, position in JOINTS.values()], dtype=np.float32),
        skin_weights=weights.astype(np.float32),
        expression_names=tuple(basis),
        expression_basis=np.stack(list(basis.values())).astype(np.float32),
        face_regions=_regions(surface).astype(np.uint8),
        region_names=REGIONS,
        body_model=BODY_MODEL,
        license="CC0-1.0",
    )


def smoothstep(x: Array, low: float | Array, high: float | Array) -> Array:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def bump(*ratios: Array) -> Array:
    """Gaussian of distances that are given in standard deviations."""
    return np.exp(-0.5 * sum(np.square(r) for r in ratios))


# ---- surface ---------------------------------------------------------------------------------------------------------


def _slices(columns: int) -> Float[Array, "R C 3"]:
    """The plain grid: rows from the waist to the crown, columns from behind over the left half (+x last) to behind."""
    step = 0.31 / columns
    face = np.arange(0.783, DOME_Z, step)
    face += MOUTH_Z - face[np.abs(face - MOUTH_Z).argmin()]  # one row lies on the mouth
    theta = np.linspace(0.0, np.pi / 2, columns // 4, endpoint=False)
    heights = np.concatenate(
        [np.linspace(0.43, face[0], columns // 3, endpoint=False), face, DOME_Z + (CROWN_Z - DOME_Z) * np.sin(theta)]
    )
    shrink = np.concatenate([np.ones(len(heights) - len(theta)), np.cos(theta)])[:, None]
    u = (np.arange(columns) + 0.5) / columns * 2 * np.pi - np.pi
    phi = u - 0.5 * np.sin(u)  # denser in front
    width, front, back = (
        PchipInterpolator(_PROFILE[:, 0], _PROFILE[:, k])(heights.clip(max=DOME_Z)) for k in (1, 2, 3)
    )
    side, ahead = np.sin(phi), np.cos(phi)
    x = width[:, None] * np.sign(side) * np.abs(side) ** 0.9
    y = np.where(ahead > 0, -front[:, None] * np.abs(ahead) ** 0.85, back[:, None] * np.abs(ahead) ** 0.9)
    grid = np.stack([x * shrink, y * shrink + 0.012 * (1 - shrink), np.broadcast_to(heights[:, None], x.shape)], -1)
    return _features(grid)


def _features(grid: Float[Array, "R C 3"]) -> Float[Array, "R C 3"]:
    """Nose, eyes, brows, lips, cheeks, chin and ears, pushed out of the plain slices."""
    x, y, z = np.moveaxis(grid, -1, 0)
    ax, front = np.abs(x), smoothstep(-y, 0.03, 0.07)
    along = np.clip((0.912 - z) / (0.912 - 0.866), 0.0, 1.25)
    nose = 0.025 * along**1.3 * smoothstep(z, 0.852, 0.864) * bump(x / (0.0065 + 0.004 * along))
    nostril = 0.007 * bump((ax - 0.012) / 0.006, (z - 0.862) / 0.006)
    eye = ((ax - EYE_X) / 0.015, (z - EYE_Z) / 0.011)
    socket = -0.009 * bump(eye[0] / 1.15, eye[1] / 1.1) + 0.0065 * bump(eye[0] / 0.75, eye[1] / 0.7)
    brow = 0.004 * bump((ax - 0.03) / 0.018, (z - 0.924) / 0.007)
    arch = 1.0 - 0.5 * (x / MOUTH_HALF_WIDTH) ** 2
    lips = 0.0065 * arch.clip(0) * (bump((z - MOUTH_Z - 0.005) / 0.0045) + 1.1 * bump((z - MOUTH_Z + 0.0055) / 0.005))
    lips -= 0.003 * bump(x / 0.02, (z - MOUTH_Z + 0.016) / 0.005)
    cheek = 0.004 * bump((ax - 0.045) / 0.016, (z - 0.878) / 0.016)
    chin = 0.005 * bump(x / 0.016, (z - 0.805) / 0.010)
    push = front * (nose + nostril + socket + brow + lips + cheek + chin)
    ear = 0.017 * bump((y - 0.014) / 0.011, (z - 0.893) / 0.020) * (0.6 + 0.4 * bump((y - 0.024) / 0.008))
    ear -= 0.005 * bump((y - 0.008) / 0.006, (z - 0.893) / 0.009)
    return np.stack([x + np.sign(x) * ear * smoothstep(ax, 0.03, 0.06), y - push + 0.5 * ear, z], axis=-1)


def _surface(columns: int) -> _Surface:
    grid = _slices(columns)
    R, C, _ = grid.shape
    vertices = list(grid.reshape(-1, 3))
    ids = np.arange(R * C).reshape(R, C)
    row = int(np.abs(grid[:, 0, 2] - MOUTH_Z).argmin())
    in_mouth = np.flatnonzero((np.abs(grid[row, :, 0]) < MOUTH_HALF_WIDTH) & (grid[row, :, 1] < 0))
    left, right = in_mouth[0] - 1, in_mouth[-1] + 1  # the corners, where upper and lower lip meet
    lip_side = {int(ids[row, j]): -1.0 for j in in_mouth}

    def add(point: Array, side: float) -> int:
        vertices.append(point)
        lip_side[len(vertices) - 1] = side
        return len(vertices) - 1

    upper_row = ids[row].copy()
    upper_row[in_mouth] = [add(grid[row, j], 1.0) for j in in_mouth]
    faces = []
    for i in range(R - 1):
        faces += _strip(upper_row if i == row else ids[i], ids[i + 1], closed=True)
    mouth = np.arange(left, right + 1)
    roof, floor = [upper_row[mouth]], [ids[row, mouth]]
    first_cavity = len(faces)
    for level in range(1, CAVITY_LEVELS + 1):
        t = level / CAVITY_LEVELS
        lift = (
            0.011
            * np.sin(np.pi * min(0.75 * t + 0.1, 1.0))
            * np.sqrt(np.clip(1 - (grid[row, mouth, 0] / MOUTH_HALF_WIDTH) ** 2, 0, 1))
        )
        base = grid[row, mouth] * [1 - 0.15 * t, 1, 1] + [0, MOUTH_DEPTH * t, 0]
        shared = np.isin(mouth, (left, right))
        above = [add(p + [0, 0, h], 0.0 if s else 1.0) for p, h, s in zip(base, lift, shared, strict=True)]
        below = [a if s else add(p - [0, 0, h], -1.0) for p, h, s, a in zip(base, lift, shared, above, strict=True)]
        roof.append(np.array(above))
        floor.append(np.array(below))
        faces += _strip(roof[-1], roof[-2]) + _strip(floor[-2], floor[-1])
    faces += _strip(floor[-1], roof[-1])
    cavity = np.zeros(len(faces), dtype=bool)
    cavity[first_cavity:] = True
    bottom, top = add(grid[0].mean(0), 0.0), add(np.array([0.0, 0.012, CROWN_Z]), 0.0)
    lids = [(int(ids[0, (j + 1) % C]), int(ids[0, j]), bottom) for j in range(C)]
    lids += [(int(ids[-1, j]), int(ids[-1, (j + 1) % C]), top) for j in range(C)]
    all_faces = np.array(faces + lids)
    cavity = np.concatenate([cavity, np.zeros(len(lids), dtype=bool)])
    sides = np.zeros(len(vertices))
    sides[list(lip_side)] = list(lip_side.values())
    keep = (all_faces != np.roll(all_faces, 1, axis=1)).all(1)
    return _Surface(np.array(vertices), all_faces[keep], sides, cavity[keep])


def _strip(lower: Array, upper: Array, closed: bool = False) -> list[tuple[int, int, int]]:
    """Triangles between two rows of vertices; seen from outside `upper` is above and the columns go right."""
    after = np.roll(np.arange(len(lower)), -1) if closed else np.arange(1, len(lower))
    faces = []
    for j, k in enumerate(after):
        faces.append((int(lower[j]), int(lower[k]), int(upper[k])))
        faces.append((int(lower[j]), int(upper[k]), int(upper[j])))
    return faces


# ---- rig -------------------------------------------------------------------------------------------------------------


def _skin_weights(v: Float[Array, "V 3"]) -> Float[Array, "V J"]:
    x, y, z = v.T
    spine = smoothstep(z, 0.45, 0.56)
    neck = smoothstep(z, 0.665, 0.745) * smoothstep(-np.abs(x), -0.14, -0.06)
    jawline = 0.03 * smoothstep(-y, 0.0, 0.06)  # the chin belongs to the head, the nape at its height to the neck
    head = smoothstep(z + jawline, 0.765, 0.835)
    return np.stack([1 - spine, spine * (1 - neck), neck * (1 - head), neck * head], axis=1)


def _blendshapes(surface: _Surface) -> dict[str, Float[Array, "V 3"]]:
    """Displacements in metres per unit coefficient. Left is the subject's left, +x."""
    v = surface.vertices
    x, y, z = v.T
    front = smoothstep(-y, 0.02, 0.06)
    shapes = {"jawOpen": _jaw_open(surface), "mouthPucker": _pucker(surface)}
    for side, sign in (("Left", 1.0), ("Right", -1.0)):
        corner = front * bump((sign * x - 0.028) / 0.013, (z - MOUTH_Z) / 0.016)
        shapes[f"mouthSmile{side}"] = corner[:, None] * np.array([sign * 0.009, 0.004, 0.011])
        eye_x, eye_z = sign * x - EYE_X, z - EYE_Z
        lid = front * bump(eye_x / 0.013) * smoothstep(eye_z, -0.009, 0.001) * smoothstep(-eye_z, -0.020, -0.008)
        travel = np.clip(eye_z + 0.0055, 0.0, 0.0115)
        shapes[f"eyeBlink{side}"] = (lid * travel)[:, None] * np.array([0.0, 0.05, -1.0])
        brow = front * bump((sign * x - 0.026) / 0.016, (z - 0.926) / 0.010)
        shapes[f"browDown{side}"] = brow[:, None] * np.array([-sign * 0.003, -0.001, -0.008])
    inner = front * bump(x / 0.020, (z - 0.930) / 0.013)
    shapes["browInnerUp"] = inner[:, None] * np.array([0.0, 0.0, 0.011])
    cheeks = front * bump((np.abs(x) - 0.045) / 0.013, (z - 0.845) / 0.017)
    shapes["cheekPuff"] = cheeks[:, None] * np.stack([0.010 * np.sign(x), np.full_like(x, -0.009), 0 * x], axis=1)
    region = front * bump(x / 0.026, (z - MOUTH_Z) / 0.018)
    shapes["mouthLeft"] = region[:, None] * np.array([0.012, 0.002, 0.001])
    sneer = front * bump((np.abs(x) - 0.011) / 0.009, (z - 0.868) / 0.012)
    shapes["noseSneer"] = sneer[:, None] * np.stack([0.003 * np.sign(x), 0 * x, np.full_like(x, 0.006)], axis=1)
    return shapes


def _jaw_open(surface: _Surface, angle: float = 0.30) -> Float[Array, "V 3"]:
    """The chord of a turn of the lower jaw about the axis through the ears."""
    x, y, z = surface.vertices.T
    part = 0.016 * np.sqrt(np.clip(1 - (x / MOUTH_HALF_WIDTH) ** 2, 0, 1)) * surface.lip_side
    part += np.sign(z - MOUTH_Z) * 0.008 * bump(x / 0.018, (z - MOUTH_Z) / 0.012) * (surface.lip_side == 0)
    weight = smoothstep(MOUTH_Z - z - part, -0.012, 0.012)
    weight *= smoothstep(-y, -0.005, 0.055) * smoothstep(z, 0.745, 0.795)
    local = surface.vertices - [0.0, 0.005, 0.880]
    c, s = np.cos(angle), np.sin(angle)
    turned = np.stack([local[:, 0], c * local[:, 1] - s * local[:, 2], s * local[:, 1] + c * local[:, 2]], axis=1)
    return weight[:, None] * (turned - local)


def _pucker(surface: _Surface) -> Float[Array, "V 3"]:
    x, y, z = surface.vertices.T
    near = smoothstep(-y, 0.02, 0.06) * bump(x / 0.024, (z - MOUTH_Z) / 0.015)
    return near[:, None] * np.stack([-0.45 * x, np.full_like(x, -0.009), 0.25 * (z - MOUTH_Z)], axis=1)


def _regions(surface: _Surface) -> Int[Array, "F"]:
    x, y, z = surface.vertices[surface.faces].mean(1).T
    label = {name: i for i, name in enumerate(REGIONS)}
    regions = np.zeros(len(surface.faces), dtype=np.int64)
    regions[z < 0.715] = label["torso"]
    hairline = np.interp(
        np.degrees(np.arctan2(np.abs(x), -y)), (0, 40, 80, 110, 180), (0.962, 0.955, 0.93, 0.92, 0.845)
    )
    regions[(z > hairline)] = label["scalp"]
    front = y < -0.04
    eye = ((np.abs(x) - EYE_X) / (EYE_OPENING[0] + 0.003)) ** 2 + ((z - EYE_Z) / (EYE_OPENING[1] + 0.003)) ** 2
    regions[(eye < 1) & front] = label["eyes"]
    lips = (x / (MOUTH_HALF_WIDTH + 0.002)) ** 2 + ((z - MOUTH_Z) / 0.0115) ** 2
    regions[(lips < 1) & front] = label["lips"]
    regions[surface.in_cavity] = label["mouth_cavity"]
    return regions
