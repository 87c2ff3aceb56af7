"""The quality report: one HTML page that needs nothing else, and the same figures as report.json."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.body.template import RiggedTemplate
from threevp_nerfstudio.capture.coverage import SECTORS, sector_of
from threevp_nerfstudio.tracking import plots
from threevp_nerfstudio.tracking.evaluate import head_joint, joint_transforms
from threevp_nerfstudio.tracking.fitted import FittedTemplate
from threevp_nerfstudio.tracking.footage import Footage
from threevp_nerfstudio.tracking.overlay import OverlayRenderer, outlined
from threevp_nerfstudio.tracking.store import write_json
from threevp_nerfstudio.tracking.trajectory import Track

WORST, SPREAD = 8, 8
TILE = 240
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ReportData:
    """All that the report shows."""

    title: str
    footage: Footage
    fitted: FittedTemplate
    track: Track
    notes: list[str] = field(default_factory=list)
    """What the stages had to say."""
    advice: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each stage."""


def head_jitter(template: RiggedTemplate, track: Track) -> tuple[Float[Array, "N"], Float[Array, "N"]]:
    """Jitter per picture: how far position (mm) and direction (degrees) of the head are off the mean of their neighbours.

    A smooth motion has little of it even when it is fast. NaN at the ends and beside lost pictures.
    """
    G = joint_transforms(template, track.joint_rotations, np.zeros((len(track), 3)))[:, head_joint(template)]
    T = track.T_camera_root @ G
    shift, turn = np.full(len(T), np.nan), np.full(len(T), np.nan)
    pivot = template.joints[head_joint(template)]
    centre, axes = T[:, :3, :3] @ pivot + T[:, :3, 3], T[:, :3, :3]
    if len(T) > 2:
        shift[1:-1] = 1000 * np.linalg.norm(centre[1:-1] - (centre[:-2] + centre[2:]) / 2, axis=1)
        middle = axes[:-2] + axes[2:]
        middle = middle / np.linalg.norm(middle, axis=1, keepdims=True).clip(1e-9)
        cosine = (middle * axes[1:-1]).sum(1).clip(-1, 1)
        turn[1:-1] = np.degrees(np.arccos(cosine)).mean(1)
    beside = track.lost | np.roll(track.lost, 1) | np.roll(track.lost, -1)
    shift[beside], turn[beside] = np.nan, np.nan
    return shift, turn


def figures(data: ReportData) -> dict:
    """The numbers of the report, for report.json."""
    track = data.track
    good = ~track.lost
    yaw = np.degrees(track.azimuth)
    sector = sector_of(yaw)
    shift, turn = head_jitter(data.fitted.template, track)
    per_sector = {}
    for k, name in enumerate(SECTORS):
        rows = good & (sector == k)
        per_sector[name] = {
            "pictures": int(rows.sum()),
            "silhouette_iou": _mean(track.silhouette_iou[rows]),
            "photometric_error": _mean(track.photometric_error[rows]),
            "landmark_error_px": _mean(track.landmark_error_px[rows]),
        }
    return {
        "pictures": len(track),
        "static": int(data.footage.static.sum()),
        "lost": int(track.lost.sum()),
        "restarted": int(track.restarted.sum()),
        "silhouette_iou": _mean(track.silhouette_iou[good]),
        "photometric_error": _mean(track.photometric_error[good]),
        "landmark_error_px": _mean(track.landmark_error_px[good]),
        "jitter_mm": _mean(shift),
        "jitter_deg": _mean(turn),
        "focal_px": data.fitted.camera.fx,
        "turn_covered_deg": float(np.degrees(data.fitted.turn.covered)),
        "sectors": per_sector,
        "lost_pictures": np.flatnonzero(track.lost).tolist(),
        "seconds": data.seconds,
        "advice": data.advice,
        "notes": data.notes,
    }


def write_report(data: ReportData, output: Path, progress: Progress = lambda *_: None) -> dict:
    """Write report.html and report.json into `output`; returns the figures."""
    numbers = figures(data)
    write_json(output / "report.json", numbers)
    page = build_page(data, numbers, progress)
    temporary = output / "report.html.tmp"
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(output / "report.html")
    return numbers


def build_page(data: ReportData, numbers: dict, progress: Progress) -> str:
    """The whole HTML page."""
    track, footage = data.track, data.footage
    times, yaw = footage.times, np.degrees(track.azimuth)
    shift, turn = head_jitter(data.fitted.template, track)
    curves = [
        ("yaw", unbroken(yaw), "degrees"),
        ("silhouette", track.silhouette_iou, "IoU"),
        ("colour error", track.photometric_error, ""),
        ("landmarks", track.landmark_error_px, "pixels"),
        ("jitter", shift, "mm"),
        ("confidence", track.confidence[:, 1], "expression"),
    ]
    sectors = numbers["sectors"]

    def per_sector(key: str) -> list[float]:
        return [np.nan if sectors[n][key] is None else sectors[n][key] for n in SECTORS]

    bars = plots.sector_bars(
        list(SECTORS),
        [
            ("silhouette IoU", per_sector("silhouette_iou"), ""),
            ("colour error", per_sector("photometric_error"), "0 to 1"),
            ("landmark error", per_sector("landmark_error_px"), "px"),
        ],
    )
    good = ~track.lost
    shown = track.expression[good & ~footage.static] if (good & ~footage.static).any() else track.expression[good]
    shown = shown if len(shown) else track.expression
    low, high = np.quantile(shown, 0.03, axis=0), np.quantile(shown, 0.97, axis=0)
    sections = [
        ("What to do better", _list(data.advice, "Nothing: views and expressions are covered.")),
        ("Over time", plots.timeline(times, curves, footage.static, track.lost)),
        ("By view", bars),
        ("Views", plots.polar_coverage(yaw[good & footage.static], yaw[good & ~footage.static])),
        ("Expressions", plots.expression_bars(list(data.fitted.template.expression_names), low, high)),
        ("Worst pictures", _pictures(data, worst_rows(track), progress)),
        ("Round the turn", _pictures(data, spread_rows(track, footage), progress)),
        ("Notes of the stages", _list(data.notes, "None.")),
        ("Time", _list([f"{stage}: {s:.1f} s" for stage, s in data.seconds.items()], "Not measured.")),
    ]
    body = "\n".join(f"<section><h2>{html.escape(title)}</h2>{content}</section>" for title, content in sections)
    return PAGE.format(title=html.escape(data.title), tiles=_tiles(numbers), body=body)


