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
from threevp_nerfstudio.data.picture_cache import PictureCache, crop_to_subject
from threevp_nerfstudio.data.pixels import PixelShares, border_ring, patches, sample_pixels
from threevp_nerfstudio.engine.short_training import EditedDataParserConfig
from threevp_nerfstudio.errors import CaptureError

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


# ---- pixels ----------------------------------------------------------------------------------------------------------


def disc(size: int = 100, radius: int = 30) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.where((x - 50) ** 2 + (y - 50) ** 2 < radius**2, 255, 0).astype(np.uint8)


def test_pixels_are_drawn_by_their_shares():
    alpha, box = disc(), (40.0, 45.0, 46.0, 50.0)
    shares = PixelShares(face=0.3, border=0.2, background=0.1)
    xy = sample_pixels(alpha, [box], 10_000, shares, np.random.default_rng(0))
    assert xy.shape == (10_000, 2) and (xy >= 0).all() and (xy < 100).all()
    inside = (xy >= [40, 45]).all(1) & (xy < [46, 50]).all(1)
    ring = border_ring(alpha)[xy[:, 1], xy[:, 0]]
    outside = (alpha[xy[:, 1], xy[:, 0]] == 0) & ~ring
    assert inside.mean() == pytest.approx(0.3 + 0.4 * 30 / (np.pi * 900), abs=0.01)
    assert ring.mean() > 0.2 and 0.04 < outside.mean() < 0.1


def test_what_a_frame_lacks_goes_to_the_subject():
    alpha = disc()
    xy = sample_pixels(alpha, [], 1000, PixelShares(face=0.5, border=0.0, background=0.0), np.random.default_rng(0))
    assert len(xy) == 1000 and (alpha[xy[:, 1], xy[:, 0]] == 255).all()
    assert len(sample_pixels(np.zeros((9, 9), np.uint8), [], 64, PixelShares(), np.random.default_rng(0))) == 64


def test_unbalanced_pixels_are_uniform():
    xy = sample_pixels(disc(), [(0.0, 0.0, 5.0, 5.0)], 20_000, PixelShares(balanced=False), np.random.default_rng(0))
    share = (disc()[xy[:, 1], xy[:, 0]] == 255).mean()
    assert share == pytest.approx((disc() == 255).mean(), abs=0.01)


def test_the_picture_edge_is_no_silhouette():
    assert not border_ring(np.full((50, 50), 255, np.uint8)).any()
    assert border_ring(disc()).any()


# ---- cache -----------------------------------------------------------------------------------------------------------


def test_a_crop_holds_the_whole_subject():
    rgba = np.zeros((80, 60, 4), np.uint8)
    rgba[20:50, 30:40] = np.random.default_rng(0).integers(1, 255, (30, 10, 4))
    crop = crop_to_subject(rgba)
    assert crop.full == (60, 80) and crop.rgba.nbytes < rgba.nbytes
    back = np.zeros_like(rgba)
    h, w = crop.rgba.shape[:2]
    back[crop.top : crop.top + h, crop.left : crop.left + w] = crop.rgba
    np.testing.assert_array_equal(back, rgba)


def test_the_cache_stays_within_its_bound_and_forgets_the_least_recent():
    reads: list[int] = []

    def read(i: int) -> np.ndarray:
        reads.append(i)
        return np.full((10, 10, 4), 255, np.uint8)

    cache = PictureCache(read, capacity_bytes=3 * 400)
    for i in (0, 1, 2, 0, 3, 0, 1):
        cache.get(i)
        assert cache.bytes <= 3 * 400
    assert reads == [0, 1, 2, 3, 1]


def test_the_cache_is_safe_to_use_from_threads():
    cache = PictureCache(lambda i: np.full((8, 8, 4), i, np.uint8), capacity_bytes=5 * 256)
    wrong: list[int] = []

    def worker(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(1, 20, 300):
            if cache.get(int(i)).rgba[0, 0, 0] != i:
                wrong.append(int(i))

    threads = [threading.Thread(target=worker, args=(s,)) for s in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong and cache.bytes <= 5 * 256


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
