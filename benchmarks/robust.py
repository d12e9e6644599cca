"""The robust suite: least-squares methods in linear MDPs, nominal and robust, measured exactly against their optima.

Case names are instance/method: ``five-state/dr_rpo``. Every value is worked out by dynamic programming; nothing is
sampled but what the methods learn from. Intervals are over independent runs. The rows:

- ``robust_value``: worst case of the final policy over the instance's total variation ball, against the robust
  optimum. ``nominal_value``: in the world learned in, against the nominal optimum.
- ``regret``: the worst case's, summed over all episodes, and ``regret_slope``, that of its growth over the last nine
  tenths of them in double logarithms: 0.5 is the rate of the theorems, 1 learns nothing. For DR-RPO both count the
  price of leaving the reference policy, in the optimum as well.
- ``mean_value`` and ``value_at_...``: of the final policy in perturbed worlds, against the best policy for each.
- ``seconds_per_run``: processor time of training on one thread, over the runs that share it.

Curves: regret by episodes ("growth" in double logarithms), or the value that the method aims at; "perturbation", the
value by how far the world is from the one learned in, and "share", that over the value of the best policy there;
"trade-off", nominal value by worst case as eta varies. ``optimal``, ``robust_optimal``, ``exact`` and ``oracle``,
which knows the perturbation, are worked out without learning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from decisionrl.benchmarks.control_training import Clock, one_thread
from decisionrl.benchmarks.suite import Case, CaseContext, CaseResult, Measurement
from decisionrl.callbacks import Callback
from decisionrl.envs.linear_mdp.model import LinearMDP
from decisionrl.evaluation.series import Curve, Series
from decisionrl.evaluation.statistics import Estimate, bootstrap_mean
from decisionrl.experiment import Experiment
from decisionrl.recipes import recipe
from decisionrl.recipes.linear_mdp import ExactEvaluator, LinearWorld
from decisionrl.robust.ambiguity import Ambiguity
from decisionrl.robust.dynamic_programming import evaluate, optimal
from decisionrl.robust.reference import Reference
from decisionrl.trainer import Trainer

POINTS = 80
"""Of a learning curve."""

CHUNK = 32
"""Policies that are evaluated at once."""

ROUNDING = 1e-12

PERTURBATION = "perturbation"
REGRET = "cumulative regret"
EPISODES = "episodes"

Exact = Literal["optimal", "robust_optimal", "oracle"]


@dataclass(frozen=True)
class Levels:
    """How far worlds are perturbed: ``rows`` are those that become rows of their own."""

    label: str
    values: tuple[float, ...]
    rows: tuple[float, ...]


LEVELS: Mapping[str, Levels] = {
    "five-state": Levels("perturbation q", tuple(round(0.05 * i, 2) for i in range(21)), (0.0, 0.6, 1.0)),
    "american-put": Levels("up-probability", tuple(round(0.05 * i, 2) for i in range(2, 21)), (0.2, 0.5, 0.8)),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An instance, as all methods there find it."""

    instance: str
    runs: int
    options: Mapping[str, Any] = field(default_factory=dict)
    radius: float | None = None

    @property
    def exact_features(self) -> bool:
        """Whether methods learn with the features of the MDP itself, so that its worst case is what they aim at."""
        return self.instance != "american-put"

    def arguments(self, seed: int) -> dict[str, Any]:
        """Of a recipe."""
        return {
            "instance": self.instance,
            "instance_options": dict(self.options),
            "radius": self.radius,
            "runs": self.runs,
            "seed": seed,
        }


