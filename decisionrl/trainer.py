"""The training loop: the only one."""

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from decisionrl import checkpoint, distributed, run, seeding
from decisionrl.experience.source import Source
from decisionrl.experiment import Experiment
from decisionrl.learner import Learner, NonFiniteError

if TYPE_CHECKING:
    from decisionrl.callbacks import Callback


class Trainer:
    """Samples, updates, observes and calls back, until ``fit``'s number of steps is reached.

    With ``out``, the run has a directory: its config, seed and versions, and whatever the callbacks write.
    With ``resume=True`` it continues from the newest checkpoint there, to the result an uninterrupted run
    would have had, bit for bit on the CPU with the same number of threads; where nothing was saved yet it
    starts anew. So a job that may be killed at any time passes ``resume=True`` always.

    Args:
        learner: an Experiment, or a Learner together with ``source``.
        source: yields the batches; only with a Learner.
        callbacks: called after every step, in the order of their ``priority``.
        out: the run's directory.
        seed: seeds the global random generators, for dropout and the like; None leaves them as they are.
        resume: continue the run in ``out``.

    Attributes:
        step: steps done, in the source's unit.
        previous_step: ``step`` before the last update.
        target: the number of steps asked of the current ``fit``.
        seconds: time spent in ``fit``, over all the run's processes.
        metrics: the last update's metrics, and what callbacks add to them.
        recorded: what callbacks such as Evaluate reported at this step.
    """

    @overload
    def __init__(
        self,
        learner: Experiment,
        source: None = None,
        *,
        callbacks: Sequence["Callback"] = (),
        out: Path | str | None = None,
        seed: int | None = None,
        resume: bool = False,
    ) -> None: ...

    @overload
    def __init__(
        self,
        learner: Learner,
        source: Source,
        *,
        callbacks: Sequence["Callback"] = (),
        out: Path | str | None = None,
        seed: int | None = None,
        resume: bool = False,
    ) -> None: ...

    def __init__(
        self,
        learner: Learner | Experiment,
        source: Source | None = None,
        *,
        callbacks: Sequence["Callback"] = (),
        out: Path | str | None = None,
        seed: int | None = None,
        resume: bool = False,
    ) -> None:
        config: Mapping[str, Any] = {}
        if isinstance(learner, Experiment):
            if source is not None:
                raise ValueError("source: an Experiment has its own")
            config, source = learner.config, learner.source
            callbacks = (*learner.callbacks, *callbacks)
            learner = learner.learner
        if source is None:
            raise ValueError("source: a Learner needs one")
        if resume and out is None:
            raise ValueError("resume=True needs out, the directory of the run")

        self.learner: Learner = learner
        self.source: Source = source
        self.callbacks: tuple[Callback, ...] = tuple(sorted(callbacks, key=lambda c: c.priority))
        self.out = None if out is None else Path(out)
        self.step = 0
        self.previous_step = 0
        self.target = 0
        self.metrics: dict[str, Tensor | float] = {}
        self.recorded: dict[str, float] = {}
        self._stop_reason: str | None = None
        self._signal: int | None = None
        self._seconds = 0.0
        self._started: float | None = None
        names = [callback.name for callback in self.callbacks]
        if len(set(names)) < len(names):
            raise ValueError(f"callbacks: two have the same name among {names}; give one another name")

        if seed is not None:
            seeding.seed_everything(seed)
        if self.out is not None:
            run.open_directory(self.out, config=config, seed=seed, device=str(self.device), resume=resume)
        for callback in self.callbacks:
            callback.attach(self)
        if resume and self.out is not None:
            state = checkpoint.load_newest(self.out / run.CHECKPOINTS)
            if state is not None:
                self.load_state_dict(state)

    @property
    def policy(self) -> nn.Module:
        """The learner's policy."""
        return self.learner.policy

    @property
    def device(self) -> torch.device:
        """Where the policy's weights are."""
        parameter = next(self.policy.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._seconds + running

    def due(self, every: int) -> bool:
        """Whether the last update reached or passed a multiple of ``every`` steps."""
        return self.step // every > self.previous_step // every

    def record(self, values: Mapping[str, float]) -> None:
        """Report values that belong to this step, for the callbacks that come later and write them down."""
        self.recorded.update(values)

    def stop(self, reason: str) -> None:
        """End ``fit`` after the current step."""
        self._stop_reason = reason

    @property
    def stop_reason(self) -> str | None:
        """Why the last ``fit`` ended before its target; None if it did not."""
        return self._stop_reason

    def fit(self, steps: int) -> None:
        """Train until ``steps`` steps are done in total, so that resuming is a ``fit`` with the same number.

        SIGINT (Ctrl-C) and SIGTERM let the current step finish and the callbacks end (a Checkpoint saves),
        then take their usual effect. A second one takes it at once. So does the first in a run of several
        processes, which would receive it at different steps: there the last checkpoint stays.

        Raises:
            NonFiniteError: a loss or gradient was not finite. The last checkpoint stays as it is.
        """
        self.target = steps
        self._stop_reason = self._signal = None
        self._started = time.perf_counter()
        try:
            with self._deferred_signals():
                for callback in self.callbacks:
                    callback.on_start(self)
                self._loop(steps)
                self.learner.state_dict()  # raises if an update failed that was not reported yet
                for callback in self.callbacks:
                    callback.on_end(self)
        except NonFiniteError as error:
            error.add_note(f"the trainer had done {self.step} steps")
            raise
        finally:
            self._seconds, self._started = self.seconds, None
            for callback in self.callbacks:
                callback.close()
        if self._signal is not None:
            number, self._signal = self._signal, None
            signal.raise_signal(number)

    def state_dict(self) -> dict[str, Any]:
        """All that a bit-identical continuation needs."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "learner": self.learner.state_dict(),
            "source": self.source.state_dict(),
            "callbacks": {callback.name: callback.state_dict() for callback in self.callbacks},
            "random": seeding.random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict``. A callback that is new to the run starts afresh."""
        self.step = self.previous_step = state["step"]
        self._seconds = state["seconds"]
        self.learner.load_state_dict(state["learner"])
        self.source.load_state_dict(state["source"])
        for callback in self.callbacks:
            if callback.name in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.name])
        seeding.set_random_state(state["random"])

    def _loop(self, steps: int) -> None:
        learner, source = self.learner, self.source
        hooks = [callback.on_step for callback in self.callbacks]
        while self.step < steps and self._stop_reason is None:
            batch = source.sample()
            update = learner.update(batch)
            source.observe(update)
            self.previous_step = self.step
            self.step += source.steps_per_sample
            self.metrics = {**update.metrics}
            if self.recorded:
                self.recorded = {}
            for hook in hooks:
                hook(self)

    @contextmanager
    def _deferred_signals(self) -> Iterator[None]:
        """Turn the first SIGINT or SIGTERM into a stop after the current step; one that is ignored stays so."""
        if distributed.processes() > 1 or threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        previous = {number: each for number, each in handlers.items() if each not in (signal.SIG_IGN, None)}

        def restore() -> None:
            for number, handler in previous.items():
                signal.signal(number, handler)

        def handle(number: int, _frame: object) -> None:
            restore()
            self._signal = number
            self.stop(signal.Signals(number).name)

        for number in previous:
            signal.signal(number, handle)
        try:
            yield
        finally:
            restore()
