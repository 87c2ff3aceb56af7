"""Results of a benchmark as one table, as JSON and as plots."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from threevp_nerfstudio.benchmark.growth import Point
from threevp_nerfstudio.benchmark.measure import Machine
from threevp_nerfstudio.benchmark.training import Course
from threevp_nerfstudio.errors import ThreeVPError

START, END = "<!-- benchmark -->", "<!-- end of benchmark -->"


@dataclass
class Section:
    """Rows under one heading. Cells are text; the first of each row says what it is."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    note: str = ""

    def add(self, *cells: object) -> None:
        self.rows.append(tuple(str(cell) for cell in cells))


@dataclass
class Report:
    """Everything that was measured; `figures` are the numbers behind the sections, by name."""

    machine: Machine
    settings: dict[str, Any]
    sections: list[Section] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def section(self, title: str, *columns: str, note: str = "") -> Section:
        self.sections.append(Section(title, columns, note=note))
        return self.sections[-1]

    def heading(self) -> list[str]:
        settings = ", ".join(f"{k} {v}" for k, v in self.settings.items())
        return [*self.machine.lines(), settings]

    def print(self) -> None:
        """The one table."""
        console = Console(width=max(Console().width, 140))
        for line in self.heading():
            console.print(line, highlight=False, soft_wrap=True)
        for s in self.sections:
            # columns of its own for each part: one grid for all would fold every name
            table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), title=f"\n{s.title}", title_justify="left")
            for name in s.columns:
                table.add_column(name)
            for row in s.rows:
                table.add_row(*row)
            console.print(table)
            if s.note:
                console.print(f"[dim]{s.note}", highlight=False, soft_wrap=True)

    def markdown(self) -> str:
        lines = [f"{line}  " for line in self.heading()]
        for s in self.sections:
            lines += ["", f"**{s.title}**", "", "| " + " | ".join(s.columns) + " |", "|" + "---|" * len(s.columns)]
            lines += ["| " + " | ".join(row) + " |" for row in s.rows]
            if s.note:
                lines += ["", s.note]
        return "\n".join(lines) + "\n"

    def write_json(self, path: Path) -> None:
        document = {"machine": self.machine.as_dict(), "settings": self.settings, "figures": plain(self.figures)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")

    def write_into(self, path: Path) -> None:
        """Put the tables between the markers of a Markdown page.

        Raises:
            ThreeVPError: the page has no markers.
        """
        page = path.read_text()
        if START not in page or END not in page:
            raise ThreeVPError(f"{path}: the lines {START} and {END} are missing; the tables go between them.")
        new = f"{START}\n{self.markdown()}{END}"
        path.write_text(re.sub(f"{START}.*?{END}", lambda _: new, page, flags=re.DOTALL))

    def plots(self, folder: Path) -> list[Path]:
        """Courses of PSNR over time, and the growth curves, as PNG."""
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        if self.figures.get("courses"):
            written.append(_plot_courses(self.figures["courses"], folder / "quality.png"))
        if self.figures.get("growth"):
            written.append(_plot_growth(self.figures["growth"], folder / "growth.png"))
        return written


def plain(value: Any) -> Any:
    """Dataclasses to dictionaries, all the way down."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def _plot_courses(courses: list[Course], path: Path) -> Path:
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, key in zip(axes, ("val", "static"), strict=True):
        for course in courses:
            axis.plot(
                course.seconds, [row.get(key, float("nan")) for row in course.psnr], marker="o", label=course.name
            )
        axis.set(title={"val": "held-out performance", "static": "static frames"}[key], xlabel="seconds of training")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PSNR of the subject, dB")
    names = axes[0].get_legend_handles_labels()
    figure.legend(*names, loc="lower center", ncols=len(courses), fontsize=7, bbox_to_anchor=(0.5, -0.05))
    return _saved(figure, path)


def _plot_growth(growth: dict[str, list[Point]], path: Path) -> Path:
    plt = _pyplot()
    figure, axes = plt.subplots(2, 3, figsize=(11, 6))
    for axis, (name, points) in zip(axes.flat, growth.items(), strict=False):
        values = [p.value for p in points]
        for label, stats in (("step", [p.step for p in points]), ("picture", [p.picture for p in points])):
            middle = [s.median * 1e3 for s in stats]
            spread = [[(s.median - s.low) * 1e3 for s in stats], [(s.high - s.median) * 1e3 for s in stats]]
            axis.errorbar(values, middle, spread, marker="o", capsize=2, label=label)
        axis.set(xlabel=name, xscale="log", yscale="log")
        axis.set_xticks(values, [f"{value:,}" for value in values])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3, which="both")
    for axis in axes[:, 0]:
        axis.set_ylabel("milliseconds")
    axes.flat[0].legend()
    return _saved(figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _saved(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return path
