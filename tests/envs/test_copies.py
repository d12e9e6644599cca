"""Copies against single environments stepped by hand; saved states; environments that break the interface."""

import numpy as np
import pytest
import torch
from counting_envs import Broken, Counting, Noisy, Sampled
from gymnasium import spaces

from decisionrl import checkpoint
from decisionrl.envs.copies import Copies
from decisionrl.envs.make import make_world
from decisionrl.envs.world import EnvironmentFault, UnsupportedSpaceError


def copies(make, num_envs=2, **keywords):
    return Copies(make, num_envs, name="Test", **keywords)


def test_every_step_is_that_of_single_environments():
    world, singles = copies(Counting, 3), [Counting() for _ in range(3)]
    observation = world.reset([5, 6, 7])
    assert observation.dtype == torch.float32
    rows = [env.reset(seed=seed)[0] for env, seed in zip(singles, (5, 6, 7), strict=True)]
    seeds = iter(range(100, 200))
    for t in range(20):
        np.testing.assert_array_equal(observation, rows)
        action = torch.tensor([t % 3, (t + 1) % 3, 0])
        step = world.step(action)
        outcomes = [env.step(a) for env, a in zip(singles, action.tolist(), strict=True)]
        rows = [outcome[0] for outcome in outcomes]
        for tensor, k in ((step.observation, 0), (step.reward, 1), (step.terminated, 2), (step.truncated, 3)):
            np.testing.assert_array_equal(tensor, [outcome[k] for outcome in outcomes])
        assert step.over == [i for i, outcome in enumerate(outcomes) if outcome[2] or outcome[3]]
        assert step.skipped is None
        observation = step.observation
        if step.over:
            fresh = [next(seeds) for _ in step.over]
            observation = world.restart(step.over, fresh)
            for i, seed in zip(step.over, fresh, strict=True):
                rows[i] = singles[i].reset(seed=seed)[0]


def test_idle_copies_are_left_alone():
    world = copies(Counting)
    world.reset([0, 3])
    for t in range(3):
        step = world.step(torch.zeros(2, dtype=torch.long), idle={1} if t else ())
    assert step.over == [0]
    assert step.observation.tolist() == [[0, 3, 0], [3, 1, 0]]
    assert world.step(torch.zeros(2, dtype=torch.long), idle=[0]).over == []


SPACES = {
    "vector": spaces.Box(-1, 1, (3,), np.float32),
    "double": spaces.Box(-1, 1, (2, 2), np.float64),
    "scalar": spaces.Box(-1, 1, (), np.float32),
    "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
    "integers": spaces.Box(-9, 9, (2,), np.int32),
    "discrete": spaces.Discrete(4, start=7),
    "multi_discrete": spaces.MultiDiscrete([3, 5], start=[1, -2]),
    "multi_binary": spaces.MultiBinary(6),
}
SPACES["dict"] = spaces.Dict({key: SPACES[key] for key in ("vector", "image", "discrete")})


@pytest.mark.parametrize("kind", SPACES)
def test_observations_of_every_kind(kind):
    space = SPACES[kind]
    world = copies(lambda: Sampled(space))
    for observation in (world.reset([3, 4]), world.step(torch.zeros(2, dtype=torch.long)).observation):
        pairs = (
            [(observation[key], key) for key in space.spaces]
            if isinstance(space, spaces.Dict)
            else [(observation, None)]
        )
        for tensor, key in pairs:
            last = [env.last if key is None else env.last[key] for env in world.envs]
            np.testing.assert_array_equal(tensor, np.asarray(last).astype(tensor.numpy().dtype))
            dtype = (space if key is None else space[key]).dtype
            floating = np.issubdtype(dtype, np.floating)
            assert tensor.dtype == (torch.float32 if floating else torch.uint8 if dtype == np.uint8 else torch.int64)


@pytest.mark.parametrize("kind", ["vector", "double", "integers", "discrete", "multi_discrete", "multi_binary"])
def test_actions_of_every_kind(kind):
    space = SPACES[kind]
    world = copies(lambda: Sampled(SPACES["vector"], space))
    world.reset([0, 1])
    space.seed(0)
    wanted = [space.sample(), space.sample()]
    action = torch.as_tensor(np.array(wanted))
    world.step(action)
    action.zero_()  # the tensor is the caller's
    for env, want in zip(world.envs, wanted, strict=True):
        np.testing.assert_array_equal(env.given[0], want)


def test_box_actions_are_clipped():
    world = copies(lambda: Sampled(SPACES["vector"], spaces.Box(np.float32([-1, 0]), np.float32([1, 2]))))
    world.reset([0, 1])
    world.step(torch.tensor([[-3.0, -3.0], [0.5, 9.0]]))
    assert [env.given[0].tolist() for env in world.envs] == [[-1.0, 0.0], [0.5, 2.0]]


