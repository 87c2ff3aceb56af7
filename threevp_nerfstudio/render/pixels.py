"""From what a model renders to 8-bit pictures: backgrounds, straight alpha, pictures side by side."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray as Array
from PIL import Image, ImageColor

from threevp_nerfstudio.errors import ThreeVPError

TRANSPARENT = "transparent"


def background_of(text: str) -> tuple[float, float, float] | None:
    """RGB, 0 to 1, of a colour by name or #rrggbb; None for "transparent".

    Raises:
        ThreeVPError: no such colour.
    """
    if text == TRANSPARENT:
        return None
    try:
        rgb = ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise ThreeVPError(
            f"--background {text!r}: no such colour; a name (white, green, ...), #rrggbb or transparent is expected."
        ) from error
    return tuple(c / 255.0 for c in rgb)


def opaque(
    premultiplied: Float[Array, "h w 3"], alpha: Float[Array, "h w"], background: tuple[float, float, float]
) -> UInt8[Array, "h w 3"]:
    """A picture over a colour."""
    rgb = premultiplied + (1.0 - alpha[..., None]) * np.array(background, dtype=np.float32)
    return _bytes(rgb)


def straight(premultiplied: Float[Array, "h w 3"], alpha: Float[Array, "h w"]) -> UInt8[Array, "h w 4"]:
    """A picture with straight alpha. Where it is transparent, it has the colour of the nearest pixel that is not: codecs
    and scaling mix neighbours, and black ones would make a dark seam."""
    a = _bytes(alpha)
    rgb = _bytes(premultiplied / np.maximum(alpha, 0.5 / 255.0)[..., None])
    return np.concatenate([_bleed(rgb, a > 0), a[..., None]], axis=-1)


def over_color(rgba: UInt8[Array, "h w 4"], background: tuple[float, float, float]) -> UInt8[Array, "h w 3"]:
    """A picture with straight alpha over a colour."""
    alpha = rgba[..., 3:].astype(np.float32) / 255.0
    rgb = rgba[..., :3].astype(np.float32) / 255.0 * alpha + (1.0 - alpha) * np.array(background, dtype=np.float32)
    return _bytes(rgb)


def with_alpha(picture: UInt8[Array, "h w c"]) -> UInt8[Array, "h w 4"]:
    """A picture with an alpha channel, opaque if it had none."""
    if picture.shape[-1] == 4:
        return picture
    return np.concatenate([picture, np.full((*picture.shape[:2], 1), 255, np.uint8)], axis=-1)


def fitted(picture: UInt8[Array, "h w c"], height: int, even: bool) -> UInt8[Array, "H W c"]:
    """A picture scaled to a height; with `even`, its width is."""
    width = fitted_width(picture.shape[1], picture.shape[0], height, even)
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def fitted_width(width: int, height: int, target_height: int, even: bool) -> int:
    """Width of a picture scaled to a height."""
    scaled = max(round(width * target_height / height), 1)
    return scaled + scaled % 2 if even else scaled


def _bytes(values: Float[Array, "..."]) -> UInt8[Array, "..."]:
    return (values.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)


def _bleed(rgb: UInt8[Array, "h w 3"], known: Bool[Array, "h w"]) -> UInt8[Array, "h w 3"]:
    if known.all() or not known.any():
        return rgb
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return rgb[nearest[0], nearest[1]]
