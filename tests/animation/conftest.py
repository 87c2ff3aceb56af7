"""An avatar that has not been trained: a fog round its template, which moves as an avatar does."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from threevp_nerfstudio.animation.names import ARKIT_NAMES
from threevp_nerfstudio.model.encodings import HashGridConfig
from threevp_nerfstudio.render.avatar import Avatar, load_avatar

SIZE = 16


@pytest.fixture(scope="session")
def config_file(tiny_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.yml and checkpoint of a run, as training leaves them."""
    from threevp_nerfstudio.config import threevp_small

    config = copy.deepcopy(threevp_small.config)
    config.output_dir = tmp_path_factory.mktemp("runs")
    config.experiment_name, config.timestamp = "avatar", "untrained"
    config.pipeline.datamanager.data = tiny_capture
    model = config.pipeline.model
    model.field_config.grid = HashGridConfig(levels=4, features=2, log2_size=12, coarsest=8, finest=64)
    model.sample_step, model.blendfields_start, model.bank_size = 0.01, 0, 0
    torch.manual_seed(0)
    pipeline = config.pipeline.setup(device="cpu", test_mode="inference")
    folder = config.get_checkpoint_dir()
    folder.mkdir(parents=True)
    torch.save({"step": 0, "pipeline": pipeline.state_dict()}, folder / "step-000000000.ckpt")
    path = config.get_base_dir() / "config.yml"
    path.write_text(yaml.dump(config), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def avatar(config_file: Path) -> Avatar:
    return load_avatar(config_file)


def write_take(path: Path, values: dict[str, list[float]], fps: float = 60.0, start: float = 36000.0) -> Path:
    """A CSV as Live Link Face writes it; channels and angles that are not given are 0."""
    names = [n[0].upper() + n[1:] for n in ARKIT_NAMES]
    angles = [f"{part}{angle}" for part in ("Head", "LeftEye", "RightEye") for angle in ("Yaw", "Pitch", "Roll")]
    count = len(next(iter(values.values())))
    lines = [",".join(["Timecode", "BlendshapeCount", *names, *angles])]
    for i in range(count):
        second, frame = divmod(round(start * fps) + i, round(fps))
        stamp = f"{second // 3600 % 24:02d}:{second // 60 % 60:02d}:{second % 60:02d}:{frame:02d}.000"
        cells = [f"{values[n][i] if n in values else 0.0:.6f}" for n in (*names, *angles)]
        lines.append(",".join([stamp, "61", *cells]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture()
def take(tmp_path: Path) -> Path:
    """Half a second in which the mouth opens to 0.5 and the head turns by 0.3 to the own left."""
    opening = np.linspace(0.0, 0.5, 31)
    return write_take(tmp_path / "take.csv", {"JawOpen": opening, "HeadYaw": opening * 0.6})


@pytest.fixture()
def path_file(tmp_path: Path, avatar: Avatar) -> Path:
    """A camera path with times, as the viewer's render tab saves it."""
    from threevp_nerfstudio.render.orbit import orbit

    framing = avatar.framing
    poses = orbit(framing.center, framing.distance, 0.1, np.array([0.0, 0.4, 0.8, 1.2]))
    cameras = [
        {"camera_to_world": pose.flatten().tolist(), "fov": float(np.degrees(framing.fov_y)), "aspect": 1.0, "render_time": t}
        for pose, t in zip(poses, (0.0, 0.5, 0.8, 0.8), strict=True)
    ]
    content = {
        "default_fov": 50.0, "default_time": 0.0, "default_transition_sec": 0.5, "keyframes": [],
        "camera_type": "perspective", "render_height": SIZE, "render_width": SIZE, "fps": 4, "seconds": 1.0,
        "is_cycle": False, "smoothness_value": 0.0, "camera_path": cameras,
    }  # fmt: skip
    path = tmp_path / "path.json"
    path.write_text(json.dumps(content))
    return path
