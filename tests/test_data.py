"""What training draws: frames, pixels and rays; the picture cache and the dataparser."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from threevp_nerfstudio.benchmark.captures import repeat_frames
from threevp_nerfstudio.capture.capture import load_capture, read_rgba
from threevp_nerfstudio.data.balance import expression_groups, frame_probabilities, uniform_over, yaw_sectors
from threevp_nerfstudio.data.datamanager import ThreeVPDataManagerConfig
from threevp_nerfstudio.data.dataparser import ThreeVPDataParserConfig, split_frames
from threevp_nerfstudio.data.picture_cache import PictureCache, border_ring, crop_to_subject
from threevp_nerfstudio.data.pixels import patches
from threevp_nerfstudio.engine.short_training import EditedDataParserConfig
from threevp_nerfstudio.errors import CaptureError
from threevp_nerfstudio.kernels.pixels import RING, SUBJECT

# ---- balance ---------------------------------------------------------------------------------------------------------


def skewed() -> tuple[np.ndarray, np.ndarray]:
    """95 quiet frontal frames, and five from behind, one of which has its mouth open."""
    yaw = np.concatenate([np.linspace(-5, 5, 95), np.full(5, 180.0)])
    expression = np.zeros((100, 3))
    expression[99, 1] = 1.0
    return yaw, expression


def test_a_group_is_drawn_as_often_as_any_other():
    groups = np.array([0] * 90 + [1] * 9 + [7])
    p = uniform_over(groups)
    assert p.sum() == pytest.approx(1)
    for g in (0, 1, 7):
        assert p[groups == g].sum() == pytest.approx(1 / 3)


def test_balancing_raises_rare_views_and_rare_expressions():
    yaw, expression = skewed()
    p = frame_probabilities(yaw, expression)
    assert p.sum() == pytest.approx(1) and (p > 0).all()
    # half the draws by sector (2 of them), half by expression (2 groups)
    assert p[95:].sum() == pytest.approx(0.5 * 0.5 + 0.5 * (4 / 99 * 0.5 + 0.5), rel=1e-6)
    assert p[99] > 50 * p[0]


def test_drawn_frequencies_are_what_the_balance_asks_for():
    p = frame_probabilities(*skewed())
    counts = np.bincount(np.random.default_rng(0).choice(100, 50_000, p=p), minlength=100) / 50_000
    np.testing.assert_allclose(counts, p, atol=0.01)


@pytest.mark.parametrize("views", [True, False])
@pytest.mark.parametrize("expressions", [True, False])
def test_each_balance_can_be_switched_off(views: bool, expressions: bool):
    p = frame_probabilities(*skewed(), balance_views=views, balance_expressions=expressions)
    assert p.sum() == pytest.approx(1)
    uniform = 0.05
    assert (p[95:].sum() == pytest.approx(uniform)) == (not views and not expressions)


def test_yaw_sectors_wrap_and_the_front_is_the_middle_of_one():
    np.testing.assert_array_equal(yaw_sectors(np.array([-14.0, 0.0, 14.0, 16.0, 180.0, -180.0, 540.0])), [0, 0, 0, 1, 6, 6, 6])


def test_expression_groups_part_what_differs_and_need_no_channels():
    expression = np.repeat(np.eye(4) * 1.0, 25, axis=0)
    groups = expression_groups(expression)
    assert all(len(set(groups[i * 25 : (i + 1) * 25])) == 1 for i in range(4)) and len(set(groups)) == 4
    assert not expression_groups(np.zeros((5, 0))).any()


# ---- cache -----------------------------------------------------------------------------------------------------------


def test_a_crop_holds_the_whole_subject():
    rgba = np.zeros((80, 60, 4), np.uint8)
    rgba[20:50, 30:40] = np.random.default_rng(0).integers(1, 255, (30, 10, 4))
    crop = crop_to_subject(rgba)
    assert crop.rgba.nbytes < rgba.nbytes and crop.bytes == crop.rgba.nbytes + crop.kind.nbytes
    back, kind = np.zeros_like(rgba), np.zeros((80, 60), np.uint8)
    place = (slice(crop.top, crop.top + crop.height), slice(crop.left, crop.left + crop.width))
    back[place], kind[place] = crop.rgba, crop.kind
    np.testing.assert_array_equal(back, rgba)
    np.testing.assert_array_equal(kind & SUBJECT > 0, rgba[..., 3] > 127)
    np.testing.assert_array_equal(crop.kind.numpy() & RING > 0, border_ring(rgba[place][..., 3]))
    assert crop.kinds == SUBJECT | RING


def test_a_crop_knows_what_it_lacks():
    rgba = np.full((20, 20, 4), 255, np.uint8)
    assert crop_to_subject(rgba).kinds == SUBJECT
    rgba[..., 3] = 1
    assert crop_to_subject(rgba).kinds == 0
    assert crop_to_subject(np.zeros((20, 20, 4), np.uint8)).rgba.shape == (1, 1, 4)


def test_the_border_lies_on_both_sides_of_the_mattes_edge_and_the_pictures_own_edge_is_none():
    y, x = np.mgrid[:200, :200]
    distance = np.hypot(x - 100, y - 100)
    ring = border_ring(np.where(distance < 60, 255, 0).astype(np.uint8))
    assert ring[abs(distance - 60) < 3].all() and not ring[abs(distance - 60) > 5].any()
    soft = np.full((50, 50), 255, np.uint8)
    assert not border_ring(soft).any()
    soft[20:30, 20:30] = 200
    np.testing.assert_array_equal(border_ring(soft), soft == 200)


def test_the_cache_stays_within_its_bound_and_forgets_the_least_recent():
    reads: list[int] = []

    def read(i: int) -> np.ndarray:
        reads.append(i)
        return np.full((10, 10, 4), 255, np.uint8)

    cache = PictureCache(read, capacity_bytes=3 * 500)
    for i in (0, 1, 2, 0, 3, 0, 1):
        cache.get(i)
        assert cache.bytes <= 3 * 500
    assert reads == [0, 1, 2, 3, 1]


def test_the_cache_is_safe_to_use_from_threads():
    cache = PictureCache(lambda i: np.full((8, 8, 4), i, np.uint8), capacity_bytes=5 * 320)
    wrong: list[int] = []

    def worker(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(1, 20, 300):
            if cache.get(int(i)).rgba[0, 0, 0] != i:
                wrong.append(int(i))

    threads = [threading.Thread(target=worker, args=(s,)) for s in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong and cache.bytes <= 5 * 320


# ---- dataparser and data manager ---------------------------------------------------------------------------------------


def test_held_out_splits_stand_in_for_one_another():
    splits = np.array(["train"] * 20 + ["val"] * 2)
    np.testing.assert_array_equal(split_frames(splits, "test"), [20, 21])
    np.testing.assert_array_equal(split_frames(splits, "val"), [20, 21])
    assert len(split_frames(splits[:20], "val")) == 2


def test_splits_are_disjoint_and_cameras_carry_frame_and_time(tiny_capture: Path):
    parser = ThreeVPDataParserConfig(data=tiny_capture).setup()
    outputs = {s: parser.get_dataparser_outputs(split=s) for s in ("train", "val", "test")}
    frames = {s: o.cameras.metadata["frame"].flatten().tolist() for s, o in outputs.items()}
    assert not set(frames["train"]) & set(frames["test"])
    for o in outputs.values():
        assert ((o.cameras.times >= 0) & (o.cameras.times <= 1)).all()
        assert all(p.is_absolute() for p in o.image_filenames)


def test_a_folder_without_a_capture_is_refused(tmp_path: Path):
    with pytest.raises(CaptureError, match="transforms.json"):
        ThreeVPDataParserConfig(data=tmp_path).setup().get_dataparser_outputs(split="train")


@pytest.fixture(scope="module")
def manager(tiny_capture: Path):
    config = ThreeVPDataManagerConfig(data=tiny_capture, train_num_rays_per_batch=120, frames_per_step=3)
    config.dataparser.data = tiny_capture
    return config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)


def test_training_rays_carry_the_pixel_that_they_look_at(manager):
    bundle, _ = manager.next_train(0)
    assert len(bundle) == 120 and len(set(bundle.metadata["frame"].flatten().tolist())) <= 3
    capture = manager.train_dataset.capture
    frame = int(bundle.metadata["frame"][0])
    assert capture.frames.split[frame] == "train"
    camera = capture.frames.camera_to_world[frame]
    np.testing.assert_allclose(bundle.origins[0], camera[:3, 3], atol=1e-5)
    d = camera[:3, :3].T @ bundle.directions[0].numpy().astype(np.float64)
    x = capture.frames.focal[frame, 0] * d[0] / -d[2] + capture.frames.principal_point[frame, 0]
    y = -capture.frames.focal[frame, 1] * d[1] / -d[2] + capture.frames.principal_point[frame, 1]
    assert abs(x % 1 - 0.5) < 0.02 and abs(y % 1 - 0.5) < 0.02  # pixel centres
    picture = read_rgba(capture.frames, frame)
    patch = bundle.metadata["patch"][0].view(5, 5, 4).numpy()
    np.testing.assert_array_equal(patch[2, 2], picture[int(y), int(x)])
    # a step of a pixel to the right, and one down
    for axis, (dx, dy) in enumerate([(1, 0), (0, 1)]):
        moved = camera[:3, :3].T @ (bundle.directions[0] + bundle.metadata["across"][0].view(3, 2)[:, axis]).numpy()
        focal, center = capture.frames.focal[frame], capture.frames.principal_point[frame]
        assert abs(focal[0] * moved[0] / -moved[2] + center[0] - x - dx) < 0.02
        assert abs(-focal[1] * moved[1] / -moved[2] + center[1] - y - dy) < 0.02


def test_rays_name_their_frame_and_all_of_the_step(manager):
    for bundle, slots, rays in [(manager.next_train(1)[0], 3, 40), (manager.next_eval(0)[0], 4, 256)]:
        metadata = bundle.metadata
        assert metadata["slot_frames"].shape == (len(bundle), slots) and metadata["slot"].dtype == torch.int32
        assert metadata["slot"].flatten().tolist() == np.repeat(np.arange(slots), rays).tolist()
        frames = metadata["slot_frames"].gather(1, metadata["slot"].long())
        assert torch.equal(frames, metadata["frame"]) and torch.equal(bundle.camera_indices, metadata["frame"])
        assert metadata["frame"].dtype == metadata["slot_frames"].dtype == torch.int64
        assert metadata["patch"].shape == (len(bundle), 100) and metadata["patch"].dtype == torch.uint8
        half = bundle[: len(bundle) // 2]
        assert half.metadata["slot_frames"].shape == (len(bundle) // 2, slots)


def test_processes_draw_pixels_of_their_own(tiny_capture: Path):
    draws = []
    for rank in (0, 1):
        config = ThreeVPDataManagerConfig(data=tiny_capture, train_num_rays_per_batch=40)
        config.dataparser.data = tiny_capture
        draws.append(config.setup(device="cpu", test_mode="val", world_size=2, local_rank=rank).next_train(0)[0].directions)
    assert not torch.equal(*draws)


def test_patches_are_the_pixels_around_and_repeat_the_edge():
    rgba = np.arange(6 * 5 * 4, dtype=np.uint8).reshape(6, 5, 4)
    out = patches(rgba, np.array([[2, 3], [0, 0]]), radius=1).reshape(2, 3, 3, 4)
    np.testing.assert_array_equal(out[0], rgba[2:5, 1:4])
    np.testing.assert_array_equal(out[1, 1:, 1:], rgba[:2, :2])
    np.testing.assert_array_equal(out[1, 0, 0], rgba[0, 0])


def test_sampling_is_determined_by_the_seed(tiny_capture: Path):
    draws = []
    for seed in (1, 1, 2):
        config = ThreeVPDataManagerConfig(data=tiny_capture, train_num_rays_per_batch=40, seed=seed)
        config.dataparser.data = tiny_capture
        manager = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
        draws.append(torch.cat([manager.next_train(i)[0].directions for i in range(3)]))
        assert not torch.equal(*draws[-1].chunk(3)[:2])
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_evaluation_pictures_are_over_white_and_name_their_parts(manager):
    batch = manager.eval_dataset.get_data(0)
    image, alpha = batch["image"], batch["alpha"]
    assert (image[alpha[..., 0] == 0] == 1.0).all()
    assert set(batch["part_boxes"]) <= {"eye_left", "eye_right", "mouth"}
    assert load_capture(manager.eval_dataset.capture.directory).frames.split[batch["frame"]] in ("val", "test")


def test_relative_data_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert ThreeVPDataManagerConfig(data=Path("here")).data == tmp_path / "here"


def test_ten_thousand_frames_stream_within_their_bounds(tiny_capture: Path):
    config = ThreeVPDataManagerConfig(data=tiny_capture, train_num_rays_per_batch=64, frames_per_step=8)
    config.dataparser = EditedDataParserConfig(data=tiny_capture, edit=repeat_frames(10_000))
    config.cache_gigabytes = 20_000 / 2**30
    manager = config.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    for step in range(20):
        manager.next_train(step)
        assert manager.pictures.bytes <= 20_000
    assert len(manager.train_dataset) > 7_000
