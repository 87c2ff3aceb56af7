"""Colours of the template's vertices under even light, as the pyramid's blurred pictures show them, and the room's light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.spatial import cKDTree

from threevp_nerfstudio.tracking.evidence import SIGMAS, Evidence, project
from threevp_nerfstudio.tracking.lighting import EVEN, fit_lighting, harmonics
from threevp_nerfstudio.tracking.visibility import View

LIT = 1500
"""Vertices that tell the light."""
ENOUGH = 0.5
"""Sum of viewing weights at which a vertex's colour counts as half known."""


@dataclass(frozen=True)
class Appearance:
    """What vertices look like."""

    albedo: Float[Array, "L V 3"]
    trust: Float[Array, "V"]
    lighting: Float[Array, "9 3"]

    def predicted(self, level: int, rows: Array, normals: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
        """Colours of some vertices under the room's light."""
        return self.albedo[level, rows] * (harmonics(normals) @ self.lighting)


@dataclass(frozen=True)
class Sight:
    """What one picture shows of each vertex."""

    colours: Float[Array, "L V 3"]
    weight: Float[Array, "V"]
    normals: Float[Array, "V 3"]


def sight(picture: Evidence, x: Float[Array, "V 3"], view: View) -> Sight:
    """Colours where the posed vertices are; weight by how squarely and how far from the matte's edge they are seen."""
    colours = np.zeros((len(SIGMAS), len(x), 3), dtype=np.float32)
    weight = np.zeros(len(x), dtype=np.float32)
    rows = np.flatnonzero(view.visible)
    xy, _ = project(picture.camera, x[rows])
    depth = picture.edge.at(xy)[0][:, 0]
    unit = max(picture.camera.width, picture.camera.height) / 256
    weight[rows] = np.clip(view.facing[rows], 0, 1) ** 2 * np.clip(depth / (2 * unit), 0, 1)
    for level, blurred in enumerate(picture.levels):
        colours[level, rows] = blurred.at(xy)[0]
    return Sight(colours, weight, view.normals)


def gather(sights: list[Sight], rounds: int = 3) -> Appearance:
    """Albedo and light that explain all sights; colours that disagree with the others count little."""
    weight = np.stack([s.weight for s in sights])
    total = weight.sum(0)
    trust = total / (total + ENOUGH)
    seen = np.flatnonzero(total > 0.05)
    rows = np.random.default_rng(0).permutation(seen)[:LIT]
    few = [Sight(s.colours[:, rows], s.weight[rows], s.normals[rows]) for s in sights]
    lighting = EVEN.copy()
    for _ in range(rounds):
        lighting = _lighting(few, weight[:, rows], _albedo(few, weight[:, rows], lighting, 0))
    levels = [_albedo(sights, weight, lighting, level) for level in range(len(SIGMAS))]
    return Appearance(np.stack(levels), trust, lighting)


def filled(albedo: Float[Array, "V 3"], trust: Float[Array, "V"], rest: Float[Array, "V 3"]) -> Float[Array, "V 3"]:
    """Vertices that no picture shows take the colour of the nearest that one does."""
    known = np.flatnonzero(trust > 0.1)
    if not len(known):
        return albedo
    nearest = known[cKDTree(rest[known]).query(rest)[1]]
    return np.where((trust > 0.1)[:, None], albedo, albedo[nearest])


def _albedo(sights: list[Sight], weight: Float[Array, "K V"], lighting: Array, level: int) -> Float[Array, "V 3"]:
    plain = [s.colours[level] / np.maximum(harmonics(s.normals) @ lighting, 0.2) for s in sights]
    mean = np.zeros_like(plain[0])
    robust = weight[:, :, None].astype(np.float64) + 1e-9
    for _ in range(3):
        mean = sum(w * p for w, p in zip(robust, plain, strict=True)) / robust.sum(0)
        off = np.stack([((p - mean) ** 2).sum(-1) for p in plain])
        robust = (weight / (1 + off / 0.05**2) ** 2)[:, :, None] + 1e-9
    return mean


def _lighting(sights: list[Sight], weight: Float[Array, "K V"], albedo: Array) -> Float[Array, "9 3"]:
    picked = [(k, np.flatnonzero(row > 0.05)) for k, row in enumerate(weight)]
    a = np.concatenate([albedo[r] for _, r in picked])
    n = np.concatenate([sights[k].normals[r] for k, r in picked])
    c = np.concatenate([sights[k].colours[0, r] for k, r in picked])
    w = np.concatenate([weight[k, r] for k, r in picked])
    lighting = fit_lighting(a, n, c, w)
    mean = (w[:, None] * (harmonics(n) @ lighting)).sum(0) / max(w.sum(), 1e-9)
    return lighting / np.maximum(mean, 0.1)
