"""Corrections along a video: what tracking errs by changes slowly, what a single picture says of it trembles.

A random walk that is seen with noise. How far it goes in a picture, and how much noise there is, the corrections say themselves:
differences of neighbours are mostly noise, those of pictures farther apart mostly the walk.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.linalg import solveh_banded

LAG = 8
"""Pictures between those whose difference shows the walk."""
FEWEST = 3 * LAG
"""Pictures below which nothing is evened."""
LASTING = 4.0
"""So much larger than it looks from neighbours is the noise's variance: what the avatar gets wrong lasts a few pictures."""
LEAST = 1e-4
"""Of the walk's and the noise's variance, in the square of the corrections' unit."""


def evened(found: Float[Array, "n D"], information: Float[Array, "n D D"]) -> Float[Array, "n D"]:
    """Corrections of successive pictures with the noise taken out.

    Args:
        information: what each picture tells, as the inverse of a covariance, up to a factor that is found here; 0 where it tells nothing.
    """
    n, D = found.shape
    if n < FEWEST or not information.any():
        return found
    near, far = (np.mean((found[k:] - found[:-k]) ** 2, axis=0) for k in (1, LAG))
    walk = np.maximum((far - near) / (LAG - 1), LEAST)
    noise = np.maximum((near - walk) / 2, LEAST)
    told = _scaled(information, LASTING * noise)
    smooth = np.diag(1 / walk)
    # a symmetric matrix of blocks: D + 1 .. 2 D - 1 diagonals above the main one are in use
    diagonal = told.copy()
    diagonal[:-1] += smooth
    diagonal[1:] += smooth
    banded = np.zeros((2 * D, n * D))
    for row in range(D):
        for column in range(row, D):
            banded[2 * D - 1 - (column - row), column::D] = diagonal[:, row, column]
        banded[D - 1, D + row :: D] = -smooth[row, row]
    return solveh_banded(banded, np.einsum("nij,nj->ni", told, found).ravel()).reshape(n, D)


def _scaled(information: Float[Array, "n D D"], noise: Float[Array, "D"]) -> Float[Array, "n D D"]:
    """`information` brought to the noise that was found: formal variances leave out what the avatar cannot show."""
    tells = np.einsum("nii->n", information) > 0
    ridge = 1e-9 * np.eye(len(noise))
    formal = np.einsum("nii->ni", np.linalg.inv(information[tells] + ridge)).mean(0)
    return information / np.median(noise / formal)
