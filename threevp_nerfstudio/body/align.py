"""Where a scan is, how large, and which way it faces: from landmarks, from stated axes, or guessed.

A guess tries the axis-aligned ways to hold a head, with closest points on the body model deciding; it is reported and
must be confirmed, because a wrong one gives a template that looks plausible and is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.spatial import cKDTree

from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.labels import INSIDE, vertices_in
from threevp_nerfstudio.body.mesh import vertex_normals
from threevp_nerfstudio.body.scan import Scan
from threevp_nerfstudio.errors import TemplateError

UNITS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "in": 0.0254}
AXES = {"+x": (0, 1), "-x": (0, -1), "+y": (1, 1), "-y": (1, -1), "+z": (2, 1), "-z": (2, -1)}
SMALLEST, LARGEST = 0.18, 1.2
"""Metres between which the height of a head, a bust or a half figure lies."""
SAMPLES = 1500
FACE_SAMPLES = 400
HEIGHTS = (-0.09, -0.06, -0.03, 0.0, 0.03, 0.06, 0.09)
DEPTHS = (-0.03, 0.0, 0.03)
"""Metres by which the face is moved at the start, up and back, to find where it sits."""
NORMAL_WEIGHT = 0.04
"""Metres that a difference of one between unit normals counts for."""


@dataclass(frozen=True)
class Similarity:
    """x_world = scale * R @ x_scan + translation."""

    scale: float
    R: Float[Array, "3 3"]
    translation: Float[Array, "3"]

    def apply(self, points: Float[Array, "N 3"]) -> Float[Array, "N 3"]:
        return self.scale * points @ self.R.T + self.translation

    def after(self, first: Similarity) -> Similarity:
        return Similarity(
            self.scale * first.scale, self.R @ first.R, self.scale * self.R @ first.translation + self.translation
        )


@dataclass(frozen=True)
class Guess:
    """An alignment with what it says about the scan, and how it compares with the runner-up."""

    similarity: Similarity
    unit: str
    up: str
    front: str
    error: float  # metres, trimmed mean distance to the body model
    runner_up: float

    def text(self) -> str:
        other = f", the next best way to turn it {self.runner_up * 1000:.1f} mm" if np.isfinite(self.runner_up) else ""
        return (
            f"unit {self.unit}, up {self.up}, facing {self.front} (mean distance to the body model "
            f"{self.error * 1000:.1f} mm{other})"
        )


def best_similarity(
    source: Float[Array, "N 3"], target: Float[Array, "N 3"], with_scale: bool = True, weights: Array | None = None
) -> Similarity:
    """The similarity (or rigid motion) that takes `source` to `target` in least squares (Umeyama 1991)."""
    w = np.ones(len(source)) if weights is None else weights
    w = w / w.sum()
    a, b = w @ source, w @ target
    covariance = (target - b).T @ (w[:, None] * (source - a))
    U, S, Vt = np.linalg.svd(covariance)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(U @ Vt))])
    R = U @ np.diag(sign) @ Vt
    scale = float((S * sign).sum() / (w @ ((source - a) ** 2).sum(1))) if with_scale else 1.0
    return Similarity(scale, R, b - scale * R @ a)


def read_landmarks(path: Path, body: BodyModel) -> dict[str, Float[Array, "3"]]:
    """Points on the scan, in its own coordinates: a JSON object of name -> [x, y, z]. Raises `TemplateError`."""
    known = ", ".join(body.landmarks)
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TemplateError(f"{path} cannot be read as landmarks ({error}); write a JSON object of name -> [x, y, z].") from error
    if not isinstance(content, dict):
        raise TemplateError(f"{path} holds a {type(content).__name__}; landmarks are a JSON object of name -> [x, y, z].")
    unknown = sorted(set(content) - set(body.landmarks))
    if unknown:
        raise TemplateError(f"{path}: unknown landmarks {', '.join(unknown)}; known for this body model: {known}.")
    points = {}
    for name, value in content.items():
        point = np.asarray(value, dtype=object)
        if point.shape != (3,) or not all(isinstance(x, (int, float)) and np.isfinite(x) for x in point):
            raise TemplateError(f"{path}: landmark {name!r} is {value!r}; three finite numbers are expected.")
        points[name] = point.astype(np.float64)
    return points


def align_by_landmarks(points: Mapping[str, Float[Array, "3"]], body: BodyModel) -> Similarity:
    """Similarity from at least four named points that do not lie on a line."""
    names = [n for n in points if n in body.landmarks]
    if len(names) < 4:
        raise TemplateError(f"{len(names)} landmarks ({', '.join(names)}); four or more are needed, known: {', '.join(body.landmarks)}.")
    target = body.landmark_points()
    a = np.array([points[n] for n in names])
    b = np.array([target[n] for n in names])
    spread = np.linalg.svd(a - a.mean(0), compute_uv=False)
    if spread[1] < 0.05 * spread[0]:
        raise TemplateError("the landmarks lie on a line; add some to its side (chin, ears, nose tip).")
    similarity = best_similarity(a, b)
    residual = np.linalg.norm(similarity.apply(a) - b, axis=1)
    if residual.max() > 0.03:
        worst = names[int(residual.argmax())]
        raise TemplateError(
            f"landmark {worst!r} is {residual.max() * 1000:.0f} mm from where the others put it; check its place, and that "
            "left and right are the subject's."
        )
    return similarity


def axes_rotation(up: str, front: str) -> Float[Array, "3 3"]:
    """Rotation to the world frame (+z up, facing -y) of a scan with the given axes. Raises `TemplateError`."""
    for flag, axis in (("--scan-up", up), ("--scan-front", front)):
        if axis not in AXES:
            raise TemplateError(f"{flag} {axis!r}: one of {', '.join(AXES)} is expected.")
    if up[1] == front[1]:
        raise TemplateError(f"--scan-up {up} and --scan-front {front} lie along the same axis.")
    z, forward = np.zeros(3), np.zeros(3)
    z[AXES[up][0]], forward[AXES[front][0]] = AXES[up][1], AXES[front][1]
    return np.stack([np.cross(-forward, z), -forward, z])


def align_stated(scan: Scan, body: BodyModel, unit: str, up: str, front: str) -> Guess:
    """Alignment with known unit and axes: only the place, and a small turn, are searched."""
    if unit not in UNITS:
        raise TemplateError(f"--scan-unit {unit!r}: one of {', '.join(UNITS)} is expected.")
    height = _extent(scan.vertices) * UNITS[unit]
    if not SMALLEST <= height <= LARGEST * 2:
        raise TemplateError(
            f"in {unit} the scan is {height:.3g} m large; a head is 0.2 to 0.3 m, a bust up to {LARGEST} m. Check --scan-unit."
        )
    search = _Search(scan, body)
    similarity, error = search.refine(axes_rotation(up, front), UNITS[unit], fixed_scale=True)
    similarity, _ = seat_face(scan, body, similarity)
    return Guess(similarity, unit, up, front, error, np.inf)


def guess_alignment(scan: Scan, body: BodyModel, unit: str | None = None, axes: tuple[str, str] | None = None) -> Guess:
    """Try the axis-aligned orientations and the plausible units by closest points; the best and what it says.

    What is known is not tried: `unit`, and `axes` (up, front).
    """
    search = _Search(scan, body)
    extent = _extent(scan.vertices)
    plausible = [u for u, metres in UNITS.items() if SMALLEST <= extent * metres <= LARGEST]
    units = [unit] if unit else plausible
    starts = [(u, UNITS[u], True) for u in units] or [("unknown", h / extent, False) for h in (0.28, 0.45, 0.7)]
    tried = []
    for up, front in [axes] if axes else [pair for pair in product(AXES, AXES) if pair[0][1] != pair[1][1]]:
        R = axes_rotation(up, front)
        for name, scale, fixed in starts:
            similarity, error = search.refine(R, scale, fixed, iterations=12)
            tried.append((error, name, up, front, similarity))
    tried.sort(key=lambda t: t[0])
    error, name, up, front, similarity = tried[0]
    runner_up = next((t[0] for t in tried if (t[2], t[3]) != (up, front)), np.inf)
    similarity, error = search.refine(similarity.R, similarity.scale, name != "unknown", similarity.translation, 40)
    if name == "unknown":
        name, similarity = _snap(similarity, search)
    similarity, _ = seat_face(scan, body, similarity)
    return Guess(similarity, name, up, front, error, runner_up)


def seat_face(scan: Scan, body: BodyModel, first: Similarity) -> tuple[Similarity, float]:
    """Refine an alignment by the face alone, at its scale; and the mean distance of face to scan that remains, metres.

    Long hair and hats pull closest points of the whole head up or down by centimetres, with every distance small. So the
    body model's face is tried at several heights and depths, and where it fits best, in place and normal, it stays.
    """
    template = body.template
    face = np.flatnonzero(vertices_in(template, ("face", "lips", "eyelids")))
    face = np.random.default_rng(0).permutation(face)[:FACE_SAMPLES]
    normals = NORMAL_WEIGHT * vertex_normals(template.vertices, template.faces)[face]
    points = template.vertices[face]
    surface = np.concatenate([scan.vertices, scan.vertices[scan.faces].mean(1)])
    of_vertices = vertex_normals(scan.vertices, scan.faces)
    directions = np.concatenate([of_vertices, of_vertices[scan.faces].mean(1)]) @ first.R.T
    placed = first.apply(surface)
    near = (np.abs(placed - points.mean(0)) < np.array([0.16, 0.25, 0.28])).all(1)
    if near.sum() < 100:
        return first, np.inf
    tree = cKDTree(np.concatenate([placed, NORMAL_WEIGHT * directions], axis=1)[near])
    target = placed[near]
    best, motion = np.inf, Similarity(1.0, np.eye(3), np.zeros(3))
    for up, ahead in product(HEIGHTS, DEPTHS):
        move = Similarity(1.0, np.eye(3), np.array([0.0, ahead, up]))
        for _ in range(12):
            d, index = tree.query(np.concatenate([move.apply(points), normals @ move.R.T], axis=1))
            close = d <= np.quantile(d, 0.8)
            move = best_similarity(points[close], target[index[close]], with_scale=False)
        error = float(d[close].mean())
        if error < best:
            best, motion = error, move
    back = Similarity(1.0, motion.R.T, -motion.R.T @ motion.translation)
    return back.after(first), best


def _snap(similarity: Similarity, search: _Search) -> tuple[str, Similarity]:
    """A scale that is near a unit's is that unit's; people differ by a tenth."""
    for name, metres in UNITS.items():
        if abs(np.log(similarity.scale / metres)) < 0.12:
            return name, search.refine(similarity.R, metres, True, similarity.translation, 20)[0]
    return f"{similarity.scale:.4g} m", similarity


def _extent(vertices: Float[Array, "V 3"]) -> float:
    """The largest side of the bounding box of all but the outermost points."""
    low, high = np.quantile(vertices, [0.005, 0.995], axis=0)
    return float((high - low).max())


class _Search:
    """Iterated closest points, in place and normal, between the scan and the outer skin of the body model."""

    def __init__(self, scan: Scan, body: BodyModel) -> None:
        rng = np.random.default_rng(0)
        corners = scan.vertices[scan.faces]
        cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        area = np.linalg.norm(cross, axis=1)
        chosen = rng.choice(len(area), SAMPLES, p=area / area.sum())
        self.scan = np.einsum("nk,nkc->nc", rng.dirichlet(np.ones(3), SAMPLES), corners[chosen])
        self.scan_normals = cross[chosen] / area[chosen, None]
        template = body.template
        skin = ~vertices_in(template, INSIDE)
        normals = NORMAL_WEIGHT * vertex_normals(template.vertices, template.faces)
        self.body = np.concatenate([template.vertices, normals], axis=1)[skin]
        self.body_tree = cKDTree(self.body)
        head = self.body[:, 2] > template.vertices[body.landmarks["chin"][0], 2] - 0.02
        self.head = self.body[head]
        self.head_centre = self.head[:, :3].mean(0)

    def refine(
        self, R: Array, scale: float, fixed_scale: bool, translation: Array | None = None, iterations: int = 30
    ) -> tuple[Similarity, float]:
        """Align the crown first, then iterate on the closest 85 % both ways; the mean distance that remains."""
        if translation is None:
            turned = scale * self.scan @ R.T
            top = np.quantile(turned[:, 2], 0.999)
            crown = turned[turned[:, 2] > top - 0.2].mean(0)
            translation = self.head_centre - crown
            translation[2] = self.body[:, 2].max() - top + 0.01
        current = Similarity(scale, R, translation)
        error = np.inf
        for _ in range(iterations):
            moved = np.concatenate(
                [current.apply(self.scan), NORMAL_WEIGHT * self.scan_normals @ current.R.T], axis=1
            )
            d, index = self.body_tree.query(moved)
            e, back = cKDTree(moved).query(self.head)
            near, close = d <= np.quantile(d, 0.85), e <= np.quantile(e, 0.85)
            source = np.concatenate([moved[near], moved[back[close]]])[:, :3]
            target = np.concatenate([self.body[index[near]], self.head[close]])[:, :3]
            weights = np.concatenate([np.full(near.sum(), 1 / near.sum()), np.full(close.sum(), 1 / close.sum())])
            step = best_similarity(source, target, with_scale=not fixed_scale, weights=weights)
            current = step.after(current)
            error = float((d[near].mean() + e[close].mean()) / 2)
        return current, error
