"""Data manager: fresh training rays from a few balanced frames in each step, and whole pictures for evaluation."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import DataManager, VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.utils.dataloaders import FixedIndicesEvalDataloader, RandIndicesEvalDataloader

from threevp_nerfstudio.capture.capture import read_rgba, yaw_deg
from threevp_nerfstudio.data.balance import frame_probabilities, shard
from threevp_nerfstudio.data.dataparser import ThreeVPDataParserConfig
from threevp_nerfstudio.data.dataset import ThreeVPDataset
from threevp_nerfstudio.data.parts import part_boxes
from threevp_nerfstudio.data.picture_cache import Crop, PictureCache, to_device
from threevp_nerfstudio.data.pixels import PixelShares, slot_table
from threevp_nerfstudio.kernels.pixels import SUBJECT, draw_rays


@dataclass
class ThreeVPDataManagerConfig(VanillaDataManagerConfig):
    """Balanced sampling of a portrait capture."""

    _target: type = field(default_factory=lambda: ThreeVPDataManager)
    dataparser: ThreeVPDataParserConfig = field(default_factory=ThreeVPDataParserConfig)
    """Where the capture is."""
    train_num_rays_per_batch: int = 512
    """Fresh rays of a step. The model trains on rays of its bank, into which these go."""
    frames_per_step: int = 2
    """Frames that the fresh rays of a step come from; each has to be posed."""
    balance_views: bool = True
    """Draw yaw sectors equally often."""
    balance_expressions: bool = True
    """Draw groups of similar expressions equally often."""
    neighbour_pixels: int = 2
    """Each ray carries the colours of the pixels up to so many away: near its own, the map to canonical space is
    linear, so the model can train on those pixels' rays too without mapping them. 0: on its own pixel only."""
    pixels: PixelShares = field(default_factory=PixelShares)
    """Shares of eyes and mouth, border, background and subject."""
    perceptual_patch: int = 0
    """Side in pixels of the square of rays that comes with the others in some steps; 0: none, but 32 where the model has
    a perceptual loss."""
    perceptual_every: int = 4
    """Steps from one such patch to the next."""
    face_weight: float = 1.0
    """Weight of eyes and mouth in the photometric loss."""
    cache_gigabytes: float = 4.0
    """Memory of the training device for decoded pictures, of all processes together; beyond it they are read again from
    disk."""
    seed: int = 0
    """Of all sampling."""

    def __setattr__(self, name: str, value) -> None:
        # stored in config.yml: a relative path would only work from the folder that training was started in
        if name == "data" and value is not None:
            value = Path(value).expanduser().absolute()
        super().__setattr__(name, value)


