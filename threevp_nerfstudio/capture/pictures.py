"""The pictures and mattes of a capture: checked by their headers when it is opened, decoded one at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array
from PIL import Image, UnidentifiedImageError

from threevp_nerfstudio.capture.frames import Frames
from threevp_nerfstudio.errors import CaptureError

MATTE_REMEDY = (
    "an avatar is learned inside the subject's matte. Write RGBA pictures with straight alpha, or name an 8-bit matte "
    "(255 = subject) as the frame's 'mask_path'"
)
_UNREADABLE = (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError)


def check_pictures(frames: Frames, decoded: int = 12) -> None:
    """Refuse pictures that are missing, of a wrong size or kind, or without matte.

    Reads the headers of all files; decodes `decoded` frames spread over the capture, to catch mattes that are empty
    or that cover every one of them. Raises `CaptureError`.
    """
    for i in range(len(frames)):
        _check_headers(frames, i)
    sample = np.unique(np.linspace(0, len(frames) - 1, min(decoded, len(frames))).round().astype(int))
    if all((read_rgba(frames, int(i))[..., 3] == 255).all() for i in sample):
        raise CaptureError(
            f"{_matte_path(frames, int(sample[0]))} and the other mattes looked at are 255 everywhere, so nothing "
            f"tells the subject from the background: {MATTE_REMEDY}."
        )


def read_rgba(frames: Frames, i: int) -> UInt8[Array, "h w 4"]:
    """Frame `i` with straight alpha, from an RGBA picture, or from an RGB picture and its mask.

    Raises `CaptureError` where a file cannot be decoded, has another size than the frame says, or the matte is empty.
    """
    _check_headers(frames, i)
    picture = _decode(frames.image_paths[i])
    mask = frames.mask_paths[i]
    if mask is not None:
        picture = np.concatenate([picture, _decode(mask)[..., None]], axis=-1)
    if not picture[..., 3].any():
        raise CaptureError(
            f"{_matte_path(frames, i)}: the matte is empty (0 everywhere); matte the frame again, or leave it out of "
            "transforms.json."
        )
    return picture


def _matte_path(frames: Frames, i: int) -> Path:
    return frames.mask_paths[i] or frames.image_paths[i]


def _check_headers(frames: Frames, i: int) -> None:
    path, mask, size = frames.image_paths[i], frames.mask_paths[i], tuple(int(n) for n in frames.size[i])
    mode = _header(path, size, f"frames[{i}]")
    if mode == "RGB" and mask is None:
        raise CaptureError(f"{path} is RGB and has no matte: {MATTE_REMEDY}.")
    if mode not in ("RGB", "RGBA"):
        raise CaptureError(f"{path} is of mode {mode}; save it as 8-bit RGB or RGBA.")
    if mask is None:
        return
    if mode == "RGBA":
        raise CaptureError(f"{path} has an alpha channel and a 'mask_path' as well; keep one of the two.")
    mask_mode = _header(mask, size, f"frames[{i}], mask")
    if mask_mode not in ("L", "1"):
        raise CaptureError(f"{mask} is of mode {mask_mode}; save mattes as 8-bit grey (255 = subject).")


def _header(path: Path, size: tuple[int, int], where: str) -> str:
    """The mode of a picture whose size must be `size`; reads the header only."""
    if not path.is_file():
        raise CaptureError(f"{path} ({where}) is missing; restore the file, or take the frame out of transforms.json.")
    try:
        with Image.open(path) as picture:
            seen, mode = picture.size, picture.mode
    except _UNREADABLE as error:
        raise CaptureError(f"{path} ({where}) is not a readable picture ({error}); write it again.") from error
    if seen != size:
        raise CaptureError(
            f"{path} ({where}) is {seen[0]}x{seen[1]} pixels, transforms.json says {size[0]}x{size[1]}; correct w and "
            "h with the intrinsics, or resize the picture."
        )
    return mode


def _decode(path: Path) -> UInt8[Array, "..."]:
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("L") if picture.mode == "1" else picture)
    except _UNREADABLE as error:
        raise CaptureError(f"{path} cannot be decoded ({error}); write the file again.") from error
