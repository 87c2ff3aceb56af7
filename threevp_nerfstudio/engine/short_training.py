"""Training without nerfstudio's trainer: a model with its data and optimisers, one step at a time.

For what trains for a purpose of its own: benchmarks, ablations, the polish of a track. `ns-train` goes through `trainer.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from threevp_nerfstudio.capture.capture import Capture
from threevp_nerfstudio.data.datamanager import ThreeVPDataManager
from threevp_nerfstudio.data.dataparser import ThreeVPDataParser, ThreeVPDataParserConfig
from threevp_nerfstudio.engine.trainer import ThreeVPTrainerConfig
from threevp_nerfstudio.model.model import ThreeVPModel

BLENDFIELDS_FROM = 0.25
"""Part of the training after which blendfields set in; as in the methods' own schedules."""
AVERAGED_FROM = 0.5
"""Part of the training after which weights are averaged."""
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
        blend = [] if model.field.blendfields is None else [("blendfields", model.field, "displaced_places")]
        return [
            *super().parts(),
            ("posing and refit", model.canonical, "pose_frames"),
            ("march and map", model, "march_rays"),
            *bank,
            ("hash grid", model.field.grid, "forward"),
            *blend,
            ("networks", model.field, "evaluate"),
            ("occupancy", model, "after_step"),
        ]


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
