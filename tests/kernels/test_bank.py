"""Rays into the bank and out of it: the kernels against the same in torch, and chance by its statistics."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from threevp_nerfstudio.geometry.vectors import unit
from threevp_nerfstudio.kernels.bank import Choice, FreshRays, MappedRays, RayBatch, choose, pack, store
from threevp_nerfstudio.kernels.look import MarchedSamples
from threevp_nerfstudio.model.ray_bank import local_frames, turned_light

HALF = {"atol": 1e-3, "rtol": 1e-3}


def fresh(rays: int = 30, room: int = 6, side: int = 3, poses: int = 3, seed: int = 0) -> FreshRays:
    torch.manual_seed(seed)
    width = torch.rand(rays, room) * 0.004 + 0.001
    samples = MarchedSamples(
        t=width.cumsum(1) + 1.0,
        width=width,
        position=torch.randn(rays, room, 3),
        M=torch.eye(3) + 0.2 * torch.randn(rays, room, 3, 3),
        count=torch.randint(0, room + 1, (rays,), dtype=torch.int32),
        next=torch.full((rays,), -1, dtype=torch.int32),
    )
    patch = torch.randint(0, 256, (rays, side * side, 4), dtype=torch.uint8)
    patch[: rays // 3, :, 3] = 0  # of rays beside the subject
    return FreshRays(
        samples=samples,
        direction=torch.nn.functional.normalize(torch.randn(rays, 3), dim=-1),
        across=torch.randn(rays, 6) * 0.002,
        room=torch.linalg.qr(torch.randn(poses, 3, 3))[0],
        slot=torch.randint(0, poses, (rays,), dtype=torch.int32),
        frame=torch.randint(0, 50, (rays,)),
        patch=patch.view(rays, -1),
        weight=torch.rand(rays),
    )


def mapped_torch(rays: FreshRays) -> MappedRays:
    """`store` in torch, in single precision."""
    samples = rays.samples
    across = rays.across.view(-1, 3, 2)
    light, along, across = local_frames(samples.M, rays.room[rays.slot.long()], rays.direction, across)
    return MappedRays(
        frame=rays.frame,
        patch=rays.patch.view(len(rays), -1, 4),
        weight=rays.weight,
        t=samples.t,
        width=samples.width,
        position=samples.position,
        across=across * samples.t[..., None, None],
        along=along,
        light=light,
        count=samples.count,
    )


def batch_torch(ring: MappedRays, choice: Choice) -> RayBatch:
    """`pack` in torch."""
    row = choice.row.long()
    count = ring.count[row]
    ray, slot = (torch.arange(ring.t.shape[1]) < count[:, None]).nonzero(as_tuple=True)
    flat = (row[ray], slot)
    along, move = ring.along[flat].float(), choice.move[ray]
    moved = (ring.across[flat].float() * move[:, None, :2]).sum(-1) + along * move[:, 2:]
    return RayBatch(
        frame=ring.frame[row],
        target=choice.target,
        background=choice.background,
        weight=ring.weight[row],
        beside=(ring.patch[row, :, 3] == 0).all(1),
        ends=count.cumsum(0, dtype=torch.int32),
        ray=ray,
        t=ring.t[flat] + move[:, 2],
        width=ring.width[flat],
        position=ring.position[flat] + moved,
        direction=unit(along),
        light=turned_light(ring.light[flat].float(), choice.turn[ray]),
        sample_frame=ring.frame[row][ray],
    )


def stored(rays: FreshRays, capacity: int | None = None, first: int = 0) -> MappedRays:
    count, room = rays.samples.t.shape
    ring = MappedRays.room_for(capacity or count, room, rays.patch.shape[1] // 4, torch.device("cpu"))
    store(rays, ring, first)
    return ring


def assert_holds(ring: MappedRays, rows: Tensor, rays: MappedRays) -> None:
    for entry in fields(rays):
        mine, exact = getattr(ring, entry.name)[rows], getattr(rays, entry.name)
        if exact.dim() > 1 and exact.shape[1] == rays.t.shape[1]:
            mine, exact = mine[rays.mask], exact[rays.mask]
        if mine.dtype == torch.float16:
            torch.testing.assert_close(mine.float(), exact, **HALF, msg=entry.name)
        else:
            assert torch.equal(mine, exact), entry.name


def test_rays_are_stored_as_torch_maps_them():
    rays = fresh()
    assert_holds(stored(rays), torch.arange(30), mapped_torch(rays))


def test_the_ring_wraps_round_and_keeps_the_last_of_too_many():
    rays = fresh()
    assert_holds(stored(rays, 40, first=35), (35 + torch.arange(30)) % 40, mapped_torch(rays))
    exact = mapped_torch(rays)
    last = MappedRays(**{f.name: getattr(exact, f.name)[18:] for f in fields(exact)})
    assert_holds(stored(rays, 12, first=5), (5 + torch.arange(12)) % 12, last)


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("newest", [0, 4])
@pytest.mark.parametrize("turned", [0.0, 0.5])
def test_a_batch_is_packed_as_torch_packs_it(moved: bool, in_order: bool, newest: int, turned: float):
    ring = stored(fresh(), 32)
    count = (30 if in_order else 100) + newest
    choice = choose(
        ring, count, filled=30, next=30, seed=3, moved=moved, in_order=in_order, newest=newest, turned=turned
    )
    batch, exact = pack(ring, choice), batch_torch(ring, choice)
    for entry in fields(exact):
        torch.testing.assert_close(getattr(batch, entry.name), getattr(exact, entry.name), atol=1e-6, rtol=1e-5)
    row, step = choice.row.long(), choice.move[:, :2].long() + 1
    target = ring.patch[row, step[:, 0] + 3 * step[:, 1]].float() / 255  # patches of 3 x 3, row by row
    torch.testing.assert_close(choice.target, target)
    assert batch.beside.any() and not batch.beside.all()
    if in_order:
        assert torch.equal(row[:30], torch.arange(30))
    if newest:
        assert torch.equal(row[-4:], torch.arange(26, 30)) and not choice.move[-4:].any()
        assert (choice.background[-4:] == choice.background[-1]).all()
        assert len(choice.background.unique(dim=0)) == count - 3
    assert choice.move.any() == moved


def test_a_batch_without_samples_is_empty():
    rays = fresh(rays=3)
    rays.samples.count.zero_()
    ring = stored(rays)
    batch = pack(ring, choose(ring, 5, filled=3, next=0, seed=0))
    assert len(batch) == 5 and len(batch.t) == 0 and not batch.ends.any()


def test_chance_is_even_and_repeats_with_its_seed():
    ring = stored(fresh(), 64)
    count = 60_000

    def draw(seed: int) -> Choice:
        return choose(ring, count, filled=30, next=30, seed=seed, turned=0.25)

    a, again, b = draw(1), draw(1), draw(2)
    for entry in fields(a):
        assert torch.equal(getattr(a, entry.name), getattr(again, entry.name))
    assert (a.row == b.row).float().mean() < 0.05  # 1 in 30 by chance
    assert (torch.bincount(a.row, minlength=64)[:30] - count / 30).abs().max() < 5 * (count / 30) ** 0.5
    assert a.row.max() == 29
    pixel = a.move[:, 0] + 3 * a.move[:, 1] + 4
    assert (torch.bincount(pixel.long(), minlength=9) - count / 9).abs().max() < 5 * (count / 9) ** 0.5
    long = ring.count[a.row.long()] > 0
    slide = a.move[long, 2] / ring.width[a.row.long()[long], 0]
    assert slide.abs().max() <= 0.5 + 1e-6 and slide.mean().abs() < 0.01 and slide.var() == pytest.approx(1 / 12, abs=0.003)
    assert (a.turn > 0).float().mean() == pytest.approx(0.25, abs=0.01)
    turned = a.turn[a.turn > 0]
    assert turned.min() >= 0.5 * torch.pi - 1e-6 and turned.max() <= 1.5 * torch.pi + 1e-6
    assert (a.background.mean(0) - 0.5).abs().max() < 0.01 and a.background.std(0).mean() == pytest.approx(12**-0.5, abs=0.005)
    together = torch.stack([a.row.float(), pixel, slide.new_zeros(count).masked_scatter_(long, slide), a.turn, *a.background.T])
    correlation = torch.corrcoef(together) - torch.eye(7)
    assert correlation.abs().max() < 0.02


def test_some_samples_of_a_batch_keep_their_rays():
    ring = stored(fresh())
    batch = pack(ring, choose(ring, 20, filled=30, next=0, seed=0))
    kept = (torch.rand(len(batch.t)) < 0.4).nonzero().squeeze(-1)
    some = batch.only(kept)
    assert torch.equal(some.position, batch.position[kept]) and len(some) == 20
    assert torch.equal(some.ends, torch.bincount(batch.ray[kept], minlength=20).cumsum(0).int())
