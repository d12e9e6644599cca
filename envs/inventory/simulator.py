"""The inventory simulator: one period as a pure function of tensors, and rollouts of it.

Order of events in a period (HDPO, arXiv 2306.11246, section 2): the policy sees the stock and orders over
every edge; demand falls; what a node ships leaves its on-hand stock; costs are counted on what is left; the
pipeline moves on by one period and the orders join it, so that an order of period t over a lane with lead time
L can serve the demand of period t + L. Holding is charged on hand only, never on stock in transit.

The pipeline is a tuple of ``[..., num_nodes]`` tensors, one per period until arrival, slot 0 being on hand:
moving it is a rotation of references and no tensor is written twice. All tensors broadcast over leading
dimensions, so a sweep over parameter settings is one more leading dimension, and ``step`` has neither
``.item()`` nor data-dependent shapes (torch.compile, torch.func.vmap and CUDA graphs accept it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from decisionrl.envs.inventory.network import Network, NetworkError

Slots = tuple[Tensor, ...]

COST_BLOCK = 2**17
"""A rollout counts costs for several periods at once: as many as have about this many levels, to stay in cache."""


class InfeasibleOrderError(ValueError):
    """A policy ordered something that cannot be; names the period, the place and the amount."""


class Observation(NamedTuple):
    """What a policy sees at the start of a period.

    slots: K tensors [..., num_nodes]; slots[0] is on hand, slots[j] arrives in j periods.
    past_demand: [..., num_stores, P] the last P demands, oldest first, or None.
    time: [F] time features of the period to come, or None.
    parameters: costs and lead times of the scenarios.
    period: index of the period in the rollout.
    future: [remaining, ..., num_stores] demand from this period on; only an oracle is given it.
    """

    slots: Slots
    past_demand: Tensor | None
    time: Tensor | None
    parameters: Parameters
    period: int
    future: Tensor | None = None


class Parameters(NamedTuple):
    """Costs and lead times as tensors; each may carry leading scenario or setting dimensions.

    holding_cost, underage_cost: [..., num_nodes] (underage 0 where there is no demand).
    edge_cost: [..., num_edges]. lead_time: [..., num_edges] in periods (float).
    """

    holding_cost: Tensor
    underage_cost: Tensor
    edge_cost: Tensor
    lead_time: Tensor


@dataclass(frozen=True)
class Scenario:
    """A batch of exogenous paths with the state they start from.

    slots: initial pipeline, K tensors [batch, num_nodes].
    demand: [history + periods, batch, num_stores]; the first ``history`` columns only feed past_demand.
    time: [periods, F] time features seen at the start of each period, or None.
    """

    slots: Slots
    demand: Float[Tensor, "history_and_periods batch stores"]
    parameters: Parameters
    history: int = 0
    time: Tensor | None = None

    @property
    def periods(self) -> int:
        return self.demand.shape[0] - self.history

    @property
    def batch(self) -> int:
        return self.demand.shape[1]


class Rollout(NamedTuple):
    """What came of a rollout. cost: [periods, ..., batch] per period, summed over nodes and edges."""

    cost: Tensor
    slots: Slots


Policy = Callable[[Observation], Tensor]
"""Maps an observation to orders [..., num_edges] in units.

