"""Convert expression coefficients between body models: Anny's ARKit names and SMPL-X's (FLAME's) components.

Both templates are brought together by registering one's neutral face to the other's, so that each vertex of the target
face has a point on the source. The source's channels, seen at those points, are then written as combinations of the
target's by regularised least squares. What the target cannot say stays as residual, and is reported per channel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array
from scipy.spatial.transform import Rotation

from threevp_nerfstudio.body.align import best_similarity
from threevp_nerfstudio.body.body_model import BodyModel
from threevp_nerfstudio.body.fit import pose_body
from threevp_nerfstudio.body.labels import vertices_in
from threevp_nerfstudio.body.scan import Scan
from threevp_nerfstudio.body.template import Motion, RiggedTemplate
from threevp_nerfstudio.body.wrap import wrap
from threevp_nerfstudio.errors import TemplateError
from threevp_nerfstudio.kernels.mesh_query import MeshQuery

FORMAT_VERSION = 1
FACE = ("face", "lips", "eyelids")
REGULARISER = 1e-3
"""Weight of the coefficients' size, relative to the mean energy of a target channel."""
JAW_COMPONENTS = ("jaw_x", "jaw_y", "jaw_z")
"""Channels that stand for the rotation of a jaw joint (radians), where only one of the bodies has one."""


@dataclass(frozen=True)
class Conversion:
    """`target = source @ matrix`. Residuals are the part of each source channel's motion that is lost, 0 to 1."""

    source_names: tuple[str, ...]
    target_names: tuple[str, ...]
    matrix: Float[Array, "S T"]
    residual: Float[Array, "S"]
    total_residual: float

    def apply(self, coefficients: Float[Array, "*n S"]) -> Float[Array, "*n T"]:
        return coefficients @ self.matrix

    def report(self) -> str:
        """A table of what is carried over and what is lost, worst last."""
        lines = [f"all channels: {self.total_residual:.0%} of the motion (RMS) is lost"]
        for k in np.argsort(self.residual):
            lines.append(f"  {self.source_names[k]:<24} {self.residual[k]:6.1%} lost")
        return "\n".join(lines)

    def save(self, path: Path) -> None:
        """Write `conversion.npz` atomically."""
        temporary = path.with_name(path.name + ".tmp.npz")
        np.savez_compressed(
            temporary,
            version=np.array(FORMAT_VERSION),
            source_names=np.array(self.source_names),
            target_names=np.array(self.target_names),
            matrix=self.matrix.astype(np.float32),
            residual=self.residual.astype(np.float32),
            total_residual=np.array(self.total_residual),
        )
        temporary.replace(path)


def load_conversion(path: Path) -> Conversion:
    """Read what `Conversion.save` wrote. Raises `TemplateError`."""
    try:
        with np.load(path, allow_pickle=False) as f:
            version = int(f["version"])
            if version != FORMAT_VERSION:
                raise TemplateError(
                    f"{path} is version {version}; this release reads {FORMAT_VERSION}. Make it again with "
                    "threevp convert-expressions."
                )
            return Conversion(
                tuple(str(n) for n in f["source_names"]),
                tuple(str(n) for n in f["target_names"]),
                f["matrix"].astype(np.float64),
                f["residual"].astype(np.float64),
                float(f["total_residual"]),
            )
    except (OSError, ValueError, KeyError) as error:
        raise TemplateError(f"{path} is no expression conversion ({error}); make it with threevp convert-expressions.") from error


