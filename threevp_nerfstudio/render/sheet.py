"""`threevp sheet`: a contact sheet of an avatar, views across and expressions down, for papers and for looking."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray as Array
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console

from threevp_nerfstudio.animation.pose import AvatarPose, load_pose
from threevp_nerfstudio.errors import PoseError, ThreeVPError
from threevp_nerfstudio.render.avatar import Avatar, check_config, load_avatar
from threevp_nerfstudio.render.camera_tracks import orbit_track
from threevp_nerfstudio.render.film import Shot, lit, picture, progress, rendering
from threevp_nerfstudio.render.interrupts import interrupts
from threevp_nerfstudio.render.outputs import MAX_SIZE, MIN_SIZE, check_writable
from threevp_nerfstudio.render.pixels import background_of

if TYPE_CHECKING:
    from threevp_nerfstudio.animation.controls import AvatarControls
    from threevp_nerfstudio.model.performance import Performance, PoseState

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")
GAP_PX = 4
LABEL_HEIGHT = 0.09
"""Of a label, in cell heights."""


@dataclass
class Sheet:
    """Render a contact sheet: views by expressions."""

    load_config: Path
    """config.yml of a trained avatar."""
    output: Path = Path("renders/sheet.png")
    """The picture (.png, or .jpg)."""
    views: tuple[float, ...] = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)
    """Azimuths of the cameras, degrees: 0 in front, positive to the subject's left."""
    expressions: tuple[str, ...] = ()
    """Rows: neutral, pose files (JSON), times of the performance (@0.35, from 0 to 1), channels at the end of their range
    (jawOpen) or at a value, together with + (jawOpen=0.4+mouthSmileLeft=1). Default: neutral, and --picks expressions of the
    performance that differ most."""
    picks: int = 4
    """Rows taken from the performance where --expressions names none."""
    size: int = 192
    """Width and height of each picture, pixels."""
    elevation_deg: float = 0.0
    """Of the cameras above the head, degrees."""
    zoom: float = 1.0
    """Above 1 the subject is larger than in the capture."""
    light: Literal["camera", "subject"] = "camera"
    """What the light goes with, as in threevp animate."""
    background: str = "white"
    """A colour (name or #rrggbb) or transparent (PNG)."""
    labels: bool = True
    """Write azimuths above and expressions at the side."""

    def main(self) -> None:
        self.check()
        sheet = self.render(load_avatar(self.load_config))
        save_picture(sheet, self.output)
        Console().print(f"Sheet: {self.output.absolute()}", soft_wrap=True)

    def check(self) -> None:
        """Everything that can be known to be wrong before anything is loaded.

        Raises:
            ThreeVPError: with what was seen and the remedy.
        """
        check_config(self.load_config)
        ending = self.output.suffix.lower()
        if ending not in PICTURE_ENDINGS:
            raise ThreeVPError(f"--output {self.output}: a picture is written; give it the ending .png or .jpg.")
        if background_of(self.background) is None and ending != ".png":
            raise ThreeVPError(f"--output {self.output}: only .png can be transparent.")
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ThreeVPError(f"--size {self.size}: {MIN_SIZE} to {MAX_SIZE} pixels are expected.")
        if not self.views or not all(math.isfinite(v) for v in self.views):
            raise ThreeVPError("--views: at least one azimuth in degrees is expected.")
        if not self.expressions and not 0 <= self.picks <= 100:
            raise ThreeVPError(f"--picks {self.picks}: 0 to 100 are expected.")
        if abs(self.elevation_deg) >= 89 or not 0.01 <= self.zoom <= 100:
            raise ThreeVPError("--elevation-deg must be below 89 degrees, and --zoom between 0.01 and 100.")
        for text in self.expressions:
            _parsed(text)
        check_writable(self.output)

    def render(self, avatar: Avatar) -> UInt8[Array, "H W c"]:
        """The sheet of a loaded avatar. Raises `PoseError` for names that it does not have."""
        rows = self.rows(avatar)
        yaws = np.radians(np.array(self.views, dtype=np.float64))
        track = orbit_track(avatar.framing, yaws, math.radians(self.elevation_deg), avatar.framing.distance, self.zoom)
        turns = yaws if self.light == "camera" else np.zeros(len(yaws))
        background = background_of(self.background)
        cells: list[Array] = [np.empty(0)] * (len(rows) * len(yaws))
        with interrupts(), rendering(avatar.model):
            for cell in progress(list(range(len(cells)))):
                state = rows[cell // len(yaws)][1]
                shot = Shot(track, lambda view, state=state: lit(state, turns[view]), self.size, self.size, background)
                cells[cell] = picture(avatar.model, shot, cell % len(yaws))
        columns = [f"{v:g}°" for v in self.views] if self.labels else None
        return grid(cells, len(yaws), columns, [name for name, _ in rows] if self.labels else None)

    def rows(self, avatar: Avatar) -> list[tuple[str, PoseState]]:
        """Name and state of each row."""
        controls, performance = avatar.controls, avatar.model.performance
        if self.expressions:
            return [(_label(text), _state(text, controls)) for text in self.expressions]
        times = distinct_times(performance, self.picks)
        return [("neutral", performance.neutral())] + [(f"@{t:.2f}", _frontal(performance.at_time(t))) for t in times]


def distinct_times(performance: Performance, count: int) -> list[float]:
    """Times (0 to 1) of expressions that differ most from neutral and from each other: each is the one farthest from
    those before it."""
    values = performance.at_frames(performance.timeline_frames).conditioning.cpu().numpy()
    order = farthest(values, count)
    return [float(performance.timeline_times[i]) for i in order]


def farthest(values: Float[Array, "N C"], count: int) -> Int[Array, "M"]:
    """Rows, each the farthest from the origin and the rows before it; fewer where no others are left."""
    nearest = np.linalg.norm(values, axis=1)
    chosen: list[int] = []
    while len(chosen) < count and nearest.max(initial=0.0) > 1e-6:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, np.linalg.norm(values - values[chosen[-1]], axis=1))
    return np.array(chosen, dtype=np.int64)


