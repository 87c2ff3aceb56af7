"""A track as a capture of version 1 (docs/capture_format.md): RGBA pictures, cameras that orbit, template, motion, texture."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.body.body_model import stored
from threevp_nerfstudio.body.template import FORMAT_VERSION
from threevp_nerfstudio.errors import TrackError
from threevp_nerfstudio.tracking.fitted import FittedTemplate
from threevp_nerfstudio.tracking.footage import Footage
from threevp_nerfstudio.tracking.store import write_json
from threevp_nerfstudio.tracking.trajectory import Track
from threevp_nerfstudio.workers import shared

VAL_BLOCKS = 3
FEWEST_FOR_VAL = 30
"""Pictures of the performance below which nothing is held out."""
OPAQUE = 240
"""Alpha (of 255) from which a pixel has the subject's colour and no other."""
BESIDE = 10
"""Pixels, as far as the subject's colour goes on beyond its outline."""
Progress = Callable[[str, int, int], None]


def export_capture(
    footage: Footage, fitted: FittedTemplate, track: Track, output: Path, val_share: float, first_time: float = 0.0,
    progress: Progress = lambda *_: None,
) -> int:  # fmt: skip
    """Write the capture into `output`; lost pictures are left out. `first_time`: where in the video the footage begins, seconds.

    Returns the number of pictures written. `transforms.json` comes last, so that a capture that is there is whole.
    Raises `TrackError` where nothing was tracked.
    """
    good = ~track.lost
    if not (good & footage.static).any() and not good.any():
        raise TrackError("every picture was lost; there is nothing to write. See the report of the tracking stage.")
    (output / "transforms.json").unlink(missing_ok=True)
    names = picture_names(footage.static)
    images, partial = output / "images", output / "images.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rows = np.flatnonzero(good)

    def written(i: int) -> None:
        save_rgba(partial / names[i], straight_alpha(footage.rgb[i], footage.alpha[i]))

    for n, _ in enumerate(shared(rows.tolist(), lambda: written)):
        progress("writing pictures", n + 1, len(rows))
    shutil.rmtree(images, ignore_errors=True)
    partial.replace(images)
    stored(fitted.template).save(output / "template.npz")
    if fitted.texture is not None:
        cv2.imwrite(str(output / "texture.png"), fitted.texture[..., ::-1])
    export_poses(footage, fitted, track, output, val_share, first_time)
    return len(rows)


def export_poses(
    footage: Footage, fitted: FittedTemplate, track: Track, output: Path, val_share: float, first_time: float = 0.0
) -> None:
    """Write the part of a capture that poses make: `motion.npz`, then `transforms.json`."""
    good = ~track.lost
    (output / "transforms.json").unlink(missing_ok=True)
    track.to_motion().save(output / "motion.npz")
    split, names = hold_out(footage.static, good, val_share), picture_names(footage.static)
    content = document(footage, fitted, track, np.flatnonzero(good), names, split, first_time)
    write_json(output / "transforms.json", content)


def document(
    footage: Footage, fitted: FittedTemplate, track: Track, rows: Array, names: list[str], split: Shaped[Array, "N"], first_time: float
) -> dict:
    """The content of transforms.json."""
    camera, poses = fitted.camera, track.camera_to_world()
    k1, k2, p1, p2 = camera.distortion
    start = {s: float(footage.times[footage.static == s].min(initial=np.inf)) for s in (True, False)}
    steps = np.diff(footage.times)
    return {
        "threevp_version": FORMAT_VERSION,
        "camera_model": "OPENCV",
        "fl_x": camera.fx,
        "fl_y": camera.fy,
        "cx": camera.cx,
        "cy": camera.cy,
        "w": camera.width,
        "h": camera.height,
        "k1": k1,
        "k2": k2,
        "p1": p1,
        "p2": p2,
        "fps": float(1.0 / np.median(steps)) if len(steps) else 30.0,
        "video_start": first_time,
        "frames": [
            {
                "file_path": f"images/{names[i]}",
                "transform_matrix": orthonormal(poses[i]).tolist(),
                "time": float(footage.times[i] - start[bool(footage.static[i])]),
                "motion_index": int(i),
                "split": str(split[i]),
                "sequence": "static" if footage.static[i] else "dynamic",
            }
            for i in rows
        ],
    }


def orthonormal(T: Float[Array, "4 4"]) -> Float[Array, "4 4"]:
    """The rigid transform nearest to one that rounding has bent a little."""
    U, _, Vt = np.linalg.svd(T[:3, :3])
    R = U @ Vt
    if np.abs(R - T[:3, :3]).max() > 1e-3:
        raise TrackError("a camera of the track is no rigid transform; run the tracking stage again (--from tracking).")
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = R, T[:3, 3]
    return result


def picture_names(static: Bool[Array, "N"]) -> list[str]:
    """`static_0000.png` ..., `dynamic_0000.png` ...: numbered within each part."""
    counts = {True: 0, False: 0}
    names = []
    for value in static:
        kind = bool(value)
        names.append(f"{'static' if kind else 'dynamic'}_{counts[kind]:04d}.png")
        counts[kind] += 1
    return names


def hold_out(static: Bool[Array, "N"], good: Bool[Array, "N"], share: float) -> Shaped[Array, "N"]:
    """`val` for the last part of each third of the performance: blocks, since neighbours in time show the same."""
    split = np.full(len(static), "train", dtype=object)
    rows = np.flatnonzero(~static & good)
    if len(rows) >= FEWEST_FOR_VAL and share > 0:
        for block in np.array_split(rows, VAL_BLOCKS):
            split[block[len(block) - round(share * len(block)) :]] = "val"
    return split


def straight_alpha(rgb: UInt8[Array, "h w 3"], alpha: UInt8[Array, "h w"]) -> UInt8[Array, "h w 4"]:
    """RGBA in which half transparent pixels have the subject's own colour, estimated from the opaque ones beside them. Of the room nothing
    stays: away from the subject pixels are black."""
    out = np.zeros((*alpha.shape, 4), np.uint8)
    out[..., 3] = alpha
    x, y, w, h = cv2.boundingRect(alpha)
    if not w:
        return out
    box = (slice(max(0, y - BESIDE), y + h + BESIDE), slice(max(0, x - BESIDE), x + w + BESIDE))
    picture, cover = rgb[box], alpha[box]
    sure = cover > OPAQUE
    near = np.dstack([picture, np.full_like(cover, 255)]).astype(np.float32)
    near[~sure] = 0.0
    near = cv2.GaussianBlur(near, (0, 0), BESIDE / 4)
    known = near[..., 3] > 1e-3 * 255
    colour = np.where((sure | (cover > 0) & ~known)[..., None], picture, 0)
    rim = known & ~sure
    own = 255 * near[rim, :3] / near[rim, 3:]
    mix = (cover[rim].astype(np.float32) / 255)[:, None] ** 2
    colour[rim] = (picture[rim] * mix + own * (1 - mix)).round().clip(0, 255).astype(np.uint8)
    out[box][..., :3] = colour
    return out


def save_rgba(path: Path, rgba: UInt8[Array, "h w 4"]) -> None:
    if not cv2.imwrite(str(path), rgba[..., [2, 1, 0, 3]], [cv2.IMWRITE_PNG_COMPRESSION, 4]):
        raise TrackError(f"{path} cannot be written; is the disk full?")
