"""How fast PPO trains beside Stable-Baselines3's: ``python -m decisionrl.benchmarks.speed.control``.

Both have the same hyperparameters, network and environments and one thread. They take turns in one process: a round is
one whole training of each, from the round's own seed; making the environments and the networks is not counted.

Rows (suite "speed-control"), case by case, for the methods "ppo" and "sb3_ppo":

- ``steps_per_second``: environment steps by wall-clock time, the median of the rounds with the smallest and largest;
  ``cpu_steps_per_second`` by processor time, which other processes on the machine do not add to.
- ``wall_ratio``, ``cpu_ratio``: our seconds over theirs, round by round; reference = the target, kind "peer".
- ``return_of_training``: mean of the last 100 training episodes, for a look at whether both learn.
- ``seconds_environment``, ``seconds_policy``, ``seconds_evaluation``, ``seconds_update``, ``seconds_other``: where the
  time of one more training goes (``n`` steps): stepping and resetting environments, choosing actions, all else that
  turns steps into advantages, optimizer steps, the rest. Processor time on the CPU; elsewhere wall-clock time, charged
  to where the processor waits for the device.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decisionrl.benchmarks.control_peer import PEER, peer, train_peer
from decisionrl.benchmarks.control_training import Record, train
from decisionrl.benchmarks.speed.report import Report, command_line
from decisionrl.benchmarks.speed.timing import ratio, timed
from decisionrl.experience.rollouts import RolloutSource
from decisionrl.recipes.ppo import ppo

SUITE = "speed-control"
OURS = "ppo"


@dataclass(frozen=True)
class Contest:
    """A training to race. target: what our seconds over theirs should be at most."""

    name: str
    arguments: Mapping[str, Any]
    steps: int
    target: float


@dataclass(frozen=True)
class Profile:
    rounds: int
    contests: Sequence[Contest]


DEFAULTS = {"num_envs": 8, "horizon": 2048, "normalize_observations": False, "normalize_rewards": False}
"""Stable-Baselines3's own settings, with 8 environments, where ours has a preset."""


def contests(*, cartpole: int, half_cheetah: int) -> tuple[Contest, ...]:
    """CartPole with its preset, HalfCheetah with the defaults of Stable-Baselines3, 8 environments each."""
    return (
        Contest("cartpole-8", {"env": "CartPole-v1"}, cartpole, 0.6),
        Contest("half_cheetah-8", {"env": "HalfCheetah-v5", **DEFAULTS}, half_cheetah, 0.7),
    )


FULL = Profile(6, contests(cartpole=100_000, half_cheetah=65_536))
QUICK = Profile(3, contests(cartpole=25_600, half_cheetah=32_768))


@dataclass(frozen=True)
class Training:
    """A training that is ready to begin, and the methods whose time is that of a phase; "collect" holds others."""

    run: Callable[[], Record]
    phases: Mapping[str, Sequence[tuple[Any, str]]]


def prepare_ours(contest: Contest, *, seed: int, device: str) -> Training:
    """Our recipe."""
    experiment = ppo(**{**contest.arguments, "steps": contest.steps, "seed": seed, "device": device})
    source, policy = experiment.source, experiment.policy
    assert isinstance(source, RolloutSource)
    return Training(
        run=lambda: train(experiment, contest.steps, _silent),
        phases={
            "environment": [(source.world, "step"), (source.world, "restart")],
            "policy": [(policy, "act"), (policy, "sample_noise")],
            "collect": [(source, "sample"), (source, "observe")],
            "update": [(experiment.learner, "update")],
        },
    )


def prepare_theirs(contest: Contest, *, seed: int, device: str) -> Training:
    """Stable-Baselines3 with the recipe's resolved arguments."""
    config = ppo(**{**contest.arguments, "steps": contest.steps, "seed": seed}).config
    model = peer(config, device=device)
    return Training(
        run=lambda: train_peer(model, contest.steps, _silent),
        phases={
            "environment": [(model.env, "step")],
            "policy": [(model.policy, "forward")],
            "collect": [(model, "collect_rollouts")],
            "update": [(model, "train")],
        },
    )


PREPARE = {OURS: prepare_ours, PEER: prepare_theirs}


def measure(report: Report, contest: Contest, *, rounds: int, device: str) -> None:
    """All rows of one contest."""
    records: dict[str, list[Record]] = {method: [] for method in PREPARE}
    for seed in range(rounds):
        for method, prepare in PREPARE.items():
            records[method].append(prepare(contest, seed=seed, device=device).run())
    for method, own in records.items():
        report.rounds(contest.name, method, "steps_per_second", [r.steps / r.clock.wall for r in own], higher=True)
        report.rounds(contest.name, method, "cpu_steps_per_second", [r.steps / r.clock.cpu for r in own], higher=True)
        returns = [r.last for r in own if r.at]
        if returns:
            report.rounds(contest.name, method, "return_of_training", returns, higher=True)
    for clock in ("wall", "cpu"):
        ours, theirs = ([getattr(r.clock, clock) for r in records[method]] for method in (OURS, PEER))
        r = ratio(ours, theirs)
        limits = {"low": r.low, "high": r.high, "n": r.rounds}
        report.add(contest.name, OURS, f"{clock}_ratio", r.median, target=contest.target, **limits)  # type: ignore[arg-type]
    for method, prepare in PREPARE.items():
        record, seconds = by_phase(prepare(contest, seed=rounds, device=device), device=device)
        for phase, value in seconds.items():
            report.add(contest.name, method, f"seconds_{phase}", value, n=record.steps)


def by_phase(training: Training, *, device: str) -> tuple[Record, dict[str, float]]:
    """Run a training and say where its seconds went."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    with timed(training.phases, clock) as spent:
        start = clock()
        record = training.run()
        total = clock() - start
    seconds = {
        "environment": spent["environment"],
        "policy": spent["policy"],
        "evaluation": spent["collect"] - spent["environment"] - spent["policy"],
        "update": spent["update"],
    }
    return record, {**seconds, "other": total - sum(seconds.values())}


def _silent(fraction: float, message: str) -> None:
    """Progress that nobody watches."""


def main(arguments: list[str] | None = None) -> None:
    """The command line."""

    def measured(report: Report, quick: bool, device: str) -> None:
        run(report, QUICK if quick else FULL, device=device)

    command_line(SUITE, __doc__, measured, arguments)


def run(report: Report, profile: Profile, *, device: str) -> None:
    """Every contest, after a short training of both that is not counted."""
    for contest in profile.contests:
        for prepare in PREPARE.values():
            prepare(dataclasses.replace(contest, steps=1), seed=0, device=device).run()
        measure(report, contest, rounds=profile.rounds, device=device)


if __name__ == "__main__":
    main()
