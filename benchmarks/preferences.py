"""The preferences suite: learning from recorded behavior and from what a teacher prefers of it.

Case names are data/recipe: ``plate-slide/cpl``. The data of the Meta-World tasks are clones of a few scripted
demonstrations (``decisionrl make-dataset clones``), those of ``hopper-...`` and ``halfcheetah-...`` are from a run of
SAC (``make-dataset sac``); both are made under ``OUT/data``, once for each seed (SAC: once), and kept. With ``--data
DIR`` they are read from there. The rows:

- ``success``: share of 100 episodes in which the trained policy succeeds; the same starts for every method and seed.
  ``normalized_score`` on SAC's data: 0 is a random policy, 100 the last one of SAC.
- ``mean_return`` on the labs, next to what optimal actions get on other starts.
- ``success_at_N_pairs`` of ``...-pairs``, ``success_at_N_percent`` of ``...-noise``: with N comparisons, and with N %
  wrong labels among 2,000 of them. On labs ``normalized_score_at_...``.
- ``nearer`` of ``two-modes/oppo``: share of held-out pairs whose good window is encoded nearer to z*.
- ``cpu_seconds``, ``updates_per_second`` of the training alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from decisionrl.benchmarks.control_training import Record, one_thread, train
from decisionrl.benchmarks.recorded import recorded
from decisionrl.benchmarks.suite import Case, CaseContext, CaseResult, Measurement
from decisionrl.evaluation.series import Curve, Scale, Series
from decisionrl.evaluation.statistics import Estimate
from decisionrl.experience.data import open_data
from decisionrl.experience.datasets import Windows
from decisionrl.experience.hindsight import FutureReturnPairs, with_future_returns
from decisionrl.experiment import Experiment
from decisionrl.policies.hindsight import HindsightPolicy
from decisionrl.recipes import recipe
from decisionrl.recipes.offline_presets import PRESETS
from decisionrl.recording.clones import clones
from decisionrl.recording.labs import two_modes_lab
from decisionrl.recording.sac import sac
from decisionrl.seeding import generator

EVALUATION_SEED = 20_260_201
EPISODES = 100
MUJOCO_EPISODES = 20
CURVE_POINTS = 8
CURVE_EPISODES = 20


class DataFor(Protocol):
    """What a recipe's ``data`` is in a case.

    maker: whose presets the recipe has there.
    """

    maker: ClassVar[str]

    def __call__(self, context: CaseContext) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Clones:
    """The clones of a Meta-World task, recorded anew for every seed."""

    task: str

    maker: ClassVar[str] = "clones"

    def __call__(self, context: CaseContext) -> str:
        name = f"{self.task}-clones-seed{context.seed}"
        return str(_found(context, name) or recorded(_root(context), name, clones, env=self.task, seed=context.seed))


@dataclass(frozen=True, kw_only=True)
class FromSAC:
    """A set from one run of SAC, the same for every seed."""

    env: str
    name: str
    steps: int

    maker: ClassVar[str] = "sac"

    def __call__(self, context: CaseContext) -> str:
        found = _found(context, self.name)
        return str(
            found
            or recorded(
                _root(context), self.name, sac, env=self.env, steps=self.steps, hidden=(128, 128), batch_size=128
            )
        )


@dataclass(frozen=True)
class Lab:
    """A lab, made where it is asked for."""

    name: str

    maker: ClassVar[str] = "lab"

    def __call__(self, context: CaseContext) -> str:
        return f"lab/{self.name}"


@dataclass(frozen=True, kw_only=True)
class OfflineCase:
    """Train ``recipe`` on the data and measure the policy in the data's environment.

    metric: the main row: "success", "normalized_score" or "mean_return". curve: also measure along the way.
    """

    data: DataFor
    recipe: str
    metric: str
    episodes: int = EPISODES
    curve: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, context: CaseContext) -> CaseResult:
        with one_thread():
            experiment = _experiment(self.recipe, self.data(context), context, self.arguments)
            steps = experiment.config["steps"]
            measured = functools.partial(_value, experiment, self.metric) if self.curve else None
            record = train(experiment, steps, context.progress, points=CURVE_POINTS, measure=measured)
            main = _measured(experiment, self.metric, self.episodes)
        rows = [main, *_costs(record)]
        curve = _over_updates(record, self.metric) if self.curve else None
        extra = _encodings(experiment) if isinstance(experiment.policy, HindsightPolicy) else {}
        return CaseResult(rows, Series(curve=curve, curves=extra))


@dataclass(frozen=True, kw_only=True)
class LadderCase:
    """Train once for every value of one argument, and draw the metric over the values.

    argument: of the recipe. values: in rising order. label: how a value is called in the rows' names. scale: from the
    argument's unit to the label's. x_scale: of the figure's axis.
    """

    data: DataFor
    recipe: str
    metric: str
    argument: str
    values: Sequence[float]
    label: str
    x_label: str
    scale: float = 1.0
    x_scale: Scale = "linear"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, context: CaseContext) -> CaseResult:
        rows, x = [], []
        with one_thread():
            data = self.data(context)
            for number, value in enumerate(self.values):
                arguments = {**self.arguments, self.argument: value}
                experiment = _experiment(self.recipe, data, context, arguments)

                def progress(share: float, text: str, number: int = number) -> None:
                    context.progress((number + share) / len(self.values), text)

                train(experiment, experiment.config["steps"], progress, points=1, measure=lambda policy: 0.0)
                shown = round(value * self.scale)
                rows.append(_measured(experiment, f"{self.metric}_at_{shown}_{self.label}", EPISODES))
                x.append(float(shown))
        estimates = [row.estimate for row in rows]
        y = [each.value if isinstance(each, Estimate) else each for each in estimates]
        curve = Curve(x_label=self.x_label, y_label=self.metric.replace("_", " "), x=x, y=y, x_scale=self.x_scale)
        return CaseResult(rows, Series(curve=curve))


@dataclass(frozen=True, kw_only=True)
class ModesCase:
    """OPPO on two modes of behavior: is z* on the side of the preferred one, and does the policy follow it?"""

    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, context: CaseContext) -> CaseResult:
        with one_thread():
            experiment = _experiment("oppo", "lab/two-modes", context, self.arguments)
            record = train(
                experiment, experiment.config["steps"], context.progress, points=1, measure=lambda policy: 0.0
            )
            main = _measured(experiment, "mean_return", EPISODES)
            nearer, curves = _nearness(experiment, context.seed)
        rows = [main, Measurement("nearer", nearer, 1.0, "exact", better="higher"), *_costs(record)]
        return CaseResult(rows, Series(curves=curves))


def _root(context: CaseContext) -> Path:
    """Where data is made: beside all cases' own directories."""
    return context.directory.parent.parent / "data"


