"""Faults injected into training and rendering: NaN, no memory, no usable CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from tests.tiny_training import tiny_config, tiny_trainer
from threevp_nerfstudio.engine import device as devices
from threevp_nerfstudio.engine.step_guard import LIMIT, StepGuard, all_finite
from threevp_nerfstudio.engine.trainer import ThreeVPTrainer, single_process_names
from threevp_nerfstudio.errors import ThreeVPError, TrainingError
from threevp_nerfstudio.model.chunks import SMALLEST_CHUNK, in_chunks, is_out_of_memory

# ---- NaN -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_number_anywhere_is_found(bad: float):
    tensors = [torch.ones(5), torch.full((3, 2), 1e30), torch.zeros(0), torch.arange(3)]
    assert all_finite(tensors)  # finite, though its square is not
    tensors[1][2, 1] = bad
    assert not all_finite(tensors)


def stepped(fused: bool, gradients: list[float], check_every: int = 1) -> tuple[torch.Tensor, StepGuard]:
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.Adam([p], lr=0.1, fused=fused)
    guard = StepGuard("cpu", check_every)
    for value in gradients:
        p.grad = torch.full((4,), value)
        if guard.arm([p.grad], [optimizer]):
            optimizer.step()
        guard.stop()
    return p.detach(), guard


@pytest.mark.parametrize("fused", [True, False])
def test_a_left_out_step_changes_nothing_and_later_ones_go_on(fused: bool):
    nan = float("nan")
    good, guard = stepped(fused, [1.0, 0.5])
    mixed, mixed_guard = stepped(fused, [1.0, nan, nan, 0.5])
    torch.testing.assert_close(mixed, good)
    assert guard.skipped == 0 and mixed_guard.skipped == 2


def test_only_steps_in_a_row_stop_training_and_late_looks_miss_none():
    nan = float("nan")
    _, guard = stepped(True, ([nan] * (LIMIT - 1) + [1.0]) * 3)
    assert not guard.stop(now=True) and guard.skipped == 3 * (LIMIT - 1)
    _, late = stepped(True, [nan] * LIMIT + [1.0] * 5, check_every=100)
    assert late.skipped == 0  # not looked at yet
    assert late.stop(now=True) and late.skipped == LIMIT


def poison(trainer: ThreeVPTrainer, steps: range) -> None:
    """NaN in the gradients, not in the loss, of some steps."""
    inner = trainer.pipeline.get_train_loss_dict

    def poisoned(step: int):
        outputs, losses, metrics = inner(step=step)
        if step in steps:
            losses["rgb_loss"] = losses["rgb_loss"] * torch.tensor(float("nan"))
        return outputs, losses, metrics

    trainer.pipeline.get_train_loss_dict = poisoned


def test_training_goes_on_after_a_few_bad_steps(tiny_capture: Path, tmp_path: Path):
    trainer = tiny_trainer(tiny_capture, tmp_path, max_num_iterations=14)
    poison(trainer, range(3, 3 + LIMIT - 1))
    trainer.train()
    assert trainer.guard.skipped == LIMIT - 1
    state = torch.load(next(trainer.checkpoint_dir.glob("*.ckpt")), weights_only=True)["pipeline"]
    assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


def test_ten_bad_steps_in_a_row_end_training_and_keep_what_was_learned(tiny_capture: Path, tmp_path: Path):
    trainer = tiny_trainer(tiny_capture, tmp_path, steps_per_save=9)
    poison(trainer, range(6, 1000))
    with pytest.raises(TrainingError, match=r"in 10 steps in a row.*learning rates.*--load-dir") as caught:
        trainer.train()
    assert str(trainer.checkpoint_dir) in str(caught.value)
    kept = sorted(p.name for p in trainer.checkpoint_dir.iterdir())
    assert kept == ["step-000000009.ckpt", "step-000000015.ckpt"]
    for name in kept:
        state = torch.load(trainer.checkpoint_dir / name, weights_only=True)["pipeline"]
        assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())


def test_parameters_that_are_not_finite_never_replace_a_checkpoint(tiny_capture: Path, tmp_path: Path):
    trainer = tiny_trainer(tiny_capture, tmp_path)
    trainer.save_checkpoint(3)
    with torch.no_grad():
        next(trainer.pipeline.model.field.parameters()).view(-1)[0] = float("inf")
    with pytest.raises(TrainingError, match="last good one stays"):
        trainer.save_checkpoint(4)
    assert [p.name for p in trainer.checkpoint_dir.iterdir()] == ["step-000000003.ckpt"]


def test_checkpoints_do_not_tell_how_many_processes_trained():
    state = {"_model.module.field.box": torch.ones(1), "_model.module_like": torch.ones(1), "other": torch.ones(1)}
    assert set(single_process_names(state)) == {"_model.field.box", "_model.module_like", "other"}


# ---- memory ----------------------------------------------------------------------------------------------------------

SHORTAGES = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
    RuntimeError("Failed to allocate 4096 bytes on device 'cuda:0'"),
    MemoryError(),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda e: type(e).__name__)
def test_shortages_of_memory_are_known_for_what_they_are(error: BaseException):
    assert is_out_of_memory(error) and not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_rendering_halves_its_chunk_and_goes_on(capsys: pytest.CaptureFixture):
    asked: list[tuple[int, int]] = []

    def render(a: int, b: int) -> list[int]:
        asked.append((a, b))
        if b - a > 1000:
            raise SHORTAGES[0]
        return list(range(a, b))

    parts, size = in_chunks(render, 5000, 4000)
    assert sum(parts, []) == list(range(5000)) and size == 1000
    assert asked[:4] == [(0, 4000), (0, 2000), (0, 1000), (1000, 2000)]
    assert capsys.readouterr().out.count("Out of memory") == 2


def test_rendering_gives_up_where_nothing_fits_and_passes_other_errors_on():
    def hopeless(a: int, b: int) -> None:
        raise SHORTAGES[1]

    def wrong(a: int, b: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(ThreeVPError, match=f"even with {SMALLEST_CHUNK} rays.*max-samples"):
        in_chunks(hopeless, 5000, 4000)
    with pytest.raises(RuntimeError, match="shapes"):
        in_chunks(wrong, 5000, 4000)


def test_a_picture_is_the_same_after_memory_ran_out(tiny_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = tiny_trainer(tiny_capture, tmp_path).pipeline.model.eval()
    from threevp_nerfstudio.data.dataparser import ThreeVPDataParserConfig

    camera = ThreeVPDataParserConfig(data=tiny_capture).setup().get_dataparser_outputs(split="train").cameras[0:1]
    whole = model.get_outputs_for_camera(camera)["rgb"]
    inner = model.render_rays

    def short(origins: torch.Tensor, *rest) -> dict[str, torch.Tensor]:
        if len(origins) > 700:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return inner(origins, *rest)

    monkeypatch.setattr(model, "render_rays", short)
    torch.testing.assert_close(model.get_outputs_for_camera(camera)["rgb"], whole, atol=1e-5, rtol=0)
    assert model.config.eval_num_rays_per_chunk <= 700


def test_training_without_memory_names_the_settings_to_lower(tiny_capture: Path, tmp_path: Path):
    trainer = tiny_trainer(tiny_capture, tmp_path)

    def full(step: int):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    trainer.pipeline.get_train_loss_dict = full
    with pytest.raises(TrainingError, match=r"rays-per-step \(now 64\).*bank-size \(now 512\).*cache-gigabytes"):
        trainer.train()


# ---- devices ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_probe():
    devices.why_unusable.cache_clear()
    devices._warn.cache_clear()
    yield
    devices.why_unusable.cache_clear()
    devices._warn.cache_clear()


def fake_cuda(monkeypatch: pytest.MonkeyPatch, torch_works, warp_works) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Old GPU")
    monkeypatch.setattr(devices, "_torch_works", torch_works)
    monkeypatch.setattr(devices, "_warp_works", warp_works)


def failing(message: str):
    def probe(device: torch.device) -> bool:
        raise RuntimeError(message)

    return probe


def test_the_cpu_is_always_usable():
    assert devices.usable("cpu") == ("cpu", None)
    assert devices.usable(torch.device("cpu")) == ("cpu", None)


def test_the_probe_of_the_kernels_looks_at_their_results():
    assert devices._torch_works(torch.device("cpu")) and devices._warp_works(torch.device("cpu"))


@pytest.mark.parametrize(
    ("torch_probe", "warp_probe", "reason"),
    [
        (failing("no kernel image is available for execution"), lambda d: True, "torch failed on Old GPU: no kernel image"),
        (lambda d: True, failing("NVRTC compilation error\nmore"), "the Warp kernels failed on Old GPU: NVRTC compilation"),
        (lambda d: True, lambda d: False, "the Warp kernels gave wrong results on Old GPU"),
    ],
)
def test_a_device_that_does_not_work_is_not_used(monkeypatch, fresh_probe, capsys, torch_probe, warp_probe, reason):
    fake_cuda(monkeypatch, torch_probe, warp_probe)
    for _ in range(2):
        device, why = devices.usable("cuda:0")
        assert device == "cpu" and why.startswith(reason)
    assert " ".join(capsys.readouterr().out.split()).count(reason) == 1  # one warning
    assert "1 devices" in devices.why_unusable("cuda:3")


def test_without_cuda_a_run_goes_to_the_cpu_and_says_so_in_its_config(
    tiny_capture: Path, tmp_path: Path, monkeypatch, fresh_probe, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    config = tiny_config(tiny_capture, tmp_path)
    config.machine.device_type, config.machine.num_devices = "cuda", 4
    config.save_config()
    written = yaml.load((config.get_base_dir() / "config.yml").read_text(), Loader=yaml.Loader)
    assert written.machine.device_type == "cpu" and written.machine.num_devices == 1
    assert written.device_fallback == "no CUDA driver or device was found"
    assert "threevp-small" in capsys.readouterr().out
    trainer = config.setup(local_rank=0, world_size=1)
    assert trainer.device == "cpu"
