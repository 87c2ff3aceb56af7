"""HDR video (HLG and PQ in BT.2020, as phones record it) to 8-bit sRGB. ITU-R BT.2100 for the curves."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8, UInt16
from numpy import ndarray as Array

from threevp_nerfstudio.tracking.srgb import srgb_encode

BT709_FROM_BT2020 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
"""Linear light, ITU-R BT.2087."""
WHITE_NITS = 203.0
"""Luminance of diffuse white (ITU-R BT.2408), which becomes the brightest sRGB."""
PEAK_NITS = 1000.0


def to_sdr(rgb48: UInt16[Array, "H W 3"], transfer: str) -> UInt8[Array, "H W 3"]:
    """Signal of an HLG or PQ picture to sRGB; brighter than diffuse white is rolled off softly."""
    linear = linear_table(transfer)[rgb48].astype(np.float32) @ BT709_FROM_BT2020.T.astype(np.float32)
    linear = np.maximum(linear, 0.0)
    linear = np.where(linear > 0.8, 0.8 + 0.2 * np.tanh((linear - 0.8) / 0.2), linear)
    return (srgb_encode(linear) * 255 + 0.5).astype(np.uint8)


@lru_cache(maxsize=2)
def linear_table(transfer: str) -> Float[Array, "65536"]:
    """Relative luminance (diffuse white is 1) of each 16-bit signal value."""
    signal = np.linspace(0.0, 1.0, 65536)
    if transfer == "hlg":
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        nits = PEAK_NITS * scene**1.2  # the system's gamma per channel: close to the standard for skin, and no cross-talk
    elif transfer == "pq":
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = signal ** (1 / m2)
        nits = 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
    else:
        raise ValueError(transfer)
    return nits / WHITE_NITS
