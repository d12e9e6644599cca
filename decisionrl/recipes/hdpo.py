"""HDPO: train an inventory policy by differentiating the cost of simulated paths (arXiv 2306.11246)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from decisionrl.callbacks import LearningRateSchedule
from decisionrl.envs.inventory.scenarios import make_simulator, paper_scenarios, take
from decisionrl.envs.inventory.setting import Setting, load_setting
from decisionrl.envs.inventory.simulator import Simulator
from decisionrl.evaluation.measure import measure, measure_on_series
from decisionrl.evaluation.references import Reference, reference
from decisionrl.experience.scenarios import ContinuingScenarios, FiniteScenarios
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner
from decisionrl.names import pick
from decisionrl.objectives.pathwise import Pathwise
from decisionrl.recipes.hdpo_paper import paper_learning_rate, paper_options
from decisionrl.recipes.inventory_policies import BUILDERS, Build
from decisionrl.seeding import generator

Protocol = Literal["continuing", "finite", "paper"]

LEARNING_RATES = {"gnn": 0.003} | dict.fromkeys(
    ("base_stock", "capped_base_stock", "echelon_stock", "store_base_stock", "water_filling"), 0.1
)
"""Peak of the one-cycle schedule where it is not 0.01: the graph network's repeated updates need a smaller one,
a handful of levels take a larger one."""

SCENARIO_PERIODS = 8192
"""Scenarios x periods of one update of the continuing protocol."""

METADATA = {
    "title": "Hindsight differentiable policy optimisation for inventory networks",
    "arxiv": "2306.11246",
    "changes": "pathwise gradients through a differentiable simulator instead of a score function",
    "limit": "with one base-stock parameter: stochastic gradient descent on the newsvendor cost",
    "kinds": "inventory",
}


def hdpo(
    *,
    setting: str | Path | Setting = "one_store_lost",
    policy: str = "mlp",
    steps: int = 400,
    protocol: Protocol | None = None,
    batch: int | None = None,
    periods: int | None = None,
    train_scenarios: int | None = None,
    learning_rate: float | None = None,
    clip_norm: float | None = 1.0,
    redraw: float = 0.125,
    redraw_every: int = 10,
    policy_options: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    compile: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Experiment:
    """A policy, its scenarios and the pathwise learner.

    protocol:

    - "continuing" (default for stationary demand): short rollouts on fresh demand from the stock in which the
      last one ended; one-cycle learning rate over ``steps``.
    - "finite" (default for series): shuffled mini-batches of a fixed training set, each rollout from its own
      initial stock; one-cycle learning rate. ``train_scenarios`` limits the set.
    - "paper": the fixed set, batch, horizon, networks in raw units and constant learning rate of the released
      code (see :mod:`decisionrl.recipes.hdpo_paper`).

    batch, periods: by default rollouts of eight times the longest way to a customer (32 to 128 periods) of as
    many scenarios as make 8,192 scenario-periods (at least 64) when continuing, the setting's own otherwise.
    overrides: fields of the setting, see :func:`decisionrl.envs.inventory.setting.load_setting`. Raises
    SettingError, DemandError, or ValueError for an option that does not fit.
    """
    chosen = setting if isinstance(setting, Setting) else load_setting(setting, overrides, data=data)
    protocol = protocol or ("finite" if chosen.is_series else "continuing")
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol = {protocol!r}; valid: {', '.join(get_args(Protocol))}")
    simulator = make_simulator(chosen, device=device, dtype=dtype)
    options = dict(policy_options or {})
    if protocol == "paper":
        options = {**paper_options(chosen, policy), **options}
        learning_rate = learning_rate or paper_learning_rate(chosen, policy)
    learning_rate = learning_rate or LEARNING_RATES.get(policy, 0.01)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "weights").initial_seed())
        actor = pick("policy", policy, BUILDERS)(Build(chosen, simulator), **options).to(device, dtype)
    rng = generator(seed, "scenarios", device)
    source: ContinuingScenarios | FiniteScenarios
    if protocol == "continuing":
        periods = periods or default_periods(chosen)
        batch = batch or max(64, SCENARIO_PERIODS // periods)
        source = ContinuingScenarios(
            chosen,
            simulator,
            batch=batch,
            periods=periods,
            generator=rng,
            redraw=redraw,
            redraw_every=redraw_every,
        )
    else:
        training_set = paper_scenarios(chosen, simulator, "train")
        if train_scenarios is not None:
            training_set = take(training_set, slice(0, train_scenarios))
        batch, periods = min(batch or chosen.phases["train"].batch, training_set.batch), training_set.periods
        source = FiniteScenarios(training_set, batch=batch, generator=rng)
    learner = GradientLearner(
        actor,
        Pathwise(simulator, unit=1.0 if protocol == "paper" else money_unit(chosen), compile=compile),
        torch.optim.Adam(actor.parameters(), lr=learning_rate, fused=True),
        clip_norm=None if protocol == "paper" and policy != "gnn" else clip_norm,
    )
    schedule = () if protocol == "paper" else (LearningRateSchedule(one_cycle(steps, learning_rate)),)
    config = {
        "recipe": "hdpo",
        "setting": chosen.name if not isinstance(setting, Path) else str(setting),
        "policy": policy,
        "steps": steps,
        "protocol": protocol,
        "batch": batch,
        "periods": periods,
        "train_scenarios": train_scenarios,
        "learning_rate": learning_rate,
        "clip_norm": clip_norm,
        "redraw": redraw,
        "redraw_every": redraw_every,
        "policy_options": dict(policy_options or {}),
        "overrides": dict(overrides or {}),
        "data": None if data is None else str(data),
        "seed": seed,
    }
    return Experiment(
        policy=actor,
        source=source,
        learner=learner,
        callbacks=schedule,
        config=config,
        metadata=METADATA,
        evaluate=Evaluator(chosen, simulator),
    )


@dataclass(frozen=True)
class Evaluator:
    """Measures policies in one setting; the reference is computed once, when first needed."""

    setting: Setting
    simulator: Simulator

    @cached_property
    def reference(self) -> Reference | None:
        return reference(self.setting, self.simulator)

    def __call__(self, policy: nn.Module, *, episodes: int = 4096, seed: int = 1, long: bool = True) -> dict[str, Any]:
        """Cost per period and store with a 95 % interval; on series, over the items of the test split.

        episodes: independent scenarios, each followed for 1,000 periods after a warm-up of 500 (300 after 100 if
        not ``long``). Series have as many as they have items, and use the development split if not ``long``.
        """
        setting = self.setting
        if setting.is_series:
            measured = measure_on_series(policy, setting, self.simulator, split="test" if long else "dev")
        else:
            periods, warmup = (1500, 500) if long else (400, 100)
            measured = measure(
                policy,
                setting,
                self.simulator,
                reference=self.reference,
                scenarios=episodes,
                periods=periods,
                warmup=warmup,
                seed=seed,
            )
        cost = measured.cost
        result: dict[str, Any] = {"mean_cost": cost.value, "low": cost.low, "high": cost.high, "episodes": cost.n}
        if setting.network.goal == "profit":
            result["mean_profit"] = -cost.value
        if measured.reference is not None:
            result |= {
                "reference": measured.reference.value,
                "reference_kind": measured.reference.kind,
                "gap": measured.gap,
            }
        return result


def default_periods(setting: Setting) -> int:
    """Eight times the longest way from the supplier to a customer, between 32 and 128.

    Orders near the end of a rollout have their costs outside it. On the serial system, where a unit travels 13
    periods, that biases levels by a cost of 0.5 % at 30 periods and 0.02 % at 100.
    """
    network = setting.network
    arrival = [0] * network.num_nodes
    for i, j, lead in zip(network.edge_source, network.edge_destination, network.lead_times, strict=True):
        arrival[j] = max(arrival[j], lead + (arrival[i] if i >= 0 else 0))
    return min(128, max(32, 8 * max(arrival)))


def money_unit(setting: Setting) -> float:
    """Holding a tenth of the mean demand for one period (profit: a tenth of the mean revenue); sizes gradients."""
    stores = [node for node in setting.network.nodes if node.underage_cost is not None]
    mean = float(setting.demand.mean.mean())
    if setting.network.goal == "profit":
        return mean * sum(node.underage_cost or 0.0 for node in stores) / len(stores) / 10
    return mean * (sum(node.holding_cost for node in stores) / len(stores)) / 5 or 1.0


def one_cycle(steps: int, learning_rate: float) -> Any:
    """The schedule factory: up to the peak over 30 % of the steps, then down to almost nothing."""

    def factory(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps + 1)

    return factory
