"""The real commands on a tiny capture, in a temporary folder: train, evaluate, render, film, resume, interrupt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from tests.tiny_capture import SIZE, make_tiny_capture

pytestmark = pytest.mark.e2e

STEPS = 250
HELD_OUT_PSNR = 21.0
"""dB over the subject's pixels of the test split. It is 12 dB before training and 24 to 27 dB after it."""
SCHEDULE = [
    "--pipeline.model.blendfields-start", "60",
    "--pipeline.model.occupancy.warmup", "60",
    "--pipeline.model.rays-per-step", "512",
    "--pipeline.datamanager.train-num-rays-per-batch", "384",
    "--pipeline.datamanager.frames-per-step", "4",
    "--optimizers.grid.scheduler.steps", str(STEPS),
    "--optimizers.networks.scheduler.steps", str(STEPS),
    "--optimizers.blendfields.scheduler.steps", str(STEPS),
]  # fmt: skip


def environment() -> dict[str, str]:
    """Offline, one thread, and no ffmpeg of the system's: only the interpreter's own scripts are on PATH."""
    scripts = Path(sys.executable).parent
    path = os.pathsep.join([str(scripts), *(p for p in ("/usr/bin", "/bin") if not (Path(p) / "ffmpeg").exists())])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}


def command(name: str, *arguments: object) -> list[str]:
    return [str(Path(sys.executable).parent / name), *map(str, arguments)]


