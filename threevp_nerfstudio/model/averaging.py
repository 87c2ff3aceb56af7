"""Averaging the weights over training: what pictures are made of.

Steps of a high rate leave each weight trembling round where it belongs; the mean over the last thousand steps or so does
not tremble. Training itself goes on from the weights as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class AveragedWeights(nn.Module):
    """Exponential moving average of another module's parameters.

    In train mode the module holds the weights that are trained, in eval mode their average: `train()` and `eval()` of a
    parent swap them, without a copy. Both go into the state dict, so that a run can be resumed, and whatever loads a
    checkpoint and calls `eval()` shows the average. Before the first `update` there is no average and nothing is swapped.

    Args:
        module: whose parameters are averaged. It stays the parent's: register this after it.
        decay: what one step leaves of the average so far; until enough steps are in, their plain mean is taken.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self._watched = (module,)  # in a tuple: not a part of this module
        self.decay = decay
        self.updates = 0
        self.shown = False
        """Whether the module holds the average at the moment, and `kept` the weights that are trained."""
        self.kept: dict[str, Tensor] = {}

    @property
    def parameters_of_module(self) -> dict[str, nn.Parameter]:
        return dict(self._watched[0].named_parameters())

    @torch.no_grad()
    def update(self, steps: int = 1) -> None:
        """Take the weights as they are into the average; `steps` have passed since the last time."""
        assert not self.shown, "weights are averaged in train mode"
        parameters = self.parameters_of_module
        if self.updates == 0:
            self.kept = {name: p.detach().clone() for name, p in parameters.items()}
        else:
            share = max(1.0 / (self.updates + 1), 1.0 - self.decay**steps)
            torch._foreach_lerp_(list(self.kept.values()), [p.detach() for p in parameters.values()], share)
        self.updates += 1

    def train(self, mode: bool = True) -> AveragedWeights:
        super().train(mode)
        self._show(not mode)
        return self

    def _show(self, average: bool) -> None:
        if self.shown == average or self.updates == 0:
            return
        for name, parameter in self.parameters_of_module.items():
            parameter.data, self.kept[name] = self.kept[name], parameter.data
        self.shown = average

    # ---- as a part of the parent -------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AveragedWeights:
        self.kept = {name: fn(value) for name, value in self.kept.items()}
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination, prefix: str, keep_vars: bool) -> None:
        for name, value in self.kept.items():
            destination[prefix + name] = value
        destination[prefix + "updates"] = torch.tensor(self.updates)
        destination[prefix + "shown"] = torch.tensor(self.shown)

    def _load_from_state_dict(self, state_dict, prefix: str, *args, **kwargs) -> None:
        """Before the first update there was no average, and the weights are shown as they are. nerfstudio's pipeline also
        passes by with a state that holds nothing of the model: that changes nothing."""
        if prefix + "updates" not in state_dict:
            return
        self.kept, self.shown, self.updates = {}, False, int(state_dict[prefix + "updates"])
        if self.updates == 0:
            return
        self.kept = {
            name: state_dict[prefix + name].to(parameter).clone() for name, parameter in self.parameters_of_module.items()
        }
        self.shown = bool(state_dict[prefix + "shown"])
        self._show(not self.training)
