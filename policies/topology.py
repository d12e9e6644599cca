"""What a network policy needs to know of the network it orders for, as a structural type.

Policies do not import the worlds they act in: any object with these attributes will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Topology(Protocol):
    """Nodes in topological order, the ``num_stores`` nodes with demand last; edges sorted by destination.

    edge_source: node index each edge ships from, -1 for the outside supplier. edge_destination: node index.
    lead_times: whole periods >= 1. must_ship_all: hubs that may not hold stock. depth: longest path from the
    supplier to each node, in edges.
    """

    @property
    def num_nodes(self) -> int: ...
    @property
    def num_edges(self) -> int: ...
    @property
    def num_stores(self) -> int: ...
    @property
    def num_warehouses(self) -> int: ...
    @property
    def edge_source(self) -> Sequence[int]: ...
    @property
    def edge_destination(self) -> Sequence[int]: ...
    @property
    def lead_times(self) -> Sequence[int]: ...
    @property
    def must_ship_all(self) -> Sequence[bool]: ...
    @property
    def depth(self) -> Sequence[int]: ...
    @property
    def is_arborescence(self) -> bool: ...


class Parameters(Protocol):
    """Costs and lead times of the scenarios, see the fields of the environment's own class."""

    @property
    def holding_cost(self) -> Tensor: ...
    @property
    def underage_cost(self) -> Tensor: ...
    @property
    def edge_cost(self) -> Tensor: ...
    @property
    def lead_time(self) -> Tensor: ...


class Observation(Protocol):
    """What a policy sees at the start of a period.

    slots: tuple of [..., num_nodes]; slots[0] on hand, slots[j] arriving in j periods. past_demand:
    [..., num_stores, P] or None. time: [F] or None. future: demand to come, only for oracles.
    """

    @property
    def slots(self) -> tuple[Tensor, ...]: ...
    @property
    def past_demand(self) -> Tensor | None: ...
    @property
    def time(self) -> Tensor | None: ...
    @property
    def parameters(self) -> Any: ...
    @property
    def period(self) -> int: ...
    @property
    def future(self) -> Tensor | None: ...


class RecentFlow(nn.Module):
    """Recent mean throughput of each node and edge in units, from each scenario's own past demand.

    A store's is the mean of its past demands, at least ``floor`` units; the others follow upstream, needs being
    split evenly over suppliers. Networks that see and order everything in these units are scale-equivariant.
    """

    by_node: Tensor
    by_edge: Tensor

    def __init__(self, topology: Topology, *, floor: float = 1.0) -> None:
        super().__init__()
        if not floor > 0:
            raise ValueError(f"floor = {floor}; valid: a positive number of units")
        self.floor = floor
        by_node, by_edge = flow_matrices(topology)
        self.register_buffer("by_node", by_node, persistent=False)
        self.register_buffer("by_edge", by_edge, persistent=False)

    def forward(
        self, past_demand: Float[Tensor, "... stores history"]
    ) -> tuple[Float[Tensor, "... nodes"], Float[Tensor, "... edges"]]:
        store = past_demand.mean(-1).clamp(min=self.floor)
        return store @ self.by_node, store @ self.by_edge


def source_matrix(topology: Topology) -> Float[Tensor, "edges nodes"]:
    """1 where edge e ships from node n; rows of edges from the supplier are zero."""
    matrix = torch.zeros(topology.num_edges, topology.num_nodes)
    for edge, node in enumerate(topology.edge_source):
        if node >= 0:
            matrix[edge, node] = 1.0
    return matrix


def supplier_edges(topology: Topology) -> list[int]:
    return [edge for edge, node in enumerate(topology.edge_source) if node < 0]


def shipping_nodes(topology: Topology) -> list[int]:
    """Nodes with an outgoing edge, in order."""
    return sorted({node for node in topology.edge_source if node >= 0})


def echelon_share(topology: Topology) -> Float[Tensor, "nodes nodes"]:
    """Share [n, m] of what node m receives that passes through node n, every node splitting its needs evenly.

    A node's echelon position is this matrix applied to the positions of all nodes.
    """
    share = torch.eye(topology.num_nodes, dtype=torch.get_default_dtype())
    edges = list(zip(topology.edge_source, topology.edge_destination, strict=True))
    for i, j in reversed(edges):  # destinations come after their sources
        if i >= 0:
            share[i] += share[j] / sum(end == j for _, end in edges)
    return share


def order_up_to_levels(topology: Topology, node_scale: Sequence[float], cover: float = 2.0) -> Float[Tensor, " nodes"]:
    """Echelon levels that cover mean flow over the lead times downstream, and ``cover`` periods more."""
    lead = torch.zeros(topology.num_nodes, dtype=torch.get_default_dtype())
    for j, time in zip(topology.edge_destination, topology.lead_times, strict=True):
        lead[j] = max(float(lead[j]), float(time))
    flow = vector(node_scale)
    return echelon_share(topology) @ (lead * flow) + cover * flow


def fastest_lanes(topology: Topology) -> list[int]:
    """For each store its incoming edge with the smallest lead time (the first of equals)."""
    best: dict[int, int] = {}
    for edge, node in enumerate(topology.edge_destination):
        if node not in best or topology.lead_times[edge] < topology.lead_times[best[node]]:
            best[node] = edge
    return [best[node] for node in range(topology.num_warehouses, topology.num_nodes)]


def flow_matrices(topology: Topology) -> tuple[Float[Tensor, "stores nodes"], Float[Tensor, "stores edges"]]:
    """Throughput of nodes and edges per unit of each store's demand, needs split evenly over suppliers."""
    stores = topology.num_stores
    node, edge = torch.zeros(stores, topology.num_nodes), torch.zeros(stores, topology.num_edges)
    node[:, topology.num_warehouses :] = torch.eye(stores)
    for e in reversed(range(topology.num_edges)):  # destinations come after their sources
        destination, source = topology.edge_destination[e], topology.edge_source[e]
        edge[:, e] = node[:, destination] / list(topology.edge_destination).count(destination)
        if source >= 0:
            node[:, source] += edge[:, e]
    return node, edge


def vector(values: Iterable[float]) -> Tensor:
    """A 1-d tensor in the default dtype, whatever kind of numbers come in."""
    return torch.tensor([float(value) for value in values], dtype=torch.get_default_dtype())
