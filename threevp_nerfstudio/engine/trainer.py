"""Trainer: checkpoints that are whole or not there, also after Ctrl-C; steps that went wrong are left out."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import profiler, writer
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from threevp_nerfstudio.engine.device import cpu_threads, usable
from threevp_nerfstudio.engine.step_guard import LIMIT, StepGuard, all_finite
from threevp_nerfstudio.errors import TrainingError
from threevp_nerfstudio.model.chunks import is_out_of_memory


@dataclass
class ThreeVPTrainerConfig(TrainerConfig):
    """As nerfstudio's."""

    _target: type = field(default_factory=lambda: ThreeVPTrainer)
    cpu_threads: int = 1
    """Threads of torch and of our kernels while training on a CPU; batches are too small for more to pay. The viewer's pictures
    use as many while training goes on; what renders later uses all cores."""
    device_fallback: str = ""
    """Set by the run itself: why it went to the CPU although CUDA was asked for."""

    def __setattr__(self, name: str, value) -> None:
        # stored in config.yml: relative paths would only work from the folder that training was started in
        if name in ("data", "output_dir", "load_dir", "load_checkpoint") and value is not None:
            value = Path(value).expanduser().absolute()
        super().__setattr__(name, value)

    def settle_device(self) -> None:
        """Put the CPU in place of a device that does not work, and note the reason."""
        device, reason = usable(self.machine.device_type)
        if reason is not None:
            self.machine.device_type, self.machine.num_devices, self.device_fallback = device, 1, reason

    def save_config(self) -> None:
        self.settle_device()  # before it is written down
        super().save_config()


