"""Where MediaPipe is, and how to get it beside nerfstudio.

MediaPipe 0.10.9 is the newest that carries its models in the wheel and accepts nerfstudio's protobuf. Its metadata asks for
`opencv-contrib-python`, which would overwrite nerfstudio's `opencv-python-headless`, though it runs on either. pip cannot
leave out one requirement, so it is put into a folder of its own, without requirements: nerfstudio brings the others.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from threevp_nerfstudio.errors import FootageError
from threevp_nerfstudio.workers import stay_whole

VERSION = "0.10.9"
REQUIREMENTS = (f"mediapipe=={VERSION}", "flatbuffers>=2.0")
HOME_VARIABLE = "THREEVP_MEDIAPIPE"


def home() -> Path:
    """The private folder: `$THREEVP_MEDIAPIPE`, or in the user's cache, one for each Python version."""
    if os.environ.get(HOME_VARIABLE):
        return Path(os.environ[HOME_VARIABLE]).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "threevp" / f"mediapipe-{VERSION}-py{sys.version_info.major}{sys.version_info.minor}"


def available() -> bool:
    """Whether MediaPipe can be imported, without importing it."""
    return importlib.util.find_spec("mediapipe") is not None or (home() / "mediapipe").is_dir()


def load() -> ModuleType:
    """Import MediaPipe from the environment or from the private folder. Raises `FootageError` with what to do.

    Whoever calls this is best a worker (`workers.shared(..., apart=True)`): no process is forked any more once it has used MediaPipe.
    """
    if importlib.util.find_spec("mediapipe") is None:
        if not (home() / "mediapipe").is_dir():
            raise FootageError(
                "MediaPipe is not installed; it finds the person and the face. Run `threevp install-mediapipe` (about 35 MB), or "
                "track without it: --plate or --mattes for the mattes, and --landmarks for the face."
            )
        if str(home()) not in sys.path:
            sys.path.append(str(home()))  # last: nothing of the environment is shadowed
            importlib.invalidate_caches()
    os.environ.setdefault("GLOG_minloglevel", "2")
    stay_whole()
    try:
        module = importlib.import_module("mediapipe")
    except (ImportError, OSError, TypeError) as error:
        raise FootageError(
            f"MediaPipe cannot be imported ({error}); run `threevp install-mediapipe`, and check that protobuf is below 4."
        ) from error
    if not hasattr(module, "solutions"):
        raise FootageError(
            f"MediaPipe {getattr(module, '__version__', '?')} has no bundled models; version {VERSION} has. "
            f"Uninstall it and run `threevp install-mediapipe`."
        )
    return module


def install() -> Path:
    """Install MediaPipe into the private folder with pip; atomic. Raises `FootageError`."""
    target = home()
    if (target / "mediapipe").is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + f".partial{os.getpid()}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--target", str(partial)]
    result = subprocess.run([*command, *REQUIREMENTS], capture_output=True, text=True)
    if result.returncode:
        said = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise FootageError(
            f"MediaPipe {VERSION} could not be installed with pip ({said}). It has wheels for Python 3.9 to 3.11 (3.12 is untried) on "
            f"Linux, macOS and Windows. By hand: pip install --no-deps --target {target} {' '.join(REQUIREMENTS)}"
        )
    if target.is_dir():  # another process was faster
        return target
    partial.replace(target)
    return target


@dataclass
class InstallMediaPipe:
    """Install MediaPipe 0.10.9 (Apache-2.0) for mattes and face landmarks, in a folder of its own, without its OpenCV.

    `threevp track` does it by itself on first use, unless --no-install is given.
    """

    def main(self) -> None:
        print(f"MediaPipe {VERSION} is in {install()}")
