"""The oracles against computed tables, brute force, linear programming and simulation."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from decisionrl.envs.inventory import oracles
from decisionrl.envs.inventory.oracles import lost_sales

PENALTIES = (4.0, 9.0, 19.0, 39.0)

# Poisson(5), h = 1: (L, p) -> optimal cost; best base stock: S, cost; best capped base stock: S, r, cost.
LOST_SALES = {
    (1, 4): (4.04071, 12, 4.16280, 12, 6, 4.06542),
    (1, 9): (5.43822, 13, 5.54747, 14, 6, 5.48123),
    (1, 19): (6.67574, 15, 6.72779, 15, 8, 6.68775),
    (1, 39): (7.83595, 16, 7.86265, 16, 9, 7.84248),
    (2, 4): (4.39530, 16, 4.63864, 17, 5, 4.40573),
    (2, 9): (6.09364, 19, 6.31626, 19, 6, 6.11909),
    (2, 19): (7.66442, 21, 7.84217, 21, 7, 7.72086),
    (2, 39): (9.10638, 22, 9.19028, 22, 8, 9.13258),
    (3, 4): (4.59872, 20, 4.97500, 21, 5, 4.63077),
    (3, 9): (6.53137, 23, 6.86403, 24, 6, 6.61644),
    (3, 19): (8.36251, 26, 8.60449, 26, 6, 8.40104),
    (3, 39): (10.03848, 28, 10.21763, 28, 7, 10.08526),
    (4, 4): (4.72853, 25, 5.19777, 26, 5, 4.79785),
    (4, 9): (6.83594, 28, 7.27093, 29, 5, 6.91228),
    (4, 19): (8.88718, 31, 9.23193, 31, 6, 8.95438),
    (4, 39): (10.79441, 33, 11.06229, 34, 6, 10.89261),
}

# max(0, N(5, 1.6)), h = 1: L -> (level, cost) for each penalty. Levels are on a grid of 0.005.
BACKLOGGED = {
    1: ((11.905, 3.1666), (12.900, 3.9703), (13.720, 4.6666), (14.435, 5.2891)),
    4: ((28.010, 5.0062), (29.585, 6.2769), (30.885, 7.3778), (32.010, 8.3620)),
    7: ((43.810, 6.3319), (45.800, 7.9392), (47.445, 9.3317), (48.870, 10.5766)),
    10: ((59.465, 7.4245), (61.800, 9.3090), (63.730, 10.9419), (65.400, 12.4016)),
    15: ((85.390, 8.9538), (88.205, 11.2265), (90.530, 13.1958), (92.545, 14.9562)),
    20: ((111.175, 10.2575), (114.400, 12.8611), (117.060, 15.1171), (119.370, 17.1338)),
}

# max(0, N(5, 2)), store h 1, warehouse h .5 L 3, echelons h .2 L 4 and h .1 L 2: store L -> levels and cost
# for each penalty. Levels are on a grid of 0.01.
SERIAL = {
    1: (
        (13.62, 30.68, 54.29, 64.42, 6.8986),
        (14.65, 32.54, 56.81, 67.36, 8.3669),
        (15.54, 34.08, 58.87, 69.72, 9.6079),
        (16.34, 35.42, 60.63, 71.72, 10.7008),
    ),
    2: (
        (19.44, 36.00, 59.45, 69.52, 7.5984),
        (20.70, 38.06, 62.16, 72.64, 9.2610),
        (21.79, 39.77, 64.36, 75.13, 10.6703),
        (22.76, 41.26, 66.25, 77.26, 11.9129),
    ),
    3: (
        (25.12, 41.30, 64.62, 74.64, 8.2059),
        (26.58, 43.55, 67.49, 77.91, 10.0366),
        (27.84, 45.41, 69.83, 80.54, 11.5919),
        (28.96, 47.02, 71.84, 82.78, 12.9647),
    ),
    4: (
        (30.73, 46.60, 69.79, 79.76, 8.7525),
        (32.35, 49.00, 72.82, 83.18, 10.7339),
        (33.76, 51.00, 75.29, 85.93, 12.4201),
        (35.02, 52.74, 77.40, 88.28, 13.9099),
    ),
}

# (stores, correlation) -> cost for (L, p) = (2, 4), (2, 9), (6, 4), (6, 9).
TRANSSHIPMENT = {
    (3, 0.0): (5.1514, 6.4585, 7.2792, 9.1261),
    (3, 0.5): (5.7537, 7.2136, 7.7172, 9.6753),
    (5, 0.0): (4.5912, 5.7561, 6.6655, 8.3567),
    (5, 0.5): (5.2964, 6.6402, 7.1695, 8.9886),
    (10, 0.0): (4.6735, 5.8593, 6.9384, 8.6989),
    (10, 0.5): (5.5359, 6.9405, 7.5462, 9.4609),
}


def printed(value: float, digits: int) -> Any:
    """Equal to the printed digits, give or take a tenth of the last place where rounding is on the edge."""
    return pytest.approx(value, abs=0.6 * 10.0**-digits)


# -------------------------------------------------------------------------------- lost sales


@pytest.mark.parametrize(("lead_time", "penalty"), LOST_SALES)
def test_lost_sales_table(lead_time: int, penalty: int) -> None:
    optimal, level, level_cost, capped_level, cap, capped_cost = LOST_SALES[lead_time, penalty]
    store = {"lead_time": lead_time, "holding_cost": 1.0, "underage_cost": float(penalty)}
    solved = oracles.solve_lost_sales(**store)
    assert solved.cost == printed(optimal, 5)
    assert solved.low <= solved.cost <= solved.high
    base = oracles.best_base_stock(**store)
    assert (base.level, base.cap, base.cost) == (level, None, printed(level_cost, 5))
    capped = oracles.best_capped_base_stock(**store)
    assert (capped.level, capped.cap, capped.cost) == (capped_level, cap, printed(capped_cost, 5))


def average_cost_lp(pmf: list[float], lead_time: int, holding: float, underage: float, limit: int) -> float:
    """Optimal average cost by the linear program over state-action frequencies, all orders up to `limit`."""
    states = list(itertools.product(range(limit + 1), repeat=lead_time))
    pairs = [(x, z) for x in states for z in range(limit + 1) if sum(x) + z <= limit or z == 0]
    number = {x: i for i, x in enumerate(states)}
    balance = np.zeros((len(states) + 1, len(pairs)))
    cost = np.zeros(len(pairs))
    for column, (x, z) in enumerate(pairs):
        balance[number[x], column] += 1.0
        for d, probability in enumerate(pmf):
            left = max(x[0] - d, 0)
            pipeline = [*x[1:], z]
            following = (min(left + pipeline[0], limit), *pipeline[1:])
            balance[number[following], column] -= probability
            cost[column] += probability * (holding * left + underage * max(d - x[0], 0))
    balance[-1] = 1.0
    target = np.zeros(len(states) + 1)
    target[-1] = 1.0
    solution = optimize.linprog(cost, A_eq=balance, b_eq=target, method="highs")
    assert solution.success
    return float(solution.fun)


@pytest.mark.parametrize(
    ("pmf", "lead_time", "holding", "underage", "limit"),
    [
        ([0.3, 0.5, 0.2], 1, 1.0, 4.0, 8),
        ([0.3, 0.5, 0.2], 2, 1.0, 9.0, 8),
        ([0.5, 0.1, 0.1, 0.3], 2, 0.7, 3.0, 10),
        ([0.6, 0.3, 0.1], 3, 2.0, 5.0, 6),
        ([0.1, 0.0, 0.9], 3, 1.0, 19.0, 9),
    ],
)
def test_lost_sales_optimum_equals_the_linear_program(
    pmf: list[float], lead_time: int, holding: float, underage: float, limit: int
) -> None:
    solved = oracles.solve_lost_sales(
        lead_time=lead_time, holding_cost=holding, underage_cost=underage, pmf=pmf, tolerance=1e-9
    )
    assert solved.position_limit <= limit
    assert solved.cost == pytest.approx(average_cost_lp(pmf, lead_time, holding, underage, limit), abs=1e-7)


def test_lost_sales_bounds_on_orders_and_stock_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    quantile = lost_sales._quantile
    for _ in range(20):
        store: dict[str, Any] = {
            "lead_time": int(generator.integers(1, 4)),
            "holding_cost": 1.0,
            "underage_cost": float(generator.uniform(0.5, 30.0)),
            "pmf": generator.dirichlet(np.full(generator.integers(2, 7), 0.5)),
        }
        bounded = oracles.solve_lost_sales(**store)
        with monkeypatch.context() as patch:
            patch.setattr(lost_sales, "_quantile", lambda pmf, probability: quantile(pmf, probability) + 3)
            wider = oracles.solve_lost_sales(**store)
        assert bounded.cost == pytest.approx(wider.cost, abs=2e-7)


def simulated_lost_sales(
    policy: Any, lead_time: int, underage: float, paths: int = 2000, periods: int = 1000, ignored: int = 100
) -> tuple[float, float]:
    """Mean and standard error of the cost per period, for h = 1 and Poisson(5)."""
    generator = np.random.default_rng(7)
    pipeline = np.full((paths, lead_time), 5)
    total = np.zeros(paths)
    for period in range(periods):
        order = policy(pipeline)
        after = pipeline[:, 0] - generator.poisson(5.0, paths)
        if period >= ignored:
            total += np.maximum(after, 0) + underage * np.maximum(-after, 0)
        pipeline = np.column_stack((pipeline[:, 1:], order))
        pipeline[:, 0] += np.maximum(after, 0)
    averages = total / (periods - ignored)
    return float(averages.mean()), float(averages.std(ddof=1) / math.sqrt(paths))


@pytest.mark.parametrize(("lead_time", "penalty"), [(1, 39), (2, 9), (4, 9)])
def test_lost_sales_orders_cost_the_optimum_in_simulation(lead_time: int, penalty: int) -> None:
    solved = oracles.solve_lost_sales(lead_time=lead_time, holding_cost=1.0, underage_cost=float(penalty))
    mean, error = simulated_lost_sales(solved.order, lead_time, penalty)
    assert error < 0.01
    assert mean == pytest.approx(solved.cost, abs=4.0 * error)


@pytest.mark.parametrize(("lead_time", "penalty", "level", "cap"), [(2, 9, 19, None), (3, 19, 26, 6)])
def test_capped_base_stock_cost_in_simulation(
    lead_time: int, penalty: int, level: int, cap: int | None
) -> None:
    cost = oracles.capped_base_stock_cost(
        lead_time=lead_time, holding_cost=1.0, underage_cost=float(penalty), level=level, cap=cap
    )
    mean, error = simulated_lost_sales(
        lambda pipeline: np.clip(level - pipeline.sum(axis=1), 0, cap), lead_time, penalty
    )
    assert mean == pytest.approx(cost, abs=4.0 * error)


def test_capped_search_finds_the_minimum_over_all_pairs() -> None:
    store: dict[str, Any] = {"lead_time": 2, "holding_cost": 1.0, "underage_cost": 9.0, "demand_mean": 2.0}
    found = oracles.best_capped_base_stock(**store)
    costs = {
        (level, cap): oracles.capped_base_stock_cost(**store, level=level, cap=cap)
        for level in range(1, 16)
        for cap in range(1, level + 1)
    }
    assert found.cost == pytest.approx(min(costs.values()), abs=1e-6)
    assert costs[found.level, found.cap] == pytest.approx(found.cost, abs=1e-6)


def test_a_large_cap_is_no_cap() -> None:
    store: dict[str, Any] = {
        "lead_time": 3,
        "holding_cost": 1.0,
        "underage_cost": 9.0,
        "level": 12,
        "demand_mean": 2.5,
    }
    assert oracles.capped_base_stock_cost(**store, cap=12) == oracles.capped_base_stock_cost(**store)
    assert oracles.capped_base_stock_cost(**store, cap=99) == oracles.capped_base_stock_cost(**store)


def test_lost_sales_cost_grows_with_lead_time_and_penalty() -> None:
    costs = np.array(
        [
            [
                oracles.solve_lost_sales(
                    lead_time=lead, holding_cost=1.0, underage_cost=p, demand_mean=3.0
                ).cost
                for p in PENALTIES
            ]
            for lead in (1, 2, 3)
        ]
    )
    assert np.all(np.diff(costs, axis=0) > 0.0)
    assert np.all(np.diff(costs, axis=1) > 0.0)


def test_deterministic_demand_costs_nothing() -> None:
    store: dict[str, Any] = {"lead_time": 2, "holding_cost": 1.0, "underage_cost": 9.0, "pmf": [0, 0, 0, 1]}
    assert oracles.solve_lost_sales(**store).cost == 0.0
    assert oracles.best_base_stock(**store) == oracles.CappedBaseStock(level=9, cap=None, cost=0.0)
    assert oracles.best_capped_base_stock(**store).cost == 0.0


def test_cost_that_depends_on_the_first_state_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lost_sales, "_MAX_SWEEPS", 50)
    with pytest.raises(RuntimeError, match="tolerance 1e-07 in 50 sweeps"):
        oracles.capped_base_stock_cost(
            lead_time=1, holding_cost=1.0, underage_cost=9.0, level=12, cap=5, pmf=[0, 0, 0, 0, 0, 1]
        )


def test_order_table_lookup_rounds_and_clips() -> None:
    solved = oracles.solve_lost_sales(lead_time=2, holding_cost=1.0, underage_cost=9.0)
    assert solved.orders.shape[0] == solved.position_limit + 1
    assert solved.order([0, 0]) == solved.orders.max()
    pipelines = np.array([[[3.4, 4.6], [1e9, 0.0]], [[-2.0, 0.0], [0.0, 1e9]]])
    expected = [[solved.orders[3, 5], 0], [solved.orders[0, 0], solved.orders[0, -1]]]
    np.testing.assert_array_equal(solved.order(pipelines), expected)
    with pytest.raises(ValueError, match=r"shape \(2, 3\), its last axis must have length 2"):
        solved.order(np.zeros((2, 3)))


# -------------------------------------------------------------------------------- backlogged


@pytest.mark.parametrize("lead_time", BACKLOGGED)
def test_backlogged_table(lead_time: int) -> None:
    for penalty, (level, cost) in zip(PENALTIES, BACKLOGGED[lead_time], strict=True):
        store: dict[str, Any] = {
            "lead_time": lead_time,
            "holding_cost": 1.0,
            "underage_cost": penalty,
            "demand_mean": 5.0,
            "demand_std": 1.6,
        }
        found = oracles.newsvendor_base_stock(**store)
        assert found.level == pytest.approx(level, abs=0.005)
        assert found.cost == printed(cost, 4)
        normal = oracles.newsvendor_base_stock(**store, clipped=False)
        assert found.cost == pytest.approx(normal.cost, rel=1e-3)


def test_newsvendor_closed_form_is_the_minimum_of_its_integral() -> None:
    found = oracles.newsvendor_base_stock(
        lead_time=3, holding_cost=0.8, underage_cost=7.0, demand_mean=4.0, demand_std=3.0, clipped=False
    )
    demand = stats.norm(16.0, 6.0)

    def cost(y: float) -> float:
        shortage = 6.0 * (demand.pdf(y) * 6.0 - (y - 16.0) / 6.0 * demand.sf(y))
        return float(0.8 * (y - 16.0 + shortage) + 7.0 * shortage)

    best = optimize.minimize_scalar(cost, bounds=(0.0, 60.0), method="bounded", options={"xatol": 1e-9})
    assert found.level == pytest.approx(best.x, abs=1e-5)
    assert found.cost == pytest.approx(best.fun, rel=1e-9)


def test_newsvendor_with_much_clipping_in_simulation() -> None:
    found = oracles.newsvendor_base_stock(
        lead_time=2, holding_cost=1.0, underage_cost=9.0, demand_mean=1.0, demand_std=3.0
    )
    demand = np.maximum(0.0, np.random.default_rng(3).normal(1.0, 3.0, (1_000_000, 3))).sum(axis=1)
    costs = np.maximum(found.level - demand, 0.0) + 9.0 * np.maximum(demand - found.level, 0.0)
    assert costs.mean() == pytest.approx(found.cost, abs=4.0 * costs.std() / 1000.0)
    assert np.mean(demand <= found.level) == pytest.approx(0.9, abs=0.0015)


def test_a_store_that_should_hold_nothing_holds_nothing() -> None:
    found = oracles.newsvendor_base_stock(
        lead_time=1, holding_cost=9.0, underage_cost=1.0, demand_mean=-2.0, demand_std=1.0
    )
    assert found.level == 0.0
    demand = oracles.clipped_normal_pmf(mean=-2.0, std=1.0, width=1.0 / 256)
    assert found.cost == pytest.approx(2.0 * float(demand @ np.arange(len(demand))) / 256)


@pytest.mark.parametrize("store_lead_time", SERIAL)
def test_serial_table(store_lead_time: int) -> None:
    for penalty, (*levels, cost) in zip(PENALTIES, SERIAL[store_lead_time], strict=True):
        found = oracles.clark_scarf(
            lead_times=[store_lead_time, 3, 4, 2],
            holding_costs=[1.0, 0.5, 0.2, 0.1],
            underage_cost=penalty,
            demand_mean=5.0,
            demand_std=2.0,
        )
        assert found.levels == pytest.approx(levels, abs=0.01)
        assert found.cost == printed(cost, 4)


def test_serial_chain_of_one_stage_is_the_newsvendor() -> None:
    store: dict[str, Any] = {"underage_cost": 9.0, "demand_mean": 5.0, "demand_std": 2.0}
    chain = oracles.clark_scarf(lead_times=[3], holding_costs=[1.0], **store)
    single = oracles.newsvendor_base_stock(lead_time=3, holding_cost=1.0, **store)
    assert chain.levels == (pytest.approx(single.level),)
    assert chain.cost == pytest.approx(single.cost)


@pytest.mark.parametrize("cells", [64, 128, 512])
def test_lattice_width_does_not_matter(cells: int) -> None:
    chain: dict[str, Any] = {
        "lead_times": [2, 3, 4],
        "holding_costs": [1.0, 0.5, 0.2],
        "underage_cost": 9.0,
        "demand_mean": 5.0,
        "demand_std": 2.0,
    }
    found, default = oracles.clark_scarf(**chain, lattice_width=2.0 / cells), oracles.clark_scarf(**chain)
    assert found.cost == pytest.approx(default.cost, rel=2e-5)
    assert found.levels == pytest.approx(default.levels, abs=1e-3)


def test_serial_vector_of_stockpyl() -> None:
    """stockpyl 1.0: echelon holding costs 4, 3, 1, lead times 1, 1, 2, p = 40, N(10, 2).

    Its documentation prints S = 12.765, 23.497, 46.280 and C = 86.025 on a coarse grid; with x_num=4000 and
    d_num=400 it gives 12.770, 23.528, 46.320 and 86.0146. Its store lead time of 1 is 0 here, and it charges
    the transit to the store for one more period: h_2 · 10 = 40.
    """
    found = oracles.clark_scarf(
        lead_times=[0, 1, 2],
        holding_costs=[8.0, 4.0, 1.0],
        underage_cost=40.0,
        demand_mean=10.0,
        demand_std=2.0,
        pipeline_cost=True,
    )
    assert found.levels == pytest.approx((12.765, 23.497, 46.280), abs=0.035)
    assert found.levels == pytest.approx((12.770, 23.528, 46.320), abs=0.015)
    assert found.levels[0] == pytest.approx(10.0 + 2.0 * stats.norm.ppf(44.0 / 48.0), abs=1e-4)
    assert found.cost + 40.0 == pytest.approx(86.025, abs=0.011)
    assert found.cost + 40.0 == pytest.approx(86.0146, abs=0.002)


def simulated_chain(levels: tuple[float, ...]) -> tuple[float, float, float, float]:
    """Cost without and with transit, each with its standard error, of a chain of two stages.

    Store: L 2, h 1, p 9. Warehouse: L 3, h 0.5. Demand max(0, N(5, 2)).
    """
    generator = np.random.default_rng(11)
    paths, periods, ignored = 4000, 600, 100
    store, warehouse = np.full((paths, 2), 5.0), np.full((paths, 3), 5.0)
    cost, transit = np.zeros(paths), np.zeros(paths)
    for period in range(periods):
        wanted = np.maximum(0.0, levels[0] - store.sum(axis=1))
        shipped = np.minimum(wanted, warehouse[:, 0])
        ordered = np.maximum(0.0, levels[1] - store.sum(axis=1) - warehouse.sum(axis=1))
        after = store[:, 0] - np.maximum(0.0, generator.normal(5.0, 2.0, paths))
        kept = warehouse[:, 0] - shipped
        if period >= ignored:
            cost += np.maximum(after, 0.0) + 9.0 * np.maximum(-after, 0.0) + 0.5 * kept
            transit += 0.5 * (store[:, 1] + shipped)
        store = np.column_stack((after + store[:, 1], shipped))
        warehouse = np.column_stack((kept + warehouse[:, 1], warehouse[:, 2], ordered))
    cost /= periods - ignored
    full = cost + transit / (periods - ignored)
    root = math.sqrt(paths)
    return float(cost.mean()), float(cost.std() / root), float(full.mean()), float(full.std() / root)


def test_serial_cost_with_and_without_transit_in_simulation() -> None:
    chain: dict[str, Any] = {
        "lead_times": [2, 3],
        "holding_costs": [1.0, 0.5],
        "underage_cost": 9.0,
        "demand_mean": 5.0,
        "demand_std": 2.0,
    }
    local, full = oracles.clark_scarf(**chain), oracles.clark_scarf(**chain, pipeline_cost=True)
    assert local.levels == full.levels
    cost, cost_error, total, total_error = simulated_chain(local.levels)
    assert cost_error < 0.02
    assert cost == pytest.approx(local.cost, abs=4.0 * cost_error)
    assert total == pytest.approx(full.cost, abs=4.0 * total_error)


# -------------------------------------------------------------------------------- bounds


def sampled_stores(stores: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of the published settings (their recipe uses the legacy generator)."""
    means = np.random.RandomState(33).uniform(2.5, 7.5, stores).round(3)
    stds = (means * np.random.RandomState(92).uniform(0.25, 0.5, stores)).round(3)
    return means, stds


