"""Forecast quantiles of demand and order up to them; with them the oracle that knows demand.

A :class:`QuantileForecaster` maps recent demand to quantiles of cumulative demand over several horizons. The
rules order up to a quantile of the demand until the next order could arrive (HDPO, arXiv 2306.11246; the rules
for networks of warehouses are the natural extension, see :class:`_OrderUpToQuantile`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from decisionrl.policies import feasibility
from decisionrl.policies.inventory_rules import inventory_position
from decisionrl.policies.mlp import mlp
from decisionrl.policies.topology import (
    Observation,
    Topology,
    fastest_lanes,
    source_matrix,
    supplier_edges,
    vector,
)


def recent_scale(past_demand: Float[Tensor, "... history"], floor: float) -> Float[Tensor, ...]:
    """Mean of the past demands in units, at least ``floor``: what a series' quantities are measured in."""
    return past_demand.mean(-1).clamp(min=floor)


class QuantileForecaster(nn.Module):
    """Past demands and the calendar to quantiles of cumulative demand over the next h periods, for each h.

    Everything is relative to the series' own recent mean, so that a series twice as large has forecasts twice
    as large, but for one input, the logarithm of that mean: small series are noisier for their size. Quantiles
    are cumulative sums of positive steps, so they never cross and are never negative.

    horizons: the h that occur, in periods. The grid is k / (num_quantiles + 1), k = 1 ... num_quantiles: with
    19 quantiles 0.05, 0.10 ... 0.95.
    """

    grid: Tensor
    _column: Tensor
    _length: Tensor

    def __init__(
        self,
        *,
        history: int,
        horizons: Sequence[int],
        time_features: int = 1,
        num_quantiles: int = 19,
        hidden: Sequence[int] = (64, 64),
        floor: float = 1.0,
    ) -> None:
        super().__init__()
        if history < 1:
            raise ValueError(f"history = {history}; valid: at least 1 past demand to forecast from")
        if num_quantiles < 2:
            raise ValueError(f"num_quantiles = {num_quantiles}; valid: at least 2, which are extrapolated from")
        if not horizons or min(horizons) < 1:
            raise ValueError(f"horizons = {list(horizons)}; valid: whole numbers of periods >= 1")
        self.horizons = tuple(sorted(set(horizons)))
        self.history, self.floor = history, floor
        self.num_quantiles = num_quantiles
        self.net = mlp(history + 1 + time_features, hidden, len(self.horizons) * num_quantiles)
        self.register_buffer("grid", torch.arange(1, num_quantiles + 1) / (num_quantiles + 1))
        self.register_buffer("_length", vector(self.horizons)[:, None])
        column = torch.full((self.horizons[-1] + 1,), -1, dtype=torch.int64)
        column[list(self.horizons)] = torch.arange(len(self.horizons))
        self.register_buffer("_column", column)

    def forward(
        self, past_demand: Float[Tensor, "*batch history"], time: Float[Tensor, "*batch features"] | None
    ) -> Float[Tensor, "*batch horizons quantiles"]:
        """Quantiles in units; ``time`` holds the features of the period to come and broadcasts."""
        scale = recent_scale(past_demand, self.floor)[..., None]
        inputs = [past_demand / scale - 1.0, 0.5 * scale.log() - 2.0]
        if time is not None:
            inputs.append(time.expand(*past_demand.shape[:-1], -1))
        z = self.net(torch.cat(inputs, -1)).unflatten(-1, (len(self.horizons), self.num_quantiles))
        # The first step reaches the lowest quantile, the others are the distances between neighbors.
        first = nn.functional.softplus(z[..., :1])
        steps = nn.functional.softplus(z[..., 1:] - 2.0)
        return torch.cat([first, steps], -1).cumsum(-1) * self._length * scale[..., None]

    def column(self, horizon: Tensor) -> Tensor:
        """Index of each horizon (whole numbers of any dtype) among ``horizons``."""
        return self._column[horizon.long()]

    def check_horizons(self, needed: Sequence[int]) -> None:
        """Raise ValueError if a horizon that a rule needs is not forecast."""
        missing = sorted(set(needed) - set(self.horizons))
        if missing:
            raise ValueError(f"forecaster.horizons = {list(self.horizons)}; also needed: {missing}")


