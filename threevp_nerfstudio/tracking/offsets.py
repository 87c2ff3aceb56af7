"""The person's own shape on top of the body model: how far each vertex lies off it along the normals round it.

Directions are means of the normals in a neighbourhood of space, so that both lips, or both lids, move together; along their
own normals they would move into each other.

Outlines of all pictures pull the vertices on them; colours pull every vertex that is seen from several sides to the depth
at which the pictures agree (the shift of its mean colour is eliminated, so the mean does not hold it back). Between them
the offset is smooth. Hair and clothes are free to stand off by centimetres, the face by millimetres.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from threevp_nerfstudio.body.mesh import components, smoothness, vertex_normals
from threevp_nerfstudio.tracking.evidence import project
from threevp_nerfstudio.tracking.parts import Parts
from threevp_nerfstudio.tracking.shape import TurnEstimate, TurnProblem
from threevp_nerfstudio.tracking.terms import COLOUR_NOISE, OUTLINE_NOISE, colour_term
from threevp_nerfstudio.workers import shared

REACH = {"face": 0.004, "hair": 0.04, "clothes": 0.025, "other": 0.008}
"""Metres by which a part usually stands off the body model."""
ROUGHNESS = {"face": 0.0002, "hair": 0.0008, "clothes": 0.0006, "other": 0.0004}
"""Metres by which a vertex usually differs from the mean of its neighbours' offsets."""
LOPSIDED = {"face": 0.002, "hair": 0.006, "clothes": 0.010, "other": 0.004}
"""Metres by which the two sides of a person usually differ. Without, a lopsided head and a wrong azimuth explain each other."""
OUTLINE_WEIGHT, COLOUR_WEIGHT = 0.3, 0.05
"""Independent measurements per vertex and picture."""
LONGEST_STEP = 0.012
NEIGHBOURHOOD = 0.006
"""Metres over which the directions of offsets are averaged."""


def fit_offsets(problem: TurnProblem, estimate: TurnEstimate, level: int | None) -> TurnEstimate:
    """One step of the offsets, poses and camera held. `level`: pyramid level of the colours, None for outlines alone."""
    rig = problem.rig(estimate)
    V = len(rig.points.rest)
    normals = directions(rig.points.rest - estimate.offset, problem.body.template.faces, problem.parts)
    A, b = sp.csr_matrix((V, V)), np.zeros(V)
    looks = None if level is None else problem.looks(estimate)
    sums = _Sums(V)

    def look(k: int):
        seen = problem.seen(k, estimate)
        placed = rig.place(rig.points, estimate.poses[k])
        view = problem.view(k, estimate, rig)
        outward = np.einsum("nrc,nc->nr", placed.linear, normals)
        outline, colours = _outline(seen, placed.camera, outward, view.outline), None
        if looks is not None:
            assert level is not None
            rows = np.flatnonzero(view.visible & (view.facing > 0.3) & problem.parts.skin & (looks.trust > 0.3))
            predicted = looks.predicted(level, rows, view.normals[rows])
            term = colour_term(seen, level, placed.camera[rows], outward[rows][:, :, None], predicted, view.facing[rows])
            colours = rows, term.residual / COLOUR_NOISE, term.J[:, :, 0] / COLOUR_NOISE, COLOUR_WEIGHT * view.facing[rows]
        return outline, colours

    for outline, colours in shared(range(len(estimate.poses)), lambda: look):
        rows, values, residual, weight = outline
        J = sp.csr_matrix((values, (np.repeat(np.arange(len(residual)), 2), rows.reshape(-1))), shape=(len(residual), V))
        A = A + J.T @ sp.diags(weight) @ J
        b -= J.T @ (weight * residual)
        if colours is not None:
            sums.add(*colours)
    diagonal, pull = sums.centred()
    current = (estimate.offset * normals).sum(1)
    step = _smooth_step(problem, A + sp.diags(diagonal), b + pull, current, rig.points.rest - estimate.offset)
    step = np.clip(step, -LONGEST_STEP, LONGEST_STEP)
    offset = estimate.offset + step[:, None] * normals
    offset = carried(problem.body.template.faces, rig.points.rest - estimate.offset, offset, problem.parts)
    return replace(estimate, offset=offset)