def convert_motion(motion: Motion, conversion: Conversion, source: RiggedTemplate, target: RiggedTemplate) -> Motion:
    """The motion of `source` for `target`: expressions by the conversion, joints by meaning, root translation kept.

    Raises `TemplateError` where motion, conversion and templates do not belong together.
    """
    if motion.expression is None or motion.joint_rotations is None:
        raise TemplateError("the motion has explicit vertices and no expression; only rigged motions can be converted.")
    rotations = retargeted(motion.joint_rotations, source, target)
    mapped = conversion.apply(_coefficients(motion, conversion, source))
    names = list(conversion.target_names)
    known = [n for n in target.expression_names if n in names]
    if not known:
        raise TemplateError(
            f"the target template has none of the channels that the conversion makes ({', '.join(names[:4])} ...), but "
            f"{', '.join(target.expression_names[:4])} ...; make a conversion for these templates."
        )
    if JAW_COMPONENTS[0] in names and "jaw" in target.joint_names:
        columns = [names.index(n) for n in JAW_COMPONENTS]
        rotations[:, target.joint_names.index("jaw")] += mapped[:, columns]
    expression = np.zeros((len(motion), len(target.expression_names)))
    expression[:, [target.expression_names.index(n) for n in known]] = mapped[:, [names.index(n) for n in known]]
    return replace(motion, expression=expression, joint_rotations=rotations)


def _coefficients(motion: Motion, conversion: Conversion, source: RiggedTemplate) -> Float[Array, "N S"]:
    """The motion's channels as the conversion counts them: expressions and, for some, the jaw's rotation."""
    channels = tuple(n for n in conversion.source_names if n not in JAW_COMPONENTS)
    if tuple(source.expression_names) != channels:
        raise TemplateError(
            f"the motion's template has {len(source.expression_names)} expression channels, the conversion is for "
            f"{len(channels)} others ({', '.join(channels[:4])} ...); make one for these templates."
        )
    assert motion.expression is not None and motion.joint_rotations is not None
    if channels == conversion.source_names:
        return motion.expression
    if "jaw" not in source.joint_names:
        raise TemplateError("the conversion is for a source with a jaw joint, and the motion's template has none.")
    return np.concatenate([motion.expression, motion.joint_rotations[:, source.joint_names.index("jaw")]], axis=1)


JOINT_NAMES = (
    ("root", "pelvis"), ("spine05", "spine1"), ("spine03", "spine2"), ("spine02", "spine3"), ("neck01", "neck"),
    ("head", "head"), ("jaw", "jaw"), ("eye.L", "left_eye_smplhf"), ("eye.R", "right_eye_smplhf"),
    ("clavicle.L", "left_collar"), ("clavicle.R", "right_collar"), ("upperarm01.L", "left_shoulder"),
    ("upperarm01.R", "right_shoulder"), ("lowerarm01.L", "left_elbow"), ("lowerarm01.R", "right_elbow"),
)  # fmt: skip
"""The same joint in Anny and in SMPL-X."""


def match_joints(source: tuple[str, ...], target: tuple[str, ...]) -> list[tuple[int, int]]:
    """(target, source) indices of joints that mean the same."""
    table = {a: b for a, b in JOINT_NAMES} | {b: a for a, b in JOINT_NAMES}
    pairs = []
    for i, name in enumerate(target):
        for candidate in (name, table.get(name, "")):
            if candidate in source:
                pairs.append((i, source.index(candidate)))
                break
    return pairs


def retargeted(
    rotations: Float[Array, "N J 3"], source: RiggedTemplate, target: RiggedTemplate
) -> Float[Array, "N K 3"]:
    """Joint rotations by which joints that mean the same face the same way in the world.

    So the turn of small joints that only one body has (Anny's second neck joint) is not lost. Joints without a
    counterpart rest.
    """
    there = _world(Rotation.from_rotvec(rotations.reshape(-1, 3)).as_matrix().reshape(*rotations.shape, 3), source)
    match = dict(match_joints(source.joint_names, target.joint_names))
    local = np.tile(np.eye(3), (len(rotations), len(target.joint_names), 1, 1))
    world = local.copy()
    for j, parent in enumerate(target.parents):
        above = world[:, parent] if parent >= 0 else np.eye(3)
        world[:, j] = there[:, match[j]] if j in match else above
        local[:, j] = np.swapaxes(above, -1, -2) @ world[:, j]
    return Rotation.from_matrix(local.reshape(-1, 3, 3)).as_rotvec().reshape(*local.shape[:2], 3)


