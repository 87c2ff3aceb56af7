"""CSV files of face-capture apps: ARKit's 52 blendshapes over time, with the rotation of head and eyes.

Live Link Face writes `Timecode,BlendShapeCount,EyeBlinkLeft,...,TongueOut,HeadYaw,HeadPitch,HeadRoll,LeftEyeYaw,...` with
timecodes HH:MM:SS:FF.fff and angles in radians. Other apps write a `timestamp` in seconds and camelCase names. Names are
read without regard to case; columns may come in any order.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from threevp_nerfstudio.animation.names import ARKIT_NAMES, plain
from threevp_nerfstudio.errors import PoseError

RATES = (24.0, 25.0, 30.0, 48.0, 50.0, 60.0, 120.0)
"""Frame rates that timecodes count in."""
DEFAULT_RATE = 60.0
"""Live Link Face's."""
GAP_STEPS = 2.5
"""A step between rows that is this many times the usual one is a gap."""
LARGEST_COEFFICIENT = 5.0
DAY = 24.0 * 3600.0
_TIME_COLUMNS = {"timecode": "timecode", "timestamp": "seconds", "time": "seconds", "times": "seconds", "seconds": "seconds",
                 "timestampms": "milliseconds", "timems": "milliseconds", "milliseconds": "milliseconds"}  # fmt: skip
_COUNT_COLUMN = "blendshapecount"
_ANGLES = ("yaw", "pitch", "roll")
_CANONICAL = {plain(name): name for name in ARKIT_NAMES}
_TIMECODE = re.compile(r"^(\d{1,2}):(\d{1,2}):(\d{1,2})(?:[:;](\d{1,3}(?:\.\d+)?))?$|^(\d{1,2}):(\d{1,2}):(\d{1,2}\.\d+)$")


@dataclass(frozen=True)
class FaceTake:
    """A recording of a face: T rows."""

    times: Float[Array, "T"]
    """Seconds from the first row."""
    names: tuple[str, ...]
    """Channels, ARKit's in its own spelling."""
    values: Float[Array, "T C"]
    rotations: dict[str, Float[Array, "T 3"]]
    """Yaw, pitch and roll of "head", "lefteye" and "righteye", radians; those that the file has."""
    ignored: tuple[str, ...] = ()
    """Columns that hold no numbers, or no known meaning."""


@dataclass(frozen=True)
class _Table:
    path: Path
    header: list[str]
    rows: list[list[str]]

    def where(self, row: int) -> str:
        return f"{self.path}: row {row + 2}"

    def numbers(self, column: int) -> Float[Array, "T"]:
        """A column of finite numbers."""
        out = np.empty(len(self.rows))
        for i, row in enumerate(self.rows):
            cell = row[column].strip()
            try:
                out[i] = float(cell)
            except ValueError:
                out[i] = np.nan
            if not np.isfinite(out[i]):
                seen = f"is {cell!r}" if cell else "is empty"
                raise PoseError(
                    f"{self.where(i)}: {self.header[column]!r} {seen}; a finite number is expected. Cut the take where the "
                    "face was lost, or bridge it with --drive.max-gap SECONDS."
                )
        return out


def read_face_csv(
    path: Path,
    timecode_fps: float | None = None,
    max_gap: float = 0.0,
    angle_unit: Literal["radians", "degrees"] = "radians",
) -> FaceTake:
    """Read the CSV of a face-capture app.

    Args:
        timecode_fps: frames per second that timecodes count in; None: from the file, else 60.
        max_gap: rows without data and missing rows are bridged, if they span no more than this many seconds.

    Raises:
        PoseError: what is wrong, by row; a table that is no face capture, gaps, NaN, times that do not ascend.
    """
    table = _read_table(path)
    keys = [plain(name) for name in table.header]
    if doubled := sorted({table.header[i] for i, k in enumerate(keys) if k and keys.count(k) > 1}):
        raise PoseError(f"{path}: columns {doubled} are there more than once; keep one of each.")
    lost = _lost_rows(table, keys)
    if lost.any():
        if max_gap <= 0.0:
            raise PoseError(
                f"{table.where(int(np.flatnonzero(lost)[0]))}: no face was seen ({int(lost.sum())} of {len(lost)} rows are "
                "without data). Cut the take there, or bridge it with --drive.max-gap SECONDS."
            )
        table = _Table(path, table.header, [row for row, gone in zip(table.rows, lost, strict=True) if not gone])
        if not table.rows:
            raise PoseError(f"{path}: no face was seen in any row.")
    times = _times(table, keys, timecode_fps)
    _check_order(table, times)
    _check_gaps(table, times, max_gap)
    names, values, ignored = _channels(table, keys)
    rotations = _rotations(table, keys, angle_unit)
    return FaceTake(times - times[0], names, values, rotations, ignored)


