"""`threevp track --evaluate GT`: a tracked capture against one whose track is known, after one similarity over all pictures.

`T_camera_head` maps points of the template's rest pose by the head joint's motion into the camera (OpenGL axes, metres). Two
templates of one person differ by where and how large their rest heads are, so one similarity from one rest head to the other is
found over the whole sequence: `s (R_t z + t_t) = p_t` is linear in the point `s z` and the scale `s`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array
from rich.console import Console
from rich.table import Table

from threevp_nerfstudio.body.regions import part_vertices
from threevp_nerfstudio.body.rig import Rig
from threevp_nerfstudio.body.template import Motion, RiggedTemplate
from threevp_nerfstudio.capture.capture import Capture, load_capture, yaw_deg
from threevp_nerfstudio.errors import CaptureError
from threevp_nerfstudio.kernels.mesh_query import MeshQuery

SECTORS = ((0.0, 30.0), (30.0, 60.0), (60.0, 90.0), (90.0, 120.0), (120.0, 150.0), (150.0, 180.1))
"""Of the truth's |yaw|, degrees."""
EXPRESSIONS = {
    "jaw opening": ("jawOpen",),
    "smile": ("mouthSmileLeft", "mouthSmileRight"),
    "blink": ("eyeBlinkLeft", "eyeBlinkRight"),
    "brow raise": ("browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
}
FRONTAL_DEG = 60.0
"""Expressions are compared below that |yaw|."""
HIDDEN = ("cavity", "tongue", "teeth", "back", "interior", "socket", "cap")
"""Words in the names of regions that no camera sees."""
SURFACE_FRAMES = 48


@dataclass(frozen=True)
class Errors:
    """Over some pictures; NaN where there are none."""

    pictures: int
    rotation_mean_deg: float
    rotation_p95_deg: float
    position_mean_mm: float
    position_max_mm: float
    face_mm: float
    """Mean distance of the truth's face vertices from the tracked surface."""
    skull_mm: float
    body_mm: float


@dataclass(frozen=True)
class Evaluation:
    """What `compare` found."""

    total: int
    """Pictures of the truth."""
    matched: int
    scale: float
    """Metres of the truth per metre of the track."""
    all: Errors
    sectors: dict[str, Errors]
    """By the truth's |yaw|."""
    correlation: dict[str, float]
    """Of expressions, below 60 degrees; NaN where either side never moves or has no such channel."""
    frontal_pictures: int
    jaw_deg: float
    """Mean error of the jaw joint's rotation; NaN unless both templates have one."""
    rotation_deg: tuple[float, ...]
    position_mm: tuple[float, ...]
    yaw_deg: tuple[float, ...]
    """Per matched picture."""

    def as_json(self) -> dict:
        """With null in place of NaN."""
        content = without_nan(asdict(self))
        assert isinstance(content, dict)
        return content


def without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def compare(tracked: Path | str, truth: Path | str) -> Evaluation:
    """Compare two capture folders of the same video, matched by time. Raises `CaptureError`."""
    return compare_captures(load_capture(tracked, check_pictures=False), load_capture(truth, check_pictures=False))


def compare_captures(ours: Capture, theirs: Capture) -> Evaluation:
    """See `compare`."""
    a, b, total = match_frames(ours, theirs)
    A, B = camera_from_head(ours, a), camera_from_head(theirs, b)
    Q, z, s, q = align_heads(A, B, theirs.template)
    rotation = angle_deg(A[:, :3, :3] @ Q, B[:, :3, :3])
    position = 1000 * np.linalg.norm(A[:, :3, :3] @ z + s * A[:, :3, 3] - (B[:, :3, :3] @ q + B[:, :3, 3]), axis=1)
    yaw = yaw_deg(theirs.frames.camera_to_world[b])
    surface = surface_distances(ours, theirs, a, b, s)
    frontal = np.abs(yaw) < FRONTAL_DEG
    correlation = {
        name: correlate(signal(ours, a, channels)[frontal], signal(theirs, b, channels)[frontal]) for name, channels in EXPRESSIONS.items()
    }
    return Evaluation(
        total=total,
        matched=len(a),
        scale=s,
        all=_errors(np.ones(len(a), dtype=bool), rotation, position, surface),
        sectors={
            f"{lo:.0f}-{min(hi, 180):.0f}": _errors((np.abs(yaw) >= lo) & (np.abs(yaw) < hi), rotation, position, surface)
            for lo, hi in SECTORS
        },
        correlation=correlation,
        frontal_pictures=int(frontal.sum()),
        jaw_deg=jaw_error(ours, theirs, a, b),
        rotation_deg=tuple(rotation.tolist()),
        position_mm=tuple(position.tolist()),
        yaw_deg=tuple(yaw.tolist()),
    )


def match_frames(ours: Capture, theirs: Capture) -> tuple[Int[Array, "n"], Int[Array, "n"], int]:
    """Frames of the same moment of the video: (ours, theirs, pictures of the truth). Raises `CaptureError`."""
    wanted = np.flatnonzero(theirs.frames.split != "test")
    at, has = video_times(theirs), video_times(ours)
    order = np.argsort(has)
    near = np.searchsorted(has[order], at[wanted]).clip(1, len(has) - 1) if len(has) > 1 else np.zeros(len(wanted), int)
    left, right = order[near - 1], order[near]
    best = np.where(np.abs(has[left] - at[wanted]) <= np.abs(has[right] - at[wanted]), left, right)
    close = np.abs(has[best] - at[wanted]) < 0.5 / theirs.fps
    if close.sum() < 3:
        raise CaptureError(f"{ours.directory} and {theirs.directory} share {int(close.sum())} moments; are they of the same video?")
    return best[close], wanted[close], len(wanted)


def video_times(capture: Capture) -> Float[Array, "N"]:
    """Seconds in the video of each frame: of tracked captures as written, of others by laying the sequences end to end."""
    import json

    start = json.loads((capture.directory / "transforms.json").read_text()).get("video_start")
    frames = capture.frames
    if isinstance(start, (int, float)):
        return start + capture.motion.times[frames.motion_index].astype(np.float64)
    times = frames.times.astype(np.float64).copy()
    static = frames.sequence == "static"
    if static.any():
        times[~static] += times[static].max() + 1.0 / capture.fps
    return times


def joint_transforms(
    template: RiggedTemplate, rotations: Float[Array, "N J 3"], translation: Float[Array, "N 3"]
) -> Float[Array, "N J 4 4"]:
    """From rest pose to posed space, for each joint."""
    rig = Rig.from_template(template, dtype=torch.float64)
    return rig.joint_transforms(torch.as_tensor(rotations, dtype=torch.float64), torch.as_tensor(translation, dtype=torch.float64)).numpy()


def head_joint(template: RiggedTemplate) -> int:
    """The joint named head; else the last one whose name has it; else the root."""
    names = [str(n).lower() for n in template.joint_names]
    exact = [i for i, n in enumerate(names) if n == "head"] or [i for i, n in enumerate(names) if "head" in n]
    return exact[-1] if exact else 0


def camera_from_head(capture: Capture, rows: Int[Array, "n"]) -> Float[Array, "n 4 4"]:
    """`T_camera_head` of frames."""
    motion, index = capture.motion, capture.frames.motion_index[rows]
    if motion.rigged:
        G = joint_transforms(capture.template, motion.joint_rotations[index], motion.root_translation[index])
        head = G[:, head_joint(capture.template)]
    else:
        fixed = skull_vertices(capture.template)
        head = np.stack([rigid_fit(capture.template.vertices[fixed], motion.vertices[i][fixed]) for i in index])
    return np.linalg.inv(capture.frames.camera_to_world[rows]) @ head


def skull_vertices(template: RiggedTemplate) -> Bool[Array, "V"]:
    """Vertices that move with the head and not with the face."""
    groups = surface_groups(template)
    return groups["skull"] if groups["skull"].sum() >= 4 else np.ones(len(template.vertices), dtype=bool)


def rigid_fit(a: Float[Array, "n 3"], b: Float[Array, "n 3"]) -> Float[Array, "4 4"]:
    """The rigid motion that brings `a` to `b` (Kabsch)."""
    ca, cb = a.mean(0), b.mean(0)
    T = np.eye(4)
    T[:3, :3] = nearest_rotation((b - cb).T @ (a - ca))
    T[:3, 3] = cb - T[:3, :3] @ ca
    return T


def nearest_rotation(M: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    U, _, Vt = np.linalg.svd(M)
    return U @ np.diag([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))]) @ Vt


