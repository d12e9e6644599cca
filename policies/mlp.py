"""Multi-layer perceptrons: the plain builder, and the policy that orders for a whole network at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from decisionrl.policies import feasibility
from decisionrl.policies.topology import (
    Observation,
    Topology,
    echelon_share,
    order_up_to_levels,
    shipping_nodes,
    source_matrix,
    supplier_edges,
    vector,
)

elu = partial(nn.ELU, inplace=True)
"""In place it keeps its output alone, from which its derivative follows without another exponential."""


def mlp(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    *,
    activation: Callable[[], nn.Module] = elu,
    output_activation: Callable[[], nn.Module] | None = None,
) -> nn.Sequential:
    """[Linear, activation] for each hidden width, a final Linear, and an optional output activation.

    The activation may work in place: it overwrites the output of a Linear, which nothing else needs.
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), activation()]
        inputs = width
    layers.append(nn.Linear(inputs, outputs))
    if output_activation is not None:
        layers.append(output_activation())
    return nn.Sequential(*layers)


def on_rows(layers: Iterable[nn.Module]) -> Callable[[Tensor], Tensor]:
    """Linear layers and activations as a function of rows [rows, features], with the weights transposed once.

    For a network that is applied in every period of a rollout: half the calls of ``nn.Sequential``.
    """
    steps = [(layer.bias, layer.weight.t()) if isinstance(layer, nn.Linear) else layer for layer in layers]

    def apply(x: Tensor) -> Tensor:
        for step in steps:
            x = torch.addmm(step[0], x, step[1]) if isinstance(step, tuple) else step(x)
        return x

    return apply


