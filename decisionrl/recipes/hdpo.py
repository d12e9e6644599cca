"""HDPO: train an inventory policy by differentiating the cost of simulated paths (arXiv 2306.11246)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from decisionrl.callbacks import Evaluate, LearningRateSchedule
from decisionrl.envs.inventory.scenarios import make_simulator, paper_scenarios
from decisionrl.envs.inventory.setting import Setting, load_setting
from decisionrl.envs.inventory.simulator import Policy, Simulator
from decisionrl.evaluation.inventory import evaluate_on_series
from decisionrl.experience.scenarios import ContinuingScenarios, FiniteScenarios, WindowedScenarios
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner
from decisionrl.objectives.pathwise import Pathwise
from decisionrl.recipes.inventory_policies import build_policy
from decisionrl.recipes.schedules import one_cycle
from decisionrl.seeding import generator

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
    steps: int = 400,
    protocol: Literal["continuing", "windows", "finite"] | None = None,
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
    which the last one ended. "windows" (default for series): the same over windows of the training columns,
    which each lane walks through. "finite": shuffled mini-batches of the training split, each from its own
    initial stock. batch, periods: default twice the longest lead time to a customer (16 to 40 periods), and 256
    scenarios when continuing, on windows 64 (``WINDOW_LANES``) or as many as make 256 series; the setting's own
    when finite. overrides: fields of the setting, see :func:`decisionrl.envs.inventory.setting.load_setting`. For
    series, add :func:`dev_evaluation` to the trainer's callbacks to keep the weights that do best on the dev
    columns. Raises SettingError, DemandError, or ValueError for an option that does not fit or a policy that
    has nothing to train.
    """
    chosen = setting if isinstance(setting, Setting) else load_setting(setting, overrides, data=data)
    protocol = protocol or ("windows" if chosen.is_series else "continuing")
    simulator = make_simulator(chosen, device=device, dtype=dtype)
    actor = build_policy(policy, chosen, simulator, options=policy_options, seed=seed)
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
        batch = batch or chosen.phases["train"].batch
        periods = chosen.phases["train"].periods
        source = FiniteScenarios(paper_scenarios(chosen, simulator, "train"), batch=batch, generator=rng)
    optimizer = torch.optim.Adam(trainable, lr=learning_rate, fused=True)
    learner = GradientLearner(
        actor, Pathwise(simulator, unit=money_unit(chosen), compile=compile), optimizer, clip_norm=clip_norm
    )
    config = {
        "recipe": "hdpo",
        "setting": chosen.name,
        "overrides": dict(overrides or {}),
        "data": None if data is None else str(data),
        "policy": policy,
        "policy_options": {name: _plain(value) for name, value in (policy_options or {}).items()},
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


def dev_evaluation(setting: Setting, simulator: Simulator, *, every: int) -> Evaluate:
    """Measures ``dev/cost`` on the dev columns of a setting of series and keeps the best weights in the run's
    directory: read them with ``load_weights(policy, out / "best.safetensors")``."""

    def measure(policy: Policy) -> dict[str, float]:
        return {"cost": evaluate_on_series({"policy": policy}, setting, simulator, split="dev")["policy"].mean}

    return Evaluate(measure, every, name="dev", keep_best="dev/cost")


def default_periods(setting: Setting) -> int:
    """Twice the longest way from the supplier to a customer plus one period, between 16 and 40."""
    return min(40, max(16, 2 * (longest_way(setting) + 1)))


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
    """Holding a tenth of the mean demand for one period (profit: a tenth of the mean revenue); sizes gradients."""
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
