"""Focal length of the one camera: from the user, from structure from motion over the turn, from metadata, or a first guess."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.errors import FootageError
from threevp_nerfstudio.tracking.footage import PinholeCamera
from threevp_nerfstudio.tracking.ingest import Geometry

DIAGONAL_35MM = 43.2666
GUESS_35MM = 50.0
"""A portrait: phones at 26 to 52 mm, a video's crop and stabilisation included, or a longer lens."""
FOCAL_TAGS = ("com.apple.quicktime.camera.focal_length.35mm_equivalent", "focallengthin35mmfilm", "focal_length_35mm")
FOCAL_PATTERN = re.compile(r"(?:35\s?mm.{0,12}focal|focal.{0,24}35\s?mm)")
MIN_REGISTERED = 0.6
"""Share of the pictures that structure from motion must place for its focal length to count."""
SFM_PICTURES = 48
Origin = Literal["user", "sfm", "metadata", "guess"]
FOCAL_SPREAD: dict[Origin, float] = {"user": 0.0, "sfm": 0.02, "metadata": 0.12, "guess": 0.45}
"""Of the logarithm. Structure from motion of one turn gave 1661 to 1724 px with other seeds (truth 1690); metadata knows of no
stabilisation."""


@dataclass(frozen=True)
class CameraEstimate:
    """A camera, and where its focal length comes from."""

    camera: PinholeCamera
    origin: Origin
    notes: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Kept as it is while the template is fitted."""
        return self.origin == "user"

    @property
    def spread(self) -> float:
        """How uncertain the focal length is, of its logarithm."""
        return FOCAL_SPREAD[self.origin]


def pinhole(focal: float, geometry: Geometry, distortion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)) -> PinholeCamera:
    """The camera of stored pictures, for a focal length in pixels of the upright original; its middle is the principal point."""
    (W, H), (x, y, w, h), (width, height) = geometry.original, geometry.crop, geometry.size
    sx, sy = width / w, height / h
    return PinholeCamera(focal * sx, focal * sy, (W / 2 - x) * sx, (H / 2 - y) * sy, width, height, distortion)


def focal_px(mm: float, width: int, height: int) -> float:
    """Pixels for a focal length in 35 mm equivalents (by the diagonal)."""
    return mm / DIAGONAL_35MM * float(np.hypot(width, height))


def focal_from_tags(tags: Mapping[str, str]) -> float | None:
    """The focal length in 35 mm equivalents where a container's or picture's metadata names one."""
    for key, value in tags.items():
        if key in FOCAL_TAGS or FOCAL_PATTERN.search(key):
            number = re.search(r"\d+(?:\.\d+)?", value)
            if number and 8 <= float(number[0]) <= 400:
                return float(number[0])
    return None


def first_estimate(
    geometry: Geometry, tags: Mapping[str, str], focal: float | None, focal_35mm: float | None, distortion: tuple[float, ...]
) -> CameraEstimate:
    """From the user (`focal` in pixels of the original, or 35 mm equivalent), else metadata, else a guess. Raises `FootageError`."""
    if focal is not None and focal_35mm is not None:
        raise FootageError("--focal-px and --focal-35mm say the same thing in two units; give one of them.")
    if len(distortion) not in (0, 4):
        raise FootageError(f"--distortion takes four numbers, k1 k2 p1 p2 of OpenCV; {len(distortion)} were given.")
    k = tuple(distortion) if distortion else (0.0, 0.0, 0.0, 0.0)
    W, H = geometry.original
    for value, flag in ((focal, "--focal-px"), (focal_35mm, "--focal-35mm")):
        if value is not None and value <= 0:
            raise FootageError(f"{flag} is {value:g}; a focal length is positive.")
    if focal is not None or focal_35mm is not None:
        pixels = focal if focal is not None else focal_px(focal_35mm, W, H)  # type: ignore[arg-type]
        return CameraEstimate(pinhole(pixels, geometry, k), "user")
    tagged = focal_from_tags(tags)
    if tagged is not None:
        note = f"focal length {tagged:g} mm (35 mm equivalent) from the file's metadata."
        return CameraEstimate(pinhole(focal_px(tagged, W, H), geometry, k), "metadata", (note,))
    return CameraEstimate(pinhole(focal_px(GUESS_35MM, W, H), geometry, k), "guess")


def sfm_available() -> bool:
    return importlib.util.find_spec("pycolmap") is not None


def refine_by_sfm(
    estimate: CameraEstimate, rgb: UInt8[Array, "N h w 3"], alpha: UInt8[Array, "N h w"], static: Bool[Array, "N"], timeout: float = 600.0
) -> CameraEstimate:
    """Structure from motion of the turning subject, in a process of its own (pycolmap aborts beside OpenCV).

    Returns `estimate` with a note where too few pictures could be placed.
    """
    rows = np.flatnonzero(static)
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, SFM_PICTURES).round().astype(int))]
    camera = estimate.camera
    with tempfile.TemporaryDirectory(prefix="threevp_sfm_") as folder:
        job, answer = Path(folder) / "job.npz", Path(folder) / "answer.json"
        np.savez(job, rgb=rgb[rows], alpha=alpha[rows], intrinsics=np.array([camera.fx, camera.cx, camera.cy]))
        command = [sys.executable, "-m", "threevp_nerfstudio.tracking.sfm_worker", str(job), str(answer)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return _unchanged(estimate, f"structure from motion took longer than {timeout:.0f} s")
        if result.returncode or not answer.is_file():
            said = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
            return _unchanged(estimate, f"structure from motion failed ({said})")
        found = json.loads(answer.read_text())
    return judge_sfm(estimate, found, len(rows))


def judge_sfm(estimate: CameraEstimate, found: dict, asked: int) -> CameraEstimate:
    """Take the focal length of structure from motion if it stands on enough pictures and points, and is plausible."""
    camera = estimate.camera
    registered, focal = int(found["registered"]), float(found["focal"])
    diagonal = float(np.hypot(camera.width, camera.height))
    if registered < MIN_REGISTERED * asked:
        return _unchanged(estimate, f"structure from motion placed {registered} of {asked} pictures only")
    if not 0.35 * diagonal < focal < 8 * diagonal or found["error_px"] > 1.5 or found["span_deg"] < 60:
        seen = f"focal {focal:.0f} px, error {found['error_px']:.2f} px, {found['span_deg']:.0f}° seen"
        return _unchanged(estimate, f"structure from motion is not sure ({seen})")
    better = PinholeCamera(focal, focal * camera.fy / camera.fx, camera.cx, camera.cy, camera.width, camera.height, camera.distortion)
    note = (
        f"focal length {focal:.0f} px (of stored pictures) by structure from motion: {registered} of {asked} pictures, "
        f"{found['error_px']:.2f} px."
    )
    return CameraEstimate(better, "sfm", (note,))


def _unchanged(estimate: CameraEstimate, why: str) -> CameraEstimate:
    note = f"{why}: the focal length is estimated from the template. --focal-35mm gives it."
    return CameraEstimate(estimate.camera, estimate.origin, (*estimate.notes, note))
