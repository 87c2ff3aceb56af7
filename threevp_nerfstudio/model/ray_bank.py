"""A bank of rays that are already mapped into canonical space.

Posing a frame, finding nearest triangles and mapping samples cost more than evaluating the field on a CPU, yet their
result does not change while the tracking is fixed. So each step maps a few fresh rays of a few frames, puts them into
the bank, and trains on rays drawn from all of it: one batch then spans hundreds of frames (which the blendfields need),
while only a few are posed. Fresh rays replace the oldest.

Training on the same few rays again and again would fit their noise, so a ray is never used twice as it is: close to a
sample the map to canonical space is linear, and a drawn ray is moved to a random one of the pixels round its own, whose
colours it carries along, and along itself by a part of a step. (It must keep its hidden samples: beyond the edge of what
hides them, a neighbour sees them. Rays that had forgotten them made silhouettes grow.)
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from threevp_nerfstudio.geometry.vectors import unit
from threevp_nerfstudio.model.volume import Place


@dataclass(frozen=True)
class MappedRays:
    """R training rays with room for S samples each, in coarse canonical space."""

    frame: Int[Tensor, "R"]
    patch: UInt8[Tensor, "R P 4"]
    """RGB with straight alpha of the pixels round each ray's own, row by row; P is an odd number squared."""
    weight: Float[Tensor, "R"]
    """Of the ray in the photometric loss."""
    t: Float[Tensor, "R S"]
    width: Float[Tensor, "R S"]
    position: Float[Tensor, "R S 3"]
    across: Float[Tensor, "R S 3 2"]
    """What a step of one pixel to the right, and one down, adds to the position."""
    along: Float[Tensor, "R S 3"]
    """What a metre along the ray adds to the position: the view direction in the local canonical frame."""
    light: Float[Tensor, "R S 3 2"]
    count: Int[Tensor, "R"]

    @property
    def mask(self) -> Bool[Tensor, "R S"]:
        return torch.arange(self.t.shape[1], device=self.t.device) < self.count[:, None]

    def __len__(self) -> int:
        return len(self.frame)

    def batch(self, index: Int[Tensor, "B"], generator: torch.Generator | None = None) -> RayBatch:
        """Some of the rays to train on, their samples packed. With a `generator`, each is moved to a random pixel of its
        patch and by a random part of a step along itself; otherwise they are as they were mapped."""
        device, S = self.t.device, self.t.shape[1]
        t, width, count = self.t[index], self.width[index], self.count[index]
        ray, slot = (torch.arange(S, device=device) < count[:, None]).nonzero(as_tuple=True)
        flat = index[ray] * S + slot

        def packed(of: Tensor) -> Tensor:
            return of.flatten(0, 1).index_select(0, flat).float()

        position, along = packed(self.position), packed(self.along)
        pick = torch.full_like(index, self.patch.shape[1] // 2)
        if generator is not None:
            side = round(self.patch.shape[1] ** 0.5)
            pick = torch.randint(side * side, (len(index),), generator=generator, device=generator.device).to(device)
            slide = torch.rand(len(index), generator=generator, device=generator.device).to(device) - 0.5
            step = torch.stack([pick % side, pick // side], -1).float() - side // 2
            # all samples slide by the same part of the first interval, so that they stay in order
            slide = slide * width[:, 0]
            moved = (packed(self.across) * step[ray][:, None]).sum(-1) + along * slide[ray][:, None]
            position, t = position + moved, t + slide[:, None]
        return RayBatch(
            frame=self.frame[index],
            target=self.patch[index, pick].float() / 255.0,
            weight=self.weight[index],
            t=t,
            width=width,
            place=(ray, slot),
            position=position,
            along=along,
            light=packed(self.light),
        )


@dataclass(frozen=True)
class RayBatch:
    """R rays of a training step with room for S samples each; the N real samples are packed in ray order."""

    frame: Int[Tensor, "R"]
    target: Float[Tensor, "R 4"]
    """RGB with straight alpha of each ray's pixel, 0 to 1."""
    weight: Float[Tensor, "R"]
    """Of the ray in the photometric loss."""
    t: Float[Tensor, "R S"]
    width: Float[Tensor, "R S"]
    place: Place
    position: Float[Tensor, "N 3"]
    along: Float[Tensor, "N 3"]
    light: Float[Tensor, "N 3 2"]

    def __len__(self) -> int:
        return len(self.frame)

    def joined(self, other: RayBatch) -> RayBatch:
        """These rays, and those of `other` behind them."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.name != "place"}
        place = (torch.cat([self.place[0], other.place[0] + len(self)]), torch.cat([self.place[1], other.place[1]]))
        return RayBatch(place=place, **{name: torch.cat([a, b.to(a.dtype)]) for name, (a, b) in pairs.items()})


HALF = ("light", "along", "across")
"""Kept in half precision: directions and small steps."""


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
            rays = MappedRays(**{f.name: getattr(rays, f.name)[: self.capacity] for f in fields(rays)})
        if self.storage is None:
            self.storage = MappedRays(**{f.name: self._room(f.name, getattr(rays, f.name)) for f in fields(rays)})
        first = min(len(rays), self.capacity - self.next)
        for entry in fields(rays):
            room, value = getattr(self.storage, entry.name), getattr(rays, entry.name)
            room[self.next : self.next + first] = value[:first]
            room[: len(rays) - first] = value[first:]
        self.next = (self.next + len(rays)) % self.capacity
        self.filled = min(self.filled + len(rays), self.capacity)

    def draw(self, count: int, generator: torch.Generator) -> RayBatch:
        """`count` rays, uniformly with replacement, each moved to one of the pixels round its own."""
        assert self.storage is not None, "nothing was inserted yet"
        index = torch.randint(self.filled, (count,), generator=generator, device=generator.device)
        return self.storage.batch(index.to(self.storage.t.device), generator)

    def _room(self, name: str, value: Tensor) -> Tensor:
        dtype = torch.float16 if name in HALF else value.dtype
        return torch.empty(self.capacity, *value.shape[1:], dtype=dtype, device=value.device)


def local_frames(
    M: Float[Tensor, "R S 3 3"],
    room: Float[Tensor, "R 3 3"],
    directions: Float[Tensor, "R 3"],
    across: Float[Tensor, "R 3 2"],
) -> tuple[Float[Tensor, "R S 3 2"], Float[Tensor, "R S 3"], Float[Tensor, "R S 3 2"]]:
    """The room's x and y axes (unit), the direction, and its changes across pixels, in the local canonical frame of each
    sample."""
    both = torch.cat([room[:, :, :2], directions[:, :, None], across], -1)
    local = torch.einsum("rsij,rjk->rsik", M, both)
    return unit(local[..., :2], dim=-2), local[..., 2], local[..., 3:]


def light_turns(count: int, share: float, generator: torch.Generator, device: torch.device) -> Float[Tensor, "R"] | None:
    """Angles by which the light of each ray is turned: 90 to 270 degrees for a share of them, 0 for the others. None: no
    ray's is. Lights less far from its own each place has seen itself, while it turned in front of the camera."""
    if share <= 0.0:
        return None
    chance = torch.rand(2, count, generator=generator, device=generator.device).to(device)
    return torch.where(chance[0] < share, (0.5 + chance[1]) * torch.pi, 0.0)


def turned_light(light: Float[Tensor, "N 3 2"], angle: Float[Tensor, "N"]) -> Float[Tensor, "N 3 2"]:
    """The room turned about its vertical axis: its x and y axes in local canonical frames, before and after."""
    x, y = light.unbind(-1)
    c, s = angle.cos()[:, None], angle.sin()[:, None]
    return unit(torch.stack([c * x - s * y, s * x + c * y], -1), dim=-2)
