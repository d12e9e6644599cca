"""What an inventory policy is measured against: the exact optimum, a valid bound, and a control variate.

A control is a policy whose mean cost is known exactly. Run on the same demand, the difference to it has a far
smaller variance than the cost itself: a gap of 0.05 % can be told from noise in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from decisionrl.envs.inventory import oracles
from decisionrl.envs.inventory.demand import NormalDemand, PoissonDemand
from decisionrl.envs.inventory.setting import Setting
from decisionrl.envs.inventory.simulator import Observation, Policy, Simulator
from decisionrl.policies.inventory_rules import BalancedAllocation, BaseStock, CappedBaseStock, EchelonStock

LONGEST_SOLVED_LEAD_TIME = 4
"""Value iteration of lost sales with Poisson(5) demand takes seconds up to here, minutes beyond."""


@dataclass(frozen=True)
class Reference:
    """value: cost per period and store. control: a policy with exactly that mean cost, where there is one."""

    value: float
    kind: Literal["exact", "bound"]
    control: Policy | None = None


class OrderTable:
    """The optimal lost-sales policy: a table of orders by pipeline state (whole units)."""

    def __init__(self, orders: np.ndarray, device: torch.device, dtype: torch.dtype) -> None:
        self._orders = torch.as_tensor(orders, device=device).to(dtype)

    def __call__(self, observation: Observation) -> Tensor:
        shape = self._orders.shape
        index = torch.zeros_like(observation.slots[0], dtype=torch.int64)
        for slot, size in zip(observation.slots, shape, strict=False):
            index = index * size + slot.round().to(torch.int64).clamp(0, size - 1)
        return self._orders.flatten()[index]


def reference(setting: Setting, simulator: Simulator) -> Reference | None:
    """The exact optimal cost where it is known, else a valid lower bound, else None."""
    network, demand = setting.network, setting.demand
    if network.num_nodes == 1 and network.goal == "cost" and not setting.per_scenario:
        return _one_store(setting, simulator)
    if isinstance(demand, NormalDemand):
        if network.is_arborescence and network.num_stores == 1 and network.unmet_demand == "backlogged":
            return _serial(setting, simulator)
        if network.num_warehouses == 1 and all(network.must_ship_all[:1]):
            return _transshipment(setting, simulator)
        if network.unmet_demand == "lost" and network.goal == "cost":
            return Reference(_relaxation(setting), "bound")
    return None


def best_capped(setting: Setting, simulator: Simulator) -> Reference:
    """The best capped base stock in whole units, for one store with lost Poisson demand."""
    store, demand = setting.network.nodes[0], setting.demand
    best = oracles.best_capped_base_stock(
        lead_time=setting.network.lead_times[0],
        holding_cost=store.holding_cost,
        underage_cost=store.underage_cost or 0.0,
        demand_mean=float(demand.mean[0]),
    )
    cap = best.cap if best.cap is not None else 10 * best.level
    rule = CappedBaseStock(level=float(best.level), cap=float(cap)).to(simulator.device, simulator.dtype)
    return Reference(best.cost, "exact", rule)


def _one_store(setting: Setting, simulator: Simulator) -> Reference | None:
    store, demand = setting.network.nodes[0], setting.demand
    lead, h, p = setting.network.lead_times[0], store.holding_cost, store.underage_cost or 0.0
    if setting.network.unmet_demand == "backlogged" and isinstance(demand, NormalDemand):
        best = oracles.newsvendor_base_stock(
            lead_time=lead,
            holding_cost=h,
            underage_cost=p,
            demand_mean=float(demand.mean[0]),
            demand_std=float(demand.std[0]),
            clipped=demand.clip,
        )
        rule = BaseStock(level=best.level).to(simulator.device, simulator.dtype)
        return Reference(best.cost, "exact", rule)
    solvable = isinstance(demand, PoissonDemand) and lead <= LONGEST_SOLVED_LEAD_TIME
    if setting.network.unmet_demand == "lost" and solvable:
        solved = oracles.solve_lost_sales(
            lead_time=lead, holding_cost=h, underage_cost=p, demand_mean=float(demand.mean[0])
        )
        return Reference(solved.cost, "exact", OrderTable(solved.orders, simulator.device, simulator.dtype))
    return None


def _serial(setting: Setting, simulator: Simulator) -> Reference | None:
    network, demand = setting.network, setting.demand
    assert isinstance(demand, NormalDemand)
    if not demand.clip:
        return None
    best = oracles.clark_scarf(
        lead_times=network.lead_times[::-1],
        holding_costs=[node.holding_cost for node in network.nodes[::-1]],
        underage_cost=network.nodes[-1].underage_cost or 0.0,
        demand_mean=float(demand.mean[0]),
        demand_std=float(demand.std[0]),
    )
    rule = EchelonStock(network, levels=best.levels[::-1]).to(simulator.device, simulator.dtype)
    return Reference(best.cost, "exact", rule)


def _transshipment(setting: Setting, simulator: Simulator) -> Reference | None:
    demand = setting.demand
    assert isinstance(demand, NormalDemand)
    costs = {(node.holding_cost, node.underage_cost) for node in setting.network.nodes[1:]}
    equal = len(costs) == 1 and len(set(setting.network.lead_times[1:])) == 1
    if demand.clip or not equal or setting.network.unmet_demand != "backlogged":
        return None
    bound = transshipment_bound(setting)
    # The relaxed system itself, in which stores may send stock back, has exactly the bound as its mean cost.
    rule = BalancedAllocation(
        setting.network, level=bound.warehouse_level, mean=demand.mean.tolist(), std=demand.std.tolist(), relaxed=True
    ).to(simulator.device, simulator.dtype)
    return Reference(bound.cost, "bound", rule)


def transshipment_bound(setting: Setting) -> oracles.TransshipmentBound:
    """The balance relaxation's bound for a setting with one hub."""
    network, demand = setting.network, setting.demand
    store = network.nodes[-1]
    return oracles.transshipment_lower_bound(
        store_lead_time=network.lead_times[-1],
        warehouse_lead_time=network.lead_times[0],
        holding_cost=store.holding_cost,
        underage_cost=store.underage_cost or 0.0,
        demand_means=demand.mean,
        demand_stds=demand.std,
        correlation=float(getattr(demand, "correlation", 0.0)),
    )


