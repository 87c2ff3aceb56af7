"""What start-up costs, in processes of its own: importing, and making a model with kernels compiled or cached."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from threevp_nerfstudio.benchmark.measure import Stat

IMPORT_HOST = "import nerfstudio.scripts.train"
IMPORT_PLUGIN = "import nerfstudio.scripts.train, threevp_nerfstudio.config, threevp_nerfstudio.dataparser_config"
SETUP = """
import nerfstudio.scripts.train, time
start = time.process_time()
from pathlib import Path
from threevp_nerfstudio.engine.short_training import configured, make_avatar
from threevp_nerfstudio.config import {method}
trainee = make_avatar("", configured({method}.config, Path({data!r})), {device!r})
made = time.process_time()
trainee.step(0.0)
print("TIMES", made - start, time.process_time() - made)
"""


def _seconds(code: str, **environment: str) -> tuple[float, str]:
    """Process time of a fresh interpreter that runs `code`, and what it printed."""
    wrapped = f"{code}\nimport time; print('TOTAL', time.process_time())"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", wrapped],
        capture_output=True, text=True, timeout=600, env={**os.environ, **environment},
    )  # fmt: skip
    if result.returncode != 0:
        raise RuntimeError(f"a measured process failed:\n{result.stderr[-2000:]}")
    return float(result.stdout.rsplit("TOTAL", 1)[1]), result.stdout


def import_seconds(repeats: int) -> tuple[Stat, Stat]:
    """Process seconds to import ns-train's module alone, and with the plugin."""
    host = [_seconds(_without_plugins(IMPORT_HOST))[0] for _ in range(repeats)]
    plugin = [_seconds(IMPORT_PLUGIN)[0] for _ in range(repeats)]
    return Stat.of(host), Stat.of(plugin)


def _without_plugins(code: str) -> str:
    """No entry points of method or dataparser plugins are found."""
    return f"import importlib.metadata as m; m.entry_points = lambda **kw: m.EntryPoints()\n{code}"


def setup_seconds(method: str, data: Path, device: str, fresh: bool) -> dict[str, float]:
    """Process seconds to make data manager and model, and of the first step: with the kernels that this machine has
    compiled before, and if `fresh` also with none."""
    code = SETUP.format(method=method, data=str(data), device=device)
    result: dict[str, float] = {}

    def measure(kernels: str, **environment: str) -> None:
        _, output = _seconds(code, **environment)
        made, step = output.split("TIMES", 1)[1].split()[:2]
        result[f"data manager and model, kernels {kernels}"] = float(made)
        result[f"the first step, kernels {kernels}"] = float(step)

    if fresh:
        with tempfile.TemporaryDirectory(prefix="threevp-kernels-") as folder:
            measure("compiled", WARP_CACHE_PATH=folder)
    measure("cached")
    return result
