"""References: controls cost what they are said to cost, tables are the oracle's, bounds lie below what can be done."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from decisionrl.envs.inventory import oracles
from decisionrl.envs.inventory.scenarios import make_simulator
from decisionrl.envs.inventory.setting import load_setting
from decisionrl.envs.inventory.simulator import InfeasibleOrderError, Observation
from decisionrl.evaluation.inventory import evaluate_policies
from decisionrl.evaluation.measure import measure
from decisionrl.evaluation.references import OrderTable, best_capped, reference
from decisionrl.policies.inventory_rules import BaseStock
from decisionrl.recipes.inventory_policies import build_policy

SIZES: dict[str, Any] = {"scenarios": 1024, "periods": 600, "warmup": 200, "seed": 5}

CONTROLLED: list[tuple[str, dict[str, Any], str]] = [
    ("one_store_backlogged", {}, "exact"),
    ("one_store_backlogged", {"store.lead_time": 1, "store.underage_cost": 39.0}, "exact"),
    ("one_store_lost", {}, "exact"),
    ("one_store_lost", {"store.lead_time": 1, "store.underage_cost": 4.0}, "exact"),
    ("serial_system", {}, "exact"),
    ("serial_system", {"store.lead_time": 1}, "exact"),
    ("transshipment_backlogged", {}, "bound"),
    ("transshipment_backlogged", {"store.count": 5}, "bound"),
]


@pytest.mark.parametrize(("name", "overrides", "kind"), CONTROLLED)
def test_a_control_costs_what_is_known_of_it(name: str, overrides: dict[str, Any], kind: str) -> None:
    setting = load_setting(name, overrides)
    simulator = make_simulator(setting)
    known = reference(setting, simulator)
    assert known is not None
    assert known.control is not None
    assert known.kind == kind
    unchecked = frozenset({"control"}) if kind == "bound" else frozenset()
    cost = evaluate_policies({"control": known.control}, setting, simulator, unchecked=unchecked, **SIZES)["control"]
    error = cost.cost.std(ddof=1) / len(cost.cost) ** 0.5
    assert error < 0.01 * known.value
    assert abs(cost.mean - known.value) < 4 * error, f"{cost.mean} vs {known.value} +- {error}"


def test_the_best_capped_base_stock_costs_what_is_known_of_it() -> None:
    setting = load_setting("one_store_lost")
    simulator = make_simulator(setting)
    known = best_capped(setting, simulator)
    assert known.value == pytest.approx(6.91228, abs=1e-4)
    assert known.control is not None
    cost = evaluate_policies({"capped": known.control}, setting, simulator, **SIZES)["capped"].cost
    assert abs(cost.mean() - known.value) < 4 * cost.std(ddof=1) / len(cost) ** 0.5
    optimum = reference(setting, simulator)
    assert optimum is not None
    assert optimum.value < known.value


@pytest.mark.parametrize("lead", [1, 2, 3])
@pytest.mark.parametrize("slots", [3, 5])
def test_the_order_table_is_the_oracle_s(lead: int, slots: int) -> None:
    """On pipelines as long as the lead time or longer, whole or touched by float arithmetic, on the table or off it."""
    solved = oracles.solve_lost_sales(lead_time=lead, holding_cost=1.0, underage_cost=9.0, demand_mean=5.0)
    table = OrderTable(solved.orders, torch.device("cpu"), torch.float32)
    rng = np.random.default_rng(0)
    pipeline = rng.integers(0, 40, (500, slots)) + rng.uniform(-1e-3, 1e-3, (500, slots))
    columns = tuple(torch.tensor(pipeline[:, j : j + 1], dtype=torch.float32) for j in range(slots))
    parameters = make_simulator(load_setting("one_store_lost")).parameters
    observation = Observation(slots=columns, past_demand=None, time=None, parameters=parameters, period=0)
    orders = table(observation)
    assert orders.shape == (500, 1)
    np.testing.assert_array_equal(orders[:, 0].numpy(), solved.order(pipeline[:, :lead]))
    folded = observation._replace(slots=tuple(column.view(4, 125, 1) for column in columns))
    assert torch.equal(table(folded).view(500, 1), orders)


@pytest.mark.parametrize("name", ["one_warehouse_lost_demand", "many_warehouses_lost_demand"])
def test_the_relaxation_lies_below_a_rule_and_is_no_control(name: str) -> None:
    setting = load_setting(name)
    simulator = make_simulator(setting)
    bound = reference(setting, simulator)
    assert bound is not None
    assert (bound.kind, bound.control) == ("bound", None)
    rule = build_policy("store_base_stock", setting, simulator)
    cost = evaluate_policies({"rule": rule}, setting, simulator, **SIZES)["rule"].cost
    assert 0.3 * cost.mean() < bound.value < cost.mean() - 4 * cost.std(ddof=1) / len(cost) ** 0.5


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("one_store_real_data_lost_demand", {"demand.generator": {"items": 4, "periods": 171, "seed": 0}}),
        ("one_store_lost", {"store.lead_time": 5}),  # too many states to solve quickly
        ("one_store_lost", {"store.underage_cost": {"uniform": [4.0, 9.0], "seed": 1, "each": "scenario"}}),
    ],
)
def test_there_is_no_reference_where_none_is_known(name: str, overrides: dict[str, Any]) -> None:
    setting = load_setting(name, overrides)
    assert reference(setting, make_simulator(setting)) is None


# --- measuring against them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one_store_lost", "serial_system"])
def test_the_control_itself_measures_as_the_known_value(name: str) -> None:
    setting = load_setting(name, {"store.lead_time": 2} if name == "one_store_lost" else {})
    simulator = make_simulator(setting)
    known = reference(setting, simulator)
    assert known is not None
    assert known.control is not None
    measured = measure(known.control, setting, simulator, reference=known, scenarios=32, periods=40, warmup=10)
    assert measured.cost.value == measured.cost.low == measured.cost.high == known.value
    assert measured.gap == 0.0


def test_a_relaxed_system_is_a_control_but_no_policy() -> None:
    setting = load_setting("transshipment_backlogged")
    simulator = make_simulator(setting)
    known = reference(setting, simulator)
    assert known is not None
    assert known.control is not None
    sizes = {"scenarios": 32, "periods": 40, "warmup": 10}
    with pytest.raises(InfeasibleOrderError):
        measure(known.control, setting, simulator, reference=known, **sizes)
    policy = build_policy("water_filling", setting, simulator)
    assert measure(policy, setting, simulator, reference=known, **sizes).gap == pytest.approx(0.0, abs=0.05)


def test_a_control_narrows_the_interval_around_the_same_cost() -> None:
    setting = load_setting("one_store_backlogged")
    simulator = make_simulator(setting)
    known = reference(setting, simulator)
    assert known is not None
    assert isinstance(known.control, BaseStock)
    policy = BaseStock(level=float(known.control.level.detach()) + 0.5)
    sizes = {"scenarios": 512, "periods": 400, "warmup": 100}
    paired = measure(policy, setting, simulator, reference=known, **sizes)
    alone = measure(policy, setting, simulator, reference=None, **sizes)
    assert alone.gap is None
    assert paired.gap is not None
    assert paired.gap > 0
    np.testing.assert_array_equal(paired.costs, alone.costs)
    widths = []
    for estimate in (paired.cost, alone.cost):
        assert estimate.low is not None
        assert estimate.high is not None
        widths.append(estimate.high - estimate.low)
    assert widths[0] < 0.6 * widths[1]
    assert paired.cost.value == pytest.approx(alone.cost.value, abs=widths[1])