def unbroken(yaw: Float[Array, "N"]) -> Float[Array, "N"]:
    """The yaw with a gap in place of its jump from 180 to -180 degrees."""
    drawn = yaw.copy()
    drawn[1:][np.abs(np.diff(yaw)) > 180] = np.nan
    return drawn


def worst_rows(track: Track, count: int = WORST) -> Int[Array, "k"]:
    """Pictures that fit worst, not all from the same moment: lost ones first, then low silhouette and high colour error."""
    badness = 2.0 * track.lost + (1 - np.nan_to_num(track.silhouette_iou)) + 2 * np.nan_to_num(track.photometric_error, nan=0.5)
    badness = badness + 0.02 * np.nan_to_num(track.landmark_error_px)
    chosen: list[int] = []
    apart = max(1, len(track) // (4 * count))
    for i in np.argsort(-badness):
        if all(abs(int(i) - j) >= apart for j in chosen):
            chosen.append(int(i))
        if len(chosen) == count:
            break
    return np.array(chosen, dtype=int)


def spread_rows(track: Track, footage: Footage, count: int = SPREAD) -> Int[Array, "k"]:
    """Pictures spread over the views."""
    rows = np.flatnonzero(footage.static & ~track.lost)
    rows = rows if len(rows) else np.arange(len(track))
    order = rows[np.argsort(track.azimuth[rows])]
    return order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))]


def _pictures(data: ReportData, rows: Int[Array, "k"], progress: Progress) -> str:
    height, width = data.footage.rgb.shape[1:3]
    scale = TILE / max(width, height)
    size = (round(width * scale), round(height * scale))
    renderer = OverlayRenderer(data.fitted, data.track, *size)
    cells = []
    for n, i in enumerate(rows):
        look, covered = renderer.render(int(i))
        small = cv2.resize(np.asarray(data.footage.rgb[i]), size, interpolation=cv2.INTER_AREA)
        picture = np.concatenate([outlined(small, covered, bool(data.track.lost[i])), look], axis=1)
        text = f"{data.footage.times[i]:.2f} s, {np.degrees(data.track.azimuth[i]):.0f}°, IoU {data.track.silhouette_iou[i]:.3f}"
        text += ", lost" if data.track.lost[i] else ""
        cells.append(f'<figure><img alt="{text}" src="{data_url(picture)}"><figcaption>{text}</figcaption></figure>')
        progress("pictures of the report", n + 1, len(rows))
    return f'<div class="grid">{"".join(cells)}</div>'


def data_url(picture: UInt8[Array, "h w 3"]) -> str:
    """A JPEG within the page."""
    ok, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    assert ok
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _tiles(numbers: dict) -> str:
    rows = [
        ("pictures", f"{numbers['pictures']}", f"{numbers['static']} of the turn"),
        ("lost", f"{numbers['lost']}", f"{numbers['restarted']} started afresh"),
        ("silhouette IoU", _text(numbers["silhouette_iou"], 3), "hair and clothes move: 0.85 to 0.97 is usual"),
        ("colour error", _text(numbers["photometric_error"], 3), "0 to 1"),
        ("landmark error", _text(numbers["landmark_error_px"], 1), "pixels"),
        ("jitter", _text(numbers["jitter_mm"], 2), f"mm; {_text(numbers['jitter_deg'], 2)}°"),
        ("turn", f"{numbers['turn_covered_deg']:.0f}°", "of 360°"),
        ("focal length", f"{numbers['focal_px']:.0f}", "pixels"),
    ]
    return "".join(f'<div class="tile"><b>{value}</b><span>{name}</span><small>{more}</small></div>' for name, value, more in rows)


def _list(lines: list[str], otherwise: str) -> str:
    if not lines:
        return f"<p>{html.escape(otherwise)}</p>"
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _mean(values: Float[Array, "n"]) -> float | None:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: track report</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: #f5f7fa; margin: 0 auto; max-width: 1080px; padding: 24px; }}
h1 {{ font-size: 24px; margin: 0 0 16px; }} h2 {{ font-size: 17px; margin: 0 0 10px; }}
section, .tiles {{ background: white; border-radius: 10px; padding: 18px 22px; margin-bottom: 16px; box-shadow: 0 1px 3px #0001; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(115px, 1fr)); gap: 14px; }}
.tile b {{ display: block; font-size: 22px; color: #2a6fdb; }} .tile span {{ display: block; }} .tile small {{ color: #7b8794; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(235px, 1fr)); gap: 12px; }}
figure {{ margin: 0; }} img {{ width: 100%; border-radius: 6px; display: block; }} figcaption {{ font-size: 12px; color: #52606d; }}
svg {{ max-width: 100%; height: auto; }} ul {{ margin: 0; padding-left: 20px; }}
</style></head><body>
<h1>{title}: how well it was tracked</h1>
<div class="tiles">{tiles}</div>
{body}
</body></html>
"""
