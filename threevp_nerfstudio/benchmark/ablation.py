"""Training the variants one after the other, measuring them on whole pictures, and the table of all that are done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from threevp_nerfstudio.benchmark.captures import left_out_behind
from threevp_nerfstudio.benchmark.measure import Clock, Machine
from threevp_nerfstudio.benchmark.variants import Variant
from threevp_nerfstudio.capture.capture import Capture, read_rgba, yaw_deg
from threevp_nerfstudio.data.dataparser import cameras_of
from threevp_nerfstudio.data.parts import part_boxes
from threevp_nerfstudio.engine.short_training import AvatarTrainee, configured, make_avatar
from threevp_nerfstudio.engine.trainer import ThreeVPTrainerConfig
from threevp_nerfstudio.errors import ThreeVPError
from threevp_nerfstudio.pipeline import YAW_NAMES

GROUPS = ("val", "static", "back")
"""Held-out performance; the static turn; frames from behind, which the thinned-out captures do not train on."""
REGIONS = ("", "_subject", "_face", "_mouth")


@dataclass(frozen=True)
class Settings:
    """What has to be the same for two results to stand in one table."""

    method: str
    capture: str
    steps: int | None
    seconds: float | None
    frames: int
    """Pictures measured of each group, at most."""
    seed: int


@dataclass
class Result:
    """Means over pictures, by group; `sectors` is the subject's PSNR by yaw sector over `val` and `static`."""

    variant: str
    settings: dict[str, Any]
    steps: int
    seconds: float
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    sectors: dict[str, float] = field(default_factory=dict)


def chosen_frames(capture: Capture, count: int) -> dict[str, list[int]]:
    """Frames to measure, evenly spread over each group; groups may share frames."""
    frames = capture.frames
    held_out = frames.split == "val" if np.any(frames.split == "val") else frames.split == "test"
    static = frames.sequence == "static"
    if np.any(static & held_out):
        static &= held_out
    groups = {"val": held_out & (frames.sequence == "dynamic"), "static": static, "back": left_out_behind(capture)}

    def spread(mask: np.ndarray) -> list[int]:
        index = np.flatnonzero(mask)
        return index[np.unique(np.linspace(0, len(index) - 1, min(count, len(index))).astype(int))].tolist()

    return {name: spread(mask) if mask.any() else [] for name, mask in groups.items()}


@torch.no_grad()
def measure(trainee: AvatarTrainee, groups: dict[str, list[int]], report: Callable[[float], None]) -> Result:
    """Render and compare all chosen frames."""
    model, capture = trainee.model.eval(), trainee.data.train_dataset.capture
    boxes, yaw = part_boxes(capture), yaw_deg(capture.frames.camera_to_world)
    rows: dict[int, dict[str, float]] = {}
    frames = sorted(set(sum(groups.values(), [])))
    for n, frame in enumerate(frames):
        rgba = torch.from_numpy(read_rgba(capture.frames, frame)).float() / 255.0
        truth = rgba[..., :3] * rgba[..., 3:] + 1.0 - rgba[..., 3:]
        out = model.get_outputs_for_camera(cameras_of(capture, np.array([frame])))
        batch = {"image": truth, "alpha": rgba[..., 3:], "part_boxes": boxes[frame]}
        rows[frame] = model.get_image_metrics_and_images(out, batch)[0]
        report((n + 1) / len(frames))
    result = Result(trainee.name, {}, trainee.steps, 0.0)
    for name, members in groups.items():
        keys = dict.fromkeys(key for frame in members for key in rows[frame])
        result.groups[name] = {k: float(np.mean([rows[f][k] for f in members if k in rows[f]])) for k in keys}
    for sector, name in enumerate(YAW_NAMES):
        members = [f for f in {*groups["val"], *groups["static"]} if int(np.floor((yaw[f] / 45 + 0.5) % 8)) == sector]
        if members:
            result.sectors[name] = float(np.mean([rows[f]["psnr_subject"] for f in members]))
    return result


