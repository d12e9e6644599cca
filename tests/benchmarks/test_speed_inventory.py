"""What is timed against each other computes the same: plain loop, library, and several seeds at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from decisionrl.benchmarks.speed.inventory import Race, capture_step, main, sweep_race
from decisionrl.benchmarks.speed.many_seeds import ManySeeds
from decisionrl.benchmarks.speed.plain_inventory import PlainSimulator, ScenarioDataset, advance, rollout_loss
from decisionrl.benchmarks.speed.timing import ratio
from decisionrl.envs.inventory.scenarios import make_simulator
from decisionrl.envs.inventory.setting import load_setting
from decisionrl.objectives.pathwise import Pathwise
from decisionrl.policies.gnn import InventoryGNN
from decisionrl.policies.mlp import InventoryMLP
from decisionrl.recipes.inventory_policies import BUILDERS, Build

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
SETTINGS = {"mlp": "one_store_lost", "gnn": "one_warehouse_lost_demand"}


def jitter(policy: nn.Module) -> None:
    """Move the weights that start at zero, so that a wrong gradient of theirs cannot hide."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.05 * noise.to(parameter.dtype))


@pytest.fixture(autouse=True)
def default_dtype_kept() -> Iterator[None]:
    kept = torch.get_default_dtype()
    yield
    torch.set_default_dtype(kept)


def make_race(kind: str, dtype: torch.dtype) -> Race:
    """A policy with jittered weights and its plain twin, built after the jitter."""
    torch.set_default_dtype(dtype)  # constants such as 1 / sqrt(degree) in full precision, too
    race = Race.create(SETTINGS[kind], kind, 16, 12, dtype=dtype, batches=1)
    jitter(race.policy)
    twin = type(race.plain)(race.policy)
    return Race(race.setting, race.simulator, race.policy, twin, race.scenario, race.batch)