def run(name: str, *arguments: object, cwd: Path) -> str:
    """Run a console script; its output, or a failure that shows it."""
    result = subprocess.run(
        command(name, *arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=400
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, f"{name} ended with {result.returncode}:\n{output[-4000:]}"
    return output


def training(output: Path, name: str, steps: int, data: Path | str) -> list[object]:
    return [
        "threevp-small", "--vis", "tensorboard", "--machine.device-type", "cpu", "--max-num-iterations", steps,
        "--output-dir", output, "--experiment-name", "e2e", "--timestamp", name, *SCHEDULE, "--data", data,
    ]  # fmt: skip


@dataclass(frozen=True)
class Run:
    root: Path
    """Where the command was started; the capture is in `capture`, named relatively."""
    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / "config.yml"

    @property
    def checkpoints(self) -> list[Path]:
        return sorted((self.directory / "nerfstudio_models").iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("e2e")
    make_tiny_capture(root / "capture")
    run("ns-train", *training(Path("outputs"), "trained", STEPS, "capture"), cwd=root)
    return Run(root, root / "outputs" / "e2e" / "threevp-small" / "trained")


def read_config(run: Run):
    return yaml.load(run.config.read_text(), Loader=yaml.Loader)


def test_training_leaves_one_whole_checkpoint_that_loads_without_pickle(trained: Run):
    assert [p.name for p in trained.checkpoints] == [f"step-{STEPS - 1:09d}.ckpt"]
    state = torch.load(trained.checkpoints[0], map_location="cpu", weights_only=True)
    assert state["step"] == STEPS - 1
    tensors = [v for v in state["pipeline"].values() if v.is_floating_point()]
    assert all(torch.isfinite(v).all() for v in tensors)
    assert not list(trained.directory.glob("*.partial"))


def test_config_holds_absolute_paths(trained: Run):
    config = read_config(trained)
    assert config.data == trained.root / "capture"
    assert config.output_dir.is_absolute()


def test_held_out_error_falls_below_what_no_training_reaches(trained: Run, tmp_path: Path):
    run("ns-eval", "--load-config", trained.config, "--output-path", tmp_path / "metrics.json", cwd=tmp_path)
    results = json.loads((tmp_path / "metrics.json").read_text())["results"]
    assert results["psnr_subject"] > HELD_OUT_PSNR
    for key in ("psnr", "ssim", "psnr_face", "psnr_mouth", "psnr_subject_static", "psnr_subject_dynamic"):
        assert key in results
    assert any(key.startswith("psnr_subject_yaw_") for key in results)

    pipeline = read_config(trained).pipeline.setup(device="cpu", test_mode="test")
    untrained = pipeline.get_average_image_metrics(pipeline.datamanager.fixed_indices_eval_dataloader, "eval", 0)
    assert untrained["psnr_subject"] < HELD_OUT_PSNR - 6


def test_interpolate_and_spiral_write_films_without_a_system_ffmpeg(trained: Run, tmp_path: Path):
    common = ["--load-config", trained.config, "--downscale-factor", 3]
    run("ns-render", "interpolate", *common, "--pose-source", "eval", "--interpolation-steps", 1,
        "--output-path", tmp_path / "interpolated.mp4", cwd=tmp_path)  # fmt: skip
    run("ns-render", "spiral", *common, "--seconds", 0.1, "--output-path", tmp_path / "spiral.mp4", cwd=tmp_path)
    assert all((tmp_path / name).stat().st_size > 500 for name in ("interpolated.mp4", "spiral.mp4"))


def test_dataset_renders_every_held_out_frame(trained: Run, tmp_path: Path):
    run("ns-render", "dataset", "--load-config", trained.config, "--split", "test", "--output-path", tmp_path,
        "--rendered-output-names", "rgb", "gt-rgb", "accumulation", cwd=tmp_path)  # fmt: skip
    frames = json.loads((trained.root / "capture" / "transforms.json").read_text())["frames"]
    expected = {Path(f["file_path"]).stem for f in frames if f["split"] == "test"}
    for kind in ("rgb", "gt-rgb", "accumulation"):
        assert {p.stem for p in (tmp_path / "test" / kind).iterdir()} == expected


def test_a_camera_path_with_times_plays_the_performance(trained: Run, tmp_path: Path):
    frames = json.loads((trained.root / "capture" / "transforms.json").read_text())["frames"]
    pose = sum(frames[0]["transform_matrix"], [])
    camera = {"camera_to_world": pose, "fov": 18.0, "aspect": 1.0}
    path = {
        "camera_type": "perspective", "render_height": SIZE // 2, "render_width": SIZE // 2, "fps": 4, "seconds": 0.75,
        "camera_path": [{**camera, "render_time": t} for t in (0.0, 0.4, 0.4)],
    }  # fmt: skip
    (tmp_path / "path.json").write_text(json.dumps(path))
    run("ns-render", "camera-path", "--load-config", trained.config, "--camera-path-filename", tmp_path / "path.json",
        "--output-format", "images", "--image-format", "png", "--output-path", tmp_path / "out", cwd=tmp_path)  # fmt: skip
    pictures = [p.read_bytes() for p in sorted((tmp_path / "out").glob("*.png"))]
    assert len(pictures) == 3
    assert pictures[0] != pictures[1] == pictures[2]


def test_turntable_writes_a_film_and_a_sheet(trained: Run, tmp_path: Path):
    run("threevp", "turntable", "--load-config", trained.config, "--output", "turn.mp4", "--seconds", 0.5, "--fps", 8,
        "--size", 48, "--sheet", "sheet.png", cwd=tmp_path)  # fmt: skip
    from imageio_ffmpeg import read_frames
    from PIL import Image

    frames = read_frames(str(tmp_path / "turn.mp4"))
    assert next(frames)["size"] == (48, 48)
    assert len(list(frames)) == 4
    assert Image.open(tmp_path / "sheet.png").width == 4 * 48
    assert not list(tmp_path.glob(".*partial*"))


def test_animate_makes_pictures_and_join_a_film_of_them(trained: Run, tmp_path: Path):
    output = run("threevp", "animate", "--load-config", trained.config, "--output", "frames", "--camera", "orbit",
                 "--performance", trained.root / "capture" / "motion.npz", "--seconds", 0.5, "--fps", 6, "--size", 32,
                 "--drive.smooth", 0.05, cwd=tmp_path)  # fmt: skip
    assert "52 of the avatar's 52" in output
    assert len(list((tmp_path / "frames").glob("*.png"))) == 3
    run("threevp", "join", "frames", "--output", "film.webm", cwd=tmp_path)
    from imageio_ffmpeg import read_frames

    frames = read_frames(str(tmp_path / "film.webm"))
    assert next(frames)["size"] == (32, 32)
    assert len(list(frames)) == 3


def test_training_resumes(trained: Run):
    folder = trained.directory / "nerfstudio_models"
    arguments = training(Path("outputs"), "resumed", 3, "capture")
    run("ns-train", *arguments[:1], "--load-dir", folder, *arguments[1:], cwd=trained.root)
    resumed = Run(trained.root, trained.directory.with_name("resumed"))
    assert [p.name for p in resumed.checkpoints] == [f"step-{STEPS + 2:09d}.ckpt"]


def test_ctrl_c_leaves_a_loadable_checkpoint(trained: Run):
    log = trained.root / "interrupted.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            command("ns-train", *training(Path("outputs"), "interrupted", 100_000, "capture")),
            cwd=trained.root, env=environment(), stdout=sink, stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while "(0.0" not in log.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(2.0)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    finally:
        process.kill()
    checkpoints = Run(trained.root, trained.directory.with_name("interrupted")).checkpoints
    assert len(checkpoints) == 1, log.read_text()[-3000:]
    state = torch.load(checkpoints[0], map_location="cpu", weights_only=True)
    assert state["step"] == int(checkpoints[0].stem.removeprefix("step-"))


def test_data_that_is_no_capture_is_refused_before_training(tmp_path: Path):
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": []}))
    arguments = training(tmp_path / "outputs", "refused", 5, tmp_path)
    result = subprocess.run(
        command("ns-train", *arguments), cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=200
    )
    assert result.returncode != 0
    output = " ".join((result.stdout + result.stderr).split())
    assert "CaptureError" in output and "transforms.json" in output


def test_turntable_says_what_is_wrong_before_it_loads_anything(tmp_path: Path):
    result = subprocess.run(
        command("threevp", "turntable", "--load-config", tmp_path / "config.yml"),
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and "config.yml: no such file" in result.stderr
