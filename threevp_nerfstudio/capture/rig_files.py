"""`template.npz` and `motion.npz`, read strictly: no pickled objects, every shape and range checked."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy import ndarray as Array

from threevp_nerfstudio.body.template import FORMAT_VERSION, Motion, RiggedTemplate
from threevp_nerfstudio.errors import CaptureError

WEIGHT_TOLERANCE = 1e-3
"""How far the skin weights of a vertex may sum from one (a row stored as 8-bit integers is off by up to 4e-3)."""


def load_template(path: Path | str) -> RiggedTemplate:
    """Read and check a rigged template. Raises `CaptureError` with the key, what was seen and the remedy."""
    file = _Npz(Path(path))
    vertices = file.floats("vertices", (None, 3))
    V = len(vertices)
    faces = file.integers("faces", (None, 3), upper=V, of="vertices")
    F = len(faces)
    if V == 0 or F == 0:
        raise CaptureError(f"{file.path}: the template has {V} vertices and {F} faces; export the mesh again.")
    joint_names = file.names("joint_names")
    J = len(joint_names)
    expression_names = file.names("expression_names", may_be_empty=True)
    region_names = file.names("region_names")
    face_regions = file.integers("face_regions", (F,), upper=len(region_names), of="region_names")
    if ("uvs" in file) != ("face_uvs" in file):
        raise CaptureError(f"{file.path}: 'uvs' and 'face_uvs' come together; write both or neither.")
    uvs = file.floats("uvs", (None, 2)) if "uvs" in file else None
    return RiggedTemplate(
        vertices=vertices,
        faces=faces.astype(np.int32),
        joint_names=joint_names,
        parents=_parents(file, J),
        joints=file.floats("joints", (J, 3)),
        skin_weights=_skin_weights(file, V, J),
        expression_names=expression_names,
        expression_basis=file.floats("expression_basis", (len(expression_names), V, 3)),
        face_regions=face_regions.astype(np.uint8),
        region_names=region_names,
        pose_basis=file.floats("pose_basis", (9 * (J - 1), V, 3)) if "pose_basis" in file else None,
        joint_basis=file.floats("joint_basis", (len(expression_names), J, 3)) if "joint_basis" in file else None,
        uvs=uvs,
        face_uvs=None if uvs is None else file.integers("face_uvs", (F, 3), upper=len(uvs), of="uvs").astype(np.int32),
        body_model=file.text("body_model"),
        license=file.text("license"),
    )


def load_motion(path: Path | str, template: RiggedTemplate) -> Motion:
    """Read and check the motion of `template`: rigged, or explicit vertices with conditioning.

    Raises `CaptureError`.
    """
    file = _Npz(Path(path))
    times = file.floats("times", (None,))
    N = len(times)
    if N == 0:
        raise CaptureError(f"{file.path}: 'times' is empty; a motion has at least one row.")
    confidence = file.floats("confidence", (N, 2)) if "confidence" in file else None
    if confidence is not None and (confidence.min() < 0 or confidence.max() > 1):
        raise CaptureError(
            f"{file.path}: 'confidence' spans {confidence.min():.3g} to {confidence.max():.3g}; write 0 to 1."
        )
    rig_keys = [key for key in ("joint_rotations", "root_translation", "expression") if key in file]
    if "vertices" not in file:
        J, E = len(template.joint_names), len(template.expression_names)
        return Motion(
            times=times,
            joint_rotations=file.floats("joint_rotations", (N, J, 3)),
            root_translation=file.floats("root_translation", (N, 3)),
            expression=file.floats("expression", (N, E)),
            confidence=confidence,
        )
    if rig_keys:
        raise CaptureError(
            f"{file.path} holds 'vertices' and {rig_keys}: two accounts of one motion. Keep the rig, or the explicit "
            "vertices with 'conditioning'."
        )
    names = file.names("conditioning_names", may_be_empty=True)
    return Motion(
        times=times,
        vertices=file.floats("vertices", (N, len(template.vertices), 3)),
        conditioning=file.floats("conditioning", (N, len(names))),
        conditioning_names=names,
        confidence=confidence,
    )


class _Npz:
    """An .npz file whose arrays are fetched with their expected type and shape."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CaptureError(f"{path} is missing; a capture holds transforms.json, template.npz and motion.npz.")
        if not zipfile.is_zipfile(path):
            raise CaptureError(f"{path} is damaged, or no .npz file; write it again with np.savez.")
        try:
            with np.load(path, allow_pickle=False) as archive:
                self._arrays = {key: archive[key] for key in archive.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
            pickled = "pickle" in str(error)
            what = "holds pickled objects, which are never loaded" if pickled else f"is damaged ({error})"
            raise CaptureError(f"{path} {what}; write it again with np.savez and plain arrays.") from error
        version = self["version"]
        if version.shape != () or version.dtype.kind not in "iu" or int(version) != FORMAT_VERSION:
            raise CaptureError(
                f"{path} is version {version.tolist()!r}, this release reads version {FORMAT_VERSION}; "
                "write it again with the matching release, or install the one that reads it."
            )

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def __getitem__(self, key: str) -> Array:
        if key not in self._arrays:
            raise CaptureError(
                f"{self.path} has no '{key}', only {sorted(self._arrays)}; add it (docs/capture_format.md)."
            )
        return self._arrays[key]

    def _shaped(self, key: str, shape: tuple[int | None, ...], kinds: str, kind_name: str) -> Array:
        value = self[key]
        if value.dtype.kind not in kinds:
            raise CaptureError(f"{self.path}: '{key}' holds {value.dtype}; {kind_name} are expected.")
        fits = value.ndim == len(shape) and all(s is None or s == n for s, n in zip(shape, value.shape, strict=True))
        if not fits:
            wanted = "(" + ", ".join("any" if s is None else str(s) for s in shape) + ")"
            raise CaptureError(
                f"{self.path}: '{key}' has shape {value.shape}; {wanted} is expected. Template, motion and names must "
                "come from one export."
            )
        return value

    def floats(self, key: str, shape: tuple[int | None, ...]) -> Array:
        """A finite float32 array."""
        with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, and is refused below
            value = self._shaped(key, shape, "f", "floating point numbers").astype(np.float32)
        bad = ~np.isfinite(value)
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            raise CaptureError(
                f"{self.path}: '{key}' has {int(bad.sum())} entries that are NaN or infinite, the first at {at}; "
                "find where they were computed and export again."
            )
        return value

    def integers(self, key: str, shape: tuple[int | None, ...], upper: int, of: str) -> Array:
        """Indices within [0, upper)."""
        value = self._shaped(key, shape, "iu", "integers")
        if value.size and (value.min() < 0 or value.max() >= upper):
            raise CaptureError(
                f"{self.path}: '{key}' spans {value.min()} to {value.max()}, but there are {upper} {of}; "
                "indices count from 0."
            )
        return value

    def names(self, key: str, may_be_empty: bool = False) -> tuple[str, ...]:
        """Distinct, non-empty strings."""
        value = self[key]
        if value.ndim != 1 or (value.dtype.kind != "U" and value.size):
            raise CaptureError(f"{self.path}: '{key}' is {value.dtype} {value.shape}; a list of strings is expected.")
        names = tuple(str(name) for name in value)
        doubled = sorted({name for name in names if names.count(name) > 1 or not name})
        if doubled:
            raise CaptureError(f"{self.path}: '{key}' holds {doubled} more than once, or empty; names must differ.")
        if not names and not may_be_empty:
            raise CaptureError(f"{self.path}: '{key}' is empty; at least one name is expected.")
        return names

    def text(self, key: str) -> str:
        value = self[key]
        if value.shape != () or value.dtype.kind != "U":
            raise CaptureError(f"{self.path}: '{key}' is {value.dtype} {value.shape}; one string is expected.")
        return str(value)


def _parents(file: _Npz, J: int) -> Array:
    parents = file._shaped("parents", (J,), "i", "integers").astype(np.int32)
    if parents[0] != -1:
        raise CaptureError(f"{file.path}: 'parents' starts with {parents[0]}; the root comes first, with parent -1.")
    wrong = np.flatnonzero((parents[1:] < 0) | (parents[1:] >= np.arange(1, J))) + 1
    if len(wrong):
        j = int(wrong[0])
        raise CaptureError(
            f"{file.path}: 'parents' of joint {j} is {parents[j]}; parents come before their children, and there is "
            "one root. Sort the joints from the root outwards."
        )
    return parents


def _skin_weights(file: _Npz, V: int, J: int) -> Array:
    weights = file.floats("skin_weights", (V, J))
    if weights.min() < -1e-6:
        raise CaptureError(f"{file.path}: 'skin_weights' go down to {weights.min():.3g}; weights are not negative.")
    off = np.abs(weights.sum(axis=1, dtype=np.float64) - 1.0)
    bad = np.flatnonzero(off > WEIGHT_TOLERANCE)
    if len(bad):
        v = int(bad[0])
        raise CaptureError(
            f"{file.path}: the 'skin_weights' of {len(bad)} vertices do not sum to one (vertex {v}: "
            f"{weights[v].sum():.4g}); bind those vertices to a joint, and normalise the rows."
        )
    return weights