A policy may have a method ``bind(parameters) -> Policy``: what it computes from its weights and the scenarios'
parameters alone is then computed once for a rollout, not in every period. Calling it must give the same orders.
"""


def bound(policy: Policy, parameters: Parameters) -> Policy:
    """The policy for one rollout with these parameters; itself if it has nothing to prepare."""
    bind: Callable[[Parameters], Policy] | None = getattr(policy, "bind", None)
    return policy if bind is None else bind(parameters)


class Simulator:
    """The dynamics of one network on one device in one dtype.

    Static structure (which edge feeds which node, which lead times occur) is read once here; ``step`` is then a
    pure function of its arguments.
    """

    def __init__(
        self,
        network: Network,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        min_slots: int = 1,
        lead_time_range: tuple[int, int] | None = None,
    ) -> None:
        """min_slots: pipeline length at least this. lead_time_range: [first, last] of the lead times that vary by
        scenario; the others are the network's."""
        self.network = network
        self.device = torch.device(device)
        self.dtype = dtype
        self.varying_lead_times = lead_time_range is not None
        lead_times = set(network.lead_times)
        if lead_time_range is not None:
            first, last = lead_time_range
            if not 1 <= first <= last:
                raise NetworkError(f"lead_time_range = {[first, last]}; valid: whole periods, last >= first >= 1")
            lead_times.update(range(first, last + 1))
        self._lead_times = sorted(lead_times)
        self.num_slots = max(self._lead_times[-1], min_slots)
        n, e = network.num_nodes, network.num_edges
        self._num_warehouses = network.num_warehouses  # read here: a cached property breaks a compiled graph
        source = torch.zeros(e, n, device=self.device, dtype=dtype)
        destination = torch.zeros(e, n, device=self.device, dtype=dtype)
        for edge, (i, j) in enumerate(zip(network.edge_source, network.edge_destination, strict=True)):
            if i >= 0:
                source[edge, i] = 1.0
            destination[edge, j] = 1.0
        self._source = source if bool(source.any()) else None
        self._destination = None if network.is_arborescence else destination
        self._arrives = [
            torch.tensor([float(lead == k) for lead in network.lead_times], device=self.device, dtype=dtype)
            for k in self._lead_times
        ]
        self._clip_all = network.unmet_demand == "lost" and network.num_warehouses == 0
        self._clip_some = network.unmet_demand == "lost" and network.num_warehouses > 0
        self._is_store = torch.tensor([node.underage_cost is not None for node in network.nodes], device=self.device)
        self._has_edge_cost = any(edge.cost > 0 for edge in network.edges)
        self.parameters = Parameters(
            holding_cost=self._tensor([node.holding_cost for node in network.nodes]),
            underage_cost=self._tensor([node.underage_cost or 0.0 for node in network.nodes]),
            edge_cost=self._tensor([edge.cost for edge in network.edges]),
            lead_time=self._tensor([float(lead) for lead in network.lead_times]),
        )

    def _tensor(self, values: list[float]) -> Tensor:
        return torch.tensor(values, device=self.device, dtype=self.dtype)

    def empty_slots(self, batch: int) -> Slots:
        """A pipeline without stock: num_slots tensors of zeros [batch, num_nodes]."""
        zeros = torch.zeros(batch, self.network.num_nodes, device=self.device, dtype=self.dtype)
        return (zeros,) * self.num_slots

    def node_demand(self, demand: Float[Tensor, "... stores"]) -> Float[Tensor, "... nodes"]:
        """Demand by node: zeros for the warehouses, which stand first."""
        return F.pad(demand, (self._num_warehouses, 0)) if self._num_warehouses else demand

    def transition(
        self,
        slots: Slots,
        orders: Float[Tensor, "... edges"],
        demand: Float[Tensor, "... nodes"],
        parameters: Parameters,
    ) -> tuple[Slots, Float[Tensor, "... nodes"]]:
        """One period. Returns the next pipeline and the level, the position on hand after shipping and demand.

        A negative level is unmet demand (or, at a warehouse, a shipment that was not there: see
        :func:`assert_feasible`). The cost of the period is a function of level, orders and demand alone, so a
        rollout counts it for many periods at once.
        """
        shipped = orders @ self._source if self._source is not None else 0.0
        level = slots[0] - shipped - demand
        if self._clip_all:
            carried = level.clamp(min=0)
        elif self._clip_some:
            carried = torch.where(self._is_store, level.clamp(min=0), level)
        else:
            carried = level
        moved: list[Tensor | None] = [*slots[1:], None]
        moved[0] = carried if moved[0] is None else carried + moved[0]
        single = len(self._lead_times) == 1
        for k, arrives in zip(self._lead_times, self._arrives, strict=True):
            if self.varying_lead_times:
                arriving = orders * (parameters.lead_time == k)
            else:
                arriving = orders if single else orders * arrives
            if self._destination is not None:
                arriving = arriving @ self._destination
            before = moved[k - 1]
            moved[k - 1] = arriving if before is None else before + arriving
        if moved[-1] is None:
            moved[-1] = torch.zeros_like(slots[0])
        return tuple(moved), level  # type: ignore[arg-type]

    def cost(
        self,
        level: Float[Tensor, "... nodes"],
        orders: Float[Tensor, "... edges"],
        demand: Float[Tensor, "... nodes"],
        parameters: Parameters,
    ) -> Float[Tensor, " ..."]:
        """Cost of a period: h (level)^+ + p (-level)^+ summed over nodes, plus the cost per unit ordered.

        In a profit network p counts per unit sold: - p min(on hand, demand) = p (-level)^+ - p demand.
        """
        held = parameters.holding_cost * level.clamp(min=0)
        total = torch.addcmul(held, parameters.underage_cost, level.clamp(max=0), value=-1)
        total = total.squeeze(-1) if self.network.num_nodes == 1 else total.sum(-1)
        if self.network.goal == "profit":
            total = total - (parameters.underage_cost * demand).sum(-1)
        if self._has_edge_cost:
            total = total + (parameters.edge_cost * orders).sum(-1)
        return total

    def step(
        self,
        slots: Slots,
        orders: Float[Tensor, "... edges"],
        demand: Float[Tensor, "... stores"],
        parameters: Parameters | None = None,
    ) -> tuple[Slots, Float[Tensor, " ..."]]:
        """One period: (pipeline, orders, demand) -> (next pipeline, cost)."""
        parameters = parameters or self.parameters
        by_node = self.node_demand(demand)
        following, level = self.transition(slots, orders, by_node, parameters)
        return following, self.cost(level, orders, by_node, parameters)

    def rollout(
        self,
        policy: Policy,
        scenario: Scenario,
        *,
        oracle: bool = False,
        check: bool = False,
    ) -> Rollout:
        """Drive ``policy`` through all periods of ``scenario``; differentiable in the policy's parameters.

        oracle: also show the policy the demand to come. check: assert feasibility and unit conservation in
        every period (slow). Orders must be [..., batch, num_edges]; leading dimensions sweep over settings of
        the policy. Raises InfeasibleOrderError for orders of another shape, and by ``check``.
        """
        slots, parameters, history = scenario.slots, scenario.parameters, scenario.history
        if len(slots) < self._lead_times[-1]:
            longest = self._lead_times[-1]
            raise ValueError(f"the scenario has {len(slots)} slots; valid: at least {longest}, the longest lead time")
        expected = (scenario.batch, self.network.num_edges)
        by_node = self.node_demand(scenario.demand[history:])
        act = bound(policy, parameters)
        levels: list[Tensor] = []
        placed: list[Tensor] = []
        costs: list[Tensor] = []
        for t, demand in enumerate(by_node.unbind(0)):
            orders = act(self.observe(scenario, slots, t, oracle=oracle))
            if orders.shape[-2:] != expected:
                raise self._wrong_shape(orders, expected, t)
            if t == 0 and orders.ndim > demand.ndim:  # a sweep: one more leading dimension from here on
                slots = tuple(slot.expand(*orders.shape[:-1], -1) for slot in slots)
            following, level = self.transition(slots, orders, demand, parameters)
            if check:
                self.assert_feasible(slots, orders, demand, following, t)
            slots = following
            levels.append(level)
            placed.append(orders)
            if len(levels) * level.numel() >= COST_BLOCK or t == scenario.periods - 1:
                # A sweep's leading dimensions stand between periods and scenarios.
                block = by_node[t + 1 - len(levels) : t + 1]
                block = block.view(len(levels), *(1,) * (level.ndim - demand.ndim), *demand.shape)
                block_orders = torch.stack(placed) if self._has_edge_cost else orders
                costs.append(self.cost(torch.stack(levels), block_orders, block, parameters))
                levels, placed = [], []
        return Rollout(cost=costs[0] if len(costs) == 1 else torch.cat(costs), slots=slots)

    def _wrong_shape(self, orders: Tensor, expected: tuple[int, int], period: int) -> InfeasibleOrderError:
        edges = ", ".join(edge.name for edge in self.network.edges)
        return InfeasibleOrderError(
            f"period {period}: the policy's orders have shape {list(orders.shape)}; "
            f"valid: [..., {expected[0]}, {expected[1]}], scenarios by edges ({edges})"
        )

    def observe(self, scenario: Scenario, slots: Slots, period: int, *, oracle: bool = False) -> Observation:
        """What a policy sees at the start of ``period``."""
        history = scenario.history
        past = scenario.demand[period : period + history].movedim(0, -1) if history else None
        return Observation(
            slots=slots,
            past_demand=past,
            time=None if scenario.time is None else scenario.time[period],
            parameters=scenario.parameters,
            period=period,
            future=scenario.demand[history + period :] if oracle else None,
        )

    def assert_feasible(
        self,
        slots: Slots,
        orders: Tensor,
        demand: Tensor,
        following: Slots,
        period: int,
        tolerance: float = 1e-4,
    ) -> None:
        """0 <= orders, outflow <= on hand (== for a hub that may not hold stock), and no unit made or lost.

        Raises InfeasibleOrderError naming the period, the edge or node and the amount. tolerance: relative to
        the stock.
        """
        names = self.network.node_names
        orders = orders.detach()
        if not bool(torch.isfinite(orders).all()):
            edge = int((~torch.isfinite(orders)).flatten(0, -2).any(0).nonzero()[0])
            raise InfeasibleOrderError(
                f"period {period}: order over {self.network.edges[edge].name} is NaN or infinite"
            )
        lowest, edge_index = orders.flatten(0, -2).min(0).values.min(0)
        if float(lowest) < -tolerance:
            name = self.network.edges[int(edge_index)].name
            raise InfeasibleOrderError(f"period {period}: order over {name} is {float(lowest):.6g}; valid is >= 0")
        slack = tolerance * (1 + slots[0].abs())
        if self._source is not None:
            shipped = orders @ self._source
            # A node in backlog has nothing to ship.
            over = shipped - slots[0].clamp(min=0) - slack
            if bool((over > 0).any()):
                node = int(over.flatten(0, -2).max(0).values.argmax())
                amount = float((shipped - slots[0].clamp(min=0))[..., node].max())
                raise InfeasibleOrderError(
                    f"period {period}: node {names[node]!r} ships {amount:.6g} units more than it has on hand"
                )
            for node, must in enumerate(self.network.must_ship_all):
                kept = (slots[0] - shipped)[..., node]
                if must and bool((kept > slack[..., node]).any()):
                    amount = float(kept.max())
                    raise InfeasibleOrderError(
                        f"period {period}: node {names[node]!r} keeps {amount:.6g} units but may not hold stock"
                    )
        sold = demand
        if self.network.unmet_demand == "lost":
            shipped_total = orders @ self._source if self._source is not None else torch.zeros_like(slots[0])
            sold = torch.minimum(demand, slots[0] - shipped_total)
            sold = torch.where(self._is_store, sold, torch.zeros_like(sold))
        external = [e for e, i in enumerate(self.network.edge_source) if i < 0]
        before = _units(slots) + orders[..., external].sum(-1) - sold.sum(-1)
        after = _units(following)
        scale = _units([slot.abs() for slot in slots]) + orders.sum(-1) + 1
        if bool(((before - after).abs() > tolerance * scale).any()):
            worst = float((before - after).abs().max())
            raise InfeasibleOrderError(f"period {period}: {worst:.6g} units appeared or vanished")


def _units(slots: Sequence[Tensor]) -> Float[Tensor, " ..."]:
    """All units in a pipeline, over nodes and slots (which broadcast in a sweep)."""
    total = slots[0].detach()
    for slot in slots[1:]:
        total = total + slot.detach()
    return total.sum(-1)
