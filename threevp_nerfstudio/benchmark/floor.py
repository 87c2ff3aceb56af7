"""What the machine cannot do faster: the arithmetic and the memory traffic of a step and of a picture, divided by what
a matrix product and a copy reach here."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from threevp_nerfstudio.benchmark.measure import Clock
from threevp_nerfstudio.engine.short_training import AvatarTrainee
from threevp_nerfstudio.model.encodings import HashGrid

BYTES = 4


@dataclass(frozen=True)
class Peaks:
    """Measured here, single precision."""

    flops: float
    """Multiplications and additions a second."""
    bytes: float
    """Read and written a second."""

    @classmethod
    def measure(cls, device: str) -> Peaks:
        clock = Clock(device)
        n = 8192 if clock.cuda else 768
        a, b = torch.rand(n, n, device=device), torch.rand(n, n, device=device)
        product = clock.repeat(lambda: a @ b, 5)
        source = torch.rand((1 << 28 if clock.cuda else 1 << 24), device=device)
        target = torch.empty_like(source)
        copy = clock.repeat(lambda: target.copy_(source), 5)
        return cls(2 * n**3 / product.low, 2 * BYTES * source.numel() / copy.low)

    def seconds(self, work: Work) -> float:
        return max(work.flops / self.flops, work.bytes / self.bytes)


@dataclass(frozen=True)
class Work:
    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, factor: float) -> Work:
        return Work(self.flops * factor, self.bytes * factor)


def networks_work(modules: list[torch.nn.Module], samples: float) -> Work:
    """Forward pass of linear layers whose activations stay in cache."""
    linear = [m for module in modules for m in module.modules() if isinstance(m, torch.nn.Linear)]
    return Work(samples * sum(2.0 * m.in_features * m.out_features for m in linear), 0.0)


def grid_work(grid: HashGrid, samples: float) -> Work:
    """Forward pass: eight corners of each level; 7 operations a corner for weights, 2 for each feature."""
    levels, _, features = grid.table.shape
    corners = samples * levels * 8
    return Work(corners * (7 + 2 * features), corners * features * BYTES)


def forward_work(trainee: AvatarTrainee, samples: float, displaced: float) -> Work:
    """The field at `samples`, of which `displaced` go through the blendfields."""
    field = trainee.model.field
    work = grid_work(field.grid, samples) + networks_work([field.density_net, field.color_net], samples)
    if field.blendfields is not None:
        work += grid_work(field.blendfields.grid, displaced) + networks_work([field.blendfields.net], displaced)
        work += Work(displaced * field.blendfields.num_fields * 6.0, 0.0)
    return work


def step_work(trainee: AvatarTrainee, samples: float, displaced: float) -> Work:
    """Forward, backward (twice the arithmetic; gradients of entries are read and written) and Adam (four numbers of
    each parameter read, three written)."""
    parameters = sum(p.numel() for p in trainee.model.parameters())
    forward = forward_work(trainee, samples, displaced)
    backward = Work(2 * forward.flops, 3 * forward.bytes)
    return forward + backward + Work(parameters * 12.0, parameters * 7.0 * BYTES)
