"""One network from everything that is known of real demand to all orders (HDPO, arXiv 2306.11246)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from decisionrl.policies import feasibility
from decisionrl.policies.mlp import mlp
from decisionrl.policies.topology import Observation, RecentFlow, Topology, source_matrix


class DataDrivenNet(nn.Module):
    """Pipelines, past demands, p, h, days from Christmas and lead times to an order for each edge.

    Inputs of all nodes stand side by side; two layers of 64 ELU units; order = softplus(z + 1). Shipments are
    scaled down in proportion to the stock on hand of their source, never to stock in transit. There is an output
    for each edge of the network and none for lanes that do not exist.

    With ``scaled`` (the default) pipelines, past demands and orders are in units of each scenario's own recent
    mean demand (:class:`RecentFlow`), costs and lead times in units of ``cost_scale`` (holding, underage) and
    the longest lead time; an item that sells twice as much is then ordered twice as much. ``skip`` adds a linear
    map from inputs to outputs.
    """

    source: Tensor

    def __init__(
        self,
        topology: Topology,
        *,
        num_slots: int,
        history: int,
        time_features: int = 1,
        cost_scale: tuple[float, float] = (1.0, 1.0),
        hidden: Sequence[int] = (64, 64),
        output_bias: float = 1.0,
        scaled: bool = True,
        floor: float = 1.0,
        skip: bool = True,
    ) -> None:
        """floor: the smallest mean demand that is scaled by, in units."""
        super().__init__()
        if history < 1:
            raise ValueError(f"history = {history}; valid: at least 1 past demand (demand.history of the setting)")
        stores, edges = topology.num_stores, topology.num_edges
        self.num_warehouses, self.time_features, self.scaled = topology.num_warehouses, time_features, scaled
        self.output_bias = output_bias
        self.flow = RecentFlow(topology, floor=floor)
        self.cost_scale = cost_scale if scaled else (1.0, 1.0)
        self.lead_scale = float(max(topology.lead_times)) if scaled else 1.0
        inputs = num_slots * topology.num_nodes + (history + 2) * stores + time_features + edges
        self.net = mlp(inputs, hidden, edges)
        self.skip = nn.Linear(inputs, edges, bias=False) if skip else None
        if self.skip is not None:
            nn.init.zeros_(self.skip.weight)
        self.register_buffer("source", source_matrix(topology), persistent=False)

    def forward(self, observation: Observation) -> Float[Tensor, "... edges"]:
        past = observation.past_demand
        if past is None or observation.time is None:
            raise ValueError("DataDrivenNet needs past demands and the calendar, which a setting of series shows")
        node_scale, edge_scale = self.flow(past) if self.scaled else (None, None)
        inputs = self._inputs(observation, past, node_scale)
        z = self.net(inputs)
        if self.skip is not None:
            z = z + self.skip(inputs)
        wanted = nn.functional.softplus(z + self.output_bias)
        if edge_scale is not None:
            wanted = wanted * edge_scale
        if self.num_warehouses == 0:
            return wanted
        return feasibility.proportional(wanted, observation.slots[0], self.source)

    def _inputs(self, observation: Observation, past: Tensor, node_scale: Tensor | None) -> Float[Tensor, "... inputs"]:
        w = self.num_warehouses
        parameters = observation.parameters
        slots = torch.stack(observation.slots, -1)
        if node_scale is not None:
            slots = slots / node_scale[..., None] - 1.0
            past = past / node_scale[..., w:, None] - 1.0
        lead = slots.shape[:-2]
        parts = [
            slots.flatten(-2),
            past.flatten(-2),
            (parameters.underage_cost[..., w:] / self.cost_scale[1]).expand(*lead, -1),
            (parameters.holding_cost[..., w:] / self.cost_scale[0]).expand(*lead, -1),
            observation.time.expand(*lead, -1) if observation.time is not None else slots.new_zeros(*lead, 0),
            (parameters.lead_time / self.lead_scale).expand(*lead, -1),
        ]
        return torch.cat(parts, -1)
