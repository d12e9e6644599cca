"""Classical rules as differentiable policies: few parameters, trained like any network.

Levels are kept in units of ``scale`` (mean demand) so that one learning rate fits every setting; the
parameters broadcast over leading dimensions, so a whole sweep of levels runs in one rollout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from decisionrl.policies import feasibility
from decisionrl.policies.topology import Observation, Topology, source_matrix, vector


def inventory_position(slots: tuple[Tensor, ...]) -> Float[Tensor, "... nodes"]:
    """On hand plus everything on its way to a node (minus its backlog)."""
    total = slots[0]
    for slot in slots[1:]:
        total = total + slot
    return total


class BaseStock(nn.Module):
    """Order up to a level: (S - position)^+. One node, one supplier edge. Exact optimum when backlogged.

    level: initial S in units, a number or a tensor [..., 1] for a sweep.
    """

    def __init__(self, *, level: float | Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.level = nn.Parameter(torch.as_tensor(level, dtype=torch.get_default_dtype()) / scale)

    def forward(self, observation: Observation) -> Float[Tensor, "... 1"]:
        return self.bind(observation.parameters)(observation)

    def bind(self, parameters: Any) -> Callable[[Observation], Float[Tensor, "... 1"]]:
        """The rule with its level in units, worked out once for a rollout."""
        level = self.level * self.scale
        return lambda observation: (level - inventory_position(observation.slots)).clamp(min=0)


class CappedBaseStock(nn.Module):
    """Order up to S, at most r: min((S - position)^+, r) (Xin 2021, near-optimal for lost sales)."""

    def __init__(self, *, level: float | Tensor, cap: float | Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.level = nn.Parameter(torch.as_tensor(level, dtype=torch.get_default_dtype()) / scale)
        self.cap = nn.Parameter(torch.as_tensor(cap, dtype=torch.get_default_dtype()) / scale)

    def forward(self, observation: Observation) -> Float[Tensor, "... 1"]:
        return self.bind(observation.parameters)(observation)

    def bind(self, parameters: Any) -> Callable[[Observation], Float[Tensor, "... 1"]]:
        """The rule with level and cap in units, worked out once for a rollout."""
        level, cap = self.level * self.scale, (self.cap * self.scale).clamp(min=0)
        return lambda observation: torch.minimum((level - inventory_position(observation.slots)).clamp(min=0), cap)


class EchelonStock(nn.Module):
    """Serial system: stage k orders min((S_k - echelon position)^+, stock of stage k - 1) (Clark and Scarf 1960).

    levels: initial echelon levels, upstream first; they are kept as positive increments from the store up, so
    that they always decrease downstream. A level above one further upstream is lowered to it: it could never be
    reached, so the policy is the same.
    """

    def __init__(self, topology: Topology, *, levels: Sequence[float], scale: float = 1.0) -> None:
        super().__init__()
        chain = list(range(-1, topology.num_nodes - 1))
        if list(topology.edge_source) != chain or not topology.is_arborescence:
            raise ValueError("echelon_stock needs a serial network: one supplier edge and one edge from stage to stage")
        if len(levels) != topology.num_nodes:
            raise ValueError(f"levels has {len(levels)} values; valid: {topology.num_nodes}, one for each stage")
        self.scale = scale
        downstream_first = vector(levels).cummin(0).values.flip(0) / scale
        increments = torch.diff(downstream_first, prepend=torch.zeros(1)).clamp(min=1e-3)
        self.increments = nn.Parameter(increments + torch.log(-torch.expm1(-increments)))  # inverse of softplus

    @property
    def levels(self) -> Float[Tensor, " nodes"]:
        """Echelon base-stock levels in units, upstream first."""
        return nn.functional.softplus(self.increments).cumsum(-1).flip(-1) * self.scale

    def forward(self, observation: Observation) -> Float[Tensor, "... nodes"]:
        position = inventory_position(observation.slots)
        echelon = position.flip(-1).cumsum(-1).flip(-1)
        wanted = (self.levels - echelon).clamp(min=0)
        on_hand = observation.slots[0].clamp(min=0)
        available = nn.functional.pad(on_hand[..., :-1], (1, 0), value=math.inf)
        return torch.minimum(wanted, available)


class StoreAndWarehouseBaseStock(nn.Module):
    """Stores order up to S_i and share their warehouse's stock in proportion; the warehouse holds an echelon level.

    For two stages: warehouses supplied from outside, and stores. A store uses one of its edges, that from the
    warehouse with the shortest lead time, or the supplier's if it has no warehouse. Both levels are parameters.
    """

    source: Tensor
    feeds: Tensor
    to_node: Tensor
    ship_all: Tensor

    def __init__(
        self,
        topology: Topology,
        *,
        store_levels: Sequence[float],
        warehouse_levels: Sequence[float],
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        w, s, e = topology.num_warehouses, topology.num_stores, topology.num_edges
        for i, j in zip(topology.edge_source, topology.edge_destination, strict=True):
            if i >= w or (j < w and i >= 0):
                raise ValueError("store_base_stock needs two stages: warehouses supplied from outside, then stores")
        if len(store_levels) != s or len(warehouse_levels) != w:
            raise ValueError(
                f"got {len(store_levels)} store levels and {len(warehouse_levels)} warehouse levels; valid: {s} and {w}"
            )
        self.scale = scale
        self.store_levels = nn.Parameter(vector(store_levels) / scale)
        self.warehouse_levels = nn.Parameter(vector(warehouse_levels) / scale)
        used = _used_edges(topology)
        to_node = torch.zeros(topology.num_nodes, e)
        feeds = torch.zeros(s, w)
        for edge, (i, j) in enumerate(zip(topology.edge_source, topology.edge_destination, strict=True)):
            if edge in used:
                to_node[j, edge] = 1.0
            if edge in used and i >= 0:
                feeds[j - w, i] = 1.0
        self.register_buffer("source", source_matrix(topology))
        self.register_buffer("ship_all", vector(topology.must_ship_all))
        self._any_must = any(topology.must_ship_all)
        self.register_buffer("feeds", feeds)
        self.register_buffer("to_node", to_node)
        self._warehouses = w

    def forward(self, observation: Observation) -> Float[Tensor, "... edges"]:
        position = inventory_position(observation.slots)
        w = self._warehouses
        stores, warehouses = position[..., w:], position[..., :w]
        echelon = warehouses + stores @ self.feeds
        wanted_store = (self.store_levels * self.scale - stores).clamp(min=0)
        wanted_warehouse = (self.warehouse_levels * self.scale - echelon).clamp(min=0)
        wanted = torch.cat([wanted_warehouse, wanted_store], -1) @ self.to_node
        return feasibility.proportional(
            wanted, observation.slots[0], self.source, ship_all=self.ship_all if self._any_must else None
        )


class BalancedAllocation(nn.Module):
    """A hub that ships everything, allocated by water-filling one safety factor over all stores.

    The warehouse orders up to ``level``; the stock on hand is split as q_i = (m_i + k s_i - position_i)^+ with
    the factor k that makes the shipments add up (m_i, s_i: mean and standard deviation of demand over lead time
    plus one period). Attains the balance relaxation's bound to within noise. relaxed: leave the negative parts
    in, as if stock could be sent back; that system is infeasible and its mean cost is the bound itself.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        topology: Topology,
        *,
        level: float,
        mean: Sequence[float],
        std: Sequence[float],
        scale: float = 1.0,
        relaxed: bool = False,
    ) -> None:
        super().__init__()
        if list(topology.edge_source) != [-1] + [0] * topology.num_stores or topology.num_warehouses != 1:
            raise ValueError("balanced allocation needs one warehouse that supplies every store")
        self.scale, self.relaxed = scale, relaxed
        self.level = nn.Parameter(torch.tensor(level / scale))
        lead = vector(topology.lead_times[1:])
        self.register_buffer("mean", vector(mean) * (lead + 1))
        self.register_buffer("std", vector(std) * (lead + 1).sqrt())

    def forward(self, observation: Observation) -> Float[Tensor, "... edges"]:
        position = inventory_position(observation.slots)
        order = (self.level * self.scale - position.sum(-1, keepdim=True)).clamp(min=0)
        total, need = observation.slots[0][..., :1], self.mean - position[..., 1:]
        if self.relaxed:
            factor = (total - need.sum(-1, keepdim=True)) / self.std.sum()
            return torch.cat([order, need + factor * self.std], -1)
        shipped = water_fill(total, need, self.std)
        return torch.cat([order, shipped], -1)


