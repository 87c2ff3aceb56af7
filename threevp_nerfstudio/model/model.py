"""The nerfstudio model: template, field, occupancy and rendering of one avatar.

Training: `get_outputs` maps the fresh rays it is given into canonical space, puts them into the bank, draws a batch
from it and renders that. Rendering: `stage` poses the template once per picture, chunks of rays are then marched,
evaluated and composited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor
from torch.nn import Parameter

from threevp_nerfstudio.capture.capture import Capture
from threevp_nerfstudio.capture.timeline import normalised_times
from threevp_nerfstudio.kernels.march import MarchedSamples, MarchSettings, march
from threevp_nerfstudio.kernels.surface import PosedSurface
from threevp_nerfstudio.model import losses
from threevp_nerfstudio.model.canonical import CanonicalTemplate
from threevp_nerfstudio.model.field import CanonicalSamples, FieldConfig, ThreeVPField
from threevp_nerfstudio.model.metrics import ImageMetrics, comparison
from threevp_nerfstudio.model.occupancy import CanonicalOccupancy, shell_cells
from threevp_nerfstudio.model.performance import Performance, PoseState
from threevp_nerfstudio.model.ray_bank import MappedRays, RayBank
from threevp_nerfstudio.model.volume import composite, over

Inspection = Callable[[ThreeVPField, CanonicalSamples, Tensor | None], dict[str, Tensor]]
"""Further quantities (N,) of the samples of a picture, by name, from the field, the samples and their displacement. They
are averaged along each ray by what each sample contributes to the colour."""

BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "gray": (0.5, 0.5, 0.5)}


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
    threshold: float = 10.0
    """Density (1/m) below which a cell counts as empty."""
    warmup: int = 150
    """Steps before cells are emptied."""
    cells_per_step: int = 6144
    """Cells evaluated in each training step."""
    decay: float = 0.7
    """Of a cell's density at each evaluation."""
    refresh_every: int = 32
    """Steps between rebuilds of what the marcher skips."""


@dataclass
class ThreeVPModelConfig(ModelConfig):
    """The avatar model."""

    _target: type = field(default_factory=lambda: ThreeVPModel)
    field_config: FieldConfig = field(default_factory=FieldConfig)
    """The radiance field and its blendfields."""
    occupancy: OccupancyConfig = field(default_factory=OccupancyConfig)
    """Where samples may be."""
    mesh_expressions: tuple[str, ...] | None = None
    """Expression channels that move the mesh; None: all. All channels drive the blendfields either way."""
    sample_step: float = 0.004
    """Distance between samples along a ray, metres."""
    max_samples: int = 32
    """Samples per ray, at most."""
    rays_per_step: int = 1024
    """Rays of a training step, drawn from the bank."""
    bank_size: int = 65536
    """Rays kept mapped for training; 0 trains on the fresh rays alone."""
    thin_start: int = 500
    """Training step from which banked rays forget samples that contribute nothing; fresh rays have all of them."""
    blendfields_start: int = 1000
    """Training step at which the blendfields set in: the coarse field comes first."""
    background_color: Literal["white", "black", "gray"] = "white"
    """Behind the subject when rendering; `accumulation` is its alpha. Training uses random colours."""
    opacity_loss: float = 0.1
    """Weight of the cross entropy of opacity against the matte."""
    distortion_loss: float = 0.0
    """Weight of the spread of a ray's weights (per metre)."""
    displacement_loss: float = 0.0
    """Weight of the blendfields' squared size in cm^2. It costs detail; none is needed at portrait scale."""
    view_loss: float = 0.01
    """Weight of the view-dependent part of the colour, with appearance "light+view"."""
    eval_num_rays_per_chunk: int = 1 << 16
    """Rays rendered at once."""
    seed: int = 0
    """Of ray positions, draws from the bank and backgrounds."""


