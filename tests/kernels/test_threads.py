"""Launches that threads share: each part once, and the same results with any number of threads."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest
import torch

from threevp_nerfstudio.kernels import threads
from threevp_nerfstudio.kernels.hash_grid import hash_encode
from threevp_nerfstudio.kernels.threads import in_parts

CPU = torch.device("cpu")


@contextmanager
def limited(number: int):
    """So many threads, of torch and so of kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("size", [0, 1, 7, 64, 65])
def test_each_part_is_launched_once(number: int, size: int):
    for _ in range(2):  # the first launch of a kernel is for one thread
        done: list[tuple[int, int]] = []
        with limited(number):
            in_parts(test_each_part_is_launched_once, size, 8, lambda *part: done.append(part), CPU)  # noqa: B023
        covered = sorted(i for first, of in done for i in range(first, first + of))
        assert covered == list(range(size)) and all(of <= 8 for _, of in done if number > 1)  # one thread takes all at once


def test_a_gpu_gets_one_launch():
    done = []
    in_parts(None, 1000, 8, lambda first, of: done.append((first, of)), torch.device("cuda"))
    assert done == [(0, 1000)]


def test_a_fault_in_any_thread_is_raised_here():
    def launch(first: int, of: int) -> None:
        if first == 24:
            raise ValueError("part 24")

    for _ in range(2):
        with limited(3), pytest.raises(ValueError, match="part 24"):
            in_parts(launch, 64, 8, launch, CPU)
        threads._launched.add(launch)


def encoded() -> list[torch.Tensor]:
    torch.manual_seed(3)
    table = torch.randn(7, 2**12, 2, requires_grad=True)
    points = torch.rand(5000, 3, requires_grad=True)
    resolutions = torch.tensor([4, 8, 16, 31, 64, 128, 256], dtype=torch.int32)
    out = hash_encode(points, table, resolutions)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), (points, table))]


def test_encodings_and_gradients_are_the_same_with_any_number_of_threads():
    with limited(1):
        alone = encoded()
    for number in (2, 4):
        with limited(number):
            for a, b in zip(alone, encoded(), strict=True):
                assert torch.equal(a, b)


def test_a_fork_goes_on_with_one_thread():
    with limited(3):
        before = encoded()[0]
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)  # torch's own threads are not there any more, either
            os._exit(0 if torch.equal(encoded()[0], before) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
