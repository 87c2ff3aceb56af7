"""The contestants of a benchmark behind one interface: one training step, and colours of rays of a frame."""

from __future__ import annotations

import functools
from copy import deepcopy
from dataclasses import fields, replace

import numpy as np
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallbackAttributes, TrainingCallbackLocation
from torch import Tensor

from threevp_nerfstudio.benchmark.baselines import UniformModelConfig, make_nerfacto, pixel_colours, small_nerfacto
from threevp_nerfstudio.engine.short_training import AvatarTrainee, Trainee, make_avatar
from threevp_nerfstudio.engine.trainer import ThreeVPTrainerConfig

BASELINE_FRAMES = 8
"""Frames per step of methods without a bank of rays."""


class NerfactoTrainee(Trainee):
    """nerfacto on the same rays. Its pictures do not depend on the frame."""

    def schedule(self, progress: float) -> None:
        super().schedule(progress)
        self.model.train()
        self._callbacks(TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)

    def after_step(self) -> None:
        self._callbacks(TrainingCallbackLocation.AFTER_TRAIN_ITERATION)

    def _callbacks(self, where: TrainingCallbackLocation) -> None:
        attributes = TrainingCallbackAttributes(optimizers=None, grad_scaler=None, pipeline=None, trainer=None)
        for callback in self.model.get_training_callbacks(attributes):
            callback.run_callback_at_location(self.steps, where)

    def loss(self, bundle: RayBundle) -> Tensor:
        batch = {"image": pixel_colours(bundle)}
        bundle.metadata, bundle.camera_indices = {}, torch.zeros_like(bundle.metadata["frame"])
        outputs = self.model(bundle)
        metrics = self.model.get_metrics_dict(outputs, batch)
        return functools.reduce(torch.add, self.model.get_loss_dict(outputs, batch, metrics).values())

    @torch.no_grad()
    def colours(self, origins: Tensor, directions: Tensor, frame: int) -> Tensor:
        self.model.eval()
        pieces = []
        for i in range(0, len(origins), 4096):
            o, d = origins[i : i + 4096], directions[i : i + 4096]
            cameras = torch.zeros(len(o), 1, dtype=torch.int64, device=o.device)
            out = self.model(RayBundle(o, d, torch.ones_like(o[:, :1]), camera_indices=cameras))
            pieces.append(out["rgb"] + 1.0 - out["accumulation"])  # it renders over black
        return torch.cat(pieces).clamp(0.0, 1.0)

    def parts(self) -> list[tuple[str, object, str]]:
        return [
            *super().parts(),
            ("samples (proposals)", self.model.proposal_sampler, "forward"),
            ("field", self.model.field, "forward"),
        ]


# ---- making them -------------------------------------------------------------------------------------------------------


def make_uniform(config: ThreeVPTrainerConfig, device: str, samples: int = 48) -> AvatarTrainee:
    """(a) The same network on nerfstudio's torch encoding, with uniform samples."""
    config = deepcopy(config)
    ours = config.pipeline.model
    values = {f.name: getattr(ours, f.name) for f in fields(ours) if f.name != "_target"}
    config.pipeline.model = UniformModelConfig(**values, uniform_samples=samples)
    config.pipeline.model.bank_size = 0
    config.pipeline.model.occupancy = replace(ours.occupancy, carve=False)
    config.pipeline.datamanager.neighbour_pixels = 0
    config.pipeline.model.eval_num_rays_per_chunk = 4096
    config.pipeline.datamanager.train_num_rays_per_batch = ours.rays_per_step
    config.pipeline.datamanager.frames_per_step = BASELINE_FRAMES
    return make_avatar(f"same network, nerfstudio's torch encoding, {samples} uniform samples", config, device)


def make_nerfacto_trainee(config: ThreeVPTrainerConfig, device: str) -> NerfactoTrainee:
    """(b) nerfacto of the same size."""
    ours, manager = config.pipeline.model, deepcopy(config.pipeline.datamanager)
    manager.train_num_rays_per_batch, manager.frames_per_step = ours.rays_per_step, BASELINE_FRAMES
    manager.neighbour_pixels = 0
    manager.pixels = replace(manager.pixels, balanced=False)  # it has no template: background has to tell it what is empty
    torch.manual_seed(ours.seed)
    data = manager.setup(device=device, test_mode="val")
    dataset = data.train_dataset
    distance = np.linalg.norm(
        dataset.capture.frames.camera_to_world[:, :3, 3] - dataset.capture.template.vertices.mean(0), axis=1
    )
    near, far = max(float(distance.min()) - 0.6, 0.05), float(distance.max()) + 0.6
    sizes = ours.field_config
    model = make_nerfacto(small_nerfacto(sizes.grid, sizes.hidden, near, far), dataset.scene_box, len(dataset), device)
    groups = {k: v for k, v in model.get_param_groups().items() if v}
    return NerfactoTrainee(
        name="nerfacto, shrunk to the same size",
        model=model,
        data=data,
        optimizers={k: torch.optim.Adam(v, lr=1e-2, eps=1e-15) for k, v in groups.items()},
        rates=dict.fromkeys(groups, 1e-2),
        final_rate=0.05,
        rays=ours.rays_per_step,
        device=device,
    )