def grid(
    pictures: list[UInt8[Array, "h w c"]],
    columns: int,
    titles: list[str] | None = None,
    names: list[str] | None = None,
) -> UInt8[Array, "H W c"]:
    """Pictures of one size in rows, with titles of the columns above and names of the rows at the side. What is left of the
    last row is white, or transparent."""
    h, w, c = pictures[0].shape
    rows = -(-len(pictures) // columns)
    font = ImageFont.load_default(size=max(round(LABEL_HEIGHT * h), 9))
    top = 0 if titles is None else round(1.6 * font.size)
    side = 0 if names is None else math.ceil(max(font.getlength(n) for n in names)) + 2 * GAP_PX
    gap = 0 if titles is None and names is None else GAP_PX
    size = (side + columns * (w + gap) - gap, top + rows * (h + gap) - gap)
    sheet = Image.new("RGBA" if c == 4 else "RGB", size, (255,) * 3 + (0,) * (c - 3))
    for k, cell in enumerate(pictures):
        sheet.paste(Image.fromarray(cell), (side + k % columns * (w + gap), top + k // columns * (h + gap)))
    draw = ImageDraw.Draw(sheet)
    ink = (0, 0, 0, 255)[:c]
    for k, text in enumerate(titles or []):
        draw.text((side + k * (w + gap) + w / 2, top / 2), text, fill=ink, font=font, anchor="mm")
    for k, text in enumerate(names or []):
        draw.text((side - GAP_PX, top + k * (h + gap) + h / 2), text, fill=ink, font=font, anchor="rm")
    return np.asarray(sheet)


def save_picture(picture: UInt8[Array, "h w c"], path: Path) -> None:
    """Write a picture under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        Image.fromarray(picture).save(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


Row = float | AvatarPose | dict[str, float | None]
"""A time, a pose, or channels (None: the end of their range)."""


def _parsed(text: str) -> Row:
    if text == "neutral":
        return AvatarPose()
    if text.startswith("@"):
        return _number(text[1:], text, 0.0, 1.0)
    if text.lower().endswith(".json"):
        return load_pose(Path(text).expanduser())
    channels: dict[str, float | None] = {}
    for part in text.split("+"):
        name, equals, value = part.partition("=")
        channels[name.strip()] = _number(value, text, -100.0, 100.0) if equals else None
    return channels


def _state(text: str, controls: AvatarControls) -> PoseState:
    row = _parsed(text)
    if isinstance(row, float):
        return _frontal(controls.performance.at_time(row))
    if isinstance(row, AvatarPose):
        controls.check(row, text)
        return controls.state(row)
    controls.check(AvatarPose(dict.fromkeys(row, 0.0)), f"--expressions {text}")
    values = {n: _end(controls, n) if v is None else v for n, v in row.items()}
    return controls.state(AvatarPose(values))


def _end(controls: AvatarControls, name: str) -> float:
    limits = controls.limits[name]
    return limits.high if limits.high >= -limits.low else limits.low


def _frontal(state: PoseState) -> PoseState:
    import torch

    return replace(state, room=torch.eye(3, device=state.room.device)[None])


def _label(text: str) -> str:
    return Path(text).stem if text.lower().endswith(".json") else text.replace("+", "\n+")


def _number(value: str, text: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except ValueError as error:
        raise PoseError(f"--expressions {text}: {value!r} is no number.") from error
    if not low <= number <= high:
        raise PoseError(f"--expressions {text}: {number:g}; {low:g} to {high:g} is expected.")
    return number