def _read_table(path: Path) -> _Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PoseError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise PoseError(f"{path}: not a text file ({error.reason}); a CSV of a face-capture app is expected.") from error
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise PoseError(f"{path}: is empty; a CSV of a face-capture app is expected.")
    delimiter = max(",;\t", key=lines[0].count)
    header, *rows = list(csv.reader(lines, delimiter=delimiter))
    header = [name.strip() for name in header]
    if not rows:
        raise PoseError(f"{path}: has a header and no rows.")
    table = _Table(path, header, rows)
    for i, row in enumerate(rows):
        if len(row) < len(header) and _is_lost(row[2:]):
            rows[i] = row + [""] * (len(header) - len(row))
        elif len(row) != len(header):
            raise PoseError(f"{table.where(i)} has {len(row)} values, the header names {len(header)} columns.")
    return table


def _is_lost(cells: list[str]) -> bool:
    return not any(cell.strip() for cell in cells)


def _lost_rows(table: _Table, keys: list[str]) -> Array:
    """Rows in which the app saw no face: a count of 0, or all cells empty."""
    channels = [i for i, k in enumerate(keys) if k in _CANONICAL]
    counts = [i for i, k in enumerate(keys) if k == _COUNT_COLUMN]
    lost = np.zeros(len(table.rows), dtype=bool)
    for i, row in enumerate(table.rows):
        none = bool(counts) and row[counts[0]].strip() == "0"
        lost[i] = none or (bool(channels) and _is_lost([row[c] for c in channels]))
    return lost


def _times(table: _Table, keys: list[str], timecode_fps: float | None) -> Float[Array, "T"]:
    for key, kind in _TIME_COLUMNS.items():
        if key not in keys:
            continue
        column = keys.index(key)
        if kind == "timecode" and ":" in table.rows[0][column]:
            return _timecodes(table, column, timecode_fps)
        return table.numbers(column) * (1e-3 if kind == "milliseconds" else 1.0)
    if "frame" in keys:
        return table.numbers(keys.index("frame")) / (timecode_fps or DEFAULT_RATE)
    raise PoseError(
        f"{table.path}: no column of times; one of Timecode, timestamp, time or frame is expected. The columns are "
        f"{table.header[:6]} ..."
    )


def _timecodes(table: _Table, column: int, fps: float | None) -> Float[Array, "T"]:
    """Seconds of timecodes HH:MM:SS:FF.fff (frames, in `fps`) or HH:MM:SS.fff; a take may pass midnight."""
    whole, frames = np.empty(len(table.rows)), np.zeros(len(table.rows))
    for i, row in enumerate(table.rows):
        match = _TIMECODE.match(row[column].strip())
        if match is None:
            raise PoseError(f"{table.where(i)}: timecode {row[column]!r}; HH:MM:SS:FF.fff is expected.")
        h, m, s, f, h2, m2, s2 = match.groups()
        whole[i] = int(h or h2) * 3600 + int(m or m2) * 60 + float(s or s2)
        frames[i] = float(f or 0.0)
    if fps is None:
        fps = _rate(whole, frames)
    elif frames.max() >= fps:
        raise PoseError(f"{table.path}: timecodes count to frame {int(frames.max())}, which {fps:g} fps do not have.")
    times = whole + frames / fps
    midnight = np.concatenate([[False], np.diff(times) < -DAY / 2])
    return times + DAY * np.cumsum(midnight)