def align_heads(
    A: Float[Array, "n 4 4"], B: Float[Array, "n 4 4"], truth: RiggedTemplate
) -> tuple[Float[Array, "3 3"], Float[Array, "3"], float, Float[Array, "3"]]:
    """The similarity between the rest heads: rotation `Q` (track from truth), the head's point `z` (scaled) and `q` (truth), scale `s`."""
    Q = nearest_rotation(np.einsum("nji,njk->ik", A[:, :3, :3], B[:, :3, :3]))
    q = truth.vertices[skull_vertices(truth)].mean(0).astype(np.float64)
    p = B[:, :3, :3] @ q + B[:, :3, 3]
    left = np.concatenate([A[:, :3, :3], A[:, :3, 3:]], axis=-1).reshape(-1, 4)
    solution = np.linalg.lstsq(left, p.reshape(-1), rcond=None)[0]
    return Q, solution[:3], float(solution[3]), q


def angle_deg(A: Float[Array, "n 3 3"], B: Float[Array, "n 3 3"]) -> Float[Array, "n"]:
    """Angle between rotations, exact for small ones too."""
    D = np.einsum("nji,njk->nik", A, B)
    skew = np.stack([D[:, 2, 1] - D[:, 1, 2], D[:, 0, 2] - D[:, 2, 0], D[:, 1, 0] - D[:, 0, 1]], axis=-1)
    return np.degrees(np.arctan2(np.linalg.norm(skew, axis=1) / 2, (np.trace(D, axis1=1, axis2=2) - 1) / 2))


