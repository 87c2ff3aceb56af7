"""Occupancy of canonical space: which cells the field fills, and how densely.

Canonical space does not move, so one grid serves all frames. It starts as the shell round the template and is thinned
out while the field is trained (as in Instant-NGP, but there is only one level, and its cells follow the subject).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from threevp_nerfstudio.disk_cache import cached
from threevp_nerfstudio.kernels.composite import vote
from threevp_nerfstudio.kernels.look import CORE, HIDDEN, OccupancyView

MAX_SKIP = 6
SEEN = 0.02
"""Transmittance of a ray at a sample that can still be seen."""
SEEN_VOTES = 32.0
"""One sample that is seen outweighs so many that are not."""
HIDDEN_VOTES = 16.0
"""So many more samples that are not seen make a cell hidden."""
CORE_THICKNESS = 0.03
"""Metres of the core that are marked: more than a ray can jump."""


@dataclass
class OccupancyConfig:
    """The shell round the template, and how it is thinned out."""

    outside: float = 0.06
    """Metres off the template in which there may be something: hair and clothes. Raise for long or high hair."""
    inside: float = 0.012
    """Metres under the template's surface in which there may be something. Rays end below: raise it where the template
    is larger than the person."""
    cell: float = 0.006
    """Side of a canonical cell, metres."""
    carve: bool = True
    """Empty the cells that the mattes show to be background, before training."""
    threshold: float = 5.0
    """Density (1/m) below which a cell counts as empty."""
    warmup: int = 150
    """Steps before cells are emptied."""
    cells_per_step: int = 1536
    """Cells evaluated per training step."""
    update_every: int = 8
    """Steps whose cells are evaluated at once: many in a row find the hash tables in the processor's cache."""
    decay: float = 0.7
    """Of a cell's density at each evaluation."""
    refresh_every: int = 32
    """Steps between rebuilds of what the marcher skips."""


def shell_cells(
    vertices: np.ndarray, faces: np.ndarray, box: np.ndarray, cell: float, outside: float, inside: float
) -> tuple[np.ndarray, np.ndarray]:
    """Cells of the canonical box (X, Y, Z bool): those within `outside` metres off the template and `inside` under it,
    and those deeper inside (the core), where no ray gets to."""
    cells = cached(
        "shell", (vertices, faces, box, cell, outside, inside), lambda: _shell_cells(vertices, faces, box, cell, outside, inside)
    )
    return cells["shell"], cells["core"]


def _shell_cells(
    vertices: np.ndarray, faces: np.ndarray, box: np.ndarray, cell: float, outside: float, inside: float
) -> dict[str, np.ndarray]:
    from threevp_nerfstudio.kernels.surface import signed_distance

    dims = np.maximum(np.ceil((box[1] - box[0]) / cell).astype(int), 1)
    axes = [box[0][a] + (np.arange(dims[a]) + 0.5) * cell for a in range(3)]
    centers = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3).astype(np.float32)
    distance = signed_distance(vertices, faces, centers, max_distance=max(outside, inside + CORE_THICKNESS))
    slack = cell * 3**0.5 / 2
    keep = (distance < outside + slack) & (distance > -inside - slack)
    return {"shell": keep.reshape(dims), "core": (distance <= -inside - slack).reshape(dims)}


