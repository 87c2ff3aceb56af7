"""Adam with its betas exposed, and a learning-rate decay that leaves only Python numbers in checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from nerfstudio.engine.optimizers import OptimizerConfig
from nerfstudio.engine.schedulers import Scheduler, SchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass
class AdamConfig(OptimizerConfig):
    """Adam for hash grids (Müller et al. 2022): short memory, tiny epsilon."""

    _target: type = torch.optim.Adam
    lr: float = 1e-2
    """Learning rate at the start."""
    eps: float = 1e-15
    """Small: gradients of rarely seen entries are small too."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the running means."""
    fused: bool = True
    """One kernel for the whole update."""


@dataclass
class DecayConfig(SchedulerConfig):
    """Exponential decay after a short warm-up.

    nerfstudio's own computes with numpy scalars, which end up in the checkpoint, where torch >= 2.6 refuses them.
    """

    _target: type = field(default_factory=lambda: Decay)
    steps: int = 4000
    """Steps until the final rate."""
    final: float = 0.12
    """Final rate as a fraction of the first."""
    warmup: int = 20
    """Steps of linear warm-up."""


class Decay(Scheduler):
    config: DecayConfig

    def get_scheduler(self, optimizer: Optimizer, lr_init: float) -> LambdaLR:
        config = self.config

        def factor(step: int) -> float:
            progress = min(step / max(config.steps, 1), 1.0)
            return min((step + 1) / max(config.warmup, 1), 1.0) * math.exp(progress * math.log(config.final))

        return LambdaLR(optimizer, lr_lambda=factor)
