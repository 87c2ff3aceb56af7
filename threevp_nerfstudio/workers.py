"""Processes that share a job on a CPU, one per core.

Workers are forks: they see everything that is in memory, and nothing has to be copied to them; what they find comes back through a pipe.
With one worker, with a single job, where there is no fork, and once CUDA is in use (which does not survive a fork), all is done
in this process. Libraries that do not survive one either (MediaPipe) belong in workers only: see `shared`'s `apart`. Results do not
depend on the number of workers as long as jobs do not depend on each other.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe, wait
from typing import TypeVar

import cv2
from threadpoolctl import threadpool_limits

from threevp_nerfstudio.errors import ThreeVPError

T, R = TypeVar("T"), TypeVar("R")

MOST = 8
"""Workers unless another number is asked for: each takes memory for what it changes."""
_workers = 0
_whole = False
"""A library is in use here that does not survive a fork."""


class WorkerLost(ThreeVPError):
    """A worker ended without a word."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count() -> int:
    """How many workers share a job."""
    return _workers or min(cores(), MOST)


@contextmanager
def sharing(workers: int | None) -> Iterator[None]:
    """Within, so many workers share a job; None: one per core, `MOST` at most."""
    global _workers
    before, _workers = _workers, workers or 0
    try:
        yield
    finally:
        _workers = before


def stay_whole() -> None:
    """From now on this process is not forked: a library is in use whose memory and threads a fork would break."""
    global _whole
    _whole = True


def shared(items: Sequence[T], make: Callable[[], Callable[[T], R]], gradients: bool = False, apart: bool = False) -> Iterator[R]:
    """What a function says of each item, in their order. Each worker calls `make` once for its function.

    Args:
        gradients: see `streamed`.
        apart: a worker does it even where there is but one item, so that this process stays as it is (`stay_whole`). With one worker
            nothing is ever forked, and this does not matter.
    """
    workers = min(count(), len(items)) if _can_fork(gradients) else 1

    def job(first: int) -> Iterator[R]:
        function = make()
        for item in items[first::workers]:
            yield function(item)

    waiting: dict[int, R] = {}
    done, following = [0] * workers, 0
    jobs = [lambda first=first: job(first) for first in range(workers)]
    for worker, result in streamed(jobs, gradients, apart):
        waiting[worker + workers * done[worker]] = result
        done[worker] += 1
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def streamed(jobs: Sequence[Callable[[], Iterator[R]]], gradients: bool = False, apart: bool = False) -> Iterator[tuple[int, R]]:
    """Everything that the jobs yield, as it comes: the job's number with each. Jobs begin in their order, as many at a time as there
    are workers.

    Args:
        gradients: the jobs ask torch for gradients, which no fork can do beside a GPU.
        apart: see `shared`.

    Raises what a job raises; the others end then, as they do when the caller stops asking or at Ctrl-C.
    """
    if count() < 2 or (len(jobs) < 2 and not apart) or not _can_fork(gradients):
        for number, job in enumerate(jobs):
            for result in job():
                yield number, result
        return
    running: dict[Connection, tuple[int, int]] = {}
    begun = 0
    try:
        while begun < len(jobs) or running:
            while begun < len(jobs) and len(running) < count():
                receiver, pid = _forked(jobs[begun], tuple(running))
                running[receiver] = (begun, pid)
                begun += 1
            for receiver in wait(list(running)):
                assert isinstance(receiver, Connection)
                number, pid = running[receiver]
                try:
                    kind, value = receiver.recv()
                except (EOFError, OSError):
                    raise WorkerLost(_why_lost(os.waitpid(running.pop(receiver)[1], 0)[1])) from None
                if kind == "error":
                    raise value
                if kind == "result":
                    yield number, value
                    continue
                del running[receiver]
                receiver.close()
                os.waitpid(pid, 0)
    finally:
        for receiver, (_, pid) in running.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            receiver.close()


def _can_fork(gradients: bool) -> bool:
    if _whole or not hasattr(os, "fork") or sys.platform == "darwin":  # macOS' own libraries do not survive one
        return False
    torch = sys.modules.get("torch")
    return torch is None or not (torch.cuda.is_initialized() or gradients and torch.cuda.is_available())


def _forked(job: Callable[[], Iterator[R]], others: tuple[Connection, ...]) -> tuple[Connection, int]:
    """A worker at the job: where its results arrive, and its process."""
    receiver, sender = Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on: other threads do not live on in a fork
        pid = os.fork()
    if pid:
        sender.close()
        return receiver, pid
    try:  # the worker; it never returns, and leaves without the clean-up of the process that it is a copy of
        for connection in (receiver, *others):
            connection.close()
        _work(job, sender)
    finally:
        os._exit(0)


def _work(job: Callable[[], Iterator[R]], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    try:
        with _one_thread():
            for result in job():
                sender.send(("result", result))
        sender.send(("end", None))
    except BrokenPipeError:
        pass  # whoever waited for this has gone
    except BaseException as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # whatever keeps it from travelling: its words do
            error = RuntimeError("".join(traceback.format_exception(error)))
        sender.send(("error", error))


@contextmanager
def _one_thread() -> Iterator[None]:
    """The other cores have workers of their own; and threads that ran before the fork are not there any more."""
    cv2.setNumThreads(0)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    with threadpool_limits(1):
        yield


def _why_lost(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL:
        return "a worker process was killed, most likely for want of memory; fewer need less: --workers 1."
    how = f"by signal {-code}" if code < 0 else f"with code {code}"
    return f"a worker process ended {how}; try --workers 1, which does all in one process."
