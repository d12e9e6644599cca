"""Graph-network policy for inventory networks (HDPO, arXiv 2306.11246 v3; specification section 2.4).

The graph is static: the network's nodes; its lanes, one supplier edge for each node with outside supply (they
are edges of the network), one demand edge for each store and one self-loop for each node that ships and may
keep stock. Inside, nodes and edges are the leading dimension, ``[nodes | edges, ..., features]``: gathering
edge ends then copies whole blocks and a sum over edges is one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from decisionrl.policies import feasibility
from decisionrl.policies.mlp import elu, mlp, on_rows
from decisionrl.policies.topology import (
    Observation,
    RecentFlow,
    Topology,
    echelon_share,
    order_up_to_levels,
    shipping_nodes,
    vector,
)


class InventoryGNN(nn.Module):
    """Message passing over the network; one order for each edge.

    1. n = MLP_node(slots, static features);  e = MLP_edge(n_source, n_destination, lead time).
    2. Each round: n += MLP_nu(n, mean-like sum of incoming e, of outgoing e);  e += MLP_eu(e, n_source, n_dest),
       sums divided by the square root of the degree, the same weights in every round.
    3. Wish of an edge = scale softplus(MLP_out(e)); each node's stock is shared in proportion, its self-loop
       being the wish to keep.

    The first layer of MLP_edge and MLP_eu is split by input, so that it is applied to nodes, not to edges.
    With ``skip`` a linear map of the two ends' features is added to the wish. With ``echelon`` each node also
    sees its echelon position (everything at and on its way to the nodes it supplies, weighted by the share it
    supplies), relative to a level that covers the lead times downstream; with both, the wish starts as ordering
    up to that level: the untrained policy keeps every stock bounded, and what the network learns is the
    difference. The released code has neither.

    Slots and orders are in units of mean flow, static features relative to their mean (``scaled=False``: raw
    units). Lead times may differ by scenario. Permuting stores permutes orders.
    """

    node_scale: Tensor
    edge_scale: Tensor
    static: Tensor
    into: Tensor
    starts: Tensor
    ends: Tensor
    mix: Tensor
    source: Tensor
    ship_all: Tensor
    cost_scale: Tensor
    echelon_share: Tensor
    levels: Tensor

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
        recent_floor: float | None = None,
        skip: bool = True,
        echelon: bool = True,
        output_bias: float = 1.0,
    ) -> None:
        """demand_mean, demand_std: static features by store, or None where they are not shown. cost_scale: what
        holding cost, underage cost and edge cost are divided by. output_bias: where the wishes start without
        ``skip``. rounds: None for the longest path between nodes (at least 1)."""
        super().__init__()
        n, stores = topology.num_nodes, topology.num_stores
        self.num_slots, self.history, self.time_features, self.scaled = num_slots, history, time_features, scaled
        self._warehouses = topology.num_warehouses
        self.rounds = max(1, max(topology.depth) - 1) if rounds is None else rounds
        self._ships = bool(shipping_nodes(topology))
        keepers = [node for node in shipping_nodes(topology) if not topology.must_ship_all[node]]
        real = list(zip(topology.edge_source, topology.edge_destination, strict=True))
        # Demand edges stand last: nobody reads their wish, so the last round stops before them.
        graph = real + [(node, node) for node in keepers] + [(node, -1) for node in range(self._warehouses, n)]
        self._edges, self._real, self._read = len(graph), topology.num_edges, topology.num_edges + len(keepers)
        one_hot = torch.eye(n + 1)[:, :n]  # the outside has index -1 and a row of zeros
        start, end = (one_hot[list(ends)] for ends in zip(*graph, strict=True))
        degrees = [side.sum(0).clamp(min=1).sqrt()[:, None] for side in (end, start)]
        self.register_buffer("into", end[: self._real], persistent=False)
        self.register_buffer("starts", start, persistent=False)
        self.register_buffer("ends", end, persistent=False)
        self.register_buffer("mix", torch.cat([end.T / degrees[0], start.T / degrees[1]]), persistent=False)
        self.register_buffer("source", start[: self._read], persistent=False)
        self.register_buffer("ship_all", vector(topology.must_ship_all))
        self._any_must = any(topology.must_ship_all)
        self._keepers = keepers
        if recent_floor is not None and (history < 1 or not scaled):
            raise ValueError(f"recent_floor = {recent_floor}; valid: None without past demand or with scaled = False")
        self.flow = None if recent_floor is None else RecentFlow(topology, floor=recent_floor)
        self.register_buffer("node_scale", vector(node_scale) if scaled else torch.ones(n))
        keep_scale = [node_scale[node] for node in keepers]
        scales = [*edge_scale, *keep_scale] if scaled else [1.0] * (len(edge_scale) + len(keepers))
        self.register_buffer("edge_scale", vector(scales))
        self.register_buffer("cost_scale", vector(cost_scale if scaled else [1.0] * 3))

        self.echelon = echelon
        flow = vector(node_scale)
        levels = order_up_to_levels(topology, node_scale) / flow  # in periods of mean flow
        self.register_buffer("echelon_share", echelon_share(topology))
        self.register_buffer("levels", levels if scaled else flow * levels)

        static = torch.zeros(n, 0)
        if demand_mean is not None and demand_std is not None:
            mean, std = vector(demand_mean), vector(demand_std)
            relative = mean.mean() if scaled else torch.tensor(1.0)
            static = torch.zeros(n, 2)
            static[n - stores :] = torch.stack([mean, std], -1) / relative
        self.register_buffer("static", static)
        dynamic = num_slots + history + time_features + int(echelon)
        fixed = 3 + static.shape[1]

        activation = elu
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
            self.output[-1].bias.fill_(output_bias)  # type: ignore[operator]
        self.skip_from = nn.Linear(dynamic, 1, bias=False) if skip else None
        self.skip_to = nn.Linear(dynamic, 1, bias=False) if skip else None
        for layer in (self.skip_from, self.skip_to):
            if layer is not None:
                nn.init.zeros_(layer.weight)
        if self.skip_to is not None and echelon:
            # Start as echelon order-up-to rules; the last feature of a node is (echelon position - level) / flow.
            with torch.no_grad():
                self.skip_to.weight[:, -1] = -1.0
                self.output[-1].weight.mul_(0.1)  # type: ignore[operator]
                self.output[-1].bias.zero_()  # type: ignore[operator]

    def forward(self, observation: Observation) -> Float[Tensor, "... edges"]:
        return self.bind(observation.parameters)(observation)

    def bind(self, parameters: Any) -> Callable[[Observation], Float[Tensor, "... edges"]]:
        """The policy for one rollout: what costs, lead times and weights alone decide is computed here.

        Rows are nodes (or edges) times scenarios. The first layer over edge ends is applied to the nodes, as two
        products; those with the constant matrices ``starts`` and ``ends`` then bring them to the edges, and one
        with ``mix`` brings edge values back to the nodes.
        """
        static = self.static_features(parameters) @ self.node_static.weight.t() + self.node_dynamic.bias
        lead = nn.functional.pad(parameters.lead_time, (0, self._edges - self._real)).movedim(-1, 0)[..., None]
        fixed = lead * self.edge_lead.weight.t() + self.edge_from.bias
        dynamic_weight, update_edge_weight = self.node_dynamic.weight.t(), self.update_edge.weight.t()
        edge_ends = self.edge_from.weight.t(), self.edge_to.weight.t()
        update_ends = self.update_from.weight.t(), self.update_to.weight.t()
        node_rest, edge_rest, update_rest = map(on_rows, (self.node_rest, self.edge_rest, self.update_rest))
        node_update, output = on_rows(self.node_update), on_rows(self.output)
        skip: Tensor | None = None
        if self.skip_from is not None and self.skip_to is not None:
            skip = torch.cat([self.skip_from.weight, self.skip_to.weight]).t()
        width, n = self.edge_from.out_features, len(self.node_scale)

        def to_edges(nodes: Tensor, weights: tuple[Tensor, Tensor], edges: int) -> Tensor:
            """What both ends contribute to the first ``edges`` edges: [nodes * B, F] -> [edges, B * F]."""
            source, destination = (torch.mm(nodes, weight).view(n, -1) for weight in weights)
            return torch.addmm(torch.mm(self.starts[:edges], source), self.ends[:edges], destination)

        def act(observation: Observation) -> Tensor:
            node_scale, wish_scale = self.scales(observation)
            dynamic = self.dynamic_features(observation, node_scale)
            shape = dynamic.shape[1:-1]
            rows = dynamic.reshape(-1, dynamic.shape[-1])
            x = torch.mm(rows, dynamic_weight).view(n, *shape, width)
            nodes = node_rest(x.add_(_insert(static, x.ndim)).view(-1, width))
            x = to_edges(nodes, edge_ends, self._edges).view(self._edges, *shape, width)
            edges = edge_rest(x.add_(_insert(fixed, x.ndim)).view(-1, width))
            for i in range(self.rounds):
                mixed = torch.mm(self.mix, edges.view(self._edges, -1)).view(2, -1, width)
                nodes = nodes + node_update(torch.cat([nodes, *mixed.unbind()], -1))
                count = self._edges
                if i == self.rounds - 1:
                    count, edges = self._read, edges.view(self._edges, -1)[: self._read].view(-1, width)
                x = torch.addmm(self.update_edge.bias, edges, update_edge_weight)
                edges = edges + update_rest(x.add_(to_edges(nodes, update_ends, count).view(-1, width)))
            wish = output(edges).view(self._read, -1)
            if skip is not None:
                source, destination = torch.mm(rows, skip).view(n, -1, 2).unbind(-1)
                wish = torch.addmm(wish, self.starts[: self._read], source)
                wish = torch.addmm(wish, self.ends[: self._read], destination)
            # Contiguous: torch.compile mistakes the layout of the gradient of a transposed softplus.
            wanted = nn.functional.softplus(wish.t().contiguous()).view(*shape, self._read) * wish_scale
            if not self._ships:
                return wanted
            shared = feasibility.proportional(
                wanted, observation.slots[0], self.source, ship_all=self.ship_all if self._any_must else None
            )
            return shared[..., : self._real]

        return act

    def scales(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """The units that quantities are measured in: of nodes [..., nodes], of orders and keeping [..., wishes]."""
        if self.flow is None:
            return self.node_scale, self.edge_scale
        assert observation.past_demand is not None
        node, edge = self.flow(observation.past_demand)
        return node, torch.cat([edge, node[..., self._keepers]], -1)

    def dynamic_features(self, observation: Observation, node_scale: Tensor) -> Float[Tensor, "nodes *batch D"]:
        """What changes every period: pipelines, past demand, time, echelon positions."""
        slots = torch.stack(observation.slots, -1).movedim(-2, 0)
        scale = _insert(node_scale.movedim(-1, 0)[..., None], slots.ndim)
        parts = [slots / scale - 1.0 if self.scaled else slots]
        if observation.past_demand is not None and self.history:
            if self.flow is None:
                past = observation.past_demand.movedim(-2, 0) / scale[self._warehouses :]
                warehouses = past.new_zeros(self._warehouses, *past.shape[1:])
                parts.append(torch.cat([warehouses, past]))
            else:
                by_node = observation.past_demand.transpose(-1, -2) @ self.flow.by_node
                parts.append(by_node.movedim(-1, 0) / scale - 1.0)
        if observation.time is not None and self.time_features:
            parts.append(observation.time.expand(*slots.shape[:-1], -1))
        if self.echelon:
            position = (self.echelon_share @ slots.sum(-1).flatten(1)).view(slots.shape[:-1])[..., None]
            parts.append(position / scale - _insert(self.levels[:, None], slots.ndim))
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def static_features(self, parameters: Any) -> Float[Tensor, "nodes *batch S"]:
        """What does not: costs, and the moments of demand where they are shown."""
        p = parameters
        columns = torch.broadcast_tensors(  # type: ignore[no-untyped-call]
            p.holding_cost, p.underage_cost, p.edge_cost @ self.into
        )
        costs = torch.stack(columns, -1)
        fixed = (costs / self.cost_scale).movedim(-2, 0)
        if self.static.shape[1]:
            fixed = torch.cat([fixed, _insert(self.static, fixed.ndim).expand(*fixed.shape[:-1], -1)], -1)
        return fixed


def _insert(values: Tensor, ndim: int) -> Tensor:
    """Singleton dimensions after the first one, so that [nodes, S] broadcasts with [nodes, ..., S]."""
    return values.reshape(values.shape[0], *(1,) * (ndim - values.ndim), *values.shape[1:])