@dataclass(frozen=True, kw_only=True)
class LearnCase:
    """Train ``recipe`` for ``steps`` episodes of each run, and measure its policies exactly.

    regret: follow the regret of every episode; else the values of the policies at ``POINTS`` moments.
    """

    setting: Setting
    recipe: str
    steps: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    regret: bool = False

    def __call__(self, context: CaseContext) -> CaseResult:
        arguments = self.setting.arguments(context.seed)
        world = LinearWorld(**arguments, device=context.device)
        with one_thread():
            experiment = recipe(self.recipe)(**arguments, steps=self.steps, device=context.device, **self.arguments)
            every = 1 if self.regret else max(1, self.steps // POINTS)
            watch = Watch(self._yardstick(world, experiment), context, every=every)
            Trainer(experiment, callbacks=[watch]).fit(self.steps)
        table = experiment.policy.probabilities()  # type: ignore[operator]
        targets, curves = perturbed(world, table)
        values = value_rows(world, table)
        rows = [*values, *targets] if self.setting.exact_features else [*targets, *values]
        if self.regret:
            rows += regret_rows(watch.regret)
            main, curves["growth"] = regret_curves(watch.regret)
        else:
            best = float(watch.yardstick.best.mean())
            main = banded(EPISODES, watch.yardstick.label, watch.episodes, best - watch.regret.mT, reference=best)
        seconds = Measurement("seconds_per_run", watch.clock.cpu / self.setting.runs)
        return CaseResult([*rows, seconds], Series(curve=main, curves=curves))

    def _yardstick(self, world: LinearWorld, experiment: Experiment) -> Yardstick:
        own = experiment.evaluate
        assert isinstance(own, ExactEvaluator)
        if self.regret:
            return Yardstick.worst_case(own.mdp, own.ball, own.reference)
        if self.setting.exact_features:
            return Yardstick.worst_case(own.mdp, own.ambiguity, None)
        return Yardstick.perturbed(world)


@dataclass(frozen=True, kw_only=True)
class ExactCase:
    """The values of an exact policy in the perturbed worlds."""

    setting: Setting
    policy: Exact

    def __call__(self, context: CaseContext) -> CaseResult:
        world = LinearWorld(**self.setting.arguments(context.seed))
        if self.policy == "oracle":
            rows, curves = perturbed(world, None)
        else:
            ambiguity = world.exact_ball() if self.policy == "robust_optimal" else None
            table = optimal(world.built.mdp, ambiguity).policy.expand(world.runs, -1, -1, -1)
            targets, curves = perturbed(world, table)
            rows = [*value_rows(world, table), *targets]
        return CaseResult(rows, Series(curves=curves))


@dataclass(frozen=True, kw_only=True)
class EtaCase:
    """How DR-RPO trades nominal value for the worst case by eta; exactly, or learned in ``steps`` episodes."""

    setting: Setting
    steps: int | None
    etas: tuple[float, ...] = (1000.0, 300.0, 100.0, 50.0, 20.0, 10.0, 5.0, 2.0, 1.0)

    def __call__(self, context: CaseContext) -> CaseResult:
        world = LinearWorld(**self.setting.arguments(context.seed), device=context.device)
        mdp, ball = world.built.mdp, world.exact_ball()
        values: dict[str, list[Tensor]] = {"robust": [], "nominal": []}
        rows = []
        with one_thread():
            for index, eta in enumerate(self.etas):
                exact = optimal(mdp, ball, reference=Reference(eta=eta)).policy
                table = exact.unsqueeze(0) if self.steps is None else self._learned(eta, context)
                context.progress((index + 1) / len(self.etas), f"eta {eta:g}")
                for name, ambiguity in (("robust", ball), ("nominal", None)):
                    own, best = (evaluate(mdp, each, ambiguity).start for each in (table, exact))
                    values[name].append(own.cpu())
                    metric = f"{name}_value_at_eta={eta:g}"
                    rows.append(against(metric, own, best))
        x = [float(np.log10(eta)) for eta in self.etas]
        robust = banded("log10 eta", "worst case", x, torch.stack(values["robust"], 1))
        nominal = banded("log10 eta", "nominal value", x, torch.stack(values["nominal"], 1))
        trade_off = Curve(x_label="worst case", y_label="nominal value", x=robust.y, y=nominal.y)
        return CaseResult(rows, Series(curve=robust, curves={"nominal": nominal, "trade-off": trade_off}))

    def _learned(self, eta: float, context: CaseContext) -> Tensor:
        assert self.steps is not None
        arguments = self.setting.arguments(context.seed)
        experiment = recipe("dr_rpo")(**arguments, steps=self.steps, eta=eta, device=context.device)
        Trainer(experiment).fit(self.steps)
        table: Tensor = experiment.policy.probabilities()  # type: ignore[operator]
        return table


@dataclass(frozen=True, kw_only=True, eq=False)
class Yardstick:
    """What the policies of a training are judged by.

    Attributes:
        label: of the values.
        measure: tables [n, runs, H, S, A] -> values [n, runs].
        best: the largest there are, [runs] or [].
    """

    label: str
    measure: Callable[[Tensor], Tensor]
    best: Tensor

    @classmethod
    def worst_case(cls, mdp: LinearMDP, ambiguity: Ambiguity | None, reference: Reference | None) -> Yardstick:
        """The worst case, with the price of leaving a reference policy; nominal values with neither."""
        return cls(
            label="own worst case",
            measure=lambda tables: evaluate(mdp, tables, ambiguity, reference=reference).start,
            best=optimal(mdp, ambiguity, reference=reference).start,
        )

    @classmethod
    def perturbed(cls, world: LinearWorld) -> Yardstick:
        """The mean over the perturbed worlds."""
        worlds = perturbed_worlds(world)
        return cls(
            label="mean value",
            measure=lambda tables: evaluate(worlds, tables.unsqueeze(2)).start.mean(-1),
            best=optimal(worlds).start.mean(-1),
        )


class Watch(Callback):
    """Measures the policies of a training, with the clock stopped.

    With ``every`` = 1 it is the policy that each episode follows: the first one is that of no data, and the last one,
    which no episode follows, is left out. Else it is the one after every so many episodes.
    """

    name = "watch"
    priority = 90

    def __init__(self, yardstick: Yardstick, context: CaseContext, *, every: int) -> None:
        self.yardstick = yardstick
        self.clock = Clock()
        self.episodes: list[int] = []
        self._context, self._every = context, every
        self._waiting: list[Tensor] = []
        self._values: list[Tensor] = []

    def on_start(self, trainer: Trainer) -> None:
        if self._every == 1:
            self._keep(trainer)
        self.clock.start()

    def on_step(self, trainer: Trainer) -> None:
        self.clock.stop()
        done = trainer.step >= trainer.target
        if trainer.due(self._every) and not (done and self._every == 1):
            self._keep(trainer)
        if self._waiting and (done or len(self._waiting) == CHUNK):
            self._values.append(self.yardstick.measure(torch.stack(self._waiting)))
            self._waiting = []
            self._context.progress(min(1.0, trainer.step / trainer.target), f"episode {trainer.step}")
        self.clock.start()

    def on_end(self, trainer: Trainer) -> None:
        self.clock.stop()

    @property
    def regret(self) -> Tensor:
        """How far the values are from the largest there are, [policies, runs]; 0 where only by rounding."""
        regret = self.yardstick.best - torch.cat(self._values)
        return torch.where(regret.abs() < ROUNDING, 0.0, regret)

    def _keep(self, trainer: Trainer) -> None:
        self.episodes.append(trainer.step)
        self._waiting.append(trainer.policy.probabilities().clone())  # type: ignore[operator]


# ------------------------------------------------------------------------------------------------------- rows


def estimate(values: Tensor) -> Estimate:
    """The mean over runs, [runs]."""
    return bootstrap_mean(values.cpu().numpy(), rng=np.random.default_rng(0))


def against(name: str, values: Tensor, best: Tensor) -> Measurement:
    """Values [runs] against their optima [runs] or []: the interval is that of the difference."""
    optimum = best.mean()
    return Measurement(name, estimate(optimum + (values - best)), float(optimum), "exact", better="higher")


def value_rows(world: LinearWorld, table: Tensor) -> list[Measurement]:
    """Worst case and nominal value of final policies [runs, H, S, A]."""
    mdp, ball = world.built.mdp, world.exact_ball()
    return [
        against(name, evaluate(mdp, table, ambiguity).start, optimal(mdp, ambiguity).start)
        for name, ambiguity in (("robust_value", ball), ("nominal_value", None))
    ]


def perturbed_worlds(world: LinearWorld) -> LinearMDP:
    """Of batch [levels] or [runs, levels]."""
    assert world.built.perturbed is not None
    levels = torch.tensor(LEVELS[world.instance].values, dtype=torch.float64)
    return world.built.perturbed(levels).to(world.device)


def perturbed(world: LinearWorld, table: Tensor | None) -> tuple[list[Measurement], dict[str, Curve]]:
    """Values in the perturbed worlds, those of the oracle without a table; nothing where there are no such worlds."""
    if world.built.perturbed is None:
        return [], {}
    levels, worlds = LEVELS[world.instance], perturbed_worlds(world)
    best = optimal(worlds).start.expand(world.runs, -1)
    own = best if table is None else evaluate(worlds, table.unsqueeze(1)).start
    metrics = {"mean_value": (own.mean(1), best.mean(1))}
    for level in levels.rows:
        index = levels.values.index(level)
        metrics[f"value_at_{level:g}"] = own[:, index], best[:, index]
    rows = [against(name, *values) for name, values in metrics.items()]
    curves = {
        PERTURBATION: banded(levels.label, "value", levels.values, own),
        "share": banded(levels.label, "share of the best value", levels.values, own / best),
    }
    return rows, curves


def regret_rows(regret: Tensor) -> list[Measurement]:
    """Of the regret of every episode, [episodes, runs]."""
    return [
        Measurement("regret", estimate(regret.sum(0))),
        Measurement("regret_slope", slope(regret.mean(1).cumsum(0)), 0.5, "bound"),
    ]


def regret_curves(regret: Tensor) -> tuple[Curve, Curve]:
    """Its sum over the episodes so far, plainly and in double logarithms."""
    total = regret.cumsum(0)
    even = sorted({round(each) for each in np.linspace(1, len(total), POINTS)})
    growing = sorted({round(each) for each in np.geomspace(1, len(total), POINTS)})
    return (
        banded(EPISODES, REGRET, even, total[[k - 1 for k in even]].mT),
        Curve(
            x_label=f"log10 {EPISODES}",
            y_label=f"log10 {REGRET}",
            x=np.log10(growing).tolist(),
            y=total[[k - 1 for k in growing]].mean(1).log10().tolist(),
        ),
    )


def slope(total: Tensor) -> float:
    """Of log R_k in log k, by least squares over the last nine tenths of the episodes k; R [episodes]."""
    k = torch.arange(1, len(total) + 1, dtype=total.dtype, device=total.device)
    kept = slice(len(total) // 10, None)
    x, y = k[kept].log(), total[kept].log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def banded(x_label: str, y_label: str, x: Sequence[float], y: Tensor, *, reference: float | None = None) -> Curve:
    """The mean of y [runs, points] with a band of two standard errors."""
    mean = y.mean(0)
    error = 2 * y.std(0) / len(y) ** 0.5 if len(y) > 1 else torch.zeros_like(mean)
    return Curve(
        x_label=x_label,
        y_label=y_label,
        x=list(x),
        y=mean.tolist(),
        low=(mean - error).tolist(),
        high=(mean + error).tolist(),
        reference=reference,
    )


# -------------------------------------------------------------------------------------------------- the cases

FIVE_STATE = Setting(instance="five-state", runs=20)
ONE_HOT = Setting(instance="one-hot", runs=10)
RANDOM_LINEAR = Setting(instance="random-linear", runs=10)
PUT = Setting(instance="american-put", runs=10)
PUT_OFFLINE_SETTING = Setting(
    instance="american-put", runs=10, radius=0.025, options={"horizon": 20, "num_features": 30}
)
PUT_OFFLINE_OPTIONS = {"beta": 0.1, "ridge": 1.0, "part": 10}
"""As in the authors' code."""
FROZEN_LAKE = Setting(instance="frozen-lake", runs=4)

ONLINE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "lsvi_ucb": ("lsvi_ucb", {"known_rewards": True}),
    "dr_lsvi_ucb": ("dr_lsvi_ucb", {}),
    "dr_lsvi_ucb-rare": ("dr_lsvi_ucb", {"rare_switching": True}),
    "dr_rpo": ("dr_rpo", {"eta": 20.0}),
    "dr_rpo-mirror": ("dr_rpo", {"eta": None, "alpha": 1.0}),
}
OFFLINE: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "pevi": ("pevi", {"known_rewards": True}),
    "drpvi": ("drpvi", {}),
    "drvi_l": ("drpvi", {"divergence": "kl"}),
    "va_drpvi": ("va_drpvi", {}),
    "r2pvi-tv": ("r2pvi", {"divergence": "tv"}),
    "r2pvi-kl": ("r2pvi", {"divergence": "kl"}),
    "r2pvi-chi2": ("r2pvi", {"divergence": "chi2"}),
}
"""Method -> recipe and its arguments. The nominal methods are told the rewards, as the robust ones are."""

