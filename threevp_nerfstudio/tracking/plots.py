"""Plots of a quality report, as SVG text that stands in the page itself."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from numpy import ndarray as Array

INK, ACCENT, SECOND, BAD, QUIET = "#1f2933", "#2a6fdb", "#e08e2b", "#d64545", "#cbd2d9"


def svg(figure: Figure) -> str:
    """Inline SVG, without the XML head; text stays text."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "threevp"}):
        out = io.StringIO()
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def timeline(
    times: Float[Array, "N"], rows: list[tuple[str, Float[Array, "N"], str]], static: Bool[Array, "N"], lost: Bool[Array, "N"]
) -> str:
    """Curves over time, one under the other; the turn is shaded, lost pictures are red."""
    figure = Figure(figsize=(10, 1.55 * len(rows)))
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    turn_end = times[static].max() if static.any() else times[0]
    for ax, (name, values, unit) in zip(axes, rows, strict=True):
        if static.any():
            ax.axvspan(times[0], turn_end, color="#eef3fb", lw=0)
        ax.plot(times, values, color=ACCENT, lw=1.0)
        if lost.any():
            ax.plot(times[lost], np.full(lost.sum(), np.nanmin(values) if np.isfinite(values).any() else 0.0), "|", color=BAD, ms=8)
        ax.set_ylabel(f"{name}\n{unit}" if unit else name, fontsize=8, color=INK)
        _plain(ax)
    axes[-1].set_xlabel("seconds (shaded: the turn)", fontsize=8)
    return svg(figure)


def polar_coverage(static_yaw: Float[Array, "A"], dynamic_yaw: Float[Array, "B"]) -> str:
    """Pictures per 10 degrees of view, seen from above: the subject looks down the page, at 0."""
    figure = Figure(figsize=(4.2, 4.2))
    ax = figure.add_subplot(projection="polar")
    edges = np.radians(np.arange(0, 361, 10))
    base = np.zeros(36)
    for yaw, colour, label in ((static_yaw, ACCENT, "turn"), (dynamic_yaw, SECOND, "performance")):
        counts = np.histogram(np.radians(yaw) % (2 * np.pi), bins=edges)[0].astype(float)
        shown = np.sqrt(base + counts) - np.sqrt(base)  # areas, so that a few pictures can be seen beside many
        ax.bar(edges[:-1] + np.radians(5), shown, width=np.radians(9), bottom=np.sqrt(base), color=colour, label=label)
        base += counts
    ax.set_theta_zero_location("S")
    ax.set_theta_direction(1)
    ax.set_yticks([])
    ax.set_xticks(np.radians(np.arange(0, 360, 45)))
    ax.set_xticklabels(["front", "45°\nleft", "90°", "135°", "back", "-135°", "-90°", "-45°\nright"], fontsize=8)
    ax.legend(fontsize=8, loc="lower left", bbox_to_anchor=(-0.12, -0.14), frameon=False)
    return svg(figure)


def sector_bars(names: list[str], rows: list[tuple[str, list[float], str]]) -> str:
    """Bars per yaw sector, one panel per quantity; NaN leaves a gap."""
    figure = Figure(figsize=(10, 2.4))
    axes = figure.subplots(1, len(rows), squeeze=False)[0]
    for ax, (title, values, unit) in zip(axes, rows, strict=True):
        ax.bar(range(len(names)), np.nan_to_num(values), color=ACCENT, width=0.7)
        ax.set_xticks(range(len(names)))
        ax.set_xticklabels(names, fontsize=7, rotation=40, ha="right")
        ax.set_title(f"{title}{f' ({unit})' if unit else ''}", fontsize=9, color=INK)
        finite = [v for v in values if np.isfinite(v)]
        if finite and min(finite) > 0.5 and not unit:
            ax.set_ylim(max(0.0, min(finite) - 0.1), 1.0)
        _plain(ax)
    figure.tight_layout()
    return svg(figure)


def expression_bars(names: list[str], low: Float[Array, "E"], high: Float[Array, "E"]) -> str:
    """How far each channel moved: 3rd to 97th percentile of the performance."""
    figure = Figure(figsize=(10, 0.19 * len(names) + 0.6))
    ax = figure.subplots()
    y = np.arange(len(names))[::-1]
    ax.barh(y, np.ones(len(names)), color="#f1f4f7", height=0.75)
    ax.barh(y, high - low, left=low, color=ACCENT, height=0.75)
    ax.set_yticks(y)
    ax.set_yticklabels(names, fontsize=7)
    ax.set_xlim(min(0.0, float(low.min(initial=0.0))), max(1.0, float(high.max(initial=1.0))))
    ax.set_ylim(-0.7, len(names) - 0.3)
    _plain(ax)
    return svg(figure)


def _plain(ax) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(QUIET)
    ax.tick_params(labelsize=7, colors=INK, length=2)