class ThreeVPModel(Model):
    """Animatable 360° portrait avatar (arXiv 2312.05311)."""

    config: ThreeVPModelConfig

    def populate_modules(self) -> None:
        super().populate_modules()
        capture: Capture = self.kwargs["metadata"]["capture"]
        self.canonical = CanonicalTemplate(capture.template, self.config.mesh_expressions)
        self.performance = performance_of(capture)
        low, high = conditioning_range(self.performance, capture)
        self.register_buffer("conditioning_low", low)
        self.register_buffer("conditioning_high", high)
        self.clip_conditioning = True
        occupancy = self.config.occupancy
        vertices = self.canonical.vertices.numpy()
        margin = occupancy.outside + occupancy.cell
        box = np.stack([vertices.min(0) - margin, vertices.max(0) + margin]).astype(np.float32)
        shell, core = shell_cells(
            vertices, capture.template.faces, box, occupancy.cell, occupancy.outside, occupancy.inside
        )
        self.occupancy = CanonicalOccupancy(
            torch.from_numpy(shell), torch.from_numpy(core), torch.from_numpy(box[0]), occupancy.cell
        )
        self.field = ThreeVPField(
            self.config.field_config,
            torch.from_numpy(box),
            self.canonical.face_box,
            self.performance.num_conditioning,
        )
        self.image_metrics = ImageMetrics()
        self.bank = RayBank(self.config.bank_size) if self.config.bank_size > 0 else None
        self.step = 0
        self._staged: tuple[object, PosedSurface, PoseState] | None = None
        self.viewer_pictures: Callable[[Cameras], dict[str, Tensor] | None] | None = None
        """Set by the viewer: its own pictures, with the pose that its panel shows; None for anybody else's camera."""

    # ---- parameters and schedule -------------------------------------------------------------------------------

    def get_param_groups(self) -> dict[str, list[Parameter]]:
        groups: dict[str, list[Parameter]] = {"grid": [], "networks": [], "blendfields": []}
        for name, parameter in self.field.named_parameters():
            if name.startswith("blendfields."):
                groups["blendfields"].append(parameter)
            elif name.startswith("grid."):
                groups["grid"].append(parameter)
            else:
                groups["networks"].append(parameter)
        return {name: group for name, group in groups.items() if group}

    def get_training_callbacks(self, attributes: TrainingCallbackAttributes) -> list[TrainingCallback]:
        return [
            TrainingCallback([TrainingCallbackLocation.BEFORE_TRAIN_ITERATION], self.before_step),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN_ITERATION], self.after_step),
        ]

    def update_to_step(self, step: int) -> None:
        self.before_step(step)

    def before_step(self, step: int) -> None:
        """Set everything that depends on the training step."""
        self.step = step
        self.field.blendfields_enabled = step >= self.config.blendfields_start

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Keep the occupancy grid up to date."""
        config = self.config.occupancy
        self.occupancy.update(
            lambda x: self.field.density_at(x)[0], config.cells_per_step, config.decay, self.config.seed + step
        )
        if step >= config.warmup and step % config.refresh_every == 0:
            self.occupancy.refresh(config.threshold)
        self._staged = None

    # ---- rays to samples ---------------------------------------------------------------------------------------

    def march_settings(self) -> MarchSettings:
        reach = max(self.config.occupancy.outside, self.config.occupancy.inside) + self.config.occupancy.cell
        return MarchSettings(self.config.sample_step, reach, self.config.max_samples, max_optical_depth=7.0)

    def _march(
        self, origins: Tensor, directions: Tensor, slots: Tensor, surface: PosedSurface, seed: int
    ) -> MarchedSamples:
        return march(origins, directions, slots, surface, self.occupancy.view, self.march_settings(), seed)

    @torch.no_grad()
    def map_rays(self, bundle: RayBundle, seed: int) -> MappedRays:
        """Map rays of any frames into canonical space; `bundle.metadata` carries frame, target and weight."""
        frame = bundle.metadata["frame"].view(-1)
        unique, slots = torch.unique(frame, return_inverse=True)
        state = self.performance.at_frames(unique)
        samples = self._march(bundle.origins, bundle.directions, slots, self.canonical.pose(state), seed)
        light, direction = local_frames(samples.M, state.room[slots], bundle.directions)
        return MappedRays(
            frame=frame,
            target=bundle.metadata["target"],
            weight=bundle.metadata["weight"].view(-1),
            t=samples.t,
            width=samples.width,
            position=samples.position,
            light=light,
            direction=direction,
            count=samples.count,
        )

    # ---- training ----------------------------------------------------------------------------------------------

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:
        if "target" in ray_bundle.metadata:
            return self._training_outputs(ray_bundle)
        bundle = ray_bundle.flatten()
        return self.render_rays(bundle.origins, bundle.directions, *self._staged_for(bundle))

    def _training_outputs(self, bundle: RayBundle) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        rays, drawn = self.map_rays(bundle, seed=int(torch.randint(2**31 - 1, (1,), generator=generator))), None
        if self.training and self.bank is not None:
            self.bank.insert(rays)
            rays, drawn = self.bank.draw(self.config.rays_per_step, generator)
        mask = rays.mask
        ray = mask.nonzero()[:, 0]
        unique, row = torch.unique(rays.frame, return_inverse=True)
        samples = CanonicalSamples(
            position=rays.position[mask],
            light=rays.light[mask].float(),
            direction=rays.direction[mask].float(),
            conditioning=self.condition(self.performance.at_frames(unique)),
            frame=row[ray],
        )
        density, rgb, residual, displacement = self.field.evaluate(samples)
        rendered = composite(density, rgb, rays.t, rays.width, mask)
        if drawn is not None and self.step >= self.config.thin_start:
            self.bank.thin(drawn, rays, contributing(rendered.weights.detach(), mask))
        background = torch.rand(len(rays), 3, generator=generator).to(rgb.device)
        alpha = rays.target[:, 3]
        outputs = {
            "rgb": over(rendered.rgb, rendered.accumulation, background),
            "accumulation": rendered.accumulation,
            "target": over(rays.target[:, :3] * alpha[:, None], alpha, background),
            "alpha": alpha,
            "weight": rays.weight,
        }
        if self.config.distortion_loss > 0:
            outputs["distortion"] = losses.distortion(rendered.weights, rays.t, rays.width)
        if displacement is not None and self.config.displacement_loss > 0:
            outputs["displacement"] = losses.displacement_size(displacement)
        if residual is not None:
            outputs["view_residual"] = losses.view_residual(residual, rendered.weights[mask])
        return outputs

    def get_loss_dict(self, outputs, batch, metrics_dict=None) -> dict[str, Tensor]:
        config = self.config
        result = {
            "rgb_loss": losses.photometric(outputs["rgb"], outputs["target"], outputs["weight"]),
            "opacity_loss": config.opacity_loss * losses.opacity(outputs["accumulation"], outputs["alpha"]),
        }
        if "distortion" in outputs:
            result["distortion_loss"] = config.distortion_loss * outputs["distortion"]
        if "displacement" in outputs:
            result["displacement_loss"] = config.displacement_loss * outputs["displacement"]
        if "view_residual" in outputs:
            result["view_loss"] = config.view_loss * outputs["view_residual"]
        return result

    def get_metrics_dict(self, outputs, batch) -> dict[str, Tensor]:
        with torch.no_grad():
            subject = outputs["alpha"] > 0.5
            error = (outputs["rgb"] - outputs["target"]).square().mean(-1)[subject]
            return {"psnr": -10.0 * torch.log10(error.mean().clamp_min(1e-10))}

    # ---- rendering ---------------------------------------------------------------------------------------------

    def condition(self, state: PoseState) -> Float[Tensor, "B C"]:
        """Conditioning of the blendfields, clipped to what training saw unless the state says otherwise."""
        if not self.clip_conditioning or state.beyond_training:
            return state.conditioning
        return torch.minimum(torch.maximum(state.conditioning, self.conditioning_low), self.conditioning_high)

    def state_for(self, frame: Int[Tensor, ""] | None, time: float | None) -> PoseState:
        """The pose for a tracked frame, else for a time of the performance (0 to 1), else neutral."""
        if frame is not None:
            return self.performance.at_frames(frame.view(1))
        return self.performance.neutral() if time is None else self.performance.at_time(time)

    def stage(self, state: PoseState, key: object = None) -> tuple[PosedSurface, PoseState]:
        """Pose the template for a picture. A `key` other than None lets later chunks of the picture reuse it."""
        if key is not None and self._staged is not None and self._staged[0] == key:
            return self._staged[1:]
        surface = self.canonical.pose(state)
        self._staged = (key, surface, state)
        return surface, state

    def _staged_for(self, bundle: RayBundle) -> tuple[PosedSurface, PoseState]:
        frame = bundle.metadata.get("frame")
        frame = None if frame is None else frame.view(-1)[0].long()
        time = None if bundle.times is None else float(bundle.times.view(-1)[0])
        return self.stage(self.state_for(frame, time), key=(None if frame is None else int(frame), time))

    @torch.no_grad()
    def get_outputs_for_camera(self, camera: Cameras, obb_box=None) -> dict[str, Tensor]:
        if self.viewer_pictures is not None and (outputs := self.viewer_pictures(camera)) is not None:
            return outputs
        metadata = camera.metadata or {}
        frame = metadata["frame"].view(-1)[0].long().to(self.device) if "frame" in metadata else None
        time = None if camera.times is None else float(camera.times.view(-1)[0])
        return self.render_camera(camera, self.state_for(frame, time))

    @torch.no_grad()
    def render_camera(self, camera: Cameras, state: PoseState) -> dict[str, Float[Tensor, "h w c"]]:
        """Render one camera with any pose, expression and light."""
        bundle = camera.to(self.device).generate_rays(camera_indices=0, keep_shape=True)
        surface, state = self.stage(state)
        origins, directions = bundle.origins, bundle.directions
        h, w = origins.shape[:2]
        origins, directions = origins.reshape(-1, 3), directions.reshape(-1, 3)
        chunk = self.config.eval_num_rays_per_chunk
        parts = [
            self.render_rays(origins[i : i + chunk], directions[i : i + chunk], surface, state)
            for i in range(0, len(origins), chunk)
        ]
        return {name: torch.cat([p[name] for p in parts]).view(h, w, -1) for name in parts[0]}

    def render_rays(
        self,
        origins: Float[Tensor, "R 3"],
        directions: Float[Tensor, "R 3"],
        surface: PosedSurface,
        state: PoseState,
        inspect: Inspection | None = None,
    ) -> dict[str, Tensor]:
        """Render rays of one pose: rgb over the background, accumulation, depth, and what `inspect` adds."""
        R, device = len(origins), origins.device
        slots = torch.zeros(R, dtype=torch.int32, device=device)
        marched = self._march(origins, directions, slots, surface, seed=-1)
        hit = marched.count.nonzero().squeeze(-1)
        room = int(marched.count.max()) if len(hit) else 1
        mask = torch.arange(room, device=device) < marched.count[hit, None]
        M = marched.M[hit, :room][mask]
        ray = mask.nonzero()[:, 0]
        samples = CanonicalSamples(
            position=marched.position[hit, :room][mask],
            light=unit_columns(M @ state.room[0, :, :2]),
            direction=F.normalize((M @ directions[hit][ray, :, None]).squeeze(-1), dim=-1),
            conditioning=self.condition(state),
            frame=torch.zeros(len(ray), dtype=torch.int64, device=device),
        )
        density, rgb, _, displacement = self.field.evaluate(samples)
        rendered = composite(density, rgb, marched.t[hit, :room], marched.width[hit, :room], mask)
        background = torch.tensor(BACKGROUNDS[self.config.background_color], device=device)
        out = {
            "rgb": background.expand(R, 3).index_copy(
                0, hit, over(rendered.rgb, rendered.accumulation, background).clamp(0.0, 1.0)
            ),
            "accumulation": torch.zeros(R, 1, device=device).index_copy(0, hit, rendered.accumulation[:, None]),
            "depth": torch.zeros(R, 1, device=device).index_copy(
                0, hit, (rendered.depth / rendered.accumulation.clamp_min(1e-6))[:, None]
            ),
        }
        if inspect is not None:
            for name, value in inspect(self.field, samples, displacement).items():
                shares = (rendered.weights[mask] * value)[:, None]
                out[name] = torch.zeros(R, 1, device=device).index_add(0, hit[ray], shares)
        return out

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """Straight-alpha RGBA of rendered outputs."""
        alpha = outputs["accumulation"]
        background = torch.tensor(BACKGROUNDS[self.config.background_color], device=alpha.device)
        color = (outputs[output_name] - (1.0 - alpha) * background) / alpha.clamp_min(1e-6)
        return torch.cat([color.clamp(0.0, 1.0), alpha], -1)

    def get_image_metrics_and_images(self, outputs, batch) -> tuple[dict[str, float], dict[str, Tensor]]:
        truth = batch["image"].to(self.device)
        return self.image_metrics(outputs["rgb"], truth, batch), comparison(outputs, truth)


def local_frames(
    M: Float[Tensor, "R S 3 3"], room: Float[Tensor, "R 3 3"], directions: Float[Tensor, "R 3"]
) -> tuple[Float[Tensor, "R S 3 2"], Float[Tensor, "R S 3"]]:
    """The room's x and y axes and the view direction in the local canonical frame of each sample."""
    both = torch.cat([room[:, :, :2], directions[:, :, None]], -1)
    local = unit_columns(torch.einsum("rsij,rjk->rsik", M, both))
    return local[..., :2], local[..., 2]


