"""make_world: everything that names an environment, and what is said of what does not."""

import sys
from importlib import resources

import gymnasium
import pytest
import torch
from counting_envs import Counting, Noisy
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from decisionrl.envs.copies import Copies
from decisionrl.envs.gymnasium import InventorySingleEnv
from decisionrl.envs.inventory.setting import SettingError
from decisionrl.envs.inventory.world import InventoryWorld
from decisionrl.envs.make import EnvironmentNameError, env_maker, env_name, make_world
from decisionrl.envs.vector_world import VectorWorld
from decisionrl.envs.world import EnvironmentFault


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the working directory with an environment, and one that registers an id."""
    source = "from counting_envs import Counting\nimport gymnasium\nclass Mine(Counting): pass\nnumber = 3\n"
    (tmp_path / "my_envs.py").write_text(source)
    register = 'if "Mine-v0" not in gymnasium.registry: gymnasium.register("Mine-v0", "my_envs:Mine")\n'
    (tmp_path / "my_ids.py").write_text("import gymnasium\n" + register)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    gymnasium.registry.pop("Mine-v0", None)
    for name in ("my_envs", "my_ids"):
        sys.modules.pop(name, None)


def test_ids_classes_and_functions():
    world = make_world("CartPole-v1", num_envs=3)
    assert isinstance(world, Copies)
    assert (world.name, world.num_envs, world.seedable) == ("CartPole-v1", 3, True)
    assert make_world("decisionrl/OneStoreLost-v0").reset([0]).shape[0] == 1
    assert make_world(Counting, options={"limit": 2}).envs[0].limit == 2
    assert make_world(Counting).name == "Counting"
    assert make_world(lambda limit: Counting(limit), options={"limit": 4}).envs[0].limit == 4
    frozen = make_world("FrozenLake-v1", options={"is_slippery": False, "map_name": "8x8"})
    assert frozen.observation_space.n == 64


def test_an_id_keeps_its_time_limit():
    world = make_world("Pendulum-v1")
    world.reset([0])
    for _ in range(200):
        step = world.step(torch.zeros(1, 1))
    assert step.truncated.tolist() == [True]


@pytest.mark.usefixtures("module")
def test_modules_in_the_working_directory():
    world = make_world("my_envs:Mine", num_envs=2, options={"limit": 2})
    assert world.reset([1, 2]).tolist() == [[1, 0, 0], [2, 0, 0]]
    assert world.envs[1].limit == 2
    assert world.name == "my_envs:Mine"
    assert make_world("my_ids:Mine-v0").reset([4]).tolist() == [[4, 0, 0]]
    assert make_world("Mine-v0").reset([4]).tolist() == [[4, 0, 0]]


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("CartPol-v1", r"env = 'CartPol-v1': .*Did you mean: `CartPole`"),
        ("CartPole-v9", r"env = 'CartPole-v9': .*`v1`"),
        ("nowhere/Thing-v0", "env = 'nowhere/Thing-v0': "),
        ("my_envs:Yours", "env = 'my_envs:Yours': my_envs has no Yours; its environments: Counting, Mine"),
        ("my_envs:number", "my_envs has no number"),
        ("my_envz:Mine", "my_envz cannot be imported: No module named 'my_envz'"),
        (":Mine", "env = ':Mine':  cannot be imported"),
        ("my_ids:Yours-v0", "my_ids has no Yours-v0; its environments: none"),
        ("", "env = '': "),
    ],
)
def test_names_of_nothing(env, message):
    with pytest.raises(EnvironmentNameError, match=message):
        make_world(env)


def test_what_cannot_be_made():
    with pytest.raises(EnvironmentFault, match=r"Counting, copy 0: making it raised TypeError: .*'speed'"):
        make_world(Counting, options={"speed": 1})
    with pytest.raises(EnvironmentFault, match=r"CartPole-v1, copy 0: making it raised TypeError: .*'speed'"):
        make_world("CartPole-v1", options={"speed": 1})
    with pytest.raises(EnvironmentFault, match="Counting, copy 0: making it raised TypeError"):
        make_world(Counting, num_envs=2, workers=2, options={"speed": 1})
    with pytest.raises(TypeError, match="env is a int; valid: an id, module:Class, a function, or a VectorEnv"):
        make_world(3)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_envs": 0}, "num_envs = 0; valid: a whole number >= 1"),
        ({"num_envs": -2}, "num_envs = -2"),
        ({"num_envs": 4, "workers": 2}, "workers = 2; valid: 0 .* or num_envs = 4"),
        ({"workers": -1}, "workers = -1"),
    ],
)
def test_numbers_of_copies_and_workers(keywords, message):
    with pytest.raises(ValueError, match=message):
        make_world("CartPole-v1", **keywords)


def test_workers_step_as_copies_do():
    world, other = make_world(Noisy, num_envs=2, workers=2), make_world(Noisy, num_envs=2)
    assert isinstance(world, VectorWorld)
    assert world.seedable
    assert torch.equal(world.reset([3, 4]), other.reset([3, 4]))
    for _ in range(20):
        step, same = world.step(torch.full((2, 1), 0.5)), other.step(torch.full((2, 1), 0.5))
        assert all(torch.equal(a, b) for a, b in zip(step[:4], same[:4], strict=True))
        assert step.over == same.over
        if step.over:
            assert torch.equal(world.restart(step.over, [7, 8]), other.restart(step.over, [7, 8]))
    world.close()


def test_vector_environments_are_used_as_they_are():
    env = SyncVectorEnv([Counting] * 3, autoreset_mode=AutoresetMode.DISABLED)
    world = make_world(env)
    assert isinstance(world, VectorWorld)
    assert (world.num_envs, world.name) == (3, "SyncVectorEnv")
    assert make_world(gymnasium.make_vec("CartPole-v1", num_envs=2)).name == "CartPole-v1"
    for keywords in ({"options": {"limit": 2}}, {"workers": 3}, {"max_steps": 3}):
        with pytest.raises(ValueError, match="valid with a VectorEnv, which is made already: none of them"):
            make_world(env, **keywords)
    with pytest.raises(TypeError, match="SyncVectorEnv is a VectorEnv; valid: an id or a function"):
        env_maker(env, {})


def test_inventory_settings(tmp_path, monkeypatch):
    world = make_world("inventory/one_store_lost", num_envs=5, options={"periods": 7})
    assert isinstance(world, InventoryWorld)
    assert (world.num_envs, world.env.periods) == (5, 7)
    assert env_name("inventory/one_store_lost") == "inventory/one_store_lost"
    assert isinstance(env_maker("inventory/one_store_lost", {"periods": 7})(), InventorySingleEnv)
    with pytest.raises(SettingError, match="one_store_lots"):
        make_world("inventory/one_store_lots")
    with pytest.raises(ValueError, match="workers = 5; valid: 0"):
        make_world("inventory/one_store_lost", num_envs=5, workers=5)
    shipped = resources.files("decisionrl.envs") / "inventory" / "settings" / "one_store_lost.toml"
    (tmp_path / "my.toml").write_text(shipped.read_text())
    monkeypatch.chdir(tmp_path)
    for env in (tmp_path / "my.toml", "inventory/my.toml"):
        mine = make_world(env, num_envs=5, options={"periods": 7})
        assert torch.equal(mine.reset(range(5)), world.reset(range(5)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_time_limit(workers: int) -> None:
    world = make_world(Counting, num_envs=2, workers=workers, max_steps=3)
    world.reset([1, 2])
    try:
        ends = [world.step(torch.zeros(2, dtype=torch.int64)) for _ in range(3)][-1]
        assert ends.truncated.tolist() == [True, True]
        assert ends.terminated.tolist() == [False, False]
    finally:
        world.close()


def test_a_time_limit_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"max_steps = 0; valid: a whole number >= 1"):
        make_world("CartPole-v1", max_steps=0)
