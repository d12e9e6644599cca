"""The open inventory benchmark suite: every setting with the policies that fit it, against exact answers.

A case trains one policy with the recipe ``hdpo`` and measures it on demand no training saw, paired with a
control of known cost where there is one. Case names are the setting's, with other parameters behind it:
``one_store_lost-L2-p19/mlp``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from decisionrl.benchmarks.suite import Case, CaseContext, CaseResult, Measurement
from decisionrl.callbacks import Callback, Evaluate
from decisionrl.checkpoint import load_weights
from decisionrl.envs.inventory.scenarios import make_simulator, paper_scenarios, take
from decisionrl.envs.inventory.setting import Setting, load_setting
from decisionrl.envs.inventory.simulator import Simulator
from decisionrl.evaluation.inventory import evaluate_policies
from decisionrl.evaluation.measure import Measured, measure, measure_on_series, trace
from decisionrl.evaluation.references import Reference, best_capped
from decisionrl.evaluation.series import Curve, Series
from decisionrl.evaluation.statistics import Estimate, paired_difference
from decisionrl.experiment import Experiment
from decisionrl.recipes.hdpo import Evaluator, dev_evaluation, hdpo
from decisionrl.recipes.inventory_policies import ORACLES, UNTRAINED, build_policy
from decisionrl.robust.shift import robustify
from decisionrl.trainer import Trainer

Profile = Literal["quick", "full"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a policy trains and how precisely it is measured (scenarios x periods after a warm-up)."""

    steps: int
    batch: int | None = None
    learning_rate: float | None = None
    periods: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    scenarios: int = 4096
    measured_periods: int = 1000
    warmup: int = 500


@dataclass(frozen=True, kw_only=True)
class TrainAndMeasure:
    """One case: train ``policy`` on ``setting``, measure it.

    against: "optimum" is the setting's own reference; "best_capped" the best capped base stock; "rule" the tuned
    store-base-stock rule, trained here and run on the same demand.
    """

    setting: str
    policy: str
    budget: Budget
    overrides: Mapping[str, Any] = field(default_factory=dict)
    protocol: Literal["continuing", "paper"] = "continuing"
    against: Literal["optimum", "best_capped", "rule"] = "optimum"

    def __call__(self, context: CaseContext) -> CaseResult:
        budget = self.budget
        experiment = hdpo(
            setting=self.setting,
            policy=self.policy,
            protocol=self.protocol,
            steps=budget.steps,
            batch=budget.batch,
            periods=budget.periods,
            learning_rate=budget.learning_rate,
            policy_options=budget.options,
            overrides=self.overrides,
            seed=context.seed,
            device=context.device,
        )
        evaluator = experiment.evaluate
        assert isinstance(evaluator, Evaluator)
        training = _train(experiment, evaluator, budget.steps, context)
        rows, reference = self._measure(experiment, evaluator, context)
        rows.append(Measurement("training_cpu_seconds", training.cpu_seconds))
        path, network = trace(experiment.policy, evaluator.setting, evaluator.simulator)
        curve = training.curve(None if reference is None else reference.value)
        shifted = under_shift(experiment.policy, evaluator.setting)
        return CaseResult(rows, Series(curve=curve, path=path, network=network, curves={"demand_shift": shifted}))

    def _measure(
        self, experiment: Experiment, evaluator: Evaluator, context: CaseContext
    ) -> tuple[list[Measurement], Reference | None]:
        budget, setting, simulator = self.budget, evaluator.setting, evaluator.simulator
        if self.against == "rule":
            return self._measure_against_rule(experiment, evaluator, context)
        reference = best_capped(setting, simulator) if self.against == "best_capped" else evaluator.reference
        measured = measure(
            experiment.policy,
            setting,
            simulator,
            reference=reference,
            scenarios=budget.scenarios,
            periods=budget.warmup + budget.measured_periods,
            warmup=budget.warmup,
            seed=EVALUATION_SEED,
            progress=lambda done: context.progress(TRAINING_SHARE + (1 - TRAINING_SHARE) * done, "measuring"),
        )
        optimum = evaluator.reference
        if self.against == "best_capped" and optimum is not None:
            # The overview compares methods with the optimum; the rule's own limit is a row of its own.
            rows = [Measurement("cost", measured.cost, optimum.value, optimum.kind)]
            return [*rows, _row("cost_to_best_capped", measured)], optimum
        return [_row("cost", measured)], reference

    def _measure_against_rule(
        self, experiment: Experiment, evaluator: Evaluator, context: CaseContext
    ) -> tuple[list[Measurement], Reference | None]:
        """The tuned rule is the reference, run on the same paths; the bound is a row of its own."""
        budget = self.budget
        context.progress(TRAINING_SHARE, "tuning the rule")
        rule = hdpo(
            setting=self.setting,
            policy="store_base_stock",
            steps=RULE_STEPS[context.profile],
            overrides=self.overrides,
            device=context.device,
        )
        Trainer(rule).fit(RULE_STEPS[context.profile])
        costs = evaluate_policies(
            {"policy": experiment.policy, "rule": rule.policy},
            evaluator.setting,
            evaluator.simulator,
            scenarios=budget.scenarios,
            periods=budget.warmup + budget.measured_periods,
            warmup=budget.warmup,
            seed=EVALUATION_SEED,
            progress=lambda done: context.progress(TRAINING_SHARE + (1 - TRAINING_SHARE) * done, "measuring"),
        )
        rule_cost = costs["rule"].mean
        difference = paired_difference(
            costs["policy"].cost, costs["rule"].cost, rng=np.random.default_rng(EVALUATION_SEED)
        )
        estimate = _shifted(difference, rule_cost)
        rows = [Measurement("cost", estimate, rule_cost, "peer"), Measurement("cost_minus_rule", difference)]
        if evaluator.reference is not None:
            rows.append(Measurement("cost_over_bound", estimate, evaluator.reference.value, "bound"))
        return rows, Reference(rule_cost, "bound")


