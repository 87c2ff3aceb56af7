"""Metrics of rendered pictures: PSNR, SSIM and, where its weights are at hand, LPIPS; over the whole picture, the
subject, the face and the mouth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

SUBJECT_MARGIN_PX = 3
LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"


def subject_mask(alpha: Float[Tensor, "h w 1"]) -> Bool[Tensor, "h w"]:
    """Matte above one half, grown by 3 pixels."""
    k = 2 * SUBJECT_MARGIN_PX + 1
    return F.max_pool2d((alpha[None, ..., 0] > 0.5).float(), k, 1, SUBJECT_MARGIN_PX)[0] > 0


def psnr(a: Float[Tensor, "h w 3"], b: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"] | None = None) -> float:
    """Peak signal-to-noise ratio in dB over the masked pixels."""
    error = (a - b).square().mean(-1)
    error = error.mean() if mask is None else error[mask].mean()
    return float(-10.0 * torch.log10(error.clamp_min(1e-12)))


def box_mask(boxes: list[tuple[float, float, float, float]], shape: tuple[int, int]) -> Bool[Tensor, "h w"]:
    """Pixels inside any of the boxes (left, top, right, bottom, in pixels)."""
    mask = torch.zeros(shape, dtype=torch.bool)
    for left, top, right, bottom in boxes:
        mask[max(int(top), 0) : max(int(bottom) + 1, 0), max(int(left), 0) : max(int(right) + 1, 0)] = True
    return mask


class ImageMetrics:
    """Metrics of one picture against the truth. LPIPS is built when first used, and only from weights on disk."""

    def __init__(self) -> None:
        self._lpips: Any = None
        self._lpips_checked = False

    def __call__(
        self, rgb: Float[Tensor, "h w 3"], truth: Float[Tensor, "h w 3"], batch: dict[str, Any]
    ) -> dict[str, float]:
        # a second of start-up that only evaluation needs
        from torchmetrics.functional.image import structural_similarity_index_measure

        a, b = rgb.movedim(-1, 0)[None], truth.movedim(-1, 0)[None]
        ssim_mean, ssim_map = structural_similarity_index_measure(a, b, data_range=1.0, return_full_image=True)
        ssim_map = ssim_map[0].mean(0)
        result = {"psnr": psnr(rgb, truth), "ssim": float(ssim_mean)}
        masks = {}
        if "alpha" in batch:
            masks["subject"] = subject_mask(batch["alpha"].to(rgb.device))
        boxes = batch.get("part_boxes", {})
        if boxes:
            masks["face"] = box_mask(list(boxes.values()), rgb.shape[:2]).to(rgb.device)
        if "mouth" in boxes:
            masks["mouth"] = box_mask([boxes["mouth"]], rgb.shape[:2]).to(rgb.device)
        for name, mask in masks.items():
            if mask.any():
                result[f"psnr_{name}"] = psnr(rgb, truth, mask)
                result[f"ssim_{name}"] = float(ssim_map[mask].mean())
        lpips = self._lpips_model(rgb.device)
        if lpips is not None:
            result["lpips"] = float(lpips(a.clamp(0, 1), b.clamp(0, 1)))
        return result

    def _lpips_model(self, device: torch.device) -> Any:
        if not self._lpips_checked:
            self._lpips_checked = True
            path = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS
            if path.exists():
                from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

                self._lpips = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).eval()
            else:
                print(f"LPIPS is left out: {LPIPS_WEIGHTS} is not in {path.parent} (torchvision's AlexNet weights).")
        return None if self._lpips is None else self._lpips.to(device)


def comparison(outputs: dict[str, Tensor], truth: Float[Tensor, "h w 3"]) -> dict[str, Float[Tensor, "h _ 3"]]:
    """Pictures for the log: truth, render and five times the error side by side; opacity and depth."""
    rgb = outputs["rgb"]
    error = ((rgb - truth).abs() * 5.0).clamp(0.0, 1.0)
    alpha = outputs["accumulation"]
    depth = outputs["depth"]
    seen = alpha[..., 0] > 0.5
    if seen.any():
        near, far = depth[seen[..., None]].min(), depth[seen[..., None]].max()
        depth = torch.where(seen[..., None], 1.0 - 0.8 * (depth - near) / (far - near).clamp_min(1e-6), 0.0)
    gray = torch.cat([alpha, depth], dim=1).expand(-1, -1, 3)
    return {"img": torch.cat([truth, rgb, error], dim=1), "geometry": gray}
