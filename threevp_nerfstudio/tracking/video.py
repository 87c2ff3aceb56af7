"""Reading videos and folders of pictures: upright RGB with the real time of each picture.

PyAV (FFmpeg's libraries) decodes; rotation flags, variable frame rates, 10-bit and HDR files come out as 8-bit sRGB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array

from threevp_nerfstudio.errors import FootageError
from threevp_nerfstudio.tracking.hdr import to_sdr

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FOLDER_FPS = 30.0
"""Frames per second that a folder of pictures is taken to have when nothing says otherwise."""
TRANSFERS = {16: "pq", 18: "hlg"}
"""FFmpeg's numbers of the transfer curves of HDR video."""
TRUNCATED_BELOW = 0.95
"""Share of the announced duration below which a file counts as cut off."""


@dataclass(frozen=True)
class Clip:
    """A video or a folder of pictures, as its header tells. Sizes are upright, after the rotation flag."""

    path: Path
    width: int
    height: int
    fps: float
    """Average frames per second."""
    duration: float | None
    """Seconds, as announced; None where unknown."""
    rotation: int = 0
    """Degrees by which stored pictures are turned counter-clockwise for display: 0, 90, 180 or 270."""
    transfer: str = "sdr"
    """`sdr`, `hlg` or `pq`."""
    tags: dict[str, str] = field(default_factory=dict)
    """Metadata of container and stream, keys in lower case."""
    files: tuple[Path, ...] = ()
    """The pictures of a folder; empty for a video."""


@dataclass(frozen=True)
class Picture:
    """One decoded picture."""

    time: float
    """Seconds from the clip's start."""
    rgb: UInt8[Array, "H W 3"]
    alpha: UInt8[Array, "H W"] | None = None
    """A matte that came with the picture (RGBA files)."""


def probe(path: Path, fps: float | None = None) -> Clip:
    """Read the header of a video, or list a folder of pictures. Raises `FootageError`."""
    if path.is_dir():
        return _probe_folder(path, fps or FOLDER_FPS)
    if not path.is_file():
        raise FootageError(f"{path} does not exist; give a video file or a folder of pictures.")
    with _open(path) as container:
        if not container.streams.video:
            kinds = sorted({s.type for s in container.streams})
            raise FootageError(f"{path} holds {' and '.join(kinds) or 'no streams'} but no picture; give a file with a video track.")
        stream = container.streams.video[0]
        first = _first_frame(container, stream, path)
        rotation = round(first.rotation / 90) * 90 % 360
        width, height = (first.height, first.width) if rotation % 180 else (first.width, first.height)
        tags = {k.lower(): str(v) for source in (container.metadata, stream.metadata) for k, v in source.items()}
        return Clip(
            path=path,
            width=width,
            height=height,
            fps=float(stream.average_rate or stream.guessed_rate or fps or FOLDER_FPS),
            duration=_duration(container, stream),
            rotation=rotation,
            transfer=TRANSFERS.get(int(getattr(stream.codec_context, "color_trc", 0) or 0), "sdr"),
            tags=tags,
        )


def pictures(clip: Clip, notes: list[str], start: float = 0.0, end: float | None = None, stride: int = 1) -> Iterator[Picture]:
    """Decode from `start` to `end` seconds, every `stride`-th picture, upright.

    A file that breaks off yields what can be read; what was wrong is appended to `notes`. Raises `FootageError` where
    nothing can be read.
    """
    source = _folder_pictures(clip) if clip.files else _video_pictures(clip, notes)
    kept = -1
    for picture in source:
        if end is not None and picture.time >= end:
            break
        if picture.time < start - 1e-6:
            continue
        kept += 1
        if kept % stride == 0:
            yield picture
    if kept < 0:
        raise FootageError(f"{clip.path} has no picture between {start:g} s and {'its end' if end is None else f'{end:g} s'}.")


def _open(path: Path) -> Any:
    import av

    try:
        return av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise FootageError(
            f"{path} cannot be opened as a video ({error}). It may be another kind of file, or its end may be missing: "
            "a recording that was interrupted or not copied whole lacks its index. Copy it again, or repair it with FFmpeg."
        ) from error


def _first_frame(container: Any, stream: Any, path: Path) -> Any:
    import av

    try:
        for frame in container.decode(stream):
            return frame
    except av.error.FFmpegError as error:
        raise FootageError(
            f"{path}: its first picture cannot be decoded ({error}); convert the file with FFmpeg, or copy it again."
        ) from error
    raise FootageError(f"{path} has a video track without pictures; copy the file again.")


