"""The simulator against a plain Python one, on random networks, and what its checks must catch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decisionrl.envs.inventory.network import Edge, Network, NetworkError, Node
from decisionrl.envs.inventory.simulator import (
    InfeasibleOrderError,
    Observation,
    Parameters,
    Scenario,
    Simulator,
    Slots,
)

KINDS = (("lost", "cost"), ("backlogged", "cost"), ("lost", "profit"))


def random_network(rng: np.random.Generator, unmet: str, goal: str) -> Network:
    """A random DAG: warehouses supplied by the supplier or warehouses, stores by anything, several sources a node."""
    warehouses = [f"w{i}" for i in range(rng.integers(0, 4))]
    stores = [f"s{i}" for i in range(rng.integers(1, 4))]
    longest = int(rng.integers(1, 6))

    def lane(source: str, destination: str) -> Edge:
        cost = float(rng.choice([0.0, rng.uniform(0, 2)]))
        return Edge(source=source, destination=destination, lead_time=int(rng.integers(1, longest + 1)), cost=cost)

    edges: dict[tuple[str, str], Edge] = {}
    names = warehouses + stores
    for i, name in enumerate(names):
        sources = ["supplier", *names[:i]]
        for source in rng.choice(sources, size=rng.integers(1, min(3, len(sources)) + 1), replace=False):
            edges[str(source), name] = lane(str(source), name)
    for name in warehouses:
        if not any(source == name for source, _ in edges):
            edges[name, stores[-1]] = lane(name, stores[-1])
    nodes = [Node(name=n, holding_cost=float(rng.uniform(0, 2))) for n in warehouses]
    nodes += [
        Node(name=n, holding_cost=float(rng.uniform(0, 2)), underage_cost=float(rng.uniform(1, 9))) for n in stores
    ]
    shuffled_nodes = [nodes[i] for i in rng.permutation(len(nodes))]
    lanes = list(edges.values())
    shuffled_edges = [lanes[i] for i in rng.permutation(len(lanes))]
    return Network.create(nodes=shuffled_nodes, edges=shuffled_edges, unmet_demand=unmet, goal=goal)  # type: ignore[arg-type]


def plain_step(
    network: Network,
    stock: dict[str, list[float]],
    orders: dict[tuple[str, str], float],
    demand: dict[str, float],
    lead_times: dict[tuple[str, str], int],
) -> tuple[dict[str, list[float]], float]:
    """One period in floats. stock[node]: on hand, then what arrives in 1, 2, ... periods."""
    cost = sum(edge.cost * orders[edge.source, edge.destination] for edge in network.edges)
    following = {}
    for node in network.nodes:
        on_hand = stock[node.name][0] - sum(q for (source, _), q in orders.items() if source == node.name)
        left = on_hand
        if node.underage_cost is not None:
            wanted = demand[node.name]
            left = on_hand - wanted
            if network.goal == "profit":
                cost -= node.underage_cost * min(on_hand, wanted)
            elif left < 0:
                cost += node.underage_cost * -left
            if left > 0:
                cost += node.holding_cost * left
            if network.unmet_demand == "lost":
                left = max(left, 0.0)
        elif left > 0:
            cost += node.holding_cost * left
        slots = [*stock[node.name][1:], 0.0]
        slots[0] += left
        following[node.name] = slots
    for (source, destination), amount in orders.items():
        following[destination][lead_times[source, destination] - 1] += amount
    return following, cost


def feasible_orders(network: Network, stock: dict[str, list[float]], rng: np.random.Generator) -> dict[Any, float]:
    orders = {(e.source, e.destination): float(rng.uniform(0, 8)) for e in network.edges}
    for node in network.nodes:
        outgoing = [key for key in orders if key[0] == node.name]
        shares = rng.dirichlet(np.ones(len(outgoing) + 1)) * rng.choice([1.0, 0.0], p=[0.9, 0.1])
        for key, share in zip(outgoing, shares[:-1], strict=True):
            orders[key] = float(share * max(stock[node.name][0], 0.0))
    return orders


def tensors(samples: list[dict[Any, Any]], keys: list[Any]) -> Tensor:
    return torch.tensor([[sample[key] for key in keys] for sample in samples], dtype=torch.float64)


def assert_same_course(simulator: Simulator, parameters: Parameters | None, rng: np.random.Generator) -> None:
    """Twelve periods of three samples, with the lead times of ``parameters``, period by period."""
    network, batch = simulator.network, 3
    names = list(network.node_names)
    stores = names[network.num_warehouses :]
    lanes = [(e.source, e.destination) for e in network.edges]
    lead = parameters.lead_time.tolist() if parameters else [[float(v) for v in network.lead_times]] * batch
    lead_times = [dict(zip(lanes, map(int, row), strict=True)) for row in lead]
    stock = [{n: list(rng.uniform(0, 10, simulator.num_slots)) for n in names} for _ in range(batch)]
    for _ in range(12):
        orders = [feasible_orders(network, sample, rng) for sample in stock]
        # One demand in ten is negative (returns), which adds stock.
        demand = [{n: float(rng.uniform(-1, 9)) for n in stores} for _ in range(batch)]
        slots = tuple(
            torch.tensor([[sample[n][j] for n in names] for sample in stock], dtype=torch.float64)
            for j in range(simulator.num_slots)
        )
        node_demand = simulator.node_demand(tensors(demand, stores))
        following, cost = simulator.step(slots, tensors(orders, lanes), tensors(demand, stores), parameters)
        simulator.assert_feasible(slots, tensors(orders, lanes), node_demand, following, 0, tolerance=1e-9)
        results = [
            plain_step(network, s, o, d, leads)
            for s, o, d, leads in zip(stock, orders, demand, lead_times, strict=True)
        ]
        stock = [state for state, _ in results]
        expected_cost = torch.tensor([value for _, value in results], dtype=torch.float64)
        torch.testing.assert_close(cost, expected_cost, rtol=0, atol=1e-9)
        assert len(following) == simulator.num_slots
        for j, slot in enumerate(following):
            expected = torch.tensor([[sample[n][j] for n in names] for sample in stock], dtype=torch.float64)
            torch.testing.assert_close(slot, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("unmet", "goal"), KINDS)
@pytest.mark.parametrize("seed", range(25))
def test_step_equals_the_plain_simulator(seed: int, unmet: str, goal: str) -> None:
    rng = np.random.default_rng(seed)
    network = random_network(rng, unmet, goal)
    simulator = Simulator(network, dtype=torch.float64, min_slots=int(rng.integers(1, 8)))
    assert_same_course(simulator, None, rng)


@pytest.mark.parametrize(("unmet", "goal"), KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_lead_times_by_scenario_equal_the_plain_simulator(seed: int, unmet: str, goal: str) -> None:
    """Some edges vary by scenario, the others keep lead times that may lie outside that range."""
    rng = np.random.default_rng(1000 + seed)
    network = random_network(rng, unmet, goal)
    simulator = Simulator(network, dtype=torch.float64, lead_time_range=(3, 7))
    lead = torch.tensor(network.lead_times, dtype=torch.float64).repeat(3, 1)
    varying = rng.random(network.num_edges) < 0.6
    lead[:, varying] = torch.as_tensor(rng.integers(3, 8, (3, int(varying.sum()))), dtype=torch.float64)
    assert_same_course(simulator, simulator.parameters._replace(lead_time=lead), rng)


@pytest.mark.parametrize("bounds", [(0, 3), (4, 3), (-1, 2)])
def test_lead_time_range_must_be_whole_periods(bounds: tuple[int, int]) -> None:
    with pytest.raises(NetworkError, match=r"lead_time_range.*>= 1"):
        Simulator(chain(), lead_time_range=bounds)


def test_costs_by_scenario() -> None:
    simulator = Simulator(chain(), dtype=torch.float64)
    slots = (torch.tensor([[4.0, 6.0], [4.0, 1.0]], dtype=torch.float64), *simulator.empty_slots(2)[1:])
    parameters = simulator.parameters._replace(
        holding_cost=torch.tensor([[0.5, 1.0], [2.0, 3.0]], dtype=torch.float64),
        underage_cost=torch.tensor([[0.0, 9.0], [0.0, 7.0]], dtype=torch.float64),
    )
    orders = torch.tensor([[0.0, 1.0], [0.0, 4.0]], dtype=torch.float64)
    _, cost = simulator.step(slots, orders, torch.tensor([[2.0], [3.0]], dtype=torch.float64), parameters)
    assert cost.tolist() == [0.5 * 3 + 1.0 * 4, 2.0 * 0 + 7.0 * 2]


def test_nothing_leaks_from_one_sample_to_another() -> None:
    """In the paper's released code an order over an edge that does not exist landed in another sample."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        network = random_network(rng, "lost", "cost")
        simulator = Simulator(network, dtype=torch.float64)
        slots = simulator.empty_slots(4)
        orders = torch.zeros(4, network.num_edges, dtype=torch.float64)
        orders[1] = torch.as_tensor(rng.uniform(1, 5, network.num_edges))
        demand = torch.zeros(4, network.num_stores, dtype=torch.float64)
        following, cost = simulator.step(slots, orders, demand)
        others = [0, 2, 3]
        assert all(float(slot[others].abs().sum()) == 0 for slot in following)
        assert cost[others].tolist() == [0.0, 0.0, 0.0]
        arrived = torch.stack(following)[:, 1].clamp(min=0).sum()
        assert float(arrived) > 0


