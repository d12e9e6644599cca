"""The yardstick: an inventory rollout as one writes it the first time, straight from the semantics.

A dictionary of tensors with the sample first is the state and the observation; the inventory ``[B, S, K]`` is
re-stacked from its columns every period and the orders are scattered into it by lead time; a ``Dataset`` hands
out one scenario at a time and a ``DataLoader`` collates them; the graph network walks over its nodes and edges
in Python. Nothing is slowed down on purpose, and nothing is reused from one period to the next.

The policies compute exactly the functions of ``decisionrl.policies`` and take their weights, so that losses and
gradients can be compared and only the way of computing them differs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from decisionrl.envs.inventory.network import Network
from decisionrl.envs.inventory.simulator import Scenario
from decisionrl.policies.gnn import InventoryGNN
from decisionrl.policies.inventory_rules import CappedBaseStock
from decisionrl.policies.mlp import InventoryMLP

Data = dict[str, Tensor]


class ScenarioDataset(Dataset[Data]):
    """One scenario at a time, as a dictionary: demand, initial stock, costs and lead times."""

    def __init__(self, network: Network, scenario: Scenario) -> None:
        """For stores supplied from outside, or by one warehouse that is."""
        if network.num_warehouses > 1 or not network.is_arborescence:
            raise ValueError(f"the plain loop is for at most one warehouse, not {network.num_warehouses}")
        batch, first = scenario.batch, network.num_warehouses
        slots = torch.stack(scenario.slots, -1)
        costs, leads = scenario.parameters, torch.tensor(network.lead_times, device=slots.device)
        by_sample: Data = {
            "demands": scenario.demand.permute(1, 2, 0).contiguous(),
            "store_inventories": slots[:, first:],
            "holding_costs": costs.holding_cost[first:].expand(batch, -1),
            "underage_costs": costs.underage_cost[first:].expand(batch, -1),
            "lead_times": leads[first:].expand(batch, -1),
        }
        if first:
            by_sample |= {
                "warehouse_inventories": slots[:, :first],
                "warehouse_holding_costs": costs.holding_cost[:first].expand(batch, -1),
                "warehouse_lead_times": leads[:first].expand(batch, -1),
            }
        self.data = by_sample

    def __len__(self) -> int:
        return len(self.data["demands"])

    def __getitem__(self, index: int) -> Data:
        return {name: values[index] for name, values in self.data.items()}


class PlainSimulator:
    """Steps a batch of scenarios; costs are per sample, summed over stores and warehouse."""

    def __init__(self, *, lost_demand: bool) -> None:
        self.lost_demand = lost_demand

    def reset(self, data: Data) -> Data:
        """Start from the initial stock of a collated batch."""
        self.period, self.demands = 0, data["demands"]
        self.observation = {name: values for name, values in data.items() if name != "demands"}
        return self.observation

    def step(self, actions: Data) -> tuple[Data, Tensor, bool]:
        """Orders {"stores": [B, S], "warehouses": [B, 1]} -> next observation, cost [B], whether it was the last."""
        seen = self.observation
        demand = self.demands[:, :, self.period]
        left = seen["store_inventories"][:, :, 0] - demand
        cost = seen["underage_costs"] * torch.clip(-left, min=0) + seen["holding_costs"] * torch.clip(left, min=0)
        total = cost.sum(dim=1)
        if self.lost_demand:
            left = torch.clip(left, min=0)
        following = dict(seen)
        following["store_inventories"] = advance(seen["store_inventories"], left, actions["stores"], seen["lead_times"])
        if "warehouses" in actions:
            shipped = actions["stores"].sum(dim=1, keepdim=True)
            kept = seen["warehouse_inventories"][:, :, 0] - shipped
            total = total + (seen["warehouse_holding_costs"] * torch.clip(kept, min=0)).sum(dim=1)
            following["warehouse_inventories"] = advance(
                seen["warehouse_inventories"], kept, actions["warehouses"], seen["warehouse_lead_times"]
            )
        self.period += 1
        self.observation = following
        return following, total, self.period == self.demands.shape[2]


def advance(inventory: Tensor, on_hand: Tensor, orders: Tensor, lead_times: Tensor) -> Tensor:
    """The pipeline [B, S, K] a period later: every column one place to the left, orders [B, S] added by lead time."""
    columns = [*inventory.unbind(dim=2)[1:], torch.zeros_like(on_hand)]
    columns[0] = columns[0] + on_hand
    moved = torch.stack(columns, dim=2)
    first_slot = torch.arange(orders.numel(), device=orders.device).view_as(orders) * inventory.shape[2]
    return moved.put(first_slot + lead_times - 1, orders, accumulate=True)


def rollout_loss(simulator: PlainSimulator, policy: nn.Module, data: Data) -> Tensor:
    """Mean cost per sample, period and store."""
    batch, stores, periods = data["demands"].shape
    observation, total, finished = simulator.reset(data), data["demands"].new_zeros(()), False
    while not finished:
        observation, cost, finished = simulator.step(policy(observation))
        total = total + cost.sum()
    return total / (batch * periods * stores)


class PlainCappedBaseStock(nn.Module):
    """Order up to S, at most r, for one setting of the two."""

    def __init__(self, policy: CappedBaseStock, index: int) -> None:
        """Setting ``index`` of a sweep."""
        super().__init__()
        self.level = nn.Parameter((policy.level * policy.scale).detach()[index].clone())
        self.cap = nn.Parameter((policy.cap * policy.scale).detach()[index].clone())

    def forward(self, observation: Data) -> Data:
        position = observation["store_inventories"].sum(dim=2)
        return {"stores": torch.minimum(torch.clip(self.level - position, min=0), self.cap)}


class PlainMLP(nn.Module):
    """A network over the store's pipeline, with a linear skip connection where the policy has one."""

    def __init__(self, policy: InventoryMLP) -> None:
        super().__init__()
        self.net = nn.Sequential(*_copies(policy.net))
        self.skip = None if policy.skip is None else _linear([policy.skip.weight])
        self.scaled, self.bias = policy.scaled, policy.supplier_bias
        self.slot_scale, self.order_scale = policy.slot_scale, policy.edge_scale

    def forward(self, observation: Data) -> Data:
        x = observation["store_inventories"].flatten(start_dim=1)
        if self.scaled:
            x = x / self.slot_scale - 1
        z = self.net(x)
        if self.skip is not None:
            z = z + self.skip(x)
        return {"stores": nn.functional.softplus(z + self.bias) * self.order_scale}