def _found(context: CaseContext, name: str) -> Path | None:
    """The set of that name where ``--data`` says; None without it.

    Raises:
        FileNotFoundError: there is none.
    """
    if context.data is None:
        return None
    path = context.data / name
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; decisionrl make-dataset makes it")
    return path


def _experiment(name: str, data: str, context: CaseContext, arguments: Mapping[str, Any]) -> Experiment:
    return recipe(name)(data=data, seed=context.seed, device=context.device, **arguments)


def _measured(experiment: Experiment, metric: str, episodes: int) -> Measurement:
    assert experiment.evaluate is not None
    found = experiment.evaluate(experiment.policy, episodes=episodes, seed=EVALUATION_SEED)
    if metric.startswith("normalized_score"):
        estimate = Estimate(found["normalized_score"], found["score_low"], found["score_high"], episodes)
        return Measurement(metric, estimate, better="higher")
    estimate = Estimate(found["mean_return"], found["low"], found["high"], episodes)
    optimum = open_data(experiment.config["data"]).info.get("expert_score") if metric == "mean_return" else None
    return Measurement(metric, estimate, optimum, "none" if optimum is None else "oracle", better="higher")


def _value(experiment: Experiment, metric: str, policy: nn.Module) -> float:
    assert experiment.evaluate is not None
    found = experiment.evaluate(policy, episodes=CURVE_EPISODES, seed=EVALUATION_SEED + 1)
    return float(found["normalized_score" if metric == "normalized_score" else "mean_return"])


