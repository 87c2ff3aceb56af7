"""The room's light as spherical harmonics of the normal, in the camera's axes: the room stands still, the chair turns."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

EVEN = np.concatenate([np.ones((1, 3)), np.zeros((8, 3))])
"""Light that is the same from everywhere."""


def harmonics(n: Float[Array, "N 3"]) -> Float[Array, "N 9"]:
    """Real spherical harmonics up to the second order, without their constant factors (Ramamoorthi and Hanrahan 2001)."""
    x, y, z = n[:, 0], n[:, 1], n[:, 2]
    return np.stack([np.ones_like(x), x, y, z, x * y, y * z, 3 * z * z - 1, x * z, x * x - y * y], axis=1)


def fit_lighting(
    albedo: Float[Array, "N 3"],
    normals: Float[Array, "N 3"],
    seen: Float[Array, "N 3"],
    weight: Float[Array, "N"],
    stiffness: float = 0.02,
) -> Float[Array, "9 3"]:
    """Light that explains colours `seen`, drawn a little to even light. Outliers are limited."""
    Y = harmonics(normals)
    light = EVEN.copy()
    ridge = stiffness * weight.sum() * np.eye(9) * np.mean(albedo**2)
    ridge[0, 0] *= 0.01
    for _ in range(4):
        error = albedo * (Y @ light) - seen
        robust = weight[:, None] / (1 + (error / 0.1) ** 2) ** 2
        for c in range(3):
            A = Y * albedo[:, [c]]
            W = robust[:, [c]]
            light[:, c] = np.linalg.solve(A.T @ (W * A) + ridge, A.T @ (W[:, 0] * seen[:, c]) + ridge @ EVEN[:, c])
    return light