@dataclass(frozen=True, kw_only=True)
class SeriesCase:
    """One policy on a setting of series: trained on windows of the training columns unless it has nothing to
    train, the weights that do best on the development columns kept, measured on the test columns.

    The just-in-time oracle is the reference; it is inadmissible, and no bound where lanes differ in cost.
    """

    setting: str
    policy: str
    budget: Budget

    def __call__(self, context: CaseContext) -> CaseResult:
        setting = load_setting(self.setting, data=context.data)
        simulator = make_simulator(setting, device=context.device)
        name = self.policy.removesuffix(CHEAPEST)
        oracle = build_policy("just_in_time", setting, simulator)
        just_in_time = measure_on_series(oracle, setting, simulator, oracle=True)
        context.progress(0.05, "training")
        cpu_seconds, policy = self._policy(setting, simulator, context)
        own = measure_on_series(policy, setting, simulator, oracle=name in ORACLES)
        rows = [
            Measurement("cost", own.cost, just_in_time.cost.value, "oracle"),
            Measurement("share_of_just_in_time", _share(own.costs, just_in_time.costs), better="higher"),
            Measurement("training_cpu_seconds", cpu_seconds),
        ]
        path, network = trace(policy, setting, simulator, oracle=name in ORACLES)
        return CaseResult(rows, Series(path=path, network=network))

    def _policy(self, setting: Setting, simulator: Simulator, context: CaseContext) -> tuple[float, nn.Module]:
        start, name = time.process_time(), self.policy.removesuffix(CHEAPEST)
        if name in UNTRAINED:
            policy = build_policy(name, setting, simulator, options=self.budget.options, seed=context.seed)
            return time.process_time() - start, policy
        steps = self.budget.steps
        experiment = hdpo(
            setting=setting,
            policy=name,
            steps=steps,
            batch=self.budget.batch,
            learning_rate=self.budget.learning_rate,
            policy_options=self.budget.options,
            seed=context.seed,
            device=context.device,
        )
        select = dev_evaluation(setting, simulator, every=max(1, steps // 20))
        out = context.directory / "run"
        progress = _Progress(context, steps)
        Trainer(experiment, callbacks=[select, progress], out=out, resume=True).fit(steps)
        load_weights(experiment.policy, out / "best.safetensors")
        return time.process_time() - start, experiment.policy


@dataclass(frozen=True, kw_only=True)
class SampleEfficiency:
    """Cost against the number of training scenarios: fixed sets of each size, the same updates, best on dev kept."""

    setting: str
    policy: str
    steps: int
    batch: int
    sizes: tuple[int, ...] = (16, 64, 256, 1024, 8192)

    def __call__(self, context: CaseContext) -> CaseResult:
        rows, values = list[Measurement](), list[float]()
        lows, highs = list[float](), list[float]()
        for i, size in enumerate(self.sizes):
            context.progress(i / len(self.sizes), f"{size} training scenarios")
            measured = self._train(size, context)
            rows.append(Measurement(f"cost_with_{size}_scenarios", measured.cost))
            value = measured.cost.value
            values.append(value)
            lows.append(value if measured.cost.low is None else measured.cost.low)
            highs.append(value if measured.cost.high is None else measured.cost.high)
        curve = Curve(
            x_label="training scenarios (log2)",
            y_label="cost on new demand",
            x=[float(np.log2(size)) for size in self.sizes],
            y=values,
            low=lows,
            high=highs,
        )
        return CaseResult(rows[::-1], Series(curve=curve))

    def _train(self, size: int, context: CaseContext) -> Measured:
        experiment = hdpo(
            setting=self.setting,
            policy=self.policy,
            protocol="finite",
            train_scenarios=size,
            batch=self.batch,
            steps=self.steps,
            seed=context.seed,
            device=context.device,
        )
        evaluator = experiment.evaluate
        assert isinstance(evaluator, Evaluator)
        setting, simulator = evaluator.setting, evaluator.simulator
        dev = take(paper_scenarios(setting, simulator, "dev"), slice(0, 512))
        ignore = setting.phase("dev").ignore

        def on_dev(policy: nn.Module) -> dict[str, float]:
            return {"cost": float(simulator.rollout(policy, dev).cost[ignore:].mean())}

        select = Evaluate(on_dev, every=max(1, self.steps // 10), name="dev", keep_best="dev/cost")
        out = context.directory / f"run-{size}"
        Trainer(experiment, callbacks=[select], out=out, resume=True).fit(self.steps)
        load_weights(experiment.policy, out / "best.safetensors")
        return measure(
            experiment.policy,
            setting,
            simulator,
            reference=None,
            scenarios=1024,
            periods=1100,
            warmup=300,
            seed=EVALUATION_SEED,
        )


SHIFTS = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Radii of the balls around the distribution of demand paths, in nats."""


def under_shift(policy: nn.Module, setting: Setting) -> Curve:
    """How the policy's cost grows where demand is not what it was trained for: over 30 periods, the worst demand
    within each distance."""
    shift = robustify(policy, setting, SHIFTS, divergence="kl", scenarios=1024)
    return Curve(
        x_label="KL from the trained demand",
        y_label="worst cost",
        x=[0.0, *SHIFTS],
        y=[shift.nominal, *shift.worst.tolist()],
    )


class _Progress(Callback):
    name = "suite_progress"

    def __init__(self, context: CaseContext, steps: int) -> None:
        self._context, self._total = context, steps

    def on_step(self, trainer: Trainer) -> None:
        self._context.progress(trainer.step / self._total, f"update {trainer.step} of {self._total}")


def _share(costs: NDArray[np.float64], oracle: NDArray[np.float64]) -> Estimate:
    """Ratio of mean profits with a bootstrap interval over items, paired."""

    def ratio(a: NDArray[np.float64], b: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        return np.asarray(a.mean(axis=axis) / b.mean(axis=axis))

    value = float(ratio(costs, oracle))
    if np.array_equal(costs, oracle):
        return Estimate(value, value, value, len(costs))
    interval = stats.bootstrap(
        (costs, oracle),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(EVALUATION_SEED),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high), len(costs))


CHEAPEST = "-cheapest"
"""Method suffix of the rules that use each store's cheapest lane instead of its fastest."""

EVALUATION_SEED = 20_260_101
TRAINING_SHARE = 0.8
RULE_STEPS = {"quick": 300, "full": 1000}


class _Watch(Callback):
    """Measures the policy now and then on a small sample, off the training clock, and reports progress."""

    name = "watch"

    def __init__(self, context: CaseContext, evaluator: Evaluator, steps: int) -> None:
        self._context, self._evaluator, self._total = context, evaluator, steps
        self._due = sorted({round(steps * share**2) for share in np.linspace(0.15, 1.0, CURVE_POINTS)})
        self.cpu_seconds, self.steps, self.values = 0.0, list[int](), list[float]()
        self._start = time.process_time()

    def on_step(self, trainer: Trainer) -> None:
        done = trainer.step
        self._context.progress(TRAINING_SHARE * done / self._total, f"update {done} of {self._total}")
        if done in self._due:
            self.cpu_seconds += time.process_time() - self._start
            cost = self._evaluator(trainer.policy, episodes=CURVE_EPISODES, seed=EVALUATION_SEED, long=False)
            self.steps.append(done)
            self.values.append(cost["mean_cost"])
            self._start = time.process_time()

    def curve(self, reference: float | None) -> Curve:
        return Curve(
            x_label="updates",
            y_label="cost",
            x=[float(step) for step in self.steps],
            y=self.values,
            reference=reference,
        )


CURVE_POINTS = 10
CURVE_EPISODES = 128


def _train(experiment: Experiment, evaluator: Evaluator, steps: int, context: CaseContext) -> _Watch:
    """Train; the clock counts everything but the measurements of the learning curve."""
    watch = _Watch(context, evaluator, steps)
    Trainer(experiment, callbacks=[watch]).fit(steps)
    return watch


def _row(metric: str, measured: Measured) -> Measurement:
    if measured.reference is None:
        return Measurement(metric, measured.cost)
    return Measurement(metric, measured.cost, measured.reference.value, measured.reference.kind)


def _shifted(estimate: Estimate, by: float) -> Estimate:
    low = None if estimate.low is None else estimate.low + by
    high = None if estimate.high is None else estimate.high + by
    return Estimate(estimate.value + by, low, high, estimate.n)


# ---------------------------------------------------------------------------------------------- the cases


class Sample(TypedDict):
    """Fields of a Budget: how precisely a policy is measured."""

    scenarios: int
    measured_periods: int
    warmup: int


GNN_SAMPLE: Sample = {"scenarios": 512, "measured_periods": 500, "warmup": 200}
"""The graph network is some twenty times slower to run: a smaller sample where it is only looked at quickly."""

QUICK: Mapping[tuple[str, str], Budget] = {
    ("one_store_backlogged", "base_stock"): Budget(steps=300),
    ("one_store_backlogged", "mlp"): Budget(steps=400),
    ("one_store_lost", "capped_base_stock"): Budget(steps=400),
    ("one_store_lost", "mlp"): Budget(steps=400),
    ("one_store_lost", "mlp-paper"): Budget(steps=100),
    ("serial_system", "echelon_stock"): Budget(steps=400),
    ("serial_system", "mlp"): Budget(steps=400),
    ("serial_system", "gnn"): Budget(steps=150, batch=20, **GNN_SAMPLE),
    ("transshipment_backlogged", "water_filling"): Budget(steps=100, learning_rate=0.001),
    ("transshipment_backlogged", "mlp"): Budget(steps=400),
    ("transshipment_backlogged", "gnn"): Budget(steps=200, batch=48, **GNN_SAMPLE),
    ("one_warehouse_lost_demand", "store_base_stock"): Budget(steps=400),
    ("one_warehouse_lost_demand", "mlp"): Budget(steps=500),
    ("one_warehouse_lost_demand", "gnn"): Budget(steps=200, batch=48, **GNN_SAMPLE),
    ("many_warehouses_lost_demand", "store_base_stock"): Budget(steps=300),
    ("many_warehouses_lost_demand", "mlp"): Budget(steps=400),
    ("many_warehouses_lost_demand", "gnn"): Budget(steps=150, batch=28, **GNN_SAMPLE),
}

GNN_FULL: Sample = {"scenarios": 1024, "measured_periods": 800, "warmup": 300}

FULL: Mapping[tuple[str, str], Budget] = {
    ("one_store_backlogged", "base_stock"): Budget(steps=1000),
    ("one_store_backlogged", "mlp"): Budget(steps=1500),
    ("one_store_lost", "capped_base_stock"): Budget(steps=1000),
    ("one_store_lost", "mlp"): Budget(steps=1500),
    ("one_store_lost", "mlp-paper"): Budget(steps=800),
    ("serial_system", "echelon_stock"): Budget(steps=800),
    ("serial_system", "mlp"): Budget(steps=1500),
    ("serial_system", "gnn"): Budget(steps=600, batch=20, **GNN_FULL),
    ("transshipment_backlogged", "water_filling"): Budget(steps=300, learning_rate=0.001),
    ("transshipment_backlogged", "mlp"): Budget(steps=1500),
    ("transshipment_backlogged", "gnn"): Budget(steps=1500, batch=48, **GNN_FULL),
    ("one_warehouse_lost_demand", "store_base_stock"): Budget(steps=1000),
    ("one_warehouse_lost_demand", "mlp"): Budget(steps=2000),
    ("one_warehouse_lost_demand", "gnn"): Budget(steps=1500, batch=48, **GNN_FULL),
    ("many_warehouses_lost_demand", "store_base_stock"): Budget(steps=1000),
    ("many_warehouses_lost_demand", "mlp"): Budget(steps=1500),
    ("many_warehouses_lost_demand", "gnn"): Budget(steps=1500, batch=28, **GNN_FULL),
}

RULE_NAMES = ("quantile_nv", "returns_nv", "fixed_quantile", "transformed_nv", "just_in_time")
SERIES_QUICK: Mapping[tuple[str, str], Budget] = {
    ("one_store_real_data_lost_demand", "data_driven_net"): Budget(steps=500),
    **{("one_store_real_data_lost_demand", rule): Budget(steps=60) for rule in RULE_NAMES},
    ("many_warehouses_real_data_lost_demand", "data_driven_net"): Budget(steps=500),
    ("many_warehouses_real_data_lost_demand", "gnn"): Budget(steps=150),
    **{("many_warehouses_real_data_lost_demand", rule): Budget(steps=60) for rule in RULE_NAMES},
}
SERIES_FULL: Mapping[tuple[str, str], Budget] = {
    ("one_store_real_data_lost_demand", "data_driven_net"): Budget(steps=800, batch=512, learning_rate=0.005),
    **{("one_store_real_data_lost_demand", rule): Budget(steps=200) for rule in RULE_NAMES},
    ("many_warehouses_real_data_lost_demand", "data_driven_net"): Budget(steps=1600, learning_rate=0.005),
    ("many_warehouses_real_data_lost_demand", "gnn"): Budget(steps=1500),
    **{("many_warehouses_real_data_lost_demand", rule): Budget(steps=200) for rule in RULE_NAMES},
    **{
        ("many_warehouses_real_data_lost_demand", f"{rule}-cheapest"): Budget(steps=200, options={"lane": "cheapest"})
        for rule in RULE_NAMES
    },
}

LOST_CELLS = [(lead, p) for lead in (1, 2, 3, 4) for p in (4, 9, 19, 39)]
SERIAL_CELLS = [(4, p) for p in (4, 9, 19, 39)] + [(lead, 9) for lead in (1, 2, 3)]
"""(store lead time, underage cost) of the cells of the full profile; the default cell goes by the plain name."""


def cases(profile: str, data: Path | None) -> list[Case]:
    """All cases of a profile, in the order of the report. Raises DemandError for series that do not fit."""
    series = SERIES_QUICK if profile == "quick" else SERIES_FULL
    if data is not None:
        for setting in dict.fromkeys(setting for setting, _ in series):
            load_setting(setting, data=data)  # refused here, before anything is run
    chosen = []
    for (setting, method), budget in (QUICK if profile == "quick" else FULL).items():
        cells = [DEFAULT_CELL]
        if profile == "full" and not method.endswith(PAPER):
            cells = {"one_store_lost": LOST_CELLS, "serial_system": SERIAL_CELLS}.get(setting, cells)
        chosen += [_case(setting, method, budget, cell) for cell in cells]
    if profile == "full":
        for policy, batch in (("mlp", 256), ("gnn", 64)):
            efficiency = SampleEfficiency(setting=SAMPLES_SETTING, policy=policy, steps=300, batch=batch)
            chosen.append(Case(f"{SAMPLES_SETTING}-samples", policy, efficiency, cost=3000.0))
    label = "" if data is not None else "-synthetic"
    for (setting, policy), budget in series.items():
        run = SeriesCase(setting=setting, policy=policy, budget=budget)
        hint = budget.steps * (20.0 if policy == "gnn" else 3.0)
        chosen.append(Case(setting.replace("_real_data", "_series") + label, policy, run, cost=hint))
    return chosen


SAMPLES_SETTING = "one_warehouse_lost_demand"
DEFAULT_CELL = (4, 9)
PAPER = "-paper"


def _case(setting: str, method: str, budget: Budget, cell: tuple[int, int]) -> Case:
    policy = method.removesuffix(PAPER)
    overrides, name = {}, setting
    if cell != DEFAULT_CELL:
        overrides = {"store.lead_time": cell[0], "store.underage_cost": cell[1]}
        name = f"{setting}-L{cell[0]}-p{cell[1]}"
    against: Literal["optimum", "best_capped", "rule"] = "optimum"
    if policy == "capped_base_stock":
        against = "best_capped"
    elif "lost_demand" in setting and policy != "store_base_stock":
        against = "rule"
    run = TrainAndMeasure(
        setting=setting,
        policy=policy,
        budget=budget,
        overrides=overrides,
        protocol="paper" if method.endswith(PAPER) else "continuing",
        against=against,
    )
    return Case(name, method, run, cost=budget.steps * (10.0 if policy == "gnn" else 1.0))