class ThreeVPTrainer(Trainer):
    config: ThreeVPTrainerConfig

    def __init__(self, config: ThreeVPTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        config.settle_device()
        super().__init__(config, local_rank, world_size)
        # waiting for a CUDA device in each step would cost more than the step
        self.guard = StepGuard(self.device, check_every=1 if self.device == "cpu" else LIMIT)

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """As nerfstudio's, except that --mixed-precision halves the networks only: poses and rays in half precision
        would be off by half a millimetre."""
        super().setup(test_mode)
        if self.mixed_precision:
            self.pipeline.model.field.network_dtype = torch.float16

    def train(self) -> None:
        try:
            with cpu_threads(self.device, self.config.cpu_threads):
                super().train()
        except KeyboardInterrupt:
            if self.training_state != "completed":
                CONSOLE.print(f"\nInterrupted at step {self.step}: saving a checkpoint.")
                self.save_checkpoint(self.step)
                CONSOLE.print(f"Resume with --load-dir {self.checkpoint_dir}")
            raise

    # ---- one step ----------------------------------------------------------------------------------------------

    @profiler.time_function
    def train_iteration(self, step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """As nerfstudio's, but a step with NaN or infinity in it changes nothing.

        Raises:
            TrainingError: memory ran out, or ten steps in a row were left out.
        """
        try:
            result = self._guarded_iteration(step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(self._out_of_memory(error)) from error
        self._look_at_guard(step)
        return result

    def _guarded_iteration(self, step: int) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        every = {group: self.gradient_accumulation_steps[group] for group in self.optimizers.parameters}
        self.optimizers.zero_grad_some([group for group, n in every.items() if step % n == 0])
        _, loss_dict, metrics_dict = self.pipeline.get_train_loss_dict(step=step)
        loss = functools.reduce(torch.add, loss_dict.values())
        self.grad_scaler.scale(loss).backward()
        due = [group for group, n in every.items() if step % n == n - 1]
        if self.guard.arm(self._must_be_finite(loss), [self.optimizers.optimizers[group] for group in due]):
            self.optimizers.optimizer_scaler_step_some(self.grad_scaler, due)
        scale = self.grad_scaler.get_scale()
        self.grad_scaler.update()
        if scale <= self.grad_scaler.get_scale():
            self.optimizers.scheduler_step_all(step)
        return loss, loss_dict, metrics_dict

    def _must_be_finite(self, loss: Tensor) -> list[Tensor]:
        """The loss and all gradients. Gradients are the same in all processes of a distributed run, losses are not, and
        all processes must come to the same answer. With a gradient scaler, infinite gradients are its business."""
        if self.use_grad_scaler:
            return [loss.detach()]
        gradients = [p.grad for group in self.optimizers.parameters.values() for p in group if p.grad is not None]
        return gradients if self.world_size > 1 else [loss.detach(), *gradients]

    def _look_at_guard(self, step: int) -> None:
        before = self.guard.skipped
        if self.guard.stop():
            kept = self._keep_last_good(step)
            raise TrainingError(
                f"The loss or its gradients were NaN or infinite in {LIMIT} steps in a row, the last of them step "
                f"{step}. Those steps changed nothing: {kept}. Lower the learning rates (--optimizers.grid.optimizer.lr "
                "and the like) or go back to the default settings, and resume with --load-dir."
            )
        if self.guard.skipped > before:
            writer.put_scalar(name="Skipped steps", scalar=self.guard.skipped, step=step)
            if before == 0:
                CONSOLE.print(f"[yellow]Step {step}: NaN or infinity in loss or gradients; such steps are left out.")

    def _keep_last_good(self, step: int) -> str:
        """Save what training got to, beside the checkpoints that are there; what to tell the user about it."""
        if not self._parameters_are_finite():
            return f"the last good checkpoint is in {self.checkpoint_dir}"
        self.save_checkpoint(step, keep_others=True)
        return f"the avatar as it was before them is saved in {self.checkpoint_dir}, beside earlier checkpoints"

    def _out_of_memory(self, error: BaseException) -> str:
        model, data = self.config.pipeline.model, self.config.pipeline.datamanager
        return (
            f"Out of memory in training step {self.step} ({str(error).splitlines()[0] if str(error) else 'MemoryError'}). "
            f"Lower --pipeline.model.rays-per-step (now {model.rays_per_step}), --pipeline.model.bank-size (now "
            f"{model.bank_size}) or --pipeline.datamanager.train-num-rays-per-batch (now "
            f"{data.train_num_rays_per_batch}), or --pipeline.datamanager.cache-gigabytes (now {data.cache_gigabytes}), "
            "which is for the pictures, kept where training runs. "
            f"Checkpoints so far are in {self.checkpoint_dir}."
        )

    # ---- checkpoints -------------------------------------------------------------------------------------------

    def _parameters_are_finite(self) -> bool:
        return bool(all_finite(p.detach() for p in self.pipeline.model.parameters()))

    def save_checkpoint(self, step: int, keep_others: bool = False) -> None:
        """Write beside the checkpoints' folder and rename, so that a full disk or a second Ctrl-C leaves the old one.

        Raises:
            TrainingError: the parameters are not finite; the last good checkpoint stays.
        """
        if self.local_rank != 0:
            return
        if not self._parameters_are_finite():
            raise TrainingError(
                f"Parameters are NaN or infinite at step {step}, so no checkpoint was written; the last good one stays in "
                f"{self.checkpoint_dir}. Lower the learning rates and resume with --load-dir."
            )
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        temporary = self.base_dir / f"{path.name}.partial"
        state = {
            "step": step,
            "pipeline": single_process_names(getattr(self.pipeline, "module", self.pipeline).state_dict()),
            "optimizers": {k: v.state_dict() for k, v in self.optimizers.optimizers.items()},
            "schedulers": {k: v.state_dict() for k, v in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
        }
        try:
            torch.save(state, temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        if self.config.save_only_latest_checkpoint and not keep_others:
            for old in self.checkpoint_dir.glob("step-*.ckpt"):
                if old != path:
                    old.unlink()


def single_process_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as one process has them: a checkpoint does not tell how many devices it was trained on."""
    ddp = "_model.module."
    return {("_model." + name[len(ddp) :] if name.startswith(ddp) else name): value for name, value in state.items()}
