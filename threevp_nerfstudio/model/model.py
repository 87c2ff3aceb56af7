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
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.models.base_model import Model, ModelConfig
from torch import Tensor
from torch.nn import Parameter

from threevp_nerfstudio.body.teeth import with_teeth
from threevp_nerfstudio.capture.capture import Capture
from threevp_nerfstudio.kernels.bank import FreshRays, RayBatch
from threevp_nerfstudio.kernels.composite import composite, weigh
from threevp_nerfstudio.kernels.hull import posed_hull
from threevp_nerfstudio.kernels.look import MarchedSamples, MarchSettings
from threevp_nerfstudio.kernels.march import march
from threevp_nerfstudio.model import losses
from threevp_nerfstudio.model.averaging import AveragedWeights
from threevp_nerfstudio.model.canonical import CanonicalTemplate
from threevp_nerfstudio.model.carving import empty_cells
from threevp_nerfstudio.model.chunks import in_chunks
from threevp_nerfstudio.model.field import CanonicalSamples, FieldConfig, ThreeVPField
from threevp_nerfstudio.model.metrics import ImageMetrics, comparison
from threevp_nerfstudio.model.occupancy import CanonicalOccupancy, OccupancyConfig, shell_cells
from threevp_nerfstudio.model.perceptual import PerceptualLoss
from threevp_nerfstudio.model.performance import PoseState, conditioning_range, performance_of
from threevp_nerfstudio.model.ray_bank import RayBank
from threevp_nerfstudio.model.refinement import FrameCorrections, RefinementConfig
from threevp_nerfstudio.model.rendering import HULL_CELL, Inspection, StagedPose, render_rays, tile_order
from threevp_nerfstudio.model.second_pass import worthwhile
from threevp_nerfstudio.model.volume import with_slots

AVERAGE_EVERY = 4
"""Steps between two looks at the weights."""
DRAWING = 0x3C6EF372
"""Added to a step's seed, so that what is drawn has nothing to do with where samples were put."""
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "gray": (0.5, 0.5, 0.5)}


