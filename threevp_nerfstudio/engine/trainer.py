"""Trainer: checkpoints that are whole or not there, also after Ctrl-C."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils.rich_utils import CONSOLE


@dataclass
class ThreeVPTrainerConfig(TrainerConfig):
    """As nerfstudio's."""

    _target: type = field(default_factory=lambda: ThreeVPTrainer)

    def __setattr__(self, name: str, value) -> None:
        # stored in config.yml: relative paths would only work from the folder that training was started in
        if name in ("data", "output_dir", "load_dir", "load_checkpoint") and value is not None:
            value = Path(value).expanduser().absolute()
        super().__setattr__(name, value)


class ThreeVPTrainer(Trainer):
    config: ThreeVPTrainerConfig

    def train(self) -> None:
        try:
            super().train()
        except KeyboardInterrupt:
            if self.training_state != "completed":
                CONSOLE.print(f"\nInterrupted at step {self.step}: saving a checkpoint.")
                self.save_checkpoint(self.step)
                CONSOLE.print(f"Resume with --load-dir {self.checkpoint_dir}")
            raise

    def save_checkpoint(self, step: int) -> None:
        """Write beside the checkpoints' folder and rename, so that a full disk or a second Ctrl-C leaves the old one."""
        if self.local_rank != 0:
            return
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        temporary = self.base_dir / f"{path.name}.partial"
        state = {
            "step": step,
            "pipeline": getattr(self.pipeline, "module", self.pipeline).state_dict(),
            "optimizers": {k: v.state_dict() for k, v in self.optimizers.optimizers.items()},
            "schedulers": {k: v.state_dict() for k, v in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
        }
        try:
            torch.save(state, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        if self.config.save_only_latest_checkpoint:
            for old in self.checkpoint_dir.glob("step-*.ckpt"):
                if old != path:
                    old.unlink()
