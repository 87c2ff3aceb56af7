"""Time, memory and machine. Every figure is a median with its spread.

Seconds are process time on a CPU (other programs do not count, all threads of this one do) and, on a CUDA device, wall
time with the device waited for at both ends.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from importlib import metadata
from typing import Any

import torch

PACKAGES = ("threevp_nerfstudio", "nerfstudio", "torch", "warp-lang", "numpy", "tinycudann")


@dataclass(frozen=True)
class Stat:
    """Median of `n` measurements, with the middle half of them between `low` and `high`."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> Stat:
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high, len(values))

    def times(self, factor: float) -> Stat:
        return Stat(self.median * factor, self.low * factor, self.high * factor, self.n)

    def inverse(self, factor: float = 1.0) -> Stat:
        """`factor / value`: milliseconds to pictures per second, and the like."""
        return Stat(factor / self.median, factor / self.high, factor / self.low, self.n)

    def __str__(self) -> str:
        if self.n == 1:
            return digits(self.median)
        return f"{digits(self.median)} ({digits(self.low)} to {digits(self.high)})"


def digits(value: float) -> str:
    """Three significant digits, large numbers with separators."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


class Clock:
    """Seconds on a device: process time, or wall time around a device that is waited for."""

    def __init__(self, device: str | torch.device) -> None:
        self.cuda = torch.device(device).type == "cuda"

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def repeat(self, function: Callable[[], Any], times: int, warmup: int = 2) -> Stat:
        """Seconds of each of `times` calls, after `warmup` that do not count (compilation, caches)."""
        for _ in range(warmup):
            function()
        seconds = []
        for _ in range(times):
            start = self.now()
            function()
            seconds.append(self.now() - start)
        return Stat.of(seconds)


class PartTimer:
    """Seconds spent in named methods, each without what it calls of the others. Use as `with timer.watching(...)`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = {}
        self._open: list[float] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._open.append(0.0)
        start = self.clock.now()
        try:
            yield
        finally:
            spent = self.clock.now() - start
            inner = self._open.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - inner
            if self._open:
                self._open[-1] += spent

    @contextmanager
    def watching(self, methods: list[tuple[str, Any, str]]) -> Iterator[None]:
        """Time calls of (part's name, object, method's name); a method that an object lacks is not looked for."""
        found = [(name, owner, method) for name, owner, method in methods if hasattr(owner, method)]
        for name, owner, method in found:
            setattr(owner, method, self._timed(name, getattr(owner, method)))
        try:
            yield
        finally:
            for _, owner, method in found:
                delattr(owner, method)  # the class's own shows again

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return timed


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on."""

    processor: str
    cores: int
    memory_gib: float
    accelerator: str
    threads: int
    load: float
    """Programs waiting for a core, averaged over the last minute."""
    system: str
    python: str
    versions: dict[str, str]
    date: str

    @classmethod
    def here(cls, device: str) -> Machine:
        cuda = torch.device(device).type == "cuda"
        versions = {name: _version(name) for name in PACKAGES}
        return cls(
            processor=_processor(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            memory_gib=round(_memory_gib(), 1),
            accelerator=torch.cuda.get_device_name(device) if cuda else "none",
            threads=torch.get_num_threads(),
            load=round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0,
            system=platform.system(),
            python=platform.python_version(),
            versions={k: v for k, v in versions.items() if v},
            date=time.strftime("%Y-%m-%d"),
        )

    def lines(self) -> list[str]:
        versions = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        return [
            f"{self.date}; {self.processor}, {self.cores} cores, {self.memory_gib:g} GiB; accelerator: {self.accelerator}",
            f"{self.threads} torch thread(s), {self.load:g} programs busy at the start; {self.system}, Python {self.python}",
            versions,
        ]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def peak_memory_gib(device: str | torch.device) -> dict[str, float]:
    """Largest memory so far of this process, and of the CUDA device where it is one."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    if torch.device(device).type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated() / 2**30
    return peak


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gib() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return 0.0