def test_actions_of_another_shape_are_refused():
    world = copies(Noisy)
    world.reset([0, 1])
    with pytest.raises(ValueError, match=r"action has shape \[2\]; valid: \[2, 1\]"):
        world.step(torch.zeros(2))
    with pytest.raises(ValueError, match=r"action has shape \[3, 1\]"):
        world.step(torch.zeros(3, 1))


# ---------------------------------------------------------------------------------------------- saved states


def played(world, steps, seed, observation=None):
    """Observations and rewards of a world under random actions; episodes that end begin anew."""
    draw = np.random.default_rng(seed)
    world.action_space.seed(seed)
    seen = [] if observation is None else [observation.clone()]
    for _ in range(steps):
        step = world.step(torch.as_tensor(np.array([world.action_space.sample() for _ in range(world.num_envs)])))
        seen += [step.observation.clone(), step.reward.clone(), step.terminated.clone(), step.truncated.clone()]
        if step.over:
            seen.append(world.restart(step.over, draw.integers(2**31, size=len(step.over)).tolist()).clone())
    return seen


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("CartPole-v1", {}),
        ("Pendulum-v1", {}),
        ("FrozenLake-v1", {"is_slippery": True}),
        pytest.param("HalfCheetah-v5", {}, marks=pytest.mark.slow),
    ],
)
def test_a_saved_world_goes_on_bit_for_bit(name, options, tmp_path):
    world = make_world(name, num_envs=3, options=options)
    world.reset([1, 2, 3])
    played(world, 37, 0)
    checkpoint.save(tmp_path / "world", world.state_dict())
    other = make_world(name, num_envs=3, options=options)
    observation = other.load_state_dict(checkpoint.load(tmp_path / "world"))
    first, second = played(world, 60, 1), played(other, 60, 1, observation)[1:]
    assert len(first) == len(second)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_state_before_the_first_action_and_of_another_number_of_copies():
    world = copies(Noisy)
    observation = world.reset([1, 2]).clone()
    assert torch.equal(copies(Noisy).load_state_dict(world.state_dict()), observation)
    with pytest.raises(ValueError, match="num_envs = 3; the saved world has 2"):
        copies(Noisy, 3).load_state_dict(world.state_dict())


def test_a_branch_shares_the_past_and_has_noise_of_its_own():
    world, actions = copies(Noisy, 3), torch.tensor([[0.5], [-0.25], [1.0]])
    world.reset([9, 0, 0])
    for action in actions:
        original = world.step(action.expand(3, 1)).observation[0].clone()
    for i, noise in ((0, 1), (1, 1), (2, 2)):
        observation = world.branch(i, 9, actions, noise=noise)
    assert torch.equal(observation, original.expand(3, 1))
    later = world.step(torch.zeros(3, 1)).observation.clone()
    assert later[0] == later[1] != later[2]
    state = world.state_dict()
    following = world.step(torch.zeros(3, 1)).observation.clone()
    other = copies(Noisy, 3)
    assert torch.equal(other.load_state_dict(state), later)
    assert torch.equal(other.step(torch.zeros(3, 1)).observation, following)


# ---------------------------------------------------------------------------------------- broken environments


def replaced(k, value):
    return lambda outcome: (*outcome[:k], value, *outcome[k + 1 :])


def boom(outcome):
    raise KeyError("boom")


