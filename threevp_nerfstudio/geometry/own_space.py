"""How far from a surface its own space reaches: up to where another part of the surface is as near.

The posed-to-canonical map takes a point at some distance from its nearest triangle to the same distance from that triangle
in canonical space. Where a part has left a narrow place (a tongue put out of the mouth), that distance may lie within
another part there, the lips, and the avatar would show it twice. The radius of the largest empty ball that touches the
surface at a vertex from outside (the medial radius) says how far the vertex's own space goes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

ROUNDS = 30
TOLERANCE = 1e-3


def medial_radius(
    vertices: Float[np.ndarray, "V 3"], normals: Float[np.ndarray, "V 3"], largest: float
) -> Float[np.ndarray, "V"]:
    """Radius in metres of the largest ball that touches each vertex from outside and holds no other vertex, at most
    `largest` (shrinking ball; Ma, Bae and Choi 2012). Normals are of unit length and point outwards."""
    tree = cKDTree(vertices)
    radius = np.full(len(vertices), largest)
    active = np.arange(len(vertices))
    for _ in range(ROUNDS):
        centre = vertices[active] + radius[active, None] * normals[active]
        distance, nearest = tree.query(centre)
        shrink = distance < radius[active] * (1.0 - TOLERANCE)
        active, nearest = active[shrink], nearest[shrink]
        if len(active) == 0:
            break
        apart = vertices[nearest] - vertices[active]
        height = (apart * normals[active]).sum(1)
        radius[active] = np.minimum((apart**2).sum(1) / np.maximum(2.0 * height, 1e-12), radius[active])
    return radius
