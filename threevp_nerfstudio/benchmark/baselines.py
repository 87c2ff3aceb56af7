"""What we compare with: the same network on nerfstudio's own torch parts, and nerfacto shrunk to its size."""

from __future__ import annotations

from dataclasses import dataclass, field
from unittest.mock import patch

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.model_components.ray_samplers import UniformSampler
from nerfstudio.model_components.renderers import AccumulationRenderer, DepthRenderer, RGBRenderer
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from torch import Tensor, nn

from threevp_nerfstudio.kernels.surface import PosedSurface
from threevp_nerfstudio.model.encodings import HashGridConfig
from threevp_nerfstudio.model.field import CanonicalSamples
from threevp_nerfstudio.model.model import ThreeVPModel, ThreeVPModelConfig
from threevp_nerfstudio.model.performance import PoseState
from threevp_nerfstudio.model.ray_bank import local_frames


class NerfstudioGrid(nn.Module):
    """nerfstudio's `HashEncoding` in torch, of the size of one of our grids."""

    def __init__(self, config: HashGridConfig) -> None:
        super().__init__()
        self.out_dim = config.levels * config.features
        self.encoding = HashEncoding(
            num_levels=config.levels,
            min_res=config.coarsest,
            max_res=config.finest,
            log2_hashmap_size=config.log2_size,
            features_per_level=config.features,
            implementation="torch",
        )

    def forward(self, x: Float[Tensor, "N 3"], moving: Tensor | None = None) -> Float[Tensor, "N D"]:
        return self.encoding(x)


@dataclass
class UniformModelConfig(ThreeVPModelConfig):
    """The avatar with uniform samples on nerfstudio's torch parts."""

    _target: type = field(default_factory=lambda: UniformModel)
    uniform_samples: int = 48
    """Samples per ray, between the ends of the posed template's box."""


class UniformModel(ThreeVPModel):
    """Same template, map (our kernel for nearest triangles, which torch has no match for), networks, blendfields and
    losses. Samples are uniform over the box, all of them go through the networks, in single precision, and there is neither a bank of
    mapped rays nor an occupancy grid."""

    config: UniformModelConfig

    def populate_modules(self) -> None:
        super().populate_modules()
        self.bank = None
        sizes = self.config.field_config
        self.field.grid = NerfstudioGrid(sizes.grid)
        if self.field.blendfields is not None:
            self.field.blendfields.grid = NerfstudioGrid(sizes.blendfields.grid)
        for network in self.field.networks():  # as nerfstudio's torch networks are
            network.matrix_units = False
        self.sampler = UniformSampler(num_samples=self.config.uniform_samples)
        self.accumulate, self.expected = AccumulationRenderer(), DepthRenderer(method="expected")

    def after_step(self, step: int) -> None:
        self.average_weights(step)
        self._staged = None

    def _training_outputs(self, bundle: RayBundle) -> dict[str, Tensor]:
        unique, slots = torch.unique(bundle.metadata["frame"].view(-1), return_inverse=True)
        state = self.performance.at_frames(unique)
        out = self._render(bundle.origins, bundle.directions, slots, self.canonical.pose(state), state)
        target = pixel_colours(bundle)
        background, alpha = torch.rand_like(target[:, :3]), target[:, 3]
        return {
            "rgb": out["rgb"] + (1.0 - out["accumulation"]) * background,
            "accumulation": out["accumulation"][:, 0],
            "target": target[:, :3] * alpha[:, None] + (1.0 - alpha)[:, None] * background,
            "alpha": alpha,
            "beside": (bundle.metadata["patch"][:, 3::4] == 0).all(1),
            "weight": bundle.metadata["weight"].view(-1),
        }

    def stage(self, state: PoseState, key: object = None) -> tuple[PosedSurface, PoseState]:
        return self.canonical.pose(state), state

    def render_rays(
        self, origins: Float[Tensor, "R 3"], directions: Float[Tensor, "R 3"], staged: tuple[PosedSurface, PoseState]
    ) -> dict[str, Tensor]:
        slots = torch.zeros(len(origins), dtype=torch.int64, device=origins.device)
        out = self._render(origins, directions, slots, *staged)
        return {**out, "rgb": (out["rgb"] + 1.0 - out["accumulation"]).clamp(0.0, 1.0)}  # over white

    def _render(
        self, origins: Tensor, directions: Tensor, slots: Tensor, surface: PosedSurface, state: PoseState
    ) -> dict[str, Tensor]:
        reach = self.march_settings().reach
        near, far = box_ends(
            origins, directions, surface.posed.amin(1)[slots] - reach, surface.posed.amax(1)[slots] + reach
        )
        rays = RayBundle(
            origins, directions, torch.ones_like(near), nears=near, fars=far, camera_indices=slots[:, None]
        )
        samples = self.sampler(rays)
        R, S = samples.shape
        points = samples.frustums.get_positions().reshape(-1, 3)
        position, M, distance = surface.to_canonical(points, slots.repeat_interleave(S), reach)
        light, direction, _ = local_frames(
            M.view(R, S, 3, 3), state.room[slots], directions, directions.new_zeros(R, 3, 2)
        )
        density, rgb, _, _ = self.field.evaluate(
            CanonicalSamples(
                position=position,
                light=light.reshape(-1, 3, 2),
                direction=F.normalize(direction.reshape(-1, 3), dim=-1),
                conditioning=self.condition(state),
                frame=slots.repeat_interleave(S),
            )
        )
        density = torch.where(torch.isfinite(distance), density, torch.zeros_like(density))
        weights = samples.get_weights(density.view(R, S, 1))
        return {
            "rgb": RGBRenderer.combine_rgb(rgb.view(R, S, 3), weights, background_color=torch.zeros_like(directions)),
            "accumulation": self.accumulate(weights),
            "depth": self.expected(weights, samples),
        }