class _Sums:
    """Colour residuals of each vertex over the pictures, with the vertex's mean colour eliminated."""

    def __init__(self, V: int) -> None:
        self.w, self.j, self.r = np.zeros((V, 3)), np.zeros((V, 3)), np.zeros((V, 3))
        self.jj, self.jr = np.zeros((V, 3)), np.zeros((V, 3))

    def add(self, rows: Array, r: Float[Array, "n 3"], j: Float[Array, "n 3"], weight: Float[Array, "n"]) -> None:
        w = weight[:, None] / (1 + (r / 3) ** 2) ** 2
        for total, value in ((self.w, w), (self.j, w * j), (self.r, w * r), (self.jj, w * j * j), (self.jr, w * j * r)):
            total[rows] += value

    def centred(self) -> tuple[Float[Array, "V"], Float[Array, "V"]]:
        w = np.maximum(self.w, 1e-9)
        return (self.jj - self.j**2 / w).sum(1).clip(0), -(self.jr - self.j * self.r / w).sum(1)


def _outline(seen, x, outward, edges):
    """Residuals of the outline in units of noise, and their derivatives by the offsets of both ends of each edge."""
    a, b = edges.T
    unit = max(seen.camera.width, seen.camera.height) / 256
    xy, Jp = project(seen.camera, (x[a] + x[b]) / 2)
    distance, slope = seen.edge.at(xy)
    by_point = np.matmul(slope, Jp)[:, 0] / (OUTLINE_NOISE * unit)
    values = np.stack([(by_point * outward[a]).sum(1) / 2, (by_point * outward[b]).sum(1) / 2], axis=1).reshape(-1)
    residual = distance[:, 0] / (OUTLINE_NOISE * unit)
    near = 1.0 / (1.0 + (residual / 12.0) ** 2) ** 2
    return np.stack([a, b], axis=1), values, residual, OUTLINE_WEIGHT * near


def _smooth_step(
    problem: TurnProblem, A: sp.csr_matrix, b: Float[Array, "V"], current: Float[Array, "V"], rest: Float[Array, "V 3"]
) -> Float[Array, "V"]:
    parts = problem.parts

    def per_vertex(table: dict[str, float]) -> Array:
        value = np.full(len(current), table["other"])
        for name, mask in (("face", parts.face), ("hair", parts.hair), ("clothes", parts.clothed)):
            value[mask] = table[name]
        return value

    L = smoothness(problem.body.template.faces.astype(np.int64), len(current))
    bending = L.T @ sp.diags(1.0 / per_vertex(ROUGHNESS) ** 2) @ L
    ridge = sp.diags(1.0 / per_vertex(REACH) ** 2)
    uneven = sp.eye(len(current), format="csr") - mirror(rest)
    ridge = ridge + uneven.T @ sp.diags(1.0 / per_vertex(LOPSIDED) ** 2) @ uneven
    system = (A + bending + ridge).tocsc()
    solver = splu(system, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
    return solver.solve(b - (bending + ridge) @ current)


def mirror(rest: Float[Array, "V 3"]) -> sp.csr_matrix:
    """For each vertex the mean of the three nearest to its mirror image across the middle of the body."""
    middle = np.array([2 * np.median(rest[:, 0]), 0.0, 0.0])
    _, near = cKDTree(rest).query(rest * np.array([-1.0, 1.0, 1.0]) + middle, k=3)
    V = len(rest)
    return sp.csr_matrix((np.full(3 * V, 1 / 3), (np.repeat(np.arange(V), 3), near.reshape(-1))), shape=(V, V))


def directions(rest: Float[Array, "V 3"], faces: Array, parts: Parts) -> Float[Array, "V 3"]:
    """Unit directions along which vertices are offset: normals of the skin, averaged over `NEIGHBOURHOOD` metres."""
    skin = np.flatnonzero(parts.skin)
    normals = vertex_normals(rest, faces)[skin]
    distance, near = cKDTree(rest[skin]).query(rest, k=min(40, len(skin)))
    weight = np.exp(-0.5 * (distance / NEIGHBOURHOOD) ** 2) + 1e-9
    mean = np.einsum("vk,vkc->vc", weight, normals[near])
    return mean / np.linalg.norm(mean, axis=1, keepdims=True).clip(1e-9)


def carried(faces: Array, rest: Float[Array, "V 3"], offset: Float[Array, "V 3"], parts: Parts) -> Float[Array, "V 3"]:
    """What lies inside moves with the skin nearest to it; pieces without skin (eyes, teeth, tongue) as a whole."""
    piece = components(faces.astype(np.int64), len(rest))
    skin = np.flatnonzero(parts.skin)
    with_skin = np.unique(piece[skin])
    tree = cKDTree(rest[skin])
    out = offset.copy()
    inner = np.flatnonzero(~parts.skin)
    if len(inner):
        out[inner] = offset[skin[tree.query(rest[inner], k=8)[1]]].mean(1)
    for label in np.setdiff1d(np.unique(piece), with_skin):
        members = piece == label
        near = np.unique(tree.query(rest[members], k=12)[1])
        out[members] = offset[skin[near]].mean(0)
    return out
