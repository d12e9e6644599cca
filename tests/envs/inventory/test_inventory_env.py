"""The stepped inventory world: its accounting by hand, against the simulator's rollout, and copy by copy."""

import dataclasses

import numpy as np
import pytest
import torch

from decisionrl import checkpoint
from decisionrl.envs.inventory.demand import PoissonDemand
from decisionrl.envs.inventory.env import ActionError, InventoryEnv, order_limits
from decisionrl.envs.inventory.feasibility import Rationing
from decisionrl.envs.inventory.network import Edge, Network, Node
from decisionrl.envs.inventory.scenarios import paper_scenarios, take
from decisionrl.envs.inventory.setting import Draw, Setting, load_setting
from decisionrl.envs.inventory.simulator import InfeasibleOrderError, Parameters, Scenario
from decisionrl.policies.inventory_rules import BaseStock

TOPOLOGIES = (
    "one_store_lost",
    "one_store_backlogged",
    "serial_system",
    "one_warehouse_lost_demand",
    "many_warehouses_lost_demand",
    "transshipment_backlogged",
    "one_store_real_data_lost_demand",
    "many_warehouses_real_data_lost_demand",
)


def world(setting, num_envs=3, seed=0, **options):
    return InventoryEnv(setting, num_envs=num_envs, dtype=torch.float64, seed=seed, **options)


def random_actions(env, steps, seed=1):
    """[steps, num_envs, num_edges] orders up to half the limits, more than a warehouse has at times."""
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, env.num_envs, env.num_edges)
    return torch.rand(shape, generator=generator, dtype=env.dtype) * torch.tensor(order_limits(env.setting)) / 2


def one_store(unmet_demand, goal="cost", lead_time=2, edge_cost=0.0):
    network = Network.create(
        nodes=[Node(name="store", holding_cost=1.0, underage_cost=9.0)],
        edges=[Edge(source="supplier", destination="store", lead_time=lead_time, cost=edge_cost)],
        unmet_demand=unmet_demand,
        goal=goal,
    )
    return Setting(name="by_hand", title="By hand", network=network, demand=PoissonDemand(mean=np.array([5.0])))


def by_hand(env, *, slots, demand):
    """A scenario of one copy of a one-store network from plain numbers."""
    return Scenario(
        slots=tuple(torch.tensor([[units]], dtype=env.dtype) for units in slots),
        demand=torch.tensor(demand, dtype=env.dtype).reshape(-1, 1, 1),
        parameters=env.simulator.parameters,
    )


def play(env, actions):
    """Rewards [steps, num_envs] and the observations after each step."""
    steps = [env.step(action) for action in actions]
    return torch.stack([step[1] for step in steps]), [step[0] for step in steps]


# Start: 5 on hand, 1 arrives next period; lead time 2; orders 4, 0, 2; demand 3, 6, 4; h = 1, p = 9.
# Lost:       5 - 3 = 2 left; 2 + 1 - 6 = -3 lost; 0 + 4 (ordered at first) - 4 = 0.
# Backlogged: 5 - 3 = 2 left; 2 + 1 - 6 = -3 owed; -3 + 4 - 4 = -3 owed.
@pytest.mark.parametrize(
    ("unmet_demand", "goal", "edge_cost", "rewards", "left"),
    [
        ("lost", "cost", 0.0, [-2.0, -27.0, 0.0], [0.0, 2.0]),
        ("backlogged", "cost", 0.0, [-2.0, -27.0, -27.0], [-3.0, 2.0]),
        ("lost", "cost", 0.5, [-4.0, -27.0, -1.0], [0.0, 2.0]),
        ("lost", "profit", 0.5, [27.0 - 2.0 - 2.0, 27.0, 36.0 - 1.0], [0.0, 2.0]),
    ],
)
def test_three_periods_by_hand(unmet_demand, goal, edge_cost, rewards, left):
    env = world(one_store(unmet_demand, goal, edge_cost=edge_cost), num_envs=1, periods=3, autoreset=False)
    first = env.reset(scenario=by_hand(env, slots=[5.0, 1.0], demand=[3.0, 6.0, 4.0]))
    assert env.observation_names == ("stock[store,0]", "stock[store,1]")
    assert first.tolist() == [[5.0, 1.0]]
    seen, observations = play(env, torch.tensor([4.0, 0.0, 2.0], dtype=env.dtype).reshape(3, 1, 1))
    assert seen[:, 0].tolist() == pytest.approx(rewards)
    assert observations[0].tolist() == [[3.0, 4.0]]
    assert observations[-1].tolist() == [left]


