"""How fast linear MDPs are learned: ``python -m decisionrl.benchmarks.speed.robust``.

The yardstick is ``plain_robust``, one run at a time, whose every episode loops over all past ones. Action values must
agree to 1e-9 on the same episodes before anything is timed.

Rows (suite "speed-robust"), all in the five-state MDP, on one thread, in processor time:

- ``speedup`` of "training-20x100": 20 runs of 100 episodes, one run of the plain loop taken 20 times against 20 at once
  of the library, from building the recipe on. Methods: the recipe, "...-inverting" with a loop that inverts the
  covariance for every Q, as the authors' code does, and "...-200" with 200 runs at once.
- ``speedup`` and ``cpu_seconds`` of "comparison-20x100": LSVI-UCB and DR-LSVI-UCB are trained and their policies
  measured in 21 perturbed worlds; exactly by the library, in 100 episodes of each world by the plain loop.
- ``growth`` of "episodes": what an episode costs at the end of 4,000 over what it costs at the beginning.

``low`` and ``high`` are the smallest and largest round; reference = the target, kind "peer".
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from decisionrl.benchmarks.speed.plain_robust import PlainLeastSquares, Step, play
from decisionrl.benchmarks.speed.timing import Ratio, device_name, race, ratio, stopwatch
from decisionrl.envs.linear_mdp import draw_noise, five_state, five_state_radius, rollout
from decisionrl.evaluation.results import Row, write_results
from decisionrl.recipes import recipe
from decisionrl.robust.dynamic_programming import evaluate
from decisionrl.robust.learners import LeastSquaresLearner
from decisionrl.trainer import Trainer
from decisionrl.version import code_version

SUITE = "speed-robust"
TOLERANCE = 1e-9

RUNS, EPISODES, TEST_EPISODES = 20, 100, 100
SPEEDUP, SECONDS = 300.0, 1.0

MDP = five_state(xi_norm=0.3)
RADIUS = five_state_radius(0.5)
LEVELS = torch.linspace(0, 1, 21, dtype=torch.float64)
METHODS = ("lsvi_ucb", "dr_lsvi_ucb")


@dataclass(frozen=True)
class Profile:
    """How often and how long things are timed."""

    rounds: int
    episodes: int


FULL = Profile(rounds=9, episodes=4_000)
QUICK = Profile(rounds=6, episodes=1_000)


def plain_method(method: str, *, invert_always: bool = False) -> PlainLeastSquares:
    """The recipe's twin."""
    robust = method == "dr_lsvi_ucb"
    assert MDP.fail_state is not None
    return PlainLeastSquares(
        features=MDP.features.numpy(),
        rewards=MDP.rewards.numpy(),
        caps=[3.0, 2.0, 1.0, 0.0],
        fail_state=MDP.fail_state,
        radius=RADIUS.numpy() if robust else None,
        learn_rewards=not robust,
        bonus="d2" if robust else "full",
        invert_always=invert_always,
    )


def noise(episodes: int, seed: int = 0) -> NDArray[np.float64]:
    """Uniforms of as many episodes, [episodes, draws]."""
    drawn: NDArray[np.float64] = draw_noise(
        episodes, MDP.horizon, generator=torch.Generator().manual_seed(seed)
    ).numpy()
    return drawn


def plain_training(method: str, *, invert_always: bool = False, episodes: int = EPISODES) -> PlainLeastSquares:
    """One run of the plain loop."""
    plain = plain_method(method, invert_always=invert_always)
    kernel, initial = MDP.kernel.numpy(), MDP.initial.numpy()
    for uniforms in noise(episodes):
        plain.add(play(plain, kernel, initial, uniforms))
    return plain


def plain_comparison(*, episodes: int = EPISODES, test_episodes: int = TEST_EPISODES) -> NDArray[np.float64]:
    """One run of both methods and their mean returns in the perturbed worlds, [methods, levels]."""
    targets = five_state(xi_norm=0.3, perturbation=LEVELS)
    kernels, initial = targets.kernel.numpy(), targets.initial.numpy()
    trained = [plain_training(method, episodes=episodes) for method in METHODS]
    uniforms = noise(test_episodes, seed=1)
    returns = [
        [np.mean([sum(step[2] for step in play(each, kernel, initial, row)) for row in uniforms]) for kernel in kernels]
        for each in trained
    ]
    return np.array(returns)


def training(method: str, *, runs: int = RUNS, episodes: int = EPISODES) -> torch.Tensor:
    """Policies of the library's runs, [runs, H, S, A]."""
    experiment = recipe(method)(instance="five-state", runs=runs, steps=episodes)
    Trainer(experiment).fit(episodes)
    table: torch.Tensor = experiment.policy.probabilities()  # type: ignore[operator]
    return table


def comparison(*, runs: int = RUNS, episodes: int = EPISODES) -> torch.Tensor:
    """Values of both methods in the perturbed worlds, [methods, runs, levels]."""
    targets = five_state(xi_norm=0.3, perturbation=LEVELS)
    tables = torch.stack([training(method, runs=runs, episodes=episodes) for method in METHODS])
    return evaluate(targets, tables.unsqueeze(2)).start