PUT_ONLINE: Mapping[str, Mapping[str, Any]] = {"lsvi_ucb": {}, "dr_lsvi_ucb": {}, "dr_rpo": {"eta": 20.0}}
PUT_OFFLINE: Mapping[str, Mapping[str, Any]] = {"pevi": {}, "drpvi": {}, "va_drpvi": {}, "r2pvi": {"weight": 1.0}}
"""Recipe -> its arguments on the put option, where caps are in units of the price."""


def cases(profile: str, data: Path | None) -> list[Case]:
    """All cases of a profile, in the order of the report; there is no use for ``data``."""
    quick = profile == "quick"
    chosen = [
        *_online("five-state", FIVE_STATE, 1_000 if quick else 6_000),
        *_exact("five-state", FIVE_STATE, ("optimal", "robust_optimal", "oracle")),
        *_online("one-hot", ONE_HOT, 2_000 if quick else 10_000),
        Case("eta", "dr_rpo", EtaCase(setting=FIVE_STATE, steps=300 if quick else 2_000), cost=3_000),
        Case("eta", "exact", EtaCase(setting=FIVE_STATE, steps=None), cost=1, max_seeds=1),
        *_offline("five-state-offline", FIVE_STATE, 400 if quick else 4_000),
        *_offline("one-hot-offline", ONE_HOT, 1_000 if quick else 10_000),
        *_put("american-put", PUT, PUT_ONLINE, 100 if quick else 1_000, {}),
        *_exact("american-put", PUT, ("oracle",)),
        *_put("american-put-offline", PUT_OFFLINE_SETTING, PUT_OFFLINE, 100 if quick else 1_000, PUT_OFFLINE_OPTIONS),
        *_exact("american-put-offline", PUT_OFFLINE_SETTING, ("oracle",)),
    ]
    if not quick:
        chosen += [*_online("random-linear", RANDOM_LINEAR, 5_000), *_online("frozen-lake", FROZEN_LAKE, 1_000)]
    return chosen