def _duration(container: Any, stream: Any) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / 1e6


def _video_pictures(clip: Clip, notes: list[str]) -> Iterator[Picture]:
    import av

    with _open(clip.path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        first, last, broken, count = None, -1.0, 0, 0
        for packet in _packets(container, stream, clip, notes):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                broken += 1
                continue
            for frame in frames:
                time = _time(frame, count, clip)
                first = time if first is None else first
                time -= first
                if time <= last:  # repeated or disordered time stamps would stop the clock
                    time = last + 1e-3 if count else 0.0
                last, count = time, count + 1
                yield Picture(time, _upright(frame, clip))
    if broken:
        notes.append(f"{clip.path.name}: {broken} damaged packets were left out; copy the file again if you can.")
    if clip.duration and count and last + 2 / clip.fps < TRUNCATED_BELOW * clip.duration:
        notes.append(
            f"{clip.path.name} says it lasts {clip.duration:.1f} s, but pictures end at {last:.1f} s: the file is truncated. "
            "What could be read is tracked; copy the file again for the rest."
        )


def _packets(container: Any, stream: Any, clip: Clip, notes: list[str]) -> Iterator[Any]:
    import av

    packets = container.demux(stream)
    while True:
        try:
            yield next(packets)
        except StopIteration:
            return
        except av.error.FFmpegError as error:
            notes.append(
                f"{clip.path.name}: reading stopped early ({error}); what came before is tracked. Copy the file again for the rest."
            )
            return


def _time(frame: Any, count: int, clip: Clip) -> float:
    if frame.pts is not None and frame.time_base is not None:
        return float(frame.pts * Fraction(frame.time_base))
    return count / clip.fps


def _upright(frame: Any, clip: Clip) -> UInt8[Array, "H W 3"]:
    if clip.transfer != "sdr":
        rgb = to_sdr(frame.to_ndarray(format="rgb48le"), clip.transfer)
    else:
        # untagged files of HD size are in BT.709 by custom; FFmpeg would take them for BT.601
        untagged_hd = int(frame.colorspace) == 2 and max(frame.width, frame.height) >= 1280
        rgb = frame.reformat(format="rgb24", src_colorspace="ITU709" if untagged_hd else None).to_ndarray()
    return np.ascontiguousarray(np.rot90(rgb, clip.rotation // 90)) if clip.rotation else rgb


def _probe_folder(path: Path, fps: float) -> Clip:
    files = tuple(sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES))
    if not files:
        raise FootageError(f"{path} holds no pictures ({', '.join(PICTURES)}); give a video, or a folder of numbered pictures.")
    first, _ = _read(files[0])
    return Clip(path, first.shape[1], first.shape[0], fps, len(files) / fps, tags=_exif(files[0]), files=files)


def _folder_pictures(clip: Clip) -> Iterator[Picture]:
    for i, file in enumerate(clip.files):
        rgb, alpha = _read(file)
        if rgb.shape[:2] != (clip.height, clip.width):
            raise FootageError(
                f"{file} is {rgb.shape[1]}x{rgb.shape[0]}, the first picture {clip.width}x{clip.height}; all pictures come from one camera."
            )
        yield Picture(i / clip.fps, rgb, alpha)


def _read(file: Path) -> tuple[UInt8[Array, "H W 3"], UInt8[Array, "H W"] | None]:
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            picture = ImageOps.exif_transpose(opened)
            if "A" in picture.getbands():
                rgba = np.array(picture.convert("RGBA"))
                return np.ascontiguousarray(rgba[..., :3]), np.ascontiguousarray(rgba[..., 3])
            return np.array(picture.convert("RGB")), None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FootageError(f"{file} is not a readable picture ({error}); write it again, or take it out of the folder.") from error


def _exif(file: Path) -> dict[str, str]:
    from PIL import ExifTags, Image

    with Image.open(file) as picture:
        fields = picture.getexif().get_ifd(ExifTags.IFD.Exif)
    return {ExifTags.TAGS.get(k, str(k)).lower(): str(v) for k, v in fields.items()}


def resized(picture: UInt8[Array, "H W *c"], width: int, height: int) -> UInt8[Array, "h w *c"]:
    """Area averaging downwards, cubic upwards."""
    if picture.shape[1] == width and picture.shape[0] == height:
        return picture
    shrink = width * height < picture.shape[0] * picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)
