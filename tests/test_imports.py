"""Which package may import which, and what importing the plugin costs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "threevp_nerfstudio"
PACKAGE = "threevp_nerfstudio"
WITHOUT_NERFSTUDIO = ("geometry", "kernels", "body", "capture", "tracking")
MAY_IMPORT = {
    "geometry": set(),
    "kernels": {"geometry"},
    "body": {"geometry", "kernels"},
    "capture": {"geometry", "kernels", "body"},
    "data": {"geometry", "kernels", "body", "capture"},
    "model": {"geometry", "kernels", "body", "capture"},
    "animation": {"geometry", "kernels", "body", "capture", "model"},
    "tracking": {"geometry", "kernels", "body", "capture"},
    "polish": {"kernels", "body", "capture", "data", "tracking", "model", "engine"},
    "render": {"geometry", "kernels", "body", "capture", "model", "animation"},
    "viewer": {"geometry", "kernels", "body", "capture", "model", "animation", "render"},
}
OPTIONAL = ("anny", "mediapipe", "smplx", "pytorch3d", "tinycudann", "lpips", "pycolmap")


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, also within functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", WITHOUT_NERFSTUDIO)
def test_the_lower_packages_do_not_know_nerfstudio(package: str):
    for path in files(package):
        assert not {m for m in imports(path) if m.split(".")[0] == "nerfstudio"}, path


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str):
    for path in files(package):
        used = {m.split(".")[1] for m in imports(path) if m.startswith(PACKAGE + ".")}
        packages = {name for name in used if (ROOT / name).is_dir()} - {package}
        assert packages <= MAY_IMPORT[package], f"{path} imports {packages - MAY_IMPORT[package]}"


def test_one_module_touches_viser_and_one_the_hosts_viewer():
    def users(library: str) -> set[str]:
        return {p.name for p in ROOT.rglob("*.py") if any(f"{m}.".startswith(f"{library}.") for m in imports(p))}

    assert users("viser") == {"viser_ui.py"}
    assert users("nerfstudio.viewer") == {"host.py", "avatar_viewer.py"}
    assert users("nerfstudio.viewer_legacy") == {"host.py"}


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules, sep='\\n')"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_the_plugin_loads_no_optional_library():
    modules = loaded_after(f"import {PACKAGE}.config, {PACKAGE}.dataparser_config")
    assert not modules & set(OPTIONAL)
    assert "torchmetrics" not in modules  # a second of start-up


def test_the_dataparser_specification_loads_neither_data_manager_nor_model():
    own = {m for m in loaded_after(f"import {PACKAGE}.dataparser_config") if m.startswith(PACKAGE + ".")}
    assert not {m for m in own if m.split(".")[1] in ("model", "kernels") or m.endswith(".datamanager")}


def test_the_command_line_and_the_rig_load_no_nerfstudio():
    assert not {m for m in loaded_after(f"import {PACKAGE}.cli") if m.split(".")[0] in ("nerfstudio", "torch")}
    assert "nerfstudio" not in loaded_after(f"import {PACKAGE}.body.rig, {PACKAGE}.capture.capture")


def test_nerfstudio_lists_the_methods():
    modules = loaded_after(
        "from nerfstudio.configs.method_configs import all_methods\n"
        "assert {'threevp', 'threevp-small', 'nerfacto'} <= set(all_methods)"
    )
    assert f"{PACKAGE}.config" in modules


def test_every_subcommand_exists():
    import importlib

    from threevp_nerfstudio.cli import COMMANDS

    for module, name, text in COMMANDS.values():
        assert hasattr(importlib.import_module(module), name) and text


def test_help_ends_quietly_when_nobody_reads_it():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "threevp_nerfstudio.cli", "--help"]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert result.returncode == 1 and not result.stderr
