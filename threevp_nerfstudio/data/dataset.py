"""nerfstudio dataset of a capture's frames: pictures over white, mattes and the boxes of eyes and mouth."""

from __future__ import annotations

import numpy as np
import torch
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset

from threevp_nerfstudio.capture.capture import Capture, read_rgba, yaw_deg


class ThreeVPDataset(InputDataset):
    """Frames of one split. `metadata["capture"]` is the whole capture."""

    exclude_batch_keys_from_device = ["image", "alpha", "part_boxes", "frame", "yaw_deg", "sequence"]

    def __init__(self, dataparser_outputs: DataparserOutputs, scale_factor: float = 1.0) -> None:
        if scale_factor != 1.0:
            raise ValueError("camera_res_scale_factor is not supported: resize the capture instead")
        super().__init__(dataparser_outputs, scale_factor)
        self.capture: Capture = dataparser_outputs.metadata["capture"].capture
        self.frames: np.ndarray = dataparser_outputs.metadata["frames"].numpy()
        self.metadata = {"capture": self.capture}
        self.part_boxes: list[dict] | None = None

    def get_numpy_image(self, image_idx: int) -> np.ndarray:
        return read_rgba(self.capture.frames, int(self.frames[image_idx]))

    def get_data(self, image_idx: int, image_type: str = "float32") -> dict:
        frame = int(self.frames[image_idx])
        rgba = torch.from_numpy(self.get_numpy_image(image_idx)).float() / 255.0
        alpha = rgba[..., 3:]
        image = rgba[..., :3] * alpha + (1.0 - alpha)
        if image_type == "uint8":
            image = (image * 255.0).round().to(torch.uint8)
        return {
            "image_idx": image_idx,
            "image": image,
            "alpha": alpha,
            "frame": frame,
            "yaw_deg": float(yaw_deg(self.capture.frames.camera_to_world[frame : frame + 1])[0]),
            "sequence": str(self.capture.frames.sequence[frame]),
            "part_boxes": {} if self.part_boxes is None else self.part_boxes[frame],
        }