@pytest.mark.parametrize("lead_time", [1, 2, 4])
def test_order_of_a_period_first_serves_the_demand_a_lead_time_later(lead_time):
    env = world(one_store("lost", lead_time=lead_time), num_envs=1, periods=6)
    env.reset(scenario=by_hand(env, slots=[0.0] * lead_time, demand=[1.0] * 6))
    orders = torch.zeros(6, 1, 1, dtype=env.dtype)
    orders[0] = 2.0
    rewards, _ = play(env, orders)
    expected = [-9.0] * 6
    expected[lead_time] = -1.0  # one unit sold, one kept
    if lead_time + 1 < 6:
        expected[lead_time + 1] = 0.0
    assert rewards[:, 0].tolist() == expected


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_episode_costs_equal_those_of_a_rollout(name):
    env = world(name, periods=12)
    env.reset()
    scenario, actions = env.scenario, random_actions(env, 12)
    ration = Rationing(env.network, device="cpu", dtype=env.dtype)
    rollout = env.simulator.rollout(lambda seen: ration(actions[seen.period], seen.slots[0]), scenario, check=True)
    rewards, _ = play(env, actions)
    torch.testing.assert_close(-rewards, rollout.cost)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_units_are_conserved(name):
    env = world(name, periods=12)
    env.reset()
    supplier = [edge for edge, source in enumerate(env.network.edge_source) if source < 0]
    stores = slice(env.network.num_warehouses, None)
    for action in random_actions(env, 11):
        before = torch.stack(env.observation().slots).sum((0, -1))
        _, _, _, _, info = env.step(action)
        sold = info["demand"].sum(-1)
        if env.network.unmet_demand == "lost":
            sold = sold - (-info["level"][:, stores]).clamp(min=0).sum(-1)
        after = torch.stack(env.observation().slots).sum((0, -1))
        torch.testing.assert_close(after, before + info["orders"][:, supplier].sum(-1) - sold)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_copy_does_not_feel_what_another_does(name):
    first, second = world(name, periods=12), world(name, periods=12)
    first.reset(), second.reset()
    actions = random_actions(first, 30)
    others = actions.clone()
    others[:, 1] = 0.0
    rewards, observations = play(first, actions)
    other_rewards, other_observations = play(second, others)
    for copy in (0, 2):
        assert torch.equal(rewards[:, copy], other_rewards[:, copy])
        for seen, other in zip(observations, other_observations, strict=True):
            assert torch.equal(seen[copy], other[copy])
    assert not torch.equal(rewards[:, 1], other_rewards[:, 1])


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_copy_alone_sees_and_earns_the_same(name):
    env = world(name, num_envs=4, periods=8)
    first = env.reset()
    alone = world(name, num_envs=1, periods=8)
    torch.testing.assert_close(alone.reset(scenario=take(env.scenario, slice(2, 3))), first[2:3])
    actions = random_actions(env, 8)
    rewards, observations = play(env, actions)
    own_rewards, own_observations = play(alone, actions[:, 2:3])
    torch.testing.assert_close(own_rewards, rewards[:, 2:3])
    torch.testing.assert_close(torch.stack(own_observations[:-1]), torch.stack(observations[:-1])[:, 2:3])


# ------------------------------------------------------------------------------------------ feasibility


@pytest.mark.parametrize("name", ["serial_system", "many_warehouses_lost_demand", "transshipment_backlogged"])
def test_rationing_never_ships_more_than_there_is(name):
    network = load_setting(name).network
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(500, network.num_edges, generator=generator, dtype=torch.float64) * 20
    on_hand = torch.randn(500, network.num_nodes, generator=generator, dtype=torch.float64) * 20
    shipped = Rationing(network, device="cpu", dtype=torch.float64)(wanted, on_hand)
    assert (shipped >= 0).all()
    for node in range(network.num_nodes):
        edges = [edge for edge, source in enumerate(network.edge_source) if source == node]
        if edges:
            stock, total = on_hand[:, node].clamp(min=0), wanted[:, edges].clamp(min=0).sum(-1)
            out = shipped[:, edges].sum(-1)
            expected = stock if network.must_ship_all[node] else torch.minimum(stock, total)
            torch.testing.assert_close(out, expected)
    supplier = [edge for edge, source in enumerate(network.edge_source) if source < 0]
    assert torch.equal(shipped[:, supplier], wanted[:, supplier].clamp(min=0))