def assert_same_gradients(ours: dict[str, Tensor], plain: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == plain.keys()
    for name, gradient in ours.items():
        error = float((gradient - plain[name]).abs().max())
        assert error <= tolerance * float(gradient.abs().max()), name


def gradients(policy: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def plain_gnn_gradients(race: Race) -> dict[str, Tensor]:
    """The plain network's gradients under the names of the library's parameters."""
    policy, found = race.policy, gradients(race.plain)
    assert isinstance(policy, InventoryGNN)
    width = policy.edge_from.out_features
    dynamic = policy.node_dynamic.in_features
    result = {
        "node_dynamic.weight": found["node.0.weight"][:, :dynamic],
        "node_static.weight": found["node.0.weight"][:, dynamic:],
        "node_dynamic.bias": found["node.0.bias"],
        "update_edge.bias": found["edge_update.0.bias"],
    }
    first, update = found["edge.0.weight"], found["edge_update.0.weight"]
    for i, name in enumerate(("edge_from.weight", "edge_to.weight")):
        result[name] = first[:, i * width : (i + 1) * width]
    result["edge_lead.weight"], result["edge_from.bias"] = first[:, 2 * width :], found["edge.0.bias"]
    for i, name in enumerate(("update_edge.weight", "update_from.weight", "update_to.weight")):
        result[name] = update[:, i * width : (i + 1) * width]
    skip = found["skip.weight"]
    result["skip_from.weight"], result["skip_to.weight"] = skip.split(skip.shape[1] // 2, 1)
    for plain, ours in (("node", "node_rest"), ("edge", "edge_rest"), ("edge_update", "update_rest")):
        for layer in (2, 4):
            for part in ("weight", "bias"):
                result[f"{ours}.{layer - 1}.{part}"] = found[f"{plain}.{layer}.{part}"]
    for name in ("node_update", "output"):
        result |= {key: value for key, value in found.items() if key.startswith(f"{name}.")}
    return result


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("kind", ["mlp", "gnn"])
def test_networks_cost_and_learn_as_in_the_plain_loop(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    race = make_race(kind, dtype)
    scenario, data = race.batches()[0]
    ours = Pathwise(race.simulator)(race.policy, scenario).value
    plain = rollout_loss(race.plain_simulator, race.plain, data)
    assert ours.item() == pytest.approx(plain.item(), rel=tolerance)
    ours.backward()
    plain.backward()
    twin = plain_gnn_gradients(race) if kind == "gnn" else gradients(race.plain)
    # Gradients add up over periods and scenarios in another order: give float32 a digit for it.
    assert_same_gradients(gradients(race.policy), twin, tolerance if dtype == torch.float64 else 10 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_a_sweep_costs_and_learns_as_its_settings_one_by_one(dtype: torch.dtype, tolerance: float) -> None:
    race, settings = sweep_race(batch=32, periods=20, dtype=dtype)
    ours = race.simulator.rollout(race.policy, race.scenario).cost.mean((0, 2))
    plain = torch.stack([rollout_loss(race.plain_simulator, policy, race.batches()[0][1]) for policy in settings])
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=0.0)
    ours.sum().backward()
    plain.sum().backward()
    scale = race.policy.scale
    for name in ("level", "cap"):
        stacked = torch.stack([getattr(policy, name).grad.view(()) for policy in settings])
        torch.testing.assert_close(
            getattr(race.policy, name).grad.view(-1), scale * stacked, rtol=tolerance, atol=10 * tolerance
        )


@pytest.mark.parametrize("kind", ["mlp", "gnn"])
def test_seeds_at_once_equal_seeds_apart(kind: str) -> None:
    race = make_race(kind, torch.float64)
    build = Build(race.setting, race.simulator)
    policies = [BUILDERS[kind](build).double() for _ in range(3)]
    together = ManySeeds(policies, race.simulator)
    costs = together.costs(race.scenario)
    apart = torch.stack([Pathwise(race.simulator)(policy, race.scenario).value for policy in policies])
    torch.testing.assert_close(costs, apart, rtol=1e-9, atol=0.0)
    costs.sum().backward()
    apart.sum().backward()
    for seed, policy in enumerate(policies):
        found = {name.removeprefix("policy."): p.grad[seed] for name, p in together.parameters.items()}
        assert_same_gradients(gradients(policy), found, 1e-9)


@pytest.mark.parametrize("kind", ["mlp", "gnn"])
def test_a_bound_policy_orders_as_the_policy(kind: str) -> None:
    race = make_race(kind, torch.float64)
    assert isinstance(race.policy, InventoryMLP | InventoryGNN)
    observation = race.simulator.observe(race.scenario, race.scenario.slots, 0)
    bound = race.policy.bind(race.scenario.parameters)
    torch.testing.assert_close(bound(observation), race.policy(observation), rtol=0.0, atol=0.0)
    # More leading dimensions are more scenarios.
    slots = tuple(slot.unflatten(0, (4, 4)) for slot in observation.slots)
    folded = race.policy(observation._replace(slots=slots))
    torch.testing.assert_close(folded.flatten(0, 1), race.policy(observation), rtol=1e-12, atol=1e-12)


def test_orders_arrive_after_their_lead_time() -> None:
    inventory, on_hand = torch.tensor([[[5.0, 1.0, 2.0], [4.0, 3.0, 0.0]]]), torch.tensor([[2.0, 0.5]])
    moved = advance(inventory, on_hand, torch.tensor([[7.0, 9.0]]), torch.tensor([[3, 1]]))
    torch.testing.assert_close(moved, torch.tensor([[[3.0, 2.0, 7.0], [12.5, 0.0, 0.0]]]))


def test_the_loader_hands_out_every_scenario_once() -> None:
    race = make_race("gnn", torch.float32)
    data = next(race.loader())
    assert {name: values.shape for name, values in data.items()} == {
        name: values.shape for name, values in race.dataset.data.items()
    }
    torch.testing.assert_close(data["demands"].sum(), race.dataset.data["demands"].sum())


def test_the_plain_loop_refuses_networks_it_is_not_for() -> None:
    setting = load_setting("many_warehouses_lost_demand")
    simulator = make_simulator(setting)
    scenario = Race.create("one_store_lost", "mlp", 2, 2, batches=1).scenario
    with pytest.raises(ValueError, match="at most one warehouse, not 2"):
        ScenarioDataset(simulator.network, scenario)


def test_backlog_is_carried_and_lost_demand_is_not() -> None:
    race = make_race("mlp", torch.float64)
    data = race.batches()[0][1]
    data["demands"] = data["demands"] + 100
    for lost in (True, False):
        simulator = PlainSimulator(lost_demand=lost)
        simulator.reset(data)
        following, _, _ = simulator.step({"stores": torch.zeros_like(data["lead_times"], dtype=torch.float64)})
        on_hand, arrived = following["store_inventories"][..., 0], data["store_inventories"][..., 1]
        assert bool((on_hand == arrived).all()) is lost


def test_ratios_are_taken_round_by_round() -> None:
    found = ratio([2.0, 6.0, 4.0], [1.0, 2.0, 4.0])
    assert (found.median, found.low, found.high, found.rounds) == (2.0, 1.0, 3.0, 3)


def test_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--quick" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["mlp", "gnn"])
def test_a_captured_step_trains(kind: str) -> None:
    race = Race.create(SETTINGS[kind], kind, 16, 12, device="cuda", batches=1)
    replay = capture_step(race.simulator, race.policy, race.scenario)
    before = [parameter.detach().clone() for parameter in race.policy.parameters()]
    replay()
    torch.cuda.synchronize()
    after = list(race.policy.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
