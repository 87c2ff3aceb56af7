"""Steps whose loss or gradients are not finite are left out, without waiting for the device in each step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import Optimizer

LIMIT = 10
"""Left-out steps in a row after which training stops."""


def all_finite(tensors: Iterable[Tensor]) -> Bool[Tensor, ""]:
    """Whether every number of the tensors is finite, as a scalar on their device."""
    tensors = [t for t in tensors if t.is_floating_point() and t.numel()]
    if not tensors:
        return torch.tensor(True)
    return torch.isfinite(torch.stack(torch._foreach_norm(tensors, float("inf")))).all()


class StepGuard:
    """Counts the steps that were left out, on the device, and looks at the count now and then.

    Fused optimisers take a `found_inf` flag and then leave their parameters alone; others need the answer on the host.

    Args:
        device: of the parameters.
        check_every: steps between looks at the count; each waits for the device.
    """

    def __init__(self, device: str | torch.device, check_every: int) -> None:
        self.check_every = check_every
        # left out: in all, in a row now, in a row at most
        self._counts: Float[Tensor, "3"] = torch.zeros(3, device=device)
        self._since_check = 0
        self.skipped = 0
        """Steps left out so far, as of the last look."""

    def arm(self, tensors: Iterable[Tensor], optimizers: Iterable[Optimizer]) -> bool:
        """Call between backward and the optimisers' steps with everything that has to be finite.

        Returns:
            whether the optimisers may step. Fused ones may always: they look at the flag that is set here.
        """
        bad = (~all_finite(tensors)).float().to(self._counts.device)
        in_row = (self._counts[1] + 1.0) * bad
        self._counts = torch.stack([self._counts[0] + bad, in_row, torch.maximum(self._counts[2], in_row)])
        self._since_check += 1
        optimizers = list(optimizers)
        fused = [o for o in optimizers if o.defaults.get("fused")]
        for optimizer in fused:
            optimizer.found_inf = bad
        return len(fused) == len(optimizers) or not bool(bad)

    def stop(self, now: bool = False) -> bool:
        """Whether `LIMIT` steps in a row were left out. Looks only every `check_every` calls, unless `now`."""
        if not now and self._since_check < self.check_every:
            return False
        self._since_check = 0
        total, _, worst = self._counts.tolist()
        self.skipped = int(total)
        return worst >= LIMIT
