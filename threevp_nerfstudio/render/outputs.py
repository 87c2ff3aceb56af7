"""Where pictures go: a film, or a folder of PNG files that can be rendered in shards and resumed.

A folder has a `film.json` that says what its pictures are of. A later run goes on in it only if it would make the same
pictures.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from threevp_nerfstudio.errors import ThreeVPError
from threevp_nerfstudio.render.video import CODECS, video_writer

MANIFEST = "film.json"
MANIFEST_VERSION = 1
MIN_SIZE, MAX_SIZE = 16, 8192
MIN_FPS, MAX_FPS = 0.1, 240.0
MAX_GIF_FPS = 50.0
MAX_PICTURES = 1_000_000
ENDINGS = ", ".join(CODECS)


@dataclass(frozen=True)
class OutputSpec:
    """An output and the size of what goes into it."""

    path: Path
    width: int
    height: int
    fps: float
    count: int
    alpha: bool

    @property
    def is_folder(self) -> bool:
        return is_folder(self.path)

    def check(self) -> None:
        """Refuse what cannot be written, before anything is rendered.

        Raises:
            ThreeVPError: with what was seen and the remedy.
        """
        check_ending(self.path, self.alpha)
        check_rate(self.fps, self.path)
        if not (MIN_SIZE <= self.width <= MAX_SIZE and MIN_SIZE <= self.height <= MAX_SIZE):
            raise ThreeVPError(f"--size: {self.width} x {self.height} pixels; {MIN_SIZE} to {MAX_SIZE} on each side are expected.")
        codec = CODECS.get(self.path.suffix.lower())
        if codec is not None and codec.even and (self.width % 2 or self.height % 2):
            raise ThreeVPError(
                f"--size: {self.width} x {self.height} pixels; {self.path.suffix} needs even numbers. PNG files and GIF take any."
            )
        if not 1 <= self.count <= MAX_PICTURES:
            raise ThreeVPError(f"--seconds, --fps: {self.count} pictures; 1 to {MAX_PICTURES} are expected.")


class Output(Protocol):
    """Takes the pictures of a film, in order."""

    def missing(self, indices: range) -> list[int]:
        """Those of the pictures that are still to be made."""

    def write(self, index: int, picture: UInt8[np.ndarray, "h w c"]) -> None: ...


def is_folder(path: Path) -> bool:
    """An output without ending is a folder of PNG files."""
    return path.suffix == "" or path.is_dir()


def check_ending(path: Path, alpha: bool) -> None:
    """Refuse endings that nothing here writes, and alpha where a file has none. Raises `ThreeVPError`."""
    ending = path.suffix.lower()
    if is_folder(path):
        return
    if ending not in CODECS:
        raise ThreeVPError(f"--output {path}: {ENDINGS} are films, a name without ending is a folder of PNG files; {ending} is neither.")
    if alpha and CODECS[ending].alpha_pixels is None:
        raise ThreeVPError(f"--output {path}: {ending} has no transparency; give a --background, or write .webm, .gif or PNG files.")


def check_rate(fps: float, path: Path) -> None:
    """Refuse rates out of reason. Raises `ThreeVPError`."""
    if not MIN_FPS <= fps <= MAX_FPS:
        raise ThreeVPError(f"--fps {fps:g}: {MIN_FPS:g} to {MAX_FPS:g} pictures per second are expected.")
    if path.suffix.lower() == ".gif" and fps > MAX_GIF_FPS:
        raise ThreeVPError(f"--fps {fps:g}: GIF counts in hundredths of a second; give {MAX_GIF_FPS:g} at most.")


def check_writable(path: Path) -> None:
    """Try to write where the output will be. Raises `ThreeVPError` where that is not possible."""
    folder = path if is_folder(path) else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".threevp-"):
            pass
    except OSError as error:
        raise ThreeVPError(f"--output {path}: {folder} cannot be written ({error.strerror}).") from error


@contextmanager
def open_output(spec: OutputSpec, settings: dict[str, Any], overwrite: bool = False) -> Iterator[Output]:
    """The output of a spec. `settings` describe the pictures, for `film.json` of a folder.

    Raises:
        ThreeVPError: the folder holds pictures of another film.
    """
    if spec.is_folder:
        yield PngFolder(spec, settings, overwrite)
        return
    with video_writer(spec.path, spec.width, spec.height, spec.fps, spec.alpha) as write:
        yield Film(write)


class Film:
    """A film, from its first picture to its last."""

    def __init__(self, write) -> None:
        self._write = write

    def missing(self, indices: range) -> list[int]:
        return list(indices)

    def write(self, index: int, picture: UInt8[np.ndarray, "h w c"]) -> None:
        self._write(picture)


class PngFolder:
    """PNG files, numbered from 0; a file has its name only when it is whole."""

    def __init__(self, spec: OutputSpec, settings: dict[str, Any], overwrite: bool) -> None:
        self.folder = spec.path
        self.folder.mkdir(parents=True, exist_ok=True)
        manifest = {
            "threevp_film": MANIFEST_VERSION,
            "count": spec.count,
            "fps": float(spec.fps),
            "width": spec.width,
            "height": spec.height,
            "alpha": spec.alpha,
            **settings,
        }
        self._claim(manifest, overwrite)

    def _claim(self, manifest: dict[str, Any], overwrite: bool) -> None:
        path = self.folder / MANIFEST
        there = read_manifest(self.folder) if path.is_file() else None
        pictures = sorted(self.folder.glob("*.png"))
        if overwrite and there != manifest:
            for picture in pictures:
                if picture.stem.isdigit():
                    picture.unlink()
        elif there is None and pictures:
            raise ThreeVPError(f"{self.folder}: holds {len(pictures)} PNG files of something else; choose another folder, or --overwrite.")
        elif there is not None and there != manifest:
            differs = sorted(k for k in {*there, *manifest} if there.get(k) != manifest.get(k))
            raise ThreeVPError(
                f"{self.folder}: holds pictures of another film (other {', '.join(differs)}); choose another folder, or "
                "--overwrite."
            )
        if there != manifest:
            _replace(path, json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n")

    def missing(self, indices: range) -> list[int]:
        return [i for i in indices if not picture_path(self.folder, i).is_file()]

    def write(self, index: int, picture: UInt8[np.ndarray, "h w c"]) -> None:
        path = picture_path(self.folder, index)
        temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.partial")
        try:
            Image.fromarray(picture).save(temporary, format="PNG")
            temporary.replace(path)
        except OSError as error:
            raise ThreeVPError(f"{path}: cannot be written ({error.strerror or error}).") from error
        finally:
            temporary.unlink(missing_ok=True)


def picture_path(folder: Path, index: int) -> Path:
    """The file of a picture."""
    return folder / f"{index:06d}.png"


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the pictures of a folder are of. Raises `ThreeVPError`."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ThreeVPError(f"{path}: cannot be read ({error.strerror}). Give a folder that threevp animate wrote.") from error
    except ValueError as error:
        raise ThreeVPError(f"{path}: not JSON ({error}).") from error
    if not isinstance(content, dict) or content.get("threevp_film") != MANIFEST_VERSION:
        raise ThreeVPError(f"{path}: not of this release's films; render the folder again.")
    return content


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    temporary.write_bytes(content)
    temporary.replace(path)