@pytest.mark.parametrize("lead_time", [1, 2, 5])
def test_an_order_first_helps_after_its_lead_time(lead_time: int) -> None:
    simulator = Simulator(one_store(lead_time), dtype=torch.float64)
    demand = torch.ones(lead_time + 2, 1, 1, dtype=torch.float64)
    scenario = Scenario(slots=simulator.empty_slots(1), demand=demand, parameters=simulator.parameters)
    first_only = lambda o: torch.full_like(o.slots[0], float(o.period == 0))  # noqa: E731
    cost = simulator.rollout(first_only, scenario, check=True).cost[:, 0]
    expected = [9.0] * lead_time + [0.0] + [9.0]
    assert cost.tolist() == expected


def test_ordering_the_demand_to_come_costs_nothing_after_the_lead_time() -> None:
    """The oracle's view: future[L] is the demand that an order of now can serve; just in time, nothing is held."""
    simulator = Simulator(one_store(3), dtype=torch.float64)
    demand = torch.rand(20, 5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    scenario = Scenario(slots=simulator.empty_slots(5), demand=demand, parameters=simulator.parameters, history=2)

    def just_in_time(observation: Observation) -> Tensor:
        assert observation.future is not None
        return observation.future[min(3, len(observation.future) - 1)]

    cost = simulator.rollout(just_in_time, scenario, oracle=True, check=True).cost
    assert cost.shape == (18, 5)
    assert float(cost[3:].abs().max()) < 1e-12
    torch.testing.assert_close(cost[:3], 9 * demand[2:5, :, 0])


def test_observations_show_the_past_and_never_the_future() -> None:
    simulator = Simulator(chain(), dtype=torch.float64)
    demand = torch.arange(7.0, dtype=torch.float64)[:, None, None].expand(7, 2, 1)
    time = torch.arange(10.0, 14.0)[:, None]
    scenario = Scenario(
        slots=simulator.empty_slots(2), demand=demand, parameters=simulator.parameters, history=3, time=time
    )
    seen: list[Observation] = []

    def watch(observation: Observation) -> Tensor:
        seen.append(observation)
        return torch.zeros(2, 2, dtype=torch.float64)

    simulator.rollout(watch, scenario)
    assert [o.period for o in seen] == [0, 1, 2, 3]
    assert all(o.future is None for o in seen)
    assert [o.past_demand[0, 0].tolist() for o in seen if o.past_demand is not None] == [
        [0, 1, 2],
        [1, 2, 3],
        [2, 3, 4],
        [3, 4, 5],
    ]
    assert [o.time.item() for o in seen if o.time is not None] == [10, 11, 12, 13]


@pytest.mark.parametrize(("unmet", "goal"), KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_a_rollout_is_the_sum_of_its_steps(seed: int, unmet: str, goal: str) -> None:
    rng = np.random.default_rng(seed)
    network = random_network(rng, unmet, goal)
    simulator = Simulator(network, dtype=torch.float64)
    demand = torch.as_tensor(rng.uniform(0, 5, (9, 2, network.num_stores)))
    start = tuple(torch.as_tensor(rng.uniform(0, 9, (2, network.num_nodes))) for _ in range(simulator.num_slots))
    scenario = Scenario(slots=start, demand=demand, parameters=simulator.parameters, history=2)
    wishes = torch.as_tensor(rng.uniform(0, 1, (9, 2, network.num_edges)))
    rollout = simulator.rollout(lambda o: wishes[o.period], scenario)
    slots, costs = start, []
    for t in range(7):
        slots, cost = simulator.step(slots, wishes[t], demand[t + 2])
        costs.append(cost)
    torch.testing.assert_close(rollout.cost, torch.stack(costs), rtol=0, atol=1e-12)
    torch.testing.assert_close(rollout.slots, slots)


@pytest.mark.parametrize(("unmet", "goal"), KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_a_sweep_is_one_more_leading_dimension(seed: int, unmet: str, goal: str) -> None:
    """Orders [settings, batch, edges] equal separate rollouts, from slots [batch, nodes] of all settings."""
    rng = np.random.default_rng(seed)
    network = random_network(rng, unmet, goal)
    simulator = Simulator(network, dtype=torch.float64)
    settings = periods = 5  # equal on purpose: a wrong broadcast would not raise
    demand = torch.as_tensor(rng.uniform(0, 5, (periods, 2, network.num_stores)))
    scenario = Scenario(slots=simulator.empty_slots(2), demand=demand, parameters=simulator.parameters)
    wishes = torch.as_tensor(rng.uniform(0, 3, (settings, periods, 2, network.num_edges)))
    swept = simulator.rollout(lambda o: wishes[:, o.period], scenario)
    assert swept.cost.shape == (periods, settings, 2)
    for k in range(settings):
        single = simulator.rollout(lambda o, k=k: wishes[k, o.period], scenario)  # type: ignore[misc]
        torch.testing.assert_close(swept.cost[:, k], single.cost)
        for a, b in zip(swept.slots, single.slots, strict=True):
            torch.testing.assert_close(a.expand(settings, *b.shape)[k], b)


def test_vmap_over_orders_equals_separate_steps() -> None:
    rng = np.random.default_rng(3)
    network = random_network(rng, "lost", "cost")
    simulator = Simulator(network, dtype=torch.float64)
    slots = tuple(torch.as_tensor(rng.uniform(0, 9, (2, network.num_nodes))) for _ in range(simulator.num_slots))
    demand = torch.as_tensor(rng.uniform(0, 5, (2, network.num_stores)))
    orders = torch.as_tensor(rng.uniform(0, 1, (6, 2, network.num_edges)))
    mapped, costs = torch.func.vmap(lambda q: simulator.step(slots, q, demand))(orders)
    for k in range(6):
        single, cost = simulator.step(slots, orders[k], demand)
        torch.testing.assert_close(costs[k], cost)
        for a, b in zip(mapped, single, strict=True):
            torch.testing.assert_close(a[k], b)


@pytest.mark.parametrize(("unmet", "goal"), KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_a_step_equal_finite_differences(seed: int, unmet: str, goal: str) -> None:
    rng = np.random.default_rng(seed)
    network = random_network(rng, unmet, goal)
    simulator = Simulator(network, dtype=torch.float64)
    k, n, e, s = simulator.num_slots, network.num_nodes, network.num_edges, network.num_stores

    def flat(slots: Tensor, orders: Tensor, demand: Tensor, holding: Tensor) -> tuple[Tensor, ...]:
        parameters = simulator.parameters._replace(holding_cost=holding)
        following, cost = simulator.step(tuple(slots.unbind(0)), orders, demand, parameters)
        return (*following, cost)

    inputs = [
        torch.as_tensor(rng.uniform(0, 9, shape), dtype=torch.float64).requires_grad_()
        for shape in ((k, 2, n), (2, e), (2, s), (2, n))
    ]
    assert torch.autograd.gradcheck(flat, inputs)


def one_store(lead_time: int, unmet: str = "lost") -> Network:
    return Network.create(
        nodes=[Node(name="store", holding_cost=1.0, underage_cost=9.0)],
        edges=[Edge(source="supplier", destination="store", lead_time=lead_time)],
        unmet_demand=unmet,  # type: ignore[arg-type]
    )


def chain(*, unmet: str = "lost", holds_stock: bool = True) -> Network:
    return Network.create(
        nodes=[
            Node(name="hub", holding_cost=0.5, holds_stock=holds_stock),
            Node(name="store", holding_cost=1.0, underage_cost=9.0),
        ],
        edges=[
            Edge(source="supplier", destination="hub", lead_time=2),
            Edge(source="hub", destination="store", lead_time=1),
        ],
        unmet_demand=unmet,  # type: ignore[arg-type]
    )


# --- what the checks must catch: the hub has 4 and the store 3 units in every sample -------------------------


def run_once(
    policy: Callable[[Observation], Tensor], *, network: Network | None = None, check: bool = True
) -> tuple[Tensor, Slots]:
    simulator = Simulator(network or chain(), dtype=torch.float64)
    slots = (torch.tensor([[4.0, 3.0]] * 3, dtype=torch.float64), *simulator.empty_slots(3)[1:])
    scenario = Scenario(slots=slots, demand=torch.ones(2, 3, 1, dtype=torch.float64), parameters=simulator.parameters)
    return simulator.rollout(policy, scenario, check=check)


def orders_of(*rows: tuple[float, float]) -> Callable[[Observation], Tensor]:
    """These orders for the three samples in period 1, and nothing impossible in period 0."""
    table = torch.tensor(rows, dtype=torch.float64)
    return lambda o: table if o.period == 1 else torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        (((1, 1), (1, float("nan")), (1, 1)), ["period 1", "hub->store", "NaN"]),
        (((1, 1), (float("inf"), 1), (1, 1)), ["period 1", "supplier->hub", "infinite"]),
        (((1, 1), (1, 1), (-0.5, 1)), ["period 1", "supplier->hub", "-0.5", ">= 0"]),
        (((1, 1), (1, 6.5), (1, 1)), ["period 1", "'hub'", "2.5 units more"]),
    ],
)
def test_check_names_period_place_and_amount(rows: Any, parts: list[str]) -> None:
    with pytest.raises(InfeasibleOrderError) as caught:
        run_once(orders_of(*rows))
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_hub_that_keeps_stock_is_caught() -> None:
    network = chain(unmet="backlogged", holds_stock=False)
    with pytest.raises(InfeasibleOrderError, match="period 0: node 'hub' keeps 4 units but may not hold stock"):
        run_once(orders_of((1, 1), (1, 1), (1, 1)), network=network)


def test_units_that_vanish_are_caught() -> None:
    simulator = Simulator(chain(), dtype=torch.float64)
    slots = (torch.tensor([[4.0, 3.0]], dtype=torch.float64), *simulator.empty_slots(1)[1:])
    orders = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    demand = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    following, _ = simulator.transition(slots, orders, demand, simulator.parameters)
    simulator.assert_feasible(slots, orders, demand, following, 0)
    leak = (following[0] - 0.5, *following[1:])
    with pytest.raises(InfeasibleOrderError, match=r"period 7: 1 units appeared or vanished"):
        simulator.assert_feasible(slots, orders, demand, leak, 7)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 3), (2,), (1, 2), (2, 3)])
