"""The terms of a fit: residuals of colours, outline and landmarks, linearised, as one system of normal equations.

Each term is a negative log likelihood: residuals are divided by the noise that is expected of them, and outliers are
limited by Geman and McClure's function, r² / (1 + r²/c²). Neighbouring points of a picture tell the same, so a term
with many points counts as `independent` ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from threevp_nerfstudio.tracking.evidence import Evidence, project
from threevp_nerfstudio.tracking.lighting import harmonics

COLOUR_NOISE = 0.03
"""Colour difference, of 1, that is expected where the template is right."""
COLOUR_OUTLIER = 3.0
OUTLINE_NOISE = 1.0
"""Pixels at a width of 256, as are those below."""
OUTLINE_OUTLIER = 4.0
LANDMARK_NOISE = 1.5
LANDMARK_OUTLIER = 4.0
DETECTOR_LAG = np.array([np.radians(2.0)] * 3 + [0.004] * 3)
"""Radians and metres by which all landmarks of one picture may be off together, as a rigid body: detectors lag behind a turn."""


@dataclass
class System:
    """`H step = g` and the cost at the present estimate (half the squared, robust residuals)."""

    H: Float[Array, "D D"]
    g: Float[Array, "D"]
    cost: float = 0.0

    @classmethod
    def empty(cls, size: int) -> System:
        return cls(np.zeros((size, size)), np.zeros(size))

    def add(
        self, J: Float[Array, "n D"] | None, residual: Float[Array, "n"], weight: Float[Array, "n"], outlier: float | Float[Array, "n"]
    ) -> None:
        """Residuals whose `weight` is one over their variance, and their derivative `J`, or None to add the cost alone."""
        square = residual**2
        damp = 1.0 / (1.0 + square / outlier**2)
        self.cost += 0.5 * float((weight * square * damp).sum())
        if J is not None:
            root = np.sqrt(weight) * damp
            A = J * root[:, None]
            self.H += A.T @ A  # of one matrix, which takes half of the time
            self.g -= A.T @ (root * residual)

    def marginalise(self, which: slice, spread: Float[Array, "n"]) -> None:
        """Let the residuals carry an unknown common error along some of the parameters, of the given spread."""
        M = self.H[which, which] + np.diag(1.0 / spread**2)
        B, pull = self.H[:, which].copy(), self.g[which].copy()
        part = np.linalg.solve(M, np.column_stack([B.T, pull]))
        self.cost -= 0.5 * float(pull @ part[:, -1])
        self.H -= B @ part[:, :-1]
        self.g -= B @ part[:, -1]

    def add_prior(self, offset: Float[Array, "D"], spread: Float[Array, "D"]) -> None:
        """A Gaussian prior on the estimate, which lies `offset` from its mean; infinite `spread` means none."""
        precision = 1.0 / spread**2
        self.H[np.diag_indices_from(self.H)] += precision
        self.g -= precision * offset
        self.cost += 0.5 * float((precision * offset**2).sum())


@dataclass(frozen=True)
class ColourTerm:
    """Colours of visible vertices against the picture, up to the brightness of each channel."""

    residual: Float[Array, "n 3"]  # predicted minus seen
    J: Float[Array, "n 3 D"] | None
    weight: Float[Array, "n"]


def colour_term(
    evidence: Evidence,
    level: int,
    x: Float[Array, "n 3"],
    J: Float[Array, "n 3 D"] | None,
    predicted: Float[Array, "n 3"],
    weight: Float[Array, "n"],
) -> ColourTerm:
    """Photometric residuals. The exposure (a gain per channel) is solved in closed form, robustly, near one."""
    xy, Jp = project(evidence.camera, x)
    seen, slope = evidence.levels[level].at(xy)
    gain = exposure(predicted, seen, weight)
    residual = predicted * gain - seen
    if J is None:
        return ColourTerm(residual, None, weight)
    return ColourTerm(residual, np.matmul(np.matmul(-slope, Jp), J), weight)


def exposure(predicted: Float[Array, "n 3"], seen: Float[Array, "n 3"], weight: Float[Array, "n"]) -> Float[Array, "3"]:
    """Gain per channel that brings the prediction to the picture, robustly; one where there is nothing to go by."""
    gain = np.ones(3)
    for _ in range(3):
        r = (predicted * gain - seen) / (2 * COLOUR_NOISE)
        w = weight[:, None] / (1 + r**2) ** 2
        gain = ((w * predicted * seen).sum(0) + 1.0) / ((w * predicted**2).sum(0) + 1.0)
    return gain


def add_colours(system: System, term: ColourTerm, independent: float) -> None:
    """All visible vertices together count as `independent` measurements of three colours."""
    n = len(term.weight)
    if n == 0:
        return
    weight = np.repeat(term.weight * independent / (max(n, 1) * COLOUR_NOISE**2), 3)
    J = None if term.J is None else term.J.reshape(3 * n, -1)
    system.add(J, term.residual.reshape(-1), weight, COLOUR_OUTLIER * COLOUR_NOISE)


def add_outline(
    system: System,
    evidence: Evidence,
    x: Float[Array, "n 3"],
    J: Float[Array, "n 3 D"] | None,
    weight: Float[Array, "n"],
    independent: float,
) -> Float[Array, "n"]:
    """Points of the outline lie on the matte's edge. Returns their distances in pixels, positive inside the matte."""
    if len(x) == 0:
        return np.zeros(0)
    unit = max(evidence.camera.width, evidence.camera.height) / 256
    xy, Jp = project(evidence.camera, x)
    distance, slope = evidence.edge.at(xy)
    noise = OUTLINE_NOISE * unit
    Je = None if J is None else np.matmul(np.matmul(slope, Jp), J)[:, 0] / noise
    system.add(Je, distance[:, 0] / noise, weight * independent / len(x), OUTLINE_OUTLIER)
    return distance[:, 0]


def add_landmarks(
    system: System,
    evidence: Evidence,
    x: Float[Array, "n 3"],
    J: Float[Array, "n 3 D"] | None,
    target: Float[Array, "n 2"],
    noise_m: Float[Array, "n"],
    independent: float,
    weight: Float[Array, "n"] | None = None,
    noise_px: float = LANDMARK_NOISE,
    outlier: Float[Array, "n"] | None = None,
) -> Float[Array, "n"]:
    """Named points of the face lie where they were found. `noise_m`: how well each is known on the template, metres;
    `noise_px`: the detector's own, at a width of 256; `weight`: how often each counts, 1 for an ordinary one; `outlier`: deviations from
    which on each counts less.

    Returns distances in pixels.
    """
    if len(x) == 0:
        return np.zeros(0)
    unit = max(evidence.camera.width, evidence.camera.height) / 256
    xy, Jp = project(evidence.camera, x)
    noise = np.hypot(noise_px * unit, noise_m * evidence.camera.fx / x[:, 2])
    gap = (xy - target) / noise[:, None]
    each = np.repeat(np.ones(len(x)) if weight is None else weight, 2) * independent / len(x)
    Jl = None if J is None else (np.matmul(Jp, J) / noise[:, None, None]).reshape(2 * len(x), -1)
    limit = LANDMARK_OUTLIER if outlier is None else np.repeat(outlier, 2)
    system.add(Jl, gap.reshape(-1), each, limit)
    return np.linalg.norm(xy - target, axis=1)


def shaded(albedo: Float[Array, "n 3"], normals: Float[Array, "n 3"], lighting: Float[Array, "9 3"]) -> Float[Array, "n 3"]:
    """Colours under the room's light; `normals` in camera axes, in which the room stands still."""
    return albedo * (harmonics(normals) @ lighting)
