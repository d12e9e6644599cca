"""Lower bounds for systems with a warehouse, where no exact optimum is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from decisionrl.envs.inventory.oracles._checks import (
    check_costs,
    check_integer,
    checked_positive_vector,
    checked_vector,
)
from decisionrl.envs.inventory.oracles.backlogged import newsvendor_base_stock

# Sixteen times finer lattices change costs by less than a quarter of this, relatively, for μ ≥ −1.25 s.
_LATTICE_MARGIN = 1e-5


@dataclass(frozen=True)
class TransshipmentBound:
    """A lower bound on the cost of a transshipment system, and the policy that attains it in the relaxation.

    Attributes:
        cost: per store and period.
        warehouse_level: the warehouse orders up to this total position (its own and all stores'), in units.
        safety_factor: z; the stores share stock so that all have the same factor, z on average.
    """

    cost: float
    warehouse_level: float
    safety_factor: float


def transshipment_lower_bound(
    *,
    store_lead_time: int,
    warehouse_lead_time: int,
    holding_cost: float,
    underage_cost: float,
    demand_means: ArrayLike,
    demand_stds: ArrayLike,
    correlation: float,
) -> TransshipmentBound:
    """Lower bound of one warehouse that never holds stock and S backlogged stores with normal demand.

    Stores may be rebalanced for free in the relaxation. With z = Φ⁻¹(p / (p + h)), s the standard deviations
    and s_tot² = ρ (Σ s)² + (1 − ρ) Σ s²,

        cost = (h + p) φ(z) √((L + 1)(Σ s)² + L_w s_tot²) / S,
        warehouse level Y = (L + 1 + L_w) Σ μ + z √((L + 1)(Σ s)² + L_w s_tot²)

    (Eppen and Schrage, 1981). Demand is not clipped at zero and is independent over time.

    Args:
        store_lead_time: L ≥ 1, warehouse to every store, in periods.
        warehouse_lead_time: L_w ≥ 1, supplier to warehouse, in periods.
        holding_cost: h > 0, per unit and period, the same at all stores.
        underage_cost: p > 0, per unit and period of backlog, the same at all stores.
        demand_means: μ, units per period, [S].
        demand_stds: s > 0, units per period, [S].
        correlation: ρ between the demands of any two stores, in [−1 / (S − 1), 1].

    Raises:
        ValueError: an argument is out of its range.
    """
    check_integer("store_lead_time", store_lead_time, 1)
    check_integer("warehouse_lead_time", warehouse_lead_time, 1)
    check_costs(holding_cost, underage_cost)
    means = checked_vector("demand_means", demand_means)
    stds = checked_positive_vector("demand_stds", demand_stds, len(means))
    lowest = -1.0 / (len(means) - 1) if len(means) > 1 else -1.0
    if not lowest <= correlation <= 1.0:
        raise ValueError(f"correlation is {correlation!r}, it must be in [{lowest:.6g}, 1] for {len(means)} stores")
    pooled = stds.sum() ** 2
    total_variance = correlation * pooled + (1.0 - correlation) * (stds**2).sum()
    spread = math.sqrt((store_lead_time + 1) * pooled + warehouse_lead_time * total_variance)
    safety = float(stats.norm.ppf(underage_cost / (underage_cost + holding_cost)))
    cycle = store_lead_time + 1 + warehouse_lead_time
    return TransshipmentBound(
        cost=(holding_cost + underage_cost) * float(stats.norm.pdf(safety)) * spread / len(means),
        warehouse_level=cycle * float(means.sum()) + safety * spread,
        safety_factor=safety,
    )


def lost_sales_relaxation_bound(
    *,
    lead_times: Sequence[int],
    holding_costs: ArrayLike,
    underage_costs: ArrayLike,
    demand_means: ArrayLike,
    demand_stds: ArrayLike,
) -> NDArray[np.float64]:
    """Lower bounds per period, [S], of the cost at each store of a warehouse system with lost demand.

    Their sum bounds the cost of the system: warehouse costs are at least zero, and an unlimited warehouse can
    only help. Each entry is the largest over l = 0, …, L of the optimal backlogged cost with lead time l and
    underage cost p / (l + 1). That bounds the lost-sales cost with lead time l (Janakiraman, Seshadri and
    Shanthikumar, Operations Research 55(5), 2007): if every lost unit is backlogged and ordered anew instead,
    it waits for l + 1 periods. And a longer lead time cannot help, since an order can always be delayed. The
    case l = 0 is the one-period newsvendor cost min_y E[h (y − d)⁺ + p (d − y)⁺].

    Demand is max(0, N(μ, s²)), independent over time, with any correlation between stores. l = 0 is in closed
    form; l ≥ 1 is computed on a lattice and lowered by 1e-5 of itself, more than the error of the lattice.

    Args:
        lead_times: L ≥ 1 of the shortest edge into each store, in periods, [S].
        holding_costs: h > 0 per unit and period, a number or [S].
        underage_costs: p > 0 per unit of lost demand, a number or [S].
        demand_means: μ before clipping, units per period, a number or [S].
        demand_stds: s > 0 before clipping, units per period, a number or [S].

    Raises:
        ValueError: an argument is out of its range.
    """
    if len(lead_times) == 0:
        raise ValueError("lead_times is empty, it must have one entry per store")
    for lead_time in lead_times:
        check_integer("lead_times", lead_time, 1)
    stores = len(lead_times)
    holding = checked_positive_vector("holding_costs", holding_costs, stores)
    underage = checked_positive_vector("underage_costs", underage_costs, stores)
    means = checked_vector("demand_means", demand_means, stores)
    stds = checked_positive_vector("demand_stds", demand_stds, stores)
    bounds = _one_period_costs(holding, underage, means, stds)
    for store, lead_time in enumerate(lead_times):
        for periods in range(1, lead_time + 1):
            relaxed = newsvendor_base_stock(
                lead_time=periods,
                holding_cost=float(holding[store]),
                underage_cost=float(underage[store]) / (periods + 1),
                demand_mean=float(means[store]),
                demand_std=float(stds[store]),
            )
            bounds[store] = max(bounds[store], (1.0 - _LATTICE_MARGIN) * relaxed.cost)
    return bounds


def _one_period_costs(
    holding: NDArray[np.float64],
    underage: NDArray[np.float64],
    means: NDArray[np.float64],
    stds: NDArray[np.float64],
) -> NDArray[np.float64]:
    """min over y ≥ 0 of E[h (y − d)⁺ + p (d − y)⁺] for d = max(0, N(μ, s²)), [S]."""
    # Clipping leaves P(d ≤ y) and E (d − y)⁺ unchanged for y ≥ 0.
    level = np.maximum(0.0, means + stds * stats.norm.ppf(underage / (underage + holding)))
    shortage = _normal_excess(level, means, stds)
    overage = level - _normal_excess(np.zeros_like(means), means, stds) + shortage
    costs: NDArray[np.float64] = holding * overage + underage * shortage
    return costs


def _normal_excess(
    level: NDArray[np.float64], means: NDArray[np.float64], stds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """E (N(μ, s²) − y)⁺."""
    z = (level - means) / stds
    excess: NDArray[np.float64] = stds * (stats.norm.pdf(z) - z * stats.norm.sf(z))
    return excess
