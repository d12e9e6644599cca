"""A small run with every kind of state in it; as a script, a process for the tests to kill.

    python toy_run.py OUT STEPS [file|directory K]

With ``file K`` the process kills itself (SIGKILL) when the K-th checkpoint it writes is to be synced, and has
not got its name yet; with ``directory K`` just after it got it.
"""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from decisionrl import files, run, seeding
from decisionrl.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    Evaluate,
    JsonlMetrics,
    LearningRateSchedule,
)
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner, Loss, Update
from decisionrl.trainer import Trainer

TARGET = torch.tensor([[1.0], [-2.0], [0.5]])


class ContinuingSource:
    """Noisy linear data [8, 3] from its own generator, around a state that the last update handed back."""

    def __init__(self, seed: int, steps_per_sample: int = 1) -> None:
        self.steps_per_sample = steps_per_sample
        self.generator = seeding.generator(seed, "data")
        self.state = torch.zeros(3)

    def sample(self) -> tuple[Tensor, Tensor]:
        x = self.state + torch.randn(8, 3, generator=self.generator)
        return x, x @ TARGET + 0.1 * torch.randn(8, 1, generator=self.generator)

    def observe(self, update: Update, /) -> None:
        self.state = update.carry

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "state": self.state}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.generator.set_state(state["generator"])
        self.state = state["state"]


class Tracker:
    """A component: the running mean of the loss."""

    def __init__(self) -> None:
        self.mean = torch.zeros(())

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.mean = state["mean"]


class TrackedSquaredError:
    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def __call__(self, policy: nn.Module, batch: tuple[Tensor, Tensor], /) -> Loss:
        x, y = batch
        value = (policy(x) - y).square().mean()
        self.tracker.mean = 0.9 * self.tracker.mean + 0.1 * value.detach()
        carry = 0.5 * x.mean(0) + 0.1 * torch.rand(3)  # also draws from the global generator
        return Loss(value, {"tracked": self.tracker.mean}, carry)


def distance(policy: nn.Module) -> dict[str, float]:
    probe = torch.eye(3)
    return {"distance": float((policy(probe) - probe @ TARGET).norm())}


def experiment(steps: int, seed: int = 0) -> Experiment:
    seeding.seed_everything(seed)
    policy = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.1), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))
    tracker = Tracker()
    learner = GradientLearner(
        policy,
        TrackedSquaredError(tracker),
        torch.optim.Adam(policy.parameters(), fused=True),
        clip_norm=1.0,
        ema_decay=0.9,
        components={"tracker": tracker},
    )
    schedule = LearningRateSchedule(lambda optimizer: OneCycleLR(optimizer, 0.02, total_steps=steps + 1))
    config = {"steps": steps, "hidden": 16}
    return Experiment(
        policy=policy, source=ContinuingSource(seed), learner=learner, callbacks=(schedule,), config=config
    )


def train(out: Path, steps: int, *, resume: bool = True, extra: tuple[Callback, ...] = ()) -> Trainer:
    made = experiment(steps)
    callbacks = (
        Evaluate(distance, every=7, keep_best="eval/distance"),
        EarlyStopping("eval/distance", patience=10**6),
        JsonlMetrics(every=1),
        Checkpoint(every=1),
        *extra,
    )
    trainer = Trainer(made, callbacks=callbacks, out=out, seed=1, resume=resume)
    trainer.fit(steps)
    return trainer


class Announce(Callback):
    name = "announce"

    def on_start(self, trainer: Trainer) -> None:
        print("training", flush=True)


class DieAtSync(Callback):
    name = "die"

    def __init__(self, kind: str, count: int) -> None:
        self.kind = kind
        self.left = count

    def on_start(self, trainer: Trainer) -> None:
        sync = files.sync

        def dying(path: Path) -> None:
            is_directory = path.name == run.CHECKPOINTS
            self.left -= is_directory if self.kind == "directory" else path.name.startswith(".step-")
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(path)

        files.sync = dying


if __name__ == "__main__":
    torch.set_num_threads(1)
    dying = (DieAtSync(sys.argv[3], int(sys.argv[4])),) if len(sys.argv) > 3 else ()
    train(Path(sys.argv[1]), int(sys.argv[2]), extra=(Announce(), *dying))
