"""The graph network against message passing written out edge by edge, and what a graph network must respect."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from decisionrl.envs.inventory.network import Edge, Network, Node
from decisionrl.envs.inventory.simulator import Observation, Parameters, Simulator
from decisionrl.policies.feasibility import TINY_WISH
from decisionrl.policies.gnn import InventoryGNN


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(nodes: dict[str, tuple[float, float | None]], edges: dict[tuple[str, str], int], hub: str = "") -> Network:
    made = [Node(name=n, holding_cost=h, underage_cost=p, holds_stock=n != hub) for n, (h, p) in nodes.items()]
    lanes = [
        Edge(source=s, destination=d, lead_time=lead, cost=0.25 * i) for i, ((s, d), lead) in enumerate(edges.items())
    ]
    return Network.create(nodes=made, edges=lanes, unmet_demand="backlogged")


SERIAL = network(
    {"a": (0.1, None), "b": (0.2, None), "c": (0.5, None), "s": (1.0, 9.0)},
    {("supplier", "a"): 2, ("a", "b"): 4, ("b", "c"): 3, ("c", "s"): 4},
)
WAREHOUSES = network(
    {"w0": (0.3, None), "w1": (0.4, None), "s0": (1.0, 9.0), "s1": (1.1, 8.0), "s2": (0.9, 7.0)},
    {("supplier", "w0"): 3, ("supplier", "w1"): 2, ("w0", "s0"): 5, ("w0", "s1"): 2, ("w1", "s1"): 1, ("w1", "s2"): 4},
)
HUB = network(
    {"h": (0.3, None), "s0": (1.0, 9.0), "s1": (1.1, 8.0)},
    {("supplier", "h"): 3, ("h", "s0"): 1, ("h", "s1"): 2},
    hub="h",
)
STORES = network(
    {"s0": (1.0, 9.0), "s1": (1.1, 8.0), "s2": (0.9, 7.0)},
    {("supplier", "s0"): 3, ("s0", "s1"): 1, ("supplier", "s2"): 2, ("s1", "s2"): 1},
)
NETWORKS = {"serial": SERIAL, "warehouses": WAREHOUSES, "hub": HUB, "stores": STORES}


def made(net: Network, *, seed: int = 0, **options: Any) -> InventoryGNN:
    node, edge = net.flow_scale(np.linspace(3.0, 5.0, net.num_stores))
    torch.manual_seed(seed)
    policy = InventoryGNN(
        net,
        num_slots=max(net.lead_times),
        node_scale=node.tolist(),
        edge_scale=edge.tolist(),
        cost_scale=(0.7, 8.0, 1.5),
        **{"width": 6, **options},
    )
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return policy


def observed(net: Network, *, batch: int = 3, seed: int = 0, history: int = 0, vary: bool = False) -> Observation:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    simulator = Simulator(net, dtype=torch.float64)
    parameters = simulator.parameters
    if vary:
        parameters = Parameters(
            holding_cost=parameters.holding_cost + draw(batch, net.num_nodes),
            underage_cost=parameters.underage_cost + draw(batch, net.num_nodes),
            edge_cost=parameters.edge_cost + draw(batch, net.num_edges),
            lead_time=parameters.lead_time + torch.randint(0, 3, (batch, net.num_edges), generator=generator),
        )
    return Observation(
        slots=tuple(9 * draw(batch, net.num_nodes) for _ in range(simulator.num_slots)),
        past_demand=9 * draw(batch, net.num_stores, history) if history else None,
        time=draw(1) if history else None,
        parameters=parameters,
        period=0,
    )


class Sum(MessagePassing):
    """Sum of edge features at the node they lead to (or, reversed, leave from)."""

    def __init__(self) -> None:
        super().__init__(aggr="add")

    def forward(self, edge_index: Tensor, features: Tensor, nodes: int) -> Tensor:
        return self.propagate(edge_index, features=features, size=(nodes, nodes))

    def message(self, features: Tensor) -> Tensor:
        return features


def passing(net: Network, node: int, end: int) -> float:
    """Share of what ``end`` receives that passes through ``node``, over every path that leads there."""
    if node == end:
        return 1.0
    inlets = [i for i, j in zip(net.edge_source, net.edge_destination, strict=True) if j == end]
    return sum(passing(net, node, i) for i in inlets if i >= 0) / len(inlets)


def longest_lead(net: Network, node: int) -> int:
    return max(lead for j, lead in zip(net.edge_destination, net.lead_times, strict=True) if j == node)


def reference(policy: InventoryGNN, net: Network, observation: Observation, sample: int, **shown: Any) -> Tensor:
    """Orders of one sample by the published recipe: graph, features, rounds, read-out and proportional shares."""
    n, stores = net.num_nodes, list(range(net.num_warehouses, net.num_nodes))
    p = Parameters(*(v if v.ndim == 1 else v[sample] for v in observation.parameters))
    node_scale, edge_scale = (v.tolist() for v in net.flow_scale(np.linspace(3.0, 5.0, net.num_stores)))
    slots = torch.stack([slot[sample] for slot in observation.slots], -1)

    # Node features: slots, past demand and time, then costs and (for stores) moments of demand.
    features, dynamic = [], []
    for node in range(n):
        moving = slots[node] / node_scale[node] - 1
        if observation.past_demand is not None:
            past = torch.zeros(observation.past_demand.shape[-1])
            if node in stores:
                past = observation.past_demand[sample, node - net.num_warehouses] / node_scale[node]
            assert observation.time is not None
            moving = torch.cat([moving, past, observation.time])
        if policy.echelon:
            covered = math.fsum(passing(net, node, m) * longest_lead(net, m) * node_scale[m] for m in range(n))
            position = math.fsum(passing(net, node, m) * float(slots[m].sum()) for m in range(n))
            above = position / node_scale[node] - (covered / node_scale[node] + 2.0)
            moving = torch.cat([moving, torch.tensor([above])])
        paid = sum(float(p.edge_cost[e]) for e in range(net.num_edges) if net.edge_destination[e] == node)
        fixed = [float(p.holding_cost[node]) / 0.7, float(p.underage_cost[node]) / 8.0, paid / 1.5]
        if shown:
            mean = np.mean(shown["demand_mean"])
            index = node - net.num_warehouses
            fixed += [shown[key][index] / mean if node in stores else 0.0 for key in ("demand_mean", "demand_std")]
        dynamic.append(moving)
        features.append(torch.cat([moving, torch.tensor(fixed)]))

    # Edges: lanes (supplier: node n), demand edges (customers: node n), self-loops of nodes that may keep stock.
    keepers = [k for k in range(n) if k in net.edge_source and not net.must_ship_all[k]]
    lanes = [(n if i < 0 else i, j) for i, j in zip(net.edge_source, net.edge_destination, strict=True)]
    graph = lanes + [(k, n) for k in stores] + [(k, k) for k in keepers]
    lead = torch.cat([p.lead_time, torch.zeros(len(graph) - len(lanes))])
    index = torch.tensor(graph).T
    flipped = index.flip(0)

    def dense(first: Any, *others: Any) -> Tensor:
        return torch.cat([first.weight, *(layer.weight for layer in others)], -1)

    def padded(nodes: Tensor) -> Tensor:
        return torch.cat([nodes, torch.zeros(1, nodes.shape[-1])])

    def ends(nodes: Tensor) -> tuple[Tensor, Tensor]:
        return padded(nodes)[index[0]], padded(nodes)[index[1]]

    weight = dense(policy.node_dynamic, policy.node_static)
    nodes = policy.node_rest(torch.stack(features) @ weight.T + policy.node_dynamic.bias)
    weight = dense(policy.edge_from, policy.edge_to, policy.edge_lead)
    edges = policy.edge_rest(torch.cat([*ends(nodes), lead[:, None]], -1) @ weight.T + policy.edge_from.bias)
    degree = torch.zeros(2, n + 1)
    for i, j in graph:
        degree[0, j] += 1
        degree[1, i] += 1
    degree = degree.clamp(min=1).sqrt()[:, :n, None]
    for _ in range(policy.rounds):
        incoming = Sum()(index, edges, n + 1)[:n] / degree[0]
        outgoing = Sum()(flipped, edges, n + 1)[:n] / degree[1]
        nodes = nodes + policy.node_update(torch.cat([nodes, incoming, outgoing], -1))
        weight = dense(policy.update_edge, policy.update_from, policy.update_to)
        edges = edges + policy.update_rest(torch.cat([edges, *ends(nodes)], -1) @ weight.T + policy.update_edge.bias)
    wish = policy.output(edges)[:, 0]
    if policy.skip_from is not None and policy.skip_to is not None:
        source, target = ends(torch.stack(dynamic))
        wish = wish + (policy.skip_from(source) + policy.skip_to(target))[:, 0]
    units = [*edge_scale, *[1.0] * len(stores), *(node_scale[k] for k in keepers)]
    wanted = torch.nn.functional.softplus(wish) * torch.tensor(units)
    for e, (i, _) in enumerate(lanes):
        if i < n and net.must_ship_all[i]:
            wanted[e] += TINY_WISH

    orders = wanted[: len(lanes)].clone()
    for node in set(net.edge_source) - {-1}:
        total = sum(float(wanted[e]) for e, (i, j) in enumerate(graph) if i == node and j != n)
        share = max(float(slots[node, 0]), 0.0) / (total + 1e-10)
        share = share if net.must_ship_all[node] else min(1.0, share)
        for e, (i, _) in enumerate(lanes):
            if i == node:
                orders[e] = wanted[e] * share
    return orders


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no skip": {"skip": False},
    "no echelon": {"echelon": False},
    "three rounds": {"rounds": 3},
    "history": {"history": 4, "time_features": 1},
    "moments": {"moments": True},
}


@pytest.mark.parametrize("vary", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NETWORKS)
def test_orders_equal_message_passing_edge_by_edge(name: str, case: str, vary: bool) -> None:
    net, options = NETWORKS[name], dict(CASES[case])
    shown: dict[str, Any] = {}
    if options.pop("moments", False):
        shown = {
            "demand_mean": [3.0 + k for k in range(net.num_stores)],
            "demand_std": [1.0, 1.5, 0.5][: net.num_stores],
        }
    policy = made(net, **options, **shown)
    observation = observed(net, history=options.get("history", 0), vary=vary)
    orders = policy(observation)
    assert orders.shape == (3, net.num_edges)
    for sample in range(3):
        expected = reference(policy, net, observation, sample, **shown)
        torch.testing.assert_close(orders[sample], expected, rtol=1e-5, atol=1e-8)


def test_rounds_follow_the_longest_path() -> None:
    assert made(SERIAL).rounds == 3
    assert made(WAREHOUSES).rounds == 1
    assert made(HUB).rounds == 1


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_information_travels_one_stage_a_round(rounds: int) -> None:
    """The top order of the chain a -> b -> c -> s: after R rounds it knows the stages up to R below, not more."""
    policy = made(SERIAL, rounds=rounds, echelon=False)
    observation = observed(SERIAL, batch=1)
    slots = tuple(slot.clone().requires_grad_() for slot in observation.slots)
    policy(observation._replace(slots=slots))[0, 0].backward()
    reached = torch.stack([slot.grad[0] for slot in slots if slot.grad is not None]).abs().sum(0) > 0
    assert reached.tolist() == [stage <= rounds for stage in range(4)]


def test_an_echelon_position_tells_of_every_stage_below() -> None:
    policy, observation = made(SERIAL, rounds=1, echelon=True), observed(SERIAL, batch=1)
    slots = tuple(slot.clone().requires_grad_() for slot in observation.slots)
    policy(observation._replace(slots=slots))[0, 0].backward()
    assert all(bool((slot.grad != 0).all()) for slot in slots)


def test_time_may_be_shown_without_past_demand() -> None:
    policy = made(HUB, time_features=1)
    observation = observed(HUB)
    early, late = (policy(observation._replace(time=torch.tensor([t]))) for t in (-1.0, 1.0))
    assert float((early - late).abs().max()) > 1e-6
    assert torch.isfinite(early).all()


@pytest.mark.parametrize("seed", range(4))
def test_permuting_stores_permutes_orders(seed: int) -> None:
    """Stores with their stock, costs, lead times and moments change places: so do their orders, and no other."""
    rng = np.random.default_rng(seed)
    stores, means, stds = [f"s{k}" for k in range(4)], rng.uniform(3, 6, 4), rng.uniform(1, 2, 4)
    costs = {s: (float(rng.uniform(0.5, 1)), float(rng.uniform(5, 9))) for s in stores}
    leads = {s: int(rng.integers(1, 5)) for s in stores}
    stock = {s: rng.uniform(0, 9, (2, 6)) for s in ["w", *stores]}

    def orders(order: list[int]) -> dict[str, np.ndarray]:
        names = [stores[k] for k in order]
        net = Network.create(
            nodes=[
                Node(name="w", holding_cost=0.3),
                *(Node(name=s, holding_cost=costs[s][0], underage_cost=costs[s][1]) for s in names),
            ],
            edges=[
                Edge(source="supplier", destination="w", lead_time=3),
                *(Edge(source="w", destination=s, lead_time=leads[s]) for s in names),
            ],
            unmet_demand="lost",
        )
        node, edge = net.flow_scale(means[order])
        torch.manual_seed(7)
        policy = InventoryGNN(
            net,
            num_slots=6,
            node_scale=node.tolist(),
            edge_scale=edge.tolist(),
            demand_mean=means[order].tolist(),
            demand_std=stds[order].tolist(),
            width=8,
            rounds=2,
        )
        assert [n.name for n in net.nodes] == ["w", *names]
        slots = tuple(torch.tensor(np.stack([stock[n.name][:, k] for n in net.nodes], -1)) for k in range(6))
        simulator = Simulator(net, dtype=torch.float64)
        observation = Observation(slots=slots, past_demand=None, time=None, parameters=simulator.parameters, period=0)
        return {e.name: policy(observation)[:, k].detach().numpy() for k, e in enumerate(net.edges)}

    first, second = orders([0, 1, 2, 3]), orders(list(rng.permutation(4)))
    assert first.keys() == second.keys()
    for lane in first:
        np.testing.assert_allclose(first[lane], second[lane], rtol=1e-9)
    assert len({round(float(v[0]), 6) for v in first.values()}) == 5  # and they do differ


def test_lead_times_of_each_sample_matter_to_that_sample_only() -> None:
    """The paper's released code reads the lead times of sample 0 for the whole batch."""
    policy, observation = made(WAREHOUSES), observed(WAREHOUSES, batch=4)
    lead = torch.tensor(WAREHOUSES.lead_times, dtype=torch.float64).repeat(4, 1)
    base = policy(observation._replace(parameters=observation.parameters._replace(lead_time=lead)))
    torch.testing.assert_close(base, policy(observation))
    lead[2] += 1
    changed = policy(observation._replace(parameters=observation.parameters._replace(lead_time=lead)))
    torch.testing.assert_close(changed[[0, 1, 3]], base[[0, 1, 3]])
    assert float((changed[2] - base[2]).abs().max()) > 1e-6


