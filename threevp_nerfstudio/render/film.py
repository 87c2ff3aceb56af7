"""The one rendering loop: cameras and states go in, pictures come out, with progress and without loss on Ctrl-C."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray as Array
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from threevp_nerfstudio.errors import ThreeVPError
from threevp_nerfstudio.render.avatar import Avatar
from threevp_nerfstudio.render.camera_tracks import CameraTrack
from threevp_nerfstudio.render.interrupts import interrupts
from threevp_nerfstudio.render.outputs import OutputSpec, open_output
from threevp_nerfstudio.render.pixels import fitted, opaque, over_color, straight, with_alpha
from threevp_nerfstudio.render.video import part_of

if TYPE_CHECKING:
    from threevp_nerfstudio.model.model import ThreeVPModel
    from threevp_nerfstudio.model.performance import PoseState

LOG_SECONDS = 30.0
"""Between lines of progress where there is no terminal."""

Beside = Callable[[int], UInt8[Array, "h w c"]]
"""The driving picture for a picture of the film."""


@dataclass(frozen=True)
class Shot:
    """A film before it is rendered: N pictures."""

    cameras: CameraTrack
    state: Callable[[int], PoseState]
    """Pose and light of a picture."""
    width: int
    height: int
    """Of the avatar's picture, without what stands beside it."""
    background: tuple[float, float, float] | None
    """None: transparent."""
    beside: Beside | None = None

    def __len__(self) -> int:
        return len(self.cameras)


def lit(state: PoseState, turn: float, room: Float[Array, "3 3"] | None = None) -> PoseState:
    """A state whose light is turned by `room` and, about the vertical, by `turn` radians, on top of its own."""
    from threevp_nerfstudio.model.performance import light_turn

    device = state.room.device
    own = light_turn(turn, device) @ state.room
    if room is not None:
        own = torch.from_numpy(np.ascontiguousarray(room)).to(own) @ own
    return replace(state, room=own)


@contextmanager
def rendering(model: ThreeVPModel, clip: bool = True) -> Iterator[None]:
    """Render over black, which gives premultiplied colours, and the same way each time."""
    color, clipping = model.config.background_color, model.clip_conditioning
    deterministic, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    model.config.background_color, model.clip_conditioning = "black", clip
    if model.device.type == "cuda":  # sums by atomics come out in another order each time
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        model.config.background_color, model.clip_conditioning = color, clipping
        torch.use_deterministic_algorithms(deterministic, warn_only=warn)


def picture(model: ThreeVPModel, shot: Shot, index: int) -> UInt8[Array, "h w c"]:
    """One picture, within `rendering(model)`: RGB over the background, or RGBA with straight alpha."""
    camera = shot.cameras.camera(index, shot.width, shot.height)
    outputs = model.render_camera(camera, shot.state(index))
    rgb, alpha = outputs["rgb"].cpu().numpy(), outputs["accumulation"][..., 0].cpu().numpy()
    own = straight(rgb, alpha) if shot.background is None else opaque(rgb, alpha, shot.background)
    if shot.beside is None:
        return own
    other = fitted(with_alpha(shot.beside(index)), shot.height, even=True)
    return np.concatenate([other if shot.background is None else over_color(other, shot.background), own], axis=1)


def render(
    avatar: Avatar,
    shot: Shot,
    spec: OutputSpec,
    settings: dict[str, Any],
    clip: bool = True,
    shard: tuple[int, int] = (0, 1),
    overwrite: bool = False,
    keep: tuple[int, ...] = (),
) -> list[UInt8[Array, "h w c"]]:
    """Render a film, or every n-th picture of one, to its output; returns the pictures `keep`.

    Raises:
        ThreeVPError: the output cannot take it.
        KeyboardInterrupt: after the part that there is has been kept.
    """
    spec.check()
    i, n = shard
    kept: list[UInt8[Array, "h w c"]] = []
    done = 0
    try:
        with (
            interrupts() as interrupt,
            open_output(spec, settings, overwrite) as output,
            rendering(avatar.model, clip),
        ):
            todo = output.missing(range(i % n, len(shot), n))
            already = len(range(i % n, len(shot), n)) - len(todo)
            if already:
                Console().print(f"{already} pictures are there already, {len(todo)} to go")
            for index in progress(todo):
                rendered = picture(avatar.model, shot, index)
                with interrupt.held():
                    output.write(index, rendered)
                    done += 1
                if index in keep:
                    kept.append(rendered)
            interrupt.hold()  # the film is whole: let it be closed
    except KeyboardInterrupt:
        Console(stderr=True).print(_what_is_left(spec, done), soft_wrap=True)
        raise
    return kept


def _what_is_left(spec: OutputSpec, done: int) -> str:
    if spec.is_folder:
        return f"Stopped after {done} pictures; the same command goes on where it stopped."
    if not done:
        return "Stopped before the first picture."
    return f"Stopped: the first {done} of {spec.count} pictures are in {part_of(spec.path)}"


def progress(indices: list[int], what: str = "Rendering") -> Iterator[int]:
    """A bar with the time left on a terminal, a line now and then elsewhere (the log of a job)."""
    if sys.stdout.isatty():
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as bar:
            yield from bar.track(indices)
        return
    start = last = time.monotonic()
    for done, index in enumerate(indices):
        now = time.monotonic()
        if done and now - last >= LOG_SECONDS:
            left = (now - start) / done * (len(indices) - done)
            print(f"{what}: {done} of {len(indices)}, {int(left) // 60}:{int(left) % 60:02d} left", flush=True)
            last = now
        yield index


def parse_shard(text: str | None, folder: bool) -> tuple[int, int]:
    """`i/n` of --shard. Counting may start from 0 or from 1: shard n of n is shard 0.

    Raises:
        ThreeVPError: not of that form, or the output is no folder of PNG files.
    """
    if text is None:
        return 0, 1
    i, slash, n = text.partition("/")
    if not (slash and i.strip().isdigit() and n.strip().isdigit()) or int(n) < 1 or int(i) > int(n):
        raise ThreeVPError(f"--shard {text}: i/n is expected, e.g. 1/4 to 4/4 (or 0/4 to 3/4) for four jobs.")
    if not folder:
        raise ThreeVPError("--shard makes PNG files: give a folder as --output, and join the film afterwards with threevp join.")
    return int(i), int(n)


def fingerprint(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
