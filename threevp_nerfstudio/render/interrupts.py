"""Ctrl-C and SIGTERM while a film is rendered: at once between frames, and never in the middle of writing one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Turns signals into KeyboardInterrupt, held back within `held()`."""

    def __init__(self) -> None:
        self._holding = False
        self._pending = False

    def receive(self, signum: int, frame: object) -> None:
        if self._holding:
            self._pending = True
        else:
            self._interrupt()

    def hold(self) -> None:
        """From now on, let no signal interrupt what closes the film."""
        self._holding = True

    def _interrupt(self) -> None:
        self._holding = True  # a second Ctrl-C must not break the part that is being kept
        raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that signals do not interrupt; they take effect when it ends."""
        outer, self._holding = self._holding, True
        try:
            yield
        finally:
            self._holding = outer
        if self._pending and not self._holding:
            self._interrupt()


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Handle SIGINT and SIGTERM within the block; elsewhere than in the main thread, where that is not possible, leave
    them alone."""
    state = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    before = {s: signal.signal(s, state.receive) for s in SIGNALS}
    try:
        yield state
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