def _world(local: Float[Array, "N J 3 3"], template: RiggedTemplate) -> Float[Array, "N J 3 3"]:
    world = local.copy()
    for j, parent in enumerate(template.parents):
        if parent >= 0:
            world[:, j] = world[:, parent] @ local[:, j]
    return world


def fit_conversion(source: BodyModel, target: BodyModel, ridge: float = REGULARISER) -> Conversion:
    """The conversion from the expression channels of `source` to those of `target`.

    A jaw joint that only one of the two has counts as three more channels on its side.
    """
    ours, theirs = source.template, target.template
    source_names, channels = list(ours.expression_names), ours.expression_basis
    if "jaw" in ours.joint_names and "jaw" not in theirs.joint_names:
        source_names += JAW_COMPONENTS
        channels = np.concatenate([channels, jaw_motion(source)])
    rows, moves = shared_motion(source, target, channels)
    names, basis = list(theirs.expression_names), theirs.expression_basis[:, rows]
    if "jaw" in theirs.joint_names and "jaw" not in ours.joint_names:
        names += JAW_COMPONENTS
        basis = np.concatenate([basis, jaw_motion(target)[:, rows]])
    A, B = basis.reshape(len(basis), -1), moves.reshape(len(moves), -1)
    gram = A @ A.T
    matrix = np.linalg.solve(gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram)), A @ B.T).T
    lost = ((B - matrix @ A) ** 2).sum(1)
    energy = (B**2).sum(1)
    residual = np.sqrt(lost / np.maximum(energy, 1e-12)) * (energy > 1e-12)
    return Conversion(tuple(source_names), tuple(names), matrix, residual, float(np.sqrt(lost.sum() / energy.sum())))


def shared_motion(
    source: BodyModel, target: BodyModel, channels: Float[Array, "S V 3"]
) -> tuple[Int[Array, "N"], Float[Array, "S N 3"]]:
    """Face vertices of the target, and how each channel of the source moves the same point (target's frame and size)."""
    names = [n for n in source.landmarks if n in target.landmarks]
    if len(names) < 4:
        raise TemplateError(f"{source.name} and {target.name} share {len(names)} landmarks; four or more are needed.")
    ours, theirs = source.landmark_points(), target.landmark_points()
    motion = best_similarity(np.array([ours[n] for n in names]), np.array([theirs[n] for n in names]))
    moved = motion.apply(source.template.vertices)
    rows = np.flatnonzero(np.logical_or.reduce([vertices_in(target.template, (r,)) for r in FACE]))
    still = np.zeros((len(target.template.joint_names), 3))
    neutral = pose_body(target, still, np.zeros(3))
    points = {n: motion.apply(ours[n][None])[0] for n in names}
    wrapped = wrap(neutral, Scan(moved, source.template.faces.astype(np.int64)), points)
    outer = np.isin(source.template.face_regions, [source.template.region_names.index(r) for r in (*FACE, "ears", "neck", "scalp")])
    faces = source.template.faces[outer]
    hits = MeshQuery(moved, faces).nearest(wrapped.posed[rows])
    corners = faces[hits.face]
    basis = np.einsum("nk,snkc->snc", hits.bary, channels[:, corners])
    return rows, motion.scale * basis @ motion.R.T


def jaw_motion(body: BodyModel, angle: float = 0.1) -> Float[Array, "3 V 3"]:
    """Motion per radian about each axis of the jaw joint, from a turn of `angle`."""
    j = body.template.joint_names.index("jaw")
    moves = []
    for axis in range(3):
        rotations = np.zeros((len(body.template.joint_names), 3))
        rotations[j, axis] = angle
        moves.append((pose_body(body, rotations, np.zeros(3)).posed - body.template.vertices) / angle)
    return np.array(moves)
