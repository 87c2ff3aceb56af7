"""Pictures on disk as one .npy, written picture by picture and mapped into memory: no pickle, no memory for long videos."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.errors import FootageError, TrackError

HEADER = 128


class PictureWriter:
    """Append pictures of one shape to a .npy whose length is not known beforehand. The file has a temporary name until it is whole."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape, self.count = path, shape, 0
        self._temporary = path.with_name(path.name + ".tmp")
        self._file = self._temporary.open("wb")
        self._file.write(bytes(HEADER))

    def append(self, picture: UInt8[Array, "*shape"]) -> None:
        assert picture.shape == self.shape and picture.dtype == np.uint8, (picture.shape, self.shape)
        self._file.write(np.ascontiguousarray(picture).data)
        self.count += 1

    def __enter__(self) -> PictureWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._file.seek(0)
            self._file.write(_header((self.count, *self.shape)))
        self._file.close()
        if kind is None:
            self._temporary.replace(self.path)
        else:
            self._temporary.unlink(missing_ok=True)


def _header(shape: tuple[int, ...]) -> bytes:
    text = io.BytesIO()
    np.lib.format.write_array_header_1_0(text, {"descr": "|u1", "fortran_order": False, "shape": shape})
    assert len(text.getvalue()) == HEADER
    return text.getvalue()


def open_pictures(path: Path) -> UInt8[Array, "N *shape"]:
    """Map what a `PictureWriter` wrote into memory, read-only. Raises `TrackError`."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise TrackError(f"{path} cannot be read ({error}); run again from the stage that writes it.") from error


def check_space(directory: Path, needed: int) -> None:
    """Refuse to start what the disk cannot hold. `needed` in bytes. Raises `FootageError`."""
    free = shutil.disk_usage(directory).free
    if needed > 0.9 * free:
        raise FootageError(
            f"decoded pictures need {needed / 2**30:.1f} GiB under {directory}, which has {free / 2**30:.1f} GiB free; "
            "make room, or reduce --size, or take fewer pictures (--stride, --end)."
        )


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write an .npz atomically."""
    temporary = path.with_name(path.name + ".tmp.npz")
    np.savez(temporary, **arrays)
    temporary.replace(path)


def read_arrays(path: Path) -> dict[str, Array]:
    """Read an .npz without pickles. Raises `TrackError`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError) as error:
        raise TrackError(f"{path} cannot be read ({error}); run again from the stage that writes it.") from error