def signal(capture: Capture, rows: Int[Array, "n"], channels: tuple[str, ...]) -> Float[Array, "n"]:
    """The mean of the named channels; for the jaw, where there is no channel, how far the jaw joint turns; else NaN."""
    motion, index = capture.motion, capture.frames.motion_index[rows]
    names = list(capture.template.expression_names if motion.rigged else motion.conditioning_names)
    values = motion.expression if motion.rigged else motion.conditioning
    columns = [names.index(c) for c in channels if c in names]
    total = values[index][:, columns].mean(1).astype(np.float64) if columns else np.full(len(rows), np.nan)
    joint = capture.template.jaw_joint
    if "jawOpen" in channels and motion.rigged and joint is not None:
        turned = np.linalg.norm(motion.joint_rotations[index, joint], axis=-1) / 0.35  # about as far as a jaw opens, radians
        total = np.where(np.isfinite(total), total, 0.0) + turned
    return total


def jaw_error(ours: Capture, theirs: Capture, a: Array, b: Array) -> float:
    """Mean angle between the jaw joints' rotations, degrees; NaN unless both have one."""
    i, j = ours.template.jaw_joint, theirs.template.jaw_joint
    if i is None or j is None or not (ours.motion.rigged and theirs.motion.rigged):
        return float("nan")
    from scipy.spatial.transform import Rotation

    x = Rotation.from_rotvec(ours.motion.joint_rotations[ours.frames.motion_index[a], i])
    y = Rotation.from_rotvec(theirs.motion.joint_rotations[theirs.frames.motion_index[b], j])
    return float(np.degrees((x.inv() * y).magnitude()).mean())


def correlate(x: Float[Array, "n"], y: Float[Array, "n"]) -> float:
    """Pearson's coefficient; NaN where either does not move."""
    if len(x) < 3 or not (np.isfinite(x).all() and np.isfinite(y).all()) or x.std() < 1e-6 or y.std() < 1e-6:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def surface_groups(template: RiggedTemplate) -> dict[str, Bool[Array, "V"]]:
    """Vertices of face, skull and body, by where eyes and mouth are; what no camera sees is in none."""
    v = template.vertices
    parts = part_vertices(template)
    names = [str(n).lower() for n in template.region_names]
    hidden = np.isin(template.face_regions, [i for i, n in enumerate(names) if any(word in n for word in HIDDEN)])
    seen = np.zeros(len(v), dtype=bool)
    seen[template.faces[~hidden].reshape(-1)] = True
    seen[template.faces[hidden].reshape(-1)] = False
    if "mouth" not in parts or "eye_left" not in parts or "eye_right" not in parts:
        return {"face": np.zeros(len(v), bool), "skull": seen, "body": np.zeros(len(v), bool)}
    eyes = (v[parts["eye_left"]].mean(0) + v[parts["eye_right"]].mean(0)) / 2
    mouth = v[parts["mouth"]].mean(0)
    u = float(eyes[2] - mouth[2]) / 0.067
    chin = mouth[2] - 0.055 * u
    face = seen & (v[:, 2] > chin) & (v[:, 2] < eyes[2] + 0.045 * u) & (v[:, 1] < eyes[1] + 0.035 * u)
    skull = seen & ~face & (v[:, 2] > mouth[2] + 0.01 * u)
    return {"face": face, "skull": skull, "body": seen & (v[:, 2] <= chin)}


