"""One store that loses unmet demand, with integer orders: the optimal policy and the best simple policies.

The state before an order is x = (x_0, …, x_{L−1}): x_0 units are on hand and x_j arrive in j periods. With
order z and demand d the next state is ((x_0 − d)⁺ + x_1, x_2, …, x_{L−1}, z); for L = 1, ((x_0 − d)⁺ + z).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from decisionrl.envs.inventory.oracles._checks import (
    check_costs,
    check_integer,
    check_positive,
    checked_pmf,
)
from decisionrl.envs.inventory.oracles.demand import convolve_pmf, newsvendor_costs, poisson_pmf

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# The largest table of (state, order) pairs to allocate: 400 MB of floats.
_MAX_TABLE = 50_000_000
_MAX_SWEEPS = 20_000


@dataclass(frozen=True)
class LostSalesOracle:
    """The optimal policy of one store with lost demand and integer orders.

    Attributes:
        cost: the optimal average cost per period, half-way between the two bounds.
        low: a lower bound of the optimal cost.
        high: an upper bound of the cost of `orders`, and so of the optimal cost.
        orders: optimal orders in units, indexed by the state x_0, …, x_{L−1}; 0 above `position_limit`.
        position_limit: bound on the stock on hand and on order, after ordering, in units.
        iterations: sweeps of value iteration.
    """

    cost: float
    low: float
    high: float
    orders: Integers
    position_limit: int
    iterations: int

    def order(self, pipeline: ArrayLike) -> Integers:
        """Orders [...] for pipelines [..., L] in units: fractions are rounded, values off the table clipped.

        Raises ValueError if the last axis of `pipeline` is not L long.
        """
        state = np.asarray(pipeline, dtype=np.float64)
        lead_time = self.orders.ndim
        if state.ndim == 0 or state.shape[-1] != lead_time:
            raise ValueError(f"pipeline has shape {state.shape}, its last axis must have length {lead_time}")
        index = np.clip(np.rint(state), 0, np.array(self.orders.shape) - 1).astype(np.int64)
        picked: Integers = np.asarray(self.orders[tuple(np.moveaxis(index, -1, 0))])
        return picked


@dataclass(frozen=True)
class CappedBaseStock:
    """The policy z = min(`cap`, (`level` − Σ x)⁺), in units, and its average cost per period.

    `cap` None: orders are not capped.
    """

    level: int
    cap: int | None
    cost: float


def solve_lost_sales(
    *,
    lead_time: int,
    holding_cost: float,
    underage_cost: float,
    demand_mean: float = 5.0,
    pmf: ArrayLike | None = None,
    tolerance: float = 1e-7,
) -> LostSalesOracle:
    """Optimal integer orders of one store with lost demand, by relative value iteration.

    The relative values V and the cost g solve

        V(x) + g = E[h (x_0 − d)⁺ + p (d − x_0)⁺] + min_z E V((x_0 − d)⁺ + x_1, x_2, …, x_{L−1}, z) = TV(x).

    Sweeps V ← TV stop when the smallest and the largest entry of TV − V, which enclose g, are within
    `tolerance` (Odoni, Operations Research 17(5), 1969). The p / (p + h) quantile of the demand of L + 1
    periods bounds the stock in the system, and that of one period bounds an order (Zipkin, Operations
    Research 56(5), 2008); both get one unit of slack. Time and memory grow as position_limit · order_limit^L.

    Args:
        lead_time: L ≥ 1, in periods.
        holding_cost: h > 0, per unit and period on hand.
        underage_cost: p > 0, per unit of lost demand.
        demand_mean: mean of Poisson demand, units per period; not used where `pmf` is given.
        pmf: probabilities of the demands 0, …, K − 1, [K], in place of Poisson demand.
        tolerance: largest distance between the two bounds of the cost.

    Raises:
        ValueError: an argument is out of its range, or the table would be too large.
        RuntimeError: the bounds do not close in, as can happen where demand is (almost) deterministic.
    """
    store = _lost_sales_store(lead_time, holding_cost, underage_cost, demand_mean, pmf, tolerance)
    shape = (store.position_limit + 1,) + (store.order_limit + 1,) * lead_time
    _check_table(lead_time, shape)
    position = _total(shape[:-1])
    reachable = position <= store.position_limit
    order = np.arange(shape[-1])
    barred = np.where((position[..., None] + order > store.position_limit) & (order > 0), np.inf, 0.0)
    stage_costs = _stage_costs(store, shape[0]).reshape((-1,) + (1,) * (lead_time - 1))
    stock_left = _stock_left(store.pmf, shape[0])
    # V is read at (stock left + arrivals, …); clipping touches only states that no reachable state leads to.
    on_hand = np.minimum(np.add.outer(np.arange(shape[0]), order), store.position_limit)

    values: Floats = np.zeros(shape[:-1])
    for sweep in range(1, _MAX_SWEEPS + 1):
        ahead = (stock_left @ values[on_hand].reshape(shape[0], -1)).reshape(shape)
        ahead += barred
        updated = stage_costs + ahead.min(axis=-1)
        change = (updated - values)[reachable]
        low, high = float(change.min()), float(change.max())
        if high - low < store.tolerance:
            orders = np.where(reachable, ahead.argmin(axis=-1), 0).astype(np.int64)
            return LostSalesOracle(0.5 * (low + high), low, high, orders, store.position_limit, sweep)
        values = updated - updated.flat[0]
    raise _not_converged(low, high, store.tolerance)


def capped_base_stock_cost(
    *,
    lead_time: int,
    holding_cost: float,
    underage_cost: float,
    level: int,
    cap: int | None = None,
    demand_mean: float = 5.0,
    pmf: ArrayLike | None = None,
    tolerance: float = 1e-7,
) -> float:
    """Average cost per period of ordering z = min(`cap`, (`level` − Σ x)⁺) at one store with lost demand.

    Exact up to `tolerance`. Without `cap` this is the base-stock policy. `level` ≥ 0 and `cap` ≥ 1 are in
    units; the other arguments and the errors are those of `solve_lost_sales`.
    """
    store = _lost_sales_store(lead_time, holding_cost, underage_cost, demand_mean, pmf, tolerance)
    check_integer("level", level, 0)
    if cap is not None:
        check_integer("cap", cap, 1)
    low, high = _policy_cost(store, level, cap)
    return 0.5 * (low + high)


def best_base_stock(
    *,
    lead_time: int,
    holding_cost: float,
    underage_cost: float,
    demand_mean: float = 5.0,
    pmf: ArrayLike | None = None,
    tolerance: float = 1e-7,
) -> CappedBaseStock:
    """The best integer base-stock level of one store with lost demand, and its exact cost.

    Searches all levels up to the position limit of the optimal policy. Arguments and errors are those of
    `solve_lost_sales`.
    """
    store = _lost_sales_store(lead_time, holding_cost, underage_cost, demand_mean, pmf, tolerance)
    return _best_base_stock(store)


def best_capped_base_stock(
    *,
    lead_time: int,
    holding_cost: float,
    underage_cost: float,
    demand_mean: float = 5.0,
    pmf: ArrayLike | None = None,
    tolerance: float = 1e-7,
) -> CappedBaseStock:
    """The best integer S and r of z = min(r, (S − Σ x)⁺) at one store with lost demand, and its exact cost.

    Searches every S up to the position limit of the optimal policy, with every r up to its order limit and
    with no cap. Arguments and errors are those of `solve_lost_sales`. The policy is that of Xin, Operations
    Research 69(1), 2021.
    """
    store = _lost_sales_store(lead_time, holding_cost, underage_cost, demand_mean, pmf, tolerance)
    uncapped = _best_base_stock(store)
    policies = [(s, r) for s in range(store.position_limit + 1) for r in range(1, min(s, store.order_limit) + 1)]
    # Near the usual optimum first: with a good incumbent the other policies are dismissed after a few sweeps.
    policies.sort(key=lambda policy: abs(policy[0] - uncapped.level) + 2.0 * abs(policy[1] - 1.2 * store.mean))
    return _search(store, policies, uncapped)


@dataclass(frozen=True)
class _Store:
    """Checked arguments of one store with lost demand, and the bounds of its optimal policy."""

    lead_time: int
    holding_cost: float
    underage_cost: float
    pmf: Floats
    mean: float
    position_limit: int
    order_limit: int
    tolerance: float


def _lost_sales_store(
    lead_time: int,
    holding_cost: float,
    underage_cost: float,
    demand_mean: float,
    pmf: ArrayLike | None,
    tolerance: float,
) -> _Store:
    check_integer("lead_time", lead_time, 1)
    check_costs(holding_cost, underage_cost)
    check_positive("tolerance", tolerance)
    if pmf is None:
        check_positive("demand_mean", demand_mean)
        demand = poisson_pmf(mean=demand_mean)
    else:
        demand = checked_pmf(pmf)
    fractile = underage_cost / (underage_cost + holding_cost)
    return _Store(
        lead_time=lead_time,
        holding_cost=holding_cost,
        underage_cost=underage_cost,
        pmf=demand,
        mean=float(demand @ np.arange(len(demand))),
        position_limit=_quantile(convolve_pmf(demand, lead_time + 1), fractile) + 1,
        order_limit=_quantile(demand, fractile) + 1,
        tolerance=tolerance,
    )


def _quantile(pmf: Floats, probability: float) -> int:
    """The smallest k with P(D ≤ k) ≥ `probability`, up to rounding."""
    return int(np.searchsorted(np.cumsum(pmf), probability - 1e-12))


def _stage_costs(store: _Store, size: int) -> Floats:
    """E[h (x − d)⁺ + p (d − x)⁺] for x = 0, …, size − 1, [size]."""
    padded = np.pad(store.pmf, (0, max(0, size - len(store.pmf))))
    costs = newsvendor_costs(padded, holding_cost=store.holding_cost, underage_cost=store.underage_cost)
    head: Floats = costs[:size]
    return head


def _stock_left(pmf: Floats, size: int) -> Floats:
    """P((x − D)⁺ = k) for x, k = 0, …, size − 1, [size, size]."""
    padded = np.pad(pmf, (0, max(0, size - len(pmf))))[:size]
    stock, left = np.ogrid[:size, :size]
    probability = np.where(left <= stock, padded[np.maximum(stock - left, 0)], 0.0)
    probability[:, 0] = 0.0
    probability[:, 0] = np.maximum(0.0, 1.0 - probability.sum(axis=1))
    return probability


def _total(shape: tuple[int, ...]) -> Integers:
    """x_0 + x_1 + … for every index of an array of this shape."""
    total = np.zeros(shape, dtype=np.int64)
    for axis in np.ogrid[tuple(slice(n) for n in shape)]:
        total += axis
    return total


def _policy_cost(store: _Store, level: int, cap: int | None, dismiss_above: float = math.inf) -> tuple[float, float]:
    """Bounds of the average cost of a policy: within the tolerance, or `low` above `dismiss_above`."""
    transition, costs = _policy_chain(store, level, level if cap is None else min(cap, level))
    values: Floats = np.zeros(len(costs))
    for _ in range(_MAX_SWEEPS):
        updated = costs + transition @ values
        change = updated - values
        low, high = float(change.min()), float(change.max())
        if high - low < store.tolerance or low > dismiss_above:
            return low, high
        values = updated - updated[0]
    raise _not_converged(low, high, store.tolerance)


def _policy_chain(store: _Store, level: int, cap: int) -> tuple[sparse.csr_array, Floats]:
    """Transition matrix and one-period costs over the states with Σ x ≤ level and x_1, …, x_{L−1} ≤ cap."""
    shape = (level + 1,) + (cap + 1,) * (store.lead_time - 1)
    _check_table(store.lead_time, shape)
    position = _total(shape)
    member = position <= level
    state = np.nonzero(member)
    number = np.cumsum(member).reshape(shape) - 1
    order = np.minimum(cap, level - position[member])

    # One entry for each state and each stock left of its x_0 units: 0, …, x_0.
    outcomes = state[0] + 1
    ends = np.cumsum(outcomes)
    row = np.repeat(np.arange(len(outcomes)), outcomes)
    left = np.arange(ends[-1]) - np.repeat(ends - outcomes, outcomes)
    probability = _stock_left(store.pmf, level + 1)[state[0][row], left]
    pipeline = [*(axis[row] for axis in state[1:]), order[row]]
    following = number[(left + pipeline[0], *pipeline[1:])]
    transition = sparse.csr_array(
        (probability, following, np.concatenate(([0], ends))), shape=(len(outcomes), len(outcomes))
    )
    return transition, _stage_costs(store, level + 1)[state[0]]


def _best_base_stock(store: _Store) -> CappedBaseStock:
    levels = range(store.position_limit, -1, -1)
    nothing = CappedBaseStock(level=0, cap=None, cost=store.underage_cost * store.mean)
    return _search(store, ((level, None) for level in levels), nothing)


def _search(store: _Store, policies: Iterable[tuple[int, int | None]], incumbent: CappedBaseStock) -> CappedBaseStock:
    """The cheapest of the `incumbent` and the `policies` (level, cap); ties go to the earlier one."""
    for level, cap in policies:
        if incumbent.cost < store.tolerance:
            break
        # A unit is on order or on hand for at least L + 1 periods, so at most S / (L + 1) sell per period.
        sold = min(level / (store.lead_time + 1), store.mean, math.inf if cap is None else cap)
        if store.underage_cost * (store.mean - sold) > incumbent.cost:
            continue
        low, high = _policy_cost(store, level, cap, dismiss_above=incumbent.cost)
        cost = 0.5 * (low + high)
        if cost < incumbent.cost - store.tolerance:
            incumbent = CappedBaseStock(level=level, cap=cap, cost=cost)
    return incumbent


def _check_table(lead_time: int, shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    if size > _MAX_TABLE:
        raise ValueError(
            f"lead_time is {lead_time}, which for this demand needs a table of {size:,} entries; at most "
            f"{_MAX_TABLE:,} are valid: shorten the lead time or count demand in larger units"
        )


def _not_converged(low: float, high: float, tolerance: float) -> RuntimeError:
    return RuntimeError(
        f"value iteration did not reach tolerance {tolerance} in {_MAX_SWEEPS} sweeps: the cost is in "
        f"[{low}, {high}]. With (almost) deterministic demand the chain can be periodic, or its cost can "
        "depend on the first state"
    )
