"""Graph-network policy for inventory networks (HDPO, arXiv 2306.11246 v3; specification section 2.4).

The graph is static: the network's nodes; its lanes, one supplier edge for each node with outside supply (they
are edges of the network), one demand edge for each store and one self-loop for each node that ships and may
keep stock. Inside, nodes and edges are the leading dimension, ``[nodes | edges, ..., features]``: gathering
edge ends then copies whole blocks and a sum over edges is one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch_geometric.utils
from jaxtyping import Float
from torch import Tensor, nn

from decisionrl.policies import feasibility
from decisionrl.policies.mlp import mlp
from decisionrl.policies.topology import Observation, Topology, shipping_nodes, source_matrix, vector


class InventoryGNN(nn.Module):
    """Message passing over the network; one order for each edge.

    1. n = MLP_node(slots, static features);  e = MLP_edge(n_source, n_destination, lead time).
    2. Each round: n += MLP_nu(n, mean-like sum of incoming e, of outgoing e);  e += MLP_eu(e, n_source, n_dest),
       sums divided by the square root of the degree, the same weights in every round.
    3. Wish of an edge = scale softplus(MLP_out(e)); each node's stock is shared in proportion, its self-loop
       being the wish to keep.

    The first layer of MLP_edge and MLP_eu is split by input, so that it is applied to nodes, not to edges.
    Slots and orders are in units of mean flow, static features relative to their mean (``scaled=False``: raw
    units). Lead times may differ by scenario. Permuting stores permutes orders.
    """

    node_scale: Tensor
    edge_scale: Tensor
    static: Tensor
    source: Tensor
    to_node: Tensor
    keeper: Tensor
    _start: Tensor
    _end: Tensor
    _read: Tensor
    incoming: Tensor
    outgoing: Tensor
    ship_all: Tensor
    cost_scale: Tensor

    def __init__(
        self,
        topology: Topology,
        *,
        num_slots: int,
        node_scale: Sequence[float],
        edge_scale: Sequence[float],
        demand_mean: Sequence[float] | None = None,
        demand_std: Sequence[float] | None = None,
        history: int = 0,
        time_features: int = 0,
        cost_scale: tuple[float, float, float] = (1.0, 1.0, 1.0),
        width: int = 32,
        rounds: int | None = None,
        scaled: bool = True,
        skip: bool = True,
        output_bias: float = 1.0,
    ) -> None:
        """demand_mean, demand_std: static features by store, or None where they are not shown. cost_scale: what
        holding cost, underage cost and edge cost are divided by. rounds: None for the longest path between
        nodes (at least 1)."""
        super().__init__()
        n, stores = topology.num_nodes, topology.num_stores
        self.num_slots, self.history, self.time_features, self.scaled = num_slots, history, time_features, scaled
        self._warehouses = topology.num_warehouses
        self.rounds = max(1, max(topology.depth) - 1) if rounds is None else rounds
        self._ships = bool(shipping_nodes(topology))
        keepers = [node for node in shipping_nodes(topology) if not topology.must_ship_all[node]]
        real = list(zip(topology.edge_source, topology.edge_destination, strict=True))
        demand_edges = [(node, -1) for node in range(self._warehouses, n)]
        graph = real + demand_edges + [(node, node) for node in keepers]
        self._edges = len(graph)
        self._real = topology.num_edges
        self._keepers = keepers
        start, end = torch.tensor([[n if i < 0 else i for i in ends] for ends in graph]).T
        one_hot = torch.eye(n + 1)[:, :n]  # the outside has index n and a row of zeros
        out_degree = torch_geometric.utils.degree(start, n + 1)[:n].clamp(min=1)
        in_degree = torch_geometric.utils.degree(end, n + 1)[:n].clamp(min=1)
        self.register_buffer("_start", start, persistent=False)
        self.register_buffer("_end", end, persistent=False)
        self.register_buffer("to_node", one_hot[end])
        self.register_buffer("incoming", one_hot[end].T / in_degree.sqrt()[:, None])
        self.register_buffer("outgoing", one_hot[start].T / out_degree.sqrt()[:, None])
        self.register_buffer("keeper", one_hot[keepers])
        self.register_buffer("source", source_matrix(topology))
        self.register_buffer("ship_all", vector(topology.must_ship_all))
        self._any_must = any(topology.must_ship_all)
        self.register_buffer("node_scale", vector(node_scale) if scaled else torch.ones(n))
        keep_scale = [node_scale[node] for node in keepers]
        scales = [*edge_scale, *keep_scale] if scaled else [1.0] * (len(edge_scale) + len(keepers))
        self.register_buffer("edge_scale", vector(scales))
        self.register_buffer("cost_scale", vector(cost_scale if scaled else [1.0] * 3))

        static = torch.zeros(n, 0)
        if demand_mean is not None and demand_std is not None:
            mean, std = vector(demand_mean), vector(demand_std)
            relative = mean.mean() if scaled else torch.tensor(1.0)
            static = torch.zeros(n, 2)
            static[n - stores :] = torch.stack([mean, std], -1) / relative
        self.register_buffer("static", static)
        dynamic = num_slots + history + time_features
        fixed = 3 + static.shape[1]

        activation = nn.ELU
        self.node_dynamic = nn.Linear(dynamic, width)
        self.node_static = nn.Linear(fixed, width, bias=False)
        self.node_rest = nn.Sequential(
            activation(), nn.Linear(width, width), activation(), nn.Linear(width, width), activation()
        )
        self.edge_from = nn.Linear(width, width)
        self.edge_to = nn.Linear(width, width, bias=False)
        self.edge_lead = nn.Linear(1, width, bias=False)
        self.edge_rest = nn.Sequential(
            activation(), nn.Linear(width, width), activation(), nn.Linear(width, width), activation()
        )
        self.node_update = mlp(3 * width, (width, width), width, output_activation=activation)
        self.update_edge = nn.Linear(width, width)
        self.update_from = nn.Linear(width, width, bias=False)
        self.update_to = nn.Linear(width, width, bias=False)
        self.update_rest = nn.Sequential(
            activation(), nn.Linear(width, width), activation(), nn.Linear(width, width), activation()
        )
        self.output = mlp(width, (width, width), 1)
        with torch.no_grad():
            self.output[-1].bias.fill_(output_bias)  # type: ignore[operator,union-attr]
        self.skip_from = nn.Linear(dynamic, 1, bias=False) if skip else None
        self.skip_to = nn.Linear(dynamic, 1, bias=False) if skip else None
        for layer in (self.skip_from, self.skip_to):
            if layer is not None:
                nn.init.zeros_(layer.weight)
        read = [*range(topology.num_edges), *range(topology.num_edges + stores, len(graph))]
        self.register_buffer("_read", torch.tensor(read), persistent=False)

    def features(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """By node, nodes first: what changes every period [nodes, ..., D] and what does not [nodes, ..., S]."""
        slots = torch.stack([slot.movedim(-1, 0) for slot in observation.slots], -1)
        scale = _insert(self.node_scale[:, None], slots.ndim)
        parts = [slots / scale - 1.0 if self.scaled else slots]
        if observation.past_demand is not None and self.history:
            past = observation.past_demand.movedim(-2, 0) / scale[self._warehouses :]
            warehouses = past.new_zeros(self._warehouses, *past.shape[1:])
            parts.append(torch.cat([warehouses, past]))
        if observation.time is not None and self.time_features:
            parts.append(observation.time.expand(*slots.shape[:-1], -1))
        dynamic = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        p = observation.parameters
        into = p.edge_cost @ self.to_node[: self._real]
        costs = torch.stack(torch.broadcast_tensors(p.holding_cost, p.underage_cost, into), -1)
        fixed = (costs / self.cost_scale).movedim(-2, 0)
        if self.static.shape[1]:
            fixed = torch.cat([fixed, _insert(self.static, fixed.ndim).expand(*fixed.shape[:-1], -1)], -1)
        return dynamic, _insert(fixed, dynamic.ndim)

    def forward(self, observation: Observation) -> Float[Tensor, "... edges"]:
        dynamic, fixed = self.features(observation)
        nodes = self.node_rest(self.node_dynamic(dynamic) + self.node_static(fixed))
        lead = nn.functional.pad(observation.parameters.lead_time, (0, self._edges - self._real))
        lead = _insert(lead.movedim(-1, 0)[..., None], nodes.ndim)
        # The bias is added by edge, not by node: edges from the outside have it as well.
        source = _gather(nn.functional.linear(nodes, self.edge_from.weight), self._start)
        constant = self.edge_lead(lead) + self.edge_from.bias
        edges = self.edge_rest(source + _gather(self.edge_to(nodes), self._end) + constant)
        for i in range(self.rounds):
            inputs = torch.cat([nodes, _mix(self.incoming, edges), _mix(self.outgoing, edges)], -1)
            nodes = nodes + self.node_update(inputs)
            start, end = self._start, self._end
            if i == self.rounds - 1:
                # Only edges whose wish is read are updated in the last round (demand edges are not).
                edges, start, end = edges[self._read], start[self._read], end[self._read]
            update = self.update_edge(edges) + _gather(self.update_from(nodes), start)
            edges = edges + self.update_rest(update + _gather(self.update_to(nodes), end))
        wish = self.output(edges)
        if self.skip_from is not None and self.skip_to is not None:
            wish = wish + _gather(self.skip_from(dynamic), start) + _gather(self.skip_to(dynamic), end)
        wanted = nn.functional.softplus(wish.squeeze(-1).movedim(0, -1)) * self.edge_scale
        orders, on_hand = wanted[..., : self._real], observation.slots[0]
        if not self._ships:
            return orders
        keep = wanted[..., self._real :] @ self.keeper if self._keepers else None
        return feasibility.proportional(
            orders, on_hand, self.source, keep=keep, ship_all=self.ship_all if self._any_must else None
        )


def _insert(values: Tensor, ndim: int) -> Tensor:
    """Singleton dimensions after the first one, so that [nodes, S] broadcasts with [nodes, ..., S]."""
    return values.reshape(values.shape[0], *(1,) * (ndim - values.ndim), *values.shape[1:])


def _gather(nodes: Float[Tensor, "nodes *batch F"], index: Tensor) -> Float[Tensor, "edges *batch F"]:
    """Node values at one end of each edge; index num_nodes stands for the outside, whose embedding is zero."""
    outside = torch.zeros_like(nodes[:1])
    return torch.cat([nodes, outside]).index_select(0, index)


def _mix(weights: Float[Tensor, "nodes edges"], edges: Float[Tensor, "edges *batch F"]) -> Tensor:
    """Weighted sums of edge values by node, as one matrix product."""
    return (weights @ edges.flatten(1)).reshape(weights.shape[0], *edges.shape[1:])