@pytest.mark.parametrize(("stores", "correlation"), TRANSSHIPMENT)
def test_transshipment_table(stores: int, correlation: float) -> None:
    means, stds = sampled_stores(stores)
    cells = itertools.product((2, 6), (4.0, 9.0))
    for (lead_time, penalty), cost in zip(cells, TRANSSHIPMENT[stores, correlation], strict=True):
        found = oracles.transshipment_lower_bound(
            store_lead_time=lead_time,
            warehouse_lead_time=3,
            holding_cost=1.0,
            underage_cost=penalty,
            demand_means=means,
            demand_stds=stds,
            correlation=correlation,
        )
        assert found.cost == printed(cost, 4)


def test_transshipment_bound_is_the_cost_of_its_relaxation_at_the_best_level() -> None:
    means, stds = sampled_stores(3)
    lead_time, warehouse_lead_time, correlation = 2, 3, 0.5
    found = oracles.transshipment_lower_bound(
        store_lead_time=lead_time,
        warehouse_lead_time=warehouse_lead_time,
        holding_cost=1.0,
        underage_cost=4.0,
        demand_means=means,
        demand_stds=stds,
        correlation=correlation,
    )
    generator = np.random.default_rng(5)
    covariance = correlation * np.outer(stds, stds) + (1.0 - correlation) * np.diag(stds**2)
    draws, cycle = 400_000, lead_time + 1
    upstream = generator.multivariate_normal(
        warehouse_lead_time * means, warehouse_lead_time * covariance, draws
    ).sum(axis=1)
    downstream = generator.multivariate_normal(cycle * means, cycle * covariance, draws)

    def costs(level: float) -> np.ndarray:
        # All stock that reached the stores is shared so that every store has the same safety factor.
        factor = (level - upstream - cycle * means.sum()) / (math.sqrt(cycle) * stds.sum())
        left = cycle * means + factor[:, None] * math.sqrt(cycle) * stds - downstream
        each: np.ndarray = np.where(left > 0.0, left, -4.0 * left).mean(axis=1)
        return each

    best = costs(found.warehouse_level)
    assert best.mean() == pytest.approx(found.cost, abs=4.0 * best.std() / math.sqrt(draws))
    assert costs(found.warehouse_level - 2.0).mean() > best.mean()
    assert costs(found.warehouse_level + 2.0).mean() > best.mean()