def pixel_colours(bundle: RayBundle) -> Float[Tensor, "R 4"]:
    """RGB with straight alpha, 0 to 1, of the pixels that the rays look at: the middles of their patches."""
    patch = bundle.metadata["patch"].view(len(bundle), -1, 4)
    return patch[:, patch.shape[1] // 2].float() / 255.0


def box_ends(
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    lower: Float[Tensor, "R 3"],
    upper: Float[Tensor, "R 3"],
) -> tuple[Float[Tensor, "R 1"], Float[Tensor, "R 1"]]:
    """Entry and exit distance of each ray through its box; both the same where it misses."""
    d = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    a, b = (lower - origins) / d, (upper - origins) / d
    near = torch.minimum(a, b).amax(-1, keepdim=True).clamp_min(0.0)
    far = torch.maximum(a, b).amin(-1, keepdim=True)
    return near, torch.maximum(near, far)


def small_nerfacto(grid: HashGridConfig, hidden: int, near: float, far: float) -> NerfactoModelConfig:
    """nerfacto with a field of our size and proposal networks to match, in torch. It knows no pose: it is a static scene."""
    proposal = {"hidden_dim": 16, "log2_hashmap_size": 14, "num_levels": 5, "use_linear": False}
    return NerfactoModelConfig(
        near_plane=near,
        far_plane=far,
        background_color="random",
        hidden_dim=hidden,
        hidden_dim_color=hidden,
        num_levels=grid.levels,
        features_per_level=grid.features,
        base_res=grid.coarsest,
        max_res=grid.finest,
        log2_hashmap_size=grid.log2_size,
        num_proposal_samples_per_ray=(64, 32),
        num_nerf_samples_per_ray=24,
        proposal_net_args_list=[{**proposal, "max_res": 64}, {**proposal, "max_res": 128}],
        proposal_initial_sampler="uniform",
        use_appearance_embedding=False,
        disable_scene_contraction=True,
        implementation="torch",
        camera_optimizer=CameraOptimizerConfig(mode="off"),
        average_init_density=1.0,  # per metre; with 0.01 or 20 it learns more slowly here
        eval_num_rays_per_chunk=4096,
    )


def make_nerfacto(config: NerfactoModelConfig, scene_box, num_frames: int, device: str) -> NerfactoModel:
    """The model, without the perceptual metric that it would download weights for."""
    with patch("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", lambda **_: nn.Identity()):
        return config.setup(scene_box=scene_box, num_train_data=num_frames, metadata={}).to(device)
