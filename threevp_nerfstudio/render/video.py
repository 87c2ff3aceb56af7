"""Films through the ffmpeg that imageio-ffmpeg brings along: whole files, or a playable part where the user stopped.

H.264 in .mp4, VP9 in .webm (with alpha), and animated GIF.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from threevp_nerfstudio.errors import ThreeVPError

GIF_FILTER = (
    "split[a][b];[a]palettegen=reserve_transparent=1:stats_mode=full[p];"
    "[b][p]paletteuse=dither=sierra2_4a:alpha_threshold=128"
)


@dataclass(frozen=True)
class Codec:
    """How a kind of film is encoded."""

    name: str
    pixels: str
    """Of the file, opaque."""
    alpha_pixels: str | None
    """Of the file, with alpha; None: it has none."""
    options: tuple[str, ...]
    even: bool
    """Width and height must be even."""
    draft: tuple[str, ...] = ()
    """Options that win over the others where a film is only looked through."""


CODECS = {
    ".mp4": Codec("libx264", "yuv420p", None, ("-crf", "16", "-movflags", "+faststart"), True, ("-crf", "20", "-preset", "veryfast")),
    ".webm": Codec(
        "libvpx-vp9", "yuv420p", "yuva420p", ("-crf", "18", "-b:v", "0", "-row-mt", "1", "-auto-alt-ref", "0"), True
    ),
    ".gif": Codec("gif", "pal8", "pal8", ("-filter_complex", GIF_FILTER, "-loop", "0"), False),
}
"""By ending. The quality is hard to tell from the pictures; GIF has 256 colours and alpha of one bit."""


class FrameWriter(Protocol):
    def __call__(self, frame: UInt8[np.ndarray, "h w c"]) -> None: ...


def part_of(path: Path) -> Path:
    """Where the part of a film goes that a user stopped."""
    return path.with_name(f"{path.stem}.part{path.suffix}")


@contextmanager
def video_writer(
    path: Path, width: int, height: int, fps: float, alpha: bool = False, draft: bool = False
) -> Iterator[FrameWriter]:
    """Yield a function that appends a frame, of 3 channels, or of 4 (straight alpha) with `alpha`. A `draft` is encoded faster.

    Until the block ends without an error, the film has a temporary name. Where it ends by a KeyboardInterrupt, what
    there is becomes a film of its own, `part_of(path)`. The interrupt must not come while a frame is written
    (`interrupts` sees to that).

    Raises:
        ThreeVPError: the encoder fails, e.g. because the disk is full.
    """
    import imageio_ffmpeg

    codec = CODECS[path.suffix.lower()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix.lower()}")
    writer = imageio_ffmpeg.write_frames(
        str(temporary),
        (width, height),
        pix_fmt_in="rgba" if alpha else "rgb24",
        pix_fmt_out=(codec.alpha_pixels if alpha else None) or codec.pixels,
        fps=fps,
        codec=codec.name,
        quality=None,
        macro_block_size=1,
        ffmpeg_log_level="error",
        output_params=[*codec.options, *(codec.draft if draft else ())],
    )
    writer.send(None)
    written = 0

    def write(frame: np.ndarray) -> None:
        nonlocal written
        try:
            writer.send(np.ascontiguousarray(frame))
        except OSError as error:
            raise ThreeVPError(f"{path}: the encoder stopped ({str(error).splitlines()[0]}). Is the disk full?") from error
        written += 1

    try:
        yield write
        writer.close()
        if not temporary.is_file():
            raise ThreeVPError(f"{path}: the encoder wrote nothing; see its message above.")
        temporary.replace(path)
    except KeyboardInterrupt:
        writer.close()
        if written and temporary.is_file():
            temporary.replace(part_of(path))
        raise
    finally:
        with suppress(OSError):
            writer.close()
        temporary.unlink(missing_ok=True)