def water_fill(
    total: Float[Tensor, "... 1"], need: Float[Tensor, "... stores"], weight: Float[Tensor, " stores"]
) -> Float[Tensor, "... stores"]:
    """q_i = (need_i + k weight_i)^+ with the k that makes sum q_i = total (>= 0), exactly, by sorting.

    A store takes part once k exceeds -need_i / weight_i; with stores sorted by that threshold, k follows from
    the largest set that is consistent.
    """
    threshold, order = (-need / weight).sort(-1)
    weights = weight.expand_as(need).gather(-1, order)
    needs = need.gather(-1, order)
    level = (total.clamp(min=0) - needs.cumsum(-1)) / weights.cumsum(-1)
    # level_n >= threshold_n holds for a prefix of the sorted stores; the last of it gives k.
    count = (level >= threshold).sum(-1, keepdim=True).clamp(min=1)
    k = level.gather(-1, count - 1)
    return (need + k * weight).clamp(min=0)


def _used_edges(topology: Topology) -> set[int]:
    """For each node, the incoming edge with the smallest lead time (the first of equals), from a warehouse if any."""
    best: dict[int, tuple[bool, int, int]] = {}
    for edge, (i, j) in enumerate(zip(topology.edge_source, topology.edge_destination, strict=True)):
        rank = (i < 0, topology.lead_times[edge], edge)
        best[j] = min(best.get(j, rank), rank)
    return {edge for _, _, edge in best.values()}
