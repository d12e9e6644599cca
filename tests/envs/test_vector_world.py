"""Vector environments in all autoreset modes, against single environments stepped by hand."""

import gymnasium
import numpy as np
import pytest
import torch
from counting_envs import Broken, Counting, Noisy, Sampled
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from decisionrl import checkpoint
from decisionrl.envs.make import make_world
from decisionrl.envs.vector_world import VectorWorld
from decisionrl.envs.world import EnvironmentFault, UnsupportedSpaceError

MODES = list(AutoresetMode)
DISABLED = AutoresetMode.DISABLED


def vector(make=Counting, mode=DISABLED, num_envs=3, kind=SyncVectorEnv, **keywords):
    return VectorWorld(kind([make] * num_envs, autoreset_mode=mode, **keywords), name="Test")


def steps_by_hand(seeds, restarts, actions, mode):
    """What a world of Counting environments should return: rows (observation, reward, terminated, truncated, skipped).

    restarts: seeds of later episodes in DISABLED mode; in the others the environments draw them.
    """
    envs, over = [Counting() for _ in seeds], [False] * len(seeds)
    for env, seed in zip(envs, seeds, strict=True):
        env.reset(seed=seed)
    for action in actions:
        rows, before = [], []
        for i, env in enumerate(envs):
            if over[i] and mode == AutoresetMode.NEXT_STEP:
                rows.append((env.reset()[0], 0.0, False, False, True))
            else:
                rows.append((*env.step(action[i])[:4], False))
            over[i] = rows[i][2] or rows[i][3]
            if over[i] and mode == AutoresetMode.SAME_STEP:
                env.reset()
        for i, env in enumerate(envs):
            if over[i] and mode == DISABLED:
                env.reset(seed=next(restarts))
            before.append(env.observed(0) if env.time == 0 else rows[i][0])
        yield rows, before


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", MODES)
def test_every_step_is_that_of_single_environments(mode, kind):
    world = vector(mode=mode, kind=kind, copy=False)
    assert world.seedable == (mode == DISABLED)
    assert world.reset([5, 6, 7]).tolist() == [[5, 0, 0], [6, 0, 0], [7, 0, 0]]
    seeds = iter(range(100, 200))
    actions = [[t % 3, (t + 1) % 3, 0] for t in range(25)]
    by_hand = steps_by_hand([5, 6, 7], iter(range(100, 200)), actions, mode)
    for action, (rows, before) in zip(actions, by_hand, strict=True):
        step = world.step(torch.tensor(action))
        np.testing.assert_array_equal(step.observation, [row[0] for row in rows])
        np.testing.assert_array_equal(step.reward, [row[1] for row in rows])
        np.testing.assert_array_equal(step.terminated, [row[2] for row in rows])
        np.testing.assert_array_equal(step.truncated, [row[3] for row in rows])
        assert step.over == [i for i, row in enumerate(rows) if row[2] or row[3]]
        skipped = [row[4] for row in rows]
        assert step.skipped.tolist() == skipped if any(skipped) else step.skipped is None
        following = step.observation
        if step.over:
            following = world.restart(step.over, [next(seeds) for _ in step.over])
        np.testing.assert_array_equal(following, before)
    world.close()


