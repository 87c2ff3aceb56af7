"""`threevp animate`: a film of an avatar. Camera, performance and output are chosen independently."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array
from rich.console import Console

from threevp_nerfstudio.animation.sources import DriveSettings, Source, drive_of, read_source
from threevp_nerfstudio.errors import ThreeVPError
from threevp_nerfstudio.render.avatar import Avatar, check_config, load_avatar
from threevp_nerfstudio.render.camera_tracks import (
    CameraTrack,
    PathFile,
    orbit_track,
    path_times,
    path_track,
    read_path,
    tracked_track,
)
from threevp_nerfstudio.render.driving import DrivingFrames, capture_frames, frames_of
from threevp_nerfstudio.render.film import Shot, fingerprint, lit, parse_shard, render
from threevp_nerfstudio.render.outputs import OutputSpec, check_ending, check_rate, check_writable, is_folder
from threevp_nerfstudio.render.pixels import TRANSPARENT, background_of, fitted_width

if TYPE_CHECKING:
    from threevp_nerfstudio.animation.drives import Drive

CAMERAS = ("orbit", "front", "tracked")
DEFAULT_FPS = 30.0
DEFAULT_SIZE = 512
STILL_SECONDS = 1.0
"""Length of a film in which nothing moves."""


@dataclass
class Orbit:
    """The camera on a circle round the head."""

    seconds: float = 6.0
    """Length of the film, where the performance has none of its own."""
    turns: float = 1.0
    """Turns over the whole film; negative: the other way round."""
    start_deg: float = 0.0
    """Where it starts: 0 in front, positive to the subject's left."""
    elevation_deg: float = 5.0
    """Above the head, degrees."""
    distance: float | None = None
    """Metres from the head; default: as in the capture. The subject keeps its size only if the zoom follows."""