def test_rationing_keeps_the_proportions_and_leaves_abundance_alone():
    network = load_setting("one_warehouse_lost_demand").network  # supplier -> warehouse, warehouse -> stores
    ration = Rationing(network, device="cpu", dtype=torch.float64)
    wanted = torch.arange(1.0, network.num_edges + 1, dtype=torch.float64)
    need = float(wanted[1:].sum())
    on_hand = torch.zeros(network.num_nodes, dtype=torch.float64)
    on_hand[0] = need / 4
    assert ration(wanted, on_hand)[1:].tolist() == pytest.approx((wanted[1:] / 4).tolist())
    on_hand[0] = need + 1
    assert torch.equal(ration(wanted, on_hand), wanted)


def test_hub_ships_all_it_has_even_if_nothing_is_ordered():
    env = world("transshipment_backlogged", periods=10)
    env.reset()
    stores = env.num_edges - 1
    for scale in [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0]:
        action = scale * random_actions(env, 1)[0]
        on_hand = env.observation().slots[0][:, 0]
        _, _, _, _, info = env.step(action)
        torch.testing.assert_close(info["orders"][:, 1:].sum(-1), on_hand)
        torch.testing.assert_close(info["level"][:, 0], torch.zeros_like(on_hand))
        if scale == 0.0:
            torch.testing.assert_close(info["orders"][:, 1:], (on_hand / stores)[:, None].expand(-1, stores))
    assert float(on_hand.min()) > 0


def test_assert_mode_refuses_what_cannot_be_and_changes_nothing():
    env = world("one_warehouse_lost_demand", feasibility="assert")
    env.reset()
    before = env.observation().slots
    with pytest.raises(InfeasibleOrderError, match=r"'one_warehouse_lost_demand', period 0: node 'warehouse' ships"):
        env.step(torch.ones(3, env.num_edges, dtype=env.dtype))
    with pytest.raises(InfeasibleOrderError, match=r"supplier->warehouse is -1; valid is >= 0"):
        env.step(-torch.eye(env.num_edges, dtype=env.dtype)[:1].expand(3, -1))
    assert env.period == 0
    assert env.observation().slots is before
    fine = torch.zeros(3, env.num_edges, dtype=env.dtype)
    fine[:, 0] = 7.0
    _, _, _, _, info = env.step(fine)
    assert torch.equal(info["orders"], fine)


# ---------------------------------------------------------------------------- observations and policies


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_every_column_has_a_name_and_shows_its_place(name):
    env = world(name, periods=10)
    env.reset()
    for action in random_actions(env, 6):
        flat = env.step(action)[0]
    structured = env.observation()
    assert flat.shape == (3, len(env.observation_names))
    assert len(set(env.observation_names)) == len(env.observation_names)
    columns = dict(zip(env.observation_names, flat.T, strict=True))
    nodes = env.network.node_names
    shown = torch.zeros(())
    for j, slot in enumerate(structured.slots):
        for n, node in enumerate(nodes):
            if f"stock[{node},{j}]" in columns:
                assert torch.equal(columns[f"stock[{node},{j}]"], slot[:, n])
            shown = shown + (slot[:, n] * (f"stock[{node},{j}]" not in columns)).abs().sum()
    assert float(shown) == 0  # what is not shown is empty
    if env.setting.history:
        store = nodes[-1]
        past = env.scenario.demand[:, :, -1]  # history first, then the episode's demand
        assert torch.equal(columns[f"past_demand[{store},1]"], past[env.setting.history + 5])
        assert torch.equal(columns[f"past_demand[{store},16]"], past[6])
        assert torch.equal(columns["days_from_christmas"], env.scenario.time[6].expand(3))
    for field in env.setting.per_scenario:
        place = "supplier->store" if field == "lead_time" else "store"
        assert torch.equal(columns[f"{field}[{place}]"], getattr(env.scenario.parameters, field)[:, 0])


def test_a_library_policy_acts_in_the_world():
    env = world("one_store_backlogged", num_envs=64)
    policy = BaseStock(level=33.0, scale=5.0).double()
    env.reset()
    scenario = env.scenario
    rewards = []
    with torch.no_grad():
        for _ in range(env.periods):
            rewards.append(env.step(policy(env.observation()))[1])
        rollout = env.simulator.rollout(policy, scenario)
    torch.testing.assert_close(-torch.stack(rewards), rollout.cost)


