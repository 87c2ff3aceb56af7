"""What can be known about CUDA without a device: the kernels compile for it, a step does not wait for it more than is
written down here, and compiled kernels are kept."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import warp as wp
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import threevp_nerfstudio.kernels as kernels
from tests.tiny_training import tiny_trainer
from threevp_nerfstudio.data.picture_cache import to_device

ARCHITECTURES = [75, 90]
"""Turing, the oldest that CUDA 13 compiles for, and Hopper."""
MAKERS = {"hash_grid": [2, 4], "hash_grid_cpu": [2, 4]}
"""Modules whose `_kernels` makes kernels for a number of features, and the numbers that our methods use."""

# ---- compilation -------------------------------------------------------------------------------------------------------


def modules_with_kernels() -> dict[str, list[wp.Module]]:
    """Warp modules by the name of the source file that defines them."""
    found: dict[str, list[wp.Module]] = {}
    for entry in pkgutil.iter_modules(kernels.__path__):
        module = importlib.import_module(f"{kernels.__name__}.{entry.name}")
        own = [v for v in vars(module).values() if isinstance(v, wp.Kernel) and v.func.__module__ == module.__name__]
        for features in MAKERS.get(entry.name, []):
            own += [k for k in module._kernels(features) if isinstance(k, wp.Kernel)]
        if own:
            found[entry.name] = list({id(k.module): k.module for k in own}.values())
    return found


def test_every_file_that_defines_kernels_is_looked_at():
    folder = Path(kernels.__path__[0])
    defining = {p.stem for p in folder.glob("*.py") if re.search(r"@wp\.kernel|wp\.Kernel\(", p.read_text())}
    assert defining == set(modules_with_kernels())


@pytest.mark.parametrize("name", sorted(modules_with_kernels()))
def test_kernels_compile_for_cuda_without_a_device(name: str, tmp_path: Path):
    wp.init()
    if not wp._src.context.runtime.is_cuda_enabled:
        pytest.skip("this build of Warp has no CUDA compiler; on Linux and Windows the wheel from the package index has")
    for module in modules_with_kernels()[name]:
        wp.compile_aot_module(module, arch=ARCHITECTURES, module_dir=tmp_path / module.name)
        written = [p for p in (tmp_path / module.name).iterdir() if p.suffix in (".cubin", ".ptx")]
        assert {int(re.search(r"sm(\d+)", p.name)[1]) for p in written} == set(ARCHITECTURES)
        assert all(p.stat().st_size > 1000 for p in written)


def test_compiled_kernels_are_kept_for_the_next_run(tmp_path: Path):
    code = "import torch\nfrom threevp_nerfstudio.engine.device import _warp_works\nassert _warp_works(torch.device('cpu'))"
    seen = []
    for _ in range(2):
        environment = {**os.environ, "WARP_CACHE_PATH": str(tmp_path)}
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, result.stderr
        seen.append({p.relative_to(tmp_path): p.stat().st_mtime_ns for p in tmp_path.rglob("*.o")})
    assert seen[0] and seen[0] == seen[1]


# ---- waiting for the device --------------------------------------------------------------------------------------------

WAITING = {
    "aten::_local_scalar_dense": ".item(), float(), int(), bool() of a tensor",
    "aten::nonzero": "nonzero(): the size of the result has to be known",
    "aten::_unique2": "unique(): the same",
    "aten::masked_select": "the same",
    "aten::repeat_interleave.Tensor": "the same",
    "aten::equal": "a bool on the host",
    "boolean index": "x[mask]: nonzero() in disguise",
    "host copy": ".cpu(), .numpy(), .tolist()",
}
BUDGET = {
    "aten::_local_scalar_dense": 2,  # the number of the batch's samples, and of those in the face: they differ from step to step
}
"""How often a training step may wait for the device, and why. Lower is better; raise it only with a reason."""


class Waits(TorchDispatchMode):
    """Counts operations whose result, or its size, the host has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if name in WAITING:
            self.counts[name] += 1
        elif name.startswith(("aten::index.", "aten::index_put")):
            indices = args[1] if len(args) > 1 else ()
            self.counts["boolean index"] += sum(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
        return function(*args, **(kwargs or {}))


class HostCopies(TorchFunctionMode):
    """Counts what dispatch does not see."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in ("cpu", "numpy", "tolist"):
            self.counts["host copy"] += 1
        return function(*args, **(kwargs or {}))


def test_a_sum_of_waits_is_seen():
    x = torch.arange(4.0)
    with Waits() as waits, HostCopies(waits.counts):
        x[x > 1], float(x[0]), x.tolist(), (x > 1).nonzero(), torch.unique(x)
    assert waits.counts == {
        "boolean index": 1, "aten::nonzero": 2, "aten::_local_scalar_dense": 1, "host copy": 1, "aten::_unique2": 1,
    } or waits.counts["aten::nonzero"] == 1  # whether indexing shows its nonzero depends on torch's version  # fmt: skip


@pytest.fixture(scope="module")
def step_waits(tiny_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
    """Of one training step in the middle of training, the data and the occupancy update included."""
    trainer = tiny_trainer(tiny_capture, tmp_path_factory.mktemp("waits"))
    trainer.guard.check_every = 10  # as on CUDA
    model = trainer.pipeline.model
    for step in range(3):
        model.before_step(step)
        trainer.train_iteration(step)
        model.after_step(step)
    with Waits() as waits, HostCopies(waits.counts):
        model.before_step(3)
        trainer.train_iteration(3)
        model.after_step(3)
    return Counter({name: n for name, n in waits.counts.items() if n})


def test_a_training_step_waits_for_the_device_no_more_than_is_written_down(step_waits: Counter[str]):
    over = {name: f"{n} times, {BUDGET.get(name, 0)} allowed: {WAITING[name]}" for name, n in step_waits.items() if n > BUDGET.get(name, 0)}
    assert not over


def test_pictures_and_cameras_go_through_pinned_memory_only_to_a_cuda_device(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        calls.append("pinned")
        return tensor

    def to(tensor: torch.Tensor, device: torch.device | str, non_blocking: bool = False) -> torch.Tensor:
        calls.append((str(device), non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    for device in ("cpu", "cuda:1"):
        to_device(torch.zeros(3), device)
    assert calls == [("cpu", False), "pinned", ("cuda:1", True)]


# ---- precision ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_within_the_networks(dtype: torch.dtype, tiny_capture: Path, tmp_path: Path):
    torch.manual_seed(0)
    model = tiny_trainer(tiny_capture, tmp_path).pipeline.model
    field = model.field
    x = torch.rand(200, 3) * (field.box[1] - field.box[0]) + field.box[0]
    light = torch.eye(3)[:, :2].expand(200, 3, 2)
    exact = field.density_at(x)
    rgb = field.color(exact[1], light, torch.nn.functional.normalize(x, dim=-1))[0]
    field.network_dtype = dtype
    density, features = field.density_at(x)
    assert density.dtype == features.dtype == torch.float32
    torch.testing.assert_close(density, exact[0], rtol=0.02, atol=1e-3)
    torch.testing.assert_close(field.color(features, light, x)[0], rgb, rtol=0, atol=0.01)
    density.sum().backward()
    assert field.grid.table.grad.dtype == torch.float32 and torch.isfinite(field.grid.table.grad).all()
    assert model.canonical.posed_vertices(model.performance.neutral()).dtype == torch.float32
