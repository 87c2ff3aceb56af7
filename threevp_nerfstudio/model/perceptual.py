"""LPIPS on square patches of training rays. The network's weights are read from disk, never downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from threevp_nerfstudio.errors import ThreeVPError

WEIGHTS = "alexnet-owt-7be5be79.pth"
"""AlexNet as torchvision publishes it."""


def weights_path() -> Path:
    """Where torch keeps downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS


def load_lpips() -> Any:
    """torchmetrics' LPIPS with AlexNet, frozen.

    Raises:
        ThreeVPError: the weights are not on disk.
    """
    if not weights_path().exists():
        raise ThreeVPError(
            f"--pipeline.model.perceptual-loss needs AlexNet's weights, and {weights_path()} does not exist. On a machine "
            "with a network, `python -c \"import torchvision; torchvision.models.alexnet(weights='DEFAULT')\"` fetches "
            "them; copy the file there. Or leave the loss at 0."
        )
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).eval().requires_grad_(False)


class PerceptualLoss:
    """Distance of a rendered patch from the true one. No `nn.Module`: the network belongs in no checkpoint.

    Args:
        network: takes two batches of pictures (1, 3, p, p) with values 0 to 1; by default LPIPS.
    """

    def __init__(self, network: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        self._network = load_lpips() if network is None else network

    def __call__(self, rendered: Float[Tensor, "P 3"], target: Float[Tensor, "P 3"]) -> Float[Tensor, ""]:
        """Of the pixels of one square patch, row by row."""
        if isinstance(self._network, torch.nn.Module):
            self._network.to(rendered.device)
        a, b = (as_picture(x).clamp(0.0, 1.0) for x in (rendered, target))
        return self._network(a, b).mean()


def as_picture(pixels: Float[Tensor, "P 3"]) -> Float[Tensor, "1 3 p p"]:
    """Pixels of a square patch, row by row, as a batch of one picture."""
    side = round(len(pixels) ** 0.5)
    return pixels.view(side, side, 3).movedim(-1, 0)[None]
