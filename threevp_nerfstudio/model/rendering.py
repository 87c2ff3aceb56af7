"""Rendering of pictures: rays of one pose, without gradients.

Rays are walked in parts of a few samples. After each part the field has said which of them still let light through,
and only those go on: most rays end two or three samples behind the surface. Colour is asked for samples that are seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from threevp_nerfstudio.kernels.film import Film, Part, add, pack, weigh
from threevp_nerfstudio.kernels.hull import PosedHull
from threevp_nerfstudio.kernels.look import MarchedSamples
from threevp_nerfstudio.kernels.surface import PosedSurface
from threevp_nerfstudio.model.field import CanonicalSamples, ThreeVPField
from threevp_nerfstudio.model.performance import PoseState
from threevp_nerfstudio.model.volume import over

HULL_CELL = 0.016
"""Side of a cell of the hull that rays of a picture are marched in, metres."""
INVISIBLE = 1e-4
"""Weight below which a sample's colour is not worth its network: 32 of them change no 8-bit value."""
OPAQUE = 1e-3
"""Transmittance at which a ray ends: a quarter of an 8-bit step."""
PART_SAMPLES = (4, 4, 8, 16, 32)
"""Samples of each part of the walk; the last is repeated."""

TILE = (4, 8)
"""Rows and columns of the blocks of pixels whose rays are neighbours in memory, as many as a GPU's threads that go together."""

March = Callable[[Tensor, Tensor, Tensor, int], MarchedSamples]
"""Origins, directions, where to start, room: the next part of the walk."""
Inspection = Callable[[ThreeVPField, CanonicalSamples, Tensor | None], dict[str, Tensor]]
"""Further quantities (N,) of the samples of a picture, by name, from the field, the samples and their displacement. They
are averaged along each ray by what each sample contributes to the colour."""


@dataclass(frozen=True)
class StagedPose:
    """All that depends on the pose of a picture only, made once for all its rays."""

    surface: PosedSurface
    state: PoseState
    hull: PosedHull


@lru_cache(maxsize=4)
def tile_order(height: int, width: int, device: torch.device) -> tuple[Int[Tensor, "P"], Int[Tensor, "P"]]:
    """Pixels of a picture, as rows of its flat list, tile by tile; and where in that order each pixel is. Rays that go side by
    side meet the same triangles, so whoever walks them together waits less."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = TILE
    tile = (y // rows) * (width // columns + 1) + x // columns
    key = (tile * rows + y % rows) * columns + x % columns
    order = key.flatten().argsort()
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return order.to(device), place.to(device)


def render_rays(
    field: ThreeVPField,
    march: March,
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    state: PoseState,
    conditioning: Float[Tensor, "1 C"],
    background: Float[Tensor, "3"],
    inspect: Inspection | None = None,
) -> dict[str, Float[Tensor, "R _"]]:
    """rgb over the background, accumulation, expected depth, and what `inspect` adds.

    Args:
        conditioning: of the blendfields, clipped or not.
    """
    film, extra = Film.empty(len(origins), origins.device), {}
    active = torch.arange(len(origins), device=origins.device)
    start = torch.zeros(len(origins), dtype=torch.int32, device=origins.device)
    number = 0
    while len(active):
        room = PART_SAMPLES[min(number, len(PART_SAMPLES) - 1)]
        looking = directions[active]
        marched = march(origins[active], looking, start, room)
        part = pack(marched, active, looking, state.room[0])
        on = _add_part(film, extra, part, field, conditioning, inspect).nonzero().squeeze(-1)
        active, start, number = active[on], marched.next[on], number + 1
    out = {
        "rgb": over(film.rgb, film.accumulation, background).clamp(0.0, 1.0),
        "accumulation": film.accumulation[:, None],
        "depth": (film.depth / film.accumulation.clamp_min(1e-6))[:, None],
    }
    return out | {name: value[:, None] for name, value in extra.items()}


def _add_part(
    film: Film,
    extra: dict[str, Float[Tensor, "R"]],
    part: Part,
    field: ThreeVPField,
    conditioning: Float[Tensor, "1 C"],
    inspect: Inspection | None,
) -> Bool[Tensor, "A"]:
    """Evaluate one part of the walk and put it behind what its rays have gathered. Returns which of them go on."""
    frame = torch.zeros_like(part.ray)
    samples = CanonicalSamples(part.position, part.light, part.direction, conditioning, frame)
    density, features, displacement = field.geometry(samples)
    weights = weigh(film, part, density)
    if weights.device.type == "cuda":  # to look for what is seen would cost more than the colours
        rgb, _ = field.color(features, part.light, part.direction)
    else:
        seen = (weights > INVISIBLE).nonzero().squeeze(-1)
        rgb = torch.zeros(len(weights), 3, device=weights.device)
        rgb[seen], _ = field.color(features[seen], part.light[seen], part.direction[seen])
    if inspect is not None:
        for name, value in inspect(field, samples, displacement).items():
            if name not in extra:
                extra[name] = torch.zeros_like(film.depth)
            extra[name].index_add_(0, part.ray, weights * value)
    return add(film, part, weights, rgb, OPAQUE)
