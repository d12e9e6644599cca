"""Meta-World tasks: what is seen, what determines an episode, and what the scripted experts make of it."""

from __future__ import annotations

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

import decisionrl.envs
from decisionrl.envs.make import make_world
from decisionrl.envs.registration import METAWORLD_TASKS
from decisionrl.envs.robotics.metaworld import MetaWorldEnv, expert_action, scripted_expert

pytest.importorskip("metaworld")


@pytest.fixture(scope="module")
def plate() -> MetaWorldEnv:
    return MetaWorldEnv("plate-slide")


def played(env: MetaWorldEnv, seed: int, steps: int) -> tuple[NDArray[np.float32], list[float]]:
    """What the expert sees and gets in the first steps of an episode."""
    seen, rewards = [env.reset(seed=seed)[0]], []
    for _ in range(steps):
        observation, reward, *_ = env.step(expert_action(env))
        seen.append(observation)
        rewards.append(reward)
    return np.stack(seen), rewards


def test_it_is_a_gymnasium_environment(plate: MetaWorldEnv) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*Box observation space m.*|.*not having a spec.*")
        check_env(plate, skip_render_check=True)


def test_every_task_of_the_paper_has_an_id() -> None:
    decisionrl.envs.register_envs()
    assert gymnasium.spec("decisionrl/SweepInto-v0").kwargs == {"task": "sweep-into"}
    for task in METAWORLD_TASKS:
        assert f"decisionrl/{task.title().replace('-', '')}-v0" in gymnasium.registry


def test_the_ids_do_not_import_meta_world() -> None:
    script = "import sys, decisionrl.envs; sys.exit('metaworld' in sys.modules or 'mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("task", ["plate-slide", "drawer-open"])
def test_an_episode_depends_on_its_seed_and_actions_alone(task: str) -> None:
    fresh, used = MetaWorldEnv(task), MetaWorldEnv(task)
    played(used, seed=8, steps=40)  # moves the objects
    seen, rewards = played(fresh, seed=3, steps=25)
    again, same = played(used, seed=3, steps=25)
    np.testing.assert_array_equal(seen, again)
    assert rewards == same


def test_every_seed_has_its_own_goal_and_hand(plate: MetaWorldEnv) -> None:
    seen = np.stack([plate.reset(seed=seed)[0] for seed in range(20)])
    assert len(np.unique(seen[:, :3], axis=0)) == len(np.unique(seen[:, -3:], axis=0)) == 20
    usual = np.array([0.0, 0.6, 0.2])
    assert (abs(seen[:, :3] - usual) <= [0.26, 0.16, 0.21]).all()
    assert (np.ptp(seen[:, :3], axis=0) > [0.25, 0.15, 0.15]).all()


def test_the_hand_stays_where_the_task_puts_it() -> None:
    env = MetaWorldEnv(randomize_hand=False)
    hands = np.stack([env.reset(seed=seed)[0][:3] for seed in range(4)])
    np.testing.assert_allclose(hands, hands[:1].repeat(4, 0), atol=1e-4)


def test_resets_without_a_seed_go_on_with_the_random_numbers(plate: MetaWorldEnv) -> None:
    first = plate.reset(seed=5)[0]
    second = plate.reset()[0]
    assert not np.array_equal(first, second)
    plate.reset(seed=5)
    np.testing.assert_array_equal(second, plate.reset()[0])


@pytest.mark.parametrize("task", ["plate-slide", "sweep-into"])
def test_the_goal_is_seen_in_every_step(task: str) -> None:
    env = MetaWorldEnv(task)
    seen, _ = played(env, seed=1, steps=5)
    goal = env._physics._target_pos.astype(np.float32)
    assert goal.any()
    np.testing.assert_array_equal(seen[:, -3:], goal[None].repeat(6, 0))


def test_observations_are_meta_worlds_without_the_hand_of_the_step_before(plate: MetaWorldEnv) -> None:
    seen, _ = played(plate, seed=2, steps=12)
    objects, before = seen[:, 4:18], seen[:, 18:32]
    np.testing.assert_array_equal(before[1:], objects[:-1])
    np.testing.assert_array_equal(before[0], objects[0])


def test_rewards_are_a_tenth_of_meta_worlds(plate: MetaWorldEnv) -> None:
    plate.reset(seed=0)
    action = np.array([0.3, -0.2, 0.5, 1.0], np.float32)
    _, reward, terminated, truncated, info = plate.step(action)
    full = plate._physics._last_stable_obs
    assert reward == pytest.approx(plate._physics.compute_reward(action, full)[0] / 10)
    assert (terminated, truncated, info) == (False, False, {"success": False})


def test_episodes_are_truncated() -> None:
    env = MetaWorldEnv(max_steps=3)
    env.reset(seed=0)
    ends = [env.step(np.zeros(4, np.float32))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


@pytest.mark.parametrize("task", ["button-press", "door-open", "drawer-open", "plate-slide"])
def test_the_expert_succeeds_and_success_ends_the_episode_with_reward_one(task: str) -> None:
    env = MetaWorldEnv(task, success_reward=True)
    expert = scripted_expert(task)
    returns = []
    for seed in range(2):
        observation, _ = env.reset(seed=seed)
        rewards, over = [], False
        while not over:
            observation, reward, terminated, truncated, info = env.step(expert(observation))
            rewards.append(reward)
            over = terminated or truncated
            assert info["success"] == terminated == (reward == 1)
        returns.append(sum(rewards))
    assert returns == [1, 1]


def test_the_expert_is_a_function_of_the_recorded_observation(plate: MetaWorldEnv) -> None:
    seen, _ = played(plate, seed=4, steps=30)
    recorded = seen.copy()
    expert = scripted_expert("plate-slide")
    once = [expert(row) for row in seen]
    np.testing.assert_array_equal(seen, recorded)  # it does not write into them
    np.testing.assert_array_equal(once, [expert(row) for row in seen])
    assert (np.abs(once) <= 1).all()


def test_it_is_a_world() -> None:
    world = make_world("decisionrl/PlateSlide-v0", num_envs=2, options={"max_steps": 4})
    observation = world.reset([0, 1])
    assert isinstance(observation, torch.Tensor)
    assert observation.shape == (2, 35)
    for _ in range(4):
        step = world.step(torch.zeros(2, 4))
    assert step.truncated.all()
    assert step.over == [0, 1]


def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match=r"task = 'plate-glide'; valid: .*plate-slide, "):
        MetaWorldEnv("plate-glide")
    with pytest.raises(ValueError, match="task = 'glide'"):
        scripted_expert("glide")
    with pytest.raises(ValueError, match="max_steps = 0"):
        MetaWorldEnv(max_steps=0)


def test_a_missing_meta_world_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld", None)
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(ImportError, match=r"pip install 'decisionrl\[robotics\]'"):
        MetaWorldEnv()
