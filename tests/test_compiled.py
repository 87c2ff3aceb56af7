"""torch.compile of the networks: asked for it is used, and where it fails training goes on without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny_training import tiny_trainer
from threevp_nerfstudio.model import compiled
from threevp_nerfstudio.model.compiled import CompiledNetwork
from threevp_nerfstudio.model.networks import mlp


def eager(network: nn.Module, dynamic: bool) -> nn.Module:
    """torch.compile without a compiler behind it: what is traced is run as it is."""
    assert dynamic
    return COMPILE(network, dynamic=True, backend="aot_eager")


COMPILE = torch.compile


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(compiled.CONSOLE, "print", said.append)
    return said


def test_a_compiled_network_is_the_same_function_for_any_number_of_rows(monkeypatch: pytest.MonkeyPatch, warnings: list[str]):
    monkeypatch.setattr(torch, "compile", eager)
    network = mlp([8, 16, 3])
    run = CompiledNetwork(network)
    for rows in (5, 1, 200):
        x = torch.randn(rows, 8, requires_grad=True)
        gradients = [torch.autograd.grad(call(x).square().sum(), [x, *network.parameters()]) for call in (run, network)]
        torch.testing.assert_close(run(x), network(x))
        for got, wanted in zip(*gradients, strict=True):
            torch.testing.assert_close(got, wanted)
    with torch.no_grad():
        torch.testing.assert_close(run(x), network(x))
    assert run.run is not network and warnings == []


class Broken(nn.Module):
    """Compiles, and fails where it is told to."""

    def __init__(self, network: nn.Module, where: str) -> None:
        super().__init__()
        self.network, self.where = network, where

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.where == "forward":
            raise RuntimeError("no compiler found\nand more")
        y = self.network(x)
        if y.requires_grad:
            y.register_hook(self.fail)
        return y

    def fail(self, gradient: torch.Tensor) -> None:
        raise RuntimeError("no compiler found\nand more")


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_what_fails_to_compile_runs_as_it_is_with_one_warning(
    where: str, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
):
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: Broken(network, where))
    network = mlp([8, 16, 3])
    run = CompiledNetwork(network)
    x = torch.randn(5, 8)
    for _ in range(2):
        run(x).sum().backward()
        torch.testing.assert_close(run(x), network(x))
    assert len(warnings) == 1 and "no compiler found" in warnings[0] and "more" not in warnings[0]


def test_memory_that_runs_out_is_not_blamed_on_the_compiler(monkeypatch: pytest.MonkeyPatch, warnings: list[str]):
    def full(network: nn.Module, dynamic: bool):
        def run(x: torch.Tensor) -> torch.Tensor:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

        return run

    monkeypatch.setattr(torch, "compile", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        CompiledNetwork(mlp([8, 3]))(torch.randn(5, 8))
    assert warnings == []


def test_training_with_compiled_networks_keeps_the_names_in_its_checkpoints(
    tiny_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
):
    monkeypatch.setattr(torch, "compile", eager)
    losses, names = [], []
    for compile_networks in (False, True):

        def before(config, on=compile_networks):
            config.pipeline.model.compile_networks = on

        torch.manual_seed(0)
        trainer = tiny_trainer(tiny_capture, tmp_path / str(compile_networks), before)
        assert bool(trainer.pipeline.model.field.compiled) == compile_networks
        losses.append([float(trainer.train_iteration(step)[0]) for step in range(3)])
        names.append(list(trainer.pipeline.state_dict()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert names[1] == names[0] and not any("torch.compile" in said for said in warnings)