def check(method: str, episodes: int = 20) -> None:
    """Raises RuntimeError unless both give the same action values after the same episodes."""
    experiment = recipe(method)(instance="five-state", steps=episodes)
    learner, plain = experiment.learner, plain_method(method)
    assert isinstance(learner, LeastSquaresLearner)
    for uniforms in noise(episodes):
        batch = rollout(MDP, learner.policy.probabilities(), torch.from_numpy(uniforms).unsqueeze(0))
        learner.update(batch)
        plain.add(_steps(batch.states[0].tolist(), batch.actions[0].tolist(), batch.rewards[0].tolist()))
    stages, states, actions, _ = plain.features.shape
    for h in range(stages):
        for s in range(states):
            for a in range(actions):
                ours, theirs = float(learner.plan.q[0, h, s, a]), plain.q(h, s, a)
                if abs(ours - theirs) > TOLERANCE:
                    raise RuntimeError(f"{method}: Q_{h}({s}, {a}) differs: library {ours!r}, plain loop {theirs!r}")


def growth(episodes: int, *, rounds: int) -> Ratio:
    """Seconds of the last tenth of a training over those of the first, for DR-LSVI-UCB."""
    part = episodes // 10
    first, last = [], []
    for _ in range(rounds):
        experiment = recipe("dr_lsvi_ucb")(instance="five-state", runs=RUNS, steps=episodes)
        trainer = Trainer(experiment)
        trainer.fit(part // 2)  # warm
        first.append(stopwatch(lambda trainer=trainer: trainer.fit(part // 2 + part)))  # type: ignore[misc]
        trainer.fit(episodes - part)
        last.append(stopwatch(lambda trainer=trainer: trainer.fit(episodes)))  # type: ignore[misc]
    return ratio(last, first)


def measure(profile: Profile, show: Callable[[Row], None]) -> list[Row]:
    """All rows, each shown as it comes."""
    device = device_name("cpu")
    rows: list[Row] = []

    def add(case: str, method: str, metric: str, r: Ratio, target: float | None, **more: Any) -> None:
        rows.append(
            Row.build(
                suite=SUITE,
                case=case,
                method=method,
                seed=0,
                metric=metric,
                value=r.median,
                low=r.low,
                high=r.high,
                n=r.rounds,
                reference=target,
                reference_kind="none" if target is None else "peer",
                better="higher" if metric == "speedup" else "lower",
                device=device,
                version=code_version(),
                **more,
            )
        )
        show(rows[-1])

    case = f"training-{RUNS}x{EPISODES}"
    for method in METHODS:
        check(method)
        seconds = race(
            {
                "plain": lambda method=method: plain_training(method),  # type: ignore[misc]
                "inverting": lambda method=method: plain_training(method, invert_always=True),  # type: ignore[misc]
                "ours": lambda method=method: training(method),  # type: ignore[misc]
                "ours-200": lambda method=method: training(method, runs=200),  # type: ignore[misc]
            },
            rounds=profile.rounds,
        )
        for name, loop, own, runs in (
            (method, "plain", "ours", RUNS),
            (f"{method}-inverting", "inverting", "ours", RUNS),
            (f"{method}-200", "plain", "ours-200", 200),
        ):
            speedup = ratio([runs * each for each in seconds[loop]], seconds[own])
            add(case, name, "speedup", speedup, SPEEDUP, seconds=statistics.median(seconds[own]))

    case = f"comparison-{RUNS}x{EPISODES}"
    seconds = race({"plain": plain_comparison, "ours": comparison}, rounds=profile.rounds)
    speedup = ratio([RUNS * each for each in seconds["plain"]], seconds["ours"])
    add(case, "all", "speedup", speedup, SPEEDUP, seconds=statistics.median(seconds["ours"]))
    ours = Ratio(statistics.median(seconds["ours"]), min(seconds["ours"]), max(seconds["ours"]), profile.rounds)
    add(case, "all", "cpu_seconds", ours, SECONDS)
    add("episodes", "dr_lsvi_ucb", "growth", growth(profile.episodes, rounds=profile.rounds), 1.0)
    return rows


def _steps(states: list[int], actions: list[int], rewards: list[float]) -> list[Step]:
    return list(zip(states[:-1], actions, rewards, states[1:], strict=True))


def main() -> None:
    """Measure, print a line for each row, and write results.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", choices=("quick", "full"), default="full")
    parser.add_argument("--out", type=Path, default=Path("results") / SUITE)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=arguments.json)

    def show(row: Row) -> None:
        bounds = f"{row.low:.4g} … {row.high:.4g}"
        target = "" if row.reference is None else f", target {row.reference:g}"
        console.print(f"{row.case}/{row.method}: {row.metric} = {row.value:.4g} ({bounds}{target})", highlight=False)

    rows = measure(QUICK if arguments.profile == "quick" else FULL, show)
    write_results(arguments.out, rows)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False, ensure_ascii=False))


if __name__ == "__main__":
    main()