class ThreeVPDataManager(VanillaDataManager[ThreeVPDataset]):
    """Own seeded samplers in place of nerfstudio's image cache and pixel samplers."""

    config: ThreeVPDataManagerConfig
    train_dataset: ThreeVPDataset
    eval_dataset: ThreeVPDataset

    def __init__(
        self,
        config: ThreeVPDataManagerConfig,
        device: torch.device | str = "cpu",
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        **_: object,
    ) -> None:
        self.config, self.device, self.world_size, self.local_rank = config, device, world_size, local_rank
        self.test_mode, self.sampler = test_mode, None
        self.test_split = "val" if test_mode == "val" else "test"
        if config.data is not None:
            config.dataparser.data = config.data
        else:
            config.data = config.dataparser.data
        self.dataparser_config = config.dataparser
        self.dataparser = config.dataparser.setup()
        self.includes_time = self.dataparser.includes_time
        self.train_dataparser_outputs = self.dataparser.get_dataparser_outputs(split="train")
        self.train_dataset = self.create_train_dataset()
        self.eval_dataset = self.create_eval_dataset()
        self.exclude_batch_keys_from_device = self.train_dataset.exclude_batch_keys_from_device
        # not VanillaDataManager's: it goes through all cameras one by one, 4 ms each, for a collating that we have not
        DataManager.__init__(self)

    def create_train_dataset(self) -> ThreeVPDataset:
        return ThreeVPDataset(self.train_dataparser_outputs)

    def create_eval_dataset(self) -> ThreeVPDataset:
        dataset = ThreeVPDataset(self.dataparser.get_dataparser_outputs(split=self.test_split))
        dataset.part_boxes = self.part_boxes
        return dataset

    @property
    def part_boxes(self) -> list[dict]:
        if not hasattr(self, "_part_boxes"):
            self._part_boxes = part_boxes(self.train_dataset.capture)
        return self._part_boxes

    def setup_train(self) -> None:
        capture, index = self.train_dataset.capture, self.train_dataset.frames
        rows = capture.frames.motion_index[index]
        conditioning = capture.motion.expression if capture.motion.rigged else capture.motion.conditioning
        values = np.zeros((len(index), 0)) if conditioning is None else conditioning[rows]
        probabilities = frame_probabilities(
            yaw_deg(capture.frames.camera_to_world[index]),
            values,
            self.config.balance_views,
            self.config.balance_expressions,
        )
        self.frame_probabilities = shard(probabilities, self.local_rank, self.world_size)
        self.pictures = PictureCache(
            lambda frame: read_rgba(capture.frames, frame),
            int(self.config.cache_gigabytes * 2**30 / self.world_size),
            self.device,
        )
        self.rng = np.random.default_rng([self.config.seed, self.local_rank])
        self._pool = ThreadPoolExecutor(2, "threevp-pictures", self.pictures.enter_thread)
        self._next: list[tuple[int, Future[Crop]]] = []

    def setup_eval(self) -> None:
        loader = {"input_dataset": self.eval_dataset, "device": self.device, "num_workers": 1}
        self.fixed_indices_eval_dataloader = FixedIndicesEvalDataloader(**loader)
        self.eval_dataloader = RandIndicesEvalDataloader(**loader)

    def get_train_rays_per_batch(self) -> int:
        return self.config.train_num_rays_per_batch

    def get_eval_rays_per_batch(self) -> int:
        return self.config.eval_num_rays_per_batch

    # ---- training ----------------------------------------------------------------------------------------------

    def next_train(self, step: int) -> tuple[RayBundle, dict]:
        """Fresh rays, drawn on the device. Their metadata holds the frame and weight of each ray, the RGBA of the pixels round
        it (`patch`, bytes), what a step of a pixel adds to its direction (`across`), the numbers of the frames that they come
        from (`slot_frames`, the same in each row; a frame may be there twice) and which of those is the ray's (`slot`)."""
        self.train_count += 1
        if not self._next:
            self._request_frames()
        current, self._next = self._next, []
        self._request_frames()
        share = self.config.train_num_rays_per_batch // max(len(current), 1)
        due = self.config.perceptual_patch if step % self.config.perceptual_every == 0 else 0
        return self._rays([(frame, future.result()) for frame, future in current], share, self.rng, due), {}

    def next_eval(self, step: int) -> tuple[RayBundle, dict]:
        """Rays of a few evaluation frames, uniformly over the subject."""
        self.eval_count += 1
        rng = np.random.default_rng([self.config.seed, step])
        chosen = rng.choice(self.eval_dataset.frames, size=min(4, len(self.eval_dataset.frames)), replace=False)
        share = self.config.eval_num_rays_per_batch // len(chosen)
        return self._rays([(int(f), self.pictures.get(int(f))) for f in chosen], share, rng), {}

    def next_eval_image(self, step: int) -> tuple[Cameras, dict]:
        for camera, batch in self.eval_dataloader:
            return camera, batch
        raise ValueError("the evaluation split is empty")

    def _request_frames(self) -> None:
        picks = self.rng.choice(len(self.frame_probabilities), self.config.frames_per_step, p=self.frame_probabilities)
        frames = [int(self.train_dataset.frames[i]) for i in picks]
        self._next = [(frame, self._pool.submit(self.pictures.get, frame)) for frame in frames]

    def _rays(self, chosen: list[tuple[int, Crop]], count: int, rng: np.random.Generator, square: int = 0) -> RayBundle:
        """`count` rays of each frame, and behind them, row by row, those of a `square` of the last one, if it is large enough and
        shows anyone."""
        last = chosen[-1][1]
        if min(last.width, last.height) < square or not last.kinds & SUBJECT:
            square = 0
        boxes = [list(self.part_boxes[frame].values()) for frame, _ in chosen]
        table = slot_table(self.train_dataset.capture.frames, chosen, boxes)
        slots = to_device(torch.from_numpy(table.view(np.uint8).reshape(len(table), -1)), self.device)
        self.pictures.hand_over([crop for _, crop in chosen])
        radius, seed = self.config.neighbour_pixels, int(rng.integers(1 << 31))
        rays = draw_rays(slots, count, *self.config.pixels.counts(count), square, radius, self.config.face_weight, seed)
        total = len(rays.frame)
        metadata = {
            "frame": rays.frame,
            "weight": rays.weight,
            "patch": rays.patch,
            "across": rays.across,
            "slot": rays.slot,
            "slot_frames": rays.slot_frames.expand(total, -1),
        }
        if square:
            metadata["perceptual"] = (torch.arange(total, device=slots.device) >= total - square * square)[:, None]
        return RayBundle(
            origins=rays.origins,
            directions=rays.directions,
            pixel_area=torch.ones(total, 1, device=slots.device),
            camera_indices=rays.frame,
            metadata=metadata,
        )
