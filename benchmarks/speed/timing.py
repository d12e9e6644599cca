"""Fair timing on a busy machine: competitors take turns, and time is that of the processor or of the device."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Ratio:
    """How many times as long one takes as the other, by round. With 6 rounds or more the smallest and the
    largest enclose the true median with at least 95 % probability (order statistics)."""

    median: float
    low: float
    high: float
    rounds: int


def race(runners: Mapping[str, Callable[[], object]], *, rounds: int, device: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each runner in each round, after one round that is not counted.

    On the CPU: processor time of this process, which other processes do not add to. Elsewhere: wall-clock time
    until the device is done.
    """
    for run in runners.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            seconds[name].append(stopwatch(run, device))
    return seconds


def stopwatch(run: Callable[[], object], device: str = "cpu") -> float:
    """Seconds of one call, in the clock of :func:`race`."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


@contextmanager
def timed(
    phases: Mapping[str, Sequence[tuple[Any, str]]], clock: Callable[[], float] = time.process_time
) -> Iterator[dict[str, float]]:
    """Seconds spent in methods, added up by phase, while the block runs.

    phases: name -> (object, name of its method); each is replaced on the object and put back.
    """
    seconds = dict.fromkeys(phases, 0.0)

    def watched(phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            start = clock()
            try:
                return method(*arguments, **keywords)
            finally:
                seconds[phase] += clock() - start

        return call

    places = [(phase, owner, name) for phase, methods in phases.items() for owner, name in methods]
    for phase, owner, name in places:
        setattr(owner, name, watched(phase, getattr(owner, name)))
    try:
        yield seconds
    finally:
        for _, owner, name in places:
            delattr(owner, name)


def ratio(slow: list[float], fast: list[float]) -> Ratio:
    """Compare two runners of a race round by round, so that what slows both down cancels."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), len(ratios))


def device_name(device: str) -> str:
    """The GPU, or the processor model with the number of threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' if threads > 1 else ''}"