def test_transshipment_of_one_store_is_the_newsvendor_of_the_whole_lead_time() -> None:
    store: dict[str, Any] = {"holding_cost": 1.0, "underage_cost": 9.0}
    found = oracles.transshipment_lower_bound(
        **store,
        store_lead_time=2,
        warehouse_lead_time=3,
        demand_means=[5.0],
        demand_stds=[1.6],
        correlation=0.3,
    )
    single = oracles.newsvendor_base_stock(
        **store, lead_time=5, demand_mean=5.0, demand_std=1.6, clipped=False
    )
    assert (found.warehouse_level, found.cost) == (pytest.approx(single.level), pytest.approx(single.cost))


def test_lost_sales_relaxation_is_below_the_lost_sales_optimum() -> None:
    """On a unit lattice clipped normal demand has nearly the same cost, and the optimum is known."""
    mean, std = 5.0, 2.0
    pmf = oracles.clipped_normal_pmf(mean=mean, std=std, width=1.0)
    for lead_time, penalty in itertools.product((1, 2, 3), (1.0, 9.0, 39.0)):
        optimum = oracles.solve_lost_sales(
            lead_time=lead_time, holding_cost=1.0, underage_cost=penalty, pmf=pmf
        ).cost
        (bound,) = oracles.lost_sales_relaxation_bound(
            lead_times=[lead_time],
            holding_costs=1.0,
            underage_costs=penalty,
            demand_means=mean,
            demand_stds=std,
        )
        assert 0.5 * optimum < bound < optimum


