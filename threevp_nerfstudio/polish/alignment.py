"""Gauss-Newton for the corrections of each picture, once the avatar stands.

While the avatar is learned, a picture's corrections follow the few rays that it has in a step, and tremble as these do. With the
avatar held still, a thousand rays of one picture tell its twelve numbers at once.

Two things make it cheap. Rays go where colours change, since the others tell nothing. And the residual of a ray is one number, its
difference in colour along the direction in which colours change there: one backward pass then gives the derivatives of all rays, because
every sample belongs to one ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from nerfstudio.cameras.rays import RayBundle
from numpy import ndarray as Array
from torch import Tensor

from threevp_nerfstudio.capture.capture import Capture, read_rgba
from threevp_nerfstudio.kernels.bank import LARGEST_SEED, RayBatch
from threevp_nerfstudio.kernels.composite import composite
from threevp_nerfstudio.model.field import CanonicalSamples
from threevp_nerfstudio.model.model import ThreeVPModel
from threevp_nerfstudio.model.ray_bank import RayBank
from threevp_nerfstudio.polish.evening import evened
from threevp_nerfstudio.polish.rays import rays_through
from threevp_nerfstudio.workers import shared

RAYS, ITERATIONS = 1200, 2
SIZE, SMOOTH = 256, 1.0
"""Longer side of the pictures, and the blur under which their slopes are taken; pixels."""
TILE = 8
"""Side of the squares of pixels that are looked at one after the other: neighbours find what they need in the cache."""
SMALL = 0.03
"""Step, in units of the usual error of tracking, behind which no other is taken."""
FLAT = 0.01
"""Slope, of colours from 0 to 1 over a pixel, below which a pixel tells nothing."""
NOISE, OUTLIER = 0.05, 0.3
"""Usual difference of a ray's colour from its picture: what is seen against how far tracking usually errs. And the difference from which a
ray is an outlier (Geman and McClure 1987)."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TellingPixels:
    """Pixels of a picture, reduced to `SIZE`, drawn by how much it changes there: they tell where things are."""

    places: Float[Array, "R 2"]
    """Row and column of their centres."""
    rgba: UInt8[Array, "R 4"]
    """With straight alpha."""
    slope: Float[Array, "R 4 2"]
    """Change of premultiplied colour and of alpha, a pixel down and to the right; 0 to 1."""
    size: tuple[int, int]
    """Width and height of the reduced picture."""

    @classmethod
    def of(cls, picture: UInt8[Array, "H W 4"], count: int, rng: np.random.Generator) -> TellingPixels:
        rgba = picture.astype(np.float32) / 255
        rgba[..., :3] *= rgba[..., 3:]
        scale = min(1.0, SIZE / max(rgba.shape[:2]))
        if scale < 1:
            rgba = cv2.resize(rgba, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        h, w = rgba.shape[:2]
        slope = np.stack(np.gradient(cv2.GaussianBlur(rgba, (0, 0), SMOOTH), axis=(0, 1)), -1)
        steepness = np.sqrt((slope**2).sum((2, 3))).ravel()
        steepness[steepness < FLAT] = 0.0
        telling = int((steepness > 0).sum())
        chosen = rng.choice(h * w, min(count, telling), replace=False, p=steepness / max(steepness.sum(), 1e-9)) if telling else []
        chosen = np.asarray(chosen, dtype=np.int64)
        chosen = chosen[np.lexsort((chosen % w, chosen % w // TILE, chosen // w // TILE))]
        straight = rgba.reshape(-1, 4)[chosen]
        straight[:, :3] /= np.maximum(straight[:, 3:], 1e-3)
        places = np.stack(np.unravel_index(chosen, (h, w)), -1) + 0.5
        return cls(places, np.round(255 * straight.clip(0, 1)).astype(np.uint8), slope.reshape(-1, 4, 2)[chosen], (w, h))

    def direction(self, background: Float[Array, "R 3"]) -> Float[Array, "R 3"]:
        """Unit vectors along which colours change most round each pixel, before its background."""
        change = self.slope[:, :3] - background[:, :, None] * self.slope[:, 3:]
        steeper = (change**2).sum(1).argmax(1)
        along = np.take_along_axis(change, steeper[:, None, None], 2)[..., 0]
        return along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)

    def rays(self, capture: Capture, frame: int) -> RayBundle:
        """With all that `ThreeVPModel.march_rays` asks for."""
        bundle = rays_through(capture, frame, self.places, self.size)
        R = len(self.places)
        bundle.metadata = {
            "frame": torch.full((R, 1), frame),
            "weight": torch.ones(R, 1),
            "patch": torch.from_numpy(self.rgba),
            "across": torch.zeros(R, 6),
        }
        return bundle


def align_pictures(
    model: ThreeVPModel, capture: Capture, rays: int = RAYS, every: int = 1, progress: Progress = lambda *_: None
) -> None:
    """Set the model's corrections of body, neck and head, of every frame of the capture, to where the avatar fits its picture best. They
    begin where they are, and are evened along the video at the end.

    Args:
        rays: of each picture; half as many do for a first time.
        every: one of so many pictures is looked at, those between have what their neighbours have.
    """
    corrections = model.corrections
    assert corrections is not None
    found = torch.cat([corrections.body.data, corrections.head.data], 1)
    information = np.zeros((len(found), 12, 12))
    sequences = in_order(capture)
    looked = np.concatenate([rows[::every] for rows in sequences])

    def aligned(frame: int) -> tuple[Float[Array, "12"], Float[Array, "12 12"]] | None:
        rng = np.random.default_rng((model.config.seed, frame))
        pixels = TellingPixels.of(read_rgba(capture.frames, frame), rays, rng)
        if not len(pixels.places):
            return None
        picture = OnePicture(model, capture, frame, pixels, int(rng.integers(LARGEST_SEED)))
        told = picture.align().numpy()
        return picture.now().numpy(), told

    with held_still(model):
        for n, result in enumerate(shared(looked.tolist(), lambda: aligned, gradients=True)):
            if result is not None:
                found[looked[n]], information[looked[n]] = torch.from_numpy(result[0]).to(found), result[1]
            progress("aligning pictures with the avatar", n + 1, len(looked))
    for rows in sequences:
        some = rows[::every]
        even = evened(found[some].double().cpu().numpy(), information[some])
        between = [np.interp(capture.frames.times[rows], capture.frames.times[some], column) for column in even.T]
        found[rows] = torch.from_numpy(np.stack(between, -1)).to(found)
    corrections.body.data.copy_(found[:, :6])
    corrections.head.data.copy_(found[:, 6:])


def in_order(capture: Capture) -> list[Int[Array, "n"]]:
    """Frames of each sequence by time."""
    result = []
    for sequence in np.unique(capture.frames.sequence):
        rows = np.flatnonzero(capture.frames.sequence == sequence)
        result.append(rows[np.argsort(capture.frames.times[rows], kind="stable")])
    return result


@contextmanager
def held_still(model: ThreeVPModel) -> Iterator[None]:
    """The averaged weights, none of which asks for a gradient."""
    training, wanted = model.training, [p for p in model.field.parameters() if p.requires_grad]
    model.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        model.train(training)


class OnePicture:
    """The least squares of one frame. Its rays are marched once: corrections move their samples in canonical space."""

    def __init__(self, model: ThreeVPModel, capture: Capture, frame: int, pixels: TellingPixels, seed: int) -> None:
        assert model.corrections is not None
        self.model, self.corrections, self.frame = model, model.corrections, frame
        self.own = [self.corrections.body.data[frame], self.corrections.head.data[frame]]
        self.start = self.now()
        bank = RayBank(len(pixels.places))
        bank.insert(model.march_rays(pixels.rays(capture, frame).to(model.device), seed))
        self.rays: RayBatch = bank.draw(None, seed, moved=False)
        rays, self.frames = self.rays, torch.tensor([frame], device=model.device)
        conditioning = model.condition(model.performance.at_frames(self.frames))
        self.tracked = CanonicalSamples(rays.position, rays.light, rays.direction, conditioning, torch.zeros_like(rays.ray))
        along = pixels.direction(rays.background.cpu().numpy())
        self.along = torch.from_numpy(along).to(rays.background)

    def now(self) -> Float[Tensor, "12"]:
        return torch.cat(self.own).double().cpu()

    def put(self, values: Float[Tensor, "12"]) -> None:
        for part, value in zip(self.own, values.split(6), strict=True):
            part.copy_(value)

    def align(self) -> Float[Tensor, "12 12"]:
        """The best of all that was tried stays. Returns what the picture tells: the matrix of the least squares, without the prior."""
        told = torch.zeros(12, 12, dtype=torch.float64)
        if not len(self.rays.ray):
            return told
        lowest, best = float("inf"), self.start
        for iteration in range(ITERATIONS + 1):
            now = self.now()
            residual, position = self.residual()
            cost = self.cost(residual, now)
            if not cost < lowest:
                break
            lowest, best = cost, now
            if iteration == ITERATIONS:
                break
            A, b = self.normal_equations(residual, position)
            if not bool(torch.isfinite(A).all()):
                break
            step, told = torch.linalg.solve(A + torch.eye(12, dtype=A.dtype), b + now - self.start), A
            self.put(now - step)
            if step.abs().max() < SMALL:
                return told
        self.put(best)
        return told

    def residual(self) -> tuple[Float[Tensor, "R"], Float[Tensor, "N 3"]]:
        """Of each ray, and the corrected samples that it depends on."""
        rays = self.rays
        with torch.no_grad():
            samples = self.corrections.apply_to(self.tracked, self.frames)
        position = samples.position.requires_grad_()
        with torch.enable_grad():
            density, rgb, _, _ = self.model.field.evaluate(replace(samples, position=position))
            seen = composite(density, rgb, rays.t, rays.width, rays.ends, rays.background).rgb
            wanted = torch.lerp(rays.background, rays.target[:, :3], rays.target[:, 3:])
            return ((seen - wanted) * self.along).sum(-1), position

    def cost(self, residual: Float[Tensor, "R"], now: Float[Tensor, "12"]) -> float:
        square = (residual.detach().double().cpu() / NOISE).square()
        return float((square / (1 + square * (NOISE / OUTLIER) ** 2)).sum() + (now - self.start).square().sum())

    def normal_equations(
        self, residual: Float[Tensor, "R"], position: Float[Tensor, "N 3"]
    ) -> tuple[Float[Tensor, "12 12"], Float[Tensor, "12"]]:
        """Matrix and right side of Gauss-Newton's step, without the prior."""
        r = residual.detach().double().cpu() / NOISE
        (gradient,) = torch.autograd.grad(residual.sum(), position)
        J = self.corrections.sensitivity(position.detach(), gradient, self.rays.ray, len(r), self.frame).double().cpu() / NOISE
        weighted = J * (1 + r.square() * (NOISE / OUTLIER) ** 2).reciprocal().square()[:, None]
        return weighted.T @ J, weighted.T @ r
