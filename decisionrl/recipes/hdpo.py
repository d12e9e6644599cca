"""HDPO: train an inventory policy by differentiating the cost of simulated paths (arXiv 2306.11246)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from decisionrl.callbacks import LearningRateSchedule
from decisionrl.envs.inventory.scenarios import make_simulator, paper_scenarios
from decisionrl.envs.inventory.setting import Setting, load_setting
from decisionrl.experience.scenarios import ContinuingScenarios, FiniteScenarios
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner
from decisionrl.names import pick
from decisionrl.objectives.pathwise import Pathwise
from decisionrl.recipes.inventory_policies import BUILDERS, Build
from decisionrl.seeding import generator

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
    protocol: Literal["continuing", "finite"] | None = None,
    batch: int | None = None,
    periods: int | None = None,
    learning_rate: float = 0.01,
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
    """A policy, its scenarios and the pathwise learner, with a one-cycle learning rate over ``steps``.

    protocol: "continuing" (default for stationary demand): short rollouts on fresh demand from the stock in
    which the last one ended. "finite" (default for series): shuffled mini-batches of the training split, each
    from its own initial stock. batch, periods: default 256 scenarios and twice the longest lead time to a
    customer (16 to 40 periods) when continuing, the setting's own when finite. overrides: fields of the
    setting, see :func:`decisionrl.envs.inventory.setting.load_setting`. Raises SettingError, DemandError, or
    ValueError for an option that does not fit.
    """
    chosen = setting if isinstance(setting, Setting) else load_setting(setting, overrides, data=data)
    protocol = protocol or ("finite" if chosen.is_series else "continuing")
    if protocol not in ("continuing", "finite"):
        raise ValueError(f"protocol = {protocol!r}; valid: 'continuing', 'finite'")
    simulator = make_simulator(chosen, device=device, dtype=dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed, "weights").initial_seed() % 2**31))
        build = pick("policy", policy, BUILDERS)
        actor = build(Build(chosen, simulator), **(policy_options or {})).to(device, dtype)
    rng = generator(seed, "scenarios", device)
    source: ContinuingScenarios | FiniteScenarios
    if protocol == "continuing":
        periods = periods or default_periods(chosen)
        batch = batch or 256
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
        batch = batch or chosen.phase("train").batch
        periods = chosen.phase("train").periods
        source = FiniteScenarios(paper_scenarios(chosen, simulator, "train"), batch=batch, generator=rng)
    optimizer = torch.optim.Adam(actor.parameters(), lr=learning_rate, fused=True)
    learner = GradientLearner(
        actor, Pathwise(simulator, unit=money_unit(chosen), compile=compile), optimizer, clip_norm=clip_norm
    )
    config = {
        "recipe": "hdpo",
        "setting": chosen.name,
        "overrides": dict(overrides or {}),
        "data": None if data is None else str(data),
        "policy": policy,
        "policy_options": dict(policy_options or {}),
        "steps": steps,
        "protocol": protocol,
        "batch": batch,
        "periods": periods,
        "learning_rate": learning_rate,
        "clip_norm": clip_norm,
        "redraw": redraw,
        "redraw_every": redraw_every,
        "seed": seed,
        "dtype": str(dtype).removeprefix("torch."),
    }
    return Experiment(
        policy=actor,
        source=source,
        learner=learner,
        callbacks=(LearningRateSchedule(one_cycle(steps, learning_rate)),),
        config=config,
        metadata=METADATA,
    )


def default_periods(setting: Setting) -> int:
    """Twice the longest way from the supplier to a customer plus one period, between 16 and 40."""
    network = setting.network
    arrival = [0] * network.num_nodes
    for i, j, lead in zip(network.edge_source, network.edge_destination, network.lead_times, strict=True):
        arrival[j] = max(arrival[j], lead + (arrival[i] if i >= 0 else 0))
    return min(40, max(16, 2 * (max(arrival) + 1)))


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
