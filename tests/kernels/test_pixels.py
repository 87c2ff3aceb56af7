"""The kernel that draws training rays: which pixels it chooses, and that their rays are those of the plain version."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.test_kernels import DEVICES
from threevp_nerfstudio.capture.frames import Frames
from threevp_nerfstudio.data.picture_cache import Crop, border_ring, crop_to_subject
from threevp_nerfstudio.data.pixels import Box, PixelShares, rays_of_pixels, slot_table
from threevp_nerfstudio.kernels.pixels import DrawnRays, draw_rays

SIZE = (110, 90)
FACE = [(40.0, 45.0, 46.0, 50.0), (55.5, 40.2, 60.0, 44.0)]
SHARES = PixelShares(face=0.3, border=0.2, background=0.1)


def disc(radius: int = 30) -> np.ndarray:
    """A picture of noise with a round matte in its middle."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    rgba = np.random.default_rng(radius).integers(0, 255, (*x.shape, 4)).astype(np.uint8)
    rgba[..., 3] = np.where((x - 55) ** 2 + (y - 45) ** 2 < radius**2, 255, 0)
    return rgba


@dataclass
class Scene:
    """Frames with cameras of their own, their crops and boxes."""

    frames: Frames
    chosen: list[tuple[int, Crop]]
    boxes: list[list[Box]]

    @classmethod
    def of(cls, pictures: list[np.ndarray], boxes: list[list[Box]], distortion: float = 0.0, device: str = "cpu") -> Scene:
        rng, n = np.random.default_rng(0), len(pictures)
        camera = np.tile(np.eye(4), (n, 1, 1))
        camera[:, :3, :3] = np.linalg.qr(rng.normal(size=(n, 3, 3)))[0]
        camera[:, :3, 3] = rng.normal(size=(n, 3))
        frames = Frames(
            image_paths=(Path(),) * n,
            mask_paths=(None,) * n,
            camera_to_world=camera,
            room_to_world=camera,
            focal=rng.uniform(100, 200, (n, 2)),
            principal_point=rng.uniform(40, 60, (n, 2)),
            distortion=rng.uniform(-1, 1, (n, 4)) * [0.2, 0.1, 0.01, 0.01] * distortion,
            size=np.array([p.shape[1::-1] for p in pictures]),
            times=np.zeros(n),
            motion_index=np.zeros(n, int),
            split=np.full(n, "train"),
            sequence=np.full(n, "static"),
        )
        return cls(frames, [(i, crop_to_subject(p, device)) for i, p in enumerate(pictures)], boxes)

    def draw(
        self, share: int, shares: PixelShares = SHARES, square: int = 0, radius: int = 2, weight: float = 1.0, seed: int = 7
    ) -> DrawnRays:
        table = slot_table(self.frames, self.chosen, self.boxes)
        slots = torch.from_numpy(table.view(np.uint8).reshape(len(table), -1))
        return draw_rays(slots.to(self.chosen[0][1].rgba.device), share, *shares.counts(share), square, radius, weight, seed)


def of_one(picture: np.ndarray, boxes: list[Box]) -> Scene:
    return Scene.of([picture], [boxes])


