"""The rigged template and its motion: what every body model, scan and tracker is turned into.

Both live in numpy here, as they do on disk (`template.npz`, `motion.npz`; the format is in docs/capture_format.md);
`body.rig` turns them into torch buffers that pose.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray as Array

FORMAT_VERSION = 1


@dataclass(frozen=True)
class RiggedTemplate:
    """A personal mesh with skeleton, skin weights and linear blendshapes, in its rest pose.

    World frame: metres, +z up, the subject faces -y. Joint rotations are axis-angle vectors in radians about the
    joint's rest position, in world-aligned axes (the SMPL convention).
    """

    vertices: Float[Array, "V 3"]
    faces: Int[Array, "F 3"]
    joint_names: tuple[str, ...]
    parents: Int[Array, "J"]
    joints: Float[Array, "J 3"]
    skin_weights: Float[Array, "V J"]
    expression_names: tuple[str, ...]
    expression_basis: Float[Array, "E V 3"]
    face_regions: UInt8[Array, "F"]
    region_names: tuple[str, ...]
    pose_basis: Float[Array, "P V 3"] | None = None
    joint_basis: Float[Array, "E J 3"] | None = None  # how each unit expression moves the rest joints (SMPL-X)
    uvs: Float[Array, "T 2"] | None = None
    face_uvs: Int[Array, "F 3"] | None = None
    body_model: str = "unknown"
    license: str = "unknown"

    @property
    def jaw_joint(self) -> int | None:
        """The joint that opens the mouth; None where a channel of expression does."""
        return next((i for i, name in enumerate(self.joint_names) if "jaw" in str(name).lower()), None)

    def save(self, path: Path | str) -> None:
        """Write `template.npz` (no pickled objects), atomically."""
        _save_npz(self, Path(path))


@dataclass(frozen=True)
class Motion:
    """What a template does over time: one row per motion index.

    Either rigged (`joint_rotations`, `root_translation`, `expression`) or, for tracks without a rig, explicit
    `vertices` with `conditioning` in place of the expression.
    """

    times: Float[Array, "N"]
    joint_rotations: Float[Array, "N J 3"] | None = None
    root_translation: Float[Array, "N 3"] | None = None
    expression: Float[Array, "N E"] | None = None
    vertices: Float[Array, "N V 3"] | None = None
    conditioning: Float[Array, "N C"] | None = None
    conditioning_names: tuple[str, ...] = field(default=())
    confidence: Float[Array, "N 2"] | None = None

    @property
    def rigged(self) -> bool:
        return self.vertices is None

    def __len__(self) -> int:
        return len(self.times)

    def save(self, path: Path | str) -> None:
        """Write `motion.npz` (no pickled objects), atomically."""
        _save_npz(self, Path(path))


def _save_npz(value: RiggedTemplate | Motion, path: Path) -> None:
    arrays = {"version": np.array(FORMAT_VERSION)}
    for entry in fields(value):
        content = getattr(value, entry.name)
        if content is None or (isinstance(content, tuple) and not content and entry.name == "conditioning_names"):
            continue
        arrays[entry.name] = np.array(content)
    temporary = path.with_name(path.name + ".tmp.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(path)
