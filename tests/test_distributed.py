"""Two processes on the CPU with gloo, through our pipeline: what one process would learn from the joined batch."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nerfstudio.cameras.rays import RayBundle

from tests.tiny_training import tiny_config
from threevp_nerfstudio.data.balance import shard
from threevp_nerfstudio.engine.trainer import single_process_names
from threevp_nerfstudio.kernels.bank import RayBatch
from threevp_nerfstudio.model import model as model_module
from threevp_nerfstudio.model.occupancy import CanonicalOccupancy
from threevp_nerfstudio.model.ray_bank import RayBank
from threevp_nerfstudio.pipeline import ThreeVPPipeline

WORLD = 2
RAYS = 96


def make_pipeline(capture: Path, output: Path, rank: int, world: int) -> ThreeVPPipeline:
    torch.manual_seed(0)
    config = tiny_config(capture, output).pipeline
    config.model.bank_size = 0  # what is learned from is then exactly what comes in
    config.datamanager.train_num_rays_per_batch = RAYS
    config.datamanager.neighbour_pixels = 0
    config.model.light_turned = 0.0
    config.model.field_config.matrix_units = False  # rounds sums of another order to other values
    pipeline = config.setup(device="cpu", world_size=world, local_rank=rank)
    pipeline.train()
    pipeline.model.before_step(0)
    return pipeline


def without_chance(pipeline: ThreeVPPipeline) -> None:
    """Samples in the middle of their intervals, rays as they were mapped, and a fixed background, so that runs can be compared."""
    march, draw = model_module.march, RayBank.draw

    def plain(bank: RayBank, *args, **kwargs) -> RayBatch:
        rays = draw(bank, *args, **{**kwargs, "moved": False})
        return replace(rays, background=torch.full_like(rays.background, 0.3))

    model_module.march = lambda *args: march(*args[:6], -1)
    RayBank.draw = plain


def joined_batch(pipeline: ThreeVPPipeline) -> RayBundle:
    pipeline.datamanager.frame_probabilities = np.full(len(pipeline.datamanager.train_dataset), 1.0)
    pipeline.datamanager.frame_probabilities /= len(pipeline.datamanager.train_dataset)
    pipeline.datamanager.rng = np.random.default_rng(3)
    pipeline.datamanager._next = []
    pipeline.datamanager.config.frames_per_step = 4
    return pipeline.datamanager.next_train(0)[0]


def gradients_of(pipeline: ThreeVPPipeline, bundle: RayBundle) -> dict[str, torch.Tensor]:
    """After one step on `bundle`, through the pipeline's own path."""
    pipeline.datamanager.next_train = lambda step: (bundle, {})
    _, losses, _ = pipeline.get_train_loss_dict(step=0)
    sum(losses.values()).backward()
    return {name: p.grad.clone() for name, p in pipeline.model.named_parameters() if p.grad is not None}


def shared_votes(occupancy: CanonicalOccupancy, rank: int) -> torch.Tensor:
    """What both processes hold after one saw cells that the other did not."""
    occupancy.unseen.zero_().view(-1)[rank] = 4.0
    occupancy.share()
    return occupancy.unseen.view(-1)[:3].clone()


def worker(rank: int, capture: Path, output: Path, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    pipeline = make_pipeline(capture, output, rank, WORLD)
    mine = set(np.flatnonzero(pipeline.datamanager.frame_probabilities).tolist())
    draws = pipeline.datamanager.next_train(0)[0]
    without_chance(pipeline)
    half = slice(rank * RAYS // WORLD, (rank + 1) * RAYS // WORLD)
    gradients = gradients_of(pipeline, joined_batch(pipeline)[half])
    result = {
        "gradients": gradients,
        "frames": mine,
        "origins": draws.origins,
        "rank": pipeline.model.kwargs["rank"],
        "cache": pipeline.datamanager.pictures._capacity,
        "unseen": shared_votes(pipeline.model.occupancy, rank),
        "names": set(single_process_names(pipeline.state_dict())),
    }
    torch.save(result, output / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tiny_capture: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    output = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    mp.spawn(worker, args=(tiny_capture, output, port), nprocs=WORLD)
    return [torch.load(output / f"rank{r}.pt", weights_only=False) for r in range(WORLD)]


@pytest.fixture
def alone(tiny_capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ThreeVPPipeline:
    monkeypatch.setattr(RayBank, "draw", RayBank.draw)  # both restored after the test
    monkeypatch.setattr(model_module, "march", model_module.march)
    return make_pipeline(tiny_capture, tmp_path, 0, 1)


def test_gradients_of_two_processes_are_those_of_the_joined_batch(ranks: list[dict], alone: ThreeVPPipeline):
    without_chance(alone)
    expected = gradients_of(alone, joined_batch(alone))
    for rank in ranks:
        assert set(rank["gradients"]) == set(expected)
        for name, gradient in expected.items():
            scale = float(gradient.abs().max())
            torch.testing.assert_close(rank["gradients"][name], gradient, atol=1e-4 * scale + 1e-9, rtol=1e-3)
    assert any(g.abs().max() > 0 for name, g in expected.items() if "blendfields" in name)


def test_processes_have_frames_seeds_and_cache_of_their_own(ranks: list[dict], alone: ThreeVPPipeline):
    assert not ranks[0]["frames"] & ranks[1]["frames"]
    assert ranks[0]["frames"] | ranks[1]["frames"] == set(range(len(alone.datamanager.train_dataset)))
    assert not torch.equal(ranks[0]["origins"], ranks[1]["origins"])
    assert [r["rank"] for r in ranks] == [0, 1]
    assert sum(r["cache"] for r in ranks) == alone.datamanager.pictures._capacity


def test_processes_agree_on_which_cells_are_hidden(ranks: list[dict]):
    for rank in ranks:
        assert rank["unseen"].tolist() == [2.0, 2.0, 0.0]


def test_a_checkpoint_of_two_processes_loads_into_one(ranks: list[dict], alone: ThreeVPPipeline):
    assert ranks[0]["names"] == set(alone.state_dict())


def test_shards_share_out_rare_frames():
    p = np.concatenate([np.full(95, 0.5 / 95), np.full(5, 0.1)])
    parts = [shard(p, rank, 2) for rank in range(2)]
    for part in parts:
        assert part.sum() == pytest.approx(1) and np.count_nonzero(part[95:]) >= 2
    assert not np.any((parts[0] > 0) & (parts[1] > 0)) and np.all((parts[0] > 0) | (parts[1] > 0))
    # drawn together, about as often as one process would draw them
    np.testing.assert_allclose((parts[0][95:].sum() + parts[1][95:].sum()) / 2, 0.5, atol=0.06)
    few = np.full(10, 0.1)
    assert np.array_equal(shard(few, 1, 2), few) and np.array_equal(shard(p, 0, 1), p)
