"""The contestants of a benchmark behind one interface: one training step, and colours of rays of a frame."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.engine.callbacks import TrainingCallbackAttributes, TrainingCallbackLocation
from torch import Tensor

from threevp_nerfstudio.benchmark.baselines import UniformModelConfig, make_nerfacto, pixel_colours, small_nerfacto
from threevp_nerfstudio.capture.capture import Capture
from threevp_nerfstudio.data.datamanager import ThreeVPDataManager
from threevp_nerfstudio.data.dataparser import ThreeVPDataParser, ThreeVPDataParserConfig
from threevp_nerfstudio.engine.trainer import ThreeVPTrainerConfig
from threevp_nerfstudio.model.model import ThreeVPModel

BLENDFIELDS_FROM = 0.25
"""Part of the training after which blendfields set in; as in the methods' own schedules."""
AVERAGED_FROM = 0.5
"""Part of the training after which weights are averaged."""
BASELINE_FRAMES = 8
"""Frames per step of methods without a bank of rays."""
NEVER = 1 << 40


@dataclass
class EditedDataParserConfig(ThreeVPDataParserConfig):
    """A capture as it is on disk, then changed by `edit`: thinned out, repeated, with another mesh."""

    _target: type = field(default_factory=lambda: EditedDataParser)
    edit: Callable[[Capture], Capture] | None = None


class EditedDataParser(ThreeVPDataParser):
    config: EditedDataParserConfig

    @property
    def capture(self) -> Capture:
        if self._capture is None:
            self._capture = super().capture if self.config.edit is None else self.config.edit(super().capture)
        return self._capture


@dataclass
class Trainee:
    """A model with the data and the optimisers it trains with."""

    name: str
    model: torch.nn.Module
    data: ThreeVPDataManager
    optimizers: dict[str, torch.optim.Optimizer]
    rates: dict[str, float]
    final_rate: float
    """Learning rate at the end as a fraction of the first."""
    rays: int
    """Rays that one step trains on."""
    device: str
    steps: int = 0

    # ---- training ----------------------------------------------------------------------------------------------

    def step(self, progress: float) -> Tensor:
        """One step; `progress` (0 to 1) through the whole training sets learning rates and schedules."""
        self.schedule(progress)
        bundle, _ = self.data.next_train(self.steps)
        loss = self.loss(bundle)
        self.backward(loss)
        self.update()
        self.after_step()
        self.steps += 1
        return loss

    def schedule(self, progress: float) -> None:
        factor = min((self.steps + 1) / 20, 1.0) * math.exp(min(progress, 1.0) * math.log(self.final_rate))
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[name] * factor

    def loss(self, bundle: RayBundle) -> Tensor:
        outputs = self.model(bundle)
        return functools.reduce(torch.add, self.model.get_loss_dict(outputs, {}).values())

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> None:
        for optimizer in self.optimizers.values():
            if any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
                optimizer.step()
                optimizer.zero_grad()

    def after_step(self) -> None:
        pass

    # ---- pictures ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def colours(self, origins: Tensor, directions: Tensor, frame: int) -> Tensor:
        """Colours over white, (R, 3), of rays that look at a frame of the capture."""
        raise NotImplementedError

    def parts(self) -> list[tuple[str, object, str]]:
        """(part's name, object, method) of what a step is made of, for `measure.PartTimer`."""
        return [
            ("pixels and rays", self.data, "next_train"),
            ("backward", self, "backward"),
            ("optimisers", self, "update"),
        ]


class AvatarTrainee(Trainee):
    """One of our models."""

    model: ThreeVPModel

    def schedule(self, progress: float) -> None:
        super().schedule(progress)
        self.model.train()
        self.model.config.blendfields_start = 0 if progress >= BLENDFIELDS_FROM else NEVER
        self.model.config.average_start = 0 if progress >= AVERAGED_FROM else NEVER
        self.model.before_step(self.steps)

    def after_step(self) -> None:
        self.model.after_step(self.steps)

    @torch.no_grad()
    def colours(self, origins: Tensor, directions: Tensor, frame: int) -> Tensor:
        self.model.eval()
        index = torch.tensor(frame, device=self.device)
        return self.model.render_rays(origins, directions, self.model.stage(self.model.state_for(index, None)))["rgb"]

    def parts(self) -> list[tuple[str, object, str]]:
        model = self.model
        bank = [] if model.bank is None else [("ray bank", model.bank, m) for m in ("insert", "draw")]
        blend = [] if model.field.blendfields is None else [("blendfields", model.field, "displacement")]
        return [
            *super().parts(),
            ("posing and refit", model.canonical, "pose"),
            ("march and map", model, "map_rays"),
            *bank,
            ("hash grid", model.field.grid, "forward"),
            *blend,
            ("networks", model.field, "evaluate"),
            ("occupancy", model, "after_step"),
        ]


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


def configured(
    method: ThreeVPTrainerConfig, data: Path, edit: Callable[[Capture], Capture] | None = None, seed: int = 0
) -> ThreeVPTrainerConfig:
    """A copy of a method's configuration for a capture, with all its seeds set."""
    config = deepcopy(method)
    manager = config.pipeline.datamanager
    manager.dataparser = EditedDataParserConfig(data=data, edit=edit)
    config.data = manager.data = data
    manager.seed = config.pipeline.model.seed = seed
    return config


def make_avatar(name: str, config: ThreeVPTrainerConfig, device: str) -> AvatarTrainee:
    """One of our methods, or of its variants."""
    torch.manual_seed(config.pipeline.model.seed)
    pipeline = config.pipeline.setup(device=device, test_mode="val")
    pipeline.model.before_step(0)  # carving is a part of setting up, and counts as that
    model_config = config.pipeline.model
    fresh = config.pipeline.datamanager.train_num_rays_per_batch
    groups = {k: v for k, v in pipeline.model.get_param_groups().items() if k in config.optimizers}
    return AvatarTrainee(
        name=name,
        model=pipeline.model,
        data=pipeline.datamanager,
        optimizers={k: config.optimizers[k]["optimizer"].setup(params=v) for k, v in groups.items()},
        rates={k: config.optimizers[k]["optimizer"].lr for k in groups},
        final_rate=next(iter(config.optimizers.values()))["scheduler"].final,
        rays=model_config.rays_per_step if model_config.bank_size > 0 else fresh,
        device=device,
    )


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
