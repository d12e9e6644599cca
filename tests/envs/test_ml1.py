"""Meta-World ML1: its instances, what is seen of them, and that episodes are Meta-World's."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

import decisionrl.envs
from decisionrl.envs.robotics import ml1
from decisionrl.envs.robotics.ml1 import ML1Env

metaworld = pytest.importorskip("metaworld")

decisionrl.envs.register_envs()

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (100, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def reach() -> ML1Env:
    return ML1Env(index=3)


def played(env: ML1Env, actions: NDArray[np.float32] = ACTIONS) -> tuple[NDArray[np.float32], list[float]]:
    seen, rewards = [env.reset(seed=0)[0]], []
    for action in actions:
        observation, reward, *_ = env.step(action)
        seen.append(observation)
        rewards.append(reward)
    return np.stack(seen), rewards


def test_it_is_a_gymnasium_environment() -> None:
    env = gymnasium.make("decisionrl/ML1-v0", task="reach-v3", index=49, split="test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*Box observation space m.*|.*not having a spec.*|.*unwrapped.*")
        check_env(env.unwrapped, skip_render_check=True)


def test_the_id_does_not_import_meta_world() -> None:
    script = "import sys, decisionrl.envs.robotics.ml1; sys.exit('metaworld' in sys.modules or 'mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_instances_are_those_of_the_benchmark_and_all_differ() -> None:
    benchmark = metaworld.ML1("reach-v3", seed=0)
    physics = benchmark.train_classes["reach-v3"]()
    placed = []  # where object and goal are
    for instance in [*benchmark.train_tasks, *benchmark.test_tasks]:
        physics.set_task(instance)
        placed.append(physics._last_rand_vec)
    assert np.unique(placed, axis=0).shape == (100, 6)
    for number, options in ((49, {"index": 49}), (50, {"index": 0, "split": "test"})):
        env = ML1Env("reach", **options)
        seen, _ = env.reset()
        np.testing.assert_allclose(seen[4:6], placed[number][:2], atol=1e-6)
        np.testing.assert_array_equal(env._physics._target_pos, placed[number][3:])
    env = ML1Env("reach", seed=5)
    env.reset()
    assert not np.isin(env._physics._target_pos, placed).any()


def test_an_instance_stays_the_same_whatever_the_seed_of_an_episode(reach: ML1Env) -> None:
    first, second, third = (reach.reset(seed=seed)[0] for seed in (1, 2, None))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)


@pytest.mark.parametrize(("task", "size"), [("reach", 11), ("stick-pull-v3", 18)])
def test_an_episode_is_meta_worlds(task: str, size: int) -> None:
    """Those of a fresh environment of Meta-World's own; rewards may depend on where exactly the hand came to rest."""
    env = ML1Env(task, index=3)
    benchmark = ml1._benchmark(env.task, 0)
    raw = benchmark.train_classes[f"{env.task}-v3"]()
    raw.set_task(benchmark.train_tasks[3])
    seen, rewards = played(env)
    wanted, wanted_rewards = [raw.reset()[0]], []
    for action in ACTIONS:
        observation, reward, *_ = raw.step(action)
        wanted.append(observation)
        wanted_rewards.append(reward)
    assert seen.shape == (101, size)
    np.testing.assert_allclose(seen, np.stack(wanted)[:, :size], atol=1e-6)
    np.testing.assert_allclose(rewards, wanted_rewards, atol=1e-12 if task == "reach" else 1e-4)


@pytest.mark.parametrize("task", ["reach", "drawer-open"])
def test_an_episode_depends_on_its_actions_alone(task: str) -> None:
    used, fresh = ML1Env(task, index=1), ML1Env(task, index=1)
    played(used, np.tile(np.float32([0, 1, -1, 1]), (60, 1)))  # moves the objects
    for left, right in zip(played(used), played(fresh), strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_goal_is_rewarded_and_not_seen(reach: ML1Env) -> None:
    seen, rewards = played(reach, ACTIONS[:20])
    reach.reset()
    goal = reach._physics._target_pos.copy()
    moved, other = [], []
    for action in ACTIONS[:20]:
        reach._physics._target_pos = goal + np.array([0.0, 0.05, 0.0])
        observation, reward, *_ = reach.step(action)
        moved.append(observation)
        other.append(reward)
    np.testing.assert_array_equal(seen[1:], np.stack(moved))
    assert (np.array(rewards) != np.array(other)).all()
    assert not np.isin(goal.astype(np.float32), seen).any()


def test_success_is_told_and_ends_nothing(reach: ML1Env) -> None:
    observation, info = reach.reset()
    assert info == {"success": False}
    goal, successes, rewards, ends = reach._physics._target_pos, [], [], []
    for _ in range(100):
        move = np.clip(25 * (goal - observation[:3]), -1, 1)
        observation, reward, terminated, truncated, info = reach.step(np.float32([*move, 0]))
        assert set(info) == {"success"}
        assert isinstance(info["success"], bool)
        successes.append(info["success"])
        rewards.append(reward)
        ends.append((terminated, truncated))
    assert successes[0] is False
    assert successes[-1] is True
    assert max(rewards) == pytest.approx(10)  # Meta-World's largest
    assert ends == [(False, False)] * 99 + [(False, True)]


def test_episodes_are_truncated() -> None:
    env = ML1Env(max_steps=3)
    env.reset()
    assert [env.step(ACTIONS[0])[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "reech"}, "task = 'reech'; did you mean 'reach'[?] valid: assembly, basketball, "),
        ({"task": "reach-v2"}, "task = 'reach-v2'; did you mean 'reach'[?]"),
        ({"index": 50}, "index = 50; valid: from 0 to 49"),
        ({"index": -1}, "index = -1; valid: from 0 to 49"),
        ({"split": "validation"}, "split = 'validation'; valid: train, test"),
        ({"seed": -1}, "seed = -1; valid: from 0 to 4294967294"),
        ({"max_steps": 0}, "max_steps = 0; valid: a whole number >= 1"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ML1Env(**options)


def test_a_missing_meta_world_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ml1._benchmark.cache_clear()
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(ImportError, match=r"pip install 'decisionrl\[robotics\]'"):
        ML1Env()
