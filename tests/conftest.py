"""Shapes in signatures are checked while the tests run; fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import jaxtyping
import pytest

_CHECKED = [f"threevp_nerfstudio.{package}" for package in ("body", "capture", "data", "geometry", "model", "viewer")]
jaxtyping.install_import_hook(_CHECKED, "beartype.beartype")  # not kernels/: Warp reads its kernels' source


@pytest.fixture(scope="session")
def portrait_a() -> Path:
    """A real-sized capture beside the repository, where there is one."""
    path = Path(__file__).parents[2] / "shared" / "captures" / "portrait_a"
    if not path.is_dir():
        pytest.skip("no capture portrait_a beside the repository; it is an optional extra")
    return path
