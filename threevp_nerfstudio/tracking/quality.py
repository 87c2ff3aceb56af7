"""What is wrong with pictures and mattes, in plain words; and which pictures can be tracked at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.errors import FootageError
from threevp_nerfstudio.tracking.mattes import MatteQuality
from threevp_nerfstudio.workers import shared

FEWEST = 8
EMPTY = 0.004
"""Share of the picture below which no subject is there."""
SHRUNK = 0.35
"""Of the usual area: less, and most of the subject is out of the picture."""
BLURRED = 0.009
"""Sharpness below which nothing fine can be tracked."""
Note = Callable[[str], None]


@dataclass(frozen=True)
class PictureQuality:
    """On the subject, one row per picture."""

    sharpness: Float[Array, "N"]
    """99th percentile of the Laplacian over the contrast, both of brightness: 0.05 and more is sharp, 0.01 is a blur."""
    overexposed: Float[Array, "N"]
    """Share of the subject that is white in all channels."""
    brightness: Float[Array, "N"]
    """80th percentile of brightness, 0 to 1."""


def picture_quality(rgb: UInt8[Array, "N h w 3"], alpha: UInt8[Array, "N h w"]) -> PictureQuality:
    def look(i: int) -> tuple[float, float, float]:
        picture, inside = np.asarray(rgb[i]), cv2.erode((alpha[i] > 127).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        if inside.sum() < 50:
            return 0.0, 0.0, 0.0
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        low, bright, high = np.percentile(grey[inside], (2, 80, 98))
        detail = np.percentile(np.abs(cv2.Laplacian(grey, cv2.CV_32F))[inside], 99) / 4
        white = (picture[inside].min(1) >= 250).mean()
        return detail / max(high - low, 8.0), white, bright / 255

    rows = list(shared(range(len(rgb)), lambda: look))
    return PictureQuality(*np.array(rows, dtype=np.float64).T)


def usable_pictures(quality: MatteQuality, times: Float[Array, "N"], note: Note) -> Bool[Array, "N"]:
    """Pictures in which the subject is there. Raises `FootageError` where hardly any are."""
    present = quality.area > EMPTY
    if present.sum() < FEWEST:
        raise FootageError(
            f"a subject was found in {int(present.sum())} of {len(present)} pictures only. Is a person in view, upright and lit? "
            "--plate or --mattes help where the person is not recognised."
        )
    usual = float(np.median(quality.area[present]))
    keep = present & (quality.area > SHRUNK * usual)
    if keep.sum() < FEWEST:
        raise FootageError("the subject is whole in a handful of pictures only; keep head and shoulders in the picture.")
    if not keep.all():
        note(f"the subject is out of the picture at {spans(~keep, times)}: {int((~keep).sum())} pictures are left out.")
    return keep


def matte_notes(quality: MatteQuality, keep: Bool[Array, "N"], note: Note) -> None:
    """On the mattes of the pictures that are kept."""
    agreement, soft = quality.agreement[keep], quality.softness[keep]
    if agreement.min() < 1.0:
        note(
            f"mattes: {agreement.mean():.3f} mean IoU with the plain segmentation (worst {agreement.min():.3f}), "
            f"{np.median(quality.steadiness[keep]):.3f} from picture to picture."
        )
    if np.median(soft) > 0.15:
        note("mattes are soft over much of the subject: subject and room look alike. A plain, evenly lit wall or --plate help.")
    if np.median(quality.cut_off[keep]) > 0.35:
        note("the subject fills the picture's sides or top much of the time; step back, so that head and shoulders stay inside.")


def exposure_notes(quality: PictureQuality, keep: Bool[Array, "N"], times: Float[Array, "N"], note: Note) -> None:
    """Blur and exposure. Raises `FootageError` where nothing can be tracked."""
    sharp, white, bright = quality.sharpness, quality.overexposed, quality.brightness
    if np.median(bright[keep]) < 0.06:
        raise FootageError("the subject is almost black (under-exposed); record with more light.")
    if np.median(white[keep]) > 0.6:
        raise FootageError("the subject is almost white (over-exposed); lower the exposure.")
    if np.median(bright[keep]) < 0.18:
        note("the subject is dark (under-exposed): fine detail will be lost. More light gives a better track.")
    if np.median(white[keep]) > 0.08:
        note(f"{np.median(white[keep]):.0%} of the subject is burnt out to white (over-exposed). Lower the exposure.")
    if np.median(sharp[keep]) < BLURRED:
        note("all pictures are very blurred: the face's expressions cannot be told. Focus on the face, and hold the camera still.")
    blurred = keep & (sharp < 0.4 * np.median(sharp[keep]))
    if blurred.sum() > 2:
        note(
            f"{int(blurred.sum())} pictures are much more blurred than the others ({spans(blurred, times)}): "
            "turn more slowly, or give more light."
        )


def spans(mask: Bool[Array, "N"], times: Float[Array, "N"], most: int = 5) -> str:
    """The stretches of time where `mask` is set."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    stretches = zip(edges[::2], edges[1::2], strict=True)
    parts = [f"{times[a]:.1f} to {times[b - 1]:.1f} s" if b - a > 1 else f"{times[a]:.1f} s" for a, b in stretches]
    return ", ".join(parts[:most]) + (f" and {len(parts) - most} more" if len(parts) > most else "")
