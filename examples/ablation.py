"""Train the ablations of the method one after the other and write a table of them.

    python examples/ablation.py --data DIR --steps 4000                     # equal steps
    python examples/ablation.py --data DIR --seconds 300 --only full color  # equal time, some of them
    python examples/ablation.py --list

Each variant is written down when it is done: run the same command again after an interruption, and it goes on with the
next one. Seconds are process time on a CPU, wall time on CUDA.
"""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SAMPLE = Path(__file__).parent / "portrait_sample"


@dataclass
class Ablate:
    """Train variants at equal steps or equal time; PSNR and SSIM over all, subject, face, mouth and per yaw sector."""

    data: Path = SAMPLE
    """Capture folder."""
    output: Path = Path("outputs/ablation")
    """Folder of the results: NAME.json for each variant, ablation.md and ablation.json for all."""
    steps: int | None = None
    """Training steps of each variant. The learning rates decay over this length."""
    seconds: float | None = None
    """Seconds of training of each variant, in place of --steps."""
    only: tuple[str, ...] = ()
    """Names of variants; all of them by default."""
    frames: int = 24
    """Pictures measured of each group (held-out performance, static turn, from behind), at most."""
    method: Literal["threevp-small", "threevp"] = "threevp-small"
    """Whose sizes to use."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where; auto takes CUDA if it works."""
    threads: int = 1
    """Of torch on a CPU."""
    seed: int = 0
    """Of everything."""
    list: bool = False
    """Only name the variants."""

    def main(self) -> None:
        from threevp_nerfstudio.benchmark.variants import VARIANTS
        from threevp_nerfstudio.errors import ThreeVPError

        if self.list:
            width = max(map(len, VARIANTS))
            print("\n".join(f"{name:<{width}}  {variant.says}" for name, variant in VARIANTS.items()))
            return
        unknown = [name for name in self.only if name not in VARIANTS]
        if unknown:
            raise ThreeVPError(f"--only: there is no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}.")
        if (self.steps is None) == (self.seconds is None):
            raise ThreeVPError("Give either --steps N (equal steps) or --seconds S (equal time).")
        self.train([VARIANTS[name] for name in self.only or VARIANTS])

    def train(self, variants: list) -> None:
        import torch

        from threevp_nerfstudio.benchmark.ablation import Ablation, Settings
        from threevp_nerfstudio.benchmark.suite import METHODS
        from threevp_nerfstudio.engine.device import usable

        torch.set_num_threads(self.threads)
        wanted = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        device, _ = usable(wanted)
        data = self.data.expanduser().absolute()
        settings = Settings(self.method, data.name, self.steps, self.seconds, self.frames, self.seed)
        ablation = Ablation(METHODS[self.method][1].config, data, self.output, settings, device)
        results = []
        columns = (
            TextColumn("{task.description:<34}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            whole = progress.add_task("all variants", total=len(variants))
            for variant in variants:
                bar = progress.add_task(variant.name, total=1.0)

                def report(what: str, part: float, bar=bar, name=variant.name) -> None:
                    progress.update(bar, description=f"{name}: {what}", completed=part)

                results.append(ablation.run(variant, report))
                progress.update(bar, description=f"{variant.name}: done", completed=1.0)
                progress.advance(whole)
                ablation.write_tables(results, {v.name: v for v in variants})
        Console().print((self.output / "ablation.md").read_text(), markup=False, soft_wrap=True)


if __name__ == "__main__":
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    warnings.filterwarnings("ignore")
    from threevp_nerfstudio.errors import ThreeVPError

    try:
        tyro.cli(Ablate).main()
    except ThreeVPError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
