"""Rendering of pictures: rays of one pose, without gradients.

Rays are walked in parts of a few samples. After each part the field has said which of them still let light through,
and only those go on: most rays end two or three samples behind the surface. Colour is asked for samples that are seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from threevp_nerfstudio.geometry.vectors import unit
from threevp_nerfstudio.kernels.hull import PosedHull
from threevp_nerfstudio.kernels.march import MarchedSamples
from threevp_nerfstudio.kernels.surface import PosedSurface
from threevp_nerfstudio.model.field import CanonicalSamples, ThreeVPField
from threevp_nerfstudio.model.performance import PoseState
from threevp_nerfstudio.model.volume import Place, accumulate, over, packed_weights

HULL_CELL = 0.016
"""Side of a cell of the hull that rays of a picture are marched in, metres."""
INVISIBLE = 1e-4
"""Weight below which a sample's colour is not worth its network: 32 of them change no 8-bit value."""
OPAQUE = 1e-3
"""Transmittance at which a ray ends: a quarter of an 8-bit step."""
PART_SAMPLES = (4, 4, 8, 16, 32)
"""Samples of each part of the walk; the last is repeated."""

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


class _Film:
    """What R rays have gathered so far."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.rgb = torch.zeros(count, 3, device=device)
        self.accumulation = torch.zeros(count, device=device)
        self.depth = torch.zeros(count, device=device)
        self.transmittance = torch.ones(count, device=device)
        self.extra: dict[str, Tensor] = {}

    def add_extra(self, name: str, ray: Tensor, value: Tensor) -> None:
        if name not in self.extra:
            self.extra[name] = torch.zeros_like(self.depth)
        self.extra[name].index_add_(0, ray, value)


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
    film = _Film(len(origins), origins.device)
    active = torch.arange(len(origins), device=origins.device)
    start = torch.zeros(len(origins), dtype=torch.int32, device=origins.device)
    part = 0
    while len(active):
        room = PART_SAMPLES[min(part, len(PART_SAMPLES) - 1)]
        marched = march(origins[active], directions[active], start, room)
        _add_part(film, active, marched, field, directions, state, conditioning, inspect)
        on = ((marched.next >= 0) & (film.transmittance[active] > OPAQUE)).nonzero().squeeze(-1)
        active, start, part = active[on], marched.next[on], part + 1
    out = {
        "rgb": over(film.rgb, film.accumulation, background).clamp(0.0, 1.0),
        "accumulation": film.accumulation[:, None],
        "depth": (film.depth / film.accumulation.clamp_min(1e-6))[:, None],
    }
    return out | {name: value[:, None] for name, value in film.extra.items()}


def _add_part(
    film: _Film,
    active: Int[Tensor, "A"],
    marched: MarchedSamples,
    field: ThreeVPField,
    directions: Float[Tensor, "R 3"],
    state: PoseState,
    conditioning: Float[Tensor, "1 C"],
    inspect: Inspection | None,
) -> None:
    """Evaluate one part of the walk of the active rays and put it behind what they have gathered."""
    hit = marched.count.nonzero().squeeze(-1)
    if len(hit) == 0 and inspect is None:
        return
    rays, place = active[hit], marched.mask[hit].nonzero(as_tuple=True)
    samples = _samples(marched, hit, place, directions[rays], state, conditioning)
    density, features, displacement = field.geometry(samples)
    width, t = marched.width[hit], marched.t[hit]
    weights = packed_weights(density, width, place) * film.transmittance[rays, None]
    packed = weights[place]
    seen = (packed > INVISIBLE).nonzero().squeeze(-1)
    rgb = torch.zeros(len(packed), 3, device=packed.device)
    rgb[seen], _ = field.color(features[seen], unit(samples.light[seen], dim=-2), unit(samples.direction[seen]))
    rendered = accumulate(weights, rgb, t, place)
    film.rgb[rays] += rendered.rgb
    film.accumulation[rays] += rendered.accumulation
    film.depth[rays] += rendered.depth
    film.transmittance[rays] = 1.0 - film.accumulation[rays]
    if inspect is not None:
        ray = rays[place[0]]
        for name, value in inspect(field, samples, displacement).items():
            film.add_extra(name, ray, packed * value)


def _samples(
    marched: MarchedSamples,
    hit: Int[Tensor, "H"],
    place: Place,
    directions: Float[Tensor, "H 3"],
    state: PoseState,
    conditioning: Float[Tensor, "1 C"],
) -> CanonicalSamples:
    """Packed samples; light and direction are not yet of unit length."""
    ray, slot = place
    source = hit[ray]
    M = marched.M[source, slot]
    return CanonicalSamples(
        position=marched.position[source, slot],
        light=M @ state.room[0, :, :2],
        direction=(M @ directions[ray, :, None]).squeeze(-1),
        conditioning=conditioning,
        frame=torch.zeros(len(ray), dtype=torch.int64, device=M.device),
    )
