"""A bank of rays that are already mapped into canonical space.

Posing a frame, finding nearest triangles and mapping samples cost more than evaluating the field on a CPU, yet their
result does not change while the tracking is fixed. So each step maps a few fresh rays of a few frames, puts them into
the bank, and trains on rays drawn from all of it: one batch then spans hundreds of frames (which the blendfields need),
while only a few are posed. Fresh rays replace the oldest.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class MappedRays:
    """R training rays with room for S samples each, in coarse canonical space."""

    frame: Int[Tensor, "R"]
    target: Float[Tensor, "R 4"]
    """RGB with straight alpha, 0..1."""
    weight: Float[Tensor, "R"]
    """Of the ray in the photometric loss."""
    t: Float[Tensor, "R S"]
    width: Float[Tensor, "R S"]
    position: Float[Tensor, "R S 3"]
    light: Float[Tensor, "R S 3 2"]
    direction: Float[Tensor, "R S 3"]
    count: Int[Tensor, "R"]

    @property
    def mask(self) -> Bool[Tensor, "R S"]:
        return torch.arange(self.t.shape[1], device=self.t.device) < self.count[:, None]

    def __len__(self) -> int:
        return len(self.frame)

    def rows(self, index: Tensor) -> MappedRays:
        return MappedRays(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


HALF = ("light", "direction")
"""Kept in half precision: unit vectors."""
PER_SAMPLE = ("t", "width", "position", "light", "direction")


class RayBank:
    """A ring of mapped rays on one device."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.storage: MappedRays | None = None
        self.filled = 0
        self.next = 0

    def insert(self, rays: MappedRays) -> None:
        """Put rays in place of the oldest."""
        if len(rays) > self.capacity:
            rays = rays.rows(torch.arange(self.capacity, device=rays.t.device))
        if self.storage is None:
            self.storage = MappedRays(**{f.name: self._room(f.name, getattr(rays, f.name)) for f in fields(rays)})
        first = min(len(rays), self.capacity - self.next)
        for entry in fields(rays):
            room, value = getattr(self.storage, entry.name), getattr(rays, entry.name)
            room[self.next : self.next + first] = value[:first]
            room[: len(rays) - first] = value[first:]
        self.next = (self.next + len(rays)) % self.capacity
        self.filled = min(self.filled + len(rays), self.capacity)

    def draw(self, count: int, generator: torch.Generator) -> tuple[MappedRays, Int[Tensor, "n"]]:
        """`count` rays, uniformly with replacement, and where they are in the bank."""
        assert self.storage is not None, "nothing was inserted yet"
        index = torch.randint(self.filled, (count,), generator=generator, device=generator.device)
        index = index.to(self.storage.t.device)
        return self.storage.rows(index), index

    def thin(self, index: Int[Tensor, "n"], rays: MappedRays, keep: Bool[Tensor, "n S"]) -> None:
        """Forget those samples of drawn rays that contribute nothing, until the rays are replaced by fresh ones."""
        order = torch.argsort((~keep).to(torch.uint8), dim=1, stable=True)
        for name in PER_SAMPLE:
            value = getattr(rays, name)
            expanded = order.view(*order.shape, *[1] * (value.ndim - 2)).expand_as(value)
            getattr(self.storage, name)[index] = value.gather(1, expanded)
        self.storage.count[index] = keep.sum(1).to(self.storage.count.dtype)

    def _room(self, name: str, value: Tensor) -> Tensor:
        dtype = torch.float16 if name in HALF else value.dtype
        return torch.empty(self.capacity, *value.shape[1:], dtype=dtype, device=value.device)