def test_native_vector_environments():
    world = make_world(gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point"))
    assert not world.seedable
    assert isinstance(world.env.unwrapped, CartPoleVectorEnv)
    env = gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point")
    np.testing.assert_array_equal(world.reset([3, 0, 0, 0]), env.reset(seed=3)[0])
    ended, skips = np.zeros(4, bool), 0
    for t in range(80):
        action = np.array([0, 1, t % 2, 1])
        step, outcome = world.step(torch.as_tensor(action)), env.step(action)
        for tensor, array in zip(step[:4], outcome[:4], strict=True):
            np.testing.assert_array_equal(tensor, array)
        assert step.skipped is None or step.skipped.tolist() == ended.tolist()
        assert (step.skipped is not None) == ended.any()
        ended = outcome[2] | outcome[3]
        skips += ended.sum()
        assert world.restart(step.over, [0] * len(step.over)).tolist() == step.observation.tolist()
    assert skips > 5


@pytest.mark.parametrize("mode", MODES)
def test_dict_observations_keep_their_final_one(mode):
    space = spaces.Dict({"a": spaces.Box(0, 255, (2,), np.uint8), "b": spaces.Discrete(3, start=1)})
    reference = make_world(Ending, num_envs=2, options={"space": space})
    world = vector(lambda: Ending(space), mode, num_envs=2)
    want, have = reference.reset([0, 1]), world.reset([0, 1])
    for t in range(3):
        assert {key: value.tolist() for key, value in have.items()} == {k: v.tolist() for k, v in want.items()}
        assert {key: value.dtype for key, value in have.items()} == {"a": torch.uint8, "b": torch.int64}
        step, other = world.step(torch.zeros(2, dtype=torch.long)), reference.step(torch.zeros(2, dtype=torch.long))
        have, want = step.observation, other.observation
        assert step.over == other.over == ([0, 1] if t == 2 else [])


class Ending(Sampled):
    """Ends after three steps."""

    def __init__(self, space):
        super().__init__(space)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return super().reset(seed=seed)

    def step(self, action):
        self.time += 1
        observation, reward, *_ = super().step(action)
        return observation, reward, False, self.time == 3, {}


def test_idle_copies_whose_episode_is_over():
    world = vector()
    world.reset([0, 3, 3])
    nothing = torch.zeros(3, dtype=torch.long)
    for _ in range(3):
        step = world.step(nothing)
    assert step.over == [0]
    for _ in range(2):
        step = world.step(nothing, idle=[0])
    assert step.over == [1, 2]
    assert step.observation[2].tolist() == [3, 5, 0]
    for _ in range(4):
        assert 0 not in world.step(nothing, idle=[0, 1, 2]).over


def test_box_actions_are_clipped_and_the_callers_tensor_is_not_kept():
    world = vector(Noisy, num_envs=2)
    world.reset([0, 1])
    action = torch.tensor([[-3.0], [0.5]])
    world.step(action)
    action.zero_()
    assert [actions.tolist() for actions in world.state_dict()["actions"]] == [[[-1.0]], [[0.5]]]
    with pytest.raises(ValueError, match=r"Test: action has shape \[2\]; valid: \[2, 1\]"):
        world.step(torch.zeros(2))


class Walks(Noisy):
    """Random walks of three to six steps."""

    def step(self, action):
        observation, reward, *_ = super().step(action)
        return observation, reward, self.time >= 6, self.time >= 3 and self.position > 0, {}


def walked(world, steps, generator):
    """What a world of Walks goes through, one entry a step: what it looks like before the next, and rewards."""
    seen = []
    for _ in range(steps):
        step = world.step(torch.rand(world.num_envs, 1, generator=generator))
        seeds = torch.randint(1000, (len(step.over),), generator=generator).tolist()
        following = world.restart(step.over, seeds) if step.over else step.observation
        seen.append(torch.cat([following[:, 0], step.reward]))
    return seen


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("steps", [0, 1, 3, 4, 5, 17])
def test_a_saved_world_goes_on_bit_for_bit(kind, steps, tmp_path):
    generator, same = torch.Generator().manual_seed(steps), torch.Generator()
    world, other = vector(Walks, kind=kind), vector(Walks, kind=kind)
    observation = world.reset([1, 2, 3])[:, 0]
    observation = [observation, *walked(world, steps, generator)][-1][:3]
    checkpoint.save(tmp_path / "world", world.state_dict())
    same.set_state(generator.get_state())
    assert torch.equal(other.load_state_dict(checkpoint.load(tmp_path / "world"))[:, 0], observation)
    assert torch.equal(torch.stack(walked(world, 20, generator)), torch.stack(walked(other, 20, same)))
    for each in (world, other):
        each.close()


def test_worlds_that_cannot_be_saved():
    assert vector(mode=AutoresetMode.NEXT_STEP).state_dict() is None
    assert vector(mode=AutoresetMode.SAME_STEP).state_dict() is None
    with pytest.raises(ValueError, match="num_envs = 3; the saved world has 2"):
        vector().load_state_dict(vector(num_envs=2).state_dict())


# ---------------------------------------------------------------------------------------- broken environments


class Scripted(VectorEnv):
    """A native vector environment that behaves, but for what ``faults`` replaces in an outcome."""

    def __init__(self, mode=AutoresetMode.NEXT_STEP, space=None, faults=None):
        self.metadata = {"autoreset_mode": mode}
        self.num_envs, self.faults = 2, faults or {}
        self.single_observation_space = spaces.Box(-1, 1, (2,), np.float32) if space is None else space
        self.single_action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.faults.get("observation", np.zeros((2, 2), np.float32)), {}

    def step(self, actions):
        outcome = {
            "observation": np.zeros((2, 2), np.float32),
            "reward": np.zeros(2),
            "terminated": np.zeros(2, bool),
            "truncated": np.zeros(2, bool),
            "info": {},
        } | self.faults
        return tuple(value for value in outcome.values() if value is not ...)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"reward": np.array([0.0, np.nan])}, "step 1: copy 1, reward is nan; valid: a finite number"),
        ({"reward": np.zeros((2, 1))}, r"step 1: reward has shape \(2, 1\); valid: \(2,\)"),
        ({"reward": None}, r"step 1: reward has shape \(\)"),
        ({"terminated": np.zeros(2)}, "step 1: terminated has dtype float64; valid: bool"),
        ({"truncated": [None, False]}, "step 1: truncated has dtype object; valid: bool"),
        ({"observation": np.zeros((2, 3), np.float32)}, r"reset: observation has shape \(2, 3\); valid: \(2, 2\)"),
        (
            {"observation": np.full((2, 2), np.nan)},
            r"reset: copy 0, observation is \[nan, nan\]; valid: finite numbers",
        ),
        ({"observation": np.zeros((2, 2), complex)}, "reset: observation has dtype complex128; valid: float32"),
        ({"info": ...}, r"step 1: step\(\) returned tuple; valid: a tuple of 5"),
    ],
)
def test_a_broken_vector_environment_is_named(faults, message):
    world = VectorWorld(Scripted(faults=faults), name="Test")
    with pytest.raises(EnvironmentFault, match=f"^Test, {message}"):
        world.reset([0, 1]), world.step(torch.zeros(2, dtype=torch.long))


