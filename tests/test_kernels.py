"""Warp kernels against their torch twins, and what marching must guarantee."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.shapes import sphere
from threevp_nerfstudio.body.mesh import vertex_normals
from threevp_nerfstudio.geometry.own_space import medial_radius
from threevp_nerfstudio.geometry.surface_frames import to_canonical_torch, vertex_maps_torch, vertex_triangles
from threevp_nerfstudio.kernels import hash_grid
from threevp_nerfstudio.kernels.hash_grid import hash_encode, hash_encode_torch
from threevp_nerfstudio.kernels.hull import posed_hull
from threevp_nerfstudio.kernels.look import CORE, HIDDEN, MarchSettings, OccupancyView
from threevp_nerfstudio.kernels.march import march
from threevp_nerfstudio.kernels.surface import PosedSurface, signed_distance

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device; run `pytest -m gpu` where there is one"),
        ],
    ),
]

# ---- hash grid -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["of the device", "of a GPU"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("features", [1, 2, 4])
def test_hash_grid_agrees_with_its_twin(features: int, device: str, kernels: str, monkeypatch: pytest.MonkeyPatch):
    if kernels == "of a GPU":  # a CPU can run them, too, if slowly
        monkeypatch.setattr(hash_grid, "_on_cpu", lambda points: False)
    torch.manual_seed(features)
    table = torch.randn(5, 2**10, features, device=device, requires_grad=True)
    resolutions = torch.tensor([4, 9, 16, 61, 1024], dtype=torch.int32, device=device)  # dense and hashed levels
    points = torch.rand(300, 3, device=device)
    points[:8] = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).to(device)  # the cube's corners
    points[8:20, 0] = 1.0
    points.requires_grad_()
    upstream = torch.randn(300, 5 * features, device=device)
    results = []
    moving = torch.arange(300, device=device) % 3 > 0
    for encode in (hash_encode, hash_encode_torch):
        out = encode(points, table, resolutions)
        all_move = torch.autograd.grad((out * upstream).sum(), (points, table), retain_graph=True)
        some_move = torch.autograd.grad((encode(points, table, resolutions, moving) * upstream).sum(), (points, table))
        results.append((out, *all_move, *some_move))
    assert not results[0][3][~moving].any()
    for fast, oracle, scale in zip(results[0], results[1], (1.0, 1024.0, 1.0, 1024.0, 1.0), strict=True):
        torch.testing.assert_close(fast, oracle, rtol=1e-3, atol=2e-4 * scale)


def test_hash_grid_interpolates_linearly_between_corners():
    table = torch.randn(1, 2**10, 2)
    resolutions = torch.tensor([4], dtype=torch.int32)
    a, b = torch.tensor([[0.25, 0.5, 0.75]]), torch.tensor([[0.5, 0.5, 0.75]])
    ends = [hash_encode(p, table, resolutions) for p in (a, b)]
    torch.testing.assert_close(hash_encode(0.3 * a + 0.7 * b, table, resolutions), 0.3 * ends[0] + 0.7 * ends[1])


def test_hash_grid_takes_no_points():
    table = torch.randn(2, 2**8, 2, requires_grad=True)
    out = hash_encode(torch.zeros(0, 3), table, torch.tensor([4, 8], dtype=torch.int32))
    out.sum().backward()
    assert out.shape == (0, 4) and not table.grad.any()


# ---- surface ---------------------------------------------------------------------------------------------------------


def surface_of(canonical: np.ndarray, faces: np.ndarray, slots: int, device: str = "cpu") -> PosedSurface:
    start, rows = vertex_triangles(faces, len(canonical))
    tensors = [torch.from_numpy(x).to(device) for x in (canonical, faces, start, rows)]
    return PosedSurface(*tensors, slots)


def bent(vertices: np.ndarray, amount: float, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy((vertices + rng.normal(size=vertices.shape) * amount + rng.normal(size=3) * 0.1).astype(np.float32))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("noise", [0.0, 0.002, 0.02])
def test_surface_map_agrees_with_its_twin(noise: float, device: str):
    rng = np.random.default_rng(7)
    vertices, faces = sphere(rings=6, segments=8)
    poses = torch.stack([bent(vertices, noise, rng) for _ in range(3)]).to(device)
    surface = surface_of(vertices, faces, 4, device)
    surface.update(poses)
    points = poses.cpu()[torch.arange(90) % 3, torch.arange(90) % len(vertices)] + torch.randn(90, 3) * 0.03
    slots = (torch.arange(90) % 3).to(device)
    x, M, distance = (t.cpu() for t in surface.to_canonical(points.to(device), slots, max_distance=1.0))
    canonical, triangles = torch.from_numpy(vertices), torch.from_numpy(faces)
    for slot in range(3):
        posed, mine = poses[slot].cpu(), slots.cpu() == slot
        maps = vertex_maps_torch(posed.double(), canonical.double(), triangles)
        torch.testing.assert_close(surface.maps[slot].cpu().double(), maps, rtol=2e-3, atol=2e-3)
        expected = to_canonical_torch(points[mine].double(), posed.double(), canonical.double(), triangles, maps)
        torch.testing.assert_close(distance[mine].double(), expected[2], rtol=1e-4, atol=1e-6)
        # where two triangles are equally near, either may be chosen; both give the same point of the surface
        close = (x[mine].double() - expected[0]).norm(dim=-1) < 1e-4
        assert close.float().mean() > 0.95


def test_surface_map_survives_degenerate_triangles():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [2, 0, 0]], dtype=np.float32)
    faces = np.array([[0, 1, 2], [0, 1, 4], [0, 3, 3]], dtype=np.int32)  # a proper one, a sliver, a point
    surface = surface_of(vertices, faces, 1)
    surface.update(torch.from_numpy(vertices)[None])
    points = torch.randn(50, 3)
    x, M, distance = surface.to_canonical(points, torch.zeros(50, dtype=torch.int64), 100.0)
    assert all(torch.isfinite(t).all() for t in (x, M, distance))
    maps = vertex_maps_torch(*[torch.from_numpy(vertices)] * 2, torch.from_numpy(faces))
    assert torch.isfinite(maps).all()


def test_points_beyond_the_search_distance_are_not_found():
    vertices, faces = sphere()
    surface = surface_of(vertices, faces, 1)
    points = torch.tensor([[0.0, 0.0, 0.3], [0.0, 0.0, 0.12]])
    _, _, distance = surface.to_canonical(points, torch.zeros(2, dtype=torch.int64), max_distance=0.05)
    assert torch.isinf(distance[0]) and distance[1] == pytest.approx(0.02, abs=1e-3)


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_posing_a_surface_leaves_the_canonical_vertices_alone(slots: int):
    vertices, faces = sphere()
    canonical = torch.from_numpy(vertices.copy())
    start, rows = vertex_triangles(faces, len(vertices))
    surface = PosedSurface(canonical, *[torch.from_numpy(x) for x in (faces, start, rows)], slots)
    offsets = torch.arange(1.0, slots + 1)[:, None, None]
    surface.update(canonical + offsets)
    assert torch.equal(canonical, torch.from_numpy(vertices))
    assert torch.equal(surface.canonical, canonical)
    points = canonical[5].expand(slots, 3) + offsets[:, 0]  # each slot's own copy of a vertex
    x, M, distance = surface.to_canonical(points, torch.arange(slots), 0.1)
    torch.testing.assert_close(x, canonical[5].expand(slots, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(M, torch.eye(3).expand(slots, 3, 3), atol=1e-3, rtol=0)


def test_signed_distance_is_negative_inside():
    vertices, faces = sphere(rings=40, segments=60)
    points = np.array([[0, 0, 0.13], [0, 0, 0.08], [0, 0, 1.0]], dtype=np.float32)
    distance = signed_distance(vertices, faces, points, max_distance=0.2)
    np.testing.assert_allclose(distance[:2], [0.03, -0.02], atol=1e-3)
    assert np.isinf(distance[2])


# ---- marching --------------------------------------------------------------------------------------------------------

CELL, REACH = 0.01, 0.03


def shell_view(occupied: bool = True) -> OccupancyView:
    """A grid over [-0.16, 0.16]^3 in which everything (or nothing) is occupied."""
    shape = (32, 32, 32)
    skip = torch.full(shape, 0 if occupied else 6, dtype=torch.uint8)
    return OccupancyView(skip, (-0.16, -0.16, -0.16), CELL)


def rays(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of them hit the ball at the origin, half pass it by."""
    target = torch.randn(count, 3) * 0.02
    target[count // 2 :, 0] += 1.0
    origins = torch.tensor([0.0, -1.0, 0.0]).expand(count, 3).contiguous()
    return origins, torch.nn.functional.normalize(target - origins, dim=-1)


def marched(view: OccupancyView, seed: int = -1, step: float = 0.005, room: int = 64, scale: float = 1.0):
    torch.manual_seed(0)
    vertices, faces = sphere()
    origins, directions = rays()
    settings = MarchSettings(step, REACH, room)
    slots = torch.zeros(len(origins), dtype=torch.int64)
    surface = surface_of(vertices, faces, 1)
    surface.update(torch.from_numpy(vertices)[None])
    return origins, directions, march(origins, directions * scale, slots, surface, view, settings, seed)


def test_a_missed_ray_has_no_samples_and_a_hit_has_some():
    _, _, samples = marched(shell_view())
    assert (samples.count[32:] == 0).all() and (samples.count[:32] > 0).all()
    assert not samples.mask[32:].any()


@pytest.mark.parametrize("seed", [-1, 3])
def test_samples_lie_in_the_shell_in_order_and_do_not_overlap(seed: int):
    origins, directions, samples = marched(shell_view(), seed)
    x = (origins[:, None] + samples.t[..., None] * directions[:, None])[samples.mask]
    # the surface is where it was when the rays were cast, so canonical and posed positions agree
    torch.testing.assert_close(samples.position[samples.mask], x, atol=2e-4, rtol=0)
    vertices, faces = sphere()
    distance = np.abs(signed_distance(vertices, faces, x.numpy(), 1.0))
    assert distance.max() <= REACH + 1e-4
    gap = samples.t[:, 1:] - samples.t[:, :-1]
    both = samples.mask[:, 1:]
    assert (gap[both] > 0).all()
    if seed < 0:
        assert (gap[both] >= samples.width[:, 1:][both] - 1e-5).all()


def test_both_walls_are_sampled_and_widths_cover_the_shell():
    origins, directions, samples = marched(shell_view())
    # along the ball's middle each wall is 2 * REACH thick
    covered = (samples.width * samples.mask).sum(1)[:32]
    assert covered.min() > 3.5 * REACH and covered.max() < 7 * REACH
    depth = samples.t[:32]
    near = (depth < 1.0) & samples.mask[:32]
    far = (depth > 1.0) & samples.mask[:32]
    assert near.any(1).all() and far.any(1).all()


def test_too_little_room_widens_the_steps_instead_of_cutting_rays_short():
    _, _, samples = marched(shell_view(), room=12)
    assert (samples.count <= 12).all()
    far = ((samples.t > 1.05) & samples.mask)[:32]
    assert far.any(1).all()
    assert (samples.width[:32, 0] > 0.005).all()


def test_a_part_that_has_left_its_place_is_sampled_in_its_own_space_only():
    gap, apart = 0.02, 0.5
    vertices, faces = sphere(rings=40, segments=60)
    second = vertices + np.array([0.2 + gap, 0.0, 0.0], dtype=np.float32)  # beside the first in canonical space
    canonical, both = np.concatenate([vertices, second]), np.concatenate([faces, faces + len(vertices)])
    posed = canonical.copy()
    posed[len(vertices) :, 0] += apart
    start, rows = vertex_triangles(both, len(canonical))
    own = torch.from_numpy(medial_radius(canonical, vertex_normals(canonical, both), 1.0).astype(np.float32))
    tensors = [torch.from_numpy(x) for x in (canonical, both, start, rows)]
    view = OccupancyView(torch.zeros(80, 80, 80, dtype=torch.uint8), (-0.4, -0.4, -0.4), CELL)
    origin = torch.tensor([[0.22 + apart - 0.3, 0.0, 0.0]])  # between the two, looks at the one that has moved
    spread = []
    for space in (None, own):
        surface = PosedSurface(*tensors, 1, space)
        surface.update(torch.from_numpy(posed)[None])
        samples = march(
            origin, torch.tensor([[1.0, 0.0, 0.0]]), torch.zeros(1, dtype=torch.int64), surface, view, MarchSettings(0.002, REACH, 200)
        )
        spread.append(samples.position[samples.mask][:, 0])
    assert spread[0].min() < 0.1  # in the first ball: it would be seen twice
    assert 0.1 + gap / 2 - 1e-3 < spread[1].min() < 0.1 + gap / 2 + 4e-3
    assert (spread[1] > 0.1 + gap).sum() == (spread[0] > 0.1 + gap).sum()  # the inside is as before


def test_training_rays_end_in_hidden_cells_and_pictures_go_on():
    vertices, faces = sphere()
    surface = surface_of(vertices, faces, 1)
    surface.update(torch.from_numpy(vertices)[None])
    origins, directions = rays()
    view = shell_view()
    view.skip[:, 16:] = HIDDEN  # the farther half
    slots = torch.zeros(len(origins), dtype=torch.int64)
    training, picture = (
        march(origins, directions, slots, surface, view, MarchSettings(0.005, REACH, 64, stop_at_hidden=stop))
        for stop in (True, False)
    )
    behind = lambda m: ((m.t > 1.01) & m.mask)[:32].sum(1)  # noqa: E731
    assert (behind(training) == 1).all() and (behind(picture) > 3).all()


@pytest.mark.parametrize("seed", [-1, 3])
def test_thin_parts_are_sampled_in_quarters_of_a_step(seed: int):
    """The half of a ball that faces the camera is thin: four times the samples of a quarter the width there, the rest as ever."""
    vertices, faces = sphere()
    start, rows = vertex_triangles(faces, len(vertices))
    thin = torch.from_numpy(vertices[faces].mean(1)[:, 1] < 0)
    tensors = [torch.from_numpy(x) for x in (vertices, faces, start, rows)]
    torch.manual_seed(0)
    origins, directions = (x[:32] for x in rays())
    slots, settings = torch.zeros(32, dtype=torch.int64), MarchSettings(0.005, REACH, 128, stop_at_hidden=True)
    made = []
    for marks in (None, thin):
        surface = PosedSurface(*tensors, 1, None, marks)
        surface.update(torch.from_numpy(vertices)[None])
        made.append(march(origins, directions, slots, surface, shell_view(), settings, seed))
    plain, fine = made
    front = lambda m: m.mask & (m.t < 0.99)  # noqa: E731
    behind = lambda m: m.mask & (m.t > 1.02)  # noqa: E731
    assert fine.width[front(fine)].max() < 0.0013 < plain.width[front(plain)].min()
    assert 3.5 < front(fine).sum() / front(plain).sum() < 4.5
    assert (fine.width[behind(fine)] > 0.004).float().mean() > 0.9
    covered = [(m.width * m.mask).sum(1) for m in made]
    torch.testing.assert_close(covered[0].mean(), covered[1].mean(), atol=0.004, rtol=0)
    ends = fine.t + fine.width / 2
    if seed < 0:  # steps do not overlap
        assert (fine.t[:, 1:] - fine.width[:, 1:] / 2 - ends[:, :-1])[fine.mask[:, 1:]].min() > -1e-5
    # the sample that ends a training ray closes it, as a whole step would
    hidden = shell_view()
    hidden.skip[:] = HIDDEN
    surface = PosedSurface(*tensors, 1, None, thin)
    surface.update(torch.from_numpy(vertices)[None])
    ended = march(origins, directions, slots, surface, hidden, settings, seed)
    assert (ended.count == 1).all() and torch.allclose(ended.width[:, 0], torch.tensor(0.005))


def test_a_walk_in_parts_finds_the_same_samples():
    vertices, faces = sphere()
    surface = surface_of(vertices, faces, 1)
    surface.update(torch.from_numpy(vertices)[None])
    origins, directions = rays()
    slots = torch.zeros(len(origins), dtype=torch.int64)
    whole = march(origins, directions, slots, surface, shell_view(), MarchSettings(0.005, REACH, 64))
    found, start = [[] for _ in origins], torch.zeros(len(origins), dtype=torch.int32)
    active = torch.arange(len(origins))
    while len(active):
        part = march(
            origins[active], directions[active], slots[active], surface, shell_view(), MarchSettings(0.005, REACH, 5),
            start=start,
        )
        for row, r in enumerate(active.tolist()):
            found[r] += part.t[row, : part.count[row]].tolist()
        on = part.next >= 0
        active, start = active[on], part.next[on]
    for r, t in enumerate(found):
        torch.testing.assert_close(torch.tensor(t), whole.t[r, : whole.count[r]])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", [-1, 3])
def test_a_walk_in_stretches_finds_the_same_samples(seed: int, device: str):
    """With short steps, so that rays have many stretches, thin parts, hidden cells, and rays that miss."""
    vertices, faces = sphere()
    start, rows = vertex_triangles(faces, len(vertices))
    thin = torch.from_numpy(vertices[faces].mean(1)[:, 0] < 0)
    surface = PosedSurface(*[torch.from_numpy(x).to(device) for x in (vertices, faces, start, rows)], 1, None, thin.to(device))
    surface.update(bent(vertices, 0.001, np.random.default_rng(2))[None].to(device))
    torch.manual_seed(0)
    origins, directions = (x.to(device) for x in rays(400))
    origins = origins + surface.posed[0].mean(0)
    view = shell_view()
    view.skip[:, 20:] = HIDDEN
    view.skip[:8] = 3
    view = OccupancyView(view.skip.to(device), view.origin, view.cell)
    slots, settings = torch.zeros(400, dtype=torch.int64, device=device), MarchSettings(0.0015, REACH, 256)
    plain, wide = (march(origins, directions, slots, surface, view, settings, seed, wide=w) for w in (False, True))
    assert wide.count[200:].sum() == 0 and wide.count[:200].float().mean() > 20
    missing, more = 0, 0
    for r in range(200):
        a, b = (m.t[r, : m.count[r]].cpu() for m in (plain, wide))
        assert (b[1:] > b[:-1]).all()
        missing += int(sum((b - t).abs().min() > 1e-5 for t in a))
        more += int(sum((a - t).abs().min() > 1e-5 for t in b))
    total = int(plain.count.sum())
    assert missing < 0.01 * total and more < 0.05 * total  # who starts nearer by sees a little more
    same = (plain.count == wide.count)[:, None] & plain.mask
    for name in ("width", "position", "M"):
        a, b = getattr(plain, name)[same], getattr(wide, name)[same]
        assert ((a - b).abs().flatten(1) if a.dim() > 1 else (a - b).abs()[:, None]).amax(1).quantile(0.97) < 1e-4


def test_too_little_room_thins_out_a_walk_in_stretches():
    vertices, faces = sphere()
    surface = surface_of(vertices, faces, 1)
    surface.update(torch.from_numpy(vertices)[None])
    torch.manual_seed(0)
    origins, directions = rays()
    slots = torch.zeros(len(origins), dtype=torch.int64)
    full, few = (
        march(origins, directions, slots, surface, shell_view(), MarchSettings(0.002, REACH, room), 4, wide=True)
        for room in (256, 16)
    )
    assert (few.count <= 16).all() and few.count[:32].min() >= 8
    far = ((few.t > 1.05) & few.mask)[:32]
    assert far.any(1).all()  # the rays' far walls are not cut off
    lengths = [(m.width * m.mask).sum(1)[:32] for m in (full, few)]
    torch.testing.assert_close(lengths[0].mean(), lengths[1].mean(), rtol=0.1, atol=0)
    view = shell_view()
    view.skip[:, 16:] = HIDDEN
    closed = march(origins, directions, slots, surface, view, MarchSettings(0.002, REACH, 8), 4, wide=True)
    last = closed.t[torch.arange(32), closed.count[:32].long() - 1]
    assert (closed.count[:32] <= 8).all() and (last > 0.99).all()  # the sample that closes a ray is kept


def test_empty_cells_give_no_samples():
    assert not marched(shell_view(occupied=False))[2].count.any()


@pytest.mark.parametrize(("seed", "cell", "patch"), [(-1, CELL, 5), (3, CELL, 5), (-1, 0.0025, 1)])
def test_the_hull_loses_no_sample(seed: int, cell: float, patch: int):
    """Rays from all sides at a moved and bent ball, of which a few patches, of so many cells, are occupied."""
    torch.manual_seed(1)
    vertices, faces = sphere()
    surface = surface_of(vertices, faces, 1)
    surface.update(bent(vertices, 0.001, np.random.default_rng(2))[None])
    side = round(0.32 / cell)
    occupied = torch.nn.functional.max_pool3d((torch.rand(1, side, side, side) < 0.001).float(), patch, 1, patch // 2)[0] > 0
    grown, skip = occupied, (~occupied).to(torch.uint8)
    for _ in range(5):
        grown = torch.nn.functional.max_pool3d(grown[None].float(), 3, 1, 1)[0] > 0
        skip += (~grown).to(torch.uint8)
    view = OccupancyView(skip, (-0.16, -0.16, -0.16), cell)
    origins = torch.nn.functional.normalize(torch.randn(500, 3), dim=-1)
    center = surface.posed[0].mean(0)
    directions = torch.nn.functional.normalize(center + torch.randn(500, 3) * 0.06 - origins, dim=-1)
    hull = posed_hull(surface, skip, view.origin, cell, REACH, 0.015)
    assert 0.02 < (hull.away == 0).float().mean() < 0.6  # it is worth having
    slots = torch.zeros(500, dtype=torch.int64)
    settings = MarchSettings(0.002, REACH, 128)
    plain, hulled = (march(origins, directions, slots, surface, view, settings, seed, h) for h in (None, hull))
    assert plain.count.sum() > (1000 if patch > 1 else 10)
    if seed < 0:  # the same lattice: every sample of the plain walk is there (the plain one skips more boldly)
        for r in range(500):
            theirs = hulled.t[r, : hulled.count[r]]
            assert all((theirs - t).abs().min() < 1e-6 for t in plain.t[r, : plain.count[r]])
    assert abs(int(hulled.count.sum()) - int(plain.count.sum())) < max(0.05 * int(plain.count.sum()), 5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("with_thin", [False, True])
def test_looking_at_all_steps_of_a_part_at_once_finds_the_same_samples(with_thin: bool, device: str):
    torch.manual_seed(1)
    vertices, faces = sphere(rings=40, segments=60)
    start, rows = vertex_triangles(faces, len(vertices))
    thin = torch.from_numpy(vertices[faces].mean(1)[:, 1] < 0) & with_thin
    surface = PosedSurface(*[torch.from_numpy(x).to(device) for x in (vertices, faces, start, rows)], 1, None, thin.to(device))
    surface.update(bent(vertices, 0.0, np.random.default_rng(2))[None].to(device))
    view = shell_view()
    view.skip[:, :, :10] = 2
    view.skip[12:20, 12:20, 12:20] = CORE
    view = OccupancyView(view.skip.to(device), view.origin, view.cell)
    hull = posed_hull(surface, view.skip, view.origin, CELL, REACH, 0.015)
    origins = torch.nn.functional.normalize(torch.randn(300, 3), dim=-1).to(device) * 0.6
    directions = torch.nn.functional.normalize(surface.posed[0].mean(0) + torch.randn(300, 3).to(device) * 0.05 - origins, dim=-1)
    found: list[list[dict[float, float]]] = []
    for wide in (False, True):
        samples: list[dict[float, float]] = [{} for _ in range(300)]
        active, begin = torch.arange(300, device=device), torch.zeros(300, dtype=torch.int32, device=device)
        for _ in range(60):
            part = march(
                origins[active], directions[active], torch.zeros(len(active), dtype=torch.int32, device=device), surface, view,
                MarchSettings(0.004, REACH, 5, stop_at_hidden=False), -1, hull, begin, wide,
            )  # fmt: skip
            for row, ray in enumerate(active.tolist()):
                n = int(part.count[row])
                samples[ray].update(zip(part.t[row, :n].tolist(), part.width[row, :n].tolist(), strict=True))
            on = part.next >= 0
            active, begin = active[on], part.next[on]
        assert len(active) == 0
        found.append(samples)
    lengths = [np.array([sum(ray.values()) for ray in samples]) for samples in found]
    assert lengths[0].mean() > 0.02
    assert np.mean(np.abs(lengths[0] - lengths[1]) > 0.0045) < 0.03  # a step more or less at the edge of what is thin
    total, missing = 0, 0
    for plain, wide in zip(*found, strict=True):
        assert list(wide) == sorted(wide)
        total += len(plain)
        missing += sum(min(abs(t - other) for other in [9.0, *wide]) > 1e-5 for t in plain)
    assert missing < (0.05 if with_thin else 0.002) * total


def test_a_seed_determines_the_samples():
    a, b, c = (marched(shell_view(), seed)[2] for seed in (5, 5, 6))
    assert torch.equal(a.t, b.t) and not torch.equal(a.t, c.t)


def test_directions_of_any_length_give_the_same_points():
    origins, directions, unit = marched(shell_view())
    _, _, long = marched(shell_view(), scale=2.5)
    torch.testing.assert_close(long.t * 2.5, unit.t, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(long.width, unit.width)
