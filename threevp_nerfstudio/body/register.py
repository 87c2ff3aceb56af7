"""From a scan's file to a rigged template: align, fit, wrap, and either keep the body model's mesh or the scan's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.body.bake import bake
from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.crop import crop, neck_height
from threevp_nerfstudio.body.fit import Fitted, Progress, fit_body, pose_body
from threevp_nerfstudio.body.labels import INSIDE, REGION_NAMES, faces_in
from threevp_nerfstudio.body.mesh import subdivide
from threevp_nerfstudio.body.personal import chosen_faces
from threevp_nerfstudio.body.render import grid, shade
from threevp_nerfstudio.body.scan import Scan
from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.body.transfer import correspond, transfer
from threevp_nerfstudio.body.wrap import Wrapped, wrap
from threevp_nerfstudio.kernels.mesh_query import MeshQuery

MOST_TORSO = 0.5
FINE = {"scalp": 0.007, "torso": 0.015, "arms": 0.015, "neck": 0.012}
"""Longest edge, metres, that a region keeps when it is wrapped: hair and clothes need more vertices than skin."""
FACE_POINTS = ("nose_tip", "chin", "left_mouth", "right_mouth", "left_eye_outer", "right_eye_outer")
FARTHEST_FACE = 0.025
"""Metres the face may move, on average, while pose and shape are fitted to an aligned scan."""
HEAT_SCALE = 0.004
"""Metres at which the heat map is fully red."""


@dataclass(frozen=True)
class Registration:
    """A registered scan. `scan` is in the world frame and in its own pose, as `wrapped.posed` is."""

    template: RiggedTemplate
    wrapped: Wrapped
    fitted: Fitted
    scan: Scan
    texture: UInt8[Array, "H W 3"] | None
    distance: Float[Array, "N"]  # of each scan vertex to the wrapped surface
    region: Array  # (N,) label of the nearest region
    notes: tuple[str, ...]

    def summary(self) -> list[str]:
        """Distances by region, in words."""
        lines = []
        for label, name in enumerate(REGION_NAMES):
            d = self.distance[self.region == label]
            if len(d) and name not in INSIDE:
                lines.append(f"{name:<8} mean {d.mean() * 1000:5.2f} mm, p95 {np.quantile(d, 0.95) * 1000:5.2f} mm ({len(d)} points)")
        d = self.distance
        lines.append(f"{'all':<8} mean {d.mean() * 1000:5.2f} mm, p95 {np.quantile(d, 0.95) * 1000:5.2f} mm ({len(d)} points)")
        return lines


def register(
    whole: BodyModel,
    scan: Scan,
    mesh: Literal["body", "scan"] = "body",
    landmarks: Mapping[str, Float[Array, "3"]] | None = None,
    closed: bool = False,
    texture_size: int = 1024,
    progress: Progress = lambda _: None,
) -> Registration:
    """Register a scan in the world frame to a whole body model. `landmarks` are points on it, in the world frame.

    `mesh` "body" gives the body model's mesh wrapped onto the scan, "scan" the scan's own mesh, rigged.
    """
    first = fit_body(crop(whole, covered_torso(whole, scan)), scan, landmarks, progress)
    wide = reposed(crop(whole.at(first.body.values), MOST_TORSO), first)
    fitted = narrowed(whole, wide, scan, closed)
    wrapped = wrap(fitted, scan, landmarks, progress)
    found = correspond(scan, wrapped)
    region = wrapped.template.face_regions[found.face]
    distance = MeshQuery(wrapped.posed, wrapped.template.faces).nearest(scan.vertices).distance
    notes = list(scan.notes) + ([] if landmarks else drift_notes(whole, fitted, wrapped))
    coloured = scan.colours is not None or scan.texture is not None
    if mesh == "scan":
        progress("carrying rig and blendshapes over to the scan's mesh")
        template, more = transfer(fitted, wrapped, scan)
        notes += more
        if scan.colours is not None:
            notes.append("colours per vertex have no place in a template; --mesh body bakes them into a texture")
        return Registration(template, wrapped, fitted, scan, scan.texture, distance, region, tuple(notes))
    texture = None
    if coloured and wrapped.template.uvs is not None:
        progress("baking the texture")
        texture = bake(wrapped, scan, texture_size)
    template = replace(wrapped.template, body_model=f"{whole.template.body_model} wrapped onto a scan")
    return Registration(template, wrapped, fitted, scan, texture, distance, region, tuple(notes))


def drift_notes(whole: BodyModel, fitted: Fitted, wrapped: Wrapped) -> list[str]:
    """Says so if the face went far from where the alignment had put it: small distances do not show a misplaced face."""
    start = whole.landmark_points()
    moved = [
        np.linalg.norm(wrapped.posed[index].mean(0) - start[name])
        for name, index in fitted.body.landmarks.items()
        if name in FACE_POINTS
    ]
    if not moved or np.mean(moved) < FARTHEST_FACE:
        return []
    return [
        f"the face moved {np.mean(moved) * 100:.0f} cm from where the scan was aligned: eyes and mouth may sit in the wrong "
        "place although the distances are small. Look at the pictures, and pass --landmarks if so"
    ]


def covered_torso(whole: BodyModel, scan: Scan) -> float:
    """How far below the neck the aligned scan surely reaches, metres: what lies beyond has nothing to be fitted to."""
    lowest = float(np.quantile(scan.vertices[:, 2], 0.002))
    return float(np.clip(neck_height(whole.template) - lowest - 0.04, 0.02, 0.3))


def narrowed(whole: BodyModel, wide: Fitted, scan: Scan, closed: bool) -> Fitted:
    """The fitted body cut where the scan ends, and subdivided where hair and clothes need it."""
    t = wide.body.template
    hits = MeshQuery(wide.posed, t.faces).nearest(scan.vertices)
    corners = t.faces[hits.face]
    transforms = np.einsum("nk,nkrc->nrc", hits.bary, wide.transforms[corners])
    rest = wide.to_rest(scan.vertices, transforms)
    legible = hits.distance < 0.04
    lowest = float(np.quantile(rest[legible, 2], 0.001)) if legible.any() else float(t.vertices[:, 2].min())
    torso = float(np.clip(neck_height(t) - lowest + 0.01, 0.02, MOST_TORSO))
    body = crop(whole.at(wide.body.values), torso, closed)
    for region, longest in FINE.items():
        for _ in range(3):
            if not faces_in(body.template, (region,)).any():
                break
            chosen = chosen_faces(body.template, (region,), longest)
            if not chosen.any():
                break
            body = body.remapped(subdivide(body.template.faces.astype(np.int64), chosen, len(body.template.vertices)))
    return reposed(body, wide)


def reposed(body: BodyModel, other: Fitted) -> Fitted:
    """`body` in the pose of `other`, joints matched by name."""
    names = other.body.template.joint_names
    rotations = np.zeros((len(body.template.joint_names), 3))
    for j, name in enumerate(body.template.joint_names):
        if name in names:
            rotations[j] = other.joint_rotations[names.index(name)]
    return pose_body(body, rotations, other.root_translation)


def heat_map(registration: Registration, size: int = 360) -> UInt8[Array, "H W 3"]:
    """The scan, coloured by its distance to the wrapped template (blue 0, red 4 mm), above the template itself."""
    scan, wrapped = registration.scan, registration.wrapped
    share = np.clip(registration.distance / HEAT_SCALE, 0, 1)[:, None]
    colours = 255 * np.concatenate([share, 0.25 + 0 * share, 1 - share], axis=1)
    centre = (scan.vertices.min(0) + scan.vertices.max(0)) / 2
    radius = float(np.abs(scan.vertices - centre).max()) * 1.02
    face = wrapped.posed[registration.fitted.body.landmarks["nose_tip"][0]] + np.array([0.0, 0.08, 0.02])
    views = [(0, centre, radius), (0, face, 0.17), (70, face, 0.17), (180, face, 0.17)]
    titles = [f"distance to the template, red: {HEAT_SCALE * 1000:.0f} mm", "", "", ""] + ["template", "", "", ""]
    grey = np.full((len(wrapped.template.faces), 3), 200.0)
    pictures = [shade(scan.vertices, scan.faces, colours, np.radians(a), size, c, r) for a, c, r in views]
    pictures += [shade(wrapped.posed, wrapped.template.faces, grey, np.radians(a), size, c, r) for a, c, r in views]
    return grid(pictures, 4, titles)