def interpolate_quantiles(
    levels: Float[Tensor, "*batch quantiles"], quantile: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """The level at any quantile in [0, 1] from those at k / (n + 1), linear between grid points.

    The ends are extrapolated: q_0 = 2 q_1 - q_2 and q_(n+1) = 2 q_n - q_(n-1), at least 0. Differentiable in the
    quantile; exact at 0 and 1.
    """
    low = (2 * levels[..., :1] - levels[..., 1:2]).clamp(min=0)
    high = 2 * levels[..., -1:] - levels[..., -2:-1]
    extended = torch.cat([low, levels, high], -1)
    intervals = levels.shape[-1] + 1
    position = quantile.expand(levels.shape[:-1]) * intervals
    left = position.detach().floor().clamp(0, intervals - 1).long()[..., None]
    below, above = extended.gather(-1, left), extended.gather(-1, left + 1)
    return (below + (above - below) * (position[..., None] - left)).squeeze(-1)


class _Route(nn.Module):
    """Which lane serves each store, and which warehouse and supplier edge stand behind it.

    lane: [stores] the edge into each store. inlet: [stores] the edge from the supplier into the warehouse that
    feeds it. Networks have at most two stages; a store may also be supplied from outside directly.
    """

    lane: Tensor
    inlet: Tensor
    feeds: Tensor
    source: Tensor
    fed: Tensor
    to_edge: Tensor

    def __init__(self, topology: Topology, lanes: Sequence[int] | None) -> None:
        super().__init__()
        w, stores = topology.num_warehouses, topology.num_stores
        inlets = {topology.edge_destination[e]: e for e in supplier_edges(topology)}
        if len(inlets) < w or any(node not in inlets for node in range(w)):
            raise ValueError("order-up-to-quantile rules need every warehouse to be supplied from outside")
        lanes = fastest_lanes(topology) if lanes is None else list(lanes)
        if [topology.edge_destination[e] for e in lanes] != list(range(w, w + stores)):
            raise ValueError(f"lanes = {lanes}; valid: one edge into each of the {stores} stores, in their order")
        through = [topology.edge_source[e] for e in lanes]
        if any(node >= w for node in through):
            raise ValueError(
                "order-up-to-quantile rules need every store to be supplied by a warehouse or from outside"
            )
        feeds, to_edge = torch.zeros(stores, w), torch.zeros(w + stores, topology.num_edges)
        for store, (edge, node) in enumerate(zip(lanes, through, strict=True)):
            to_edge[w + store, edge] = 1.0
            if node >= 0:
                feeds[store, node] = 1.0
        for node in range(w):
            to_edge[node, inlets[node]] = 1.0
        self.num_warehouses = w
        self.register_buffer("lane", torch.tensor(lanes), persistent=False)
        inlet = [inlets[node] if node >= 0 else -1 for node in through]
        self.register_buffer("inlet", torch.tensor(inlet), persistent=False)
        self.register_buffer("fed", torch.tensor([float(node >= 0) for node in through]), persistent=False)
        self.register_buffer("feeds", feeds, persistent=False)
        self.register_buffer("to_edge", to_edge, persistent=False)
        self.register_buffer("source", source_matrix(topology), persistent=False)

    def lead_times(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """([..., stores] over the lane, [..., stores] from the supplier through the warehouse to the store)."""
        lead = observation.parameters.lead_time
        lane = lead[..., self.lane]
        return lane, lane + lead[..., self.inlet] * self.fed

    def orders(self, wanted: Float[Tensor, "... nodes"], on_hand: Float[Tensor, "... nodes"]) -> Tensor:
        """Wishes by node (warehouses first) to orders by edge; shipments are rationed proportionally."""
        by_edge = wanted @ self.to_edge
        return feasibility.proportional(by_edge, on_hand, self.source) if self.num_warehouses else by_edge


class _OrderUpToQuantile(nn.Module):
    """Order up to a forecast quantile of the demand until the next order could arrive.

    A store orders (Q_s(u_s, L_s + 1) - position)^+ over one lane, with lead time L_s, where Q_s(u, h) is the
    u-quantile of its demand over the next h periods. A warehouse with lead time L_w orders from outside so that
    its echelon (itself and the stores it feeds) reaches sum_s Q_s(v_s, L_w + L_s + 1). Scarce stock is rationed
    in proportion to the orders. Subclasses say which quantiles u (stores) and v (echelons).

    The forecaster is not trained along with the rule: its weights are frozen, but saved and moved with it.
    """

    admissible = True

    def __init__(
        self, topology: Topology, forecaster: QuantileForecaster, *, lanes: Sequence[int] | None = None
    ) -> None:
        """lanes: the edge that serves each store, in the stores' order; default the fastest."""
        super().__init__()
        self.route = _Route(topology, lanes)
        self.forecaster = forecaster.requires_grad_(False)

    def quantiles(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """Quantiles for the stores' own levels and for their share of the echelon's, both [..., stores]."""
        raise NotImplementedError

    def shortfall(self, observation: Observation) -> Float[Tensor, "... nodes"]:
        """Level minus position for each node, warehouses (echelon level and position) first; may be negative."""
        past = observation.past_demand
        if past is None:
            raise ValueError("quantile rules forecast from past demand; the setting shows none (demand.history = 0)")
        with torch.no_grad():
            time = observation.time if observation.time is None else observation.time[..., None, :]
            forecast: Tensor = self.forecaster(past, time)
        own, echelon = self.quantiles(observation)
        lane, through = self.route.lead_times(observation)
        position = inventory_position(observation.slots)
        w = self.route.num_warehouses
        stores = position[..., w:]
        short = self._level(forecast, lane + 1, own) - stores
        if w == 0:
            return short
        cover = self._level(forecast, through + 1, echelon) @ self.route.feeds
        return torch.cat([cover - stores @ self.route.feeds - position[..., :w], short], -1)

    def forward(self, observation: Observation) -> Float[Tensor, "... edges"]:
        return self.route.orders(self.shortfall(observation).clamp(min=0), observation.slots[0])

    def _level(self, forecast: Tensor, horizon: Tensor, quantile: Tensor) -> Float[Tensor, "... stores"]:
        column = self.forecaster.column(horizon).expand(forecast.shape[:-2])
        index = column[..., None, None].expand(*forecast.shape[:-2], 1, forecast.shape[-1])
        return interpolate_quantiles(forecast.gather(-2, index).squeeze(-2), quantile)


def critical_ratio(observation: Observation, num_warehouses: int) -> Float[Tensor, "... stores"]:
    """The newsvendor quantile p / (p + h) of each store."""
    p: Tensor = observation.parameters.underage_cost[..., num_warehouses:]
    h: Tensor = observation.parameters.holding_cost[..., num_warehouses:]
    return p / (p + h)


class QuantileNewsvendor(_OrderUpToQuantile):
    """Order up to the newsvendor quantile p / (p + h) of the forecast; nothing is trained."""

    def quantiles(self, observation: Observation) -> tuple[Tensor, Tensor]:
        ratio = critical_ratio(observation, self.route.num_warehouses)
        return ratio, ratio


class ReturnsNewsvendor(_OrderUpToQuantile):
    """The newsvendor rule with free returns: a node above its level sends the excess back in the same period.

    Not admissible (orders may be negative). It shows what the newsvendor rule loses by never being able to
    undo an order.
    """

    admissible = False

    def quantiles(self, observation: Observation) -> tuple[Tensor, Tensor]:
        ratio = critical_ratio(observation, self.route.num_warehouses)
        return ratio, ratio

    def forward(self, observation: Observation) -> Float[Tensor, "... edges"]:
        short = self.shortfall(observation)
        ordered = self.route.orders(short.clamp(min=0), observation.slots[0])
        return ordered + short.clamp(max=0) @ self.route.to_edge


class FixedQuantile(_OrderUpToQuantile):
    """One learned quantile for all stores and items; in networks a second one for the echelons."""

    def __init__(
        self,
        topology: Topology,
        forecaster: QuantileForecaster,
        *,
        lanes: Sequence[int] | None = None,
        quantile: float = 0.7,
    ) -> None:
        super().__init__(topology, forecaster, lanes=lanes)
        if not 0 < quantile < 1:
            raise ValueError(f"quantile = {quantile}; valid: between 0 and 1")
        count = 2 if self.route.num_warehouses else 1
        self.logit = nn.Parameter(torch.full((count,), quantile).logit())

    def quantiles(self, observation: Observation) -> tuple[Tensor, Tensor]:
        learned = self.logit.sigmoid()
        return learned[:1], learned[-1:]


class TransformedNewsvendor(_OrderUpToQuantile):
    """A learned map of p / (p + h) to the quantile; in networks with a second output for the echelons."""

    def __init__(
        self,
        topology: Topology,
        forecaster: QuantileForecaster,
        *,
        lanes: Sequence[int] | None = None,
        hidden: Sequence[int] = (32, 32),
    ) -> None:
        super().__init__(topology, forecaster, lanes=lanes)
        count = 2 if self.route.num_warehouses else 1
        self.net = mlp(1, hidden, count, output_activation=nn.Sigmoid)

    def quantiles(self, observation: Observation) -> tuple[Tensor, Tensor]:
        mapped = self.net(critical_ratio(observation, self.route.num_warehouses)[..., None])
        return mapped[..., 0], mapped[..., -1]


class JustInTime(nn.Module):
    """Knows demand and orders it to arrive in the period it falls: every sale is made and nothing is ever held.

    No policy that uses the same lanes earns more; over cheaper lanes it might. A store orders the demand of
    period t + L_s over its lane (default: the fastest, as in the paper's released code); its warehouse orders the
    demand of its stores in period t + L_w + L_s. Beyond the end of the data the last period's demand is repeated.
    Not admissible: needs ``Observation.future``, and shipments are not rationed to the stock on hand, which is
    less than the stores order until the first supplies have arrived, and where customers return goods (negative
    demand).
    """

    admissible = False

    def __init__(self, topology: Topology, *, lanes: Sequence[int] | None = None) -> None:
        super().__init__()
        self.route = _Route(topology, lanes)

    def forward(self, observation: Observation) -> Float[Tensor, "... edges"]:
        future = observation.future
        if future is None:
            raise ValueError("JustInTime needs future demand: roll it out with oracle=True")
        lane, through = self.route.lead_times(observation)
        wanted = _demand_in(future, lane).clamp(min=0)
        w = self.route.num_warehouses
        if w:
            upstream = (_demand_in(future, through) @ self.route.feeds).clamp(min=0)
            wanted = torch.cat([upstream, wanted], -1)
        return wanted @ self.route.to_edge


def _demand_in(future: Float[Tensor, "remaining ... stores"], periods: Float[Tensor, "... stores"]) -> Tensor:
    """Demand so many periods from now, each store its own number."""
    index = periods.long().clamp(max=future.shape[0] - 1).expand(future.shape[1:])
    return future.gather(0, index[None]).squeeze(0)
