"""The one time axis of a capture: the performance, from 0 to 1, as nerfstudio's viewer and camera paths count it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array


def normalised_times(times: Float[Array, "N"], dynamic: Bool[Array, "N"]) -> Float[Array, "N"]:
    """Seconds to [0, 1] over the performance (float32); frames of the static part, which have no place in it, get 0.

    A capture without a dynamic part is normalised over all its frames.
    """
    span = times[dynamic] if dynamic.any() else times
    duration = max(float(span.max() - span.min()), 1e-9)
    normal = ((times - span.min()) / duration).clip(0.0, 1.0)
    return (np.where(dynamic, normal, 0.0) if dynamic.any() else normal).astype(np.float32)