class PlainGNN(nn.Module):
    """The graph network of one warehouse and its stores, with every layer applied to what the formula says.

    Node 0 is the warehouse, nodes 1 ... S the stores and -1 the outside. Edges in this order: lanes to the
    stores, the supplier's, one demand edge for each store, the warehouse's self-loop.
    """

    def __init__(self, policy: InventoryGNN) -> None:
        super().__init__()
        p = policy
        self.node = nn.Sequential(
            _linear([p.node_dynamic.weight, p.node_static.weight], p.node_dynamic.bias), *_copies(p.node_rest)
        )
        self.edge = nn.Sequential(
            _linear([p.edge_from.weight, p.edge_to.weight, p.edge_lead.weight], p.edge_from.bias),
            *_copies(p.edge_rest),
        )
        self.node_update = nn.Sequential(*_copies(p.node_update))
        self.edge_update = nn.Sequential(
            _linear([p.update_edge.weight, p.update_from.weight, p.update_to.weight], p.update_edge.bias),
            *_copies(p.update_rest),
        )
        self.output = nn.Sequential(*_copies(p.output))
        self.skip = None
        if p.skip_from is not None and p.skip_to is not None:
            self.skip = _linear([p.skip_from.weight, p.skip_to.weight])
        self.rounds, self.scaled = p.rounds, p.scaled
        self.node_scale, self.cost_scale, self.moments = p.node_scale, p.cost_scale, p.static
        supplier, *stores, loop = torch.split(p.edge_scale, 1)
        self.wish_scale = torch.cat([*stores, supplier, loop])

    def forward(self, observation: Data) -> Data:
        slots, features = self.features(observation)
        num_nodes = slots.shape[1]
        graph, lead_times = self.graph(observation)

        n = self.node(features)
        e = self.edge(torch.cat([ends(n, graph), lead_times], dim=2))
        for _ in range(self.rounds):
            incoming, outgoing = [], []
            for node in range(num_nodes):
                into = [k for k, (_, end) in enumerate(graph) if end == node]
                out = [k for k, (start, _) in enumerate(graph) if start == node]
                incoming.append(e[:, into].sum(dim=1) / math.sqrt(max(len(into), 1)))
                outgoing.append(e[:, out].sum(dim=1) / math.sqrt(max(len(out), 1)))
            mixed = torch.cat([n, torch.stack(incoming, dim=1), torch.stack(outgoing, dim=1)], dim=2)
            n = n + self.node_update(mixed)
            e = e + self.edge_update(torch.cat([e, ends(n, graph)], dim=2))

        wish = self.output(e)
        if self.skip is not None:
            wish = wish + self.skip(ends(slots, graph))
        stores = num_nodes - 1
        orders = [k for k in range(len(graph)) if k <= stores or k == len(graph) - 1]
        wanted = nn.functional.softplus(wish.squeeze(dim=2)[:, orders]) * self.wish_scale
        on_hand = observation["warehouse_inventories"][:, :, 0]
        competing = wanted[:, :stores].sum(dim=1, keepdim=True) + wanted[:, -1:]
        share = torch.clip(torch.clip(on_hand, min=0) / (competing + 1e-10), max=1)
        return {"stores": wanted[:, :stores] * share, "warehouses": wanted[:, stores : stores + 1]}

    def features(self, observation: Data) -> tuple[Tensor, Tensor]:
        """Pipelines [B, N, K], and with the static features behind them [B, N, F]."""
        slots = torch.cat([observation["warehouse_inventories"], observation["store_inventories"]], dim=1)
        if self.scaled:
            slots = slots / self.node_scale[:, None] - 1
        holding = torch.cat([observation["warehouse_holding_costs"], observation["holding_costs"]], dim=1)
        underage = nn.functional.pad(observation["underage_costs"], (1, 0))
        costs = torch.stack([holding, underage, torch.zeros_like(holding)], dim=2) / self.cost_scale
        return slots, torch.cat([slots, costs, self.moments.expand(len(slots), -1, -1)], dim=2)

    def graph(self, observation: Data) -> tuple[list[tuple[int, int]], Tensor]:
        """Edges (start, end), and their lead times [B, edges, 1] (0 unless something travels over them)."""
        stores = observation["lead_times"].shape[1]
        adjacency = torch.zeros(stores + 1, stores + 1, dtype=torch.bool)
        adjacency[0, 1:] = True
        lanes: list[tuple[int, int]] = [(start, end) for start, end in adjacency.nonzero().tolist()]
        demand_edges = [(store, -1) for store in range(1, stores + 1)]
        lead_times = torch.cat([observation["lead_times"], observation["warehouse_lead_times"]], dim=1)
        padded = nn.functional.pad(lead_times.to(observation["holding_costs"].dtype), (0, stores + 1))
        return [*lanes, (-1, 0), *demand_edges, (0, 0)], padded[:, :, None]


def ends(nodes: Tensor, graph: list[tuple[int, int]]) -> Tensor:
    """Values of both ends of each edge, [B, edges, 2 F]; zeros stand for the outside."""
    outside = torch.zeros_like(nodes[:, 0])
    pairs = []
    for start, end in graph:
        source = nodes[:, start] if start >= 0 else outside
        destination = nodes[:, end] if end >= 0 else outside
        pairs.append(torch.cat([source, destination], dim=1))
    return torch.stack(pairs, dim=1)


def _linear(columns: list[Tensor], bias: Tensor | None = None) -> nn.Linear:
    """A layer whose weight has these blocks of columns."""
    weight = torch.cat(columns, dim=1).detach()
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _copies(layers: nn.Sequential) -> list[nn.Module]:
    """The same layers with weights of their own."""
    return [_linear([layer.weight], layer.bias) if isinstance(layer, nn.Linear) else nn.ELU() for layer in layers]
