"""The avatar's radiance field: blendfields, canonical hash grid, density and colour.

    x^ = x_c + blendfields(x_c; jaw, psi)
    h = hash(x^)
    (sigma_0, a, f) = MLP(h)
    sigma = sigma_0 exp(A tanh(a . grain(view)))
    rgb = MLP(f, h, light, [view])

Colour sees the hash encoding itself, not only what density hands on: with the latter alone, fine differences of hue (lips)
are learned last.

`light` is the rotation of the room in the local canonical frame. The lights stand still in the room while the subject
turns, so in the avatar's own frame they turn; with one camera this is confounded with the view direction, and a field
that sees the view direction instead learns the light of the camera path.

`grain` is what density may know of the view: hair is denser looked at across its strands than along them, from either end
alike. So these are the two harmonics of the heading that are the same from opposite sides; the turn shows each place from all
of these, and looking straight up or down they vanish.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.base_field import Field
from torch import Tensor, nn

from threevp_nerfstudio.errors import CheckpointError
from threevp_nerfstudio.kernels.displace import MARGIN, displace, face_samples
from threevp_nerfstudio.kernels.heads import GRAIN, density_head, lit
from threevp_nerfstudio.model.blendfields import BlendfieldConfig, Blendfields
from threevp_nerfstudio.model.compiled import CompiledNetwork
from threevp_nerfstudio.model.encodings import HashGrid, HashGridConfig, Implementation, spherical_harmonics
from threevp_nerfstudio.model.networks import MLP, mlp

DENSITY_BIAS = 3.0
"""log of the density (1/m) that a fresh field starts with."""
MAX_LOG_DENSITY = 10.0
"""Denser is not more opaque (4 mm of it let e^-88 through), and infinite densities would make weights NaN."""


@dataclass
class FieldConfig:
    """Sizes of the canonical field, and what colour depends on."""

    grid: HashGridConfig = field(default_factory=HashGridConfig)
    """Canonical hash grid."""
    hidden: int = 64
    """Width of the networks."""
    features: int = 15
    """Features that density hands to colour, beside the hash encoding."""
    grain: float = 1.5
    """How far the logarithm of density may go with the view's heading, the same from opposite sides, as hair's does; 0: not at all."""
    expression: Literal["blendfields", "color", "none"] = "blendfields"
    """How expression enters beside the mesh: displacement fields (the method), density and colour conditioned on it
    (the paper's ablation), or not at all (coarse only)."""
    blendfields: BlendfieldConfig = field(default_factory=BlendfieldConfig)
    """Used with expression = "blendfields"."""
    appearance: Literal["light", "light+view", "view", "none"] = "light"
    """What colour depends on beside the position. "view" is the usual NeRF, for comparison."""
    light_degree: int = 2
    """Degree of the spherical harmonics in which colour sees the light, 1 to 3. Light on a matt surface is of degree 2 (Ramamoorthi
    and Hanrahan 2001). Each place has been lit from few sides only; with more, colours from other sides are invented."""
    implementation: Implementation = "warp"
    """Of the canonical hash grid. "tcnn" needs tinycudann; checkpoints are not interchangeable with it."""
    matrix_units: bool = True
    """On CPUs that multiply matrices of bfloat16 in hardware (AMX), networks run in it: a step takes a quarter less time and learns
    the same. No other device is affected; on a GPU, `--mixed-precision` is for that."""


@dataclass(frozen=True)
class CanonicalSamples:
    """Where and under which conditions the field is evaluated; N packed samples."""

    position: Float[Tensor, "N 3"]
    """Coarse canonical position, metres."""
    light: Float[Tensor, "N 3 2"]
    """The room's x and y axes in the local canonical frame, unit columns."""
    direction: Float[Tensor, "N 3"]
    """View direction in the local canonical frame, unit."""
    conditioning: Float[Tensor, "B C"]
    """Jaw pose and expression of each frame."""
    frame: Int[Tensor, "N"]
    """Row of `conditioning` for each sample."""

    def rows(self, index: Int[Tensor, "M"]) -> CanonicalSamples:
        """Some of the samples, under the same conditions."""
        return replace(
            self,
            position=self.position[index],
            light=self.light[index],
            direction=self.direction[index],
            frame=self.frame[index],
        )


class ThreeVPField(Field):
    """Density and colour in canonical space, displaced by blendfields.

    Args:
        box: lower and upper corner of the canonical box, metres.
        face_box: lower and upper corner of the part that expression can move; outside of it blendfields are zero.
        num_conditioning: number of conditioning channels C.
    """

    def __init__(
        self,
        config: FieldConfig,
        box: Float[Tensor, "2 3"],
        face_box: Float[Tensor, "2 3"],
        num_conditioning: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("box", box)
        self.register_buffer("face_box", face_box)
        self.grid = HashGrid(config.grid, config.implementation)
        condition_color = config.expression == "color"
        extra = num_conditioning if condition_color else 0
        grain_dim = GRAIN if config.grain > 0 else 0
        self.density_net = mlp([self.grid.out_dim + extra, config.hidden, 1 + config.features + grain_dim])
        light_dim = 2 * ((config.light_degree + 1) ** 2 - 1) if "light" in config.appearance else 0
        view_dim = 15 if config.appearance == "view" else 0
        features = config.features + self.grid.out_dim
        self.color_net = mlp([features + light_dim + view_dim, config.hidden, config.hidden, 3])
        self.view_net = mlp([features + 8, 16, 3]) if config.appearance == "light+view" else None
        if self.view_net is not None:
            nn.init.zeros_(self.view_net[-1].weight)
            nn.init.zeros_(self.view_net[-1].bias)
        self.blendfields = (
            Blendfields(num_conditioning, config.blendfields, config.implementation)
            if config.expression == "blendfields" and num_conditioning > 0
            else None
        )
        for network in self.networks():
            network.matrix_units = config.matrix_units
        self.blendfields_enabled = True
        self.network_dtype = torch.float32
        """Precision of the networks of density and colour; positions, grids and densities stay in single precision."""
        self.compiled: dict[nn.Module, CompiledNetwork] = {}
        """What to call in place of a network; see `compile_networks`."""

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        for name in ("density_net", "color_net"):
            layers = getattr(self, name)
            for layer in (0, len(layers) - 1):
                saved, own = state_dict.get(f"{prefix}{name}.{layer}.weight"), layers[layer].weight
                if saved is not None and saved.shape != own.shape:
                    raise CheckpointError(
                        f"the checkpoint's {name} is of another size ({tuple(saved.shape)}, here {tuple(own.shape)}): it was trained with "
                        "other settings, or by another version of threevp_nerfstudio. Train anew, or use that version."
                    )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def networks(self) -> list[MLP]:
        """Those of density and colour, and of the blendfields."""
        of_blendfields = None if self.blendfields is None else self.blendfields.net
        return [net for net in (self.density_net, self.color_net, self.view_net, of_blendfields) if net is not None]

    def compile_networks(self) -> None:
        """Run the networks of density and colour through torch.compile."""
        networks = (self.density_net, self.color_net, self.view_net)
        self.compiled = {net: CompiledNetwork(net) for net in networks if net is not None}

    def network(self, net: nn.Module, x: Float[Tensor, "N A"]) -> Float[Tensor, "N B"]:
        """A network in `network_dtype`; single precision goes in and comes out."""
        run = self.compiled.get(net, net)
        if self.network_dtype == torch.float32:
            return run(x)
        with torch.autocast(x.device.type, dtype=self.network_dtype):
            return run(x).float()

    def unit(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
        """Canonical metres to the unit cube; cells stay cubes."""
        side = (self.box[1] - self.box[0]).max()
        return ((x - self.box[0]) / side).clamp(0.0, 1.0)

    def face_window(self, x: Float[Tensor, "N 3"]) -> Float[Tensor, "N"]:
        """1 inside the part that expression moves, smoothly to 0 within its outer 2 cm."""
        inside = torch.minimum(x - self.face_box[0], self.face_box[1] - x).amin(-1)
        return (inside / float(MARGIN)).clamp(0.0, 1.0)

    def displaced(self, samples: CanonicalSamples) -> Int[Tensor, "M"]:
        """Which samples the blendfields can move: those in the face of frames that are not neutral."""
        expressive = samples.conditioning.ne(0).any(-1)
        return ((self.face_window(samples.position) > 0) & expressive[samples.frame]).nonzero().squeeze(-1)

    def displacement(
        self, samples: CanonicalSamples, index: Int[Tensor, "M"] | None = None
    ) -> Float[Tensor, "N 3"] | None:
        """Displacement by the blendfields, metres; None where there are none. `index`: what `displaced` says, if known."""
        if self.blendfields is None or not self.blendfields_enabled:
            return None
        index = self.displaced(samples) if index is None else index
        out = torch.zeros_like(samples.position)
        if len(index) == 0:
            return out
        coefficients = self.blendfields.mapping(samples.conditioning)
        position = samples.position[index]
        where = self.unit(position)
        if len(coefficients) == 1:
            moved = self.blendfields.blended(where, coefficients[0])
        else:
            moved = self.blendfields(where, coefficients[samples.frame[index]])
        return out.index_add(0, index, moved * self.face_window(position)[:, None])

    def density_at(
        self,
        x: Float[Tensor, "N 3"],
        conditioning: Float[Tensor, "N C"] | None = None,
        moving: Bool[Tensor, "N"] | None = None,
        direction: Float[Tensor, "N 3"] | None = None,
    ) -> tuple[Float[Tensor, "N"], Float[Tensor, "N D"]]:
        """Density (1/m) and features for `color` at displaced canonical positions. `moving`: positions that need a
        gradient; None: all. `direction`: of the view, in the local canonical frame, unit; None: between all headings."""
        return self._density(self.unit(x), conditioning, moving, direction)

    def _density(
        self,
        where: Float[Tensor, "N 3"],
        conditioning: Float[Tensor, "N C"] | None,
        moving: Bool[Tensor, "N"] | None,
        direction: Float[Tensor, "N 3"] | None,
    ) -> tuple[Float[Tensor, "N"], Float[Tensor, "N D"]]:
        """`density_at` for places in the unit cube."""
        encoded = h = self.grid(where, moving)
        if self.config.expression == "color":
            if conditioning is None:
                channels = self.density_net[0].in_features - h.shape[1]
                conditioning = torch.zeros(len(h), channels, device=h.device)
            h = torch.cat([h, conditioning], -1)
        head = self.network(self.density_net, h)
        numbers = {"strength": self.config.grain, "bias": DENSITY_BIAS, "ceiling": MAX_LOG_DENSITY}
        return density_head(head, encoded, direction, features=self.config.features, **numbers)

    def color(
        self, features: Float[Tensor, "N D"], light: Float[Tensor, "N 3 2"], direction: Float[Tensor, "N 3"]
    ) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"] | None]:
        """Colour, and the part of its logit that depends on the view (None where there is none)."""
        given = features
        if "light" in self.config.appearance:
            given = lit(features, light, self.config.light_degree)
        elif self.config.appearance == "view":
            given = torch.cat([features, spherical_harmonics(direction, 3)], -1)
        logit = self.network(self.color_net, given)
        residual = None
        if self.view_net is not None:
            residual = self.network(self.view_net, torch.cat([features, spherical_harmonics(direction, 2)], -1))
            logit = logit + residual
        return torch.sigmoid(logit), residual

    def geometry(self, samples: CanonicalSamples) -> tuple[Tensor, Tensor, Tensor | None]:
        """Density (N,), features (N, D) for `color`, and displacement (N, 3) or None; light plays no part."""
        conditioning = samples.conditioning[samples.frame] if self.config.expression == "color" else None
        if self.blendfields is None or not self.blendfields_enabled:
            return *self.density_at(samples.position, conditioning, direction=samples.direction), None
        if samples.position.requires_grad:
            displacement = self.displacement(samples)
            moved = samples.position + displacement
            return *self.density_at(moved, conditioning, direction=samples.direction), displacement
        place, displacement, moving = self.displaced_places(samples)
        return *self._density(place, conditioning, moving, samples.direction), displacement

    def displaced_places(self, samples: CanonicalSamples) -> tuple[Tensor, Tensor, Tensor]:
        """Places (N, 3) in the unit cube after displacement, the displacement (N, 3) in metres, and which samples (N,) it can
        move. As `displacement`, for positions without gradients."""
        blend = self.blendfields
        expressive = samples.conditioning.ne(0).any(-1)
        face = face_samples(samples.position, samples.frame, expressive, self.face_box, self.box)
        coefficients = blend.mapping(samples.conditioning)
        if len(coefficients) == 1:
            fields, one = blend.blended(face.where, coefficients[0]), coefficients.new_ones(1, 1)
            return *displace(face, fields, one, 1.0), face.moving
        return *displace(face, blend.raw(face.where), coefficients, blend.scale), face.moving

    def evaluate(self, samples: CanonicalSamples) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Density (N,), colour (N, 3), view residual and displacement (N, 3) or None."""
        density, features, displacement = self.geometry(samples)
        rgb, residual = self.color(features, samples.light, samples.direction)
        return density, rgb, residual, displacement

    # nerfstudio's interface: frustum positions are coarse canonical positions, metadata carries the conditions.

    def get_density(self, ray_samples: RaySamples) -> tuple[Tensor, Tensor]:
        shape = ray_samples.frustums.shape
        samples = _from_ray_samples(ray_samples)
        displacement = self.displacement(samples)
        x = samples.position if displacement is None else samples.position + displacement
        conditioning = samples.conditioning if self.config.expression == "color" else None
        density, features = self.density_at(x, conditioning, direction=samples.direction)
        return density.view(*shape, 1), features.view(*shape, -1)

    def get_outputs(self, ray_samples: RaySamples, density_embedding: Tensor | None = None) -> dict:
        samples = _from_ray_samples(ray_samples)
        assert density_embedding is not None
        rgb, _ = self.color(density_embedding.flatten(0, -2), samples.light, samples.direction)
        return {FieldHeadNames.RGB: rgb.view(*ray_samples.frustums.shape, 3)}


def _from_ray_samples(ray_samples: RaySamples) -> CanonicalSamples:
    metadata = ray_samples.metadata or {}
    position = ray_samples.frustums.get_positions().reshape(-1, 3)
    N = len(position)
    return CanonicalSamples(
        position=position,
        light=metadata["light"].reshape(N, 3, 2),
        direction=F.normalize(ray_samples.frustums.directions.reshape(N, 3), dim=-1),
        conditioning=metadata["conditioning"].reshape(N, -1),
        frame=torch.arange(N, device=position.device),
    )
