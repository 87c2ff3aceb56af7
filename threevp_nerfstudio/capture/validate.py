"""`threevp validate DIR`: load a capture strictly, hold its posed template against its mattes, and report coverage."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray as Array
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track
from rich.table import Table

from threevp_nerfstudio.capture.capture import Capture, load_capture, read_rgba, yaw_deg
from threevp_nerfstudio.capture.coverage import SECTORS, Channel, channels, coverage_warnings, sector_of
from threevp_nerfstudio.capture.silhouette import PosedTemplate, iou, matte_at, reduced_size

LOW_IOU = 0.7
MATTE_ONLY, TEMPLATE_ONLY, OUTLINE = (40, 110, 255), (255, 60, 40), (20, 180, 60)


@dataclass
class Validate:
    """Check a capture; report coverage and silhouettes. Hair and clothes are not in a template: IoU is 0.8 to 0.95."""

    directory: tyro.conf.Positional[Path]
    """The capture's folder."""
    output: Path | None = None
    """Folder for report.json and overlay.png; by default outputs/validate/NAME in the working directory."""
    max_frames: int = 300
    """Silhouettes of at most so many frames, evenly spread; 0 for every frame."""
    resolution: int = 192
    """Longer side of the silhouettes, pixels."""
    sheet_frames: int = 24
    """Pictures on the contact sheet; a third of them those that fit worst."""

    def main(self) -> None:
        console = Console()
        capture = load_capture(self.directory)
        report = examine(capture, self.max_frames, self.resolution)
        output = self.output or Path("outputs") / "validate" / capture.directory.name
        output.mkdir(parents=True, exist_ok=True)
        (output / "report.json").write_text(json.dumps(report.as_json(), indent=1) + "\n")
        contact_sheet(capture, report, self.sheet_frames).save(output / "overlay.png")
        print_report(console, report)
        console.print(f"written: {output / 'report.json'}, {output / 'overlay.png'}")


@dataclass(frozen=True)
class Report:
    """What `examine` found."""

    directory: Path
    counts: dict[str, dict[str, int]]
    """Frames by split and sequence."""
    frames: Int[Array, "M"]
    """Frames whose silhouettes were held against their mattes."""
    yaw: Float[Array, "M"]
    iou: Float[Array, "M"]
    frames_per_sector: dict[str, dict[str, int]]
    """All frames by sector and split."""
    expression: list[Channel]
    warnings: list[str]

    def sector_iou(self) -> dict[str, tuple[float, float] | None]:
        """Mean and worst IoU of each sector; None where no silhouette was looked at."""
        sector = sector_of(self.yaw)
        per = {name: self.iou[sector == k] for k, name in enumerate(SECTORS)}
        return {name: (float(v.mean()), float(v.min())) if len(v) else None for name, v in per.items()}

    def as_json(self) -> dict:
        means = self.sector_iou()
        return {
            "directory": str(self.directory),
            "counts": self.counts,
            "iou": {"mean": float(self.iou.mean()), "worst": float(self.iou.min()), "frames": len(self.iou)},
            "sectors": {
                name: {
                    "frames": self.frames_per_sector[name],
                    "iou_mean": None if means[name] is None else means[name][0],
                    "iou_worst": None if means[name] is None else means[name][1],
                }
                for name in SECTORS
            },
            "frames": [
                {"frame": int(i), "yaw_deg": round(float(y), 2), "iou": round(float(v), 4)}
                for i, y, v in zip(self.frames, self.yaw, self.iou, strict=True)
            ],
            "expression": [asdict(channel) for channel in self.expression],
            "warnings": self.warnings,
        }


def examine(capture: Capture, max_frames: int = 300, resolution: int = 192, quiet: bool = False) -> Report:
    """Silhouette IoU of at most `max_frames` frames (0: all), and the coverage of all frames."""
    frames, motion = capture.frames, capture.motion
    count = len(frames) if max_frames <= 0 else min(max_frames, len(frames))
    looked_at = np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))
    posed = PosedTemplate(capture.template, motion)
    fits = []
    for i in track(looked_at.tolist(), "Silhouettes", disable=quiet, transient=True):
        width, height = reduced_size(frames, i, resolution)
        matte = matte_at(read_rgba(frames, i), width, height)
        fits.append(iou(posed.silhouette(frames, i, width, height), matte))
    fit, yaw = np.array(fits), yaw_deg(frames.camera_to_world)
    names = capture.template.expression_names if motion.rigged else motion.conditioning_names
    values = (motion.expression if motion.rigged else motion.conditioning)[frames.motion_index]
    table = channels(names, values, frames.split)
    largest = np.abs(values).max(1, initial=0.0)
    said = coverage_warnings(yaw, frames.split, frames.sequence, table, largest if motion.rigged else 0 * largest)
    low = looked_at[fit < LOW_IOU]
    if len(low):
        worst = ", ".join(frames.image_paths[i].name for i in low[np.argsort(fit[fit < LOW_IOU])][:5])
        said.append(f"{len(low)} frames have a silhouette IoU below {LOW_IOU}: {worst}; look at overlay.png")
    if signed_volume(capture.template.vertices, capture.template.faces) < 0:
        said.append("the template is inside out: its faces run clockwise seen from outside")
    sector = sector_of(yaw)
    return Report(
        directory=capture.directory,
        counts={
            s: {q: int(((frames.split == s) & (frames.sequence == q)).sum()) for q in ("static", "dynamic")}
            for s in ("train", "val", "test")
        },
        frames=looked_at,
        yaw=yaw[looked_at],
        iou=fit,
        frames_per_sector={
            name: {s: int(((sector == k) & (frames.split == s)).sum()) for s in ("train", "val", "test")}
            for k, name in enumerate(SECTORS)
        },
        expression=table,
        warnings=said,
    )


