"""Read an SMPL-X model file, strictly and without unpickling anything.

`SMPLX_*.npz` also holds a few pickled dictionaries (part names); they are never touched.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from threevp_nerfstudio.errors import TemplateError

ENVIRONMENT_VARIABLE = "THREEVP_SMPLX_MODEL"
NUM_VERTICES = 10475
NUM_JOINTS = 55
NUM_LANDMARKS = 51
OTHER_MODELS = {6890: "SMPL or SMPL-H", 5023: "FLAME", 778: "MANO", 10475: "SMPL-X"}
WHERE = (
    "Get it from https://smpl-x.is.tue.mpg.de (free account; 'Download SMPL-X v1.1 (NPZ+PKL)'). Its licence allows "
    "non-commercial scientific research only, asks for a citation, and forbids passing the file on; "
    "commercial licences: https://meshcapade.com. The default, --body anny, needs no licence."
)


@dataclass(frozen=True)
class SmplxFile:
    """The arrays of an SMPL-X model, in its own frame: metres, +y up, facing +z."""

    path: Path
    v_template: Float[Array, "V 3"]
    faces: Int[Array, "F 3"]
    shapedirs: Float[Array, "V 3 S"]
    expression: Float[Array, "V 3 E"]
    posedirs: Float[Array, "V 3 P"]
    J_regressor: Float[Array, "J V"]
    parents: Int[Array, "J"]
    weights: Float[Array, "V J"]
    landmark_faces: Int[Array, "L"]
    landmark_bary: Float[Array, "L 3"]
    vt: Float[Array, "T 2"] | None
    ft: Int[Array, "F 3"] | None


def find_model(path: Path | None, gender: Literal["neutral", "female", "male"] = "neutral") -> Path:
    """The model file from `--model-path` (file or folder), or from the environment. Raises `TemplateError`."""
    source = "--model-path"
    if path is None:
        source, value = ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE)
        if not value:
            raise TemplateError(
                f"--body smplx needs your own SMPLX_NEUTRAL.npz: pass --model-path FILE, or set {ENVIRONMENT_VARIABLE}. {WHERE}"
            )
        path = Path(value)
    path = path.expanduser()
    if path.is_dir():
        name = f"SMPLX_{gender.upper()}.npz"
        choices = [path / name, path / "smplx" / name, path / "models" / "smplx" / name]
        found = next((c for c in choices if c.is_file()), None)
        if found is None:
            raise TemplateError(f"{source}: {path} holds no {name} (nor smplx/{name}). {WHERE}")
        path = found
    if not path.is_file():
        raise TemplateError(f"{source}: {path} does not exist. {WHERE}")
    return path


def read_smplx(path: Path) -> SmplxFile:
    """Read and check a model file. Raises `TemplateError` that says what is wrong and what to do."""
    if path.suffix == ".pkl":
        raise TemplateError(
            f"{path} is a pickle, which can run code when it is opened; only .npz files are read. SMPL-X v1.1 comes as "
            f"SMPLX_*.npz in the same download. {WHERE}"
        )
    if not zipfile.is_zipfile(path):
        raise TemplateError(f"{path} is damaged, or no .npz file ({path.stat().st_size} bytes); download it again. {WHERE}")
    with np.load(path, allow_pickle=False) as archive:
        read = _Reader(path, archive)
        v_template = read("v_template", (None, 3))
        V = len(v_template)
        if V != NUM_VERTICES:
            what = OTHER_MODELS.get(V, "not SMPL-X")
            raise TemplateError(f"{path} has {V} vertices ({what}); SMPL-X has {NUM_VERTICES}. {WHERE}")
        shapedirs = read("shapedirs", (V, 3, None))
        S = shapedirs.shape[2]
        if S < 20:
            raise TemplateError(f"{path}: 'shapedirs' has {S} components; 400 (v1.1) or 20 (v1.0) are expected. {WHERE}")
        start, stop = (300, 400) if S >= 400 else (10, 20)
        faces = read("f", (None, 3), integer=True, upper=V)
        kintree = read("kintree_table", (2, NUM_JOINTS), integer=True)
        has_uv = "vt" in archive.files and "ft" in archive.files
        return SmplxFile(
            path=path,
            v_template=v_template,
            faces=faces,
            shapedirs=shapedirs[:, :, :start],
            expression=shapedirs[:, :, start:stop],
            posedirs=read("posedirs", (V, 3, 9 * (NUM_JOINTS - 1))),
            J_regressor=read("J_regressor", (NUM_JOINTS, V)),
            parents=_parents(path, kintree),
            weights=read("weights", (V, NUM_JOINTS)),
            landmark_faces=read("lmk_faces_idx", (NUM_LANDMARKS,), integer=True, upper=len(faces)),
            landmark_bary=read("lmk_bary_coords", (NUM_LANDMARKS, 3)),
            vt=read("vt", (None, 2)) if has_uv else None,
            ft=read("ft", (len(faces), 3), integer=True) if has_uv else None,
        )


class _Reader:
    """Fetches one array at a time, so that pickled entries that nobody needs stay closed."""

    def __init__(self, path: Path, archive: np.lib.npyio.NpzFile) -> None:
        self.path, self.archive = path, archive

    def __call__(self, key: str, shape: tuple[int | None, ...], integer: bool = False, upper: int | None = None) -> Array:
        if key not in self.archive.files:
            raise TemplateError(
                f"{self.path} has no {key!r}, only {', '.join(sorted(self.archive.files))}; it is no SMPL-X v1.1 model. {WHERE}"
            )
        try:
            value = self.archive[key]
        except ValueError as error:
            raise TemplateError(
                f"{self.path}: {key!r} is a pickled object, which is never loaded. Take SMPLX_*.npz as distributed "
                f"(SMPL-X v1.1), or save the array again with plain numbers. {WHERE}"
            ) from error
        fits = value.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, value.shape, strict=True))
        if not fits:
            wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
            raise TemplateError(f"{self.path}: {key!r} has shape {value.shape}; SMPL-X v1.1 has {wanted}. {WHERE}")
        if value.dtype.kind not in "iuf":
            raise TemplateError(f"{self.path}: {key!r} holds {value.dtype}; numbers are expected. {WHERE}")
        if integer:
            value = value.astype(np.int64)
            if upper is not None and value.size and (value.min() < 0 or value.max() >= upper):
                raise TemplateError(f"{self.path}: {key!r} spans {value.min()} to {value.max()}; 0 to {upper - 1} is expected.")
            return value
        value = value.astype(np.float64)
        if not np.isfinite(value).all():
            raise TemplateError(f"{self.path}: {key!r} has NaN or infinite entries; download the file again.")
        return value


def _parents(path: Path, kintree: Int[Array, "2 J"]) -> Int[Array, "J"]:
    parents = kintree[0].copy()
    parents[0] = -1  # stored as 2^32 - 1, or -1
    if (parents[1:] < 0).any() or (parents[1:] >= np.arange(1, len(parents))).any():
        raise TemplateError(f"{path}: 'kintree_table' does not list parents before children; it is no SMPL-X model. {WHERE}")
    return parents
