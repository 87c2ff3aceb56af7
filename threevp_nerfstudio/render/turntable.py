"""`threevp turntable`: a film of the avatar from all sides while its tracked performance plays; `animate`, in short."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from threevp_nerfstudio.errors import ThreeVPError
from threevp_nerfstudio.render.animate import Animate, Orbit
from threevp_nerfstudio.render.avatar import Avatar, load_avatar
from threevp_nerfstudio.render.sheet import grid, save_picture

SHEET_COLUMNS, SHEET_ROWS = 4, 2


@dataclass
class Turntable:
    """Render an orbit about the head; the performance plays once meanwhile."""

    load_config: Path
    """config.yml of a trained avatar."""
    output: Path = Path("renders/turntable.mp4")
    """The film, H.264."""
    seconds: float = 6.0
    """Length of the film."""
    fps: float = 24.0
    """Pictures per second."""
    size: int = 256
    """Width and height, pixels; even."""
    turns: float = 1.0
    """Turns of the camera; negative: the other way round."""
    elevation_deg: float = 5.0
    """Of the camera above the head, degrees."""
    zoom: float = 1.0
    """Above 1 the subject is larger than in the capture."""
    expression: Literal["performance", "neutral"] = "performance"
    """What the face does meanwhile."""
    light: Literal["camera", "subject"] = "camera"
    """What the light goes with: the camera, as if the subject turned on the chair before it (training saw each side in
    that light), or the subject, as if someone walked round it."""
    light_turn_deg: float = 0.0
    """Turn of the light about the subject; 0 is as in a frontal picture of the capture."""
    background: str = "white"
    """Behind the subject: a colour, by name or #rrggbb."""
    sheet: Path | None = None
    """Also write eight of the pictures side by side (PNG)."""

    def main(self) -> None:
        animate = self.animate()
        plan = animate.plan()
        self.film(load_avatar(self.load_config), animate, plan)
        Console().print(f"Video: {self.output.absolute()}", soft_wrap=True)

    def animate(self) -> Animate:
        """The same film as `threevp animate` makes it.

        Raises:
            ThreeVPError: the output is no H.264 film.
        """
        if self.output.suffix.lower() != ".mp4":
            raise ThreeVPError(
                f"--output {self.output}: the film is H.264 in .mp4; give it that ending, or use threevp animate."
            )
        return Animate(
            load_config=self.load_config,
            output=self.output,
            camera="orbit",
            performance="own" if self.expression == "performance" else "neutral",
            seconds=self.seconds,
            fps=self.fps,
            size=(self.size,),
            background=self.background,
            zoom=self.zoom,
            orbit=Orbit(turns=self.turns, elevation_deg=self.elevation_deg),
            pace="fit",
            light=self.light,
            light_turn_deg=self.light_turn_deg,
        )

    def film(self, avatar: Avatar, animate: Animate, plan) -> None:
        """Film a loaded avatar, and write the sheet."""
        count = max(round(self.seconds * self.fps), 1)
        chosen = np.linspace(0, count, SHEET_COLUMNS * SHEET_ROWS, endpoint=False).astype(int)
        kept = animate.render(avatar, plan, keep=tuple(int(i) for i in chosen) if self.sheet is not None else ())
        if self.sheet is not None:
            save_picture(grid(kept, SHEET_COLUMNS), self.sheet)
