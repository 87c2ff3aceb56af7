"""Warp, initialised once and quietly; torch tensors as Warp arrays on torch's current stream."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache

import torch
import warp as wp
from torch import Tensor

if hasattr(wp.config, "log_level"):
    wp.config.log_level = wp.LOG_ERROR  # a machine without a GPU is no reason to warn
else:
    wp.config.quiet = True


@cache
def initialise() -> None:
    """Initialise Warp (idempotent)."""
    wp.init()


@contextmanager
def torch_stream(device: torch.device):
    """Run Warp launches on torch's current stream, so that no synchronisation is needed between the two."""
    initialise()
    if device.type == "cuda":
        with wp.ScopedStream(wp.stream_from_torch(torch.cuda.current_stream(device))):
            yield
    else:
        yield


def array(tensor: Tensor, dtype=None) -> wp.array:
    """A Warp view of a contiguous tensor; no copy and no gradient (the autograd functions here carry those)."""
    initialise()
    return wp.from_torch(tensor.detach(), dtype=dtype, requires_grad=False)


def device_name(device: torch.device) -> str:
    """Warp's name of a torch device."""
    return "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"


def launch(kernel, dim, inputs, outputs, device: torch.device) -> None:
    """Launch on torch's current stream of `device`."""
    with torch_stream(device):
        wp.launch(kernel, dim=dim, inputs=inputs, outputs=outputs, device=device_name(device), record_tape=False)