class InventoryMLP(nn.Module):
    """One network sees every pipeline slot and orders over every edge (HDPO, arXiv 2306.11246, "vanilla").

    Orders from the supplier are ``scale * softplus(z + shift)`` (head "softplus") or ``4 scale sigmoid(z)``
    (head "sigmoid", the paper's for networks). Shipments between nodes pass a feasibility layer: "proportional"
    scales softplus wishes down to the stock on hand, "softmax" splits the stock on hand.

    With ``scaled`` (the default) slots and orders are in units of the mean flow through their node or edge;
    ``node_scale`` and ``edge_scale`` of ones give raw units. ``skip`` adds a linear map from inputs to outputs
    that starts as echelon order-up-to rules covering mean flow over the lead times and two periods: the untrained
    policy keeps every stock bounded, and what the network learns is the difference to such a rule.
    """

    slot_scale: Tensor
    edge_scale: Tensor
    source: Tensor
    ship_all: Tensor

    def __init__(
        self,
        topology: Topology,
        *,
        num_slots: int,
        node_scale: Sequence[float],
        edge_scale: Sequence[float],
        hidden: Sequence[int] = (32, 32, 32),
        allocation: Literal["proportional", "softmax"] = "proportional",
        supplier_head: Literal["softplus", "sigmoid"] = "softplus",
        supplier_bias: float = 1.0,
        scaled: bool = True,
        skip: bool = True,
    ) -> None:
        super().__init__()
        if allocation not in ("proportional", "softmax"):
            raise ValueError(f"allocation = {allocation!r}; valid: 'proportional', 'softmax'")
        if supplier_head not in ("softplus", "sigmoid"):
            raise ValueError(f"supplier_head = {supplier_head!r}; valid: 'softplus', 'sigmoid'")
        if not hidden:
            raise ValueError("hidden = (); valid: at least one width")
        self.allocation, self.supplier_head, self.supplier_bias = allocation, supplier_head, supplier_bias
        self.scaled = scaled
        inputs, outputs = num_slots * topology.num_nodes, topology.num_edges
        self.net = mlp(inputs, hidden, outputs)
        self.skip = nn.Linear(inputs, outputs, bias=False) if skip else None
        if self.skip is not None:
            self._start_from_base_stock(self.skip, topology, num_slots, node_scale, edge_scale)
        self.register_buffer("slot_scale", vector(node_scale).repeat(num_slots))
        self.register_buffer("edge_scale", vector(edge_scale))
        self.register_buffer("source", source_matrix(topology))
        self.register_buffer("ship_all", vector(topology.must_ship_all))
        self._must_ship_all = list(topology.must_ship_all)
        self._any_must = any(self._must_ship_all)
        self._internal = len(supplier_edges(topology)) < topology.num_edges
        self._supplier = supplier_edges(topology)
        sources = topology.edge_source
        self._groups = [
            (node, [edge for edge, s in enumerate(sources) if s == node]) for node in shipping_nodes(topology)
        ]
        order = [*self._supplier, *(edge for _, edges in self._groups for edge in edges)]
        self._to_edge_order = sorted(range(len(order)), key=order.__getitem__)

    def _start_from_base_stock(
        self,
        skip: nn.Linear,
        topology: Topology,
        num_slots: int,
        node_scale: Sequence[float],
        edge_scale: Sequence[float],
    ) -> None:
        """Weights such that an edge orders its share of (level - echelon position of its destination)."""
        flow, share = vector(node_scale), echelon_share(topology)
        ends = list(topology.edge_destination)
        levels = order_up_to_levels(topology, node_scale)
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(0.1)
            for edge, node in enumerate(topology.edge_destination):
                unit = ends.count(node) * edge_scale[edge]  # needs are split evenly over suppliers
                weight = share[node] / unit
                last.bias[edge] = levels[node] / unit - self.supplier_bias
                if self.scaled:  # inputs are slot / flow - 1
                    weight = weight * flow
                    last.bias[edge] -= weight.sum() * num_slots
                skip.weight[edge] = -weight.repeat(num_slots)

    def forward(self, observation: Observation) -> Float[Tensor, "... edges"]:
        return self.bind(observation.parameters)(observation)

    def bind(self, parameters: Any) -> Callable[[Observation], Float[Tensor, "... edges"]]:
        """The policy for one rollout: input scaling, skip connection and first layer become one affine map.

        W (x / s - 1) + b = (W / s) x + (b - W 1), and the rows of the skip stand below those of the first layer.
        """
        first, _, *middle, last = self.net
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        simple = self.allocation == "proportional" and self.supplier_head == "softplus"
        last_bias = last.bias + self.supplier_bias if simple else last.bias
        last_weight, hidden = last.weight.t(), on_rows(middle)
        widths = [first.out_features, last.out_features]
        weight: Tensor = first.weight
        bias: Tensor = first.bias
        if self.skip is not None:
            weight, bias = torch.cat([weight, self.skip.weight]), torch.cat([bias, last_bias])
        if self.scaled:
            weight, bias = weight / self.slot_scale, bias - weight.sum(1)
        weight = weight.t()

        def act(observation: Observation) -> Tensor:
            slots = torch.cat(observation.slots, -1)
            rows = slots if slots.ndim == 2 else slots.flatten(0, -2)
            x = torch.addmm(bias, rows, weight)
            shift = last_bias
            if self.skip is not None:
                x, shift = torch.split(x, widths, 1)
            z = torch.addmm(shift, hidden(nn.functional.elu(x)), last_weight)
            z = z.view(*slots.shape[:-1], -1)
            if not simple:
                return self._by_parts(z, observation.slots[0])
            wanted = nn.functional.softplus(z) * self.edge_scale
            if not self._internal:
                return wanted
            return feasibility.proportional(
                wanted, observation.slots[0], self.source, ship_all=self.ship_all if self._any_must else None
            )

        return act

    def _by_parts(self, z: Tensor, on_hand: Tensor) -> Tensor:
        """Other heads: supplier edges and each node's outgoing edges apart, put back in edge order."""
        ordered, scale = z[..., self._supplier], self.edge_scale[self._supplier]
        if self.supplier_head == "sigmoid":
            parts = [4.0 * scale * ordered.sigmoid()]
        else:
            parts = [scale * nn.functional.softplus(ordered + self.supplier_bias)]
        if self.allocation == "softmax":
            shipments = feasibility.softmax(z, on_hand, self._groups, self._must_ship_all)
            parts += [shipped for _, shipped in shipments]
            return torch.cat(parts, -1)[..., self._to_edge_order]
        wanted = nn.functional.softplus(z + self.supplier_bias) * self.edge_scale
        limited = feasibility.proportional(
            wanted, on_hand, self.source, ship_all=self.ship_all if self._any_must else None
        )
        parts += [limited[..., edges] for _, edges in self._groups]
        return torch.cat(parts, -1)[..., self._to_edge_order]