def _rate(whole: Array, frames: Array) -> float:
    """Frames per second that timecodes count in: where a second passes, the frames of it tell."""
    largest = int(frames.max())
    if len(np.unique(whole)) < 2:
        return DEFAULT_RATE if largest < DEFAULT_RATE else float(largest + 1)
    return next((rate for rate in RATES if largest < rate), float(largest + 1))


def _check_order(table: _Table, times: Float[Array, "T"]) -> None:
    wrong = np.flatnonzero(np.diff(times) <= 0)
    if len(wrong):
        i = int(wrong[0])
        raise PoseError(
            f"{table.where(i + 1)}: time goes from {times[i] - times[0]:.3f} s to {times[i + 1] - times[0]:.3f} s; rows must "
            "ascend in time, each time once. Sort them, or cut the take."
        )


def _check_gaps(table: _Table, times: Float[Array, "T"], max_gap: float) -> None:
    if len(times) < 3:
        return
    steps = np.diff(times)
    allowed = max(GAP_STEPS * float(np.median(steps)), max_gap)
    wide = np.flatnonzero(steps > allowed + 1e-9)
    if len(wide):
        i = int(wide[0])
        raise PoseError(
            f"{table.where(i + 1)}: a gap of {steps[i]:.3f} s after {times[i] - times[0]:.3f} s (rows are "
            f"{np.median(steps):.3f} s apart; {len(wide)} such gaps). Cut the take there, or bridge it with --drive.max-gap "
            "SECONDS."
        )


def _channels(table: _Table, keys: list[str]) -> tuple[tuple[str, ...], Float[Array, "T C"], tuple[str, ...]]:
    angles = {f"{part}{angle}" for part in ("head", "lefteye", "righteye") for angle in _ANGLES}
    reserved = {*_TIME_COLUMNS, _COUNT_COLUMN, "frame", *angles}
    names, columns, ignored = [], [], []
    for i, key in enumerate(keys):
        if key in _CANONICAL:
            names.append(_CANONICAL[key])
            columns.append(table.numbers(i))
        elif key not in reserved:
            try:  # a channel of an avatar may have any name
                columns.append(table.numbers(i))
                names.append(table.header[i])
            except PoseError:
                ignored.append(table.header[i])
    values = np.stack(columns, axis=1) if columns else np.zeros((len(table.rows), 0))
    if not names:
        raise PoseError(f"{table.path}: no blendshape column; ARKit's names (EyeBlinkLeft, JawOpen, ...) are expected.")
    arkit = [i for i, n in enumerate(names) if n in ARKIT_NAMES]
    if arkit and np.abs(values[:, arkit]).max() > LARGEST_COEFFICIENT:
        row, column = np.unravel_index(np.abs(values[:, arkit]).argmax(), (len(values), len(arkit)))
        raise PoseError(
            f"{table.where(int(row))}: {names[arkit[column]]} is {values[row, arkit[column]]:g}; coefficients run from 0 to 1. "
            "Are they in percent? Divide them by 100."
        )
    return tuple(names), values, tuple(ignored)


def _rotations(table: _Table, keys: list[str], unit: str) -> dict[str, Float[Array, "T 3"]]:
    rotations = {}
    for part in ("head", "lefteye", "righteye"):
        columns = [part + angle for angle in _ANGLES]
        if not any(c in keys for c in columns):
            continue
        zero = np.zeros(len(table.rows))
        angles = np.stack([table.numbers(keys.index(c)) if c in keys else zero for c in columns], axis=1)
        if unit == "degrees":
            angles = np.radians(angles)
        elif np.abs(angles).max() > np.pi + 1e-6:
            raise PoseError(
                f"{table.path}: {part} angles go up to {np.abs(angles).max():.1f}, too much for radians; if they are degrees, "
                "say --drive.angle-unit degrees."
            )
        rotations[part] = angles
    return rotations