def posed_in_camera(capture: Capture, rows: Int[Array, "n"]) -> Iterator[Float[Array, "V 3"]]:
    """Posed vertices of frames in the camera's axes, metres."""
    rig = Rig.from_template(capture.template) if capture.motion.rigged else None
    for row in rows:
        T = np.linalg.inv(capture.frames.camera_to_world[row])
        world = _posed(capture.motion, rig, int(capture.frames.motion_index[row]))
        yield world @ T[:3, :3].T + T[:3, 3]


def _posed(motion: Motion, rig: Rig | None, i: int) -> Float[Array, "V 3"]:
    if rig is None:
        return motion.vertices[i].astype(np.float64)
    parts = (motion.joint_rotations, motion.root_translation, motion.expression)
    return rig.pose(*(torch.as_tensor(p[[i]], dtype=torch.float32) for p in parts))[0].numpy().astype(np.float64)


def surface_distances(ours: Capture, theirs: Capture, a: Array, b: Array, scale: float) -> dict[str, Float[Array, "n"]]:
    """Per picture and group, the mean distance (mm) of the truth's vertices from the tracked surface; NaN where not looked at."""
    groups = surface_groups(theirs.template)
    chosen = np.unique(np.linspace(0, len(a) - 1, SURFACE_FRAMES).round().astype(int))
    found = {name: np.full(len(a), np.nan) for name in groups}
    query: MeshQuery | None = None
    faces = ours.template.faces
    for n, x, y in zip(chosen, posed_in_camera(ours, a[chosen]), posed_in_camera(theirs, b[chosen]), strict=True):
        query = MeshQuery(scale * x, faces)
        for name, members in groups.items():
            if members.any():
                points = y[members]
                hits = query.nearest(points)
                nearest = query.at(hits, scale * x)
                found[name][n] = 1000 * float(np.linalg.norm(points - nearest, axis=1)[hits.found].mean())
    return found


def _errors(rows: Bool[Array, "n"], rotation: Array, position: Array, surface: dict[str, Array]) -> Errors:
    def mean(x: Array) -> float:
        x = x[rows]
        x = x[np.isfinite(x)]
        return float(x.mean()) if len(x) else float("nan")

    any_ = bool(rows.any())
    return Errors(
        int(rows.sum()),
        mean(rotation),
        float(np.percentile(rotation[rows], 95)) if any_ else float("nan"),
        mean(position),
        float(position[rows].max()) if any_ else float("nan"),
        mean(surface["face"]),
        mean(surface["skull"]),
        mean(surface["body"]),
    )


def print_evaluation(console: Console, found: Evaluation) -> None:
    """Tables on the console."""
    console.print(f"{found.matched} of {found.total} pictures of the truth are tracked; scale {found.scale:.4f}", highlight=False)
    title = "Errors by the truth's |yaw|: head rotation (°), head position (mm), distance of the true surface from the tracked one (mm)"
    table = Table(title=title, title_justify="left")
    table.add_column("|yaw|")
    for column in ("n", "rot", "p95", "pos", "max", "face", "skull", "body"):
        table.add_column(column, justify="right")
    for name, errors in [*found.sectors.items(), ("all", found.all)]:
        if name == "all":
            table.add_section()
        cells = [errors.rotation_mean_deg, errors.rotation_p95_deg, errors.position_mean_mm, errors.position_max_mm]
        table.add_row(name, str(errors.pictures), *(_cell(c) for c in [*cells, errors.face_mm, errors.skull_mm, errors.body_mm]))
    console.print(table)
    console.print(f"Expressions, over {found.frontal_pictures} pictures below {FRONTAL_DEG:.0f}°", highlight=False)
    table = Table()
    table.add_column("expression")
    table.add_column("correlation", justify="right")
    for name, value in found.correlation.items():
        table.add_row(name, _cell(value))
    if np.isfinite(found.jaw_deg):
        table.add_row("jaw joint, mean error", f"{found.jaw_deg:.2f}°")
    console.print(table)


def _cell(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{value:.2f}"