def test_lost_sales_relaxation_is_at_least_the_one_period_newsvendor() -> None:
    means, stds = sampled_stores(4)
    underage = np.array([0.2, 4.0, 9.0, 39.0])
    bounds = oracles.lost_sales_relaxation_bound(
        lead_times=[2, 3, 2, 3],
        holding_costs=1.0,
        underage_costs=underage,
        demand_means=means,
        demand_stds=stds,
    )
    demand = np.maximum(0.0, np.random.default_rng(2).normal(means, stds, (200_000, 4)))
    level = np.maximum(0.0, means + stds * stats.norm.ppf(underage / (1.0 + underage)))
    one_period = np.maximum(level - demand, 0.0) + underage * np.maximum(demand - level, 0.0)
    errors = one_period.std(axis=0) / math.sqrt(200_000)
    assert bounds.shape == (4,)
    assert np.all(bounds > one_period.mean(axis=0) - 4.0 * errors)
    # With a tiny penalty a longer wait costs nothing more: the one-period cost is the largest bound.
    assert bounds[0] == pytest.approx(one_period[:, 0].mean(), abs=4.0 * errors[0])


# -------------------------------------------------------------------------------- the rest


def test_convolution_equals_direct_sums() -> None:
    pmf = oracles.poisson_pmf(mean=5.0)
    folded = oracles.convolve_pmf(pmf, 3)
    np.testing.assert_allclose(folded, np.convolve(np.convolve(pmf, pmf), pmf), atol=1e-15)
    np.testing.assert_allclose(folded, stats.poisson.pmf(np.arange(len(folded)), 15.0), atol=1e-14)
    np.testing.assert_array_equal(oracles.convolve_pmf(pmf, 0), [1.0])