def _online(name: str, setting: Setting, steps: int) -> list[Case]:
    return [
        Case(
            name,
            method,
            LearnCase(setting=setting, recipe=recipe_, steps=steps, arguments=arguments, regret=True),
            cost=steps,
        )
        for method, (recipe_, arguments) in ONLINE.items()
    ]


def _offline(name: str, setting: Setting, steps: int) -> list[Case]:
    part = steps // POINTS
    return [
        Case(
            name,
            method,
            LearnCase(setting=setting, recipe=recipe_, steps=steps, arguments={**arguments, "part": part}),
            cost=steps / 10,
        )
        for method, (recipe_, arguments) in OFFLINE.items()
    ]


def _put(
    name: str, setting: Setting, methods: Mapping[str, Mapping[str, Any]], steps: int, common: Mapping[str, Any]
) -> list[Case]:
    return [
        Case(
            name,
            method,
            LearnCase(setting=setting, recipe=method, steps=steps, arguments={**common, **arguments}),
            cost=10 * steps,
        )
        for method, arguments in methods.items()
    ]


def _exact(name: str, setting: Setting, policies: tuple[Exact, ...]) -> list[Case]:
    return [Case(name, policy, ExactCase(setting=setting, policy=policy), cost=1, max_seeds=1) for policy in policies]
