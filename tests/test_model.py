"""Performance, blendfields, field and model, by invariants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.shapes import ball_template
from tests.tiny_training import mapped
from threevp_nerfstudio.body.template import Motion
from threevp_nerfstudio.capture.capture import Capture, load_capture
from threevp_nerfstudio.data.datamanager import ThreeVPDataManagerConfig
from threevp_nerfstudio.data.dataparser import ThreeVPDataParserConfig
from threevp_nerfstudio.errors import CheckpointError
from threevp_nerfstudio.kernels.bank import FreshRays
from threevp_nerfstudio.kernels.look import HIDDEN, MarchedSamples
from threevp_nerfstudio.model.blendfields import BlendfieldConfig, Blendfields
from threevp_nerfstudio.model.canonical import CanonicalTemplate, moving_channels
from threevp_nerfstudio.model.encodings import HashGridConfig, spherical_harmonics
from threevp_nerfstudio.model.field import CanonicalSamples, FieldConfig, ThreeVPField
from threevp_nerfstudio.model.model import ThreeVPModel, ThreeVPModelConfig
from threevp_nerfstudio.model.occupancy import CanonicalOccupancy
from threevp_nerfstudio.model.performance import Performance, light_turn
from threevp_nerfstudio.model.ray_bank import RayBank

GRID = HashGridConfig(levels=4, features=2, log2_size=12, coarsest=8, finest=64)

# ---- performance -----------------------------------------------------------------------------------------------------


def performance(frames: int = 6) -> Performance:
    rng = np.random.default_rng(0)
    motion = Motion(
        times=np.arange(frames) / 30,
        joint_rotations=(rng.normal(size=(frames, 2, 3)) * 0.3).astype(np.float32),
        root_translation=rng.normal(size=(frames, 3)).astype(np.float32) * 0.1,
        expression=rng.random((frames, 3)).astype(np.float32),
    )
    times = (np.arange(frames) / (frames - 1)).astype(np.float32)
    room = np.stack([light_turn(a).numpy() for a in np.linspace(0, 3, frames)])
    return Performance(ball_template(), motion, np.arange(frames), times, room, np.ones(frames, bool))


@pytest.mark.parametrize("frame", [0, 2, 5])
def test_at_the_time_of_a_frame_the_performance_is_that_frame(frame: int):
    p = performance()
    by_time, by_frame = p.at_time(frame / 5), p.at_frames(torch.tensor([frame]))
    for name in ("expression", "conditioning", "joint_rotations", "root_translation"):
        torch.testing.assert_close(getattr(by_time, name), getattr(by_frame, name), atol=1e-5, rtol=0)
    torch.testing.assert_close(by_time.room[0], torch.eye(3))  # light as in a frontal frame


def test_between_frames_it_interpolates_and_beyond_the_ends_it_holds():
    p = performance()
    a, b, middle = p.at_time(0.2), p.at_time(0.4), p.at_time(0.3)
    torch.testing.assert_close(middle.expression, (a.expression + b.expression) / 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(p.at_time(-1.0).expression, p.at_time(0.0).expression)
    torch.testing.assert_close(p.at_time(7.0).expression, p.at_time(1.0).expression)
    assert not p.neutral().expression.any() and not p.neutral().conditioning.any()


def test_light_turns_are_rotations_about_the_vertical():
    R = light_turn(0.7)
    torch.testing.assert_close(R @ R.T, torch.eye(3))
    torch.testing.assert_close(R @ torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 0, 1]))
    torch.testing.assert_close(light_turn(0.3) @ light_turn(0.4), R)


def test_mesh_expressions_choose_channels_and_refuse_unknown_ones():
    template = ball_template()
    assert moving_channels(template, None).tolist() == [1, 1, 1]
    assert moving_channels(template, ("jawOpen",)).tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="noSuchThing"):
        moving_channels(template, ("noSuchThing",))


# ---- blendfields and field -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("fields", [0, 2, 9])
def test_blendfields_move_nothing_at_neutral(kind: str, fields: int):
    torch.manual_seed(0)
    blend = Blendfields(5, BlendfieldConfig(num_fields=fields, mapping=kind, grid=GRID), "warp")
    torch.nn.init.normal_(blend.net[-1].weight)
    x = torch.rand(20, 3)
    neutral = blend.mapping(torch.zeros(1, 5))
    count = 9 if fields == 9 and kind == "mlp" else min(fields or 5, 5)  # linear: no more than channels
    assert neutral.shape == (1, count) and not blend(x, neutral.expand(20, -1)).any()
    assert blend(x, blend.mapping(torch.rand(1, 5)).expand(20, -1)).abs().max() > 0


def test_linear_blendfields_are_linear_in_the_expression():
    blend = Blendfields(4, BlendfieldConfig(grid=GRID), "warp")
    x, a, b = torch.rand(10, 3), torch.rand(1, 4), torch.rand(1, 4)

    def moved(e: torch.Tensor) -> torch.Tensor:
        return blend(x, blend.mapping(e).expand(10, -1))

    torch.testing.assert_close(moved(a + 2 * b), moved(a) + 2 * moved(b), atol=1e-7, rtol=1e-4)


def field(**changes) -> ThreeVPField:
    box = torch.tensor([[-0.2, -0.2, -0.2], [0.2, 0.2, 0.2]])
    face = torch.tensor([[-0.1, -0.15, -0.1], [0.1, 0.0, 0.1]])
    config = FieldConfig(grid=GRID, hidden=16, blendfields=BlendfieldConfig(grid=GRID, hidden=16), **changes)
    return ThreeVPField(config, box, face, num_conditioning=3)


def samples(count: int = 50, seed: int = 0) -> CanonicalSamples:
    g = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
    return CanonicalSamples(
        position=torch.rand(count, 3, generator=g) * 0.36 - 0.18,
        light=light_turn(0.5)[:, :2].expand(count, 3, 2),
        direction=unit,
        conditioning=torch.rand(2, 3, generator=g),
        frame=torch.arange(count) % 2,
    )


@pytest.mark.parametrize(("name", "rows", "columns"), [("color_net.0.weight", 0, 3), ("density_net.2.weight", 2, 0)])
def test_a_checkpoint_of_another_version_says_so(name: str, rows: int, columns: int):
    saved = field().state_dict()
    saved[name] = saved[name][rows:, columns:]
    with pytest.raises(CheckpointError, match="another version"):
        field().load_state_dict(saved)


def test_blendfields_act_only_where_expression_moves_the_mesh():
    f = field()
    torch.nn.init.normal_(f.blendfields.net[-1].weight)
    s = samples(400)
    moved = f.displacement(s)
    inside = f.face_window(s.position) > 0
    assert inside.any() and not moved[~inside].any() and moved[inside].any()


def test_what_blendfields_leave_alone_costs_no_gradients_and_changes_none():
    f = field()
    torch.nn.init.normal_(f.blendfields.net[-1].weight)
    s = samples(400)
    s = replace(s, conditioning=s.conditioning * torch.tensor([[0.0], [1.0]]))  # one frame is neutral
    assert 0 < len(f.displaced(s)) < (f.face_window(s.position) > 0).sum()
    gradients = []
    for every_position in (False, True):  # with a gradient for positions themselves, all are worked out
        f.zero_grad()
        own = replace(s, position=s.position.clone().requires_grad_(every_position))
        density, rgb, _, moved = f.evaluate(own)
        (density.log().sum() + rgb.sum()).backward()
        assert not moved[s.frame == 0].any() and moved[s.frame == 1].any()
        gradients.append({name: p.grad.clone() for name, p in f.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and any(g.any() for n, g in gradients[0].items() if "blend" in n)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("expression", ["blendfields", "color", "none"])
@pytest.mark.parametrize("appearance", ["light", "light+view", "view", "none"])
def test_every_choice_renders_with_finite_gradients(expression: str, appearance: str):
    torch.manual_seed(0)
    f = field(expression=expression, appearance=appearance)
    density, rgb, _, _ = f.evaluate(samples())
    assert (density > 0).all() and ((rgb >= 0) & (rgb <= 1)).all()
    (rgb.sum() + density.sum()).backward()
    for name, parameter in f.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    assert f.grid.table.grad.any()
    if expression == "blendfields":  # through the displaced position
        assert f.blendfields.grid.table.grad.any() and f.blendfields.net[-1].weight.grad.any()


def test_colour_depends_on_what_the_choice_says():
    s = samples()
    turned = replace(s, light=light_turn(2.0)[:, :2].expand(50, 3, 2))
    looked = replace(s, direction=-s.direction)
    for appearance, light, view in (("light", True, False), ("view", False, True), ("none", False, False)):
        torch.manual_seed(0)
        f = field(appearance=appearance)
        rgb = f.evaluate(s)[1]
        assert torch.equal(rgb, f.evaluate(turned)[1]) != light
        assert torch.equal(rgb, f.evaluate(looked)[1]) != view


def test_density_is_the_same_from_opposite_sides_and_differs_between_headings_within_bounds():
    torch.manual_seed(0)
    f, s = field(grain=1.5), samples()
    torch.nn.init.normal_(f.density_net[-1].weight[-2:])

    def density(*direction: float) -> torch.Tensor:
        return f.evaluate(replace(s, direction=torch.tensor(direction).expand(50, 3)))[0].detach()

    front, side, above = density(0.0, 1.0, 0.0), density(1.0, 0.0, 0.0), density(0.0, 0.0, 1.0)
    torch.testing.assert_close(density(0.0, -1.0, 0.0), front)
    ratio = (front / side).log().abs()
    assert ratio.max() > 0.1 and ratio.max() <= 3.0 + 1e-4
    torch.testing.assert_close(above, (front * side).sqrt())  # these two headings go as far apart to either side
    where = s.position + f.displacement(s)
    torch.testing.assert_close(f.density_at(where)[0], above)
    blind = field(grain=0.0)
    assert torch.equal(blind.evaluate(s)[0], blind.evaluate(replace(s, direction=s.direction.flip(1)))[0])


def test_coarse_only_does_not_see_the_expression():
    f, s = field(expression="none"), samples()
    other = replace(s, conditioning=s.conditioning + 1)
    assert torch.equal(f.evaluate(s)[1], f.evaluate(other)[1])
    f = field(expression="color")
    assert not torch.equal(f.evaluate(s)[1], f.evaluate(other)[1])


def test_spherical_harmonics_are_orthogonal_over_the_sphere():
    d = torch.nn.functional.normalize(torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    y = spherical_harmonics(d, 3)
    gram = y.T @ y / len(d)
    off = gram - torch.diag(gram.diagonal())
    assert off.abs().max() < 0.02 and y.mean(0).abs().max() < 0.02


# ---- bank ------------------------------------------------------------------------------------------------------------


def fresh(count: int, frame: int, room: int = 4, side: int = 3) -> FreshRays:
    samples = MarchedSamples(
        t=torch.rand(count, room).sort(dim=1).values,
        width=torch.full((count, room), 0.004),
        position=torch.randn(count, room, 3),
        M=torch.linalg.qr(torch.randn(count, room, 3, 3))[0].contiguous(),
        count=torch.full((count,), room, dtype=torch.int32),
        next=torch.full((count,), -1, dtype=torch.int32),
    )
    return FreshRays(
        samples=samples,
        direction=torch.nn.functional.normalize(torch.randn(count, 3), dim=-1),
        across=torch.randn(count, 6) * 0.002,
        room=torch.eye(3)[None],
        slot=torch.zeros(count, dtype=torch.int32),
        frame=torch.full((count,), frame),
        patch=torch.randint(0, 256, (count, side * side * 4), dtype=torch.uint8),
        weight=torch.ones(count),
    )


def test_the_bank_replaces_the_oldest_rays():
    bank = RayBank(10)
    for frame in range(4):
        bank.insert(fresh(4, frame))
    held = bank.storage.frame[: bank.filled]
    assert torch.bincount(held).tolist() == [0, 2, 4, 4]
    assert bank.draw(None, 0).frame.tolist() == [1] * 2 + [2] * 4 + [3] * 4  # in order
    assert bank.draw(5, 0, newest=3).frame[5:].tolist() == [3, 3, 3]
    bank.insert(fresh(25, 9))
    assert (bank.storage.frame == 9).all() and bank.filled == 10


def test_a_partly_filled_bank_holds_no_more_than_was_inserted():
    bank = RayBank(100)
    rays = fresh(7, 3)
    bank.insert(rays)
    assert bank.filled == 7
    assert torch.equal(bank.storage.position[:7], rays.samples.position)
    assert (bank.draw(500, 0).frame == 3).all()


def test_the_light_of_a_share_of_rays_turns_about_the_vertical():
    bank = RayBank(2000)
    bank.insert(fresh(2000, 0, room=1))
    still, turned = (bank.draw(None, 0, turned=share).light for share in (0.0, 0.25))
    cosine = (turned * still).sum(1)  # of the angle by which each axis has turned
    moved = cosine[:, 0] < 1 - 1e-5
    assert moved.float().mean() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(cosine[..., 0], cosine[..., 1], atol=1e-3, rtol=0)
    assert (cosine[moved] < 1e-3).all()  # to where the place has not been lit from
    up, up_before = (torch.linalg.cross(x[..., 0], x[..., 1], dim=-1) for x in (turned, still))
    torch.testing.assert_close(up, up_before, atol=1e-3, rtol=0)  # the room stays upright


def test_neighbours_move_to_their_pixel_and_keep_the_order_along_the_ray():
    bank = RayBank(200)
    bank.insert(fresh(200, 0))
    rays, moved = bank.storage, bank.draw(None, 0)
    position, t = moved.position.view(200, 4, 3), moved.t.view(200, 4)
    across, along = rays.across.float(), rays.along.float()
    for r in range(200):
        pixel = (rays.patch[r].float() / 255 == moved.target[r]).all(-1).nonzero()[0, 0]
        step = torch.tensor([pixel % 3 - 1, pixel // 3 - 1], dtype=torch.float32)
        rest = position[r] - rays.position[r] - across[r] @ step
        slide = (rest * along[r]).sum(-1)  # what is left is a slide along the ray, the same for all samples
        torch.testing.assert_close(rest, slide[:, None] * along[r], atol=5e-6, rtol=0)
        torch.testing.assert_close(slide, slide[:1].expand(4), atol=5e-6, rtol=0)
        torch.testing.assert_close(t[r] - rays.t[r], slide, atol=5e-6, rtol=0)
        assert slide[0].abs() <= 0.002 + 5e-6
    assert torch.equal(bank.draw(None, 0).position, moved.position)
    still = bank.draw(None, 0, moved=False)
    assert torch.equal(still.position.view(200, 4, 3), rays.position)
    assert torch.equal(still.target, rays.patch[:, 4].float() / 255)  # each ray's own pixel


def test_a_neighbour_is_where_its_own_pixel_would_have_been_mapped(model: ThreeVPModel, tiny_capture: Path):
    config = ThreeVPDataManagerConfig(data=tiny_capture, train_num_rays_per_batch=64, frames_per_step=1)
    config.dataparser.data = tiny_capture
    bundle, _ = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0).next_train(0)
    rays = mapped(model, bundle, seed=1)
    surface = model.canonical.pose(model.performance.at_frames(rays.frame[:1].view(-1)))
    step = torch.tensor([1.0, -1.0])
    across = bundle.metadata["across"].view(-1, 3, 2)
    x = bundle.origins[:, None] + rays.t[..., None] * (bundle.directions + across @ step)[:, None]
    mask = rays.mask
    exact, _, _ = surface.to_canonical(x[mask], torch.zeros(int(mask.sum()), dtype=torch.int64), 1.0)
    across = rays.across.float() @ step
    mine = (rays.position + across)[mask]
    pixel = across[mask].norm(dim=-1)
    assert len(pixel) > 50 and 0.002 < pixel.median() < 0.05
    # pixels of this capture are large against its triangles, and yet
    assert ((mine - exact).norm(dim=-1) / pixel).median() < 0.15


# ---- the whole -------------------------------------------------------------------------------------------------------


def small_model(capture: Capture, **changes) -> ThreeVPModel:
    torch.manual_seed(0)
    config = ThreeVPModelConfig(
        field_config=FieldConfig(grid=GRID, hidden=16, blendfields=BlendfieldConfig(grid=GRID, hidden=16)),
        sample_step=0.012,
        bank_size=0,
        **changes,
    )
    config.occupancy.cell = 0.02
    return config.setup(scene_box=None, num_train_data=1, metadata={"capture": capture})


@pytest.fixture(scope="module")
def capture(tiny_capture: Path) -> Capture:
    return load_capture(tiny_capture, check_pictures=False)


@pytest.fixture(scope="module")
def model(capture: Capture) -> ThreeVPModel:
    return small_model(capture).eval()


@pytest.fixture(scope="module")
def camera(tiny_capture: Path):
    cameras = ThreeVPDataParserConfig(data=tiny_capture).setup().get_dataparser_outputs(split="train").cameras
    cameras.rescale_output_resolution(0.5)
    return cameras[0:1]


def test_rays_that_miss_show_the_background_and_cost_no_samples(model: ThreeVPModel):
    up = torch.tensor([[0.0, 0.0, 1.0]]).expand(5, 3)
    far = torch.tensor([[5.0, 5.0, 0.0]]).expand(5, 3)
    out = model.render_rays(far, up, model.stage(model.performance.neutral()))
    assert (out["rgb"] == 1.0).all() and not out["accumulation"].any()


def test_a_picture_has_colour_opacity_and_depth_in_range(model: ThreeVPModel, camera, capture: Capture):
    out = model.get_outputs_for_camera(camera)
    h, w = int(camera.height), int(camera.width)
    assert out["rgb"].shape == (h, w, 3) and out["accumulation"].shape == out["depth"].shape == (h, w, 1)
    assert ((out["rgb"] >= 0) & (out["rgb"] <= 1)).all() and out["accumulation"].max() <= 1 + 1e-5
    seen = out["accumulation"] > 0.05
    assert seen.any()
    distance = float(np.linalg.norm(camera.camera_to_worlds[0, :, 3].numpy() - capture.template.vertices.mean(0)))
    assert (out["depth"][seen] - distance).abs().max() < 1.0


def test_the_canonical_state_is_not_deformed(model: ThreeVPModel):
    surface = model.canonical.pose(model.canonical_state())
    torch.testing.assert_close(surface.posed[0], model.canonical.vertices)
    points = model.canonical.vertices[:50] + 0.004
    x, _, _ = surface.to_canonical(points, torch.zeros(50, dtype=torch.int64), 0.1)
    torch.testing.assert_close(x, points, atol=1e-4, rtol=0)


def test_rendering_in_chunks_changes_nothing(model: ThreeVPModel, camera):
    whole = model.get_outputs_for_camera(camera)["rgb"]
    size, model.config.eval_num_rays_per_chunk = model.config.eval_num_rays_per_chunk, 97
    chunked = model.get_outputs_for_camera(camera)["rgb"]
    model.config.eval_num_rays_per_chunk = size
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=0)


def test_transparent_pictures_put_over_the_background_give_the_picture(model: ThreeVPModel, camera):
    out = model.get_outputs_for_camera(camera)
    rgba = model.get_rgba_image(out)
    solid = rgba[..., 3:] > 0.05
    back = rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:])
    torch.testing.assert_close(back[solid.expand_as(back)], out["rgb"][solid.expand_as(back)], atol=1e-3, rtol=0)


def test_conditioning_is_clipped_to_what_training_saw(model: ThreeVPModel):
    state = model.performance.neutral()
    extreme = replace(state, conditioning=torch.full_like(state.conditioning, 50.0))
    assert torch.equal(model.condition(extreme)[0], model.conditioning_high)
    inside = (model.conditioning_low + model.conditioning_high) / 2
    assert torch.equal(model.condition(replace(state, conditioning=inside[None]))[0], inside)
    assert torch.equal(model.condition(state), state.conditioning)  # neutral is always within


def test_the_table_of_conditioning_follows_what_it_depends_on(capture: Capture):
    model = small_model(capture)
    frames = torch.arange(len(capture.frames))
    assert torch.equal(model.conditioning_table(), model.condition(model.performance.at_frames(frames)))
    model.conditioning_high.mul_(0.5)
    assert torch.equal(model.conditioning_table(), model.condition(model.performance.at_frames(frames)))
    model.clip_conditioning = False
    assert torch.equal(model.conditioning_table(), model.performance.at_frames(frames).conditioning)


def test_slots_from_the_data_manager_are_those_of_the_frames(capture: Capture, tiny_capture: Path):
    config = ThreeVPDataManagerConfig(data=tiny_capture, train_num_rays_per_batch=64, frames_per_step=3)
    config.dataparser.data = tiny_capture
    bundle, _ = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0).next_train(0)
    model = small_model(capture).train()
    frame = bundle.metadata["frame"].view(-1)
    posed = torch.tensor([*reversed(frame.unique().tolist()), int(frame[0])])  # in any order; a frame may come twice
    slot = (frame[:, None] == posed).int().argmax(1, keepdim=True).int()
    known = dict(bundle.metadata, slot=slot, slot_frames=posed.expand(len(frame), -1))
    unknown = {k: v for k, v in bundle.metadata.items() if k not in ("slot", "slot_frames")}
    outputs = []
    for metadata in (unknown, known):
        bundle.metadata = metadata
        outputs.append(model(bundle))
    assert outputs[0]["accumulation"].max() > 0.01
    for name, value in outputs[0].items():
        torch.testing.assert_close(outputs[1][name], value, atol=1e-5, rtol=1e-4)


def test_posing_leaves_the_canonical_template_alone(capture: Capture):
    model = small_model(capture)
    before = model.canonical.vertices.clone()
    model.stage(model.performance.at_time(0.5))
    assert torch.equal(model.canonical.vertices, before)


def test_a_checkpoint_of_another_template_is_refused(capture: Capture, model: ThreeVPModel):
    state = model.state_dict()
    canonical = CanonicalTemplate(ball_template(), None)
    own = {k.removeprefix("canonical."): v for k, v in state.items() if k.startswith("canonical.")}
    with pytest.raises(CheckpointError, match="another template"):
        canonical.load_state_dict(own)
    moved = dict(state, **{"canonical.rig.vertices": state["canonical.rig.vertices"] + 0.01})
    with pytest.raises(CheckpointError, match="of another shape"):
        small_model(capture).load_state_dict(moved)


def test_a_checkpoint_of_the_same_template_renders_the_same(capture: Capture, model: ThreeVPModel, camera):
    other = small_model(capture)
    torch.nn.init.normal_(other.field.grid.table)
    other.load_state_dict(model.state_dict())
    a, b = (m.eval().get_outputs_for_camera(camera)["rgb"] for m in (model, other))
    torch.testing.assert_close(a, b)


def test_the_light_moves_with_the_state_and_the_geometry_does_not(model: ThreeVPModel, camera):
    state = model.performance.neutral()
    turned = replace(state, room=light_turn(2.5)[None])
    a, b = model.render_camera(camera, state), model.render_camera(camera, turned)
    assert not torch.equal(a["rgb"], b["rgb"])
    torch.testing.assert_close(a["accumulation"], b["accumulation"])


# ---- occupancy -------------------------------------------------------------------------------------------------------


def occupancy_block() -> CanonicalOccupancy:
    shell = torch.ones(4, 4, 4, dtype=torch.bool)
    shell[0, 0, 0] = False
    return CanonicalOccupancy(shell, torch.zeros_like(shell), torch.tensor([1.0, 2.0, 3.0]), cell=0.1)


def test_cells_that_no_light_reaches_become_hidden_and_come_back():
    grid = occupancy_block()
    point = torch.tensor([[1.25, 2.15, 3.35]]).expand(20, 3)
    grid.observe(point, torch.zeros(20))
    grid.refresh(1.0)
    assert grid.skip[2, 1, 3] == HIDDEN and (grid.skip == HIDDEN).sum() == 1
    assert grid.hidden_fraction == pytest.approx(1 / 63)
    grid.observe(point[:1], torch.ones(1))  # seen once
    grid.refresh(1.0)
    assert grid.skip[2, 1, 3] == 0


def test_a_cell_that_is_seen_now_and_then_is_never_hidden():
    """The inside of the mouth, open in one frame of twenty."""
    grid = occupancy_block()
    for _ in range(50):
        grid.observe(torch.full((20, 3), 1.05) + torch.tensor([0.1, 1.1, 2.1]), (torch.arange(20) == 7).float())
        grid.refresh(1.0)
        assert grid.skip[1, 1, 1] == 0


def test_carved_cells_stay_empty_whatever_the_field_says():
    grid = occupancy_block()
    empty = grid.centers()[:, 2] > 3.2
    grid.carve(empty)
    for seed in range(20):
        grid.update(lambda x: torch.full((len(x),), 50.0), 64, 0.7, seed)
    grid.refresh(1.0)
    assert (grid.skip[:, :, 2:] > 0).all() and grid.occupied_fraction == 1.0 and bool(grid.carved)