@pytest.mark.parametrize("check", [False, True])
def test_orders_of_the_wrong_shape_are_refused(shape: tuple[int, ...], check: bool) -> None:
    """Also without the checks: [3] orders for one edge would broadcast to [3, 3] without a word."""
    with pytest.raises(InfeasibleOrderError) as caught:
        run_once(lambda _: torch.zeros(shape, dtype=torch.float64), check=check)
    message = str(caught.value)
    assert "period 0" in message
    assert str(list(shape)) in message
    assert "[..., 3, 2]" in message
    assert "supplier->hub, hub->store" in message


def test_orders_without_the_edge_dimension_are_refused_for_one_store() -> None:
    simulator = Simulator(one_store(2))
    scenario = Scenario(slots=simulator.empty_slots(4), demand=torch.ones(2, 4, 1), parameters=simulator.parameters)
    with pytest.raises(InfeasibleOrderError, match=r"\[4\]; valid: \[\.\.\., 4, 1\]"):
        simulator.rollout(lambda o: o.slots[0][:, 0], scenario)


def test_a_pipeline_that_is_too_short_is_refused() -> None:
    simulator = Simulator(one_store(3))
    scenario = Scenario(slots=simulator.empty_slots(4)[:2], demand=torch.ones(2, 4, 1), parameters=simulator.parameters)
    with pytest.raises(ValueError, match=r"2 slots; valid: at least 3"):
        simulator.rollout(lambda o: torch.zeros(4, 1), scenario)