def _relaxation(setting: Setting) -> float:
    """Sum of the stores' own bounds, per store: shortest lead times, no holding upstream, cheapest way in.

    In the long run every unit sold was ordered, so with c the cheapest way to a store its ordering costs are at
    least c (E[demand] - E[lost]): the store's own problem with p - c instead of p, plus c E[demand].
    """
    network, demand = setting.network, setting.demand
    assert isinstance(demand, NormalDemand)
    way = np.full(network.num_nodes, np.inf)
    lead = np.full(network.num_nodes, np.iinfo(np.int64).max)
    for i, j, edge in zip(network.edge_source, network.edge_destination, network.edges, strict=True):
        way[j] = min(way[j], edge.cost + (way[i] if i >= 0 else 0.0))
        lead[j] = min(lead[j], edge.lead_time)
    w = network.num_warehouses
    stores, cheapest = network.nodes[w:], way[w:]
    costs = oracles.lost_sales_relaxation_bound(
        lead_times=lead[w:].tolist(),
        holding_costs=[node.holding_cost for node in stores],
        underage_costs=[(node.underage_cost or 0.0) - c for node, c in zip(stores, cheapest, strict=True)],
        demand_means=demand.mean,
        demand_stds=demand.std,
    )
    z = demand.mean / demand.std
    mean_sold = demand.mean * stats.norm.cdf(z) + demand.std * stats.norm.pdf(z) if demand.clip else demand.mean
    return float((costs + cheapest * mean_sold).sum()) / network.num_stores