@dataclass
class ThreeVPModelConfig(ModelConfig):
    """The avatar model."""

    _target: type = field(default_factory=lambda: ThreeVPModel)
    field_config: FieldConfig = field(default_factory=FieldConfig)
    """The radiance field and its blendfields."""
    occupancy: OccupancyConfig = field(default_factory=OccupancyConfig)
    """Where samples may be."""
    refinement: RefinementConfig = field(default_factory=RefinementConfig)
    """Correction of noisy tracking while training."""
    mesh_expressions: tuple[str, ...] | None = None
    """Expression channels that move the mesh; None: all. All channels drive the blendfields either way."""
    teeth: bool = True
    """Where the template has no teeth, let invisible arches behind the lips carry the mouth's inside."""
    sample_step: float = 0.004
    """Distance between samples along a ray, metres."""
    max_samples: int = 32
    """Samples per ray, at most."""
    rays_per_step: int = 1024
    """Rays of a training step, drawn from the bank."""
    bank_size: int = 65536
    """Rays kept mapped for training; 0 trains on the fresh rays alone."""
    weightless_share: float = 1.0
    """Of the samples that add nothing to their ray, the part that is trained on. Below 1 a first pass finds them; steps
    get a fifth cheaper, but what should stay empty is held empty less firmly (at 0.25: 1.4 dB less at equal steps)."""
    blendfields_start: int = 1000
    """Training step at which the blendfields set in: the coarse field comes first."""
    average_start: int = 2000
    """Training step from which the field's weights are averaged; pictures are made of the average."""
    average_decay: float = 0.999
    """What a step leaves of that average; 0: no averaging."""
    background_color: Literal["white", "black", "gray"] = "white"
    """Behind the subject when rendering; `accumulation` is its alpha. Training uses random colours."""
    opacity_loss: float = 0.03
    """Weight of the cross entropy of opacity against the matte. More keeps edges, and costs detail inside."""
    opacity_background: float = 4.0
    """How much more it counts for rays beside the subject, which it keeps clean. Not for those at its edge: a pixel there that is
    empty by chance, of a matte with noise, would count for more than one that is filled by chance, and hair would get thin."""
    distortion_loss: float = 0.0
    """Weight of the spread of a ray's weights (per metre)."""
    displacement_loss: float = 0.0
    """Weight of the blendfields' squared size in cm^2. It costs detail; none is needed at portrait scale."""
    perceptual_loss: float = 0.0
    """Weight of LPIPS on patches of the training pictures; around 0.01. Needs AlexNet's weights on disk."""
    light_turned: float = 0.03
    """Share of rays that learn their colour under a light turned by 90 to 270 degrees. Each place has been lit from few sides
    only; under other lights this gives it the mean of its colours, where otherwise they would be invented."""
    view_loss: float = 0.01
    """Weight of the view-dependent part of the colour, with appearance "light+view"."""
    compile_networks: bool = False
    """Run the networks of density and colour through torch.compile: fewer launches on a GPU. Compiling takes about a
    minute at the first step; where it fails, there is one warning and training goes on without."""
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
        # a track of explicit vertices says nothing of how teeth would move
        template = with_teeth(capture.template) if self.config.teeth and capture.motion.rigged else capture.template
        self.canonical = CanonicalTemplate(template, self.config.mesh_expressions)
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
            vertices, template.faces, box, occupancy.cell, occupancy.outside, occupancy.inside
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
        self.averaged = AveragedWeights(self.field, self.config.average_decay)
        if self.config.compile_networks:
            self.field.compile_networks()
        self.corrections = None
        if self.config.refinement.enabled:
            self.corrections = FrameCorrections(template, self.performance, self.canonical.vertices)
        self.perceptual = PerceptualLoss() if self.config.perceptual_loss > 0 else None
        self.image_metrics = ImageMetrics()
        self.bank = RayBank(self.config.bank_size) if self.config.bank_size > 0 else None
        self.step = 0
        self._staged: tuple[object, StagedPose] | None = None
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
        if self.corrections is not None:
            groups["refinement"] = list(self.corrections.parameters())
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
        if self.config.occupancy.carve and not self.occupancy.is_carved:
            self._carve()
        self.field.blendfields_enabled = step >= self.config.blendfields_start

    def _carve(self) -> None:
        capture: Capture = self.kwargs["metadata"]["capture"]
        points = self.occupancy.centers().cpu().numpy()
        empty = empty_cells(points, self.config.occupancy.cell, self.canonical, self.performance, capture)
        self.occupancy.carve(torch.from_numpy(empty).to(self.device))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Keep the occupancy grid and the average of the weights up to date."""
        self.average_weights(step)
        config = self.config.occupancy
        if step % config.update_every == 0:
            cells = config.cells_per_step * config.update_every
            self.occupancy.update(lambda x: self.field.density_at(x)[0], cells, config.decay, self.config.seed + step)
        if step >= config.warmup and step % config.refresh_every == 0:
            self.occupancy.share()
            self.occupancy.refresh(config.threshold)
        self._staged = None

    def average_weights(self, step: int) -> None:
        if self.config.average_decay > 0 and step >= self.config.average_start and step % AVERAGE_EVERY == 0:
            self.averaged.update(AVERAGE_EVERY)

    # ---- rays to samples ---------------------------------------------------------------------------------------

    def march_settings(self, room: int | None = None) -> MarchSettings:
        reach = max(self.config.occupancy.outside, self.config.occupancy.inside) + self.config.occupancy.cell
        return MarchSettings(self.config.sample_step, reach, room or self.config.max_samples, stop_at_hidden=room is None)

    @torch.no_grad()
    def march_rays(self, bundle: RayBundle, seed: int) -> FreshRays:
        """March rays of any frames; `bundle.metadata` as from the data manager."""
        metadata = bundle.metadata
        frame = metadata["frame"].view(-1).long()
        if "slot" in metadata:
            posed, slot = metadata["slot_frames"][0], metadata["slot"].view(-1).int()
        else:  # a bundle made by hand: the host has to wait for the number of frames
            posed, slot = torch.unique(frame, return_inverse=True)
            slot = slot.int()
        self._staged = None  # surfaces are scratch memory: the picture's is posed over
        surface, settings = self.canonical.pose_frames(self.performance, posed), self.march_settings()
        samples = march(bundle.origins, bundle.directions, slot, surface, self.occupancy.view, settings, seed)
        return FreshRays(
            samples=samples,
            direction=bundle.directions,
            across=metadata["across"].view(-1, 6),
            room=self.performance.room[posed],
            slot=slot,
            frame=frame,
            patch=metadata["patch"],
            weight=metadata["weight"].view(-1),
        )

    # ---- training ----------------------------------------------------------------------------------------------

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:
        if "patch" in ray_bundle.metadata:
            return self._training_outputs(ray_bundle)
        bundle = ray_bundle.flatten()
        return self.render_rays(bundle.origins, bundle.directions, self._staged_for(bundle))

    def _training_outputs(self, bundle: RayBundle) -> dict[str, Tensor]:
        # each process of a distributed run draws its own
        seed = ((self.config.seed + 7919 * self.kwargs.get("rank", 0)) * 1_000_003 + self.step) % (2**31 - 1)
        patch = int(bundle.metadata["perceptual"].sum()) if "perceptual" in bundle.metadata else 0
        fresh = self.march_rays(bundle, seed)
        banked = self.training and self.bank is not None
        bank = self.bank if banked else RayBank(len(fresh))
        bank.insert(fresh)
        rays = bank.draw(
            self.config.rays_per_step if banked else None,
            seed + DRAWING,
            moved=self.training,
            newest=patch,
            turned=self.config.light_turned,
        )
        corrected = self.corrections is not None and self.step >= self.config.refinement.start
        if corrected:
            unique, row = torch.unique(rays.frame, return_inverse=True)
            conditioning, frame = self.condition(self.performance.at_frames(unique)), row[rays.ray]
        else:
            conditioning, frame = self.conditioning_table(), rays.sample_frame
        samples = CanonicalSamples(rays.position, rays.light, rays.direction, conditioning, frame)
        if corrected:
            samples = self.corrections.apply_to(samples, unique)
        if self.config.weightless_share < 1.0:
            kept = self._worthwhile(samples, rays, seed)
            rays, samples = rays.only(kept), samples.rows(kept)
        # samples that no light gets to are trained, too: what lies under the surface shows when the expression changes
        density, rgb, residual, displacement = self.field.evaluate(samples)
        rendered = composite(density, rgb, rays.t, rays.width, rays.ends, rays.background)
        if self.config.weightless_share >= 1.0:
            self.occupancy.observe(samples.position, rendered.transmittance)
        alpha = rays.target[:, 3]
        outputs = {
            "rgb": rendered.rgb,
            "accumulation": rendered.accumulation,
            "target": torch.lerp(rays.background, rays.target[:, :3], alpha[:, None]),
            "alpha": alpha,
            "weight": rays.weight,
            "beside": rays.beside,
        }
        if patch and self.perceptual is not None:
            outputs["perceptual"] = self.perceptual(outputs["rgb"][-patch:], outputs["target"][-patch:])
        if self.config.distortion_loss > 0:
            room = self.config.max_samples
            outputs["distortion"] = losses.distortion(
                *(with_slots(x, rays.ray, rays.ends, room) for x in (rendered.weights, rays.t, rays.width))
            )
        if displacement is not None and self.config.displacement_loss > 0:
            outputs["displacement"] = losses.displacement_size(displacement)
        if corrected:
            outputs["correction"] = self.corrections.size(unique)
        if residual is not None:
            outputs["view_residual"] = losses.view_residual(residual, rendered.weights)
        return outputs

    @torch.no_grad()
    def _worthwhile(self, samples: CanonicalSamples, rays: RayBatch, seed: int) -> Int[Tensor, "M"]:
        """Samples to evaluate with gradients; on the way, the occupancy grid learns what light gets to."""
        density, _, _ = self.field.geometry(samples)
        weights, light = weigh(density, rays.width, rays.ends)
        self.occupancy.observe(samples.position, light)
        # on the device: copies to it would hold up the step
        generator = torch.Generator(device=weights.device).manual_seed(seed)
        return worthwhile(weights, light, self.config.weightless_share, generator).nonzero().squeeze(-1)

    def get_loss_dict(self, outputs, batch, metrics_dict=None) -> dict[str, Tensor]:
        config = self.config
        opacity_weight = torch.where(outputs["beside"], config.opacity_background, 1.0)
        result = {
            "rgb_loss": losses.photometric(outputs["rgb"], outputs["target"], outputs["weight"]),
            "opacity_loss": config.opacity_loss
            * losses.opacity(outputs["accumulation"], outputs["alpha"], opacity_weight),
        }
        if "distortion" in outputs:
            result["distortion_loss"] = config.distortion_loss * outputs["distortion"]
        if "displacement" in outputs:
            result["displacement_loss"] = config.displacement_loss * outputs["displacement"]
        if "correction" in outputs:
            result["refinement_loss"] = config.refinement.prior * outputs["correction"]
        if "perceptual" in outputs:
            result["perceptual_loss"] = config.perceptual_loss * outputs["perceptual"]
        if "view_residual" in outputs:
            result["view_loss"] = config.view_loss * outputs["view_residual"]
        return result

    def get_metrics_dict(self, outputs, batch) -> dict[str, Tensor]:
        with torch.no_grad():
            subject = (outputs["alpha"] > 0.5).float()
            error = (outputs["rgb"] - outputs["target"]).square().mean(-1)
            return {"psnr": -10.0 * torch.log10(((subject * error).sum() / subject.sum()).clamp_min(1e-10))}

    # ---- rendering ---------------------------------------------------------------------------------------------

    def condition(self, state: PoseState) -> Float[Tensor, "B C"]:
        """Conditioning of the blendfields, clipped to what training saw unless the state says otherwise."""
        return state.conditioning if state.beyond_training else self._clipped(state.conditioning)

    def conditioning_table(self) -> Float[Tensor, "F C"]:
        """`condition` of every frame of the capture."""
        return self._clipped(self.performance.conditioning_of_frames())

    def _clipped(self, conditioning: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
        if not self.clip_conditioning:
            return conditioning
        return torch.minimum(torch.maximum(conditioning, self.conditioning_low), self.conditioning_high)

    def canonical_state(self) -> PoseState:
        """The canonical template itself: nothing is deformed, and blendfields move nothing."""
        device = self.canonical.vertices.device
        nothing = torch.zeros(1, self.performance.num_conditioning, device=device)
        return PoseState(nothing, torch.eye(3, device=device)[None], vertices=self.canonical.vertices[None])

    def state_for(self, frame: Int[Tensor, ""] | None, time: float | None) -> PoseState:
        """The pose for a tracked frame, else for a time of the performance (0 to 1), else neutral."""
        if frame is not None:
            return self.performance.at_frames(frame.view(1))
        return self.performance.neutral() if time is None else self.performance.at_time(time)

    def stage(self, state: PoseState, key: object = None) -> StagedPose:
        """Pose the template for a picture. A `key` other than None lets its later chunks, and the next picture of the
        same key, reuse it while nothing else was posed and the occupancy grid has not moved on."""
        kept = self._staged
        if key is not None and kept is not None and kept[0] == key:
            return kept[1]
        surface = self.canonical.pose(state)
        grid, reach = self.occupancy.view, self.march_settings().reach
        hull = posed_hull(surface, grid.skip, grid.origin, grid.cell, reach, HULL_CELL)
        staged = StagedPose(surface, state, hull)
        self._staged = (key, staged)
        return staged

    def _staged_for(self, bundle: RayBundle) -> StagedPose:
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
        staged = self.stage(state)
        origins, directions = bundle.origins, bundle.directions
        h, w = origins.shape[:2]
        order, place = tile_order(h, w, origins.device)
        origins, directions = origins.reshape(-1, 3)[order], directions.reshape(-1, 3)[order]
        parts, self.config.eval_num_rays_per_chunk = in_chunks(
            lambda a, b: self.render_rays(origins[a:b], directions[a:b], staged),
            len(origins),
            self.config.eval_num_rays_per_chunk,
        )
        return {name: torch.cat([p[name] for p in parts])[place].view(h, w, -1) for name in parts[0]}

    def render_rays(
        self,
        origins: Float[Tensor, "R 3"],
        directions: Float[Tensor, "R 3"],
        staged: StagedPose,
        inspect: Inspection | None = None,
    ) -> dict[str, Tensor]:
        """Render rays of one pose: rgb over the background, accumulation, depth, and what `inspect` adds."""

        def part(origins: Tensor, directions: Tensor, start: Tensor, room: int) -> MarchedSamples:
            slots = torch.zeros(len(origins), dtype=torch.int32, device=origins.device)
            settings = self.march_settings(room)
            return march(
                origins, directions, slots, staged.surface, self.occupancy.view, settings, -1, staged.hull, start
            )

        background = torch.tensor(BACKGROUNDS[self.config.background_color], device=origins.device)
        conditioning = self.condition(staged.state)
        return render_rays(self.field, part, origins, directions, staged.state, conditioning, background, inspect)

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """Straight-alpha RGBA of rendered outputs."""
        alpha = outputs["accumulation"]
        background = torch.tensor(BACKGROUNDS[self.config.background_color], device=alpha.device)
        color = (outputs[output_name] - (1.0 - alpha) * background) / alpha.clamp_min(1e-6)
        return torch.cat([color.clamp(0.0, 1.0), alpha], -1)

    def get_image_metrics_and_images(self, outputs, batch) -> tuple[dict[str, float], dict[str, Tensor]]:
        truth = batch["image"].to(self.device)
        return self.image_metrics(outputs["rgb"], truth, batch), comparison(outputs, truth)