def test_gradients_of_rewards_agree_with_finite_differences():
    env = world("one_warehouse_lost_demand", num_envs=2, periods=6)
    env.reset()
    start = env.scenario

    def total(actions):
        env.reset(scenario=start)
        return play(env, actions)[0].sum(0)

    assert torch.autograd.gradcheck(total, random_actions(env, 6).requires_grad_())


def test_costs_that_vary_are_drawn_anew_for_each_copy_and_episode():
    draw = Draw(low=2.0, high=20.0, integer=False, seed=5)
    env = world(dataclasses.replace(load_setting("one_store_lost"), per_scenario={"underage_cost": draw}), num_envs=64)
    column = env.observation_names.index("underage_cost[store]")
    first, second = env.reset()[:, column], env.reset()[:, column]
    assert len(first.unique()) > 32
    assert not torch.equal(first, second)
    assert first.min() >= 2.0
    assert first.max() <= 20.0


def test_drawn_demand_shows_its_history():
    env = world(dataclasses.replace(load_setting("one_store_lost"), history=3), periods=5)
    assert env.observation_names[-3:] == ("past_demand[store,3]", "past_demand[store,2]", "past_demand[store,1]")
    first = env.reset()
    assert env.scenario.periods == 5
    assert torch.equal(first[:, -3:], env.scenario.demand[:3, :, 0].T)
    second, _, _, _, info = env.step(torch.zeros(3, 1))
    assert torch.equal(second[:, -1:], info["demand"])


def test_order_limits_carry_what_lies_downstream():
    setting = load_setting("one_warehouse_lost_demand")
    limits = order_limits(setting)
    peak = setting.demand.mean + 3 * setting.demand.std
    assert limits[1:] == pytest.approx(peak)
    assert limits[0] == pytest.approx(peak.sum())


# --------------------------------------------------------------------------------------------- episodes


def test_episodes_are_truncated_and_go_on_by_themselves():
    env = world("one_store_lost", periods=4)
    first = env.reset()
    starts = [first]
    for step, action in enumerate(random_actions(env, 9), start=1):
        observation, _, terminated, truncated, info = env.step(action)
        assert not terminated.any()
        assert truncated.tolist() == [step % 4 == 0] * 3
        assert ("final_obs" in info) == (step % 4 == 0)
        if step % 4 == 0:
            assert env.period == 0
            assert torch.equal(observation[:, 0], env.scenario.slots[0][:, 0])
            assert not torch.equal(observation, info["final_obs"])
            starts.append(observation)
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[1], starts[2])


def test_without_autoreset_the_episode_must_be_begun_and_ends():
    env = world("one_store_lost", periods=2, autoreset=False)
    action = torch.ones(3, 1)
    with pytest.raises(RuntimeError, match=r"'one_store_lost'.*call reset\(\)"):
        env.step(action)
    env.reset()
    env.step(action)
    final, _, _, truncated, info = env.step(action)
    assert truncated.all()
    assert env.over
    assert "final_obs" not in info
    assert final.shape == (3, 4)
    with pytest.raises(RuntimeError, match=r"step 2: the episode of 2 periods is over"):
        env.step(action)


@pytest.mark.parametrize("name", ["one_warehouse_lost_demand", "one_store_real_data_lost_demand"])
def test_seeds_decide_everything(name):
    first, second, other = (world(name, seed=seed, periods=5) for seed in (3, 3, 4))
    assert torch.equal(first.reset(), second.reset())
    other.reset()
    actions = random_actions(first, 12)
    rewards = play(first, actions)[0]
    assert torch.equal(rewards, play(second, actions)[0])
    assert not torch.equal(rewards, play(other, actions)[0])
    other.reset(seed=3)
    assert torch.equal(rewards, play(other, actions)[0])


@pytest.mark.parametrize("name", ["transshipment_backlogged", "one_store_real_data_lost_demand"])
def test_a_saved_state_replays(name, tmp_path):
    env = world(name, periods=6)
    env.reset()
    actions = random_actions(env, 14)
    play(env, actions[:3])
    checkpoint.save(tmp_path / "world.safetensors", env.state_dict())
    rewards, observations = play(env, actions[3:])
    copy = world(name, seed=99, periods=6)
    copy.load_state_dict(checkpoint.load(tmp_path / "world.safetensors"))
    assert copy.period == 3
    again, seen = play(copy, actions[3:])
    assert torch.equal(again, rewards)
    assert torch.equal(torch.stack(seen), torch.stack(observations))
    with pytest.raises(ValueError, match=r"scenarios = 3; valid: 2"):
        world(name, num_envs=2, periods=6).load_state_dict(env.state_dict())