def test_clipped_normal_moments() -> None:
    pmf = oracles.clipped_normal_pmf(mean=5.0, std=2.0, width=0.01)
    values = 0.01 * np.arange(len(pmf))
    excess = 5.0 * stats.norm.cdf(2.5) + 2.0 * stats.norm.pdf(2.5)
    assert pmf.sum() == pytest.approx(1.0)
    assert pmf[0] == pytest.approx(stats.norm.cdf(0.005, 5.0, 2.0))
    assert float(pmf @ values) == pytest.approx(excess, abs=1e-6)


LOST: dict[str, Any] = {"lead_time": 2, "holding_cost": 1.0, "underage_cost": 9.0}
NORMAL: dict[str, Any] = {**LOST, "demand_mean": 5.0, "demand_std": 1.0}
CHAIN: dict[str, Any] = {
    "lead_times": [2, 3],
    "holding_costs": [1.0, 0.5],
    "underage_cost": 9.0,
    "demand_mean": 5.0,
    "demand_std": 1.0,
}
SHARED: dict[str, Any] = {
    "store_lead_time": 2,
    "warehouse_lead_time": 3,
    "holding_cost": 1.0,
    "underage_cost": 9.0,
    "demand_means": [5.0, 4.0],
    "demand_stds": [1.0, 2.0],
    "correlation": 0.5,
}
STORES: dict[str, Any] = {
    "lead_times": [2, 3],
    "holding_costs": 1.0,
    "underage_costs": 9.0,
    "demand_means": 5.0,
    "demand_stds": 1.0,
}


