"""What happens around the updates: evaluation, checkpoints, schedules, logs and progress."""

import datetime
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TextIO

import torch
from torch import nn

from decisionrl import checkpoint, distributed, run, seeding
from decisionrl.files import sync
from decisionrl.modes import evaluating

if TYPE_CHECKING:
    import rich.progress
    from torch.utils.tensorboard import SummaryWriter

    from decisionrl.trainer import Trainer

Mode = Literal["min", "max"]


class Callback:
    """Something the Trainer calls; every method does nothing unless overridden.

    Attributes:
        name: identifies the callback's state in a checkpoint; unique among a trainer's callbacks.
        priority: lower ones are called earlier. Schedules are at 0, evaluation at 10, what reads evaluations
            at 20, logs at 30, and the checkpoint, which must see all that a step changed, at 100.
    """

    name: str = "callback"
    priority: int = 20

    def attach(self, trainer: "Trainer") -> None:
        """Once, when the trainer is made, before any state is loaded: begin afresh."""

    def on_start(self, trainer: "Trainer") -> None:
        """At the start of every ``fit``, after any state was loaded."""

    def on_step(self, trainer: "Trainer") -> None:
        """After every update."""

    def on_end(self, trainer: "Trainer") -> None:
        """At the end of a ``fit`` that did not fail: the target is reached, or something asked to stop."""

    def close(self) -> None:
        """At the very end of every ``fit``, failed or not: release files and the terminal."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Continue from a ``state_dict``."""


