"""The pictures that a performance was recorded with, to stand beside the avatar: of a capture, a video or a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray as Array
from PIL import Image

from threevp_nerfstudio.capture.frames import Frames
from threevp_nerfstudio.capture.pictures import check_pictures, read_rgba
from threevp_nerfstudio.errors import PoseError

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg")


class DrivingFrames:
    """Pictures at times; the one nearest to a time is shown.

    Args:
        times: seconds from the start of the performance, ascending.
        read: the picture of an index.
        size: width and height, pixels.
    """

    def __init__(self, times: Float[Array, "N"], read: Callable[[int], UInt8[Array, "h w c"]], size: tuple[int, int]) -> None:
        self.times, self.size = times, size
        self._read = read

    def index_at(self, time: float) -> int:
        return int(np.abs(self.times - time).argmin())

    def at(self, time: float) -> UInt8[Array, "h w c"]:
        return self._read(self.index_at(time))


def capture_frames(frames: Frames) -> DrivingFrames:
    """The pictures of a capture's performance. Raises `CaptureError` where they are missing."""
    dynamic = frames.sequence == "dynamic"
    index = np.flatnonzero(dynamic) if dynamic.any() else np.arange(len(frames))
    times, first = np.unique(frames.times[index], return_index=True)
    chosen: Int[Array, "N"] = index[first]
    check_pictures(frames.select(chosen), decoded=2)
    width, height = (int(n) for n in frames.size[chosen[0]])
    return DrivingFrames(times - times[0], lambda i: read_rgba(frames, int(chosen[i])), (width, height))


def frames_of(path: Path, fps: float) -> DrivingFrames:
    """Pictures of a folder (in order of their names, at `fps`) or of a video.

    Raises:
        PoseError: there are none.
    """
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_ENDINGS and not p.name.startswith("."))
        if not files:
            raise PoseError(f"--driving-frames {path}: no pictures ({', '.join(PICTURE_ENDINGS)}) in it.")
        with Image.open(files[0]) as first:
            size = first.size
        return DrivingFrames(np.arange(len(files)) / fps, lambda i: _picture(files[i]), size)
    if not path.is_file():
        raise PoseError(f"--driving-frames {path}: no such file or folder.")
    return _video(path)


def _picture(path: Path) -> UInt8[Array, "h w 3"]:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError) as error:
        raise PoseError(f"{path} cannot be decoded ({error}).") from error


def _video(path: Path) -> DrivingFrames:
    import cv2

    video = cv2.VideoCapture(str(path))
    count, fps = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), video.get(cv2.CAP_PROP_FPS)
    size = (int(video.get(cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(cv2.CAP_PROP_FRAME_HEIGHT)))
    if not video.isOpened() or count < 1 or not fps > 0:
        raise PoseError(f"--driving-frames {path}: not a video that can be decoded.")
    position = 0
    latest: tuple[int, Array] | None = None

    def read(index: int) -> UInt8[Array, "h w 3"]:
        nonlocal position, latest
        if latest is not None and latest[0] == index:
            return latest[1]
        if index < position:
            video.set(cv2.CAP_PROP_POS_FRAMES, 0)
            position = 0
        frame = None
        while position <= index:
            good, decoded = video.read()
            if not good:
                break
            frame, position = decoded, position + 1
        if frame is None:
            raise PoseError(f"{path}: picture {index} of {count} cannot be decoded.")
        latest = (index, frame[..., ::-1].copy())
        return latest[1]

    return DrivingFrames(np.arange(count) / fps, read, size)
