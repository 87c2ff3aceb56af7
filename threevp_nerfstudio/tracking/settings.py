"""What a user can say to `threevp track`, and which stage each setting concerns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

Stage = Literal["frames", "mattes", "landmarks", "camera", "template", "tracking", "capture", "polish", "report"]
STAGES: tuple[Stage, ...] = (
    "frames", "mattes", "landmarks", "camera", "template", "tracking", "capture", "polish", "report",
)  # fmt: skip


@dataclass
class TrackSettings:
    """Fields in the order of the stages."""

    output: Path
    """Folder of the capture. Work in progress is in its subfolder .threevp_track, and is taken up again."""
    video: Path | None = None
    """The recording: any video that FFmpeg reads, or a folder of pictures. First a full turn with a neutral face, then the performance."""
    static: Path | None = None
    """In place of --video, with --dynamic: the turn alone."""
    dynamic: Path | None = None
    """The performance, from the same camera at the same place as --static."""
    start: float = 0.0
    """Seconds of --video to leave out at its start."""
    end: float | None = None
    """Second of --video at which to stop."""
    stride: int = 1
    """Take every n-th picture."""
    fps: float | None = None
    """Pictures per second, for a folder of pictures (default 30)."""
    size: int = 512
    """Longer side of the pictures that are stored and tracked, pixels. Larger ones are reduced."""
    crop: str = "auto"
    """`auto` cuts pictures to the subject where that leaves out much; `none` keeps them whole; or left,top,width,height in pixels
    of the video."""
    plate: Path | None = None
    """A picture of the empty room from the same camera, for better mattes."""
    mattes: Path | None = None
    """Folder of your own mattes (grey, 255 = subject), one per picture that is read, in order of their names. Wins over
    everything else."""
    install: bool = True
    """Get MediaPipe (35 MB) from the package index on first use. With --no-install a missing MediaPipe is an error."""
    landmarks: Path | None = None
    """Your own face landmarks: .npz with `landmarks` (N, 478, 2) in pixels of the video (MediaPipe's face mesh), NaN where there
    is no face."""
    turn_end: float | None = None
    """Second at which the turn ends and the performance begins; found by itself otherwise."""
    focal_px: float | None = None
    """Focal length in pixels of the video, if you know it (calibration)."""
    focal_35mm: float | None = None
    """Focal length as 35 mm equivalent, if you know it."""
    distortion: tuple[float, ...] = ()
    """Lens distortion k1 k2 p1 p2 in OpenCV's terms, if you know it. It is not estimated; without it the lens counts as free of it."""
    sfm: Literal["auto", "on", "off"] = "auto"
    """Focal length by structure from motion over the turn with pycolmap. `auto`: where pycolmap is installed and the focal length
    is not given."""
    template: Path | None = None
    """Your own rigged template.npz (threevp template): its shape is kept, only poses and colours are found."""
    body: Literal["anny", "smplx"] = "anny"
    """Body model that is fitted. SMPL-X needs your own licensed file."""
    model_path: Path | None = None
    """SMPLX_*.npz or its folder; default: the environment variable THREEVP_SMPLX_MODEL."""
    fit_frames: int = 48
    """Pictures of the turn that the shape is fitted to."""
    texture_size: int = 1024
    """Width and height of the baked texture, pixels."""
    working_size: int = 256
    """Longer side of the pictures while fitting and tracking, pixels. Larger is slower and a little more exact."""
    backward_pass: bool = True
    """Go over the pictures a second time from the end."""
    val_share: float = 0.16
    """Share of the performance that is held out as `val`, in three blocks."""
    polish: bool = True
    """Correct the poses of all pictures, and the borders of mattes that are not yours, by an avatar that is trained on them."""
    polish_steps: int | None = None
    """Training steps of that avatar. Default: 5 for each picture, from 1000 to 2000."""
    overlay: bool = True
    """Write overlay.mp4: the posed template over the pictures."""
    workers: int | None = None
    """Processes that share the work on a CPU. Default: one per core, 8 at most. What is found does not depend on it; memory does."""

    def sources_given(self) -> bool:
        return self.video is not None or self.static is not None or self.dynamic is not None


CONCERNS: dict[str, Stage] = {
    **dict.fromkeys(("video", "static", "dynamic", "start", "end", "stride", "fps", "size", "crop"), "frames"),
    **dict.fromkeys(("plate", "mattes"), "mattes"),
    **dict.fromkeys(("landmarks", "turn_end"), "landmarks"),
    **dict.fromkeys(("focal_px", "focal_35mm", "distortion", "sfm"), "camera"),
    **dict.fromkeys(("template", "body", "model_path", "fit_frames", "texture_size"), "template"),
    **dict.fromkeys(("working_size", "backward_pass"), "tracking"),
    "val_share": "capture",
    **dict.fromkeys(("polish", "polish_steps"), "polish"),
    "overlay": "report",
}
"""The first stage that a setting changes; `output`, `install` and `workers` change none."""


def concerning(settings: TrackSettings, stage: Stage) -> dict[str, str]:
    """The settings of a stage as text; files with size and time of change, so that another file under the same name counts."""
    chosen = {}
    for entry in fields(TrackSettings):
        if CONCERNS.get(entry.name) == stage:
            value = getattr(settings, entry.name)
            chosen[entry.name] = _identity(value) if isinstance(value, Path) else repr(value)
    if stage == "template":
        chosen["working_size"] = repr(settings.working_size)
    return chosen


def _identity(path: Path) -> str:
    path = path.expanduser().absolute()
    if not path.exists():
        return str(path)
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    newest = max((p.stat().st_mtime_ns for p in files), default=0)
    return f"{path} {len(files)} {sum(p.stat().st_size for p in files)} {newest}"


FromStage = Annotated[Stage | None, tyro.conf.arg(name="from")]
