"""The released training set-up of HDPO (arXiv 2306.11246), for comparison: networks, raw units, learning rates.

Values of the released configuration files; see the specification of the inventory settings, section 2.1. Widths
and learning rates belong to the kind of network: one store, serial, transshipment, or warehouses with stores.
"""

from __future__ import annotations

from typing import Any, Literal

from decisionrl.envs.inventory.setting import Setting

Kind = Literal["one_store", "serial", "transshipment", "warehouses"]


def kind_of(setting: Setting) -> Kind:
    network = setting.network
    if network.num_nodes == 1:
        return "one_store"
    if any(network.must_ship_all):
        return "transshipment"
    return "serial" if network.is_arborescence and network.num_stores == 1 else "warehouses"


MLP: dict[Kind, tuple[dict[str, Any], float]] = {
    "one_store": ({"hidden": (32, 32, 32)}, 0.003),
    "serial": ({"hidden": (32, 32), "supplier_head": "sigmoid", "allocation": "softmax"}, 0.01),
    "transshipment": ({"hidden": (256,) * 3, "supplier_head": "sigmoid", "allocation": "softmax"}, 0.0001),
    "warehouses": ({"hidden": (512,) * 3, "supplier_head": "sigmoid", "allocation": "softmax"}, 0.0003),
}

RULES = {"base_stock": 0.5, "capped_base_stock": 1.0, "echelon_stock": 0.5}
"""Learning rates of the parametric rules, in units of stock."""


def paper_options(setting: Setting, policy: str) -> dict[str, Any]:
    """Options of the policy's builder: the released widths and heads, raw units, no linear skip."""
    if policy == "mlp":
        return {**MLP[kind_of(setting)][0], "scaled": False, "skip": False}
    if policy == "gnn":
        return {"scaled": False, "skip": False, "echelon": False, "output_bias": 5.0}
    if policy in RULES:
        return {"scaled": False}
    raise ValueError(
        f"protocol = 'paper' has no released set-up for policy {policy!r}; valid: mlp, gnn, {', '.join(RULES)}"
    )


def paper_learning_rate(setting: Setting, policy: str) -> float:
    if policy == "mlp":
        return MLP[kind_of(setting)][1]
    return RULES.get(policy, 0.001)
