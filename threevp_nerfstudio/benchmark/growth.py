"""How cost grows with one size at a time, all others as in the method."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from threevp_nerfstudio.benchmark.captures import Edit, repeat_frames, resized, retopologise
from threevp_nerfstudio.benchmark.measure import Clock, Stat, peak_memory_gib
from threevp_nerfstudio.benchmark.pictures import picture_seconds
from threevp_nerfstudio.engine.short_training import AvatarTrainee, configured, make_avatar
from threevp_nerfstudio.engine.trainer import ThreeVPTrainerConfig

Change = Callable[[ThreeVPTrainerConfig], None]


@dataclass(frozen=True)
class Axis:
    """One size, and the values at which cost is measured."""

    name: str
    values: tuple[int, ...]
    quick: tuple[int, ...]
    """The values of a quick run."""


PICTURE = 256
"""Pixels of the side of the pictures that are timed."""

AXES = (
    Axis("rays in a step", (256, 1024, 4096, 16384), (4096,)),
    Axis("samples per metre of ray", (64, 125, 250, 500), (500,)),
    Axis("blendfields (K)", (4, 16, 52), (16,)),
    Axis("faces of the template", (5_000, 12_000, 30_000, 100_000), (30_000,)),
    Axis("frames in the capture", (100, 1_000, 10_000), (1_000,)),
    Axis("picture size, pixels", (128, 256, 512, 1024), (512,)),
)


@dataclass(frozen=True)
class Point:
    """Cost at one value."""

    value: int
    step: Stat
    """Seconds of a training step."""
    picture: Stat
    """Seconds of one picture of `PICTURE`², or of the value's own size."""
    setup: float
    """Seconds to make data manager and model."""
    peak_gib: float
    """Largest memory of the process so far (of the device, on CUDA)."""


class Growth:
    """Measures points with a trained model's parameters, so that occupancy is that of a real avatar.

    Args:
        trained: state of a model of `method`.
    """

    def __init__(
        self, method: ThreeVPTrainerConfig, data: Path, trained: dict[str, torch.Tensor], device: str, repeats: int
    ) -> None:
        self.method, self.data, self.trained, self.device, self.repeats = method, data, trained, device, repeats

    def point(self, axis: Axis, value: int) -> Point:
        with tempfile.TemporaryDirectory(prefix="threevp-benchmark-") as folder:
            change, edit, data, size = self._settings(axis, value, Path(folder))
            config = configured(self.method, data, edit)
            change(config)
            clock = Clock(self.device)
            start = clock.now()
            trainee = make_avatar(str(value), config, self.device)
            setup = clock.now() - start
            transplant(self.trained, trainee)
            step = clock.repeat(lambda: trainee.step(0.5), self.repeats, warmup=4)
            picture = picture_seconds(trainee, size, max(self.repeats // 4, 1), warmup=min(self.repeats // 4, 1))
        peak = peak_memory_gib(self.device)
        return Point(value, step, picture, setup, peak.get("device", peak["process"]))

    def _settings(self, axis: Axis, value: int, folder: Path) -> tuple[Change, Edit | None, Path, int]:
        def rays(config: ThreeVPTrainerConfig) -> None:
            model, data = config.pipeline.model, config.pipeline.datamanager
            data.train_num_rays_per_batch = max(data.train_num_rays_per_batch * value // model.rays_per_step, 1)
            model.rays_per_step = value

        def samples(config: ThreeVPTrainerConfig) -> None:
            model = config.pipeline.model
            model.max_samples = max(round(model.max_samples * model.sample_step * value), 4)
            model.sample_step = 1.0 / value

        def fields(config: ThreeVPTrainerConfig) -> None:
            config.pipeline.model.field_config.blendfields.num_fields = value

        def nothing(config: ThreeVPTrainerConfig) -> None:
            pass

        match axis.name:
            case "rays in a step":
                return rays, None, self.data, PICTURE
            case "samples per metre of ray":
                return samples, None, self.data, PICTURE
            case "blendfields (K)":
                return fields, None, self.data, PICTURE
            case "faces of the template":
                return nothing, retopologise(value), self.data, PICTURE
            case "frames in the capture":
                return nothing, repeat_frames(value), self.data, PICTURE
            case "picture size, pixels":
                return nothing, None, resized(self.data, folder / "capture", value), value
        raise ValueError(f"no such axis: {axis.name}")


def transplant(state: dict[str, torch.Tensor], trainee: AvatarTrainee) -> None:
    """Load what fits of a trained state: fields and occupancy, as far as their shapes agree. The mesh stays."""
    own = trainee.model.state_dict()
    fitting = {
        name: value
        for name, value in state.items()
        if name.startswith(("field.", "occupancy.")) and name in own and own[name].shape == value.shape
    }
    trainee.model.load_state_dict({**own, **fitting})
