"""What is read off a network: shares, levels, flows and lanes, against values worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from decisionrl.envs.inventory.network import Edge, Network, Node
from decisionrl.policies.topology import echelon_share, fastest_lanes, flow_matrices, order_up_to_levels


@dataclass(frozen=True)
class Case:
    """lanes: (source, destination) -> lead time; nodes that start with "s" have demand."""

    lanes: dict[tuple[str, str], int]
    demand: list[float]
    flow: list[float]
    share: list[list[float]]
    levels: list[float]
    fastest: list[int]

    @property
    def network(self) -> Network:
        names = list(dict.fromkeys(destination for _, destination in self.lanes))
        nodes = [Node(name=n, holding_cost=1.0, underage_cost=9.0 if n.startswith("s") else None) for n in names]
        edges = [Edge(source=s, destination=d, lead_time=lead) for (s, d), lead in self.lanes.items()]
        return Network.create(nodes=nodes, edges=edges, unmet_demand="backlogged")


CASES = {
    "serial": Case(
        lanes={("supplier", "a"): 2, ("a", "b"): 4, ("b", "c"): 3, ("c", "s"): 4},
        demand=[5.0],
        flow=[5.0] * 4,
        share=[[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]],
        # Lead times from here down, 13, 11, 7 and 4 periods, and 2 more.
        levels=[75, 65, 45, 30],
        fastest=[3],
    ),
    "one warehouse": Case(
        lanes={("supplier", "w"): 3, ("w", "s0"): 2, ("w", "s1"): 5},
        demand=[3.0, 4.0],
        flow=[7.0, 3.0, 4.0],
        share=[[1, 1, 1], [0, 1, 0], [0, 0, 1]],
        # w: 3 x 7 for itself, 2 x 3 + 5 x 4 for its stores, 2 x 7 more.
        levels=[61, 12, 28],
        fastest=[1, 2],
    ),
    "two warehouses": Case(
        lanes={
            ("supplier", "w0"): 3,
            ("supplier", "w1"): 2,
            ("w0", "s0"): 5,
            ("w0", "s1"): 2,
            ("w1", "s1"): 1,
            ("w1", "s2"): 4,
        },
        demand=[3.0, 4.0, 5.0],
        flow=[5.0, 7.0, 3.0, 4.0, 5.0],  # s1 gets half from either warehouse
        share=[[1, 0, 1, 0.5, 0], [0, 1, 0, 0.5, 1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]],
        # s1 waits for its slower lane. w0: 3 x 5 + 5 x 3 + 2 x 4 / 2 + 2 x 5; w1: 2 x 7 + 2 x 4 / 2 + 4 x 5 + 2 x 7.
        levels=[44, 52, 21, 16, 30],
        fastest=[2, 4, 5],
    ),
    "a store between": Case(
        lanes={("supplier", "s0"): 3, ("s0", "s1"): 1, ("supplier", "s1"): 2},
        demand=[2.0, 6.0],
        flow=[5.0, 6.0],
        share=[[1, 0.5], [0, 1]],
        # s0 covers its own 3 x 5, half of s1's 2 x 6, and 2 x 5.
        levels=[31, 24],
        fastest=[0, 1],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_shares_levels_and_lanes(name: str) -> None:
    case = CASES[name]
    network = case.network
    edges = list(zip(network.edge_source, network.edge_destination, strict=True))
    assert echelon_share(network).tolist() == case.share
    assert order_up_to_levels(network, case.flow).tolist() == pytest.approx(case.levels)
    assert order_up_to_levels(network, case.flow, cover=0.0).tolist() == pytest.approx(
        [level - 2 * flow for level, flow in zip(case.levels, case.flow, strict=True)]
    )
    by_node, by_edge = flow_matrices(network)
    demand = torch.tensor(case.demand)
    assert (demand @ by_node).tolist() == pytest.approx(case.flow)
    assert (demand @ by_node).tolist() == pytest.approx(network.flow_scale(demand.double().numpy())[0].tolist())
    assert (demand @ by_edge).tolist() == pytest.approx(network.flow_scale(demand.double().numpy())[1].tolist())
    lanes = [edges[e] for e in fastest_lanes(network)]
    names = {name: i for i, name in enumerate(network.node_names)} | {"supplier": -1}
    expected = [list(case.lanes)[e] for e in case.fastest]
    assert lanes == [(names[source], names[destination]) for source, destination in expected]


@pytest.mark.parametrize("name", CASES)
def test_what_a_node_receives_comes_through_its_suppliers(name: str) -> None:
    """Column m: the shares of m's suppliers add up to the part of m that does not come straight from outside."""
    network = CASES[name].network
    share = echelon_share(network)
    for node in range(network.num_nodes):
        inlets = [i for i, j in zip(network.edge_source, network.edge_destination, strict=True) if j == node]
        direct = sum(float(share[:, i].sum()) for i in inlets if i >= 0) / len(inlets)
        assert float(share[:, node].sum()) == pytest.approx(1 + direct)
