"""Captures changed in memory, for growth curves and ablations. None of them touches the disk, but `resized`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.capture.capture import Capture, yaw_deg
from threevp_nerfstudio.kernels.mesh_query import MeshQuery

Edit = Callable[[Capture], Capture]
BEHIND_DEG = 90.0
LEFT_OUT = "left out"


def thin_behind(every: int = 10) -> Edit:
    """Train on only every `every`-th of the frames seen from more than 90 degrees off the front. The others stay in
    the capture, in a split of their own (`LEFT_OUT`), so that frames keep their numbers."""

    def edit(capture: Capture) -> Capture:
        frames = capture.frames
        dropped = np.flatnonzero(left_out_behind(capture, every))
        split = frames.split.astype(object)
        split[dropped] = LEFT_OUT
        return replace(capture, frames=replace(frames, split=split.astype(str)))

    return edit


def left_out_behind(capture: Capture, every: int = 10) -> Bool[np.ndarray, "N"]:
    """Which frames `thin_behind` takes out of training."""
    frames = capture.frames
    behind = np.flatnonzero((np.abs(yaw_deg(frames.camera_to_world)) > BEHIND_DEG) & (frames.split == "train"))
    mask = np.zeros(len(frames), dtype=bool)
    mask[behind] = True
    mask[behind[::every]] = False
    return mask


def repeat_frames(count: int) -> Edit:
    """A capture of `count` frames with as many rows of motion, by repetition (or its first `count`)."""

    def edit(capture: Capture) -> Capture:
        n = len(capture.frames)
        frames = capture.frames.select(np.arange(count) % n)
        rows = np.arange(count) // n * len(capture.motion) + frames.motion_index
        index = np.arange(rows.max() + 1) % len(capture.motion)
        motion = replace(
            capture.motion,
            **{
                name: value[index]
                for name, value in vars(capture.motion).items()
                if isinstance(value, np.ndarray) and len(value) == len(capture.motion)
            },
        )
        return replace(capture, frames=replace(frames, motion_index=rows), motion=motion)

    return edit


def retopologise(faces: int) -> Edit:
    """A capture whose template has about `faces` triangles, with rig and expressions carried over."""

    def edit(capture: Capture) -> Capture:
        return replace(capture, template=resampled_template(capture.template, faces))

    return edit


def resampled_template(template: RiggedTemplate, faces: int) -> RiggedTemplate:
    """The same shape with another number of triangles; everything per vertex is interpolated on the old surface."""
    import open3d  # needs libusb and libGL of the system, which other edits do without

    mesh = open3d.geometry.TriangleMesh(
        open3d.utility.Vector3dVector(template.vertices.astype(np.float64)),
        open3d.utility.Vector3iVector(template.faces.astype(np.int32)),
    )
    while len(mesh.triangles) < faces:
        mesh = mesh.subdivide_midpoint(1)
    mesh = mesh.simplify_quadric_decimation(faces)
    vertices = np.asarray(mesh.vertices, dtype=np.float32)
    query = MeshQuery(template.vertices, template.faces)
    hits = query.nearest(vertices)

    def carried(values: np.ndarray) -> np.ndarray:
        return query.at(hits, values).astype(np.float32)

    def carried_basis(basis: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(carried(basis.transpose(1, 0, 2)).transpose(1, 0, 2))

    weights = carried(template.skin_weights)
    new_faces = np.asarray(mesh.triangles, dtype=np.int32)
    middle = MeshQuery(template.vertices, template.faces).nearest(vertices[new_faces].mean(1))
    return replace(
        template,
        vertices=vertices,
        faces=new_faces,
        skin_weights=weights / weights.sum(1, keepdims=True),
        expression_basis=carried_basis(template.expression_basis),
        pose_basis=None if template.pose_basis is None else carried_basis(template.pose_basis),
        face_regions=template.face_regions[middle.face],
        uvs=None,
        face_uvs=None,
    )


def resized(capture: Path, output: Path, size: int, frames: int = 24) -> Path:
    """Write a capture of up to `frames` frames with square pictures of `size` pixels to `output`."""
    (output / "images").mkdir(parents=True)
    for name in ("template.npz", "motion.npz"):
        (output / name).write_bytes((capture / name).read_bytes())
    document = json.loads((capture / "transforms.json").read_text())
    chosen = np.unique(np.linspace(0, len(document["frames"]) - 1, frames).astype(int))
    document["frames"] = [document["frames"][i] for i in chosen]
    document["frames"][0]["split"] = "train"
    for holder in (document, *document["frames"]):
        scale = size / holder.get("w", document["w"]) if "fl_x" in holder else 1.0
        for key in ("fl_x", "fl_y", "cx", "cy"):
            if key in holder:
                holder[key] *= scale
    for frame in document["frames"]:
        frame.pop("w", None), frame.pop("h", None)
        with Image.open(capture / frame["file_path"]) as picture:
            rgba = (
                picture.convert("RGBA")
                if "mask_path" not in frame
                else _with_mask(picture, capture / frame["mask_path"])
            )
        frame.pop("mask_path", None)
        frame["file_path"] = f"images/{Path(frame['file_path']).stem}.png"
        rgba.resize((size, size), Image.Resampling.BILINEAR).save(output / frame["file_path"], compress_level=1)
    document["w"] = document["h"] = size
    (output / "transforms.json").write_text(json.dumps(document))
    return output


def _with_mask(picture: Image.Image, mask: Path) -> Image.Image:
    rgba = picture.convert("RGBA")
    with Image.open(mask) as alpha:
        rgba.putalpha(alpha.convert("L"))
    return rgba
