"""`threevp turntable`: a film of the avatar from all sides while its tracked performance plays."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from threevp_nerfstudio.errors import CheckpointError, ThreeVPError
from threevp_nerfstudio.render.orbit import Framing, framing_of, orbit
from threevp_nerfstudio.render.video import video_writer

if TYPE_CHECKING:
    from nerfstudio.cameras.cameras import Cameras

    from threevp_nerfstudio.model.model import ThreeVPModel
    from threevp_nerfstudio.model.performance import PoseState

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
    background: Literal["white", "black", "gray"] = "white"
    """Behind the subject."""
    sheet: Path | None = None
    """Also write eight of the pictures side by side (PNG)."""

    def main(self) -> None:
        self.check()
        model, framing = load_avatar(self.load_config)
        model.config.background_color = self.background
        pictures = self.render(model, framing)
        if self.sheet is not None:
            save_sheet(pictures, self.sheet)
        Console().print(f"Video: {self.output.absolute()}", soft_wrap=True)

    def check(self) -> None:
        """Everything that can be known to be wrong before anything is loaded.

        Raises:
            ThreeVPError: with what was seen and the remedy.
        """
        if not self.load_config.is_file():
            raise ThreeVPError(
                f"{self.load_config}: no such file. --load-config takes the config.yml that ns-train printed at its end "
                "(outputs/NAME/METHOD/TIME/config.yml)."
            )
        if self.output.suffix.lower() != ".mp4":
            raise ThreeVPError(f"--output {self.output}: the film is H.264 in .mp4; give it that ending.")
        if self.size < 16 or self.size % 2:
            raise ThreeVPError(f"--size {self.size}: an even number of at least 16 pixels is needed (H.264).")
        if not (self.seconds > 0 and self.fps > 0 and self.zoom > 0):
            raise ThreeVPError(
                f"--seconds {self.seconds}, --fps {self.fps} and --zoom {self.zoom} must be greater than zero."
            )
        if abs(self.elevation_deg) >= 89:
            raise ThreeVPError(f"--elevation-deg {self.elevation_deg}: the orbit needs less than 89 degrees.")

    def render(self, model: ThreeVPModel, framing: Framing) -> list[np.ndarray]:
        """Write the film; returns the pictures that belong on the sheet."""
        count = max(round(self.seconds * self.fps), 1)
        yaws = np.arange(count) / count * 2 * np.pi * self.turns  # ends before it closes, so that the film can loop
        cameras = orbit_cameras(self, framing, yaws)
        chosen = np.linspace(0, count, SHEET_COLUMNS * SHEET_ROWS, endpoint=False).astype(int)
        kept = []
        columns = (TextColumn("Rendering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with (
            video_writer(self.output, self.size, self.size, self.fps) as write,
            Progress(*columns, transient=True) as progress,
        ):
            for i in progress.track(range(count)):
                state = self.state(model, i / max(count - 1, 1), yaws[i])
                rgb = model.render_camera(cameras[i : i + 1], state)["rgb"]
                picture = (rgb.clamp(0, 1) * 255).round().byte().cpu().numpy()
                write(picture)
                if i in chosen:
                    kept.append(picture)
        return kept

    def state(self, model: ThreeVPModel, time: float, yaw: float) -> PoseState:
        """Pose and light at a time of the film, 0 to 1, and a yaw of its camera, radians."""
        from threevp_nerfstudio.model.performance import light_turn

        performance = model.performance
        state = performance.neutral() if self.expression == "neutral" else performance.at_time(time)
        turn = math.radians(self.light_turn_deg) + (yaw if self.light == "camera" else 0.0)
        room = light_turn(turn, state.room.device)
        return replace(state, room=room[None])


def load_avatar(config: Path) -> tuple[ThreeVPModel, Framing]:
    """The trained model of a config.yml and the framing of its capture.

    Raises:
        CheckpointError: the file is not of a trained avatar.
    """
    if not any((config.parent / "nerfstudio_models").glob("step-*.ckpt")):
        raise CheckpointError(f"{config.parent / 'nerfstudio_models'}: no checkpoint there. Has training saved one yet?")
    from nerfstudio.utils.eval_utils import eval_setup

    from threevp_nerfstudio.model.model import ThreeVPModel

    _, pipeline, _, _ = eval_setup(config, test_mode="inference")
    model = pipeline.model
    if not isinstance(model, ThreeVPModel):
        raise CheckpointError(f"{config}: that is a {type(model).__name__}, not a threevp avatar.")
    frames = pipeline.datamanager.train_dataset.capture.frames
    vertices = model.canonical.vertices.cpu().numpy()
    middle = (vertices.min(0) + vertices.max(0)) / 2
    return model, framing_of(frames.camera_to_world, frames.focal[:, 1], frames.size[:, 1], middle)


def orbit_cameras(settings: Turntable, framing: Framing, yaws: np.ndarray) -> Cameras:
    """nerfstudio cameras of a film."""
    import torch
    from nerfstudio.cameras.cameras import Cameras, CameraType

    poses = orbit(framing.center, framing.distance, math.radians(settings.elevation_deg), yaws)
    focal = settings.size / (2.0 * math.tan(framing.fov_y / 2.0)) * settings.zoom
    return Cameras(
        camera_to_worlds=torch.from_numpy(poses[:, :3]).float(),
        fx=focal,
        fy=focal,
        cx=settings.size / 2,
        cy=settings.size / 2,
        width=settings.size,
        height=settings.size,
        camera_type=CameraType.PERSPECTIVE,
    )


def save_sheet(pictures: list[np.ndarray], path: Path) -> None:
    """Pictures of one size in rows of four."""
    from PIL import Image

    rows = [np.concatenate(pictures[i : i + SHEET_COLUMNS], 1) for i in range(0, len(pictures), SHEET_COLUMNS)]
    rows = [row for row in rows if row.shape == rows[0].shape]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)
