"""The tone curve of sRGB (IEC 61966-2-1): pictures store signals, light adds up."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array


def srgb_encode(light: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Linear light to sRGB's signal, both 0 to 1."""
    light = light.clip(0.0, 1.0)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def srgb_decode(signal: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """sRGB's signal to linear light, both 0 to 1."""
    signal = signal.clip(0.0, 1.0)
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def srgb_slope(light: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Derivative of `srgb_encode`."""
    return np.where(light <= 0.0031308, 12.92, 1.055 / 2.4 * np.maximum(light, 0.0031308) ** (1 / 2.4 - 1))
