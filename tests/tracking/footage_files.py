"""Tiny videos for the tests, made by FFmpeg from pictures that are known."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np


def ffmpeg(*arguments: object) -> None:
    """Run FFmpeg; its error output on failure."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def encode(path: Path, pictures: np.ndarray, fps: float = 10.0, *options: object) -> Path:
    """`pictures` (N,h,w,3) as a video; h and w are even."""
    raw = path.with_suffix(".raw")
    raw.write_bytes(np.ascontiguousarray(pictures, dtype=np.uint8).tobytes())
    _, h, w, _ = pictures.shape
    codec = options or ("-c:v", "libx264", "-crf", "8", "-pix_fmt", "yuv420p")
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{w}x{h}", "-r", fps, "-i", raw, *codec, path)
    raw.unlink()
    return path


def room(height: int = 96, width: int = 96, seed: int = 0) -> np.ndarray:
    """A smooth, coloured wall."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(90, 200, (6, 6, 3))
    y, x = np.linspace(0, 4.99, height), np.linspace(0, 4.99, width)
    i, j = y.astype(int), x.astype(int)
    fy, fx = (y - i)[:, None, None], (x - j)[None, :, None]
    top = coarse[i][:, j] * (1 - fx) + coarse[i][:, j + 1] * fx
    bottom = coarse[i + 1][:, j] * (1 - fx) + coarse[i + 1][:, j + 1] * fx
    return (top * (1 - fy) + bottom * fy).astype(np.uint8)


def subject_mask(height: int, width: int, x: float, size: float = 1.0) -> np.ndarray:
    """A head on shoulders, its middle at column `x`."""
    v, u = np.mgrid[0:height, 0:width] + 0.5
    v, u = v / height, (u - x) / width
    head = (u / (0.14 * size)) ** 2 + ((v - 0.40) / (0.2 * size)) ** 2 < 1
    shoulders = (u / (0.30 * size)) ** 2 + ((v - 1.0) / (0.42 * size)) ** 2 < 1
    return head | shoulders


def scene(count: int, height: int = 96, width: int = 96, background: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of a red and blue figure that sways and turns before a wall, and its true masks."""
    wall = room(height, width) if background is None else background
    pictures, masks = [], []
    for i in range(count):
        mask = subject_mask(height, width, width * (0.5 + 0.16 * np.sin(2 * np.pi * i / max(count, 2))))
        picture = wall.copy()
        shade = (0.95 + 0.2 * np.sin(0.13 * np.arange(width) + 1.3 * i))[None, :, None]  # another side at each moment
        colour = np.where(np.arange(height)[:, None, None] < 0.6 * height, [170, 60, 50], [30, 40, 120]) * shade
        picture[mask] = colour.clip(0, 255).astype(np.uint8)[mask]
        pictures.append(picture)
        masks.append(mask)
    return np.stack(pictures), np.stack(masks)
