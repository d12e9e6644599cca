"""InventoryWorld against the Gymnasium environments of the same setting."""

import numpy as np
import pytest
import torch

from decisionrl import checkpoint
from decisionrl.envs.gymnasium import InventorySingleEnv, InventoryVectorEnv
from decisionrl.envs.inventory.env import ActionError, order_limits
from decisionrl.envs.inventory.setting import load_setting
from decisionrl.envs.inventory.world import InventoryWorld

SETTINGS = ["one_store_lost", "serial_system", "many_warehouses_lost_demand", "transshipment_backlogged"]


def actions(world, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (steps, world.num_envs, *world.action_space.shape)
    return 2 * torch.rand(shape, generator=generator) - 1


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_copy_is_the_single_environment_of_its_seed(setting):
    world = InventoryWorld(setting, num_envs=4, periods=9)
    seeds = [5, 3, 5, 2**31 - 1]
    singles = [InventorySingleEnv(setting, periods=9) for _ in seeds]
    assert world.observation_space == singles[0].observation_space
    assert world.action_space == singles[0].action_space
    for episode in range(2):
        seeds = [seed - episode for seed in seeds]
        observation = world.reset(seeds) if episode == 0 else world.restart(range(4), seeds)
        rows = [env.reset(seed=seed)[0] for env, seed in zip(singles, seeds, strict=True)]
        np.testing.assert_array_equal(observation, rows)
        assert torch.equal(observation[0], observation[2])
        for t, action in enumerate(actions(world, 9)):
            step = world.step(action)
            outcomes = [env.step(a.numpy()) for env, a in zip(singles, action, strict=True)]
            np.testing.assert_allclose(step.observation, [o[0] for o in outcomes], rtol=1e-5, atol=1e-4)
            np.testing.assert_allclose(step.reward, [o[1] for o in outcomes], rtol=1e-5)
            assert not step.terminated.any()
            assert step.truncated.tolist() == [t == 8] * 4
            assert step.over == ([0, 1, 2, 3] if t == 8 else [])


def test_it_is_the_vector_environment_on_the_same_scenario():
    world = InventoryWorld("one_warehouse_lost_demand", num_envs=3, periods=5)
    env = InventoryVectorEnv("one_warehouse_lost_demand", num_envs=3, periods=5)
    first = world.reset([4, 5, 6])
    np.testing.assert_array_equal(env.reset(options={"scenario": world.env.scenario})[0], first)
    for action in actions(world, 5):
        step, outcome = world.step(action), env.step(action.numpy())
        for tensor, array in zip(step[:4], outcome[:4], strict=True):
            np.testing.assert_array_equal(tensor, array)


def test_settings_that_vary_by_scenario_and_series():
    for setting in ("many_warehouses_lost_demand", "many_warehouses_real_data_lost_demand"):
        world = InventoryWorld(setting, num_envs=3, periods=4)
        observation = world.reset([1, 2, 1]).clone()
        assert torch.equal(observation[0], observation[2])
        assert not torch.equal(observation[0], observation[1])
        assert torch.equal(world.restart([2, 0, 1], [1, 1, 2]), observation)


def test_actions_are_clipped_and_scaled_to_the_order_limits():
    world = InventoryWorld("serial_system", num_envs=2)
    high = torch.as_tensor(order_limits(load_setting("serial_system")), dtype=torch.float32)
    ordered = []
    inner = world.env.step
    world.env.step = lambda orders: (ordered.append(orders), inner(orders))[1]
    world.reset([0, 1])
    world.step(torch.stack([torch.full_like(high, -3.0), torch.full_like(high, 3.0)]))
    world.step(torch.zeros(2, len(high)))
    assert torch.equal(ordered[0], torch.stack([torch.zeros_like(high), high]))
    assert torch.equal(ordered[1], (high / 2).expand(2, -1))
    limited = InventoryWorld("serial_system", num_envs=1, max_order=7.0)
    assert limited._high.tolist() == [7.0] * len(high)


@pytest.mark.parametrize("steps", [0, 4, 9])
def test_a_saved_world_goes_on_bit_for_bit(steps, tmp_path):
    def world():
        return InventoryWorld("many_warehouses_lost_demand", num_envs=3, periods=10)

    first, second = world(), world()
    observation = first.reset([1, 2, 3])
    for action in actions(first, steps):
        observation = first.step(action).observation
    checkpoint.save(tmp_path / "world", first.state_dict())
    second.reset([7, 8, 9])
    assert torch.equal(second.load_state_dict(checkpoint.load(tmp_path / "world")), observation)
    for action in actions(first, 10 - steps, seed=1):
        one, other = first.step(action), second.step(action)
        assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))
        assert one.over == other.over
    assert torch.equal(first.restart(range(3), [4, 5, 6]), second.restart(range(3), [4, 5, 6]))


def test_double_precision():
    world = InventoryWorld("one_store_lost", num_envs=2, dtype=torch.float64)
    assert world.reset([0, 1]).dtype == torch.float64
    step = world.step(torch.zeros(2, 1))
    assert step.observation.dtype == step.reward.dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device():
    world = InventoryWorld("one_store_lost", num_envs=4, device="cuda", periods=3)
    first = world.reset([1, 2, 1, 3])
    assert first.device.type == "cuda"
    assert torch.equal(first[0], first[2])
    assert world.step(torch.zeros(4, 1)).reward.device.type == "cuda"


def test_copies_of_idle_rows_and_of_a_shared_clock():
    world = InventoryWorld("one_store_lost", num_envs=3, periods=1)
    with pytest.raises(RuntimeError, match="no episode yet"):
        world.step(torch.zeros(3, 1))
    world.reset([0, 1, 2])
    for copies in ([0], [0, 1, 1], []):
        with pytest.raises(ValueError, match=r"restart\(\[.*\]\); valid: all of its 3 copies, which share a clock"):
            world.restart(copies, [0] * len(copies))
    with pytest.raises(ActionError, match=r"action has shape \[3\]"):
        world.step(torch.zeros(3))
    assert world.step(torch.zeros(3, 1), idle=[1]).over == [0, 2]
    with pytest.raises(RuntimeError, match="is over"):
        world.step(torch.zeros(3, 1))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_envs": 0}, "num_envs = 0"),
        ({"num_envs": 1, "periods": 0}, "periods = 0"),
        ({"num_envs": 1, "max_order": -1.0}, "max_order = -1.0"),
        ({"num_envs": 1, "split": "later"}, "split = 'later'"),
    ],
)
def test_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        InventoryWorld("one_store_lost", **keywords)