class CanonicalOccupancy(nn.Module):
    """Per canonical cell: its density (is there anything?), and whether any light gets there (can it be seen?).

    Args:
        shell: cells that may ever be occupied.
        core: cells at which rays end.
        origin: lower corner of the grid, metres.
        cell: side of a cell, metres.
        initial: density at the start, 1/m: high enough to be occupied until the field says otherwise.
    """

    def __init__(self, shell: Tensor, core: Tensor, origin: Tensor, cell: float, initial: float = 10.0) -> None:
        super().__init__()
        self.register_buffer("shell", shell)
        self.register_buffer("core", core)
        self.register_buffer("density", torch.where(shell, initial, 0.0).float())
        self.register_buffer("unseen", torch.zeros(shell.shape))
        self.register_buffer("skip", torch.zeros(shell.shape, dtype=torch.uint8))
        self.register_buffer("carved", torch.zeros((), dtype=torch.bool))
        self.register_buffer("origin", origin.float())
        self.cell = cell
        self.is_carved = False
        """`carved`, where asking does not wait for the device."""
        self._origin = tuple(float(v) for v in origin)
        self.register_buffer("active", shell.flatten().nonzero().squeeze(-1), persistent=False)
        self.refresh(threshold=0.0)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        for name in ("shell", "core", "density", "unseen", "skip"):
            value = state_dict.get(prefix + name)
            if value is not None and value.shape != getattr(self, name).shape:
                setattr(self, name, torch.empty_like(value, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.active = self.shell.flatten().nonzero().squeeze(-1)
        self.is_carved = bool(self.carved)
        self._origin = tuple(self.origin.tolist())

    @property
    def view(self) -> OccupancyView:
        return OccupancyView(self.skip, self._origin, self.cell)

    @property
    def occupied_fraction(self) -> float:
        """Occupied part of the shell."""
        code = self.skip.flatten()[self.active]
        return float(((code == 0) | (code == HIDDEN)).float().mean())

    @property
    def hidden_fraction(self) -> float:
        """Hidden part of the shell."""
        return float((self.skip.flatten()[self.active] == HIDDEN).float().mean())

    def centers(self) -> Float[Tensor, "N 3"]:
        """Centres of the cells of shell and core, metres; the order in which `carve` takes its answers."""
        return self.origin + ((self.shell | self.core).nonzero() + 0.5) * self.cell

    @torch.no_grad()
    def carve(self, empty: Bool[Tensor, "N"]) -> None:
        """Take cells out of shell and core for good."""
        index = (self.shell | self.core).nonzero()[empty].unbind(-1)
        self.shell[index] = False
        self.core[index] = False
        self.density[index] = 0.0
        self.carved.fill_(True)
        self.is_carved = True
        self.active = self.shell.flatten().nonzero().squeeze(-1)
        self.refresh(threshold=0.0)

    @torch.no_grad()
    def update(
        self, density: Callable[[Float[Tensor, "N 3"]], Float[Tensor, "N"]], count: int, decay: float, seed: int
    ) -> None:
        """Evaluate `count` random cells of the shell at random points and blend the result in."""
        generator = torch.Generator(device=self.active.device).manual_seed(seed)
        pick = torch.randint(len(self.active), (count,), generator=generator, device=self.active.device)
        cells = self.active[pick]
        _, Y, Z = self.shell.shape
        index = torch.stack([cells // (Y * Z), (cells // Z) % Y, cells % Z], -1)
        jitter = torch.rand(count, 3, generator=generator, device=cells.device)
        value = density(self.origin + (index + jitter) * self.cell)
        flat = self.density.view(-1)
        flat[cells] = torch.maximum(flat[cells] * decay, value)

    @torch.no_grad()
    def observe(self, position: Float[Tensor, "N 3"], transmittance: Float[Tensor, "N"]) -> None:
        """Note how much light samples of training rays had left. What is seen from somewhere now and then counts as seen:
        the inside of the mouth is hidden most of the time."""
        vote(self.unseen, position.detach(), transmittance, self._origin, self.cell, SEEN, -SEEN_VOTES, 1.0)

    @torch.no_grad()
    def share(self) -> None:
        """Average what was observed over all processes of a distributed run: each saw rays of its own."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.unseen)
            self.unseen /= torch.distributed.get_world_size()

    @torch.no_grad()
    def refresh(self, threshold: float) -> None:
        """Recompute what the marcher skips: cells above `threshold` (1/m) and those that share a side with one stay, so
        that what is filled can grow."""
        self.unseen.clamp_(-4 * SEEN_VOTES, 4 * SEEN_VOTES)
        occupied = self.shell & (self.density > threshold)
        reached = occupied.clone()
        for axis in range(3):
            n = occupied.shape[axis]
            reached.narrow(axis, 1, n - 1).logical_or_(occupied.narrow(axis, 0, n - 1))
            reached.narrow(axis, 0, n - 1).logical_or_(occupied.narrow(axis, 1, n - 1))
        reached &= self.shell
        skip = torch.where(reached, 0, 1).to(torch.uint8)
        for _ in range(MAX_SKIP):
            reached = _dilate(reached)
            skip += ~reached
        hidden = self.shell & (skip == 0) & (self.unseen >= HIDDEN_VOTES)
        self.skip.copy_(skip.masked_fill_(hidden, HIDDEN).masked_fill_(self.core, CORE))


def _dilate(mask: Tensor) -> Tensor:
    """One cell in every direction, corners included."""
    x = mask.float()[None]
    for axis in range(3):
        y = x.movedim(axis + 1, -1)
        shape = y.shape
        x = F.max_pool1d(y.reshape(1, -1, shape[-1]), 3, 1, 1).view(shape).movedim(-1, axis + 1)
    return x[0] > 0
