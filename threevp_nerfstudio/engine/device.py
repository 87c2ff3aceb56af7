"""Is the device that was asked for usable? If not: why, in words, and the CPU in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from nerfstudio.utils.rich_utils import CONSOLE


@cache
def why_unusable(device: str) -> str | None:
    """None where torch and our Warp kernels run on `device`, else the reason.

    Looks at results, not only at exceptions: Warp leaves out launches of a module whose compilation failed before.
    """
    if torch.device(device).type != "cuda":
        return None
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA driver or device was found"
    index = torch.device(device).index or 0
    if index >= torch.cuda.device_count():
        return f"{device} was asked for and there are {torch.cuda.device_count()} devices"
    name = torch.cuda.get_device_name(index)
    for part, probe in (("torch", _torch_works), ("the Warp kernels", _warp_works)):
        try:
            works = probe(torch.device(device))
        except Exception as error:  # whatever a driver, a compiler or an old device comes up with
            return f"{part} failed on {name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        if not works:
            return f"{part} gave wrong results on {name}"
    return None


def _torch_works(device: torch.device) -> bool:
    return bool((torch.ones(8, device=device) * 2.0 == 2.0).all())


def _warp_works(device: torch.device) -> bool:
    from threevp_nerfstudio.kernels.hash_grid import hash_encode

    resolutions = torch.tensor([4], dtype=torch.int32, device=device)
    encoded = hash_encode(torch.rand(8, 3, device=device), torch.ones(1, 256, 2, device=device), resolutions)
    return bool(((encoded - 1.0).abs() < 1e-4).all())


def usable(device: str | torch.device) -> tuple[str, str | None]:
    """`device`, or the CPU with the reason and one warning."""
    reason = why_unusable(str(device))
    if reason is None:
        return str(device), None
    _warn(reason)
    return "cpu", reason


@cache  # once per reason
def _warn(reason: str) -> None:
    CONSOLE.print(
        f"[bold yellow]Warning: no CUDA for this run: {reason}. It goes on on the CPU; there, threevp-small is the "
        "method to use."
    )


@contextmanager
def cpu_threads(device: str | torch.device, threads: int) -> Iterator[None]:
    """Within, torch and our kernels use so many threads, if `device` is a CPU. A training step is many small pieces of work: with two
    threads one took as long as with one and twice the processor's time, and four times as long beside another program."""
    before = torch.get_num_threads()
    if torch.device(device).type == "cpu":
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
