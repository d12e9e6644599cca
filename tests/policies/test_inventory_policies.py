"""Inventory rules and networks: limit cases, feasibility, gradients, and sweeps against single rollouts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from decisionrl.envs.inventory.network import Edge, Network, Node
from decisionrl.envs.inventory.simulator import Scenario, Simulator
from decisionrl.policies import feasibility
from decisionrl.policies.gnn import InventoryGNN
from decisionrl.policies.inventory_rules import (
    BalancedAllocation,
    BaseStock,
    CappedBaseStock,
    EchelonStock,
    StoreAndWarehouseBaseStock,
    water_fill,
)
from decisionrl.policies.mlp import InventoryMLP, mlp


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(nodes: str, edges: str, unmet: str = "lost") -> Network:
    """nodes: "w s h!" by first letter (h!: a hub that holds nothing); edges: "supplier->w:3 w->s:2"."""
    made = [
        Node(
            name=name.rstrip("!"),
            holding_cost=0.3 + 0.2 * i,
            underage_cost=5.0 + i if name.startswith("s") else None,
            holds_stock=not name.endswith("!"),
        )
        for i, name in enumerate(nodes.split())
    ]
    lanes = []
    for text in edges.split():
        ends, lead = text.split(":")
        source, destination = ends.split("->")
        lanes.append(Edge(source=source, destination=destination, lead_time=int(lead), cost=0.1))
    return Network.create(nodes=made, edges=lanes, unmet_demand=unmet)  # type: ignore[arg-type]


def free_lanes(net: Network) -> Network:
    edges = [Edge(source=e.source, destination=e.destination, lead_time=e.lead_time) for e in net.edges]
    return Network.create(nodes=net.nodes, edges=edges, unmet_demand=net.unmet_demand)


NETWORKS = {
    "store": network("s", "supplier->s:2"),
    "serial": network("a b s", "supplier->a:2 a->b:1 b->s:2", "backlogged"),
    "warehouse": network("w s0 s1 s2", "supplier->w:2 w->s0:1 w->s1:3 w->s2:2"),
    "hub": network("h! s0 s1 s2", "supplier->h:2 h->s0:1 h->s1:1 h->s2:2", "backlogged"),
    "warehouses": network("w0 w1 s0 s1 s2", "supplier->w0:1 supplier->w1:2 w0->s0:1 w0->s1:3 w1->s1:1 w1->s2:2"),
    "stores": network("s0 s1 s2", "supplier->s0:1 s0->s1:2 s0->s2:1 s1->s2:1", "backlogged"),
    "mixed": network("w s0 s1", "supplier->w:1 supplier->s0:3 w->s0:1 w->s1:2 s0->s1:1"),
}
"""By name; "stores" and "mixed" have stores that supply other stores, and nodes with several sources."""


def scales(net: Network) -> dict[str, Any]:
    node, edge = net.flow_scale(np.linspace(3.0, 5.0, net.num_stores))
    return {"num_slots": max(net.lead_times), "node_scale": node.tolist(), "edge_scale": edge.tolist()}


def small_gnn(net: Network, **options: Any) -> nn.Module:
    mean, std = [3.0 + i for i in range(net.num_stores)], [1.0] * net.num_stores
    return InventoryGNN(net, **scales(net), demand_mean=mean, demand_std=std, width=4, **options)


POLICIES: dict[str, tuple[str, Callable[[Network], nn.Module]]] = {
    "base_stock": ("store", lambda net: BaseStock(level=11.3, scale=4.0)),
    "capped": ("store", lambda net: CappedBaseStock(level=12.7, cap=4.1, scale=4.0)),
    "echelon": ("serial", lambda net: EchelonStock(net, levels=[27.2, 19.1, 12.3], scale=4.0)),
    "warehouse_rule": (
        "warehouse",
        lambda net: StoreAndWarehouseBaseStock(net, store_levels=[8.1, 15.2, 14.3], warehouse_levels=[50.5], scale=4.0),
    ),
    "warehouses_rule": (
        "warehouses",
        lambda net: StoreAndWarehouseBaseStock(
            net, store_levels=[8.1, 9.2, 14.3], warehouse_levels=[11.5, 38.0], scale=4.0
        ),
    ),
    "hub_rule": (
        "hub",
        lambda net: StoreAndWarehouseBaseStock(net, store_levels=[8.1, 9.2, 14.3], warehouse_levels=[50.5]),
    ),
    "water_filling": (
        "hub",
        lambda net: BalancedAllocation(net, level=52.0, mean=[3, 4, 5], std=[1.0, 1.5, 2.0], scale=4.0),
    ),
}
for name, net in NETWORKS.items():
    POLICIES |= {
        f"mlp/{name}": (name, lambda net: InventoryMLP(net, **scales(net), hidden=(5,))),
        f"mlp_softmax/{name}": (
            name,
            lambda net: InventoryMLP(
                net, **scales(net), hidden=(5,), allocation="softmax", supplier_head="sigmoid", skip=False
            ),
        ),
        f"mlp_raw/{name}": (
            name,
            lambda net: InventoryMLP(net, **scales(net), hidden=(5,), supplier_head="sigmoid", scaled=False),
        ),
        f"gnn/{name}": (name, small_gnn),
        f"gnn_raw/{name}": (name, lambda net: small_gnn(net, scaled=False, skip=False, rounds=2, output_bias=5.0)),
    }


def made(case: str, seed: int = 0) -> tuple[Network, nn.Module]:
    """The network and the policy, all weights moved off their starting values so that nothing is zero."""
    where, build = POLICIES[case]
    torch.manual_seed(seed)
    policy = build(NETWORKS[where]).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return NETWORKS[where], policy


def scenario_of(net: Network, *, batch: int = 2, periods: int = 5, seed: int = 0) -> tuple[Simulator, Scenario]:
    simulator = Simulator(net, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    slots = tuple(8 * draw(batch, net.num_nodes) for _ in range(simulator.num_slots))
    demand = 8 * draw(periods, batch, net.num_stores)
    return simulator, Scenario(slots=slots, demand=demand, parameters=simulator.parameters)


def functional(policy: nn.Module, parameters: dict[str, Tensor]) -> Callable[..., Tensor]:
    return lambda observation: torch.func.functional_call(policy, parameters, (observation,))


# --- every policy on every network it fits ---------------------------------------------------------------


@pytest.mark.parametrize("case", POLICIES)
def test_gradient_of_a_rollout_equals_finite_differences(case: str) -> None:
    net, policy = made(case)
    simulator, scenario = scenario_of(net)
    shapes = {name: p.shape for name, p in policy.named_parameters()}

    def cost(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        values = {name: part.view(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}
        return simulator.rollout(functional(policy, values), scenario).cost.mean()

    vector = nn.utils.parameters_to_vector(policy.parameters()).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(cost(vector), vector)
    assert float(gradient.abs().sum()) > 0
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        direction = torch.randn(vector.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            difference = (cost(vector + 1e-6 * direction) - cost(vector - 1e-6 * direction)) / 2e-6
        torch.testing.assert_close(gradient @ direction, difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", POLICIES)
@pytest.mark.parametrize("wild", [1.0, 3.0])
def test_orders_are_feasible_whatever_the_weights(case: str, wild: float) -> None:
    net, policy = made(case, seed=1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter *= wild
    simulator, scenario = scenario_of(net, batch=8, periods=10, seed=1)
    rollout = simulator.rollout(policy, scenario, check=True)
    assert bool(torch.isfinite(rollout.cost).all())


@pytest.mark.parametrize("case", POLICIES)
def test_parameters_stacked_by_vmap_equal_separate_rollouts(case: str) -> None:
    policies = [made(case, seed=seed)[1] for seed in range(3)]
    net = made(case)[0]
    simulator, scenario = scenario_of(net)
    parameters, buffers = torch.func.stack_module_state(policies)  # type: ignore[arg-type]
    shared = {name: value[0] for name, value in buffers.items()}

    def cost(values: dict[str, Tensor]) -> Tensor:
        return simulator.rollout(functional(policies[0], {**values, **shared}), scenario).cost

    mapped = torch.func.vmap(cost)(parameters)
    for k, policy in enumerate(policies):
        torch.testing.assert_close(mapped[k], simulator.rollout(policy, scenario).cost)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["capped", "echelon", "warehouses_rule", "water_filling", "mlp/mixed", "gnn/mixed"])
def test_compiled_rollout_equals_eager(case: str) -> None:
    """One graph without breaks. (Code generation is tested with the simulator; for every policy it takes minutes.)"""
    net, policy = made(case)
    simulator, scenario = scenario_of(net, periods=3)

    def cost(demand: Tensor) -> Tensor:
        path = Scenario(slots=scenario.slots, demand=demand, parameters=scenario.parameters)
        return simulator.rollout(policy, path).cost

    torch._dynamo.reset()
    compiled = torch.compile(cost, fullgraph=True, backend="inductor" if "gnn" in case else "aot_eager")
    torch.testing.assert_close(compiled(scenario.demand), cost(scenario.demand))
    values = list(policy.parameters())
    gradients = torch.autograd.grad(compiled(scenario.demand).mean(), values, allow_unused=True)
    expected = torch.autograd.grad(cost(scenario.demand).mean(), values, allow_unused=True)
    assert [g is None for g in gradients] == [g is None for g in expected]
    for gradient, truth in zip(gradients, expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(gradient, truth)


# --- limit cases -------------------------------------------------------------------------------------------


def long_scenario(net: Network, *, periods: int = 60) -> tuple[Simulator, Scenario]:
    return scenario_of(net, batch=4, periods=periods, seed=5)


def test_base_stock_orders_up_to_its_level() -> None:
    simulator, scenario = scenario_of(NETWORKS["store"])
    observation = simulator.observe(scenario, scenario.slots, 0)
    position = sum(scenario.slots)
    order = BaseStock(level=9.0, scale=4.0)(observation)
    torch.testing.assert_close(order, torch.maximum(9.0 - position, torch.zeros(())))  # type: ignore[operator]
    capped = CappedBaseStock(level=9.0, cap=1.5, scale=4.0)(observation)
    torch.testing.assert_close(capped, order.clamp(max=1.5))


def test_a_huge_cap_is_no_cap_and_a_negative_one_orders_nothing() -> None:
    simulator, scenario = long_scenario(NETWORKS["store"])
    plain = simulator.rollout(BaseStock(level=12.0), scenario).cost
    torch.testing.assert_close(simulator.rollout(CappedBaseStock(level=12.0, cap=1e9), scenario).cost, plain)
    barred = CappedBaseStock(level=12.0, cap=-1.0)
    simulator.rollout(barred, scenario, check=True)
    assert not barred(simulator.observe(scenario, scenario.slots, 0)).any()


def test_echelon_stock_of_one_stage_is_base_stock() -> None:
    for unmet in ("lost", "backlogged"):
        net = network("s", "supplier->s:3", unmet)
        simulator, scenario = long_scenario(net)
        echelon = simulator.rollout(EchelonStock(net, levels=[17.5], scale=4.0), scenario).cost
        torch.testing.assert_close(echelon, simulator.rollout(BaseStock(level=17.5), scenario).cost)


def test_echelon_stock_keeps_the_levels_it_is_given() -> None:
    net = NETWORKS["serial"]
    given = [423.0, 310.5, 12.25]  # increments far beyond the range of exp in float32
    torch.testing.assert_close(EchelonStock(net, levels=given).levels, torch.tensor(given))
    torch.testing.assert_close(EchelonStock(net, levels=given).float().levels, torch.tensor(given).float())
    equal = EchelonStock(net, levels=[20.0, 20.0, 20.0], scale=5.0).levels
    torch.testing.assert_close(equal, torch.tensor([20.0, 20.0, 20.0]), atol=0.02, rtol=0)


def test_an_echelon_level_above_one_upstream_cannot_be_reached() -> None:
    """S = (20, 30, 12) acts as (20, 20, 12): stage b can never lift its echelon above that of stage a."""
    net = NETWORKS["serial"]
    torch.testing.assert_close(
        EchelonStock(net, levels=[20.0, 30.0, 12.0]).levels, torch.tensor([20.0, 20.0, 12.0]), atol=2e-3, rtol=0
    )
    simulator, scenario = long_scenario(net)
    empty = Scenario(slots=simulator.empty_slots(4), demand=scenario.demand, parameters=scenario.parameters)

    def unsorted(observation: Any) -> Tensor:
        position = sum(observation.slots)
        echelon = torch.stack([position[:, k:].sum(-1) for k in range(3)], -1)
        wanted = (torch.tensor([20.0, 30.0, 12.0]) - echelon).clamp(min=0)
        stock = torch.cat([torch.full((4, 1), math.inf), observation.slots[0][:, :2]], -1)
        return torch.minimum(wanted, stock)

    expected = simulator.rollout(unsorted, empty).cost
    actual = simulator.rollout(EchelonStock(net, levels=[20.0, 30.0, 12.0]), empty).cost
    torch.testing.assert_close(actual, expected, atol=0.05, rtol=0)


def test_a_stage_in_backlog_ships_nothing() -> None:
    net = network("s0 s1", "supplier->s0:1 s0->s1:1", "backlogged")
    simulator = Simulator(net, dtype=torch.float64)
    demand = torch.full((6, 2, 2), 30.0)
    scenario = Scenario(slots=simulator.empty_slots(2), demand=demand, parameters=simulator.parameters)
    simulator.rollout(EchelonStock(net, levels=[9.0, 5.0]), scenario, check=True)


def test_a_hub_with_one_store_is_a_serial_system_and_a_longer_lead_time() -> None:
    """Ship-all over lead times 3 and 2 is base stock with lead time 5 once the start is forgotten."""
    hub = free_lanes(network("h! s", "supplier->h:3 h->s:2", "backlogged"))
    serial = free_lanes(network("h s", "supplier->h:3 h->s:2", "backlogged"))
    single = Network.create(
        nodes=[Node(name="s", holding_cost=0.5, underage_cost=6.0)],
        edges=[Edge(source="supplier", destination="s", lead_time=5)],
        unmet_demand="backlogged",
    )
    _, scenario = long_scenario(hub)

    def cost(net: Network, policy: nn.Module) -> Tensor:
        world = Simulator(net, dtype=torch.float64)
        path = Scenario(slots=world.empty_slots(4), demand=scenario.demand, parameters=world.parameters)
        return world.rollout(policy, path, check=True).cost

    filled = cost(hub, BalancedAllocation(hub, level=31.0, mean=[4.0], std=[2.0]))
    staged = cost(serial, EchelonStock(serial, levels=[31.0, 30.9999]))
    based = cost(single, BaseStock(level=31.0))
    torch.testing.assert_close(filled[20:], staged[20:], atol=1e-2, rtol=0)
    torch.testing.assert_close(filled[20:], based[20:])


@pytest.mark.parametrize("unmet", ["lost", "backlogged"])
def test_base_stock_covers_a_constant_demand_exactly(unmet: str) -> None:
    net = free_lanes(network("s", "supplier->s:3", unmet))
    simulator = Simulator(net, dtype=torch.float64)
    demand = torch.full((20, 2, 1), 2.5)
    scenario = Scenario(slots=simulator.empty_slots(2), demand=demand, parameters=simulator.parameters)
    cost = simulator.rollout(BaseStock(level=(3 + 1) * 2.5), scenario, check=True).cost
    assert float(cost[:3].min()) > 0
    assert float(cost[8:].abs().max()) < 1e-9
    short = simulator.rollout(BaseStock(level=(3 + 1) * 2.5 - 0.5), scenario).cost
    assert float(short[8:].mean()) > 0.1


@pytest.mark.parametrize("case", ["serial", "warehouse", "warehouses", "hub"])
def test_the_rules_cover_a_constant_demand_exactly(case: str) -> None:
    """Levels of mean demand over the lead times: no stock is left anywhere, no demand is unmet."""
    net = free_lanes(NETWORKS[case])
    simulator = Simulator(net, dtype=torch.float64)
    mean = torch.tensor([3.0, 4.0, 5.0])[: net.num_stores]
    demand = mean.expand(60, 2, -1)
    scenario = Scenario(slots=simulator.empty_slots(2), demand=demand, parameters=simulator.parameters)
    policy: nn.Module
    if case == "serial":
        policy = EchelonStock(net, levels=[3.0 * 6, 3.0 * 4, 3.0 * 3])
    elif case == "hub":
        policy = BalancedAllocation(net, level=3 * 4 + 4 * 4 + 5 * 5, mean=mean, std=[0.5, 1.0, 2.0])
    elif case == "warehouse":
        stores = [3 * 2.0, 4 * 4.0, 5 * 3.0]
        policy = StoreAndWarehouseBaseStock(net, store_levels=stores, warehouse_levels=[sum(stores) + 2 * 12])
    else:
        stores = [3 * 2.0, 4 * 2.0, 5 * 3.0]  # the second store uses the faster lane, from w1
        levels = [stores[0] + 1 * 3, stores[1] + stores[2] + 2 * 9]
        policy = StoreAndWarehouseBaseStock(net, store_levels=stores, warehouse_levels=levels)
    cost = simulator.rollout(policy, scenario, check=True).cost
    assert float(cost[40:].abs().max()) < 1e-6


def test_parameters_with_a_leading_dimension_are_a_sweep() -> None:
    net = NETWORKS["store"]
    simulator, scenario = long_scenario(net, periods=12)
    levels, caps = torch.linspace(6.0, 18.0, 5), torch.linspace(2.0, 7.0, 5)
    swept = simulator.rollout(
        CappedBaseStock(level=levels[:, None, None], cap=caps[:, None, None], scale=4.0), scenario, check=True
    )
    based = simulator.rollout(BaseStock(level=levels[:, None, None]), scenario)
    assert swept.cost.shape == (12, 5, 4)
    for k in range(5):
        single = simulator.rollout(CappedBaseStock(level=float(levels[k]), cap=float(caps[k])), scenario)
        torch.testing.assert_close(swept.cost[:, k], single.cost)
        torch.testing.assert_close(
            based.cost[:, k], simulator.rollout(BaseStock(level=float(levels[k])), scenario).cost
        )


def test_a_store_orders_over_one_lane_only() -> None:
    """A store that both a warehouse and the supplier serve uses the warehouse, and does not order twice."""
    net = network("w s0 s1", "supplier->w:1 supplier->s0:2 w->s0:1 supplier->s1:2")
    rule = StoreAndWarehouseBaseStock(net, store_levels=[8.0, 9.0], warehouse_levels=[20.0])
    simulator = Simulator(net, dtype=torch.float64)
    slots = (torch.tensor([[12.0, 3.0, 1.0]]), *simulator.empty_slots(1)[1:])
    scenario = Scenario(slots=slots, demand=torch.ones(1, 1, 2), parameters=simulator.parameters)
    orders = dict(
        zip([e.name for e in net.edges], rule(simulator.observe(scenario, slots, 0))[0].tolist(), strict=True)
    )
    assert orders == pytest.approx({"supplier->w": 5.0, "supplier->s0": 0.0, "w->s0": 5.0, "supplier->s1": 8.0})


@pytest.mark.parametrize("case", ["serial", "stores", "mixed"])
def test_the_warehouse_rule_refuses_more_than_two_stages(case: str) -> None:
    net = NETWORKS[case]
    with pytest.raises(ValueError, match="two stages"):
        StoreAndWarehouseBaseStock(
            net, store_levels=[1.0] * net.num_stores, warehouse_levels=[1.0] * net.num_warehouses
        )


@pytest.mark.parametrize("case", ["store", "serial", "stores", "mixed", "warehouses"])
def test_balanced_allocation_refuses_other_networks(case: str) -> None:
    net = NETWORKS[case]
    stores = net.num_stores
    if case == "serial":
        net = network("a b s", "supplier->a:2 a->b:1 b->s:2", "backlogged")
    with pytest.raises(ValueError, match="one warehouse that supplies every store"):
        BalancedAllocation(net, level=1.0, mean=[1.0] * stores, std=[1.0] * stores)


def test_balanced_allocation_refuses_a_store_the_hub_does_not_supply() -> None:
    net = network("h! s0 s1", "supplier->h:1 h->s0:1 supplier->s1:1", "backlogged")
    with pytest.raises(ValueError, match="one warehouse that supplies every store"):
        BalancedAllocation(net, level=1.0, mean=[1.0, 1.0], std=[1.0, 1.0])


def test_echelon_stock_refuses_other_networks_and_counts() -> None:
    with pytest.raises(ValueError, match="serial network"):
        EchelonStock(NETWORKS["warehouse"], levels=[4.0, 3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="levels has 2 values; valid: 3"):
        EchelonStock(NETWORKS["serial"], levels=[4.0, 3.0])


@pytest.mark.parametrize("field", ["allocation", "supplier_head"])
def test_mlp_options_are_checked(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} = 'soft'; valid: '"):
        InventoryMLP(NETWORKS["store"], **scales(NETWORKS["store"]), **{field: "soft"})


def test_mlp_builder_has_the_layers_it_is_asked_for() -> None:
    net = mlp(4, (32, 32, 32), 1)
    assert sum(p.numel() for p in net.parameters()) == 2305  # the paper's network for one store, L = 4
    assert isinstance(net[-1], nn.Linear)
    assert isinstance(mlp(2, (3,), 1, output_activation=nn.Sigmoid)[-1], nn.Sigmoid)


# --- feasibility layers --------------------------------------------------------------------------------------

SOURCE = torch.tensor([[0.0, 0], [1, 0], [1, 0], [0, 1], [0, 1]], dtype=torch.float64)


def test_proportional_is_the_identity_when_stock_is_abundant() -> None:
    wanted = torch.tensor([[7.0, 1, 2, 3, 4]], dtype=torch.float64)
    kept = feasibility.proportional(wanted, torch.tensor([[9.0, 9.0]]), SOURCE)
    torch.testing.assert_close(kept, wanted)


def test_proportional_shares_what_there_is() -> None:
    wanted = torch.tensor([[7.0, 1, 3, 3, 4], [7.0, 1, 3, 3, 4]], dtype=torch.float64)
    on_hand = torch.tensor([[2.0, -5.0], [100.0, 3.5]])
    shared = feasibility.proportional(wanted, on_hand, SOURCE)
    torch.testing.assert_close(shared, torch.tensor([[7.0, 0.5, 1.5, 0, 0], [7.0, 1, 3, 1.5, 2.0]]))
    keep = torch.tensor([[4.0, 0.0], [4.0, 0.0]])
    shared = feasibility.proportional(wanted, on_hand, SOURCE, keep=keep)
    torch.testing.assert_close(shared, torch.tensor([[7.0, 0.25, 0.75, 0, 0], [7.0, 1, 3, 1.5, 2.0]]))


def test_a_hub_ships_everything_even_if_nothing_is_wanted() -> None:
    ship_all = torch.tensor([1.0, 0.0])
    on_hand = torch.tensor([[8.0, 8.0]])
    some = torch.tensor([[7.0, 1, 3, 3, 4]], dtype=torch.float64)
    shipped = feasibility.proportional(some, on_hand, SOURCE, ship_all=ship_all)
    torch.testing.assert_close(shipped, torch.tensor([[7.0, 2, 6, 3, 4]]), rtol=1e-5, atol=0)
    nothing = torch.zeros(1, 5)
    shipped = feasibility.proportional(nothing, on_hand, SOURCE, ship_all=ship_all)
    torch.testing.assert_close(shipped, torch.tensor([[0.0, 4, 4, 0, 0]]), rtol=1e-4, atol=1e-12)


def test_softmax_shares() -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    on_hand = torch.tensor([[3.0, 4.0]]).repeat(6, 1)
    on_hand[0] = -2.0
    groups = [(0, [1, 2]), (1, [3, 4])]
    (hub, hub_shipped), (node, shipped) = feasibility.softmax(logits, on_hand, groups, [True, False])
    assert (list(hub), list(node)) == ([1, 2], [3, 4])
    torch.testing.assert_close(hub_shipped.sum(-1), on_hand[:, 0].clamp(min=0))
    # What stays has the logit 1 (not 0).
    weights = torch.exp(logits[:, 3:])
    expected = 4.0 * weights / (weights.sum(-1, keepdim=True) + math.e)
    torch.testing.assert_close(shipped[1:], expected[1:])
    assert float(shipped[0].abs().sum()) == 0


@pytest.mark.parametrize("seed", range(20))
def test_water_filling_equals_bisection(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stores = int(rng.integers(1, 7))
    need, weight = rng.normal(0, 10, stores), rng.uniform(0.2, 3, stores)
    total = float(rng.choice([0.0, rng.uniform(0, 60)], p=[0.2, 0.8]))
    low, high = -1e4, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(need + middle * weight, 0).sum() < total else (low, middle)
    expected = np.maximum(need + low * weight, 0)
    filled = water_fill(torch.tensor([[total]]), torch.as_tensor(need)[None], torch.as_tensor(weight))[0]
    torch.testing.assert_close(filled, torch.as_tensor(expected), atol=1e-8, rtol=0)
    assert float(filled.sum()) == pytest.approx(total, abs=1e-8)