class Evaluate(Callback):
    """Measures the policy every so many steps.

    The policy is in evaluation mode and without gradients meanwhile, and the global random generators are
    left as they were, so that evaluating more often does not change the training.

    Args:
        function: measures a policy. In a run of several processes the main one's values count.
        every: after how many steps.
        name: values are reported as ``name/key``.
        policy: what to evaluate; by default the learner's. For averaged weights: ``learner.ema_policy``.
        keep_best: the value, such as ``"eval/cost"``, whose best weights go to ``best.safetensors`` in the
            run's directory.
        mode: whether the best is the smallest or the largest.

    Attributes:
        best: the best value so far; None before the first.
        best_step: the step it was reached at.
    """

    priority = 10

    def __init__(
        self,
        function: Callable[[Any], Mapping[str, float]],
        every: int,
        *,
        name: str = "eval",
        policy: nn.Module | None = None,
        keep_best: str | None = None,
        mode: Mode = "min",
    ) -> None:
        self.name = name
        self.best: float | None = None
        self.best_step: int | None = None
        self._function = function
        self._every = _positive(every, "every")
        self._policy = policy
        self._keep_best = keep_best
        self._mode = mode

    def attach(self, trainer: "Trainer") -> None:
        self.best = self.best_step = None
        if self._keep_best is not None and trainer.out is None:
            raise ValueError("keep_best needs a Trainer with out, the directory to keep the weights in")

    def on_step(self, trainer: "Trainer") -> None:
        if not trainer.due(self._every):
            return
        policy = trainer.policy if self._policy is None else self._policy
        with torch.no_grad(), seeding.random_state_kept(), evaluating(policy):
            measured = self._function(policy)
        values = {f"{self.name}/{key}": float(value) for key, value in measured.items()}
        values = distributed.from_main(values, trainer.device)
        trainer.record(values)
        if self._keep_best is not None:
            self._keep(values, policy, trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.best, self.best_step = state["best"], state["best_step"]

    def _keep(self, values: Mapping[str, float], policy: nn.Module, trainer: "Trainer") -> None:
        assert self._keep_best is not None
        assert trainer.out is not None
        if self._keep_best not in values:
            raise ValueError(f"keep_best={self._keep_best!r} is not among the values {sorted(values)}")
        value = values[self._keep_best]
        if not _better(value, self.best, self._mode):
            return
        self.best, self.best_step = value, trainer.step
        if distributed.is_main():
            about = {"step": str(trainer.step), self._keep_best: repr(value)}
            checkpoint.save_weights(policy, trainer.out / "best.safetensors", about)


class EarlyStopping(Callback):
    """Stops when a value has not improved for a while.

    Args:
        monitor: an evaluated value, such as ``"eval/cost"``, or a metric of the learner.
        patience: how many times in a row it may be seen without improving.
        mode: whether smaller or larger is better.
        min_delta: by how much it must improve to count.
    """

    priority = 20

    def __init__(self, monitor: str, patience: int, *, mode: Mode = "min", min_delta: float = 0.0) -> None:
        if min_delta < 0:
            raise ValueError(f"min_delta is {min_delta}; it must not be negative")
        self.name = f"early_stopping({monitor})"
        self._monitor = monitor
        self._patience = _positive(patience, "patience")
        self._mode = mode
        self._min_delta = min_delta
        self._best: float | None = None
        self._waited = 0

    def attach(self, trainer: "Trainer") -> None:
        self._best, self._waited = None, 0
        self._evaluated = any(
            isinstance(other, Evaluate) and self._monitor.startswith(f"{other.name}/") for other in trainer.callbacks
        )

    def on_start(self, trainer: "Trainer") -> None:
        self._stop_if_over(trainer)

    def on_step(self, trainer: "Trainer") -> None:
        value = trainer.recorded.get(self._monitor)
        if value is None and not self._evaluated:
            if self._monitor not in trainer.metrics:
                raise ValueError(
                    f"monitor={self._monitor!r} is neither evaluated nor among the metrics {sorted(trainer.metrics)}"
                )
            value = float(trainer.metrics[self._monitor])
        if value is None:
            return
        if _better(value, self._best, self._mode, self._min_delta):
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        self._stop_if_over(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._best, self._waited = state["best"], state["waited"]

    def _stop_if_over(self, trainer: "Trainer") -> None:
        if self._waited >= self._patience:
            trainer.stop(f"{self._monitor} has not improved on {self._best} for {self._waited} evaluations")


class LearningRateSchedule(Callback):
    """Steps a torch learning-rate scheduler after every update and reports ``learning_rate``.

    Args:
        factory: makes the scheduler: ``lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=500)``. It
            counts updates, not the source's steps.
    """

    name = "learning_rate"
    priority = 0

    def __init__(self, factory: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]) -> None:
        self._factory = factory

    def attach(self, trainer: "Trainer") -> None:
        optimizer = getattr(trainer.learner, "optimizer", None)
        if optimizer is None:
            raise TypeError(
                f"a LearningRateSchedule needs a learner with an optimizer, not a {type(trainer.learner).__name__}"
            )
        self._scheduler = self._factory(optimizer)

    def on_step(self, trainer: "Trainer") -> None:
        self._scheduler.step()
        trainer.metrics["learning_rate"] = float(self._scheduler.get_last_lr()[0])

    def state_dict(self) -> dict[str, Any]:
        return self._scheduler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._scheduler.load_state_dict(dict(state))


class OnProgress(Callback):
    """Tells functions how far the training is, from 0 to 1 as a share of the target: for linear schedules.

    Args:
        functions: each is called with the progress, at the start and after every update.
    """

    name = "on_progress"
    priority = 0

    def __init__(self, *functions: Callable[[float], None]) -> None:
        self._functions = functions

    def on_start(self, trainer: "Trainer") -> None:
        self.on_step(trainer)

    def on_step(self, trainer: "Trainer") -> None:
        progress = min(trainer.step / trainer.target, 1.0) if trainer.target else 1.0
        for function in self._functions:
            function(progress)


class Checkpoint(Callback):
    """Saves the whole state of the run every so many steps, and at the end.

    Args:
        every: after how many steps.
        keep: how many of the newest checkpoints to keep.
    """

    name = "checkpoint"
    priority = 100

    def __init__(self, every: int, *, keep: int = 2) -> None:
        self._every = _positive(every, "every")
        self._keep = _positive(keep, "keep")

    def attach(self, trainer: "Trainer") -> None:
        if trainer.out is None:
            raise ValueError("Checkpoint needs a Trainer with out, the directory of the run")
        self._directory = trainer.out / run.CHECKPOINTS

    def on_start(self, trainer: "Trainer") -> None:
        if distributed.is_main():
            checkpoint.remove_partial(self._directory)

    def on_step(self, trainer: "Trainer") -> None:
        if trainer.due(self._every):
            self._save(trainer)

    def on_end(self, trainer: "Trainer") -> None:
        if checkpoint.steps(self._directory)[-1:] != [trainer.step]:
            self._save(trainer)

    def _save(self, trainer: "Trainer") -> None:
        checkpoint.save_step(self._directory, trainer.step, trainer.state_dict(), keep=self._keep)


class JsonlMetrics(Callback):
    """Writes ``metrics.jsonl``: one line ``{"step", "seconds", name: value, ...}`` every so many steps.

    A step with evaluated values has a line always. A value that is not finite is ``null``. A resumed run
    first cuts the file back to where it was at the checkpoint, so that no line is missing or there twice.
    """

    name = "metrics"
    priority = 30

    def __init__(self, every: int = 100) -> None:
        self._every = _positive(every, "every")
        self._file: BinaryIO | None = None
        self._size = 0

    def attach(self, trainer: "Trainer") -> None:
        if trainer.out is None:
            raise ValueError("JsonlMetrics needs a Trainer with out, the directory of the run")
        self._path = trainer.out / "metrics.jsonl"
        self._size = 0

    def on_start(self, trainer: "Trainer") -> None:
        if not distributed.is_main():
            return
        self._path.touch()
        present = self._path.stat().st_size
        if present < self._size:
            raise run.RunError(f"{self._path} has {present} bytes; it had {self._size} when the checkpoint was written")
        self._file = self._path.open("r+b")
        self._file.truncate(self._size)
        self._file.seek(self._size)

    def on_step(self, trainer: "Trainer") -> None:
        if self._file is None or not (trainer.recorded or trainer.due(self._every)):
            return
        values = {name: float(value) for name, value in trainer.metrics.items()} | trainer.recorded
        line: dict[str, float | None] = {"step": trainer.step, "seconds": round(trainer.seconds, 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._size = self._file.tell()
            self._file.close()
            self._file = None

    def state_dict(self) -> dict[str, Any]:
        if self._file is not None:
            sync(self._path)
            self._size = self._file.tell()
        return {"size": self._size}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._size = state["size"]


class TensorBoard(Callback):
    """Writes the metrics to ``tensorboard/`` in the run's directory, for ``tensorboard --logdir``.

    A resumed run has the events after its checkpoint purged.
    """

    name = "tensorboard"
    priority = 30

    def __init__(self, every: int = 100) -> None:
        self._every = _positive(every, "every")
        self._writer: SummaryWriter | None = None

    def attach(self, trainer: "Trainer") -> None:
        if trainer.out is None:
            raise ValueError("TensorBoard needs a Trainer with out, the directory of the run")
        self._directory = trainer.out / "tensorboard"

    def on_start(self, trainer: "Trainer") -> None:
        if distributed.is_main():
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._directory, purge_step=trainer.step + 1)

    def on_step(self, trainer: "Trainer") -> None:
        if self._writer is None or not (trainer.recorded or trainer.due(self._every)):
            return
        for name, value in {**trainer.metrics, **trainer.recorded}.items():
            self._writer.add_scalar(name, float(value), trainer.step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Progress(Callback):
    """Shows steps, steps per second, time left and metrics: a bar on a terminal, else a line now and then.

    Args:
        show: the learner's metrics to show; evaluated values are shown always.
        interval: seconds between lines where the output is not a terminal.
        file: where to write; by default the standard error stream.
    """

    name = "progress"
    priority = 40

    def __init__(self, *, show: Sequence[str] = ("loss",), interval: float = 10.0, file: TextIO | None = None) -> None:
        self._show = tuple(show)
        self._interval = interval
        self._file = file
        self._bar: rich.progress.Progress | None = None

    def on_start(self, trainer: "Trainer") -> None:
        self._active = distributed.is_main()
        if not self._active:
            return
        import rich.console
        import rich.progress

        self._evaluated: dict[str, float] = {}
        self._first_step, self._first_time = trainer.step, time.monotonic()
        console = rich.console.Console(file=self._file or sys.stderr)
        if console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.BarColumn(),
                rich.progress.TextColumn("{task.description}", markup=False),
                console=console,
            )
            self._task = self._bar.add_task("", total=trainer.target, completed=trainer.step)
            self._bar.start()
        self._pause = self._interval if self._bar is None else 0.2
        self._next = self._first_time + self._pause

    def on_step(self, trainer: "Trainer") -> None:
        if not self._active:
            return
        if trainer.recorded:
            self._evaluated |= trainer.recorded
        if time.monotonic() >= self._next:
            self._write(trainer)
            self._next = time.monotonic() + self._pause

    def on_end(self, trainer: "Trainer") -> None:
        if self._active:
            self._write(trainer)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _write(self, trainer: "Trainer") -> None:
        status = self._status(trainer)
        if self._bar is None:
            print(status, file=self._file or sys.stderr, flush=True)
        else:
            self._bar.update(self._task, completed=trainer.step, description=status)

    def _status(self, trainer: "Trainer") -> str:
        """``step 1200/10000 (12%)  345.2 steps/s  eta 0:00:26  loss 0.123``."""
        rate = (trainer.step - self._first_step) / max(time.monotonic() - self._first_time, 1e-9)
        left = max(trainer.target - trainer.step, 0)
        eta = str(datetime.timedelta(seconds=round(left / rate))) if rate else "unknown"
        shown = {name: float(trainer.metrics[name]) for name in self._show if name in trainer.metrics}
        shown |= self._evaluated
        share = min(trainer.step / trainer.target, 1.0) if trainer.target else 1.0
        parts = [
            f"step {trainer.step}/{trainer.target} ({share:.0%})",
            f"{rate:.1f} steps/s",
            f"eta {eta}",
            *(f"{name} {value:.4g}" for name, value in shown.items()),
        ]
        return "  ".join(parts)


def _positive(value: int, field: str) -> int:
    if value < 1:
        raise ValueError(f"{field} is {value}; it must be at least 1")
    return value


def _better(value: float, best: float | None, mode: Mode, min_delta: float = 0.0) -> bool:
    """Whether a value improves on the best so far; a NaN never does."""
    if best is None:
        return not math.isnan(value)
    return value < best - min_delta if mode == "min" else value > best + min_delta
