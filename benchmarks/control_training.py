"""Training as the control suite measures it: one thread, clocks that stop while something is measured, a curve."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from decisionrl.benchmarks.executors import Measurement, Progress
from decisionrl.callbacks import Callback
from decisionrl.evaluation.series import Curve
from decisionrl.experiment import Experiment
from decisionrl.trainer import Trainer

TRAINING_SHARE = 0.95
"""Of a case's progress."""

RECENT = 100
"""Training episodes whose mean return is the curve, here and in Stable-Baselines3."""

CURVE_POINTS = 120

RETURN_LABEL = "return of training"
STEPS_LABEL = "environment steps"
WALL_TIME = "wall_time"


class Clock:
    """Wall and processor seconds of this process while it runs."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self._since = (0.0, 0.0)

    def start(self) -> None:
        self._since = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        wall, cpu = self._since
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu


@dataclass
class Record:
    """What a training went through: a value at some of its steps, metrics of every update, and what it took."""

    clock: Clock = field(default_factory=Clock)
    at: list[tuple[int, float, float]] = field(default_factory=list)  # steps, wall seconds, value
    kept: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0

    def add(self, steps: int, value: float) -> None:
        """Keep a value reached now; the clock must stand still."""
        self.at.append((steps, self.clock.wall, value))

    @property
    def last(self) -> float:
        """The value at the end."""
        return self.at[-1][2]

    def steps_to(self, threshold: float) -> int | None:
        """The first step at which the value was as large; None if it never was."""
        return next((steps for steps, _, value in self.at if value >= threshold), None)

    def curves(
        self, y_label: str, *, reference: float | None = None, target: float | None = None
    ) -> tuple[Curve, Curve]:
        """Over steps and over wall seconds, in at most about ``CURVE_POINTS`` points."""
        stride = max(1, len(self.at) // CURVE_POINTS)
        kept = self.at[::-stride][::-1]
        steps, seconds, values = (list(each) for each in zip(*kept, strict=True)) if kept else ([], [], [])
        return (
            Curve(x_label=STEPS_LABEL, y_label=y_label, x=steps, y=values, reference=reference, target=target),
            Curve(x_label="seconds", y_label=y_label, x=seconds, y=values, reference=reference, target=target),
        )

    def costs(self) -> list[Measurement]:
        """What the training took, as rows."""
        return [
            Measurement("wall_seconds", self.clock.wall),
            Measurement("cpu_seconds", self.clock.cpu),
            Measurement("steps_per_second", self.steps / self.clock.wall, better="higher"),
        ]


def train(
    experiment: Experiment,
    steps: int,
    progress: Progress,
    *,
    scale: int = 1,
    points: int | None = None,
    measure: Callable[[nn.Module], float] | None = None,
    keep: Sequence[str] = (),
) -> Record:
    """Train for so many of the Trainer's steps.

    measure: what the record holds, taken at ``points`` of the training with the clock stopped; by default the mean
    return of the last 100 training episodes, after every update. scale: environment steps in one of the Trainer's.
    keep: metrics whose values are kept, if there are such.
    """
    record = Record(kept={name: [] for name in keep})
    Trainer(experiment, callbacks=[_Watch(record, progress, steps, scale, points, measure)]).fit(steps)
    return record


class _Watch(Callback):
    name = "watch"
    priority = 90

    def __init__(
        self,
        record: Record,
        progress: Progress,
        steps: int,
        scale: int,
        points: int | None,
        measure: Callable[[nn.Module], float] | None,
    ) -> None:
        self._record, self._progress, self._steps, self._scale, self._measure = record, progress, steps, scale, measure
        self._every = 1 if points is None else max(1, steps // points)

    def on_start(self, trainer: Trainer) -> None:
        self._record.clock.start()

    def on_step(self, trainer: Trainer) -> None:
        record = self._record
        record.clock.stop()
        record.steps = trainer.step * self._scale
        for name, values in record.kept.items():
            if name in trainer.metrics:
                values.append(float(trainer.metrics[name]))
        done = trainer.step >= self._steps
        if self._measure is None:
            value = trainer.metrics.get("episode_return")
            if value is not None:
                record.add(record.steps, float(value))
        elif done or trainer.due(self._every):
            with torch.no_grad():
                record.add(record.steps, self._measure(trainer.policy))
        self._progress(TRAINING_SHARE * min(1.0, trainer.step / self._steps), f"step {record.steps}")
        record.clock.start()

    def on_end(self, trainer: Trainer) -> None:
        self._record.clock.stop()


@contextmanager
def one_thread() -> Iterator[None]:
    """Small networks are fastest on one thread, and every method then has as many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
