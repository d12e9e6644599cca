"""Inventory policies by name, sized and scaled for a setting."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import nn

from decisionrl.envs.inventory.setting import Setting
from decisionrl.envs.inventory.simulator import Simulator
from decisionrl.evaluation.references import transshipment_bound
from decisionrl.names import pick
from decisionrl.policies.data_driven import DataDrivenNet
from decisionrl.policies.gnn import InventoryGNN
from decisionrl.policies.inventory_rules import (
    BalancedAllocation,
    BaseStock,
    CappedBaseStock,
    EchelonStock,
    StoreAndWarehouseBaseStock,
)
from decisionrl.policies.mlp import InventoryMLP
from decisionrl.policies.quantile import (
    FixedQuantile,
    JustInTime,
    QuantileForecaster,
    QuantileNewsvendor,
    ReturnsNewsvendor,
    TransformedNewsvendor,
)
from decisionrl.policies.topology import fastest_lanes
from decisionrl.recipes.forecaster import forecast_horizons, train_forecaster
from decisionrl.seeding import generator


@dataclass(frozen=True)
class Build:
    """What a builder may use: the setting, its simulator, and a seed for what it trains itself (forecasters)."""

    setting: Setting
    simulator: Simulator
    seed: int = 0

    @property
    def store_means(self) -> np.ndarray:
        return np.maximum(self.setting.demand.mean, 1e-6)

    @property
    def node_scale(self) -> list[float]:
        return [float(v) for v in self.setting.network.flow_scale(self.store_means)[0]]

    @property
    def edge_scale(self) -> list[float]:
        return [float(v) for v in self.setting.network.flow_scale(self.store_means)[1]]

    @property
    def underage(self) -> np.ndarray:
        return np.array([n.underage_cost for n in self.setting.network.nodes if n.underage_cost is not None])

    @property
    def store_holding(self) -> np.ndarray:
        return np.array([n.holding_cost for n in self.setting.network.nodes if n.underage_cost is not None])

    def store_lead_times(self) -> np.ndarray:
        """Shortest lead time into each store."""
        network = self.setting.network
        shortest = np.full(network.num_nodes, np.iinfo(np.int64).max)
        for j, lead in zip(network.edge_destination, network.lead_times, strict=True):
            shortest[j] = min(shortest[j], lead)
        return shortest[network.num_warehouses :]

    def newsvendor_levels(self) -> np.ndarray:
        """(L + 1) mean + z sqrt(L + 1) std for each store: where levels start."""
        lead = self.store_lead_times()
        # The newsvendor's fractile p / (p + h); a store with a cost of 0 would start at an infinite level.
        fractile = self.underage / np.maximum(self.underage + self.store_holding, 1e-9)
        z = stats.norm.ppf(fractile.clip(0.01, 0.99))
        demand = self.setting.demand
        return np.asarray((lead + 1) * demand.mean + z * np.sqrt(lead + 1.0) * demand.std)


Builder = Callable[..., nn.Module]
Lane = Literal["fastest", "cheapest"]


def mlp(build: Build, *, hidden: Sequence[int] | None = None, scaled: bool = True, **options: Any) -> nn.Module:
    """The network over all slots; three layers of 32 for one node, two of 64 to 128 for several."""
    network = build.setting.network
    if hidden is None:
        hidden = (32, 32, 32) if network.num_nodes == 1 else (64, 64) if network.num_nodes <= 6 else (128, 128)
    raw_orders = not scaled and options.get("supplier_head") != "sigmoid"
    return InventoryMLP(
        network,
        num_slots=build.simulator.num_slots,
        node_scale=build.node_scale,
        edge_scale=[1.0] * network.num_edges if raw_orders else build.edge_scale,
        hidden=hidden,
        scaled=scaled,
        **options,
    )


def gnn(build: Build, **options: Any) -> nn.Module:
    """Message passing over the network; series are measured in units of their own recent demand."""
    setting, network = build.setting, build.setting.network
    if setting.is_series and options.get("scaled", True):
        options.setdefault("recent_floor", 1.0)
    show_moments = network.num_stores > 1 and not setting.is_series
    return InventoryGNN(
        network,
        num_slots=build.simulator.num_slots,
        node_scale=build.node_scale,
        edge_scale=build.edge_scale,
        demand_mean=[float(v) for v in setting.demand.mean] if show_moments else None,
        demand_std=[float(v) for v in setting.demand.std] if show_moments else None,
        history=setting.history,
        time_features=1 if setting.is_series else 0,
        cost_scale=(
            max(n.holding_cost for n in network.nodes) or 1.0,
            float(build.underage.max()) or 1.0,
            max(e.cost for e in network.edges) or 1.0,
        ),
        **options,
    )


def base_stock(build: Build, *, scaled: bool = True) -> nn.Module:
    """Order up to S, starting from the mean demand over the lead time plus one period."""
    _require_one_store(build, "base_stock")
    return BaseStock(level=_start_level(build), scale=_unit(build, scaled))


def capped_base_stock(build: Build, *, scaled: bool = True) -> nn.Module:
    """Order up to S, at most r."""
    _require_one_store(build, "capped_base_stock")
    cap = 1.5 * float(build.store_means[0])
    return CappedBaseStock(level=_start_level(build), cap=cap, scale=_unit(build, scaled))


def _start_level(build: Build) -> float:
    return float(build.store_means[0] * (build.setting.network.lead_times[0] + 1))


def _unit(build: Build, scaled: bool) -> float:
    return float(build.store_means.mean()) if scaled else 1.0


def echelon_stock(build: Build, *, scaled: bool = True) -> nn.Module:
    """Echelon base stock in a serial system, starting from mean demand over the lead times downstream."""
    network, mean = build.setting.network, float(build.store_means[0])
    serial = network.is_arborescence and list(network.edge_source) == list(range(-1, network.num_nodes - 1))
    _require(build, serial, "echelon_stock", "a serial network, one edge from stage to stage")
    downstream = np.cumsum(network.lead_times[::-1])[::-1]
    return EchelonStock(network, levels=[float(mean * (lead + 1)) for lead in downstream], scale=_unit(build, scaled))


def store_base_stock(build: Build) -> nn.Module:
    """Store base stock with proportional rationing and warehouse echelon base stock."""
    network = build.setting.network
    fits = network.num_warehouses > 0 and _has_two_stages(build)
    _require(build, fits, "store_base_stock", "warehouses supplied from outside, then stores")
    stores = build.newsvendor_levels()
    rule = StoreAndWarehouseBaseStock(
        network,
        store_levels=[float(v) for v in stores],
        warehouse_levels=[0.0] * network.num_warehouses,
        scale=float(build.store_means.mean()),
    )
    leads = torch.tensor([float(lead) for lead in network.lead_times[: network.num_warehouses]])
    supply = rule.feeds.T @ torch.as_tensor(build.store_means, dtype=torch.get_default_dtype())
    covered = rule.feeds.T @ torch.as_tensor(stores, dtype=torch.get_default_dtype())
    with torch.no_grad():
        rule.warehouse_levels.copy_((covered + supply * leads) / rule.scale)
    return rule


def water_filling(build: Build) -> nn.Module:
    """Balanced allocation from a hub that ships everything, at the level of the closed form."""
    setting, network = build.setting, build.setting.network
    demand = setting.demand
    one_hub = network.num_warehouses == 1 and list(network.edge_source) == [-1] + [0] * network.num_stores
    _require(build, one_hub, "water_filling", "one warehouse that supplies every store")
    bound = transshipment_bound(setting)
    return BalancedAllocation(
        network,
        level=bound.warehouse_level,
        mean=[float(v) for v in demand.mean],
        std=[float(v) for v in demand.std],
        scale=float(build.store_means.mean()),
    )


def data_driven_net(build: Build, **options: Any) -> nn.Module:
    """The network over everything that a setting of series shows."""
    network = build.setting.network
    _require_series(build, "data_driven_net")
    return DataDrivenNet(
        network,
        num_slots=build.simulator.num_slots,
        history=build.setting.history,
        cost_scale=(max(build.store_holding.max(), 1e-6), max(build.underage.max(), 1e-6)),
        **options,
    )


def quantile_nv(build: Build, *, lane: Lane = "fastest", **options: Any) -> nn.Module:
    """The newsvendor quantile of the forecast, over each store's "fastest" or "cheapest" lane.

    forecaster (an option): a trained one; without it one is trained, and kept for the process, by
    :func:`decisionrl.recipes.forecaster.train_forecaster` with the options that are left.
    """
    forecaster = _forecaster(build, "quantile_nv", options)
    return QuantileNewsvendor(build.setting.network, forecaster, lanes=_lanes(build, lane))


def returns_nv(build: Build, *, lane: Lane = "fastest", **options: Any) -> nn.Module:
    """The newsvendor quantile with free returns (inadmissible); options as for quantile_nv."""
    forecaster = _forecaster(build, "returns_nv", options)
    return ReturnsNewsvendor(build.setting.network, forecaster, lanes=_lanes(build, lane))


def fixed_quantile(build: Build, *, lane: Lane = "fastest", quantile: float = 0.7, **options: Any) -> nn.Module:
    """One learned quantile, starting from ``quantile``; other options as for quantile_nv."""
    forecaster = _forecaster(build, "fixed_quantile", options)
    return FixedQuantile(build.setting.network, forecaster, lanes=_lanes(build, lane), quantile=quantile)


def transformed_nv(
    build: Build, *, lane: Lane = "fastest", hidden: tuple[int, ...] = (32, 32), **options: Any
) -> nn.Module:
    """A learned map of the newsvendor quantile, layers of ``hidden``; other options as for quantile_nv."""
    forecaster = _forecaster(build, "transformed_nv", options)
    return TransformedNewsvendor(build.setting.network, forecaster, lanes=_lanes(build, lane), hidden=hidden)


def just_in_time(build: Build, *, lane: Lane = "fastest") -> nn.Module:
    """The oracle that knows demand (inadmissible): roll it out with ``oracle=True``."""
    _require_routes(build, "just_in_time")
    return JustInTime(build.setting.network, lanes=_lanes(build, lane))


def _lanes(build: Build, lane: Lane) -> list[int]:
    """The edge into each store with the least lead time, or the least cost per unit from the supplier on."""
    network = build.setting.network
    if lane not in ("fastest", "cheapest"):
        raise ValueError(f"lane = {lane!r}; valid: 'fastest', 'cheapest'")
    if lane == "fastest":
        return fastest_lanes(network)
    unit = [np.inf] * network.num_nodes
    best = [-1] * network.num_nodes
    for e, (source, node) in enumerate(zip(network.edge_source, network.edge_destination, strict=True)):
        cost = network.edges[e].cost + (unit[source] if source >= 0 else 0.0)
        if cost < unit[node]:
            unit[node], best[node] = cost, e
    return best[network.num_warehouses :]


def _forecaster(build: Build, policy: str, options: Mapping[str, Any]) -> QuantileForecaster:
    _require_series(build, policy)
    _require_routes(build, policy)
    training = dict(options)
    given = training.pop("forecaster", None)
    if given is None:
        given = train_forecaster(build.setting, **{"seed": build.seed, **training})
    elif training:
        raise ValueError(f"{', '.join(training)}: for the training of a forecaster, but one is given")
    given.check_horizons(forecast_horizons(build.setting))
    forecaster: QuantileForecaster = copy.deepcopy(given)
    return forecaster


def _require(build: Build, fits: bool, policy: str, valid: str) -> None:
    if not fits:
        raise ValueError(f"policy {policy!r} does not fit setting {build.setting.name!r}; valid: {valid}")


def _require_one_store(build: Build, policy: str) -> None:
    _require(build, build.setting.network.num_nodes == 1, policy, "a network of one store")


def _require_series(build: Build, policy: str) -> None:
    fits = build.setting.is_series and build.setting.history > 0
    _require(build, fits, policy, "a setting of series (demand.kind = 'series') that shows past demand")


def _require_routes(build: Build, policy: str) -> None:
    _require(build, _has_two_stages(build), policy, "stores supplied from outside or by warehouses that are")


def _has_two_stages(build: Build) -> bool:
    """Whether goods pass through at most one warehouse on their way to a store."""
    network = build.setting.network
    lanes = zip(network.edge_source, network.edge_destination, strict=True)
    return all(i < 0 or i < network.num_warehouses <= j for i, j in lanes)


BUILDERS: dict[str, Builder] = {
    "mlp": mlp,
    "gnn": gnn,
    "base_stock": base_stock,
    "capped_base_stock": capped_base_stock,
    "echelon_stock": echelon_stock,
    "store_base_stock": store_base_stock,
    "water_filling": water_filling,
    "data_driven_net": data_driven_net,
    "fixed_quantile": fixed_quantile,
    "transformed_nv": transformed_nv,
    "quantile_nv": quantile_nv,
    "returns_nv": returns_nv,
    "just_in_time": just_in_time,
}
"""Policies by the name used on the command line."""

UNTRAINED = frozenset({"quantile_nv", "returns_nv", "just_in_time"})
"""Policies without trainable parameters: built by :func:`build_policy` and evaluated as they are."""

ORACLES = frozenset({"just_in_time"})
"""Policies that are shown future demand."""


def build_policy(
    name: str,
    setting: Setting,
    simulator: Simulator,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> nn.Module:
    """A policy by name with weights drawn from ``seed``, on the simulator's device.

    Raises ValueError for an unknown name (with the near ones) or options that do not fit.
    """
    build = pick("policy", name, BUILDERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(seed, "weights").initial_seed() % 2**31))
        try:
            policy = build(Build(setting, simulator, seed), **(options or {}))
        except TypeError as error:
            if "keyword argument" not in str(error):
                raise
            raise ValueError(f"policy {name!r}: {error}") from None
    return policy.to(simulator.device, simulator.dtype)
