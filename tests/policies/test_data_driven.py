"""Networks that measure quantities in units of recent demand."""

import pytest
import torch
from torch import nn

from decisionrl.envs.inventory.network import Edge, Network, Node
from decisionrl.envs.inventory.simulator import Observation, Simulator
from decisionrl.policies.data_driven import DataDrivenNet
from decisionrl.policies.gnn import InventoryGNN
from decisionrl.policies.topology import RecentFlow, flow_matrices

HISTORY, STORES = 6, 3


def network(stores: int = STORES) -> Network:
    nodes = [Node(name=f"w{i}", holding_cost=0.3 + 0.1 * i) for i in range(2)]
    nodes += [Node(name=f"s{i}", holding_cost=1.0, underage_cost=4.0) for i in range(stores)]
    edges = [Edge(source="supplier", destination=f"w{i}", lead_time=2, cost=0.5) for i in range(2)]
    edges += [Edge(source="w0", destination=f"s{i}", lead_time=3) for i in range(stores)]
    edges += [Edge(source="w1", destination=f"s{i}", lead_time=1) for i in range(1, stores)]
    return Network.create(nodes=nodes, edges=edges, unmet_demand="lost", goal="profit")


def policy(kind: str, net: Network, slots: int, **options: float) -> nn.Module:
    torch.manual_seed(0)
    built: nn.Module
    if kind == "net":
        built = DataDrivenNet(net, num_slots=slots, history=HISTORY, **options)
    else:
        ones = [1.0] * net.num_nodes
        built = InventoryGNN(
            net,
            num_slots=slots,
            node_scale=ones,
            edge_scale=[1.0] * net.num_edges,
            history=HISTORY,
            time_features=1,
            recent_floor=options.get("floor", 1.0),
        )
    for name, parameter in built.named_parameters():
        if "skip" in name:
            nn.init.normal_(parameter, std=0.05)
    return built


def observe(simulator: Simulator, batch: int = 4) -> Observation:
    rng = torch.Generator().manual_seed(0)
    n, stores = simulator.network.num_nodes, simulator.network.num_stores
    return Observation(
        slots=tuple(30 * torch.rand(batch, n, generator=rng) for _ in range(simulator.num_slots)),
        past_demand=5 + 20 * torch.rand(batch, stores, HISTORY, generator=rng),
        time=torch.tensor([0.1]),
        parameters=simulator.parameters,
        period=0,
    )


@pytest.mark.parametrize("scaled", [True, False])
def test_shipments_never_exceed_stock_on_hand(scaled: bool) -> None:
    simulator = Simulator(network())
    net = DataDrivenNet(simulator.network, num_slots=simulator.num_slots, history=HISTORY, scaled=scaled)
    nn.init.constant_(net.net[-1].bias, 50.0)  # wants far more than there is
    observation = observe(simulator)
    # Much is on its way to the warehouses, little is on hand.
    slots = (observation.slots[0] * 0.01, *(1000 + slot for slot in observation.slots[1:]))
    orders = net(observation._replace(slots=slots))
    shipped = torch.stack([orders[:, [2, 3, 5]].sum(-1), orders[:, [4, 6]].sum(-1)], -1)
    assert [simulator.network.edge_source[e] for e in (2, 3, 5, 4, 6)] == [0, 0, 0, 1, 1]
    assert torch.allclose(shipped, slots[0][:, :2], rtol=1e-4)
    assert orders.shape[-1] == simulator.network.num_edges
    assert bool((orders >= 0).all())


@pytest.mark.parametrize("kind", ["net", "gnn"])
def test_ten_times_the_quantities_are_ordered_ten_times(kind: str) -> None:
    simulator = Simulator(network())
    net, observation = policy(kind, simulator.network, simulator.num_slots), observe(simulator)
    assert observation.past_demand is not None
    tenfold = observation._replace(
        slots=tuple(10 * slot for slot in observation.slots), past_demand=10 * observation.past_demand
    )
    assert torch.allclose(net(tenfold), 10 * net(observation), rtol=1e-4)


@pytest.mark.parametrize("kind", ["net", "gnn"])
def test_items_without_recent_sales_are_measured_in_the_floor(kind: str) -> None:
    simulator = Simulator(network())
    net, observation = policy(kind, simulator.network, simulator.num_slots, floor=2.0), observe(simulator)
    assert observation.past_demand is not None
    orders = net(observation._replace(past_demand=torch.zeros_like(observation.past_demand)))
    assert bool(torch.isfinite(orders).all())


def test_recent_gnn_is_equivariant_to_the_order_of_stores() -> None:
    simulator = Simulator(network())
    net, observation = policy("gnn", simulator.network, simulator.num_slots), observe(simulator)
    assert observation.past_demand is not None
    orders = net(observation)
    # s1 and s2 have the same lanes and costs: exchanging their state exchanges their orders.
    nodes, stores = [0, 1, 2, 4, 3], [0, 2, 1]
    swapped = net(
        observation._replace(
            slots=tuple(slot[:, nodes] for slot in observation.slots), past_demand=observation.past_demand[:, stores]
        )
    )
    assert torch.allclose(swapped, orders[:, [0, 1, 2, 5, 6, 3, 4]], rtol=1e-4, atol=1e-5)


def test_flow_of_a_unit_of_demand_equals_the_network_s_own_rule() -> None:
    net = network()
    by_node, by_edge = flow_matrices(net)
    demand = torch.tensor([3.0, 5.0, 7.0], dtype=torch.float64)
    node, edge = net.flow_scale(demand.numpy())
    assert (demand @ by_node.double()).tolist() == pytest.approx(node.tolist())
    assert (demand @ by_edge.double()).tolist() == pytest.approx(edge.tolist())


def test_wrong_options_are_named() -> None:
    net = network()
    with pytest.raises(ValueError, match="history = 0"):
        DataDrivenNet(net, num_slots=3, history=0)
    with pytest.raises(ValueError, match="floor = 0"):
        RecentFlow(net, floor=0.0)
    with pytest.raises(ValueError, match=r"recent_floor = 1\.0"):
        InventoryGNN(net, num_slots=3, node_scale=[1.0] * 5, edge_scale=[1.0] * 7, recent_floor=1.0)
    observation = observe(Simulator(net))._replace(time=None)
    with pytest.raises(ValueError, match="calendar"):
        DataDrivenNet(net, num_slots=3, history=HISTORY)(observation)
