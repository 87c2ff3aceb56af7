"""Jobs shared by processes: the same results in the same order, and no process left behind."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch

from threevp_nerfstudio import workers
from threevp_nerfstudio.errors import FootageError
from threevp_nerfstudio.workers import WorkerLost, count, shared, sharing, stay_whole, streamed


def children() -> int:
    with open(f"/proc/{os.getpid()}/task/{os.getpid()}/children") as file:
        return len(file.read().split())


@pytest.fixture(autouse=True)
def nobody_is_left():
    before = children()
    yield
    assert children() == before


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_results_come_in_the_order_of_the_items(number: int):
    def make():
        def square(x: int) -> np.ndarray:
            time.sleep(0.02 if x == 1 else 0.0)  # one is late
            return np.full((200, 300), x * x)  # larger than a pipe holds

        return square

    with sharing(number):
        found = [int(x[0, 0]) for x in shared(range(7), make)]
    assert found == [0, 1, 4, 9, 16, 25, 36]


def test_nothing_to_do():
    assert list(shared([], lambda: lambda x: x)) == []
    assert list(streamed([])) == []


def test_each_worker_has_its_own_process_and_one_thread():
    def make():
        return lambda _: (os.getpid(), torch.get_num_threads())

    with sharing(3):
        found = list(shared(range(9), make))
    assert len({pid for pid, _ in found}) == 3 and os.getpid() not in {pid for pid, _ in found}
    assert {threads for _, threads in found} == {1}
    with sharing(1):
        assert {pid for pid, _ in shared(range(9), make)} == {os.getpid()}


def test_more_jobs_than_workers_begin_in_their_order():
    def job(number: int):
        def run():
            for k in range(3):
                yield number, k

        return run

    with sharing(2):
        found = list(streamed([job(n) for n in range(5)]))
    assert sorted(found) == [(n, (n, k)) for n in range(5) for k in range(3)]
    for n in range(5):
        assert [k for number, (_, k) in found if number == n] == [0, 1, 2]


def test_without_forks_nothing_is_done_ahead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "_can_fork", lambda gradients: False)
    seen: list[int] = []

    def make():
        return lambda x: seen.append(x) or x

    with sharing(4):
        for n, x in enumerate(shared(range(6), make)):
            assert x == n and seen == list(range(n + 1))


def test_a_worker_stands_apart_where_this_process_must_stay_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "_whole", False)

    def make():
        stay_whole()  # a library's threads
        return lambda _: os.getpid()

    with sharing(2):
        assert list(shared([0], make, apart=True)) != [os.getpid()] and not workers._whole
        assert os.getpid() not in shared(range(4), make)
        assert list(shared([0], make)) == [os.getpid()] and workers._whole
        assert set(shared(range(4), make, apart=True)) == {os.getpid()}  # too late


def test_workers_may_ask_for_gradients():
    x = torch.ones(3, requires_grad=True)
    (x * x).sum().backward()

    def make():
        def slope(value: float) -> float:
            y = torch.tensor(value, requires_grad=True)
            (y * y).backward()
            assert y.grad is not None
            return float(y.grad)

        return slope

    with sharing(2):
        assert list(shared([1.0, 2.0, 3.0], make, gradients=True)) == [2.0, 4.0, 6.0]


def test_an_error_ends_the_others_and_is_raised_here():
    def make():
        def work(x: int) -> int:
            if x == 2:
                raise FootageError("picture 2 is torn.")
            time.sleep(0.01)
            return x

        return work

    with sharing(2), pytest.raises(FootageError, match="picture 2 is torn"):
        list(shared(range(1000), make))


def test_an_error_that_cannot_travel_is_told_in_words():
    class Local(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__("a local one")

    def make():
        def work(x: int) -> int:
            raise Local(1, 2)

        return work

    with sharing(2), pytest.raises(RuntimeError, match="a local one"):
        list(shared(range(4), make))


def test_a_worker_that_was_killed_is_reported_with_the_remedy():
    def make():
        def work(x: int) -> int:
            if x == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return x

        return work

    with sharing(2), pytest.raises(WorkerLost, match="memory.*--workers 1"):
        list(shared(range(8), make))


def test_who_stops_asking_leaves_nobody_behind():
    with sharing(2):
        for done in shared(range(10_000), lambda: lambda x: time.sleep(0.01) or x):
            if done == 3:
                break


def test_the_number_of_workers_is_for_a_while():
    outside = count()
    with sharing(5):
        assert count() == 5
        with sharing(None):
            assert 1 <= count() <= 8
        assert count() == 5
    assert count() == outside
