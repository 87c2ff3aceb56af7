"""Pipeline: nerfstudio's, with metrics averaged per yaw sector and a model that works on any number of devices."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

YAW_NAMES = ("front", "front_right", "right", "back_right", "back", "back_left", "left", "front_left")


@dataclass
class ThreeVPPipelineConfig(VanillaPipelineConfig):
    """Data manager and model of an avatar."""

    _target: type = field(default_factory=lambda: ThreeVPPipeline)


class ThreeVPPipeline(VanillaPipeline):
    """As nerfstudio's, except for evaluation."""

    def __init__(self, config: ThreeVPPipelineConfig, device: str, *args, **kwargs) -> None:
        provide_ffmpeg()
        super().__init__(config, device, *args, **kwargs)
        from threevp_nerfstudio.viewer.avatar_viewer import AvatarViewer

        self.avatar_viewer = AvatarViewer(self)  # nerfstudio's viewer looks for such attributes

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
