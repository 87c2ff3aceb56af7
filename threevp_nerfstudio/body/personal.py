"""A person's own shape on top of a body model: smooth offsets of the rest shape along and across the normals.

What a scan or a tracker adds to the parametric body: hair, clothes, and the face as it really is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.sparse.linalg import splu
from scipy.spatial import cKDTree

from threevp_nerfstudio.body.labels import INSIDE, REGION_NAMES, faces_in, vertices_in
from threevp_nerfstudio.body.mesh import edges_of, smoothness, vertex_normals
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.errors import TemplateError

RAMP = 0.02
"""Metres over which a region's offset rises from its border."""


@dataclass(frozen=True)
class Offsets:
    """Per-vertex offsets in the frame of the rest shape, metres: `along` the normal, `across` it on two tangents."""

    along: Float[Array, "V"]
    across: Float[Array, "V 2"]

    @classmethod
    def between(cls, template: RiggedTemplate, vertices: Float[Array, "V 3"]) -> Offsets:
        """The offsets that take the template's rest shape to `vertices`."""
        frame = frames(template)
        local = np.einsum("vcr,vc->vr", frame, vertices - template.vertices)
        return cls(local[:, 2], local[:, :2])

    def apply(self, template: RiggedTemplate) -> RiggedTemplate:
        """The template with its rest shape offset; rig and blendshapes stay."""
        local = np.concatenate([self.across, self.along[:, None]], axis=1)
        return replace(template, vertices=template.vertices + np.einsum("vcr,vr->vc", frames(template), local))


def frames(template: RiggedTemplate) -> Float[Array, "V 3 3"]:
    """At each vertex two tangents and the outward normal, as columns; identity at vertices without a face."""
    n = vertex_normals(np.asarray(template.vertices, dtype=np.float64), template.faces)
    n = np.where(np.linalg.norm(n, axis=1, keepdims=True) > 0.5, n, np.array([0.0, 0.0, 1.0]))
    helper = np.where(np.abs(n[:, [2]]) < 0.9, np.array([0.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0]))
    first = np.cross(helper, n)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack([first, np.cross(n, first), n], axis=-1)


def smooth(
    template: RiggedTemplate,
    target: Float[Array, "V *c"],
    weight: Float[Array, "V"],
    stiffness: float,
) -> Float[Array, "V *c"]:
    """The field closest to `target` (by `weight`, zero where unknown) with a small Laplacian: min w|x-t|² + s|Lx|².

    Unknown vertices are filled in smoothly; larger `stiffness` smooths more.
    """
    L = smoothness(template.faces.astype(np.int64), len(target))
    system = sp.diags(weight + 1e-9) + stiffness * (L.T @ L)
    flat = (weight[:, None] * target.reshape(len(target), -1)).astype(np.float64)
    return splu(system.tocsc()).solve(flat).reshape(target.shape)


def region_offsets(template: RiggedTemplate, thickness: Mapping[str, float]) -> Offsets:
    """Offsets along the normal that rise to `thickness` metres within each region: hair and clothes in the rough.

    Raises `TemplateError` for unknown regions and thicknesses beyond 10 cm.
    """
    along = np.zeros(len(template.vertices))
    skin = ~vertices_in(template, INSIDE)
    for region, metres in thickness.items():
        _check_region(template, region)
        if not -0.01 <= metres <= 0.1:
            raise TemplateError(f"offset of {region}: {metres:g} m; between -0.01 and 0.1 metres is expected")
        inside = vertices_in(template, (region,))
        border = template.vertices[skin & ~inside]
        depth = cKDTree(border).query(template.vertices[inside])[0] if len(border) else np.full(inside.sum(), RAMP)
        ramp = np.clip(depth / RAMP, 0.0, 1.0)
        along[inside] = metres * ramp**2 * (3 - 2 * ramp)
    weight = np.where(skin, 1.0, 0.0)
    return Offsets(smooth(template, along, weight, 0.1) * skin, np.zeros((len(along), 2)))


def chosen_faces(template: RiggedTemplate, regions: tuple[str, ...], longest_edge: float = 0.0) -> Array:
    """Faces of the regions with an edge longer than `longest_edge` metres, for subdivision. Raises `TemplateError`."""
    for region in regions:
        _check_region(template, region)
    edges, index = edges_of(template.faces.astype(np.int64))
    length = np.linalg.norm(template.vertices[edges[:, 0]] - template.vertices[edges[:, 1]], axis=1)
    return faces_in(template, regions) & (length[index].max(1) > longest_edge)


def _check_region(template: RiggedTemplate, region: str) -> None:
    present = [REGION_NAMES[i] for i in np.unique(template.face_regions)]
    if region not in present:
        raise TemplateError(f"region {region!r} is not part of this template; it has {', '.join(present)}")
