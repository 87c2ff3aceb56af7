"""A trainer small enough for tests, made as ns-train makes it."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

from nerfstudio.cameras.rays import RayBundle

from threevp_nerfstudio.config import threevp_small
from threevp_nerfstudio.engine.trainer import ThreeVPTrainer, ThreeVPTrainerConfig
from threevp_nerfstudio.kernels.bank import MappedRays
from threevp_nerfstudio.model.encodings import HashGridConfig
from threevp_nerfstudio.model.model import ThreeVPModel
from threevp_nerfstudio.model.ray_bank import RayBank

GRID = HashGridConfig(levels=4, features=2, log2_size=12, coarsest=8, finest=64)


def tiny_config(capture: Path, output: Path) -> ThreeVPTrainerConfig:
    """`threevp-small` with small grids, few rays and no viewer."""
    config = deepcopy(threevp_small.config)
    config.output_dir, config.timestamp, config.experiment_name, config.vis = output, "t", "e", "tensorboard"
    config.data = config.pipeline.datamanager.data = config.pipeline.datamanager.dataparser.data = capture
    config.pipeline.datamanager.train_num_rays_per_batch = 64
    model = config.pipeline.model
    model.field_config.grid = model.field_config.blendfields.grid = GRID
    model.field_config.hidden = model.field_config.blendfields.hidden = 16
    model.rays_per_step, model.bank_size = 64, 512
    model.sample_step, model.occupancy.cell, model.occupancy.cells_per_step = 0.012, 0.02, 256
    model.blendfields_start = 0
    config.machine.device_type = "cpu"
    config.max_num_iterations = 30
    config.steps_per_save = 1000
    config.logging.local_writer.enable = False
    return config


def tiny_trainer(
    capture: Path, output: Path, before: Callable[[ThreeVPTrainerConfig], None] = lambda config: None, **changes
) -> ThreeVPTrainer:
    """`before` and `changes` (fields of the trainer's configuration) are applied before anything is made."""
    config = tiny_config(capture, output)
    before(config)
    for name, value in changes.items():
        setattr(config, name, value)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    return trainer


def mapped(model: ThreeVPModel, bundle: RayBundle, seed: int) -> MappedRays:
    """Rays in canonical space, as they go into the bank."""
    bank = RayBank(len(bundle))
    bank.insert(model.march_rays(bundle, seed))
    return bank.storage
