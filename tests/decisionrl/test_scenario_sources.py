"""Sources of scenarios: continuation, redraws, epochs and exact resumption; the pathwise objective on their batches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from decisionrl.envs.inventory.demand import DemandError
from decisionrl.envs.inventory.scenarios import make_simulator, paper_scenarios, take
from decisionrl.envs.inventory.setting import load_setting
from decisionrl.envs.inventory.simulator import Scenario
from decisionrl.experience.scenarios import ContinuingScenarios, FiniteScenarios
from decisionrl.learner import Update
from decisionrl.objectives.pathwise import Pathwise
from decisionrl.policies.inventory_rules import BaseStock


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def continuing(name: str = "one_warehouse_lost_demand", *, batch: int = 8, **options: Any) -> ContinuingScenarios:
    setting = load_setting(name)
    simulator = make_simulator(setting)
    return ContinuingScenarios(setting, simulator, batch=batch, periods=5, generator=generator(), **options)


def same(a: Scenario, b: Scenario) -> bool:
    return torch.equal(a.demand, b.demand) and all(torch.equal(x, y) for x, y in zip(a.slots, b.slots, strict=True))


def marked(source: ContinuingScenarios, value: float) -> tuple[Tensor, ...]:
    """A pipeline in which every number of scenario b is value + b / 1000."""
    nodes = source.setting.network.num_nodes
    mark = value + torch.arange(source.batch)[:, None] / 1000
    return tuple(mark.expand(-1, nodes).clone() for _ in range(source.simulator.num_slots))


def test_the_next_rollout_starts_where_the_last_one_ended() -> None:
    source = continuing(redraw=0.0)
    first = source.sample()
    source.observe(Update(metrics={}, carry=marked(source, 2.0)))
    second = source.sample()
    assert all(torch.equal(a, b) for a, b in zip(second.slots, marked(source, 2.0), strict=True))
    assert not torch.equal(first.demand, second.demand)
    assert second.periods == 5
    assert second.batch == 8


def test_a_share_of_the_states_is_redrawn_in_turn() -> None:
    """Every third sample 2 of 8 states are new; after four such redraws none of the old ones is left."""
    source = continuing(redraw=0.25, redraw_every=3)
    source.sample()
    source.observe(Update(metrics={}, carry=marked(source, 20.0)))
    left = []
    for _ in range(12):
        batch = source.sample()
        left.append(int((batch.slots[-1][:, 0] >= 20.0).sum()))
        source.observe(Update(metrics={}, carry=batch.slots))
    assert left == [8, 8, 6, 6, 6, 4, 4, 4, 2, 2, 2, 0]


def test_runaway_states_are_replaced_at_once_and_others_kept() -> None:
    source = continuing("one_store_backlogged", redraw=0.0, runaway=10.0)
    source.sample()
    limit = 10.0 * 5.0 * (4 + 1)  # ten times the mean demand of the four slots and one more period
    slots = [torch.ones(8, 1) for _ in range(4)]
    slots[0][2], slots[0][5], slots[0][6] = -limit - 4, limit + 1, limit - 4
    source.observe(Update(metrics={}, carry=tuple(slots)))
    following = source.sample().slots
    replaced = [b for b in range(8) if following[0][b] != slots[0][b]]
    assert replaced == [2, 5]
    assert all(0 <= float(slot[b]) <= 5.0 for slot in following for b in replaced)
    assert all(bool((slot[[0, 1, 3, 4, 6, 7]] == 1).all()) for slot in following[1:])


@pytest.mark.parametrize("name", ["one_store_lost", "one_warehouse_lost_demand", "transshipment_backlogged"])
def test_continuing_scenarios_resume_to_the_identical_batches(name: str) -> None:
    def play(source: ContinuingScenarios, steps: int) -> list[Scenario]:
        batches = []
        for _ in range(steps):
            batches.append(source.sample())
            nodes = source.setting.network.num_edges
            rollout = source.simulator.rollout(lambda o, e=nodes: torch.zeros(8, e), batches[-1])  # type: ignore[misc]
            source.observe(Update(metrics={}, carry=rollout.slots))
        return batches

    source = continuing(name, redraw=0.5, redraw_every=2, runaway=1.0)
    play(source, 3)
    state = copy.deepcopy(source.state_dict())
    expected = play(source, 4)
    other = continuing(name, redraw=0.5, redraw_every=2, runaway=1.0)
    other.load_state_dict(state)
    assert all(same(a, b) for a, b in zip(play(other, 4), expected, strict=True))


def test_continuing_scenarios_check_their_arguments() -> None:
    for bad in ({"redraw": 1.5}, {"redraw": -0.1}, {"redraw_every": 0}, {"batch": 0}):
        name, value = next(iter(bad.items()))
        with pytest.raises(ValueError, match=rf"{name} = {value}; valid"):
            continuing(**bad)  # type: ignore[arg-type]
    with pytest.raises(DemandError, match="finite table of series"):
        continuing("many_warehouses_real_data_lost_demand")


# --- finite sets -----------------------------------------------------------------------------------------------


def finite(batch: int = 3, seed: int = 0) -> FiniteScenarios:
    setting = load_setting("one_store_lost")
    scenario = paper_scenarios(setting, make_simulator(setting), "train", scenarios=8, periods=6)
    return FiniteScenarios(scenario, batch=batch, generator=generator(seed))


def indices(source: FiniteScenarios, batch: Scenario) -> list[int]:
    return [next(k for k in range(8) if torch.equal(source.scenario.slots[0][k], row)) for row in batch.slots[0]]


def test_an_epoch_visits_every_scenario_once() -> None:
    source = finite()
    assert source.samples_per_epoch == 3
    orders = []
    for _ in range(3):
        batches = [source.sample() for _ in range(3)]
        assert [batch.batch for batch in batches] == [3, 3, 2]
        orders.append([k for batch in batches for k in indices(source, batch)])
        assert sorted(orders[-1]) == list(range(8))
    assert orders[0] != orders[1]


def test_a_batch_keeps_stock_and_demand_together() -> None:
    source = finite(batch=8)
    batch = source.sample()
    for row, k in enumerate(indices(source, batch)):
        assert torch.equal(batch.demand[:, row], source.scenario.demand[:, k])


def test_finite_scenarios_resume_to_the_identical_batches() -> None:
    for steps in range(5):  # at the start, within an epoch and at its end
        source = finite()
        for _ in range(steps):
            source.sample()
        state = copy.deepcopy(source.state_dict())
        expected = [source.sample() for _ in range(7)]
        other = finite(seed=99)
        other.load_state_dict(state)
        assert all(same(other.sample(), batch) for batch in expected)


def test_finite_scenarios_check_their_batch() -> None:
    with pytest.raises(ValueError, match="batch = 0; valid"):
        finite(batch=0)


# --- the objective ---------------------------------------------------------------------------------------------


def test_loss_is_the_mean_cost_per_period_and_store() -> None:
    setting = load_setting("one_warehouse_lost_demand")
    simulator = make_simulator(setting, dtype=torch.float64)
    scenario = paper_scenarios(setting, simulator, "train", scenarios=4, periods=6)
    rates = torch.nn.Linear(1, 1).double()

    def policy(observation: Any) -> Tensor:
        return rates.weight[0, 0].abs() * torch.ones(4, 6, dtype=torch.float64)

    loss = Pathwise(simulator, unit=2.5)(policy, scenario)  # type: ignore[arg-type]
    slots, total = scenario.slots, 0.0
    for t in range(6):
        orders = policy(None)
        slots, cost = simulator.step(slots, orders, scenario.demand[t])
        total = total + cost.sum()
    torch.testing.assert_close(loss.metrics["cost"], (total / (4 * 6 * 5)).detach())  # type: ignore[union-attr]
    torch.testing.assert_close(loss.value.detach(), loss.metrics["cost"] / 2.5)
    assert loss.value.requires_grad
    assert not any(slot.requires_grad for slot in loss.carry)
    torch.testing.assert_close(loss.carry, tuple(slot.detach() for slot in slots))


def test_loss_and_gradient_do_not_depend_on_how_a_batch_is_split() -> None:
    setting = load_setting("one_store_backlogged")
    simulator = make_simulator(setting, dtype=torch.float64)
    scenario = paper_scenarios(setting, simulator, "train", scenarios=12, periods=30)
    policy = BaseStock(level=27.3, scale=5.0).double()
    objective = Pathwise(simulator)

    def measure(part: Scenario) -> tuple[Tensor, Tensor]:
        value = objective(policy, part).value
        return value.detach(), torch.autograd.grad(value, policy.level)[0]

    whole = measure(scenario)
    parts = [measure(take(scenario, slice(k, k + 4))) for k in (0, 4, 8)]
    for expected, values in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(values).mean(), expected)


def test_unit_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"unit = 0\.0; valid"):
        Pathwise(make_simulator(load_setting("one_store_lost")), unit=0.0)