@pytest.mark.parametrize(
    ("oracle", "good", "bad", "message"),
    [
        (
            oracles.solve_lost_sales,
            LOST,
            {"lead_time": 0},
            "lead_time is 0, it must be an integer of at least 1",
        ),
        (oracles.solve_lost_sales, LOST, {"lead_time": 1.5}, "lead_time is 1.5, it must be an integer"),
        (oracles.solve_lost_sales, LOST, {"lead_time": 12}, "lead_time is 12, .* at most 50,000,000"),
        (
            oracles.solve_lost_sales,
            LOST,
            {"holding_cost": -1.0},
            "holding_cost is -1.0, it must be .* above 0",
        ),
        (oracles.solve_lost_sales, LOST, {"underage_cost": math.nan}, "underage_cost is nan, it must be"),
        (oracles.solve_lost_sales, LOST, {"demand_mean": 0.0}, "demand_mean is 0.0, it must be .* above 0"),
        (oracles.solve_lost_sales, LOST, {"tolerance": 0.0}, "tolerance is 0.0, it must be .* above 0"),
        (oracles.solve_lost_sales, LOST, {"pmf": [0.5, 0.4]}, "pmf sums to 0.9, it must sum to 1"),
        (oracles.solve_lost_sales, LOST, {"pmf": [1.5, -0.5]}, "pmf has the entry -0.5, all must be"),
        (oracles.solve_lost_sales, LOST, {"pmf": [[1.0]]}, r"pmf has shape \(1, 1\), it must be a vector"),
        (oracles.solve_lost_sales, LOST, {"pmf": [1.0, 0.0]}, "pmf has no demand above 0"),
        (oracles.best_base_stock, LOST, {"lead_time": True}, "lead_time is True, it must be an integer"),
        (oracles.best_capped_base_stock, LOST, {"underage_cost": 0.0}, "underage_cost is 0.0, it must be"),
        (
            oracles.capped_base_stock_cost,
            LOST,
            {"level": -1},
            "level is -1, it must be an integer of at least 0",
        ),
        (oracles.capped_base_stock_cost, LOST, {"level": 9, "cap": 0}, "cap is 0, it must be .* at least 1"),
        (oracles.newsvendor_base_stock, NORMAL, {"lead_time": 0}, "lead_time is 0, it must be an integer"),
        (
            oracles.newsvendor_base_stock,
            NORMAL,
            {"demand_std": 0.0},
            "demand_std is 0.0, it must be .* above 0",
        ),
        (
            oracles.newsvendor_base_stock,
            NORMAL,
            {"demand_mean": math.inf},
            "demand_mean is inf, it must be a fin",
        ),
        (oracles.newsvendor_base_stock, NORMAL, {"lattice_width": -1.0}, "width is -1.0, it must be"),
        (
            oracles.clark_scarf,
            CHAIN,
            {"lead_times": [2]},
            "lead_times has 1 entries, it must have one per stage, 2",
        ),
        (
            oracles.clark_scarf,
            CHAIN,
            {"lead_times": [2, -1]},
            "lead_times is -1, it must be an integer of at least 0",
        ),
        (oracles.clark_scarf, CHAIN, {"holding_costs": [1.0, 1.0]}, "must decrease strictly upstream"),
        (oracles.clark_scarf, CHAIN, {"holding_costs": [1.0, 0.0]}, "holding_costs is .* must be above 0"),
        (
            oracles.transshipment_lower_bound,
            SHARED,
            {"correlation": -1.5},
            r"correlation is -1.5, .* in \[-1, 1\]",
        ),
        (
            oracles.transshipment_lower_bound,
            SHARED,
            {"store_lead_time": 0},
            "store_lead_time is 0, it must be",
        ),
        (oracles.transshipment_lower_bound, SHARED, {"demand_stds": [1.0]}, r"demand_stds has shape \(1,\)"),
        (oracles.lost_sales_relaxation_bound, STORES, {"lead_times": []}, "lead_times is empty"),
        (oracles.lost_sales_relaxation_bound, STORES, {"lead_times": [0, 1]}, "lead_times is 0, it must be"),
        (
            oracles.lost_sales_relaxation_bound,
            STORES,
            {"holding_costs": [1, -1]},
            "holding_costs is .* above 0",
        ),
        (
            oracles.lost_sales_relaxation_bound,
            STORES,
            {"demand_means": math.nan},
            "demand_means is .* be finite",
        ),
    ],
)
def test_bad_arguments(oracle: Any, good: dict[str, Any], bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        oracle(**{**good, **bad})
