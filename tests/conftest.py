"""Shapes in signatures are checked while the tests run; fixtures that several test modules share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import jaxtyping
import pytest

_CACHE = tempfile.TemporaryDirectory(prefix="threevp-tests-")  # the user's own stays as it is; deleted at exit
os.environ["THREEVP_CACHE"] = _CACHE.name

_PACKAGES = ("animation", "body", "capture", "data", "geometry", "model", "tracking", "viewer")
_CHECKED = [f"threevp_nerfstudio.{package}" for package in _PACKAGES]
jaxtyping.install_import_hook(_CHECKED, "beartype.beartype")  # not kernels/: Warp reads its kernels' source


@pytest.fixture(scope="session")
def portrait_a() -> Path:
    """A real-sized capture beside the repository, where there is one."""
    path = Path(__file__).parents[2] / "shared" / "captures" / "portrait_a"
    if not path.is_dir():
        pytest.skip("no capture portrait_a beside the repository; it is an optional extra")
    return path


@pytest.fixture(scope="session")
def tiny_capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated capture that trains in seconds: 48 frames of 48 x 48. Read only; copy it to change it."""
    from threevp_nerfstudio.capture.synthetic import Demo, generate

    output = tmp_path_factory.mktemp("captures") / "tiny"
    counts = {"static_frames": 20, "dynamic_frames": 22, "test_frames": 6}
    return generate(Demo(output, size=48, columns=40, quiet=True, **counts))
