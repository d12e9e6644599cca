"""How the cases of a suite are carried out: in this process, in worker processes, or as Ray tasks.

An executor is a function `execute(tasks, emit)`: it runs every task, calls `emit` in the calling process with
what happens, and returns when all are done. A task that fails is an event, not an exception.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from decisionrl.evaluation.results import Better, ReferenceKind
from decisionrl.evaluation.series import Series
from decisionrl.evaluation.statistics import Estimate

Progress = Callable[[float, str], None]
"""Live feedback of a running case: `progress(fraction done, message)`."""

_PROGRESS_INTERVAL = 0.1  # seconds between two messages of one worker


@dataclass(frozen=True)
class CaseContext:
    """What a case is given: `directory` is its own, and still holds what an interrupted run left there."""

    profile: str
    seed: int
    device: str
    data: Path | None
    directory: Path
    progress: Progress


@dataclass(frozen=True)
class Measurement:
    """One number a case measured: an `Estimate`, or a plain number where no interval is known."""

    metric: str
    estimate: Estimate | float
    reference: float | None = None
    reference_kind: ReferenceKind = "none"
    better: Better = "lower"


@dataclass(frozen=True)
class CaseResult:
    """What a case returns. The first row is the main metric of the case, the one its gap is judged by."""

    rows: Sequence[Measurement]
    series: Series = field(default_factory=Series)


CaseFunction = Callable[[CaseContext], CaseResult]


@dataclass(frozen=True)
class Task:
    """One case with one method and one seed."""

    case: str
    method: str
    seed: int
    run: CaseFunction
    config_hash: str
    cost: float
    profile: str
    device: str
    data: Path | None
    directory: Path

    @property
    def stem(self) -> str:
        """The name of this task's files."""
        return f"{self.case}--{self.method}-{self.seed}"

    @property
    def title(self) -> str:
        """The name of this task for people."""
        return f"{self.case}/{self.method} seed {self.seed}"


@dataclass(frozen=True)
class Started:
    """A task begins."""

    task: Task


@dataclass(frozen=True)
class Progressed:
    """A running task says how far it is."""

    task: Task
    fraction: float
    message: str


@dataclass(frozen=True)
class Finished:
    """A task has ended, with a result or with the text of its error."""

    task: Task
    seconds: float
    result: CaseResult | None = None
    error: str | None = None


Event = Started | Progressed | Finished
Emit = Callable[[Event], None]
Executor = Callable[[Sequence[Task], Emit], None]


def carry_out(task: Task, progress: Progress) -> Finished:
    """Run one task here; an exception becomes the text of its traceback."""
    start = time.perf_counter()
    torch.manual_seed(task.seed)
    try:
        task.directory.mkdir(parents=True, exist_ok=True)
        result = task.run(CaseContext(task.profile, task.seed, task.device, task.data, task.directory, progress))
        if not isinstance(result, CaseResult) or not result.rows:
            raise TypeError(f"{task.title} must return a CaseResult with at least one row, got {result!r}")
    except Exception:
        return Finished(task, time.perf_counter() - start, error=traceback.format_exc())
    return Finished(task, time.perf_counter() - start, result)


def in_this_process(tasks: Sequence[Task], emit: Emit) -> None:
    """One task after the other."""
    for task in tasks:
        emit(Started(task))
        emit(carry_out(task, lambda fraction, message, task=task: emit(Progressed(task, fraction, message))))  # type: ignore[misc]


