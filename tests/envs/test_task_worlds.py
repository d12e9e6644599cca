"""Families of tasks as worlds and Gymnasium environments: who gets which task, when episodes end, what is saved."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from decisionrl.envs.gridworld import FAMILIES, TaskWorld, darkroom, made_family
from decisionrl.envs.gridworld.gymnasium import TaskEnv, TaskVectorEnv
from decisionrl.envs.make import make_world
from decisionrl.envs.registration import TASK_FAMILIES

SMALL: dict[str, dict[str, Any]] = {
    "darkroom": {"size": 4, "horizon": 7, "start": "random"},
    "darkroom_permuted": {"size": 3, "horizon": 6},
    "darkroom_large": {"size": 5, "horizon": 8, "reward_once": True},
    "dark_key_to_door": {"size": 3, "horizon": 9, "start": "random"},
    "hidden_reach": {"tasks": 10, "horizon": 5},
    "bandit": {"tasks": 10, "horizon": 5, "noise": 0.0},
}


def made(family: str, copies: int, **options: Any) -> TaskWorld:
    world = TaskWorld(family, num_envs=copies, **SMALL[family], **options)
    world.reset(range(copies))
    return world


def random_actions(world: TaskWorld, steps: int, seed: int = 0) -> list[torch.Tensor]:
    space = gymnasium.vector.utils.batch_space(world.action_space, world.num_envs)
    space.seed(seed)
    return [torch.as_tensor(space.sample()) for _ in range(steps)]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_episode_does_not_depend_on_the_other_copies(family):
    many = made(family, 9)
    first, tasks, actions = many.observation, many.task, random_actions(many, many.max_steps)
    steps = [many.step(action) for action in actions]
    for i in (0, 4, 8):
        one = TaskWorld(family, num_envs=1, **SMALL[family])
        assert torch.equal(one.reset([i])[0], first[i])
        assert one.task == tasks[i]
        for action, step in zip(actions, steps, strict=True):
            alone = one.step(action[[i]])
            torch.testing.assert_close(alone.observation[0], step.observation[i])
            torch.testing.assert_close(alone.reward[0], step.reward[i])
    assert len(set(many.reset(range(100, 109)).flatten().tolist() + many.task.tolist())) > 3
    assert not torch.equal(many.task, tasks)


@pytest.mark.parametrize("family", FAMILIES)
def test_episodes_are_truncated_at_the_horizon(family):
    world = made(family, 3)
    for t, action in enumerate(random_actions(world, world.family.horizon), start=1):
        step = world.step(action, idle=[1])
        last = t == SMALL[family]["horizon"]
        assert step.truncated.tolist() == [last] * 3
        assert not step.terminated.any()
        assert step.over == ([0, 2] if last else [])
        assert step.skipped is None


def test_some_copies_begin_anew_while_the_others_go_on():
    world, other = made("darkroom", 4), made("darkroom", 4)
    other.reset([0, 8, 2, 9])
    actions = random_actions(world, 7)
    for action in actions[:4]:
        last = world.step(action)
    restarted = world.restart([3, 1], [9, 8])
    assert torch.equal(restarted[[1, 3]], other.observation[[1, 3]])
    assert torch.equal(restarted[[0, 2]], last.observation[[0, 2]])
    assert torch.equal(world.task[[1, 3]], other.task[[1, 3]])
    for t, action in enumerate(actions[4:]):
        step, wanted = world.step(action), other.step(action)
        assert torch.equal(step.observation[[1, 3]], wanted.observation[[1, 3]])
        assert step.truncated.tolist() == [t == 2, False] * 2


def test_tasks_are_drawn_uniformly_from_their_part():
    family = darkroom()
    train, test = family.split()
    for among, ids in (("all", torch.arange(81)), ("train", train), ("test", test)):
        world = TaskWorld(family, num_envs=200 * len(ids), among=among)
        world.reset(range(200 * len(ids)))
        count = world.task.bincount(minlength=81)
        assert (count > 0).nonzero().flatten().tolist() == sorted(ids.tolist())
        assert ((count[ids] - 200).abs() < 5 * 200**0.5).all()


def test_tasks_that_are_given_stay():
    world = made("darkroom", 3, task=[5, 5, 11])
    assert world.task.tolist() == [5, 5, 11]
    world.restart([2, 0], [7, 8])
    assert world.task.tolist() == [5, 5, 11]
    assert made("darkroom", 2, task=15).task.tolist() == [15, 15]
    assert made("darkroom", 2, task=torch.tensor([3, 4])).task.tolist() == [3, 4]
    assert made("darkroom", 2, task=np.int64(3)).task.tolist() == [3, 3]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expert_earns_the_largest_return(family):
    options = SMALL[family] | ({"start": "center"} if "start" in SMALL[family] else {})
    world = TaskWorld(family, num_envs=30, **options)
    world.reset(range(30))
    total = torch.zeros(30)
    for _ in range(world.max_steps):
        total += world.step(world.family.optimal_action(world.state, world.task)).reward
    torch.testing.assert_close(total, world.family.max_return[world.task])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_world_goes_on_as_it_was(family, tmp_path):
    world = made(family, 6)
    actions = random_actions(world, world.max_steps)
    for action in actions[:3]:
        world.step(action)
    torch.save(world.state_dict(), tmp_path / "world.pt")
    wanted = [world.step(action) for action in actions[3:]]
    other = made(family, 6)
    other.reset(range(50, 56))
    other.load_state_dict(torch.load(tmp_path / "world.pt", weights_only=True))
    for action, step in zip(actions[3:], wanted, strict=True):
        for got, want in zip(other.step(action), step, strict=True):
            assert torch.equal(got, want) if isinstance(got, torch.Tensor) else got == want
    assert torch.equal(other.task, world.task)
    with pytest.raises(ValueError, match="num_envs = 3; the saved world has 6"):
        made(family, 3).load_state_dict(world.state_dict())


@pytest.mark.parametrize(("identifier", "family"), TASK_FAMILIES.items())
def test_gymnasium_finds_nothing_wrong(identifier, family):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*not having a spec.*|.*unbounded|.*infinity.*")
        check_env(gymnasium.make(identifier, **SMALL[family]).unwrapped, skip_render_check=True)
    world = make_world(identifier, num_envs=7, options=SMALL[family])
    assert isinstance(world, TaskWorld)
    assert world.name == world.family.name == family
    for observation in world.reset(range(7)):
        assert world.observation_space.contains(observation.numpy().astype(world.observation_space.dtype))


def test_ids_have_the_settings_of_the_papers():
    sizes = {identifier: gymnasium.make(identifier).unwrapped.world for identifier in TASK_FAMILIES}
    found = {
        name: (int(world.observation_space.high.max()), world.max_steps)
        for name, world in sizes.items()
        if "Dark" in name
    }
    assert found == {
        "decisionrl/Darkroom-v0": (8, 20),
        "decisionrl/DarkroomPermuted-v0": (8, 50),
        "decisionrl/DarkroomLarge-v0": (14, 50),
        "decisionrl/DarkKeyToDoor-v0": (8, 50),
    }
    assert sizes["decisionrl/HiddenReach-v0"].max_steps == 50


@pytest.mark.parametrize("family", FAMILIES)
def test_the_single_environment_plays_the_same_episodes(family):
    world = made(family, 4)
    first, actions = world.observation, random_actions(world, world.max_steps)
    tasks, steps, successes = world.task, [], []
    for action in actions:
        steps.append(world.step(action))
        successes.append(world.success)
    env = TaskEnv(family, **SMALL[family])
    for i in range(4):
        observation, info = env.reset(seed=i)
        assert observation.tolist() == first[i].tolist()
        assert info["task"] == tasks[i]
        for action, step, success in zip(actions, steps, successes, strict=True):
            observation, reward, terminated, truncated, info = env.step(action[i].numpy())
            assert env.observation_space.contains(observation)
            np.testing.assert_allclose(observation, step.observation[i], rtol=1e-6)
            assert reward == pytest.approx(float(step.reward[i]), rel=1e-5)
            assert (terminated, truncated) == (False, bool(step.truncated[i]))
            assert info == {"task": int(tasks[i]), "success": bool(success[i])}
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(actions[0][i].numpy())
    with pytest.raises(gymnasium.error.ResetNeeded):
        TaskEnv(family).step(env.action_space.sample())


def test_resets_without_a_seed_draw_new_tasks():
    env = TaskEnv("darkroom")
    env.reset(seed=1)
    drawn = [env.reset()[1]["task"] for _ in range(20)]
    env.reset(seed=1)
    assert [env.reset()[1]["task"] for _ in range(20)] == drawn
    assert len(set(drawn)) > 10


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_vector_environment_begins_anew(mode):
    options = SMALL["darkroom"]
    made_by_id = gymnasium.make_vec("decisionrl/Darkroom-v0", num_envs=3, vectorization_mode="vector_entry_point")
    assert isinstance(made_by_id.unwrapped, TaskVectorEnv)
    envs = TaskVectorEnv("darkroom", num_envs=5, autoreset_mode=mode, **options)
    singles = [TaskEnv("darkroom", **options) for _ in range(5)]
    seen, info = envs.reset(seed=3)
    assert envs.observation_space.contains(seen)
    rows = [env.reset(seed=3 + i) for i, env in enumerate(singles)]
    assert np.array_equal(seen, np.stack([row[0] for row in rows]))
    tasks = info["task"].tolist()
    assert tasks == [row[1]["task"] for row in rows]
    envs.action_space.seed(0)
    for t in range(1, 8):
        action = envs.action_space.sample()
        seen, reward, terminated, truncated, info = envs.step(action)
        rows = [env.step(each) for env, each in zip(singles, action, strict=True)]
        final = info["final_obs"] if t == 7 and mode == AutoresetMode.SAME_STEP else seen
        for i, (observation, wanted, *flags, _) in enumerate(rows):
            assert np.array_equal(final[i], observation)
            assert (reward[i], terminated[i], truncated[i]) == (wanted, *flags)
        assert truncated.all() == (t == 7)
    if mode == AutoresetMode.SAME_STEP:
        assert info["final_info"]["task"].tolist() == tasks
        assert info["_final_obs"].all()
    else:
        assert info["task"].tolist() == tasks
        seen, reward, terminated, truncated, info = envs.step(action)
        for nothing in (reward, terminated, truncated):
            assert not nothing.any()
    assert info["task"].tolist() != tasks
    for t in range(1, 8):
        truncated = envs.step(envs.action_space.sample())[3]
        assert truncated.all() == (t == 7)


def test_what_is_not_valid():
    with pytest.raises(ValueError, match="family = 'maze'; valid: darkroom, "):
        TaskWorld("maze")
    with pytest.raises(ValueError, match=r"options = {'size': 3}; valid with a family that is made already: none"):
        TaskWorld(darkroom(), size=3)
    with pytest.raises(TypeError, match="sise"):
        made_family("darkroom", {"sise": 3})
    with pytest.raises(ValueError, match="num_envs = 0; valid: a whole number >= 1"):
        TaskWorld("darkroom", num_envs=0)
    with pytest.raises(ValueError, match="among = 'valid'; valid: all, train, test"):
        TaskWorld("darkroom", among="valid")
    with pytest.raises(ValueError, match="task = 3, among = 'test'; valid: at most one"):
        TaskWorld("darkroom", task=3, among="test")
    for task in (-1, 81, [0, 81]):
        with pytest.raises(ValueError, match="valid: from 0 to 80"):
            TaskWorld("darkroom", num_envs=2, task=task)
    with pytest.raises(ValueError, match=r"task has shape \[3\]; valid: one id, or \[2\]"):
        TaskWorld("darkroom", num_envs=2, task=[0, 1, 2])
    with pytest.raises(ValueError, match=r"task = 1\.5; valid: whole numbers"):
        TaskWorld("darkroom", task=1.5)
    for max_steps in (0, 21):
        with pytest.raises(ValueError, match=f"max_steps = {max_steps}; valid: from 1 to horizon = 20"):
            TaskWorld("darkroom", max_steps=max_steps)
    world = TaskWorld("darkroom", num_envs=2)
    with pytest.raises(ValueError, match="1 seeds; valid: 2"):
        world.reset([0])
    with pytest.raises(ValueError, match=r"action has shape \[3\]; valid: \[2\]"):
        world.step(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"action has dtype torch.float32; valid: torch.int64"):
        world.step(torch.zeros(2))
    env = TaskEnv("darkroom")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"darkroom: action = 5; valid: an element of Discrete\(5\)"):
        env.step(5)
    envs = TaskVectorEnv("darkroom", num_envs=2)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"action = \[0, -1\]; valid"):
        envs.step(np.array([0, -1]))
    with pytest.raises(ValueError, match="DISABLED"):
        TaskVectorEnv("darkroom", autoreset_mode="Disabled")


def test_max_steps_cut_episodes_short():
    world = make_world("decisionrl/Darkroom-v0", num_envs=2, max_steps=3)
    world.reset([0, 1])
    assert [world.step(torch.zeros(2, dtype=torch.int64)).over for _ in range(3)] == [[], [], [0, 1]]