@dataclass
class Ablation:
    """All variants of one run.

    Args:
        output: folder of one JSON file per variant. Those that are there, with the same settings, are not trained again.
    """

    method: ThreeVPTrainerConfig
    data: Path
    output: Path
    settings: Settings
    device: str

    def run(self, variant: Variant, report: Callable[[str, float], None]) -> Result:
        """Train and measure one variant, or read what an earlier run found.

        Raises:
            ThreeVPError: the folder holds results of other settings.
        """
        done = self.load(variant.name)
        if done is not None:
            return done
        config = configured(self.method, self.data, variant.edit, self.settings.seed)
        variant.apply(config)
        trainee = make_avatar(variant.name, config, self.device)
        clock, spent, progress = Clock(self.device), 0.0, 0.0
        while progress < 1.0:
            start = clock.now()
            trainee.step(progress)
            spent += clock.now() - start
            steps, seconds = self.settings.steps, self.settings.seconds
            progress = trainee.steps / steps if steps is not None else spent / seconds
            report("training", min(progress, 1.0))
        groups = chosen_frames(configured_capture(self.data), self.settings.frames)
        result = measure(trainee, groups, lambda part: report("measuring", part))
        result.settings, result.seconds = vars(self.settings), spent
        self.save(result)
        return result

    def path(self, name: str) -> Path:
        return self.output / f"{name}.json"

    def load(self, name: str) -> Result | None:
        if not self.path(name).exists():
            return None
        result = Result(**json.loads(self.path(name).read_text()))
        if result.settings != vars(self.settings):
            raise ThreeVPError(
                f"{self.path(name)} was measured with other settings ({result.settings}), which do not belong in one "
                "table with these. Give another --output folder, or delete the file."
            )
        return result

    def save(self, result: Result) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        temporary = self.path(result.variant).with_suffix(".partial")
        temporary.write_text(json.dumps(vars(result), indent=1))
        os.replace(temporary, self.path(result.variant))

    def write_tables(self, results: list[Result], variants: dict[str, Variant]) -> None:
        """`ablation.md` and `ablation.json` of what is done so far."""
        self.output.mkdir(parents=True, exist_ok=True)
        machine = Machine.here(self.device)
        (self.output / "ablation.md").write_text(markdown(results, variants, self.settings, machine))
        document = {
            "settings": vars(self.settings),
            "machine": machine.as_dict(),
            "results": [vars(r) for r in results],
        }
        temporary = self.output / "ablation.json.partial"
        temporary.write_text(json.dumps(document, indent=1))
        os.replace(temporary, self.output / "ablation.json")


def configured_capture(data: Path) -> Capture:
    """The capture as it is on disk."""
    from threevp_nerfstudio.capture.capture import load_capture

    return load_capture(data, check_pictures=False)


def markdown(results: list[Result], variants: dict[str, Variant], settings: Settings, machine: Machine) -> str:
    """PSNR (dB) and SSIM of each variant over picture, subject, face and mouth, by group, and by yaw sector."""
    length = f"{settings.steps:,} steps" if settings.steps is not None else f"{settings.seconds:g} s of training"
    lines = [f"{line}  " for line in machine.lines()]
    lines += [f"{settings.method} on {settings.capture}, {length} each, seed {settings.seed}", ""]
    for group in GROUPS:
        if not any(r.groups.get(group) for r in results):
            continue
        head = ["variant", "what is different", "steps", "s"]
        head += [f"{kind} {region.removeprefix('_') or 'all'}" for kind in ("PSNR", "SSIM") for region in REGIONS]
        lines += [f"**{TITLES[group]}**", "", _row(head), "|" + "---|" * len(head)]
        for r in results:
            values = r.groups.get(group, {})
            cells = [r.variant, variants[r.variant].says, f"{r.steps:,}", f"{r.seconds:.0f}"]
            cells += [_cell(values.get(f"psnr{region}"), 2) for region in REGIONS]
            cells += [_cell(values.get(f"ssim{region}"), 3) for region in REGIONS]
            lines.append(_row(cells))
        lines.append("")
    head = ["variant", *(name.replace("_", " ") for name in YAW_NAMES)]
    lines += [
        "**PSNR of the subject by yaw sector, held-out performance and static frames**",
        "",
        _row(head),
        "|" + "---|" * len(head),
    ]
    lines += [_row([r.variant, *(_cell(r.sectors.get(name), 2) for name in YAW_NAMES)]) for r in results]
    return "\n".join(lines) + "\n"


TITLES = {
    "val": "Held-out performance",
    "static": "Static turn",
    "back": "From behind: frames that the thin-* variants do not train on (all others do)",
}


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: float | None, places: int) -> str:
    return "-" if value is None else f"{value:.{places}f}"
