"""Pipeline: nerfstudio's, with metrics averaged per yaw sector and a model that trains on any number of devices."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import torch
import torch.distributed
from nerfstudio.pipelines.base_pipeline import Pipeline, VanillaPipeline, VanillaPipelineConfig
from nerfstudio.utils import comms
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.parallel import DistributedDataParallel

from threevp_nerfstudio.engine.device import usable

PERCEPTUAL_PATCH = 32
"""Pixels: the smallest picture that AlexNet takes."""
YAW_NAMES = ("front", "front_right", "right", "back_right", "back", "back_left", "left", "front_left")


@dataclass
class ThreeVPPipelineConfig(VanillaPipelineConfig):
    """Data manager and model of an avatar."""

    _target: type = field(default_factory=lambda: ThreeVPPipeline)


class ThreeVPPipeline(VanillaPipeline):
    """As nerfstudio's, except for evaluation and for how a model is spread over several devices."""

    def __init__(
        self,
        config: ThreeVPPipelineConfig,
        device: str | torch.device,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: torch.cuda.amp.GradScaler | None = None,
    ) -> None:
        Pipeline.__init__(self)  # not VanillaPipeline's: its DDP works on CUDA only
        provide_ffmpeg()
        device, _ = usable(device)
        self.config = config
        self.test_mode = test_mode
        if config.model.perceptual_loss > 0 and config.datamanager.perceptual_patch == 0:
            config.datamanager.perceptual_patch = PERCEPTUAL_PATCH
        self.datamanager = config.datamanager.setup(
            device=device, test_mode=test_mode, world_size=world_size, local_rank=local_rank
        )
        self.datamanager.to(device)
        self._model = config.model.setup(
            scene_box=self.datamanager.train_dataset.scene_box,
            num_train_data=len(self.datamanager.train_dataset),
            metadata=self.datamanager.train_dataset.metadata,
            device=device,
            grad_scaler=grad_scaler,
            rank=comms.get_rank(),
        )
        self.model.to(device)
        self.world_size = world_size
        if world_size > 1:
            self._model = distributed(self._model, torch.device(device))
        from threevp_nerfstudio.viewer.avatar_viewer import AvatarViewer

        self.avatar_viewer = AvatarViewer(self)  # nerfstudio's viewer looks for such attributes

    @torch.no_grad()
    def get_eval_image_metrics_and_images(self, step: int) -> tuple[dict, dict]:
        """As nerfstudio's, and the canonical field as the same camera sees it."""
        metrics, images = super().get_eval_image_metrics_and_images(step)
        self.eval()
        camera, _ = self.datamanager.next_eval_image(step)
        images["canonical"] = self.model.render_camera(camera, self.model.canonical_state())["rgb"]
        self.train()
        return metrics, images

    @torch.no_grad()
    def get_average_image_metrics(
        self,
        data_loader,
        image_prefix: str,
        step: int | None = None,
        output_path: Path | None = None,
        get_std: bool = False,
    ) -> dict[str, float]:
        """Mean of each metric over the pictures that have it; PSNR of the subject also per yaw sector and sequence."""
        self.eval()
        if output_path is not None:
            output_path.mkdir(exist_ok=True, parents=True)
        rows: list[dict[str, float]] = []
        columns = (TextColumn("Evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as progress:
            for i, (camera, batch) in enumerate(progress.track(data_loader, total=len(data_loader))):
                start = perf_counter()
                outputs = self.model.get_outputs_for_camera(camera=camera)
                seconds = perf_counter() - start
                metrics, images = self.model.get_image_metrics_and_images(outputs, batch)
                metrics["fps"] = 1.0 / seconds
                metrics["num_rays_per_sec"] = float(camera.height * camera.width) / seconds
                _add_groups(metrics, batch)
                rows.append(metrics)
                if output_path is not None:
                    for name, image in images.items():
                        pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
                        Image.fromarray(pixels).save(output_path / f"{image_prefix}_{name}_{i:04d}.png")
        self.train()
        return average(rows, get_std)


def distributed(model: torch.nn.Module, device: torch.device) -> DistributedDataParallel:
    """The model with gradients averaged over all processes.

    Buffers are not broadcast: occupancy and schedules follow from parameters and seeds that all processes share, and the
    template and the motion are large. Until blendfields set in, their parameters are unused.
    """
    ids = [device.index or 0] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(model, device_ids=ids, find_unused_parameters=True, broadcast_buffers=False)
    torch.distributed.barrier(device_ids=ids)
    return wrapped


def _add_groups(metrics: dict[str, float], batch: dict) -> None:
    value = metrics.get("psnr_subject")
    if value is None:
        return
    sector = int(np.floor((batch["yaw_deg"] / 45.0 + 0.5) % 8))
    metrics[f"psnr_subject_yaw_{YAW_NAMES[sector]}"] = value
    metrics[f"psnr_subject_{batch['sequence']}"] = value


def average(rows: list[dict[str, float]], with_std: bool) -> dict[str, float]:
    """Mean (and deviation) of each key over the rows that have it."""
    result: dict[str, float] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = np.array([row[key] for row in rows if key in row])
        result[key] = float(values.mean())
        if with_std:
            result[f"{key}_std"] = float(values.std())
    result["num_images"] = len(rows)
    return result


def provide_ffmpeg() -> None:
    """Put imageio-ffmpeg's binary on PATH where there is no ffmpeg: ns-render refuses to run without one."""
    if shutil.which("ffmpeg") is not None:
        return
    import imageio_ffmpeg

    folder = Path(tempfile.gettempdir()) / f"threevp-ffmpeg-{os.getuid() if hasattr(os, 'getuid') else 0}"
    folder.mkdir(mode=0o700, exist_ok=True)
    link = folder / ("ffmpeg.exe" if os.name == "nt" else "ffmpeg")
    source = Path(imageio_ffmpeg.get_ffmpeg_exe())
    if not link.exists():
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(source)
        except OSError:  # no symlinks on this file system
            shutil.copy2(source, link)
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
