"""Quantile forecasts, the rules that order up to them, and the oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decisionrl.envs.inventory.demand import SeriesDemand
from decisionrl.envs.inventory.network import Edge, Network, Node
from decisionrl.envs.inventory.simulator import Observation, Scenario, Simulator
from decisionrl.policies.quantile import (
    FixedQuantile,
    JustInTime,
    QuantileForecaster,
    QuantileNewsvendor,
    ReturnsNewsvendor,
    TransformedNewsvendor,
    critical_ratio,
    interpolate_quantiles,
)

HISTORY = 6


def store(holding: float = 1.0, underage: float = 4.0, name: str = "store") -> Node:
    return Node(name=name, holding_cost=holding, underage_cost=underage)


def one_store(lead_time: int = 2) -> Network:
    edges = [Edge(source="supplier", destination="store", lead_time=lead_time)]
    return Network.create(nodes=[store()], edges=edges, unmet_demand="lost", goal="profit")


def two_warehouses() -> Network:
    """Three stores; the second has a slow and a fast lane, the fast one from the second warehouse."""
    nodes = [Node(name=f"w{i}", holding_cost=0.3) for i in range(2)] + [store(1.0, 4.0 + i, f"s{i}") for i in range(3)]
    lanes = [("supplier", "w0", 3), ("supplier", "w1", 1), ("w0", "s0", 2), ("w0", "s1", 4), ("w1", "s1", 2)]
    lanes += [("w1", "s2", 3)]
    edges = [Edge(source=a, destination=b, lead_time=lead) for a, b, lead in lanes]
    return Network.create(nodes=nodes, edges=edges, unmet_demand="lost", goal="profit")


def forecaster(*horizons: int) -> QuantileForecaster:
    torch.manual_seed(3)
    return QuantileForecaster(history=HISTORY, horizons=horizons)


def observe(simulator: Simulator, batch: int = 5, slots: float = 0.0, **changes: object) -> Observation:
    rng = torch.Generator().manual_seed(0)
    stores = simulator.network.num_stores
    observation = Observation(
        slots=tuple(slot + slots for slot in simulator.empty_slots(batch)),
        past_demand=20 * torch.rand(batch, stores, HISTORY, generator=rng),
        time=torch.tensor([0.1]),
        parameters=simulator.parameters,
        period=0,
    )
    return observation._replace(**changes)


def forecast(rule: QuantileNewsvendor, observation: Observation) -> torch.Tensor:
    assert observation.past_demand is not None
    assert observation.time is not None
    return rule.forecaster(observation.past_demand, observation.time)


@given(
    st.lists(st.floats(0, 100, width=32), min_size=19, max_size=19).map(sorted),
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8),
)
def test_interpolation_equals_numpy_with_extrapolated_ends(levels: list[float], quantiles: list[float]) -> None:
    q = np.array(levels)
    grid = np.arange(21) / 20
    values = np.concatenate([[max(2 * q[0] - q[1], 0.0)], q, [2 * q[-1] - q[-2]]])
    asked = torch.tensor([0.0, 1.0, 0.05, 0.5, *quantiles], dtype=torch.float64)
    got = interpolate_quantiles(torch.tensor(q).expand(len(asked), -1), asked)
    assert got.numpy() == pytest.approx(np.interp(asked.numpy(), grid, values), abs=1e-9)


def test_interpolation_slope_is_that_of_the_interval() -> None:
    quantile = torch.tensor([0.12, 0.97], requires_grad=True)
    levels = torch.arange(1.0, 20.0).square()
    interpolate_quantiles(levels.expand(2, -1), quantile).sum().backward()
    assert quantile.grad is not None
    # Between 0.10 and 0.15: (9 - 4) / 0.05; beyond 0.95 the last slope (361 - 324) / 0.05 goes on.
    assert quantile.grad.tolist() == pytest.approx([100.0, 740.0], rel=1e-4)


def test_quantiles_never_cross_and_are_never_negative() -> None:
    net = forecaster(1, 4)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=2.0)
    past = torch.randn(500, HISTORY) * 50
    quantiles = net(past, torch.rand(500, 1))
    assert quantiles.shape == (500, 2, 19)
    assert bool((quantiles >= 0).all())
    assert bool((quantiles.diff(dim=-1) >= 0).all())


def test_store_orders_up_to_its_newsvendor_quantile() -> None:
    simulator = Simulator(one_store(2))
    rule = QuantileNewsvendor(simulator.network, forecaster(2, 3, 5))
    observation = observe(simulator, slots=4.0)
    order = rule(observation)[:, 0]
    levels = forecast(rule, observation)[:, 0, rule.forecaster.horizons.index(3)].numpy()
    values = [np.interp(0.8, rule.forecaster.grid.numpy(), row) for row in levels]
    position = 4.0 * simulator.num_slots
    assert order.tolist() == pytest.approx(np.maximum(np.array(values) - position, 0), rel=1e-4)
    assert bool((order > 0).any())


def test_lead_time_of_a_scenario_selects_its_forecast() -> None:
    simulator = Simulator(one_store(5), lead_time_range=(4, 6))
    leads = torch.tensor([4.0, 5.0, 6.0, 5.0, 4.0])[:, None]
    observation = observe(simulator, parameters=simulator.parameters._replace(lead_time=leads))
    rule = QuantileNewsvendor(simulator.network, forecaster(5, 6, 7))
    order = rule(observation)[:, 0]
    columns = [rule.forecaster.horizons.index(int(lead) + 1) for lead in leads[:, 0]]
    levels = forecast(rule, observation)[range(5), 0, columns]
    assert torch.allclose(order, interpolate_quantiles(levels, torch.full((5,), 0.8)))


def test_echelon_level_is_the_sum_over_the_stores_behind_the_fastest_lanes() -> None:
    network = two_warehouses()
    simulator = Simulator(network)
    rule = QuantileNewsvendor(network, forecaster(3, 4, 5, 6))
    observation = observe(simulator, slots=0.5)
    short = rule.shortfall(observation)
    quantiles, ratio = forecast(rule, observation), critical_ratio(observation, 2)

    def level(s: int, horizon: int) -> torch.Tensor:
        row = quantiles[:, s, rule.forecaster.horizons.index(horizon)]
        return interpolate_quantiles(row, ratio[..., s].expand(len(row)))

    position = 0.5 * simulator.num_slots
    # s0 is fed by w0 (3 + 2 + 1 periods); s1 (1 + 2 + 1) and s2 (1 + 3 + 1) by w1.
    expected = [level(0, 6) - 2 * position, level(1, 4) + level(2, 5) - 3 * position]
    expected += [level(0, 3) - position, level(1, 3) - position, level(2, 4) - position]
    assert torch.allclose(short, torch.stack(expected, -1), rtol=1e-4)
    slow = [edge.name for edge in network.edges].index("w0->s1")
    assert bool((rule(observation)[:, slow] == 0).all())


def test_other_lanes_may_be_chosen() -> None:
    network = two_warehouses()
    names = [edge.name for edge in network.edges]
    lanes = [names.index("w0->s0"), names.index("w0->s1"), names.index("w1->s2")]
    rule = QuantileNewsvendor(network, forecaster(3, 4, 5, 6, 8), lanes=lanes)
    orders = rule(observe(Simulator(network), slots=0.5))
    assert bool((orders[:, lanes] > 0).any(0).all())
    assert bool((orders[:, names.index("w1->s1")] == 0).all())
    with pytest.raises(ValueError, match="one edge into each of the 3 stores"):
        JustInTime(network, lanes=lanes[::-1])


def test_missing_horizon_and_missing_history_are_named() -> None:
    with pytest.raises(ValueError, match=r"horizons = \[2\].*needed: \[3\]"):
        forecaster(2).check_horizons([2, 3])
    simulator = Simulator(one_store())
    rule = QuantileNewsvendor(simulator.network, forecaster(3))
    with pytest.raises(ValueError, match=r"demand\.history = 0"):
        rule(observe(simulator, past_demand=None))


def test_returns_send_the_excess_back_and_are_marked_inadmissible() -> None:
    network = two_warehouses()
    rule = ReturnsNewsvendor(network, forecaster(3, 4, 5, 6))
    orders = rule(observe(Simulator(network), slots=1000.0))
    used = [e for e, edge in enumerate(network.edges) if edge.name != "w0->s1"]
    assert bool((orders[:, used] < 0).all())
    assert not rule.admissible
    assert not JustInTime.admissible
    assert FixedQuantile.admissible


@pytest.mark.parametrize("network", [one_store(), two_warehouses()], ids=["store", "network"])
@pytest.mark.parametrize("kind", [FixedQuantile, TransformedNewsvendor])
def test_only_the_rule_learns_not_its_forecaster(network: Network, kind: type[FixedQuantile]) -> None:
    rule = kind(network, forecaster(3, 4, 5, 6))
    rule(observe(Simulator(network))).sum().backward()
    for name, parameter in rule.named_parameters():
        if name.startswith("forecaster."):
            assert parameter.grad is None
        elif parameter.numel():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().sum()) > 0, name


def test_forecaster_travels_with_the_rule() -> None:
    network = two_warehouses()
    first = TransformedNewsvendor(network, forecaster(3, 4, 5, 6))
    torch.manual_seed(99)
    second = TransformedNewsvendor(network, QuantileForecaster(history=HISTORY, horizons=(3, 4, 5, 6)))
    observation = observe(Simulator(network))
    assert not torch.equal(first(observation), second(observation))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(observation), second(observation))
    assert first.double().forecaster.grid.dtype == torch.float64


def test_just_in_time_neither_loses_sales_nor_holds_stock() -> None:
    simulator = Simulator(one_store(3))
    demand = torch.poisson(torch.full((40, 7, 1), 5.0), generator=torch.Generator().manual_seed(1))
    scenario = Scenario(slots=simulator.empty_slots(7), demand=demand, parameters=simulator.parameters)
    rollout = simulator.rollout(JustInTime(simulator.network), scenario, oracle=True, check=True)
    # Profit 4 per unit of demand, exactly: nothing is short and nothing is left.
    assert torch.equal(rollout.cost[3:], -4.0 * demand[3:, :, 0])
    with pytest.raises(ValueError, match="oracle=True"):
        simulator.rollout(JustInTime(simulator.network), scenario)


def test_just_in_time_reaches_stores_through_their_warehouse() -> None:
    network = two_warehouses()
    simulator = Simulator(network)
    demand = torch.poisson(torch.full((40, 4, 3), 5.0), generator=torch.Generator().manual_seed(1))
    scenario = Scenario(slots=simulator.empty_slots(4), demand=demand, parameters=simulator.parameters)
    cost = simulator.rollout(JustInTime(network), scenario, oracle=True).cost
    revenue = (demand * torch.tensor([4.0, 5.0, 6.0])).sum(-1)
    # What arrives from period 5 on was ordered in time; the last orders stand for demand beyond the data.
    assert torch.allclose(cost[5:], -revenue[5:])


def test_days_from_christmas_are_signed_and_nearest() -> None:
    days = SeriesDemand(table=torch.zeros(1, 1, 60)).days_from_christmas
    assert days[:2].tolist() == [7, 14]
    assert days[49:53].tolist() == [-15, -8, -1, 6]