def _costs(record: Record) -> list[Measurement]:
    return [
        Measurement("cpu_seconds", record.clock.cpu),
        Measurement("updates_per_second", record.steps / record.clock.wall, better="higher"),
    ]


def _over_updates(record: Record, metric: str) -> Curve:
    steps, _, values = (list(each) for each in zip(*record.at, strict=True))
    return Curve(x_label="updates", y_label=metric.replace("_", " "), x=steps, y=values)


DECILES = 10
ENCODED = 2000


@torch.no_grad()
def _encodings(experiment: Experiment) -> dict[str, Curve]:
    """What z* stands for: how far from it windows are encoded, by the decile of the return that followed them."""
    policy, episodes = experiment.policy, open_data(experiment.config["data"])
    assert isinstance(policy, HindsightPolicy)
    horizon = experiment.config["horizon"] or policy.window
    draw = FutureReturnPairs(episodes=with_future_returns(episodes, horizon), size=ENCODED // 2, length=policy.window)
    windows = draw(generator(EVALUATION_SEED, "encodings")).segments
    policy.eval()
    distance = (policy.encode(windows) - policy.context).norm(dim=-1)
    order = windows.extras["future_return"][:, 0].argsort()
    means = [float(part.mean()) for part in distance[order].chunk(DECILES)]
    tenths = [10.0 * (number + 1) for number in range(len(means))]
    curve = Curve(x_label="percentile of the return that followed", y_label="distance to z*", x=tenths, y=means)
    return {"encodings_by_what_followed": curve}


HELD_OUT = 1_000
STRENGTHS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.75, 1.0)


@torch.no_grad()
def _nearness(experiment: Experiment, seed: int) -> tuple[float, dict[str, Curve]]:
    """The share of held-out pairs whose good window is encoded nearer to z*, and the return of acting on what lies
    between the mean encoding of bad windows and z*."""
    policy = experiment.policy
    assert isinstance(policy, HindsightPolicy)
    assert experiment.evaluate is not None
    fresh = two_modes_lab(seed=HELD_OUT + seed).episodes
    policy.eval()
    windows = Windows(episodes=fresh, size=HELD_OUT, length=policy.window)(generator(seed, "held_out"))
    z, good = policy.encode(windows), windows.extras["good"][:, 0] > 0.5
    distance = (z - policy.context).norm(dim=-1)
    share = (distance[good][:, None] < distance[~good]).float().mean()
    trained, bad = policy.context.clone(), z[~good].mean(0)
    returns = []
    for strength in STRENGTHS:
        policy.context.copy_(bad + strength * (trained - bad))
        found = experiment.evaluate(policy, episodes=CURVE_EPISODES, seed=EVALUATION_SEED)
        returns.append(float(found["mean_return"]))
    policy.context.copy_(trained)
    between = Curve(x_label="from bad windows (0) to z* (1)", y_label="mean return", x=STRENGTHS, y=returns)
    return float(share), {"from_bad_windows_to_the_preferred": between}


# ---------------------------------------------------------------------------------------------- the cases

MORE_TASKS = ("drawer-open", "button-press", "door-open", "sweep-into", "bin-picking")
MAIN = ("bc", "sft", "cpl")
BESIDE = ("cpl_bc", "cpl_kl", "dpo_control", "iql", "p_iql", "oppo")
SETTINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "cpl_alpha=0.02": ("cpl", {"alpha": 0.02}),
    "cpl_bias=1": ("cpl", {"bias": 1.0}),
    "cpl_return": ("cpl", {"teacher": "return"}),
    "cpl_distance": ("cpl", {"teacher": "distance"}),
}
"""CPL with another setting or another teacher, by the method's name in the results."""

NONE: Mapping[str, Any] = {}