def contributing(weights: Float[Tensor, "R S"], mask: Tensor) -> Tensor:
    """Samples (R, S bool) that are neither empty nor hidden; at least the first of each ray."""
    behind = weights.flip(1).cumsum(1).flip(1)
    visible = 1.0 - (weights.cumsum(1) - weights)
    keep = mask & (visible > 2e-3) & ((weights > 1e-4) | (behind < 1e-3))
    keep[:, 0] |= mask[:, 0]
    return keep


def unit_columns(x: Float[Tensor, "*n 3 k"]) -> Float[Tensor, "*n 3 k"]:
    return x / x.norm(dim=-2, keepdim=True).clamp_min(1e-6)


def performance_of(capture: Capture) -> Performance:
    """Tables of all frames of a capture; times run from 0 to 1 over its dynamic part."""
    frames = capture.frames
    dynamic = frames.sequence == "dynamic"
    return Performance(
        capture.template,
        capture.motion,
        frames.motion_index,
        normalised_times(frames.times, dynamic),
        frames.room_to_world[:, :3, :3].astype(np.float32),
        dynamic,
    )


def conditioning_range(performance: Performance, capture: Capture) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each conditioning channel over the training frames (neutral, 0, included)."""
    train = torch.from_numpy(np.flatnonzero(capture.frames.split == "train"))
    values = performance.at_frames(train).conditioning
    zero = torch.zeros(values.shape[1])
    return torch.minimum(values.amin(0), zero), torch.maximum(values.amax(0), zero)
