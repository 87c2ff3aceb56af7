"""Kernels on a CPU, shared by threads: Warp works through a launch with one core, so a large one is launched in parts.

Results do not depend on how a launch is cut, and so not on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count as counter

import torch

MOST = 16
_pool: ThreadPoolExecutor | None = None
_launched: set[object] = set()
"""Kernels that have run before: the first launch of one compiles or loads it, which is for one thread alone."""


def count() -> int:
    """Threads that share a launch: as many as torch uses."""
    return min(torch.get_num_threads(), MOST)


def in_parts(kernel: object, size: int, part: int, launch: Callable[[int, int], None], device: torch.device) -> None:
    """Launch a kernel over `size` of something, on a CPU whose threads share it in parts of `part`.

    Args:
        launch: called with where a part begins and its size, each part once, by several threads.
    """
    if device.type != "cpu" or size <= part or count() == 1:
        launch(0, size)
        return
    starts = range(0, size, part)
    taken = counter()

    def work() -> None:
        while (k := next(taken)) < len(starts):  # counting is atomic
            launch(starts[k], min(part, size - starts[k]))

    helpers = min(count(), len(starts)) - 1
    if helpers < 1 or kernel not in _launched:
        work()
        _launched.add(kernel)
        return
    pool = _threads()
    waited_for = [pool.submit(work) for _ in range(helpers)]
    work()
    for helper in waited_for:
        helper.result()


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(MOST - 1, "kernel")  # it starts those that it needs
    return _pool


def _after_fork() -> None:
    global _pool
    _pool = None  # its threads are not there any more


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
