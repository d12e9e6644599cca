"""Measure inventory policies: long rollouts of many scenarios, every policy on the same demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decisionrl.envs.inventory.scenarios import fresh_scenarios, initial_slots, series_scenarios, stationary_demand
from decisionrl.envs.inventory.setting import Setting
from decisionrl.envs.inventory.simulator import Observation, Policy, Scenario, Simulator, bound
from decisionrl.seeding import generator

CHUNK_BYTES = 64 * 2**20
"""Demand is drawn and simulated in chunks of about this many bytes, whatever the horizon."""

ALMOST_WHOLE = 1e-4


@dataclass(frozen=True)
class Evaluation:
    """cost: [scenarios] mean cost per period and store after the warm-up, for each scenario (float64).

    Scenarios are independent, so intervals and paired differences follow from these vectors.
    """

    cost: NDArray[np.float64]

    @property
    def mean(self) -> float:
        return float(self.cost.mean())


def evaluate_policies(
    policies: Mapping[str, Policy],
    setting: Setting,
    simulator: Simulator,
    *,
    scenarios: int = 4096,
    periods: int = 1500,
    warmup: int = 500,
    seed: int = 0,
    whole_units: bool | None = None,
    unchecked: frozenset[str] = frozenset(),
    progress: Callable[[float], None] | None = None,
) -> dict[str, Evaluation]:
    """Mean cost per period and store of several policies on the same fresh demand paths.

    Streams: memory does not grow with ``periods``. Demand comes from the stream (seed, "evaluation"), never
    the training one. whole_units: start from whole units and round orders (default: where demand comes in whole
    units, as the paper does for Poisson demand). Feasibility and unit conservation are asserted over the first 16
    periods, and InfeasibleOrderError raised, except for the policies named in ``unchecked`` (relaxed systems that
    serve as bounds).
    """
    if not 0 <= warmup < periods:
        raise ValueError(f"warmup = {warmup}; valid: 0 to periods - 1 = {periods - 1}")
    demand = stationary_demand(setting)
    rng = generator(seed, "evaluation", simulator.device)
    if whole_units is None:
        whole_units = demand.integer
    stores = setting.network.num_stores
    start = initial_slots(setting, simulator, scenarios, rng)
    if whole_units:
        start = tuple(slot.round() for slot in start)
    states = dict.fromkeys(policies, start)
    totals = {name: torch.zeros(scenarios, dtype=torch.float64, device=simulator.device) for name in policies}
    chunk = max(1, min(100, CHUNK_BYTES // (scenarios * stores * 4)))
    done = 0
    with torch.no_grad():
        while done < periods:
            length = min(chunk, periods - done, warmup - done if done < warmup else periods)
            if done == 0:
                length = min(length, 16)
            batch = fresh_scenarios(setting, simulator, batch=scenarios, periods=length, generator=rng, slots=start)
            for name, policy in policies.items():
                acting = bound(policy, batch.parameters)
                if whole_units:
                    acting = _rounded(acting, simulator)
                rollout = simulator.rollout(
                    acting, _from(batch, states[name]), check=done == 0 and name not in unchecked
                )
                states[name] = rollout.slots
                if done >= warmup:
                    totals[name] += rollout.cost.double().sum(0)
            done += length
            if progress is not None:
                progress(done / periods)
    return {name: Evaluation(_vector(total / ((periods - warmup) * stores))) for name, total in totals.items()}


def evaluate_on_series(
    policies: Mapping[str, Policy],
    setting: Setting,
    simulator: Simulator,
    *,
    split: str = "test",
    oracles: frozenset[str] = frozenset(),
) -> dict[str, Evaluation]:
    """Mean cost per period and store on one split of a setting's series; oracles are shown future demand."""
    scenario = series_scenarios(setting, simulator, split)  # type: ignore[arg-type]
    ignore = setting.phase(split).ignore
    result = {}
    with torch.no_grad():
        for name, policy in policies.items():
            cost = simulator.rollout(policy, scenario, oracle=name in oracles).cost
            result[name] = Evaluation(_vector(cost[ignore:].double().mean(0) / setting.network.num_stores))
    return result


def _rounded(policy: Policy, simulator: Simulator) -> Policy:
    """Whole units: orders from the supplier to the nearest; shipments down, so that they stay feasible.

    Where a hub must ship all it has, what rounding down leaves goes to the edges with the largest fractions.
    """
    network = simulator.network
    outside = torch.tensor([i < 0 for i in network.edge_source], device=simulator.device)
    hubs = [
        (node, [edge for edge, i in enumerate(network.edge_source) if i == node])
        for node, must in enumerate(network.must_ship_all)
        if must
    ]

    def act(observation: Observation) -> Tensor:
        orders = policy(observation)
        # A share such as 2.9999998 is 3 units that float arithmetic has touched.
        whole = torch.where(outside, orders.round(), (orders + ALMOST_WHOLE).floor())
        for node, edges in hubs:
            shares = orders[..., edges]
            floors = (shares + ALMOST_WHOLE).floor()
            left = observation.slots[0][..., node : node + 1].round() - floors.sum(-1, keepdim=True)
            rank = (floors - shares).argsort(dim=-1, stable=True).argsort(dim=-1)  # largest fraction first
            whole[..., edges] = floors + (rank < left)
        return whole

    return act


def _from(scenario: Scenario, slots: tuple[Tensor, ...]) -> Scenario:
    return replace(scenario, slots=slots)


def _vector(values: Tensor) -> NDArray[np.float64]:
    return values.cpu().numpy()
