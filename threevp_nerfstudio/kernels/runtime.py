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


_STREAMS: dict[tuple[torch.device, int], wp.Stream] = {}
"""Warp's names of torch's streams, by device and handle."""


def current_stream(device: torch.device) -> wp.Stream | None:
    """Torch's current stream of a device, for Warp; None on a CPU."""
    initialise()
    if device.type != "cuda":
        return None
    stream = torch.cuda.current_stream(device)
    key = (stream.device, stream.cuda_stream)
    if key not in _STREAMS:
        _STREAMS[key] = wp.stream_from_torch(stream)
    return _STREAMS[key]


@contextmanager
def torch_stream(device: torch.device):
    """Run what Warp does on torch's current stream, so that no synchronisation is needed between the two."""
    stream = current_stream(device)
    if stream is None:
        yield
    else:
        with wp.ScopedStream(stream, sync_enter=False):
            yield


def array(tensor: Tensor, dtype=None) -> wp.array:
    """A Warp view of a contiguous tensor; no copy and no gradient (the autograd functions here carry those)."""
    initialise()
    return wp.from_torch(tensor.detach(), dtype=dtype, requires_grad=False)


def view(tensor: Tensor, dtype=None):
    """`array` for an argument of `launch` and nothing else: made in half the time, which counts with dozens of them in a step."""
    made = wp.from_torch(tensor, dtype=dtype, requires_grad=False, return_ctype=True)
    made.tensor = tensor  # lives as long as its view
    return made


def device_name(device: torch.device) -> str:
    """Warp's name of a torch device."""
    return "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"


def launch(kernel, dim, inputs, outputs, device: torch.device) -> None:
    """Launch on torch's current stream of `device`."""
    wp.launch(
        kernel, dim, inputs, outputs, device=device_name(device), stream=current_stream(device), record_tape=False
    )
