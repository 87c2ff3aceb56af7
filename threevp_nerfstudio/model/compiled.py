"""Networks through torch.compile where that works, and as they are where it does not."""

from __future__ import annotations

import torch
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn

from threevp_nerfstudio.model.chunks import is_out_of_memory

TRIAL = 64
"""Rows of the input that a network is first tried with, forward and backward."""


class CompiledNetwork:
    """Calls a network compiled for batches of any size.

    Not a module: the network stays where it is, so that checkpoints do not tell whether it was compiled. If compiling or
    running it fails, there is one warning and the network runs as it is from then on.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.run = torch.compile(network, dynamic=True)
        self.tried_backward = False

    def __call__(self, x: Float[Tensor, "N A"]) -> Float[Tensor, "N B"]:
        if self.run is self.network:
            return self.network(x)
        try:
            if torch.is_grad_enabled() and not self.tried_backward:
                self._try_backward(x.detach()[:TRIAL])
            return self.run(x)
        except Exception as error:  # whatever a compiler, a driver or an old device comes up with
            if is_out_of_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            CONSOLE.print(f"[bold yellow]Warning: torch.compile failed ({reason}). The networks run without it.")
            self.run = self.network
            return self.network(x)

    def _try_backward(self, x: Float[Tensor, "N A"]) -> None:
        """Its compilation is put off until it is run, where nobody could catch what goes wrong."""
        x = x.clone().requires_grad_()
        torch.autograd.grad(self.run(x).sum(), [x, *self.network.parameters()])
        self.tried_backward = True
