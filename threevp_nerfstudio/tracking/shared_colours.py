"""Colours that all pictures share: each vertex's own colour is eliminated from the system (variable projection).

With the colours held at their present mean, a change that moves all pictures alike (the focal length, the depth of the
face) looks as if it were resisted by every picture, and takes a hundred small steps. Eliminating the colours takes it in a
few. For a vertex with residuals r_k and derivatives J_k in the pictures k, weights w_k:

    H = sum_k w_k J_k' J_k - (sum_k w_k J_k)' (sum_k w_k J_k) / sum_k w_k,   and g alike
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from threevp_nerfstudio.tracking.terms import COLOUR_NOISE, COLOUR_OUTLIER, ColourTerm, System


class SharedColours:
    """Sums over pictures for a fixed sample of vertices."""

    def __init__(self, sample: Int[Array, "m"], num_vertices: int, size: int) -> None:
        self.place = np.full(num_vertices, -1)
        self.place[sample] = np.arange(len(sample))
        m = 3 * len(sample)
        self.J, self.r, self.w = np.zeros((m, size)), np.zeros(m), np.zeros(m)

    def add(self, rows: Int[Array, "n"], term: ColourTerm, independent: float, columns: Int[Array, "d"]) -> None:
        """One picture's residuals at some vertices of the sample, with the derivative's columns in the whole system."""
        assert term.J is not None
        at = (3 * self.place[rows][:, None] + np.arange(3)).reshape(-1)
        r = term.residual.reshape(-1) / COLOUR_NOISE
        damp = 1.0 / (1.0 + r**2 / COLOUR_OUTLIER**2)
        w = np.repeat(term.weight * independent / len(rows), 3) * damp**2
        self.J[np.ix_(at, columns)] += w[:, None] * term.J.reshape(len(at), -1) / COLOUR_NOISE
        self.r[at] += w * r
        self.w[at] += w

    def eliminate(self, system: System) -> None:
        """Take the part that the shared colours answer for out of the system."""
        seen = self.w > 1e-12
        J = self.J[seen] / np.sqrt(self.w[seen])[:, None]
        system.H -= J.T @ J
        system.g += J.T @ (self.r[seen] / np.sqrt(self.w[seen]))