@dataclass
class Animate:
    """Film an avatar: a camera, a performance and an output, each chosen on its own."""

    load_config: Path
    """config.yml of a trained avatar."""
    output: Path = Path("renders/animation.mp4")
    """.mp4 (H.264), .webm (VP9, with alpha if the background is transparent), .gif, or a name without ending: a folder of
    PNG files."""
    camera: str = "front"
    """front, orbit, tracked (the capture's own), or a camera path that the viewer's render tab saved (JSON)."""
    performance: str = "own"
    """own (as tracked), neutral, or a file: motion.npz of another capture (or its folder), a CSV of a face-capture app (Live
    Link Face), keyframes or a pose (JSON). docs/animation.md has the formats."""
    seconds: float | None = None
    """Length of the film; default: the camera path's, else the performance's, else the orbit's."""
    fps: float | None = None
    """Pictures per second; default: the camera path's, else the recording's, else 30."""
    size: tuple[int, ...] = ()
    """Width and height, pixels, or one number for a square; default: those of the camera path or of the
    tracked pictures, else 512."""
    background: str | None = None
    """A colour (name or #rrggbb) or transparent; default: transparent for .webm and PNG files, white for .mp4 and .gif."""
    zoom: float = 1.0
    """front and orbit: above 1 the subject is larger than in the capture."""
    orbit: Orbit = field(default_factory=Orbit)
    """Of --camera orbit."""
    pace: Literal["auto", "real", "fit", "path"] = "auto"
    """real: the performance plays at its own speed; fit: it is stretched over the film; path: at the times that the camera
    path's keyframes have; auto: path for the own performance along a path with times, else real."""
    after: Literal["hold", "loop", "bounce"] = "hold"
    """What a performance at its own speed does when it is over before the film: hold its last pose, start again, or play
    backwards and forwards."""
    light: Literal["camera", "subject"] = "camera"
    """What the light goes with: the camera, as if the subject turned on the chair before it (training saw each side in that
    light), or the subject, as if someone walked round it. The tracked camera brings the light of its frames."""
    light_turn_deg: float = 0.0
    """Turn of the light about the subject; 0 is as in a frontal picture of the capture."""
    drive: DriveSettings = field(default_factory=DriveSettings)
    """How the performance is read and carried over."""
    side_by_side: bool = False
    """Show the driving pictures on the left: those of the capture that the performance is of."""
    driving_frames: Path | None = None
    """A video, or a folder of pictures, to show on the left instead (a CSV comes without pictures)."""
    shard: str | None = None
    """i/n: render every n-th picture of a folder of PNG files, so that n jobs share the work; then `threevp join`."""
    overwrite: bool = False
    """Discard the pictures of another film in the folder. (Those of this film are kept: it is resumed.)"""

    def main(self) -> None:
        plan = self.plan()
        avatar = load_avatar(self.load_config)
        self.render(avatar, plan)
        what = f"Pictures: {self.output.absolute()}" if is_folder(self.output) else f"Film: {self.output.absolute()}"
        Console().print(what, soft_wrap=True)

    def plan(self) -> Plan:
        """Read and check everything that does not need the model.

        Raises:
            ThreeVPError: with what was seen and the remedy.
        """
        check_config(self.load_config)
        background = background_of(self.background or default_background(self.output))
        check_ending(self.output, background is None)
        self._check_numbers()
        shard = parse_shard(self.shard, is_folder(self.output))
        path = None
        if self.camera not in CAMERAS:
            path = read_path(Path(self.camera).expanduser())
        if self.pace == "path" and (path is None or path.times is None):
            raise ThreeVPError("--pace path: needs a camera path whose keyframes have times (--camera PATH.json).")
        source = read_source(self.performance, self.drive)
        if self.side_by_side and self.driving_frames is None and source.kind not in ("own", "track"):
            raise ThreeVPError(
                f"--side-by-side: {self.performance} has no pictures; give a video or a folder as --driving-frames."
            )
        driving = self._driving(source)
        check_writable(self.output)
        return Plan(path, source, background, shard, driving)

    def render(self, avatar: Avatar, plan: Plan, keep: tuple[int, ...] = ()) -> list[UInt8[Array, "h w c"]]:
        """Film a loaded avatar; returns the pictures `keep`.

        Raises:
            ThreeVPError: the performance does not fit the avatar, or the output cannot take the film.
        """
        drive = drive_of(
            plan.source, avatar.controls, avatar.model.canonical.rig, (avatar.own_seconds, avatar.capture.fps), self.drive
        )
        for note in drive.notes:
            Console().print(note, soft_wrap=True, highlight=False)
        fps = self._fps(plan, drive)
        count = self._count(plan, drive, fps)
        times = self._times(plan, drive, fps, count)
        track = self._cameras(plan, avatar, times, fps)
        driving = plan.driving
        if driving is None and self.side_by_side:
            driving = capture_frames(avatar.capture.frames)
        width, height = self._size(plan, avatar)
        shot = Shot(track, self._states(drive, times, track, avatar), width, height, plan.background, _beside(driving, times))
        beside = 0 if driving is None else fitted_width(*driving.size, height, even=True)
        spec = OutputSpec(self.output, beside + width, height, fps, count, plan.background is None)
        settings, clip = self._settings(avatar, plan), self.drive.range == "clip"
        return render(avatar, shot, spec, settings, clip, plan.shard, self.overwrite, keep)

    def _check_numbers(self) -> None:
        if self.fps is not None:
            check_rate(self.fps, self.output)
        if len(self.size) > 2:
            raise ThreeVPError(f"--size {' '.join(map(str, self.size))}: width and height, or one number, are expected.")
        if self.size:
            OutputSpec(self.output, self.size[0], self.size[-1], self.fps or DEFAULT_FPS, 1, False).check()
        if self.seconds is not None and not 0 < self.seconds <= 86400:
            raise ThreeVPError(f"--seconds {self.seconds}: more than 0, and no more than a day, is expected.")
        if not 0.01 <= self.zoom <= 100:
            raise ThreeVPError(f"--zoom {self.zoom}: 0.01 to 100 is expected.")
        if abs(self.orbit.elevation_deg) >= 89:
            raise ThreeVPError(f"--orbit.elevation-deg {self.orbit.elevation_deg}: the orbit needs less than 89 degrees.")
        if not 0 < self.orbit.seconds <= 86400:
            raise ThreeVPError(f"--orbit.seconds {self.orbit.seconds}: more than 0 is expected.")
        if self.orbit.distance is not None and not 0.05 <= self.orbit.distance <= 1000:
            raise ThreeVPError(f"--orbit.distance {self.orbit.distance}: 0.05 to 1000 metres are expected.")
        numbers = (self.orbit.turns, self.orbit.start_deg, self.light_turn_deg)
        if not all(math.isfinite(n) for n in numbers):
            raise ThreeVPError("--orbit.turns, --orbit.start-deg and --light-turn-deg must be finite numbers.")

    def _driving(self, source: Source) -> DrivingFrames | None:
        if self.driving_frames is not None:
            return frames_of(self.driving_frames.expanduser(), self.fps or DEFAULT_FPS)
        if not self.side_by_side or source.track is None:
            return None
        if source.track.frames is None:
            raise ThreeVPError(
                f"--side-by-side: there is no transforms.json beside {source.track.path} to say which pictures belong to it; "
                "give a video or a folder as --driving-frames."
            )
        return capture_frames(source.track.frames)

    def _fps(self, plan: Plan, drive: Drive) -> float:
        if self.fps is not None:
            return self.fps
        return plan.path.fps if plan.path is not None else drive.fps or DEFAULT_FPS

    def _count(self, plan: Plan, drive: Drive, fps: float) -> int:
        if self.seconds is not None:
            return max(round(self.seconds * fps), 1)
        if plan.path is not None:
            own = len(plan.path.track)
            return own if fps == plan.path.fps else max(round(own / plan.path.fps * fps), 1)
        if drive.duration > 0:
            return round(drive.duration * fps) + 1
        return max(round((self.orbit.seconds if self.camera == "orbit" else STILL_SECONDS) * fps), 1)

    def _times(self, plan: Plan, drive: Drive, fps: float, count: int) -> Float[Array, "N"]:
        """Seconds of the performance at each picture."""
        pace = self.pace
        if pace == "auto":
            along = plan.path is not None and plan.path.times is not None and plan.source.kind == "own"
            pace = "path" if along else "real"
        if pace == "path":
            return path_times(plan.path, count) * drive.duration
        if pace == "fit":
            return np.linspace(0.0, drive.duration, count) if count > 1 else np.zeros(1)
        return played(np.arange(count) / fps, drive.duration, self.after)

    def _cameras(self, plan: Plan, avatar: Avatar, times: Float[Array, "N"], fps: float) -> CameraTrack:
        count = len(times)
        if plan.path is not None:
            return path_track(plan.path, count)
        if self.camera == "tracked":
            own = times if plan.source.kind == "own" else np.arange(count) / fps
            return tracked_track(avatar.capture.frames, own)
        if self.camera == "front":
            return orbit_track(avatar.framing, np.zeros(count), 0.0, avatar.framing.distance, self.zoom)
        yaws = math.radians(self.orbit.start_deg) + np.arange(count) / count * 2 * np.pi * self.orbit.turns
        distance = self.orbit.distance or avatar.framing.distance
        return orbit_track(avatar.framing, yaws, math.radians(self.orbit.elevation_deg), distance, self.zoom)

    def _states(self, drive: Drive, times: Float[Array, "N"], track: CameraTrack, avatar: Avatar):
        turn = math.radians(self.light_turn_deg)
        yaws = track.yaw(avatar.framing) if self.light == "camera" and track.room is None else np.zeros(len(track))
        rooms = track.room if self.light == "camera" else None

        def state(index: int):
            return lit(drive.at(times[index]), turn + yaws[index], None if rooms is None else rooms[index])

        return state

    def _size(self, plan: Plan, avatar: Avatar) -> tuple[int, int]:
        if self.size:
            return self.size[0], self.size[-1]
        if plan.path is not None:
            return plan.path.width, plan.path.height
        if self.camera == "tracked":
            width, height = avatar.capture.frames.size[0]
            return int(width), int(height)
        return DEFAULT_SIZE, DEFAULT_SIZE

    def _settings(self, avatar: Avatar, plan: Plan) -> dict[str, Any]:
        """What the pictures depend on, for resuming: choices as they are, files by their content."""
        own = ("camera", "performance", "background", "zoom", "pace", "after", "light", "light_turn_deg", "side_by_side")
        settings: dict[str, Any] = {name: getattr(self, name) for name in own}
        settings["orbit"] = asdict(self.orbit)
        settings["drive"] = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.drive).items()}
        settings["drive"]["head"] = list(self.drive.head)
        settings["checkpoint"] = fingerprint(avatar.checkpoint)
        settings["capture"] = [fingerprint(avatar.capture.directory / name) for name in ("transforms.json", "motion.npz")]
        if plan.path is not None:
            settings["camera"] = fingerprint(plan.path.path)
        if plan.source.files:
            settings["performance"] = [fingerprint(f) for f in plan.source.files]
            settings["drive"]["conversion"] = self.drive.conversion is not None
        settings["driving_frames"] = None if self.driving_frames is None else self.driving_frames.name
        return settings


@dataclass(frozen=True)
class Plan:
    """What has been read and checked before the model is loaded."""

    path: PathFile | None
    source: Source
    background: tuple[float, float, float] | None
    shard: tuple[int, int]
    driving: DrivingFrames | None


def default_background(output: Path) -> str:
    """Transparent where the output can be."""
    return TRANSPARENT if is_folder(output) or output.suffix.lower() == ".webm" else "white"


def played(times: Float[Array, "N"], duration: float, after: str) -> Float[Array, "N"]:
    """Seconds of a performance of a length at seconds of a film."""
    if duration <= 0.0:
        return np.zeros(len(times))
    if after == "loop":
        return np.where(times <= duration, times, np.mod(times, duration))
    if after == "bounce":
        return duration - np.abs(np.mod(times, 2.0 * duration) - duration)
    return np.minimum(times, duration)


def _beside(driving: DrivingFrames | None, times: Float[Array, "N"]):
    return None if driving is None else lambda index: driving.at(float(times[index]))


