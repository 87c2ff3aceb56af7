"""Averaged weights: the right mean, shown in eval mode, kept through checkpoints, out of training's way."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny_training import tiny_trainer
from threevp_nerfstudio.model.averaging import AveragedWeights


class Parent(nn.Module):
    """A module and its average, as a model has them."""

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        self.field = nn.Linear(2, 1)
        self.averaged = AveragedWeights(self.field, decay)

    def set(self, value: float) -> None:
        with torch.no_grad():
            for p in self.field.parameters():
                p.fill_(value)

    @property
    def value(self) -> float:
        return float(self.field.weight[0, 0])


def trained(values: list[float], decay: float = 0.9) -> Parent:
    parent = Parent(decay)
    for value in values:
        parent.set(value)
        parent.averaged.update()
    return parent


def test_first_the_plain_mean_then_the_exponential_one():
    values = [1.0, 2.0, 6.0]
    assert trained(values).eval().value == pytest.approx(3.0)
    values = list(range(60))
    expected = 0.0
    for n, value in enumerate(values):
        expected += max(1.0 / (n + 1), 0.1) * (value - expected)
    assert trained(values).eval().value == pytest.approx(expected, rel=1e-5)


def test_several_steps_at_once_count_as_many():
    one, four = trained([0.0] * 30), trained([0.0] * 30)
    for parent, times, steps in ((one, 4, 1), (four, 1, 4)):
        parent.set(1.0)
        for _ in range(times):
            parent.averaged.update(steps)
    assert one.eval().value == pytest.approx(four.eval().value)


def test_training_goes_on_from_the_weights_as_they_are():
    parent = trained([1.0, 3.0])
    weight = parent.field.weight
    assert (parent.eval().value, parent.train().value) == (2.0, 3.0)
    assert parent.field.weight is weight  # optimisers hold on to it
    parent.eval().eval().train()
    parent.set(8.0)
    parent.averaged.update()
    assert (parent.eval().value, parent.train().value) == (4.0, 8.0)


def test_without_an_update_nothing_is_swapped():
    parent = Parent()
    before = parent.value
    assert parent.eval().value == parent.train().value == before


@pytest.mark.parametrize("saved_in", ["train", "eval"])
@pytest.mark.parametrize("loaded_in", ["train", "eval"])
def test_a_state_dict_keeps_both_whatever_was_shown(saved_in: str, loaded_in: str):
    state = trained([1.0, 3.0]).train(saved_in == "train").state_dict()
    other = trained([7.0]).train(loaded_in == "train")
    other.load_state_dict(state)
    assert (other.eval().value, other.train().value) == (2.0, 3.0)
    other.averaged.update()
    assert other.eval().value == pytest.approx(2.0 + 1.0 / 3.0)


def test_a_state_dict_without_an_average_is_shown_as_it_is():
    state = Parent().state_dict()
    other = trained([5.0, 7.0])
    other.load_state_dict(state)
    assert other.eval().value == other.train().value == float(state["field.weight"][0, 0])


def test_a_state_of_something_else_changes_nothing():
    parent = trained([1.0, 3.0])
    parent.load_state_dict({}, strict=False)
    assert (parent.eval().value, parent.train().value) == (2.0, 3.0)


def test_a_run_saves_shows_and_resumes_its_average(tiny_capture: Path, tmp_path: Path):
    def early(config) -> None:
        config.pipeline.model.average_start = 8

    trainer = tiny_trainer(tiny_capture, tmp_path, early, max_num_iterations=20)
    trainer.train()
    model = trainer.pipeline.model
    assert model.averaged.updates == 3
    live = model.train().field.grid.table.detach().clone()
    shown = model.eval().field.grid.table.detach().clone()
    assert not torch.equal(live, shown)

    folder = trainer.checkpoint_dir
    resumed = tiny_trainer(tiny_capture, tmp_path, early, load_dir=folder, max_num_iterations=4)
    model = resumed.pipeline.model
    assert torch.equal(model.train().field.grid.table, live)
    assert torch.equal(model.eval().field.grid.table, shown)
    resumed.train()
    assert model.averaged.updates == 4
