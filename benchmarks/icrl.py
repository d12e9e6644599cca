"""The suite of in-context reinforcement learning: transformers that learned from learners, in tasks they never saw.

Case names are ENV-DATA: ``darkroom-noise30``. Environments: darkroom, permuted, large, key_to_door. Data: ``clean``
learning histories of tabular PPO; ``noise30``, where 30 % of every task's histories act at random; ``half``, the first
half of each history; ``light``, a smaller model on clean histories; ``mixed``, learning rates from far too small to
good, so that the histories of a task differ without noise. Methods: ``ad``, ``dpt``, ``dicp``, and with ``_lhf`` the
same on filtered histories (arXiv 2505.15143). ``darkroom-noise30`` also has ``ad_lhf`` with other weights of stability
(``ad_lhf_lambda0``), temperatures (``ad_lhf_alpha0.25``) and ways to draw (``ad_lhf_weight``), and ``dicp_lhf`` with
weights of which the model of the world learns as well (``dicp_lhf_weight``) or not (``dicp_lhf_actions``).
``bandit-mixture`` is ``dpt`` on contexts of bandits with five arms (arXiv 2306.14892) beside rules that know what a
bandit is: ``thompson``, which samples from the posterior, as DPT would in the limit, ``ucb`` and ``empirical_mean``.
Every seed has a split into training and test tasks, histories and a training of its own; methods of a seed share them.
The rows:

- ``mean_return``: over 30 episodes in a row of unseen tasks, from an empty context, at least 64 contexts in all; the
  interval is over tasks, the reference the mean of the tasks' largest returns. ``first_return``, ``last_return``: of
  the first episode and of the last three.
- ``regret``: on bandits, how much less than the best arm's the mean return is.
- ``random_share``: of histories at random among those that were trained on. ``data_return``: their mean return.
- ``training_seconds``, ``cpu_seconds``: of the training alone, on one thread; ``evaluation_seconds``: of playing those
  episodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decisionrl.benchmarks.control_training import one_thread, train
from decisionrl.benchmarks.recorded import recorded
from decisionrl.benchmarks.suite import Case, CaseContext, CaseResult, Measurement
from decisionrl.envs.gridworld.bandit_family import BanditFamily
from decisionrl.envs.gridworld.bandit_rules import Index, empirical_mean, play, thompson, ucb
from decisionrl.evaluation.in_context import InContextEvaluator
from decisionrl.evaluation.results import config_hash
from decisionrl.evaluation.series import Curve, Series
from decisionrl.evaluation.statistics import bootstrap_mean
from decisionrl.experience.datasets import DatasetSource
from decisionrl.experience.histories import LearningHistories
from decisionrl.experience.history_windows import HistoryWindows
from decisionrl.policies.in_context import InContextPolicy, PlanningPolicy
from decisionrl.recipes import recipe
from decisionrl.recipes.in_context import ONE_EPISODE, SMALL
from decisionrl.recording.histories import HistoryPlan, histories
from decisionrl.recording.tabular_sources import random_streams
from decisionrl.seeding import generator

EVALUATION_SEED = 20_261_123
NOISE = 0.3
STREAMS = 50
LAST = 3
"""Episodes of the last return."""

MIXED_RATES = (0.002, 0.005, 0.01, 0.02, 0.05)


@dataclass(frozen=True, kw_only=True)
class HistoryData:
    """Learning histories, recorded anew for every seed. arguments: of their maker."""

    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, context: CaseContext) -> Path:
        """Where they are."""
        root = context.directory.parent.parent / "data" / config_hash(dict(self.arguments))
        return recorded(root, self.plan(context).name("train"), histories, **self._of(context))

    def plan(self, context: CaseContext) -> HistoryPlan:
        """Of whom, in which tasks."""
        return HistoryPlan(**self._of(context))

    def _of(self, context: CaseContext) -> dict[str, Any]:
        # The published split comes first.
        return {"streams": STREAMS, **self.arguments, "seed": context.seed, "split_seed": context.seed or None}


@dataclass(frozen=True, kw_only=True)
class InContextCase:
    """Train ``recipe`` on the histories, then let it learn tasks that it has not seen."""

    data: HistoryData
    recipe: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, context: CaseContext) -> CaseResult:
        with one_thread():
            data = self.data(context)
            experiment = recipe(self.recipe)(data=str(data), seed=context.seed, device=context.device, **self.arguments)
            record = train(experiment, experiment.config["steps"], context.progress)
            policy, evaluator, source = experiment.policy, experiment.evaluate, experiment.source
            assert isinstance(policy, InContextPolicy | PlanningPolicy)
            assert isinstance(evaluator, InContextEvaluator)
            assert isinstance(source, DatasetSource)
            assert isinstance(source.draw, HistoryWindows)
            began = time.perf_counter()
            returns = evaluator.returns(policy, seed=EVALUATION_SEED).double().cpu()
            seconds = time.perf_counter() - began
        optimum = evaluator.optimum
        rows = [
            _over_tasks("mean_return", returns, optimum),
            *([] if returns.shape[-1] == 1 else _first_and_last(returns, optimum)),
            *(_regret(returns, evaluator) if isinstance(evaluator.family, BanditFamily) else []),
            *_about(source.draw),
            Measurement("training_seconds", record.clock.wall),
            Measurement("cpu_seconds", record.clock.cpu),
            Measurement("evaluation_seconds", seconds),
        ]
        curve = returns.mean((0, 1))
        shown = Curve(
            x_label="episode",
            y_label="return",
            x=list(range(1, len(curve) + 1)),
            y=curve.tolist(),
            reference=optimum,
        )
        return CaseResult(rows, Series(curve=shown))


@dataclass(frozen=True, kw_only=True)
class RuleCase:
    """What a rule earns in the test tasks of the bandits: one of ``RULES``."""

    data: HistoryData
    rule: str

    def __call__(self, context: CaseContext) -> CaseResult:
        plan = self.data.plan(context)
        family = plan.family
        assert isinstance(family, BanditFamily)
        evaluator = InContextEvaluator(family=family, tasks=plan.tasks("test"), episodes=1)
        bandits = replace(family.bandits, means=family.bandits.means[evaluator.tasks])
        draws = generator(context.seed, self.rule)
        began = time.perf_counter()
        pulls = play(bandits, RULES[self.rule](draws), steps=family.horizon, generator=draws)
        seconds = time.perf_counter() - began
        returns = pulls.reward.double().sum(1)[:, None, None]
        context.progress(1.0, "played")
        rows = [
            _over_tasks("mean_return", returns, evaluator.optimum),
            *_regret(returns, evaluator),
            Measurement("evaluation_seconds", seconds),
        ]
        return CaseResult(rows, Series())


def _first_and_last(returns: torch.Tensor, optimum: float) -> list[Measurement]:
    return [
        _over_tasks("first_return", returns[..., :1], optimum),
        _over_tasks("last_return", returns[..., -LAST:], optimum),
    ]


def _regret(returns: torch.Tensor, evaluator: InContextEvaluator) -> list[Measurement]:
    lost = evaluator.family.max_return[evaluator.tasks].double().cpu() - returns.mean((1, 2))
    estimate = bootstrap_mean(lost.numpy(), rng=np.random.default_rng(EVALUATION_SEED))
    return [Measurement("regret", estimate, 0.0, "exact")]


def _over_tasks(metric: str, returns: torch.Tensor, optimum: float) -> Measurement:
    by_task = returns.mean((1, 2)).numpy()
    estimate = bootstrap_mean(by_task, rng=np.random.default_rng(EVALUATION_SEED))
    return Measurement(metric, estimate, optimum, "exact", better="higher")


def _about(windows: HistoryWindows) -> list[Measurement]:
    """Of the histories that are trained on; weights count as shares."""
    chosen, weight = windows.histories, windows.weight
    weight = torch.ones(chosen.index.shape) if weight is None else weight
    share = weight / weight.sum()
    random = _random(chosen).gather(1, chosen.index)
    returns = chosen.episode_returns().mean(-1)
    return [
        Measurement("random_share", (share * random).sum().item()),
        Measurement("data_return", (share * returns).sum().item(), better="higher"),
    ]


def _random(chosen: LearningHistories) -> torch.Tensor:
    """Which of the stored histories of each task act at random, [task, stored]."""
    info = chosen.info
    return random_streams(chosen.task, info["streams"], share=info["noise"], seed=info["seed"])


# ---------------------------------------------------------------------------------------------- the cases

ENVIRONMENTS: Mapping[str, Mapping[str, Any]] = {
    "darkroom": {"env": "darkroom"},
    "permuted": {"env": "darkroom_permuted"},
    "large": {"env": "darkroom_large"},
    "key_to_door": {"env": "dark_key_to_door", "streams": 10},
}
"""Name -> arguments of the maker; key to door has 6,233 training tasks."""

DATA: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "clean": ({}, {}),
    "noise30": ({"noise": NOISE}, {}),
    "half": ({}, {"share": 0.5}),
    "light": ({}, {"sizes": "light"}),
    "mixed": ({"rates": list(MIXED_RATES)}, {}),
}
"""Name -> arguments of the maker, and of the recipe."""

BACKBONES = ("ad", "dpt", "dicp")

LAMBDAS = (0.0, 0.5, 2.0, 1000.0)
ALPHAS = (0.0625, 0.125, 0.25, 0.5, 1.0)
MODES = ("shuffled", "multinomial", "weight")

SENSITIVITY: Mapping[str, Mapping[str, Any]] = {
    **{f"lambda{value:g}": {"stability_weight": value} for value in LAMBDAS},
    **{f"alpha{value:g}": {"alpha": value} for value in ALPHAS},
    **{mode: {"filter_mode": mode} for mode in MODES},
}
"""Variants of the filter for ``ad``; without one lambda is 1 and the rule linear."""

PLANNING: Mapping[str, Mapping[str, Any]] = {
    "weight": {"filter_mode": "weight"},
    "actions": {"filter_mode": "weight", "filter_model": False},
}
"""For ``dicp``."""

COST = {"ad": 1.0, "dpt": 1.0, "dicp": 4.0}

BANDIT_UPDATES = 5000

QUICK: Mapping[str, Any] = {"env_options": {"size": 5, "horizon": 10}, "streams": 20, "steps": 300}
"""A small dark room, for the quick profile."""


def cases(profile: str, data: Path | None) -> list[Case]:
    """All cases of a profile, in the order of the report; there is no use for ``data``."""
    if profile == "quick":
        small = {"steps": 400, "batch": 32, "evaluation_episodes": 20}
        return [
            _case("darkroom5", kind, backbone, filtered, {**QUICK, **DATA[kind][0]}, small)
            for kind in ("clean", "noise30")
            for backbone in ("ad", "dpt")
            for filtered in ("none", "lhf")
        ]
    every = [
        _case(env, kind, backbone, filtered, {**ENVIRONMENTS[env], **DATA[kind][0]}, DATA[kind][1])
        for env in ENVIRONMENTS
        for kind in DATA
        for backbone in BACKBONES
        for filtered in ("none", "lhf")
    ]
    return [*every, *_sensitivity(), *_bandits()]


def _case(
    env: str, kind: str, backbone: str, filtered: str, made: Mapping[str, Any], arguments: Mapping[str, Any]
) -> Case:
    """A case with its preset spelled out, so that results are made anew when that changes."""
    return Case(
        f"{env}-{kind}",
        backbone if filtered == "none" else f"{backbone}_{filtered}",
        InContextCase(
            data=HistoryData(arguments=made), recipe=backbone, arguments={**SMALL, "filter": filtered, **arguments}
        ),
        cost=COST[backbone],
    )


def _sensitivity() -> Sequence[Case]:
    data = HistoryData(arguments={**ENVIRONMENTS["darkroom"], "noise": NOISE})
    return [
        Case(
            "darkroom-noise30",
            f"{backbone}_lhf_{name}",
            InContextCase(data=data, recipe=backbone, arguments={**SMALL, "filter": "lhf", **arguments}),
            cost=COST[backbone],
        )
        for backbone, variants in (("ad", SENSITIVITY), ("dicp", PLANNING))
        for name, arguments in variants.items()
    ]


BANDITS: Mapping[str, Any] = {
    "env": "bandit",
    "env_options": {"horizon": 100},
    "source": "mixture",
    "streams": 1,
    "steps": 100,
}

RULES: Mapping[str, Callable[[torch.Generator], Index]] = {
    "thompson": lambda draws: partial(thompson, generator=draws),
    "ucb": lambda draws: ucb,
    "empirical_mean": lambda draws: empirical_mean,
}


def _bandits() -> Sequence[Case]:
    data = HistoryData(arguments=BANDITS)
    trained = InContextCase(data=data, recipe="dpt", arguments={**ONE_EPISODE, "steps": BANDIT_UPDATES})
    rules = [Case("bandit-mixture", rule, RuleCase(data=data, rule=rule)) for rule in RULES]
    return [Case("bandit-mixture", "dpt", trained), *rules]