def test_samples_do_not_mix() -> None:
    policy, observation = made(WAREHOUSES), observed(WAREHOUSES, batch=4)
    together = policy(observation)
    for k in range(4):
        alone = policy(observation._replace(slots=tuple(slot[k : k + 1] for slot in observation.slots)))
        torch.testing.assert_close(together[k : k + 1], alone)


def test_leading_dimensions_are_kept() -> None:
    policy, observation = made(WAREHOUSES), observed(WAREHOUSES, batch=6, vary=True)
    flat = policy(observation)
    folded = Observation(
        slots=tuple(slot.view(2, 3, -1) for slot in observation.slots),
        past_demand=None,
        time=None,
        parameters=Parameters(*(v.view(2, 3, -1) for v in observation.parameters)),
        period=0,
    )
    torch.testing.assert_close(policy(folded).view(6, -1), flat)


@pytest.mark.parametrize("name", NETWORKS)
def test_scarce_stock_is_shared_and_never_exceeded(name: str) -> None:
    net = NETWORKS[name]
    policy = made(net, output_bias=math.e)
    for amount in (0.0, 0.01, 2.0, 1e4, -3.0):
        observation = observed(net)
        on_hand = torch.full_like(observation.slots[0], amount)
        orders = policy(observation._replace(slots=(on_hand, *observation.slots[1:])))
        assert float(orders.min()) >= 0
        for node in set(net.edge_source) - {-1}:
            lanes = [e for e, i in enumerate(net.edge_source) if i == node]
            shipped = orders[:, lanes].sum(-1)
            if net.must_ship_all[node]:
                torch.testing.assert_close(shipped, on_hand[:, node].clamp(min=0))
            else:
                assert bool((shipped <= on_hand[:, node].clamp(min=0)).all())


def test_node_names_do_not_matter() -> None:
    renamed = Network.create(
        nodes=[replace(node, name=node.name.upper()) for node in WAREHOUSES.nodes],
        edges=[
            replace(
                e, source=e.source if e.source == "supplier" else e.source.upper(), destination=e.destination.upper()
            )
            for e in WAREHOUSES.edges
        ],
        unmet_demand="backlogged",
    )
    observation = observed(WAREHOUSES)
    torch.testing.assert_close(made(renamed)(observation), made(WAREHOUSES)(observation))