# ---- rays --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("distortion", [0.0, 1.0])
@pytest.mark.parametrize("radius", [0, 2])
def test_rays_are_those_of_the_plain_version(distortion: float, radius: int, device: str):
    scene = Scene.of([disc(), disc(20), disc(12)], [FACE, [], FACE[:1]], distortion, device)
    scene.chosen.append(scene.chosen[0])  # a frame may be there twice
    scene.boxes.append(scene.boxes[0])
    on_device = scene.draw(200, square=8, radius=radius, weight=3.0)
    rays = replace(on_device, **{name: value.cpu() for name, value in vars(on_device).items()})
    assert rays.slot_frames.tolist() == [0, 1, 2, 0]
    assert rays.slot.flatten().tolist() == [*np.repeat(np.arange(4), 200), *[3] * 64]
    for slot, ((frame, crop), boxes) in enumerate(zip(scene.chosen, scene.boxes, strict=True)):
        own = rays.slot.flatten() == slot
        assert (rays.frame[own] == frame).all()
        expected = rays_of_pixels(scene.frames, frame, crop, boxes, rays.pixel[own].numpy(), radius, 3.0)
        for name in ("origins", "directions", "weight"):
            np.testing.assert_allclose(getattr(rays, name)[own].numpy().squeeze(), getattr(expected, name), rtol=0, atol=2e-7)
        np.testing.assert_allclose(rays.across[own], expected.across, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(rays.patch[own], expected.patch)
    face = rays.weight[rays.slot == 0].numpy() == 3
    assert face.mean() > 0.2 and not face.all() and (rays.weight[rays.slot == 1] == 1).all()


def test_patches_repeat_the_crops_edge():
    picture = disc()
    picture[:3, :3, 3] = 255  # the crop is the whole picture on this side
    scene = of_one(picture, [(0.0, 0.0, 1.0, 1.0)])
    rays = scene.draw(50, PixelShares(face=1.0, border=0.0, background=0.0), radius=1)
    assert (rays.pixel == 0).all()
    patch = rays.patch[0].view(3, 3, 4).numpy()
    np.testing.assert_array_equal(patch[1:, 1:], picture[:2, :2])
    np.testing.assert_array_equal(patch[0, 0], picture[0, 0])


def test_a_seed_reproduces_its_rays():
    scene = Scene.of([disc(), disc(20)], [FACE, []])
    first, again, other = (scene.draw(100, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.pixel, again.pixel) and torch.equal(first.patch, again.patch)
    assert (first.pixel == other.pixel).all(1).float().mean() < 0.1
    assert (first.pixel[:100] == first.pixel[100:]).all(1).float().mean() < 0.1  # frames do not share their draws


def test_no_rays_are_drawn_of_frames_with_no_share():
    assert len(of_one(disc(), FACE).draw(0).frame) == 0


# ---- pixels ------------------------------------------------------------------------------------------------------------


def test_pixels_are_drawn_by_their_shares():
    rays = of_one(disc(), FACE).draw(10_000)
    alpha, xy = disc()[..., 3], rays.pixel.numpy()
    solid, ring = alpha[xy[:, 1], xy[:, 0]] > 127, border_ring(alpha)[xy[:, 1], xy[:, 0]]
    boxes = np.zeros(len(xy), bool)
    for left, top, right, bottom in FACE:
        boxes |= (xy >= np.floor([left, top])).all(1) & (xy <= [right, bottom]).all(1)
    assert boxes[:3000].all() and ring[3000:5000].all() and solid[6000:].all()
    anywhere = slice(5000, 6000)
    crop = crop_to_subject(disc())
    assert solid[anywhere].mean() == pytest.approx(float((crop.rgba[..., 3] > 127).float().mean()), abs=0.05)
    # each kind evenly
    low, size = np.array([crop.left, crop.top]), np.array([crop.width, crop.height])
    assert (xy[anywhere] >= low).all() and (xy[anywhere] < low + size).all()
    np.testing.assert_allclose(xy[anywhere].mean(0), low + (size - 1) / 2, atol=2.5)
    np.testing.assert_allclose(xy[6000:].mean(0), [55, 45], atol=0.8)
    assert np.hypot(*(xy[6000:] - [55, 45]).T).mean() == pytest.approx(20, abs=0.4)
    np.testing.assert_allclose(xy[3000:5000].mean(0), [55, 45], atol=2)
    inside = solid[3000:5000].mean()
    solid_ring = (crop.kind == 3).sum() / (crop.kind >= 2).sum()
    assert inside == pytest.approx(float(solid_ring), abs=0.04)


def test_unbalanced_pixels_are_uniform_over_the_crop():
    crop = crop_to_subject(disc())
    xy = of_one(disc(), FACE).draw(20_000, PixelShares(balanced=False)).pixel.numpy()
    solid = disc()[xy[:, 1], xy[:, 0], 3] > 127
    assert solid.mean() == pytest.approx(float((crop.rgba[..., 3] > 127).float().mean()), abs=0.01)
    counts = np.histogram2d(xy[:, 0] - crop.left, xy[:, 1] - crop.top, 4, [[0, crop.width], [0, crop.height]])[0]
    np.testing.assert_allclose(counts / 20_000, 1 / 16, atol=0.012)


def test_what_a_frame_lacks_goes_to_the_subject_else_anywhere():
    shares = PixelShares(face=0.5, border=0.3, background=0.0)
    full = disc()
    full[..., 3] = 255  # no ring, no boxes
    xy = of_one(full, []).draw(2000, shares).pixel.numpy()
    np.testing.assert_allclose(xy.mean(0), [54.5, 44.5], atol=3)
    boxless = of_one(disc(), []).draw(1000, replace(shares, border=0.0)).pixel.numpy()
    assert (disc()[boxless[:, 1], boxless[:, 0], 3] == 255).all()
    faint = disc()
    faint[..., 3] = 1  # no subject either
    assert (of_one(faint, []).draw(2000, shares).pixel.float().std(0) > 20).all()
    nothing = np.zeros((9, 9, 4), np.uint8)
    assert (of_one(nothing, []).draw(64).pixel == 0).all()  # a crop of one pixel


def test_the_only_pixel_of_a_kind_is_found():
    picture = np.zeros((300, 400, 4), np.uint8)
    picture[::299, ::399, 3] = 1  # too faint for the subject, but the crop has to hold it
    picture[150, 200, 3] = 255
    rays = of_one(picture, []).draw(40, PixelShares(face=0.0, border=0.0, background=0.0))
    assert (rays.pixel == torch.tensor([200, 150])).all()


def test_boxes_that_leave_the_crop_are_cut():
    rays = of_one(disc(), [(-20.0, -20.0, 300.0, 300.0)]).draw(500, PixelShares(face=1.0))
    crop = crop_to_subject(disc())
    low, high = torch.tensor([crop.left, crop.top]), torch.tensor([crop.left + crop.width, crop.top + crop.height])
    assert (rays.pixel >= low).all() and (rays.pixel < high).all()


# ---- squares -----------------------------------------------------------------------------------------------------------


def test_a_square_lies_in_the_crop_round_the_face_and_comes_row_by_row():
    full = np.full((40, 60, 4), 255, np.uint8)
    for seed, box in enumerate([(0.0, 0.0, 3.0, 3.0), (55.0, 35.0, 59.0, 39.0), (20.0, 10.0, 30.0, 20.0)]):
        scene = Scene.of([disc(), full], [[], [box]])
        xy = scene.draw(5, square=8, seed=seed).pixel[10:].numpy()
        assert xy.shape == (64, 2) and (xy >= 0).all() and (xy < [60, 40]).all()
        np.testing.assert_array_equal(xy - xy[0], np.stack([np.arange(64) % 8, np.arange(64) // 8], -1))
        middle = (xy[0] + xy[-1]) / 2
        assert (middle > np.array(box[:2]) - 8).all() and (middle < np.array(box[2:]) + 8).all()
    of_subject = of_one(disc(), []).draw(0, square=8).pixel.numpy()
    assert (disc()[of_subject[:, 1], of_subject[:, 0], 3] > 0).any()
