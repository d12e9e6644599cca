"""Optimal base-stock levels where unmet demand waits: one store, and a serial chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal, stats

from decisionrl.envs.inventory.oracles._checks import (
    check_costs,
    check_finite,
    check_integer,
    check_positive,
    checked_positive_vector,
)
from decisionrl.envs.inventory.oracles.demand import clipped_normal_pmf, convolve_pmf, newsvendor_costs

# Lattice cells per standard deviation of demand: five digits of the levels and costs are then exact.
_CELLS_PER_STD = 256


@dataclass(frozen=True)
class BaseStock:
    """A base-stock level (units of stock on hand and on order) and its average cost per period."""

    level: float
    cost: float


def newsvendor_base_stock(
    *,
    lead_time: int,
    holding_cost: float,
    underage_cost: float,
    demand_mean: float,
    demand_std: float,
    clipped: bool = True,
    lattice_width: float | None = None,
) -> BaseStock:
    """Optimal base stock of one store with backlogging: S* = argmin E[h (S − D_{L+1})⁺ + p (D_{L+1} − S)⁺].

    D_{L+1} is the demand of L + 1 periods. With z = Φ⁻¹(p / (p + h)) and normal demand that is not clipped,
    S* = (L + 1) μ + z σ √(L + 1) at cost (h + p) φ(z) σ √(L + 1) (Zipkin, Foundations of Inventory
    Management, 2000).

    Args:
        lead_time: L ≥ 1, in periods.
        holding_cost: h > 0, per unit and period on hand.
        underage_cost: p > 0, per unit and period of backlog.
        demand_mean: μ, units per period, before clipping.
        demand_std: σ > 0, units per period, before clipping.
        clipped: demand is max(0, N(μ, σ²)), convolved numerically; otherwise N(μ, σ²), in closed form.
        lattice_width: units per lattice cell of the convolution, by default σ / 256.

    Raises:
        ValueError: an argument is out of its range.
    """
    check_integer("lead_time", lead_time, 1)
    check_costs(holding_cost, underage_cost)
    check_finite("demand_mean", demand_mean)
    check_positive("demand_std", demand_std)
    periods = lead_time + 1
    if not clipped:
        safety = float(stats.norm.ppf(underage_cost / (underage_cost + holding_cost)))
        std = demand_std * math.sqrt(periods)
        density = float(stats.norm.pdf(safety))
        return BaseStock(periods * demand_mean + safety * std, (holding_cost + underage_cost) * density * std)
    width = demand_std / _CELLS_PER_STD if lattice_width is None else lattice_width
    demand = convolve_pmf(clipped_normal_pmf(mean=demand_mean, std=demand_std, width=width), periods)
    costs = newsvendor_costs(demand, holding_cost=holding_cost, underage_cost=underage_cost, width=width)
    return BaseStock(*_parabolic_minimum(costs, width))


@dataclass(frozen=True)
class EchelonBaseStock:
    """Echelon base-stock levels of a serial chain (units, downstream first) and average cost per period."""

    levels: tuple[float, ...]
    cost: float


def clark_scarf(
    *,
    lead_times: Sequence[int],
    holding_costs: Sequence[float],
    underage_cost: float,
    demand_mean: float,
    demand_std: float,
    pipeline_cost: bool = False,
    lattice_width: float | None = None,
) -> EchelonBaseStock:
    """Optimal echelon base-stock policy of a serial chain with backlogging and demand max(0, N(μ, σ²)).

    Stages are listed downstream first: store, warehouse, last echelon, …, first echelon. Stage j orders so
    that its echelon position (on hand and on order there and all downstream, less the backlog) is S_j. With
    D_k the demand of k periods and the stages numbered from 1,

        C_1(y) = E[h_1 (y − D_{L_1+1})⁺ + p (D_{L_1+1} − y)⁺],
        S_{j−1} = argmin_y C_{j−1}(y) − h_j y,
        C_j(y) = E[h_j (y − D_{L_j}) + (C_{j−1} − h_j·id)(min(S_{j−1}, y − D_{L_j}))],
        cost = C_N(S_N) = min_y C_N(y)

    (Clark and Scarf, Management Science 6(4), 1960, here with local holding costs: stage j pays h_j per unit
    on hand). Units in transit cost nothing, as in the simulator, unless `pipeline_cost` is set.

    Args:
        lead_times: L_j ≥ 0 in periods, [N]. The simulator needs L_j ≥ 1; a store with 0 receives its order
            before the demand of the same period, which other codes call a lead time of 1.
        holding_costs: h_j > 0 per unit and period on hand at stage j, [N], strictly decreasing upstream.
        underage_cost: p > 0, per unit and period of backlog at the store.
        demand_mean: μ, units per period, before clipping.
        demand_std: σ > 0, units per period, before clipping.
        pipeline_cost: also charge h_{j+1} for each unit in transit to stage j, on average h_{j+1} L_j E[d];
            no policy changes this sum, so the levels stay the same. Transit to stage N is free.
        lattice_width: units per lattice cell, by default σ / 256.

    Raises:
        ValueError: an argument is out of its range.
    """
    holding = checked_positive_vector("holding_costs", holding_costs)
    if np.any(np.diff(holding) >= 0.0):
        raise ValueError(f"holding_costs is {holding.tolist()}, it must decrease strictly upstream")
    if len(lead_times) != len(holding):
        raise ValueError(f"lead_times has {len(lead_times)} entries, it must have one per stage, {len(holding)}")
    for lead_time in lead_times:
        check_integer("lead_times", lead_time, 0)
    check_positive("underage_cost", underage_cost)
    check_finite("demand_mean", demand_mean)
    check_positive("demand_std", demand_std)

    width = demand_std / _CELLS_PER_STD if lattice_width is None else lattice_width
    demand = clipped_normal_pmf(mean=demand_mean, std=demand_std, width=width)
    mean = width * float(demand @ np.arange(len(demand)))
    # No level exceeds the largest demand of the whole lead time: that sets the grid y = 0, width, …
    size = (sum(lead_times) + 1) * (len(demand) - 1) + 1
    position = width * np.arange(size)
    first = convolve_pmf(demand, lead_times[0] + 1)
    first = np.pad(first, (0, size - len(first)))
    costs = newsvendor_costs(first, holding_cost=holding[0], underage_cost=underage_cost, width=width)

    levels: list[float] = []
    for lead_time, rate in zip(lead_times[1:], holding[1:], strict=True):
        echelon = costs - rate * position
        level, lowest = _parabolic_minimum(echelon, width)
        levels.append(level)
        # Above S the stage below takes only S: the function is flat there.
        echelon[position > level] = lowest
        ahead = _expectation(echelon, convolve_pmf(demand, lead_time), drop=(underage_cost + rate) * width)
        costs = rate * (position - lead_time * mean) + ahead
    level, cost = _parabolic_minimum(costs, width)
    if pipeline_cost:
        cost += mean * float(np.dot(holding[1:], lead_times[:-1]))
    return EchelonBaseStock((*levels, level), cost)


def _expectation(values: NDArray[np.float64], pmf: NDArray[np.float64], drop: float) -> NDArray[np.float64]:
    """E f(y − D) on the grid of `values` = f(0), f(1), …; below 0, f falls by `drop` per cell towards 0.

    Below zero a cost is affine, because demand is never negative: the store has a backlog for sure.
    """
    below = values[0] + drop * np.arange(len(pmf) - 1, 0, -1)
    expected: NDArray[np.float64] = signal.fftconvolve(np.concatenate((below, values)), pmf, mode="valid")
    return expected


def _parabolic_minimum(values: NDArray[np.float64], width: float) -> tuple[float, float]:
    """(argument, value) at the minimum of a smooth convex function sampled at 0, `width`, 2·`width`, …"""
    best = int(values.argmin())
    if best in (0, len(values) - 1):
        return best * width, float(values[best])
    left, middle, right = (float(v) for v in values[best - 1 : best + 2])
    curvature = left - 2.0 * middle + right
    if curvature <= 0.0:
        return best * width, middle
    slope = 0.5 * (right - left)
    return (best - slope / curvature) * width, middle - 0.5 * slope**2 / curvature