NUMBERS = (30, 100, 300, 1_000, 3_000)
WRONG = (0.0, 0.1, 0.2, 0.3, 0.4)
PAIRS_FOR_NOISE = 2_000
BATCH_OF_PAIRS = 16

SAC_STEPS = {"hopper": ("Hopper-v5", 150_000), "halfcheetah": ("HalfCheetah-v5", 60_000)}
SAC_SETS = ("medium-replay", "medium", "medium-expert")
ON_SAC: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bc": ("bc", {}),
    "bc_top10": ("bc", {"fraction": 0.1}),
    "iql": ("iql", {}),
    "dt": ("dt", {}),
    "oppo": ("oppo", {}),
}
ON_GRIDWORLD = ("bc", "sft", "cpl", "cpl_bc", "cpl_kl", "dpo_control")


def cases(profile: str, data: Path | None) -> list[Case]:
    """All cases of a profile, in the order of the report."""
    if profile == "quick":
        return [*_labs(), *_clones("plate-slide", MAIN)]
    chosen = [*_labs(), *_ladders("point", Lab("point"), "normalized_score")]
    chosen += [*_clones("plate-slide", (*MAIN, *BESIDE)), *_settings("plate-slide")]
    chosen += _ladders("plate-slide", Clones(task="plate-slide"), "success")
    for task in MORE_TASKS:
        chosen += _clones(task, MAIN)
    for robot, (env, steps) in SAC_STEPS.items():
        for part in SAC_SETS:
            source = FromSAC(env=env, name=f"{robot}-{part}", steps=steps)
            for method, (name, arguments) in ON_SAC.items():
                run = _offline(source, name, "normalized_score", episodes=MUJOCO_EPISODES, arguments=arguments)
                chosen.append(Case(source.name, method, run, cost=10.0))
    return chosen


def _labs() -> list[Case]:
    chosen = [
        Case("gridworld", name, _offline(Lab("gridworld"), name, "mean_return", curve=False)) for name in ON_GRIDWORLD
    ]
    chosen += [Case("point", name, _offline(Lab("point"), name, "mean_return")) for name in (*MAIN, "p_iql")]
    return [
        *chosen,
        Case("two-modes", "bc", _offline(Lab("two-modes"), "bc", "mean_return")),
        Case("two-modes", "oppo", ModesCase(arguments=PRESETS["lab"]["oppo"])),
    ]


def _offline(data: DataFor, name: str, metric: str, *, arguments: Mapping[str, Any] = NONE, **how: Any) -> OfflineCase:
    """A case with its preset spelled out, so that results are made anew when that changes."""
    settled = {**PRESETS[data.maker].get(name, {}), **arguments}
    return OfflineCase(data=data, recipe=name, metric=metric, arguments=settled, **how)


def _clones(task: str, recipes: Sequence[str]) -> list[Case]:
    return [Case(task, name, _offline(Clones(task=task), name, "success"), cost=3.0) for name in recipes]


def _settings(task: str) -> list[Case]:
    return [
        Case(task, method, _offline(Clones(task=task), name, "success", arguments=arguments), cost=3.0)
        for method, (name, arguments) in SETTINGS.items()
    ]


def _ladders(case: str, data: DataFor, metric: str) -> list[Case]:
    """The metric over the number of comparisons, and over the share of wrong ones."""
    chosen = []
    for name in ("sft", "cpl"):
        preset = {**PRESETS[data.maker][name], "batch": BATCH_OF_PAIRS}
        by_number = LadderCase(
            data=data,
            recipe=name,
            metric=metric,
            argument="pairs",
            values=NUMBERS,
            label="pairs",
            x_label="comparisons",
            x_scale="log",
            arguments=preset,
        )
        by_noise = LadderCase(
            data=data,
            recipe=name,
            metric=metric,
            argument="flip",
            values=WRONG,
            label="percent",
            x_label="wrong labels, %",
            scale=100.0,
            arguments={**preset, "pairs": PAIRS_FOR_NOISE},
        )
        chosen += [Case(f"{case}-pairs", name, by_number, cost=15.0), Case(f"{case}-noise", name, by_noise, cost=15.0)]
    return chosen