def signed_volume(vertices: Float[Array, "V 3"], faces: Int[Array, "F 3"]) -> float:
    """Of the mesh closed towards its centre, cubic metres; positive where faces run counter-clockwise from outside."""
    a, b, c = np.moveaxis((vertices - vertices.mean(0)).astype(np.float64)[faces], 1, 0)
    return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6.0)


def print_report(console: Console, report: Report) -> None:
    """Tables on the console."""
    frames = ", ".join(f"{s} {c['static']} static + {c['dynamic']} dynamic" for s, c in report.counts.items())
    console.print(f"[bold]{report.directory}[/bold]\nframes: {frames}", highlight=False)
    table = Table(title=f"Views and silhouettes ({len(report.iou)} frames)", title_justify="left")
    table.add_column("sector")
    for column in ("yaw", "train", "val", "test", "IoU mean", "IoU worst"):
        table.add_column(column, justify="right")
    for k, (name, fit) in enumerate(report.sector_iou().items()):
        middle = 45 * k if k <= 4 else 45 * k - 360
        cells = [str(report.frames_per_sector[name][s]) for s in ("train", "val", "test")]
        table.add_row(name, f"{middle}°", *cells, *(("-", "-") if fit is None else (f"{v:.3f}" for v in fit)))
    table.add_section()
    totals = [str(sum(c.values())) for c in report.counts.values()]
    table.add_row("all", "", *totals, f"{report.iou.mean():.3f}", f"{report.iou.min():.3f}")
    console.print(table)
    shown = [c for c in report.expression if c.train_frames or c.held_out_frames]
    table = Table(title=f"Expressions ({len(shown)} of {len(report.expression)} channels show)", title_justify="left")
    table.add_column("channel")
    for column in ("train range", "frames", "held-out range", "frames"):
        table.add_column(column, justify="right")
    for c in shown:
        held_out = f"{c.held_out_low:.2f} to {c.held_out_high:.2f}"
        spans = (f"{c.train_low:.2f} to {c.train_high:.2f}", str(c.train_frames), held_out, str(c.held_out_frames))
        table.add_row(c.name, *spans)
    console.print(table)
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/yellow] {warning}", highlight=False)
    if not report.warnings:
        console.print("[green]no warnings[/green]")


def contact_sheet(capture: Capture, report: Report, count: int = 24, tile: int = 256) -> Image.Image:
    """Pictures under the template's outline (green); where they differ, blue is matte only, red is template only."""
    order = np.argsort(report.iou)
    worst = order[: count // 3]
    rest = np.setdiff1d(np.arange(len(order)), worst)
    by_yaw = rest[np.argsort(report.yaw[rest])]
    spread = (
        by_yaw[np.unique(np.linspace(0, len(by_yaw) - 1, count - len(worst)).round().astype(int))]
        if len(rest)
        else rest
    )
    posed = PosedTemplate(capture.template, capture.motion)
    tiles = []
    for k in [*spread, *worst]:
        i = int(report.frames[k])
        width, height = reduced_size(capture.frames, i, tile)
        rgba = read_rgba(capture.frames, i)
        picture = overlay(rgba, posed.silhouette(capture.frames, i, width, height))
        image = Image.new("RGB", (tile, tile), "white")
        image.paste(Image.fromarray(picture), (0, 0))
        label = f"{capture.frames.image_paths[i].stem}  {report.yaw[k]:.0f} deg  IoU {report.iou[k]:.3f}"
        ImageDraw.Draw(image).text((4, 2), label, fill="black")
        tiles.append(image)
    columns = min(6, len(tiles))
    sheet = Image.new("RGB", (columns * tile, -(-len(tiles) // columns) * tile), "white")
    for n, image in enumerate(tiles):
        sheet.paste(image, (n % columns * tile, n // columns * tile))
    return sheet


def overlay(rgba: UInt8[Array, "H W 4"], silhouette: Bool[Array, "h w"]) -> UInt8[Array, "h w 3"]:
    """A picture over white, tinted where matte and silhouette differ, with the silhouette's outline."""
    height, width = silhouette.shape
    alpha = rgba[..., 3:].astype(np.float32) / 255
    white = rgba[..., :3] * alpha + 255 * (1 - alpha)
    picture = cv2.resize(white, (width, height), interpolation=cv2.INTER_AREA)
    matte = matte_at(rgba, width, height)
    for mask, colour in ((matte & ~silhouette, MATTE_ONLY), (silhouette & ~matte, TEMPLATE_ONLY)):
        picture[mask] = 0.5 * picture[mask] + 0.5 * np.array(colour, dtype=np.float32)
    filled = silhouette.astype(np.uint8)
    picture[(filled - cv2.erode(filled, np.ones((3, 3), np.uint8))) > 0] = OUTLINE
    return picture.round().astype(np.uint8)
