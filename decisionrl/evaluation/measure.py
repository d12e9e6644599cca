"""One inventory policy measured against its reference: cost and gap with intervals, and a path to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from decisionrl.envs.inventory.scenarios import fresh_scenarios, series_scenarios
from decisionrl.envs.inventory.setting import Setting
from decisionrl.envs.inventory.simulator import Policy, Simulator
from decisionrl.evaluation.inventory import evaluate_on_series, evaluate_policies
from decisionrl.evaluation.references import Reference
from decisionrl.evaluation.series import Edge, Network, Node, SamplePath
from decisionrl.evaluation.statistics import Estimate, bootstrap_mean, control_variate
from decisionrl.seeding import generator


@dataclass(frozen=True)
class Measured:
    """cost per period and store; gap to the reference as a share of it (None without one).

    costs: [scenarios] what the estimate was made from.
    """

    cost: Estimate
    reference: Reference | None
    costs: NDArray[np.float64]

    @property
    def gap(self) -> float | None:
        if self.reference is None:
            return None
        return (self.cost.value - self.reference.value) / abs(self.reference.value)


def measure(
    policy: Policy,
    setting: Setting,
    simulator: Simulator,
    *,
    reference: Reference | None,
    scenarios: int = 4096,
    periods: int = 1500,
    warmup: int = 500,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Measured:
    """Long-run cost of a policy on fresh demand.

    Where the reference has a control policy, cost = exact cost of the control + paired difference on the same
    paths, and the interval is that of the difference.
    """
    policies = {"policy": policy}
    control = None if reference is None else reference.control
    if control is not None:
        policies["control"] = control
    costs = evaluate_policies(
        policies,
        setting,
        simulator,
        scenarios=scenarios,
        periods=periods,
        warmup=warmup,
        seed=seed,
        unchecked=frozenset({"control"}),
        progress=progress,
    )
    rng = np.random.default_rng(seed)
    own = costs["policy"].cost
    if reference is not None and control is not None:
        estimate = control_variate(own, costs["control"].cost, known_mean=reference.value, rng=rng)
    else:
        estimate = bootstrap_mean(own, rng=rng)
    return Measured(estimate, reference, own)


def measure_on_series(
    policy: Policy, setting: Setting, simulator: Simulator, *, split: str = "test", oracle: bool = False, seed: int = 0
) -> Measured:
    """Mean cost (minus profit) per week and store over all items of one split; the interval is over items."""
    names = frozenset({"policy"}) if oracle else frozenset()
    costs = evaluate_on_series({"policy": policy}, setting, simulator, split=split, oracles=names)["policy"].cost
    return Measured(bootstrap_mean(costs, rng=np.random.default_rng(seed)), None, costs)


def trace(
    policy: Policy,
    setting: Setting,
    simulator: Simulator,
    *,
    periods: int = 60,
    warmup: int = 100,
    scenarios: int = 64,
    seed: int = 0,
    oracle: bool = False,
) -> tuple[SamplePath, Network]:
    """A sample path of the first scenario, and the network with mean stock and flow over all of them.

    Series are followed from the start of the test split, without warm-up.
    """
    network = setting.network
    if setting.is_series:
        scenario, warmup = series_scenarios(setting, simulator, "test"), setting.phases["test"].ignore
    else:
        rng = generator(seed, "trace", simulator.device)
        scenario = fresh_scenarios(setting, simulator, batch=scenarios, periods=warmup + periods, generator=rng)
    slots, stocks, flows = scenario.slots, [], []
    with torch.no_grad():
        for t in range(scenario.periods):
            orders = policy(simulator.observe(scenario, slots, t, oracle=oracle))
            stocks.append(slots[0])
            flows.append(orders)
            slots, _ = simulator.step(slots, orders, scenario.demand[scenario.history + t], scenario.parameters)
    stock, flow = torch.stack(stocks)[warmup:].double().cpu(), torch.stack(flows)[warmup:].double().cpu()
    demand = scenario.demand[scenario.history + warmup :].double().cpu()
    edges = [f"{edge.source} → {edge.destination}" for edge in network.edges]
    path = SamplePath(
        periods=list(range(1, stock.shape[0] + 1)),
        stock={name: stock[:, 0, n].tolist() for n, name in enumerate(network.node_names)},
        orders={name: flow[:, 0, e].tolist() for e, name in enumerate(edges)},
        demand={name: demand[:, 0, s].tolist() for s, name in enumerate(network.node_names[network.num_warehouses :])},
    )
    nodes = [Node("supplier", "supplier")] + [
        Node(name, "warehouse" if n < network.num_warehouses else "store", float(stock[..., n].mean()))
        for n, name in enumerate(network.node_names)
    ]
    lanes = [
        Edge(edge.source, edge.destination, float(edge.lead_time), float(flow[..., e].mean()))
        for e, edge in enumerate(network.edges)
    ]
    return path, Network(nodes, lanes)