def in_processes(jobs: int) -> Executor:
    """An executor with `jobs` worker processes that share the cores evenly.

    A worker that dies (out of memory, a crash in native code) costs its own task only.
    """

    def execute(tasks: Sequence[Task], emit: Emit) -> None:
        pending = deque(tasks)
        workers: dict[Connection, _Worker] = {}
        try:
            while pending or any(worker.task for worker in workers.values()):
                while pending and sum(worker.task is not None for worker in workers.values()) < jobs:
                    _hand_out(pending.popleft(), workers, max(1, usable_cores() // jobs), emit)
                for ready in wait([link for link, worker in workers.items() if worker.task]):
                    _receive(ready, workers, emit)  # type: ignore[arg-type]
            for link in workers:
                with contextlib.suppress(OSError):
                    link.send(None)
            for worker in workers.values():
                worker.process.join(timeout=5)
        finally:
            for worker in workers.values():
                _stop(worker.process)

    return execute


def on_ray(address: str) -> Executor:
    """An executor that runs every task on a Ray cluster, which must share the file system of the output.

    Raises:
        ImportError: the `ray` extra is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("running on a Ray cluster needs the extra: pip install 'decisionrl[ray]'") from error

    def execute(tasks: Sequence[Task], emit: Emit) -> None:
        ray.init(address=address, ignore_reinit_error=True)
        running: dict[Any, Task] = {}
        try:
            for task in tasks:
                remote = ray.remote(carry_out).options(num_gpus=1 if task.device.startswith("cuda") else 0)
                running[remote.remote(task, _silent)] = task
                emit(Started(task))
            while running:
                (reference,), _ = ray.wait(list(running), num_returns=1)
                task = running.pop(reference)
                try:
                    emit(ray.get(reference))
                except ray.exceptions.RayError as error:
                    emit(Finished(task, 0.0, error=str(error)))
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    return execute


def usable_cores() -> int:
    """The number of processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Worker:
    process: SpawnProcess
    task: Task | None
    since: float


def _hand_out(task: Task, workers: dict[Connection, _Worker], threads: int, emit: Emit) -> None:
    """Send a task to an idle worker, or to a new one."""
    emit(Started(task))
    link = next((link for link, worker in workers.items() if worker.task is None and worker.process.is_alive()), None)
    if link is None:
        context = multiprocessing.get_context("spawn")
        link, far_end = context.Pipe()
        process = context.Process(target=_work, args=(far_end, threads), name="decisionrl-worker")
        process.start()
        far_end.close()  # so that the death of the worker reads as the end of the stream
        workers[link] = _Worker(process, None, 0.0)
    try:
        link.send(task)
    except (pickle.PicklingError, AttributeError, TypeError):
        note = (
            f"{task.title}: run must be picklable: a module-level function, a functools.partial of one, or a "
            "frozen dataclass with __call__\n"
        )
        emit(Finished(task, 0.0, error=note + traceback.format_exc()))
    else:
        workers[link].task, workers[link].since = task, time.perf_counter()


def _receive(link: Connection, workers: dict[Connection, _Worker], emit: Emit) -> None:
    """Pass on one message of a worker; a broken stream means that it died."""
    worker = workers[link]
    assert worker.task is not None
    try:
        message = link.recv()
    except (EOFError, OSError):
        worker.process.join()
        del workers[link]
        seconds, code = time.perf_counter() - worker.since, worker.process.exitcode
        emit(
            Finished(
                worker.task,
                seconds,
                error=f"{worker.task.title}: its worker process died with exit code {code}\n",
            )
        )
        return
    if isinstance(message, Finished):
        worker.task = None
    emit(message)


def _work(link: Connection, threads: int) -> None:
    """The life of a worker: tasks in, events out, until None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    while (task := link.recv()) is not None:
        finished = carry_out(task, _throttled(link, task))
        try:
            link.send(finished)
        except (pickle.PicklingError, AttributeError, TypeError):
            error = f"{task.title}: its result cannot be pickled\n{traceback.format_exc()}"
            link.send(Finished(task, finished.seconds, error=error))


def _throttled(link: Connection, task: Task) -> Progress:
    """Progress over the pipe, at most every tenth of a second."""
    last = -_PROGRESS_INTERVAL

    def progress(fraction: float, message: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_INTERVAL:
            last = now
            link.send(Progressed(task, fraction, message))

    return progress


def _silent(fraction: float, message: str) -> None:
    """Progress that nobody watches."""


def _end_with_parent() -> None:
    """End this worker at once when its parent is gone, even when that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _stop(process: SpawnProcess) -> None:
    process.terminate()
    process.join(timeout=3)
    if process.is_alive():
        process.kill()
        process.join()
