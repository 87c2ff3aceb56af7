"""Measure this machine: one table of training, rendering, growth and start-up, against nerfstudio's own parts.

    python examples/benchmark.py --quick                      # the bundled sample, at most three minutes
    python examples/benchmark.py --data DIR --json out.json --plots docs/images --page docs/performance.md
    python examples/benchmark.py --device cuda --method threevp --data DIR

Seconds are process time on a CPU. On a CUDA device they are wall time, and the device is waited for before and after
whatever is measured.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

SAMPLE = Path(__file__).parent / "portrait_sample"


@dataclass
class Benchmark:
    """Train, render and time; print one table."""

    data: Path = SAMPLE
    """Capture folder."""
    method: Literal["threevp-small", "threevp"] = "threevp-small"
    """Whose sizes to use."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where; auto takes CUDA if it works."""
    quick: bool = False
    """Less of everything: at most three minutes on two idle cores."""
    parts: tuple[Literal["step", "picture", "growth", "startup"], ...] = ()
    """Measure only these, after the training that all need; everything by default."""
    seconds: float | None = None
    """Of training, for each contestant; 120, or 15 with --quick."""
    threads: int = 1
    """Of torch on a CPU. For batches of this size one is usually the fastest."""
    seed: int = 0
    """Of everything."""
    json: Path | None = None
    """Also write all figures to this file."""
    plots: Path | None = None
    """Also draw courses and growth as pictures into this folder."""
    page: Path | None = None
    """Also put the tables into this Markdown page, between its markers."""

    def main(self) -> None:
        import torch

        from threevp_nerfstudio.benchmark.suite import Effort, Suite
        from threevp_nerfstudio.engine.device import usable

        torch.set_num_threads(self.threads)
        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        device, _ = usable(device)
        console = Console(stderr=True)
        with console.status("starting") as status:
            effort = Effort.of(self.quick, self.seconds)
            suite = Suite(self.method, self.data.expanduser().absolute(), device, effort, self.seed, status.update)
            report = suite.run(self.parts)
        report.print()
        if self.json is not None:
            report.write_json(self.json)
        if self.page is not None:
            report.write_into(self.page)
        if self.plots is not None:
            report.plots(self.plots)


if __name__ == "__main__":
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    from threevp_nerfstudio.errors import ThreeVPError

    try:
        tyro.cli(Benchmark).main()
    except ThreeVPError as error:
        sys.exit(f"error: {error}")