def test_same_step_without_the_final_observation():
    world = VectorWorld(Scripted(AutoresetMode.SAME_STEP, faults={"terminated": np.ones(2, bool)}), name="Test")
    world.reset([0, 1])
    with pytest.raises(EnvironmentFault, match="step 1: info has no 'final_obs'"):
        world.step(torch.zeros(2, dtype=torch.long))


def test_discrete_observations_out_of_range_and_dicts_with_other_keys():
    world = VectorWorld(Scripted(space=spaces.Discrete(3), faults={"observation": np.array([0, 3])}), name="Test")
    with pytest.raises(EnvironmentFault, match="copy 1, observation is 3; valid: from 0 to 2"):
        world.reset([0, 1])
    world = VectorWorld(Scripted(space=spaces.Dict(a=spaces.Discrete(3))), name="Test")
    with pytest.raises(EnvironmentFault, match=r"observation is no dict with the keys \['a'\]"):
        world.reset([0, 1])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium prints the traceback of a worker
def test_an_exception_in_a_worker_names_the_copy():
    makers = [Broken, lambda: Broken({2: lambda outcome: 1 / 0})]
    world = VectorWorld(AsyncVectorEnv(makers, autoreset_mode=DISABLED), name="Test")
    world.reset([0, 1])
    world.step(torch.zeros(2, dtype=torch.long))
    with pytest.raises(EnvironmentFault, match=r"^Test, step 2: copy 1, step\(\) raised ZeroDivisionError"):
        world.step(torch.zeros(2, dtype=torch.long))
    world.close()


def test_the_autoreset_mode_must_be_told():
    assert VectorWorld(Scripted("SameStep"), name="Test").mode == AutoresetMode.SAME_STEP
    for mode in (None, "soon"):
        with pytest.raises(ValueError, match=r"Test: metadata\['autoreset_mode'\] = .*; valid: .*NEXT_STEP"):
            VectorWorld(Scripted(mode), name="Test")
    with pytest.raises(UnsupportedSpaceError, match="Test: observation_space is Text"):
        VectorWorld(Scripted(space=spaces.Text(2)), name="Test")