NAN = np.array([0.0, np.nan], np.float32)
DICT = spaces.Dict({"a": spaces.Box(-1, 1, (2,))})
BREAKS = [
    ({0: replaced(0, np.zeros(3, np.float32))}, None, r"observation has shape \(3,\); valid: \(2,\)"),
    ({3: replaced(0, np.zeros((2, 1), np.float32))}, None, r"observation has shape \(2, 1\); valid: \(2,\)"),
    ({3: replaced(0, [0.0, 0.0])}, None, "observation is a list of 2; valid: an element of Box"),
    ({3: replaced(0, None)}, None, "observation is None"),
    ({3: replaced(0, np.zeros(2, complex))}, None, "observation has dtype complex128; valid: float32"),
    ({3: replaced(0, np.array(["a", "b"]))}, None, "observation has dtype <U1"),
    ({0: replaced(0, 0.5)}, spaces.Discrete(3), "observation has dtype float64; valid: int64"),
    ({3: replaced(0, np.zeros((2, 2)))}, SPACES["image"], "observation has shape"),
    ({3: replaced(0, np.zeros((4, 4, 3)))}, SPACES["image"], "observation has dtype float64; valid: uint8"),
    ({0: replaced(0, NAN)}, None, r"observation is \[0.0, nan\]; valid: finite numbers"),
    ({3: replaced(0, NAN)}, None, r"observation is \[0.0, nan\]; valid: finite numbers"),
    ({3: replaced(0, np.float32([np.inf, 0]))}, None, r"observation is \[inf, 0.0\]"),
    ({3: replaced(0, 3)}, spaces.Discrete(3), "observation is 3; valid: from 0 to 2"),
    ({0: replaced(0, 1)}, spaces.Discrete(3, start=2), "observation is 1; valid: from 2 to 4"),
    (
        {3: replaced(0, np.array([0, 2]))},
        spaces.MultiDiscrete([2, 2]),
        r"observation is \[0, 2\]; valid: from \[0, 0\]",
    ),
    ({3: replaced(0, {"a": NAN})}, DICT, r"observation\['a'\] is \[0.0, nan\]"),
    ({3: replaced(0, {"b": NAN})}, DICT, r"observation is a dict with the keys \['b'\]; valid: .* keys \['a'\]"),
    ({3: replaced(0, np.zeros(2))}, DICT, "observation is an array"),
    ({0: lambda outcome: outcome[0]}, None, r"reset\(\) returned an array .*; valid: \(observation, info\)"),
    ({3: replaced(1, None)}, None, "reward is None; valid: a number"),
    ({3: replaced(1, np.ones(1))}, None, r"reward is an array of shape \(1,\)"),
    ({3: replaced(1, "1")}, None, "reward is '1'"),
    ({3: replaced(1, np.nan)}, None, "reward is nan; valid: a finite number"),
    ({3: replaced(1, -np.inf)}, None, "reward is -inf"),
    ({3: replaced(2, None)}, None, "terminated is None; valid: True or False"),
    ({3: replaced(3, 1)}, None, "truncated is 1; valid: True or False"),
    ({3: lambda outcome: outcome[:4]}, None, r"step\(\) returned a tuple of 4; valid: \(observation, reward, term"),
    ({0: boom}, None, "raised KeyError: 'boom'"),
    ({3: boom}, None, "raised KeyError: 'boom'"),
]


class Second(Broken):
    """Broken only where it was reset with the seed 1."""

    def reset(self, *, seed=None, options=None):
        self.afflicted = seed == 1
        return super().reset(seed=seed)

    def faulty(self, outcome):
        return super().faulty(outcome) if self.afflicted else outcome


@pytest.mark.parametrize(("faults", "space", "message"), BREAKS)
def test_a_broken_environment_is_named(faults, space, message):
    world = make_world(Second, num_envs=2, options={"faults": faults, "space": space})
    where = r"reset\(seed=1\)" if 0 in faults else r"step 3 of its episode, step\(0\)"
    with pytest.raises(EnvironmentFault, match=f"^Second, copy 1, {where}: {message}"):
        run(world)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium prints the traceback of a worker
@pytest.mark.parametrize("index", [0, 1, 10, 19, 24, -2, -1])
def test_a_broken_environment_is_named_from_its_worker(index):
    faults, space, message = BREAKS[index]
    world = make_world(Second, num_envs=2, workers=2, options={"faults": faults, "space": space})
    where = r"reset\(seed=1\)" if 0 in faults else r"step 3 of its episode, step\(.*0.*\)"
    with pytest.raises(EnvironmentFault, match=f"^Second, copy 1, {where}: {message}"):
        run(world)
    world.close()


def run(world):
    world.reset([0, 1])
    for _ in range(4):
        world.step(torch.zeros(2, dtype=torch.long))


def test_constructors_that_fail():
    def make():
        raise OSError("no display")

    with pytest.raises(EnvironmentFault, match="Test, copy 0: making it raised OSError: no display"):
        copies(make)
    with pytest.raises(EnvironmentFault, match=r"Test, copy 0: it is a dict; valid: a gymnasium\.Env"):
        copies(dict)


def test_copies_with_other_spaces():
    sizes = iter((2, 3))
    with pytest.raises(
        EnvironmentFault, match=r"Test, copy 1: observation_space is Discrete\(3\); valid: Discrete\(2\)"
    ):
        copies(lambda: Sampled(spaces.Discrete(next(sizes))))
    kinds = iter((spaces.Discrete(2), spaces.MultiBinary(2)))
    with pytest.raises(EnvironmentFault, match="copy 1: action_space is"):
        copies(lambda: Sampled(spaces.Discrete(2), next(kinds)))


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (spaces.Text(3), None, "Test: observation_space is Text"),
        (spaces.Tuple([spaces.Discrete(2)]), None, "observation_space is Tuple"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}), None, r"observation_space\['a'\] is Dict"),
        (spaces.Dict(), None, "observation_space is Dict"),
        (spaces.Discrete(2), spaces.Dict({"a": spaces.Discrete(2)}), "action_space is Dict"),
        (spaces.Discrete(2), spaces.Tuple([spaces.Discrete(2)]), "action_space is Tuple"),
    ],
)
def test_spaces_that_tensors_cannot_carry(observation_space, action_space, message):
    with pytest.raises(UnsupportedSpaceError, match=message):
        copies(lambda: Sampled(observation_space, action_space))
