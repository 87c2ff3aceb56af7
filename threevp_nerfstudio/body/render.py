"""Small shaded pictures of meshes by ray casting: contact sheets and heat maps, on any machine, without a display."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.body.mesh import vertex_normals
from threevp_nerfstudio.kernels.mesh_query import MeshQuery

BACKGROUND = 255


def shade(
    vertices: Float[Array, "V 3"],
    faces: Array,
    colours: Array,
    yaw: float = 0.0,
    size: int = 256,
    centre: Array | None = None,
    radius: float | None = None,
    pitch: float = 0.0,
) -> UInt8[Array, "S S 3"]:
    """An orthographic picture, seen from the front (-y) turned by `yaw` to the subject's left.

    `colours` are RGB in 0..255 per face (F,3), per vertex (V,3), or a function of `(face, bary)` that returns them.
    `centre` and `radius` (metres) frame the picture; by default the whole mesh. Angles in radians.
    """
    vertices = np.asarray(vertices, dtype=np.float64)
    if centre is None:
        centre = (vertices.min(0) + vertices.max(0)) / 2
    if radius is None:
        radius = float(np.abs(vertices - centre).max())
    right = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    ahead = np.array([-np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), -np.sin(pitch)])
    up = np.cross(right, ahead)
    step = (np.arange(size) + 0.5) / size * 2 - 1
    x, y = np.meshgrid(step, -step)
    origins = centre + radius * (x[..., None] * right + y[..., None] * up) - 10 * ahead
    query = MeshQuery(vertices, faces)
    hits = query.cast(origins.reshape(-1, 3), np.tile(ahead, (size * size, 1)))
    normals = vertex_normals(vertices, faces)
    picture = np.full((size * size, 3), float(BACKGROUND))
    seen = hits.found
    face, bary = hits.face[seen], hits.bary[seen]
    n = query.interpolate_at(face, bary, normals)
    light = np.array([0.35, 0.2, 0.45]) @ np.stack([right, up, -ahead])
    brightness = 0.35 + 0.65 * np.abs(n @ (light / np.linalg.norm(light)))
    if callable(colours):
        base = colours(face, bary)
    elif len(colours) == len(query.faces):
        base = colours[face]
    else:
        base = query.interpolate_at(face, bary, np.asarray(colours, dtype=np.float64))
    picture[seen] = base * brightness[:, None]
    return np.clip(picture, 0, 255).astype(np.uint8).reshape(size, size, 3)


def grid(pictures: list[UInt8[Array, "S S 3"]], columns: int, titles: list[str] | None = None) -> UInt8[Array, "H W 3"]:
    """Pictures of one size in rows, with titles."""
    from PIL import Image, ImageDraw

    size = pictures[0].shape[0]
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * size, rows * size), (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        at = (i % columns * size, i // columns * size)
        sheet.paste(Image.fromarray(picture), at)
        if titles:
            draw.text((at[0] + 5, at[1] + 4), titles[i], fill=(20, 20, 20))
    return np.asarray(sheet)


def save_picture(picture: UInt8[Array, "H W 3"], path: Path) -> None:
    """Write a PNG atomically."""
    from PIL import Image

    temporary = path.with_name(path.name + ".tmp.png")
    Image.fromarray(picture).save(temporary)
    temporary.replace(path)
