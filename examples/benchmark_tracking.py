"""How well a video is tracked, against a capture whose track is known: accuracy by view, expressions, time, memory.

    python examples/benchmark_tracking.py --video portrait_a.mp4 --truth portrait_a --output outputs/benchmark_tracking

Runs `threevp track` in a process of its own (what is done already is not done again; the times are then those of the first run)
and prints the table of the targets. `--train` also trains an avatar on either capture and compares both with the truth's pictures of
the frames that each holds out, which takes a while.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from threevp_nerfstudio.capture.capture import load_capture
from threevp_nerfstudio.capture.pictures import read_rgba
from threevp_nerfstudio.data.dataparser import cameras_of
from threevp_nerfstudio.model.metrics import psnr, subject_mask
from threevp_nerfstudio.render.avatar import load_avatar
from threevp_nerfstudio.tracking.evaluate import Evaluation, compare, match_frames, print_evaluation
from threevp_nerfstudio.tracking.stages import Workspace

PEAK = """
import json, resource, sys
from threevp_nerfstudio.cli import entry_point
entry_point(sys.argv[2:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cpu = resource.getrusage(resource.RUSAGE_SELF).ru_utime + resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
json.dump({"peak_gb": peak / 2**20, "cpu_s": cpu}, open(sys.argv[1], "w"))
"""


@dataclass
class BenchmarkTracking:
    """Track a video and compare with the truth."""

    video: Path
    """The recording."""
    truth: Path
    """The capture that shows the same pictures, with the exact track."""
    output: Path = Path("outputs/benchmark_tracking")
    """Folder of the tracked capture."""
    options: tuple[str, ...] = ()
    """More options of `threevp track`, e.g. --options=--working-size --options=320."""
    train: bool = False
    """Also train threevp-small on both captures and compare."""

    def main(self) -> None:
        used = self.run()
        found = compare(self.output, self.truth)
        console = Console()
        print_evaluation(console, found)
        self.print_targets(console, found, used)
        if self.train:
            self.print_training(console)

    def run(self) -> dict[str, float]:
        """Track in a process of its own; its peak memory (GB) and processor time (s)."""
        self.output.mkdir(parents=True, exist_ok=True)
        answer = self.output / ".benchmark.json"
        command = [sys.executable, "-c", PEAK, str(answer), "track", "--video", str(self.video), "--output", str(self.output)]
        if subprocess.run([*command, *self.options]).returncode:
            sys.exit("tracking failed; its message is above")
        used = json.loads(answer.read_text())
        kept = self.output / ".benchmark_first.json"
        if kept.is_file() and used["cpu_s"] < json.loads(kept.read_text())["cpu_s"]:
            return json.loads(kept.read_text())  # most stages had been done before
        kept.write_text(json.dumps(used))
        return used

    def print_targets(self, console: Console, found: Evaluation, used: dict[str, float]) -> None:
        """What is wanted, what was measured."""
        back = [e for name, e in found.sectors.items() if int(name.split("-")[0]) >= 120 and e.pictures]
        per_picture = used["cpu_s"] / max(1, found.matched)
        rows = [
            ("head rotation, mean", "< 1.5°", found.all.rotation_mean_deg, found.all.rotation_mean_deg < 1.5),
            ("head rotation, 95th percentile", "< 4°", found.all.rotation_p95_deg, found.all.rotation_p95_deg < 4.0),
            ("... back views (|yaw| > 120°), mean", "< 1.5°", *worst([e.rotation_mean_deg for e in back], 1.5)),
            ("pictures lost", "0", found.total - found.matched, found.total == found.matched),
            ("face surface, frontal pictures", "< 3 mm", found.sectors["0-30"].face_mm, found.sectors["0-30"].face_mm < 3.0),
            ("head position, worst picture", "< 6 mm", found.all.position_max_mm, found.all.position_max_mm < 6.0),
        ]
        rows += [
            (f"correlation, {name}", f"> {wanted}", found.correlation[name], found.correlation[name] > wanted)
            for name, wanted in (("jaw opening", 0.8), ("smile", 0.6), ("blink", 0.6), ("brow raise", 0.6))
        ]
        rows += [
            ("processor seconds per picture", "< 3 (1.5 s on 2 cores)", per_picture, per_picture < 3.0),
            ("peak memory, GB", "< 4", used["peak_gb"], used["peak_gb"] < 4.0),
        ]
        table = Table(title=f"{self.video.name}, {os.cpu_count()} cores", title_justify="left")
        for column in ("quantity", "target", "measured", ""):
            table.add_column(column, justify="right" if column == "measured" else "left")
        for name, wanted, value, met in rows:
            table.add_row(name, wanted, f"{value:.2f}", "met" if met else "[red]missed[/red]")
        console.print(table)
        times = {s: v["seconds"] for s, v in Workspace.open(self.output).state.items()}
        console.print("wall time by stage: " + ", ".join(f"{stage} {s:.0f} s" for stage, s in times.items()), highlight=False)

    def print_training(self, console: Console) -> None:
        """Subject PSNR of an avatar trained on the tracked capture, and of one trained on the truth, both against the truth's pictures."""
        captures = {"tracked": self.output, "truth": self.truth}
        scores = {name: held_out_psnr(self.trained(name, data), self.truth) for name, data in captures.items()}
        loss = scores["truth"] - scores["tracked"]
        console.print(
            f"avatar against true pictures that it has not seen, subject: tracked {scores['tracked']:.2f} dB, "
            f"truth {scores['truth']:.2f} dB; loss {loss:.2f} dB (target < 2.5)",
            highlight=False,
        )

    def trained(self, name: str, data: Path) -> Path:
        """config.yml of an avatar of a capture."""
        runs = self.output / "avatars"
        command = ["ns-train", "threevp-small", "--data", str(data.absolute()), "--output-dir", str(runs), "--experiment-name", name]
        subprocess.run([*command, "--timestamp", "run", "--vis", "tensorboard"], check=True)
        return runs / name / "threevp-small" / "run" / "config.yml"


def held_out_psnr(config: Path, truth: Path) -> float:
    """Mean subject PSNR, dB, of an avatar in the frames that its own capture holds out, against the truth's pictures of those moments on
    white, at their size. The video must show all of the truth's picture (tracked without a crop)."""
    avatar, true = load_avatar(config), load_capture(truth)
    model, own = avatar.model, avatar.capture
    model.config.background_color = "white"
    ours, theirs, _ = match_frames(own, true)
    found = []
    for i, k in track(list(zip(ours, theirs, strict=True)), "Comparing pictures"):
        if own.frames.split[i] != "val":
            continue
        rgba = torch.from_numpy(read_rgba(true.frames, int(k))).float() / 255
        alpha, size = rgba[..., 3:], tuple(rgba.shape[:2])
        picture = model.get_outputs_for_camera(cameras_of(own, np.array([i])))["rgb"].cpu()
        if picture.shape[0] * size[1] != picture.shape[1] * size[0]:
            sys.exit(f"{own.directory} shows another part of the picture than {truth}; track with --options=--crop --options=none")
        picture = F.interpolate(picture.movedim(-1, 0)[None], size=size, mode="area")[0].movedim(0, -1)
        found.append(psnr(picture, rgba[..., :3] * alpha + 1 - alpha, subject_mask(alpha)))
    if not found:
        sys.exit(f"{truth} has no pictures of the frames that {own.directory} holds out")
    return float(np.mean(found))


def worst(values: list[float], limit: float) -> tuple[float, bool]:
    value = max(values, default=float("nan"))
    return value, value < limit


if __name__ == "__main__":
    tyro.cli(BenchmarkTracking).main()
