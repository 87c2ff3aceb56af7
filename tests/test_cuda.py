"""On a CUDA device: what the CPU gives, without waiting where it need not. `pytest -m gpu` runs this and the kernels' tests."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.tiny_training import mapped, tiny_trainer
from threevp_nerfstudio.data.dataparser import cameras_of
from threevp_nerfstudio.engine.trainer import ThreeVPTrainer
from threevp_nerfstudio.kernels.march import march
from threevp_nerfstudio.model.field import CanonicalSamples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device; run `pytest -m gpu` where there is one"),
]
WAITS = 8
"""Times that a training step may wait for the device; see tests/kernels/test_cuda_readiness.py for what they are."""


def cuda(config) -> None:
    config.machine.device_type = "cuda"


def run(trainer: ThreeVPTrainer, steps: int, first: int = 0) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        trainer.step = step
        trainer.pipeline.model.before_step(step)
        losses.append(trainer.train_iteration(step)[0].detach())
        trainer.pipeline.model.after_step(step)
    return torch.stack(losses).tolist()


@pytest.fixture(scope="module")
def pair(tiny_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ThreeVPTrainer, ThreeVPTrainer]:
    """A trainer on the CPU after some steps, and one on the device with the same state."""
    host = tiny_trainer(tiny_capture, tmp_path_factory.mktemp("host"))
    run(host, 60)
    device = tiny_trainer(tiny_capture, tmp_path_factory.mktemp("device"), cuda)
    device.pipeline.model.load_state_dict(host.pipeline.model.state_dict())
    assert next(device.pipeline.model.parameters()).is_cuda
    return host, device


def test_marched_samples_are_those_of_the_cpu(pair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("threevp_nerfstudio.model.model.march", partial(march, wide=True))  # as on a device
    bundle = pair[0].pipeline.datamanager.next_train(0)[0]
    models = [trainer.pipeline.model for trainer in pair]
    host, device = (mapped(model, bundle.to(model.device), seed=5) for model in models)
    same = host.count == device.count.cpu()
    assert same.float().mean() > 0.85  # where two triangles are equally near, either may be chosen, and one of them be thin
    assert host.count.sum() > 100
    mask = host.mask & same[:, None]
    for name in ("t", "width", "position", "along", "light"):
        a, b = getattr(host, name)[mask], getattr(device, name).cpu()[mask]
        difference = (a - b).float().abs().reshape(len(a), -1).amax(1)
        assert (difference < 2e-3).float().mean() > 0.97, name


def test_pictures_are_those_of_the_cpu(pair):
    capture = pair[0].pipeline.datamanager.train_dataset.capture
    for frame in (0, len(capture.frames) - 1):
        camera = cameras_of(capture, torch.tensor([frame]).numpy())
        pictures = []
        for trainer in pair:
            model = trainer.pipeline.model.eval()
            index = torch.tensor(frame, device=model.device)
            pictures.append(model.render_camera(camera, model.state_for(index, None)))
        for name in ("rgb", "accumulation"):
            difference = (pictures[0][name] - pictures[1][name].cpu()).abs()
            assert (difference < 1 / 255).float().mean() > 0.95 and difference.mean() < 0.3 / 255, name
        assert pictures[0]["accumulation"].mean() > 0.05


def test_gradients_are_those_of_the_cpu(pair):
    generator = torch.Generator().manual_seed(0)
    host = pair[0].pipeline.model.field
    low, high = host.face_box
    position = low + (high - low) * torch.rand(400, 3, generator=generator)
    light, direction = torch.randn(400, 3, 2, generator=generator), torch.randn(400, 3, generator=generator)
    conditioning = torch.rand(4, pair[0].pipeline.model.performance.num_conditioning, generator=generator)
    gradients = []
    for trainer in pair:
        model = trainer.pipeline.model.train()
        field, to = model.field, model.device
        field.zero_grad(set_to_none=True)
        samples = CanonicalSamples(
            position.to(to), torch.nn.functional.normalize(light, dim=1).to(to), direction.to(to), conditioning.to(to),
            (torch.arange(400) % 4).to(to),
        )  # fmt: skip
        density, rgb, _, displacement = field.evaluate(samples)
        (density.log().mean() + rgb.square().mean() + displacement.square().sum()).backward()
        gradients.append({name: p.grad.cpu() for name, p in field.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 8
    for name, expected in gradients[0].items():
        error = (gradients[1][name] - expected).norm() / expected.norm().clamp_min(1e-12)
        assert error < 1e-3, name


@pytest.mark.parametrize("mixed", [False, True])
def test_training_learns_and_its_checkpoint_loads_on_the_cpu(mixed: bool, tiny_capture: Path, tmp_path: Path):
    trainer = tiny_trainer(tiny_capture, tmp_path / "run", cuda, mixed_precision=mixed, use_grad_scaler=mixed)
    losses = run(trainer, 80)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    trainer.save_checkpoint(79)
    saved = torch.load(next(trainer.checkpoint_dir.glob("*.ckpt")), map_location="cpu", weights_only=True)
    again = tiny_trainer(tiny_capture, tmp_path / "again")
    again.pipeline.load_pipeline(saved["pipeline"], 79)


def test_a_step_waits_for_the_device_no_more_than_allowed(pair):
    trainer = pair[1]
    run(trainer, 3, first=201)
    batch = trainer.pipeline.datamanager.next_train(0)
    trainer.pipeline.datamanager.next_train = lambda step: batch
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            trainer.pipeline.model.before_step(205)
            trainer.train_iteration(205)
            trainer.pipeline.model.after_step(205)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        del trainer.pipeline.datamanager.next_train
    waits = [w for w in said if "synchroniz" in str(w.message)]
    assert len(waits) <= WAITS, "\n".join(f"{w.filename}:{w.lineno}" for w in waits)


def test_kernels_follow_the_current_stream(pair):
    """Were they on a stream of their own, they would read what is not there yet."""
    model = pair[1].pipeline.model.eval()
    capture = pair[1].pipeline.datamanager.train_dataset.capture
    camera = cameras_of(capture, torch.tensor([3]).numpy())
    state = model.state_for(torch.tensor(3, device=model.device), None)
    expected = model.render_camera(camera, state)["rgb"]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        other = model.render_camera(camera, state)["rgb"]
    stream.synchronize()
    torch.testing.assert_close(other, expected, atol=2e-3, rtol=0)
