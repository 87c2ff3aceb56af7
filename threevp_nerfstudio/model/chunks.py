"""Rays in chunks that shrink when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from nerfstudio.utils.rich_utils import CONSOLE

from threevp_nerfstudio.errors import ThreeVPError

SMALLEST_CHUNK = 256
"""Rays; where even these do not fit, no smaller number will help."""
_SIGNS = ("out of memory", "can't allocate memory", "failed to allocate")
"""What torch (CUDA, CPU) and Warp write when memory runs out; only torch's CUDA error has a class of its own."""

Part = TypeVar("Part")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device, or the machine, has no memory left."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def in_chunks(render: Callable[[int, int], Part], total: int, size: int) -> tuple[list[Part], int]:
    """`render(start, end)` over 0..`total`, at most `size` at once.

    When memory runs out the chunk is halved and rendering goes on from where it was.

    Returns:
        the parts in order, and the chunk size that fitted.

    Raises:
        ThreeVPError: not even `SMALLEST_CHUNK` rays fit.
    """
    parts: list[Part] = []
    start = 0
    while start < total:
        end = min(start + size, total)
        try:
            parts.append(render(start, end))
            start = end
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if min(size, total) <= SMALLEST_CHUNK:
                raise ThreeVPError(
                    f"Out of memory even with {min(size, total)} rays at once ({error}). Close what else uses the "
                    "device, render smaller pictures, or lower --pipeline.model.max-samples."
                ) from error
        # outside of the handler, where the failed chunk's tensors are no longer held by the traceback
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = max(min(size, total) // 2, SMALLEST_CHUNK)
        CONSOLE.print(f"[yellow]Out of memory: rendering goes on with chunks of {size} rays.")
    return parts, size
