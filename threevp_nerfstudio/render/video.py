"""H.264 through the binary that imageio-ffmpeg brings along: whole files or none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8


class FrameWriter(Protocol):
    def __call__(self, frame: UInt8[np.ndarray, "h w 3"]) -> None: ...


@contextmanager
def video_writer(path: Path, width: int, height: int, fps: float, crf: int = 16) -> Iterator[FrameWriter]:
    """Yield a function that appends a frame. Until the block ends without an error, the film has a temporary name.

    Args:
        crf: quality of x264, lower is better; 16 is hard to tell from the frames.
    """
    import imageio_ffmpeg

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    writer = imageio_ffmpeg.write_frames(
        str(temporary),
        (width, height),
        fps=fps,
        codec="libx264",
        pix_fmt_out="yuv420p",
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-crf", str(crf), "-movflags", "+faststart"],
    )
    writer.send(None)
    try:
        yield lambda frame: writer.send(np.ascontiguousarray(frame))
        writer.close()
        temporary.replace(path)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)
