"""A parametric body as template making sees it: a rigged template whose rest shape follows identity parameters.

`anny_body` and `smplx_body` build one; everything after them (personal shape, scans, conversions) knows only this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from threevp_nerfstudio.body.mesh import Remap, corner_coordinates, remap_template
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.errors import TemplateError

RestShapes = Callable[[Float[Array, "B K"]], tuple[Float[Array, "B V 3"], Float[Array, "B J 3"]]]
"""Rest vertices and joints of some identities, metres."""
TOGETHER = 16
"""Identities that a body is asked for at once: most of the time goes by while its shapes come from memory."""


@dataclass(frozen=True)
class Identity:
    """The parameters of a person's rest shape."""

    names: tuple[str, ...]
    default: Float[Array, "K"]
    lower: Float[Array, "K"]
    upper: Float[Array, "K"]
    spread: Float[Array, "K"]  # how far a parameter usually lies from its default


@dataclass(frozen=True)
class BodyModel:
    """`template` at the identity `values`."""

    name: str
    template: RiggedTemplate
    identity: Identity
    values: Float[Array, "K"]
    rests: RestShapes
    landmarks: Mapping[str, Int[Array, "_"]]
    """Named points of the face, each the mean of some template vertices."""

    def rest(self, values: Float[Array, "K"]) -> tuple[Float[Array, "V 3"], Float[Array, "J 3"]]:
        """Rest vertices and joints of an identity, metres."""
        vertices, joints = self.rests(values[None])
        return vertices[0], joints[0]

    def identity_basis(self, values: Float[Array, "K"], step: float = 2e-2) -> Float[Array, "K V 3"]:
        """How the rest shape answers to each identity parameter at `values`, by one-sided differences of `step` into its range."""
        K = len(values)
        base, _ = self.rest(values)
        steps = np.where(values + step <= self.identity.upper, step, -step)
        columns = np.empty((K, *base.shape))
        for a in range(0, K, TOGETHER):
            some = np.arange(a, min(a + TOGETHER, K))
            moved = np.tile(values, (len(some), 1))
            moved[np.arange(len(some)), some] += steps[some]
            columns[some] = (self.rests(moved)[0] - base) / steps[some, None, None]
        return columns

    def at(self, values: Float[Array, "K"]) -> BodyModel:
        """The same body with another identity."""
        vertices, joints = self.rest(values)
        return replace(self, values=values, template=replace(self.template, vertices=vertices, joints=joints))

    def landmark_points(self) -> dict[str, Float[Array, "3"]]:
        """Landmarks on the rest shape."""
        return {name: self.template.vertices[index].mean(0) for name, index in self.landmarks.items()}

    def identity_from(self, given: Mapping[str, float]) -> Float[Array, "K"]:
        """Identity values with some named ones changed. Raises `TemplateError` on unknown names and values out of range."""
        values = self.identity.default.copy()
        for name, value in given.items():
            if name not in self.identity.names:
                close = [n for n in self.identity.names if name.lower() in n.lower()][:8]
                hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(self.identity.names[:12])} ..."
                raise TemplateError(f"{self.name} has no shape parameter {name!r}; {hint} (--list-parameters shows all)")
            k = self.identity.names.index(name)
            low, high = float(self.identity.lower[k]), float(self.identity.upper[k])
            if not low <= value <= high:
                raise TemplateError(f"shape parameter {name}={value:g} is outside {low:g} to {high:g} of {self.name}")
            values[k] = value
        return values

    def remapped(self, change: Remap, cap_region: int = 0) -> BodyModel:
        """The same body on a changed mesh (crop, caps, subdivision); landmarks whose vertices are gone are dropped."""
        M, rests = change.matrix, self.rests

        def new_rests(values: Array) -> tuple[Array, Array]:
            vertices, joints = rests(values)
            return np.stack([M @ v for v in vertices]), joints

        kept = _kept_vertices(change, len(self.template.vertices))
        landmarks = {n: kept[i] for n, i in self.landmarks.items() if (kept[i] >= 0).all()}
        template = with_texture_coordinates(self.template, remap_template(self.template, change, cap_region), change)
        return replace(self, template=template, rests=new_rests, landmarks=landmarks)

    def with_joints(self, keep: Int[Array, "K"]) -> BodyModel:
        """Only some joints, which carry all of the skin weights and include their ancestors."""
        rests, t = self.rests, self.template
        position = {int(j): i for i, j in enumerate(keep)}
        parents = np.array([-1 if t.parents[j] < 0 else position[int(t.parents[j])] for j in keep], dtype=np.int32)
        pose_basis = t.pose_basis
        if pose_basis is not None:
            rows = (9 * (np.asarray(keep[1:]) - 1)[:, None] + np.arange(9)).reshape(-1)
            pose_basis = pose_basis[rows]

        def new_rests(values: Array) -> tuple[Array, Array]:
            vertices, joints = rests(values)
            return vertices, joints[:, keep]

        template = replace(
            t,
            joint_names=tuple(t.joint_names[j] for j in keep),
            parents=parents,
            joints=t.joints[keep],
            skin_weights=t.skin_weights[:, keep],
            pose_basis=pose_basis,
            joint_basis=None if t.joint_basis is None else t.joint_basis[:, keep],
        )
        return replace(self, template=template, rests=new_rests)


def _kept_vertices(change: Remap, num_vertices: int) -> Int[Array, "V"]:
    """For each old vertex its new index, or -1."""
    M = change.matrix.tocoo()
    whole = M.data > 1.0 - 1e-9
    kept = np.full(num_vertices, -1)
    kept[M.col[whole]] = M.row[whole]
    return kept


def with_texture_coordinates(old: RiggedTemplate, new: RiggedTemplate, change: Remap) -> RiggedTemplate:
    """Carry texture coordinates over a change; the corners of caps share the texel (0, 0)."""
    if old.uvs is None or old.face_uvs is None:
        return new
    inner = change.face_source >= 0
    part = Remap(change.matrix, change.faces[inner], change.face_source[inner])
    uvs, index = corner_coordinates(old, part)
    face_uvs = np.full((len(change.faces), 3), len(uvs), dtype=np.int32)
    face_uvs[inner] = index
    if not inner.all():
        uvs = np.concatenate([uvs, np.zeros((1, 2))])
    return replace(new, uvs=uvs, face_uvs=face_uvs)


def stored(template: RiggedTemplate) -> RiggedTemplate:
    """The template in the types of `template.npz` (float32, int32, uint8)."""

    def f32(x: Array | None) -> Array | None:
        return None if x is None else np.ascontiguousarray(x, dtype=np.float32)

    weights = template.skin_weights / template.skin_weights.sum(1, keepdims=True)
    return replace(
        template,
        vertices=f32(template.vertices),
        faces=template.faces.astype(np.int32),
        parents=template.parents.astype(np.int32),
        joints=f32(template.joints),
        skin_weights=f32(weights),
        expression_basis=f32(template.expression_basis),
        pose_basis=f32(template.pose_basis),
        joint_basis=f32(template.joint_basis),
        uvs=f32(template.uvs),
        face_uvs=None if template.face_uvs is None else template.face_uvs.astype(np.int32),
        face_regions=template.face_regions.astype(np.uint8),
    )
