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

import torch
from jaxtyping import Float
from torch import Tensor

from threevp_nerfstudio.geometry.vectors import unit
from threevp_nerfstudio.kernels.bank import FreshRays, MappedRays, RayBatch, choose, pack, store


class RayBank:
    """A ring of mapped rays on one device."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.storage: MappedRays | None = None
        self.filled = 0
        self.next = 0

    def insert(self, rays: FreshRays) -> None:
        """Map rays, in place of the oldest; the last ones, if there are more than the bank holds."""
        if self.storage is None:
            pixels = rays.patch.numel() // (4 * len(rays))
            self.storage = MappedRays.room_for(self.capacity, rays.samples.t.shape[1], pixels, rays.samples.t.device)
        store(rays, self.storage, self.next)
        count = min(len(rays), self.capacity)
        self.next = (self.next + count) % self.capacity
        self.filled = min(self.filled + count, self.capacity)

    def draw(
        self, count: int | None, seed: int, *, moved: bool = True, newest: int = 0, turned: float = 0.0
    ) -> RayBatch:
        """`count` rays, uniformly with replacement (None: each once, in order), each moved to one of the pixels round its own.

        Args:
            moved: False leaves them as they were mapped.
            newest: so many rays behind them are the newest of the bank, as they were mapped, before one background.
            turned: share of rays whose light is turned, see `choose`.
        """
        assert self.storage is not None and newest <= self.filled, "not so many rays were inserted yet"
        choice = choose(
            self.storage,
            (self.filled if count is None else count) + newest,
            filled=self.filled,
            next=self.next,
            seed=seed,
            in_order=count is None,
            moved=moved,
            newest=newest,
            turned=turned,
        )
        return pack(self.storage, choice)


def local_frames(
    M: Float[Tensor, "R S 3 3"],
    room: Float[Tensor, "R 3 3"],
    directions: Float[Tensor, "R 3"],
    across: Float[Tensor, "R 3 2"],
) -> tuple[Float[Tensor, "R S 3 2"], Float[Tensor, "R S 3"], Float[Tensor, "R S 3 2"]]:
    """The room's x and y axes (unit), the direction, and its changes across pixels, in the local canonical frame of each
    sample. What `store` works out in its kernel, in torch."""
    both = torch.cat([room[:, :, :2], directions[:, :, None], across], -1)
    local = torch.einsum("rsij,rjk->rsik", M, both)
    return unit(local[..., :2], dim=-2), local[..., 2], local[..., 3:]


def turned_light(light: Float[Tensor, "N 3 2"], angle: Float[Tensor, "N"]) -> Float[Tensor, "N 3 2"]:
    """The room turned about its vertical axis: its x and y axes in local canonical frames, before and after. What `pack` works
    out in its kernel, in torch."""
    x, y = light.unbind(-1)
    c, s = angle.cos()[:, None], angle.sin()[:, None]
    return unit(torch.stack([c * x - s * y, s * x + c * y], -1), dim=-2)
