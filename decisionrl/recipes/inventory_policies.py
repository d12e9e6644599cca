"""Inventory policies by name, sized and scaled for a setting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from decisionrl.envs.inventory.oracles import transshipment_lower_bound
from decisionrl.envs.inventory.setting import Setting
from decisionrl.envs.inventory.simulator import Simulator
from decisionrl.policies.gnn import InventoryGNN
from decisionrl.policies.inventory_rules import (
    BalancedAllocation,
    BaseStock,
    CappedBaseStock,
    EchelonStock,
    StoreAndWarehouseBaseStock,
)
from decisionrl.policies.mlp import InventoryMLP


@dataclass(frozen=True)
class Build:
    """What a builder may use: the setting and its simulator."""

    setting: Setting
    simulator: Simulator

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


def mlp(build: Build, *, hidden: tuple[int, ...] | None = None, **options: Any) -> nn.Module:
    """The network over all slots; three layers of 32 for one node, two of 64 to 128 for several."""
    network = build.setting.network
    if hidden is None:
        hidden = (32, 32, 32) if network.num_nodes == 1 else (64, 64) if network.num_nodes <= 6 else (128, 128)
    return InventoryMLP(
        network,
        num_slots=build.simulator.num_slots,
        node_scale=build.node_scale,
        edge_scale=build.edge_scale,
        hidden=hidden,
        **options,
    )


def gnn(build: Build, **options: Any) -> nn.Module:
    """Message passing over the network."""
    setting, network = build.setting, build.setting.network
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


def base_stock(build: Build) -> nn.Module:
    """Order up to S, starting from the mean demand over the lead time plus one period."""
    return BaseStock(level=_start_level(build), scale=float(build.store_means[0]))


def capped_base_stock(build: Build) -> nn.Module:
    """Order up to S, at most r."""
    mean = float(build.store_means[0])
    return CappedBaseStock(level=_start_level(build), cap=1.5 * mean, scale=mean)


def _start_level(build: Build) -> float:
    _require(build, nodes=1, name="a base-stock rule")
    return float(build.store_means[0] * (build.setting.network.lead_times[0] + 1))


def echelon_stock(build: Build) -> nn.Module:
    """Echelon base stock in a serial system, starting from mean demand over the lead times downstream."""
    network, mean = build.setting.network, float(build.store_means[0])
    downstream = np.cumsum([lead for lead in network.lead_times[::-1]])[::-1]
    return EchelonStock(network, levels=[float(mean * (lead + 1)) for lead in downstream], scale=mean)


def store_base_stock(build: Build) -> nn.Module:
    """Store base stock with proportional rationing and warehouse echelon base stock."""
    network = build.setting.network
    if network.num_warehouses == 0:
        raise ValueError("store_base_stock needs a network with a warehouse; use base_stock")
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
    bound = transshipment_bound(setting)
    return BalancedAllocation(
        network,
        level=bound.warehouse_level,
        mean=[float(v) for v in demand.mean],
        std=[float(v) for v in demand.std],
        scale=float(build.store_means.mean()),
    )


def transshipment_bound(setting: Setting) -> Any:
    """The balance relaxation's bound for a setting with one hub (specification: section 4.5)."""
    network, demand = setting.network, setting.demand
    stores = [n for n in network.nodes if n.underage_cost is not None]
    return transshipment_lower_bound(
        store_lead_time=network.lead_times[-1],
        warehouse_lead_time=network.lead_times[0],
        holding_cost=stores[0].holding_cost,
        underage_cost=float(stores[0].underage_cost or 0.0),
        demand_means=demand.mean,
        demand_stds=demand.std,
        correlation=float(getattr(demand, "correlation", 0.0)),
    )


def _require(build: Build, *, nodes: int, name: str) -> None:
    if build.setting.network.num_nodes != nodes:
        raise ValueError(f"{name} is for {nodes} node; {build.setting.name!r} has {build.setting.network.num_nodes}")


BUILDERS: dict[str, Builder] = {
    "mlp": mlp,
    "gnn": gnn,
    "base_stock": base_stock,
    "capped_base_stock": capped_base_stock,
    "echelon_stock": echelon_stock,
    "store_base_stock": store_base_stock,
    "water_filling": water_filling,
}
"""Trainable policies by the name used on the command line."""