# --- compiled ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_compiled_step_and_rollout_equal_eager() -> None:
    rng = np.random.default_rng(16)
    network = random_network(rng, "lost", "profit")
    assert network.num_warehouses >= 2
    assert network.num_stores >= 2
    simulator = Simulator(network, dtype=torch.float64)
    slots = tuple(torch.as_tensor(rng.uniform(0, 9, (4, network.num_nodes))) for _ in range(simulator.num_slots))
    demand = torch.as_tensor(rng.uniform(0, 5, (6, 4, network.num_stores)))
    share = torch.full((network.num_edges,), 0.1, dtype=torch.float64, requires_grad=True)

    def policy(observation: Observation) -> Tensor:
        return share * observation.slots[0].clamp(min=0).sum(-1, keepdim=True)

    def rollout(slots: Slots, demand: Tensor) -> Tensor:
        scenario = Scenario(slots=slots, demand=demand, parameters=simulator.parameters)
        return simulator.rollout(policy, scenario).cost

    torch._dynamo.reset()
    orders = torch.as_tensor(rng.uniform(0, 1, (4, network.num_edges)))
    compiled_step = torch.compile(simulator.step, fullgraph=True)
    torch.testing.assert_close(compiled_step(slots, orders, demand[0]), simulator.step(slots, orders, demand[0]))
    compiled = torch.compile(rollout, fullgraph=True)(slots, demand)
    eager = rollout(slots, demand)
    torch.testing.assert_close(compiled, eager)
    (expected,) = torch.autograd.grad(eager.mean(), share)
    (gradient,) = torch.autograd.grad(compiled.mean(), share)
    torch.testing.assert_close(gradient, expected)