def test_series_split_and_length():
    setting = load_setting("one_store_real_data_lost_demand")
    train, test = world(setting), world(setting, split="test")
    assert (train.periods, test.periods) == (setting.phases["train"].periods, setting.phases["test"].periods)
    test.reset()
    first, last = setting.phases["test"].columns
    windows = setting.demand.table[:, 0, first:last].double()
    for copy in range(3):
        path = test.scenario.demand[:, copy, 0]
        assert (windows[:, : len(path)] == path).all(1).any()
    short = world(setting, periods=7)
    short.reset()
    assert short.scenario.periods == 7
    with pytest.raises(ValueError, match=r"periods = 96; valid is a whole number from 1 to 95"):
        world(setting, periods=96)


def test_the_papers_scenarios_can_be_played():
    env = world("one_store_lost", num_envs=16)
    scenario = paper_scenarios(env.setting, env.simulator, "test", scenarios=16, periods=20)
    env.reset(scenario=scenario)
    policy = BaseStock(level=26.0).double()
    with torch.no_grad():
        rewards = torch.stack([env.step(policy(env.observation()))[1] for _ in range(20)])
        torch.testing.assert_close(-rewards, env.simulator.rollout(policy, scenario).cost)
    assert env.scenario.periods == env.periods  # the next episode is a draw again


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (torch.zeros(3, 5), r"inventory world 'one_store_lost', step 1: action has shape \[3, 5\]; valid: \[3, 1\]"),
        (torch.zeros(3), r"step 1: action has shape \[3\]"),
        (np.zeros((3, 1)), r"step 1: action is a ndarray; valid is a tensor \[3, 1\]"),
        (torch.tensor([[0.0], [float("nan")], [0.0]]), r"step 1: action = nan over edge supplier->store of copy 1"),
        (torch.tensor([[0.0], [0.0], [float("inf")]]), r"step 1: action = inf over edge supplier->store of copy 2"),
    ],
)
def test_a_wrong_action_is_named(action, message):
    env = world("one_store_lost")
    env.reset()
    env.step(torch.ones(3, 1))
    with pytest.raises(ActionError, match=message):
        env.step(action)
    assert env.period == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, r"num_envs = 0; valid is a whole number >= 1"),
        ({"feasibility": "softmax"}, r"feasibility = 'softmax'; valid: 'proportional', 'assert'"),
        ({"periods": 0}, r"periods = 0; valid is a whole number from 1"),
        ({"split": "validation"}, r"split = 'validation' is not in the setting; valid: 'train', 'dev', 'test'"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        world("one_store_lost", **options)


def test_a_scenario_that_does_not_fit_is_refused():
    env = world("one_warehouse_lost_demand")
    env.reset()
    good = env.scenario
    with pytest.raises(ValueError, match=r"scenarios = 2; valid: 3"):
        env.reset(scenario=take(good, slice(0, 2)))
    with pytest.raises(ValueError, match=r"slots = 1; valid: "):
        env.reset(scenario=dataclasses.replace(good, slots=good.slots[:1]))
    parameters = Parameters(*good.parameters)
    assert torch.equal(
        env.reset(scenario=dataclasses.replace(good, parameters=parameters)),
        env.reset(scenario=good),
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_cuda_agrees_with_the_cpu_and_finds_nan_at_the_end(name):
    env = world(name, periods=5)
    env.reset()
    scenario, actions = env.scenario, random_actions(env, 5)
    rewards, _ = play(env, actions)
    there = world(name, periods=5, device="cuda")
    start = Scenario(
        slots=tuple(slot.cuda() for slot in scenario.slots),
        demand=scenario.demand.cuda(),
        parameters=Parameters(*(value.cuda() for value in scenario.parameters)),
        history=scenario.history,
        time=None if scenario.time is None else scenario.time.cuda(),
    )
    there.reset(scenario=start)
    torch.testing.assert_close(play(there, actions.cuda())[0].cpu(), rewards)
    assert there.reset(seed=1).device.type == "cuda"
    bad = actions.cuda()
    bad[1, 0, 0] = float("nan")
    with pytest.raises(ActionError, match=r"step 5: the stock is NaN or infinite"):
        play(there, bad)
