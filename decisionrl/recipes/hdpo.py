"""HDPO: train an inventory policy by differentiating the cost of simulated paths (arXiv 2306.11246)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from decisionrl.callbacks import Evaluate, LearningRateSchedule
from decisionrl.envs.inventory.scenarios import make_simulator, paper_scenarios, take
from decisionrl.envs.inventory.setting import Setting, load_setting
from decisionrl.envs.inventory.simulator import Policy, Simulator
from decisionrl.evaluation.inventory import evaluate_on_series
from decisionrl.evaluation.measure import measure, measure_on_series
from decisionrl.evaluation.references import Reference, reference
from decisionrl.experience.scenarios import ContinuingScenarios, FiniteScenarios, WindowedScenarios
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner
from decisionrl.objectives.pathwise import Pathwise
from decisionrl.recipes.hdpo_paper import paper_learning_rate, paper_options
from decisionrl.recipes.inventory_policies import build_policy
from decisionrl.recipes.schedules import one_cycle
from decisionrl.seeding import generator

Protocol = Literal["continuing", "windows", "finite", "paper"]

LEARNING_RATES = {"gnn": 0.003} | dict.fromkeys(
    ("base_stock", "capped_base_stock", "echelon_stock", "store_base_stock", "water_filling"), 0.1
)
"""Peak of the one-cycle schedule where it is not 0.01: the graph network's repeated updates need a smaller one,
a handful of levels take a larger one."""

SCENARIO_PERIODS, GNN_SCENARIO_PERIODS = 8192, 2048
"""Scenarios x periods of one update of the continuing protocol; the graph network learns from fewer, and each is
more work for it."""

WINDOW_LANES = {"gnn": 16}
"""Scenarios side by side on windows of a network's series where they are not 64: a graph network does more work
for each and learns from fewer."""

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
    steps: int = 300,
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
    - "windows" (default for series): the same over windows of the training columns, which each lane walks through.
      Add :func:`dev_evaluation` to the trainer's callbacks to keep the weights that do best on the dev columns.
    - "finite": shuffled mini-batches of a fixed training set, each rollout from its own initial stock; one-cycle
      learning rate. ``train_scenarios`` limits the set.
    - "paper": the fixed set, batch, horizon, networks in raw units and constant learning rate of the released
      code (see :mod:`decisionrl.recipes.hdpo_paper`).

    batch, periods: by default, when continuing, rollouts of eight times the longest way to a customer (32 to 128
    periods) of as many scenarios as make 8,192 scenario-periods (the graph network: 2,048); on windows, twice the
    longest way and 64 scenarios (``WINDOW_LANES``) or as many as make 256 series; the setting's own otherwise.
    overrides: fields of the setting, see :func:`decisionrl.envs.inventory.setting.load_setting`. Raises
    SettingError, DemandError, or ValueError for an option that does not fit or a policy that has nothing to train.
    """
    chosen = setting if isinstance(setting, Setting) else load_setting(setting, overrides, data=data)
    protocol = protocol or ("windows" if chosen.is_series else "continuing")
    if protocol not in get_args(Protocol):
        raise ValueError(f"protocol = {protocol!r}; valid: {', '.join(get_args(Protocol))}")
    counts = {"steps": steps, "batch": batch, "periods": periods, "train_scenarios": train_scenarios}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} = {count}; valid: a whole number >= 1")
    if learning_rate is not None and not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate = {learning_rate}; valid: a positive number")
    simulator = make_simulator(chosen, device=device, dtype=dtype)
    options = dict(policy_options or {})
    if protocol == "paper":
        options = {**paper_options(chosen, policy), **options}
        learning_rate = learning_rate or paper_learning_rate(chosen, policy)
        clip_norm = clip_norm if policy == "gnn" else None
    learning_rate = learning_rate or (0.01 if protocol == "windows" else LEARNING_RATES.get(policy, 0.01))
    actor = build_policy(policy, chosen, simulator, options=options, seed=seed)
    trainable = [parameter for parameter in actor.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(
            f"policy = {policy!r} has nothing to train; build it with "
            "decisionrl.recipes.inventory_policies.build_policy and evaluate it as it is"
        )
    rng = generator(seed, "scenarios", device)
    source: ContinuingScenarios | WindowedScenarios | FiniteScenarios
    if protocol == "continuing":
        periods = periods or default_periods(chosen)
        batch = batch or max(16, (GNN_SCENARIO_PERIODS if policy == "gnn" else SCENARIO_PERIODS) // periods)
        source = ContinuingScenarios(
            chosen,
            simulator,
            batch=batch,
            periods=periods,
            generator=rng,
            redraw=redraw,
            redraw_every=redraw_every,
        )
    elif protocol == "windows":
        periods = periods or default_window(chosen)
        batch = batch or max(WINDOW_LANES.get(policy, 64), 256 // chosen.network.num_stores)
        source = WindowedScenarios(
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
        batch, periods = min(batch or chosen.phase("train").batch, training_set.batch), training_set.periods
        source = FiniteScenarios(training_set, batch=batch, generator=rng)
    soonest = min(chosen.network.lead_times)
    if periods <= soonest:
        raise ValueError(f"periods = {periods}; valid: more than {soonest}, or no order would arrive in a rollout")
    learner = GradientLearner(
        actor,
        Pathwise(simulator, unit=1.0 if protocol == "paper" else money_unit(chosen), compile=compile),
        torch.optim.Adam(trainable, lr=learning_rate, fused=True),
        clip_norm=clip_norm,
    )
    schedule = () if protocol == "paper" else (LearningRateSchedule(one_cycle(steps, learning_rate)),)
    config = {
        "recipe": "hdpo",
        "setting": chosen.name if isinstance(setting, Setting) else str(setting),
        "policy": policy,
        "policy_options": {name: _plain(value) for name, value in (policy_options or {}).items()},
        "steps": steps,
        "protocol": protocol,
        "batch": batch,
        "periods": periods,
        "train_scenarios": train_scenarios,
        "learning_rate": learning_rate,
        "clip_norm": clip_norm,
        "redraw": redraw,
        "redraw_every": redraw_every,
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

    def __call__(
        self, policy: nn.Module, *, episodes: int | None = None, seed: int = 1, long: bool = True
    ) -> dict[str, Any]:
        """Cost per period and store with a 95 % interval; on series, over the items of the test split.

        episodes: independent scenarios (4,096, or 256 if not ``long``), each followed for 1,000 periods after a
        warm-up of 500 (300 after 100 if not ``long``). Series have as many as they have items, and use the
        development split if not ``long``.
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
                scenarios=episodes or (4096 if long else 256),
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


def dev_evaluation(setting: Setting, simulator: Simulator, *, every: int) -> Evaluate:
    """Measures ``dev/cost`` on the dev columns of a setting of series and keeps the best weights in the run's
    directory: read them with ``load_weights(policy, out / "best.safetensors")``."""

    def measure(policy: Policy) -> dict[str, float]:
        return {"cost": evaluate_on_series({"policy": policy}, setting, simulator, split="dev")["policy"].mean}

    return Evaluate(measure, every, name="dev", keep_best="dev/cost")


def default_periods(setting: Setting) -> int:
    """Eight times the longest way from the supplier to a customer, between 32 and 128.

    Orders near the end of a rollout have their costs outside it, which biases the levels of long chains when
    rollouts are short: on the serial system a unit travels 13 periods.
    """
    return min(128, max(32, 8 * longest_way(setting)))


def default_window(setting: Setting) -> int:
    """Columns of a window: twice the longest way plus one period, between 16 and 40, within the training split."""
    return min(40, max(16, 2 * (longest_way(setting) + 1)), setting.phases["train"].periods)


def longest_way(setting: Setting) -> int:
    """Periods from the supplier to a customer over the slowest lanes."""
    network = setting.network
    arrival = [0] * network.num_nodes
    for i, j, lead in zip(network.edge_source, network.edge_destination, network.lead_times, strict=True):
        arrival[j] = max(arrival[j], lead + (arrival[i] if i >= 0 else 0))
    return max(arrival)


def money_unit(setting: Setting) -> float:
    """Holding a fifth of the mean demand for one period (profit: a tenth of the mean revenue); sizes gradients."""
    stores = [node for node in setting.network.nodes if node.underage_cost is not None]
    mean = float(setting.demand.mean.mean())
    if setting.network.goal == "profit":
        return mean * sum(node.underage_cost or 0.0 for node in stores) / len(stores) / 10
    return mean * (sum(node.holding_cost for node in stores) / len(stores)) / 5 or 1.0


def _plain(value: Any) -> Any:
    """An option as a config holds it: a module, such as a trained forecaster, by a digest of its weights."""
    if not isinstance(value, nn.Module):
        return value
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in value.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return f"{type(value).__name__} {digest.hexdigest()}"
