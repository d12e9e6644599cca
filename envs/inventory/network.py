"""An inventory network as data: nodes that hold stock, edges with lead times, costs, and how unmet demand ends.

Nodes stand in topological order, those without demand ("warehouses") first and those with demand ("stores")
last, so that the last ``num_stores`` columns of any ``[..., num_nodes]`` tensor belong to the stores.
Edges are sorted by destination, then source, with the outside supplier (index -1) first; when every node has
one incoming edge, edge ``n`` is the one into node ``n`` and an order tensor can be read by node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SUPPLIER = "supplier"

UnmetDemand = Literal["lost", "backlogged"]
Goal = Literal["cost", "profit"]


class NetworkError(ValueError):
    """A network that cannot be simulated; the message names the field, the value and what would be valid."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A stocking location.

    holding_cost: per unit left at the end of a period. underage_cost: per unit of unmet demand (in a profit
    network: the unit revenue); None where there is no demand. holds_stock: False for a hub that must ship
    everything it has on hand in the same period (transshipment).
    """

    name: str
    holding_cost: float
    underage_cost: float | None = None
    holds_stock: bool = True

    def __post_init__(self) -> None:
        where = f"node {self.name!r}"
        if not self.name or self.name == SUPPLIER or "->" in self.name:
            raise NetworkError(f"{where}: name must be non-empty, without '->' and not {SUPPLIER!r}")
        _require_cost(where, "holding_cost", self.holding_cost)
        if self.underage_cost is not None:
            _require_cost(where, "underage_cost", self.underage_cost)
            if not self.holds_stock:
                raise NetworkError(f"{where}: holds_stock = false is for a hub; a node with demand must hold stock")


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A lane. An order placed in period t over it is usable for the demand of period t + lead_time (>= 1).

    source: a node's name or "supplier" (unlimited). cost: per unit ordered.
    """

    source: str
    destination: str
    lead_time: int
    cost: float = 0.0

    def __post_init__(self) -> None:
        where = f"edge {self.name!r}"
        if isinstance(self.lead_time, bool) or not isinstance(self.lead_time, Integral) or self.lead_time < 1:
            raise NetworkError(
                f"{where}: lead_time = {self.lead_time!r}; valid is a whole number >= 1 "
                "(a lane that does not exist is left out, it has no lead time 0)"
            )
        _require_cost(where, "cost", self.cost)

    @property
    def name(self) -> str:
        return f"{self.source}->{self.destination}"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A directed acyclic inventory network. Build it with :meth:`create`, which sorts and checks.

    unmet_demand: "lost" or "backlogged". goal: "cost" counts p per unit short; "profit" counts -p per unit sold.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    unmet_demand: UnmetDemand
    goal: Goal = "cost"

    @classmethod
    def create(
        cls,
        *,
        nodes: Sequence[Node],
        edges: Sequence[Edge],
        unmet_demand: UnmetDemand,
        goal: Goal = "cost",
    ) -> Network:
        """Check the parts, sort them and return the network. Raises NetworkError."""
        if unmet_demand not in ("lost", "backlogged"):
            raise NetworkError(f"unmet_demand = {unmet_demand!r}; valid: 'lost', 'backlogged'")
        if goal not in ("cost", "profit"):
            raise NetworkError(f"goal = {goal!r}; valid: 'cost', 'profit'")
        if goal == "profit" and unmet_demand != "lost":
            raise NetworkError("goal = 'profit' counts units sold and needs unmet_demand = 'lost'")
        _check_topology(nodes, edges)
        ordered = _topological_order(nodes, edges)
        position = {node.name: i for i, node in enumerate(ordered)} | {SUPPLIER: -1}
        sorted_edges = sorted(edges, key=lambda e: (position[e.destination], position[e.source]))
        return cls(nodes=tuple(ordered), edges=tuple(sorted_edges), unmet_demand=unmet_demand, goal=goal)

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @property
    def num_edges(self) -> int:
        return len(self.edges)

    @cached_property
    def num_stores(self) -> int:
        return sum(node.underage_cost is not None for node in self.nodes)

    @cached_property
    def num_warehouses(self) -> int:
        return self.num_nodes - self.num_stores

    @cached_property
    def node_names(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes)

    @cached_property
    def edge_source(self) -> tuple[int, ...]:
        """Node index each edge ships from, -1 for the supplier; length num_edges."""
        position = {name: i for i, name in enumerate(self.node_names)} | {SUPPLIER: -1}
        return tuple(position[edge.source] for edge in self.edges)

    @cached_property
    def edge_destination(self) -> tuple[int, ...]:
        position = {name: i for i, name in enumerate(self.node_names)}
        return tuple(position[edge.destination] for edge in self.edges)

    @cached_property
    def lead_times(self) -> tuple[int, ...]:
        return tuple(int(edge.lead_time) for edge in self.edges)

    @cached_property
    def must_ship_all(self) -> tuple[bool, ...]:
        return tuple(not node.holds_stock for node in self.nodes)

    @cached_property
    def is_arborescence(self) -> bool:
        """Every node has exactly one incoming edge, so that edge n is the edge into node n."""
        return self.edge_destination == tuple(range(self.num_nodes))

    @cached_property
    def depth(self) -> tuple[int, ...]:
        """Longest number of edges from the supplier to each node."""
        depth = [0] * self.num_nodes
        for source, destination in zip(self.edge_source, self.edge_destination, strict=True):
            depth[destination] = max(depth[destination], 1 + (depth[source] if source >= 0 else 0))
        return tuple(depth)

    def flow_scale(self, store_means: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean throughput of each node and edge when each node splits its needs evenly over its suppliers.

        store_means: [num_stores] mean demand per period. Returns ([num_nodes], [num_edges]); used to scale the
        inputs and outputs of networks.
        """
        node = np.zeros(self.num_nodes)
        node[self.num_warehouses :] = store_means
        edge = np.zeros(self.num_edges)
        incoming = np.bincount(self.edge_destination, minlength=self.num_nodes)
        for e in reversed(range(self.num_edges)):  # destinations come after their sources
            edge[e] = node[self.edge_destination[e]] / incoming[self.edge_destination[e]]
            if self.edge_source[e] >= 0:
                node[self.edge_source[e]] += edge[e]
        return node, edge


def _require_cost(where: str, field: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise NetworkError(f"{where}: {field} = {value!r}; valid is a finite number >= 0")


def _check_topology(nodes: Sequence[Node], edges: Sequence[Edge]) -> None:
    names = [node.name for node in nodes]
    if not any(node.underage_cost is not None for node in nodes):
        raise NetworkError("no node has demand: give at least one node an underage_cost")
    for name in names:
        if names.count(name) > 1:
            raise NetworkError(f"node {name!r} is defined {names.count(name)} times; names must be unique")
    lanes = [(edge.source, edge.destination) for edge in edges]
    for edge in edges:
        for field, end, known in (
            ("from", edge.source, [SUPPLIER, *names]),
            ("to", edge.destination, names),
        ):
            if end not in known:
                raise NetworkError(f"edge {edge.name!r}: {field} = {end!r} is no node; valid: {', '.join(known)}")
        if lanes.count((edge.source, edge.destination)) > 1:
            raise NetworkError(f"edge {edge.name!r} is defined more than once")
    for node in nodes:
        if not any(edge.destination == node.name for edge in edges):
            raise NetworkError(f"node {node.name!r} has no supplier: add an edge to it from 'supplier' or another node")
        if node.underage_cost is None and not any(edge.source == node.name for edge in edges):
            raise NetworkError(f"node {node.name!r} has neither demand (underage_cost) nor an outgoing edge")


def _into(edge: Edge, nodes: Sequence[Node]) -> bool:
    return any(edge.destination == node.name for node in nodes)


def _topological_order(nodes: Sequence[Node], edges: Sequence[Edge]) -> list[Node]:
    """Kahn's algorithm, stable, warehouses before stores where the edges allow it."""
    remaining = list(nodes)
    placed: list[Node] = []
    while remaining:
        done = {node.name for node in placed} | {SUPPLIER}
        ready = [n for n in remaining if all(e.source in done for e in edges if e.destination == n.name)]
        if not ready:
            while True:  # drop what only hangs below the cycle
                supplying = [n for n in remaining if any(e.source == n.name and _into(e, remaining) for e in edges)]
                if len(supplying) == len(remaining):
                    break
                remaining = supplying
            cycle = ", ".join(node.name for node in remaining)
            raise NetworkError(f"the edges form a cycle among the nodes {cycle}; a network must be acyclic")
        ready.sort(key=lambda n: n.underage_cost is not None)
        placed.append(ready[0])
        remaining.remove(ready[0])
    stores = [node for node in placed if node.underage_cost is not None]
    warehouses = [node for node in placed if node.underage_cost is None]
    # A store may supply a warehouse only if order by kind keeps the order by supply.
    ordered = warehouses + stores
    position = {node.name: i for i, node in enumerate(ordered)} | {SUPPLIER: -1}
    for edge in edges:
        if position[edge.source] >= position[edge.destination]:
            raise NetworkError(
                f"edge {edge.name!r}: a node with demand cannot supply one without; give "
                f"{edge.destination!r} a demand (an underage_cost, possibly with mean demand 0)"
            )
    return ordered
