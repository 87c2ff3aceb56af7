"""nerfstudio dataparser for tracked portrait captures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox


@dataclass
class ThreeVPDataParserConfig(DataParserConfig):
    """Tracked portrait capture, as `threevp track` writes it and docs/capture_format.md describes it."""

    _target: type = field(default_factory=lambda: ThreeVPDataParser)
    data: Path = Path()
    """Folder of the capture."""


class ThreeVPDataParser(DataParser):
    """Reads a capture strictly; every problem is a `CaptureError` that names the file and the remedy."""

    config: ThreeVPDataParserConfig
    includes_time = True

    def __init__(self, config: ThreeVPDataParserConfig) -> None:
        super().__init__(config)
        self._capture: Any = None

    @property
    def capture(self):
        """The capture, read once for all splits."""
        if self._capture is None:
            from threevp_nerfstudio.capture.capture import load_capture

            self._capture = load_capture(self.config.data)
        return self._capture

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs) -> DataparserOutputs:
        capture = self.capture
        index = split_frames(capture.frames.split, split)
        frames = capture.frames
        vertices = capture.template.vertices
        margin = 0.1
        box = np.stack([vertices.min(0) - margin, vertices.max(0) + margin])
        return DataparserOutputs(
            image_filenames=[frames.image_paths[i] for i in index],
            cameras=cameras_of(capture, index),
            scene_box=SceneBox(aabb=torch.as_tensor(box, dtype=torch.float32)),
            metadata={"capture": SharedCapture(capture), "frames": torch.as_tensor(index)},
            dataparser_scale=1.0,
        )


class SharedCapture:
    """A capture that nerfstudio's deep copies of metadata share rather than copy."""

    def __init__(self, capture) -> None:
        self.capture = capture

    def __deepcopy__(self, memo) -> SharedCapture:
        return self


def split_frames(splits: np.ndarray, split: str) -> np.ndarray:
    """Frame indices of a split. Without test frames, test is val, and the other way round; without either, both are
    every tenth training frame (and then measure nothing but memory)."""
    if split == "train":
        return np.flatnonzero(splits == "train")
    for name in (split, {"test": "val", "val": "test"}.get(split, "val")):
        index = np.flatnonzero(splits == name)
        if len(index):
            return index
    return np.flatnonzero(splits == "train")[::10]


def cameras_of(capture, index: np.ndarray) -> Cameras:
    """nerfstudio cameras of some frames, with times in [0, 1] over the performance and the frame as metadata."""
    from threevp_nerfstudio.capture.timeline import normalised_times

    frames = capture.frames

    def pick(values: np.ndarray, dtype=torch.float32) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(values[index]), dtype=dtype)

    distortion = np.zeros((len(frames.times), 6))
    distortion[:, [0, 1, 4, 5]] = frames.distortion  # k1 k2 k3 k4 p1 p2
    return Cameras(
        camera_to_worlds=pick(frames.camera_to_world[:, :3, :4]),
        fx=pick(frames.focal[:, 0]),
        fy=pick(frames.focal[:, 1]),
        cx=pick(frames.principal_point[:, 0]),
        cy=pick(frames.principal_point[:, 1]),
        width=pick(frames.size[:, 0], torch.int64),
        height=pick(frames.size[:, 1], torch.int64),
        distortion_params=pick(distortion) if np.any(distortion) else None,
        camera_type=CameraType.PERSPECTIVE,
        times=pick(normalised_times(frames.times, frames.sequence == "dynamic"))[:, None],
        metadata={"frame": torch.as_tensor(index)[:, None]},
    )
