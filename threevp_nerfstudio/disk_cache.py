"""Arrays that take seconds to compute and depend on nothing but their inputs, kept on disk from run to run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from threevp_nerfstudio import __version__

KEEP = 64
"""Files kept; the longest unused are deleted."""
Key = np.ndarray | str | float | int


def folder() -> Path:
    """`$THREEVP_CACHE`, else `threevp_nerfstudio` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("THREEVP_CACHE") or Path(base) / "threevp_nerfstudio")


def cached(name: str, key: tuple[Key, ...], make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """`make()`, or what it returned for the same `key` before.

    A file that cannot be read is made anew; where nothing can be written, nothing is kept.
    """
    code = Path(make.__code__.co_filename).read_text()  # what an older version of it made is no longer asked for
    path = folder() / f"{name}-{digest((*key, code, __version__))}.npz"
    found = _read(path)
    if found is None:
        found = make()
        _write(path, found)
    return found


def digest(key: tuple[Key, ...]) -> str:
    """A name for the key: equal for equal contents, types and shapes included."""
    sha = hashlib.sha256()
    for part in key:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            sha.update(np.ascontiguousarray(part).tobytes())
        else:
            sha.update(repr(part).encode())
        sha.update(b"|")
    return sha.hexdigest()[:32]


def _read(path: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        path.touch()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return arrays


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(temporary, **arrays)
        temporary.replace(path)
        files = sorted(path.parent.glob("*-*.npz"), key=lambda p: p.stat().st_mtime)
        for old in files[:-KEEP]:
            old.unlink(missing_ok=True)
    except OSError:  # a full disk, a read-only home: slower next time, no reason to stop
        with contextlib.suppress(OSError):
            temporary.unlink()
