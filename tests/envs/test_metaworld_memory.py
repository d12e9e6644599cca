"""Tasks that need memory on Meta-World: what is seen, what counts as success, and what the experts give away."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from decisionrl.envs.make import make_world
from decisionrl.envs.robotics.metaworld_memory import CueReachEnv, CueReachExpert, Expert, PickAndReturnEnv

pytest.importorskip("metaworld")

CUE_REACH, PICK = "decisionrl/MWCueReach-v0", "decisionrl/MWPickAndReturn-v0"

Env = CueReachEnv | PickAndReturnEnv


@pytest.fixture(scope="module")
def cue() -> CueReachEnv:
    return CueReachEnv()


@pytest.fixture(scope="module")
def pick() -> PickAndReturnEnv:
    return PickAndReturnEnv()


def expert(env: Env, seed: int) -> Expert:
    return env.expert(torch.Generator().manual_seed(seed))


def watched(env: Env, seed: int, steps: int) -> NDArray[np.float32]:
    """What the expert sees in the first steps of an episode."""
    shown = expert(env, seed)
    seen = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        seen.append(env.step(shown.act(seen[-1]))[0])
    return np.stack(seen)


def outcome(env: Env, who: Expert, seed: int) -> tuple[float, bool, bool, int]:
    """The return of an episode, how it ended, and after how many steps."""
    observation, _ = env.reset(seed=seed)
    total, steps, terminated, truncated = 0.0, 0, False, False
    while not (terminated or truncated):
        observation, reward, terminated, truncated, info = env.step(who.act(observation))
        assert info["success"] == (reward == 1)
        total, steps = total + reward, steps + 1
    return total, terminated, truncated, steps


class Route:
    """Goes to each place for as many steps as are given."""

    def __init__(self, *legs: tuple[NDArray[np.float64], int]) -> None:
        self._goals = [place for place, steps in legs for _ in range(steps)]
        self._step = 0

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        goal = self._goals[min(self._step, len(self._goals) - 1)]
        self._step += 1
        return np.clip(10 * (goal - observation[:3]), -1, 1).astype(np.float32)


def probe_accuracy(frames: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """How often ridge regression on half of the rows tells the other half's labels."""
    half = len(frames) // 2
    mean, spread = frames[:half].mean(0), frames[:half].std(0) + 1e-9
    inputs = np.concatenate([(frames - mean) / spread, np.ones((len(frames), 1))], 1)
    gram = inputs[:half].T @ inputs[:half] + np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs[:half].T @ np.where(right[:half], 1.0, -1.0))
    return float(((inputs[half:] @ weights > 0) == right[half:]).mean())


@pytest.mark.parametrize("made", [CueReachEnv, PickAndReturnEnv])
def test_it_is_a_gymnasium_environment(made: type[Env]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*Box observation space m.*|.*not having a spec.*")
        check_env(made(), skip_render_check=True)


def test_the_cue_is_seen_in_five_observations(cue: CueReachEnv) -> None:
    for seed in range(4):
        seen = watched(cue, seed, 20)
        place = np.float32(cue.PLACES[int(seen[0, 3] > 0)])
        np.testing.assert_array_equal(seen[:5, 3:], [[*place, 1]] * 5)
        np.testing.assert_array_equal(seen[5:, 3:], np.zeros((16, 4)))


def test_the_oracle_sees_the_cue_all_the_time_and_a_clock(cue: CueReachEnv) -> None:
    oracle = CueReachEnv(oracle=True)
    seen, plain = watched(oracle, 1, 30), watched(cue, 1, 30)
    np.testing.assert_array_equal(seen[:, :3], plain[:, :3])
    np.testing.assert_array_equal(seen[:, 3:7], plain[:1, 3:].repeat(31, 0))
    np.testing.assert_allclose(seen[:, 7], np.arange(31) / oracle.max_steps, rtol=1e-6)


def test_hands_start_near_their_usual_place_and_both_places_occur(cue: CueReachEnv) -> None:
    seen = np.stack([cue.reset(seed=seed)[0] for seed in range(60)])
    assert (abs(seen[:, :3] - [0, 0.6, 0.2]) < 0.06).all()
    assert (np.ptp(seen[:, :3], axis=0) > 0.08).all()
    assert 0.25 < (seen[:, 3] > 0).mean() < 0.75


def test_an_episode_depends_on_its_seed_and_actions_alone(cue: CueReachEnv) -> None:
    watched(cue, 8, 60)
    np.testing.assert_array_equal(watched(cue, 3, 45), watched(CueReachEnv(), 3, 45))


def test_the_expert_succeeds(cue: CueReachEnv) -> None:
    results = [outcome(cue, expert(cue, seed), seed) for seed in range(25)]
    assert [result[:3] for result in results] == [(1, True, False)] * 25
    assert {steps > 55 for *_, steps in results} == {True}


def test_the_expert_waits_for_40_to_50_steps() -> None:
    here = np.array([*CueReachEnv.NEUTRAL, *CueReachEnv.PLACES[1], 1], np.float32)
    leaves = set()
    for seed in range(100):
        who = CueReachExpert(torch.Generator().manual_seed(seed))
        moves = np.stack([who.act(here) for _ in range(52)])
        leaves.add(int(abs(moves).max(1).argmax()))
    assert leaves == set(range(40, 51))


def test_until_the_expert_leaves_nothing_but_the_cue_tells_the_place(cue: CueReachEnv) -> None:
    seen = np.stack([watched(cue, seed, 40) for seed in range(80)])
    right = seen[:, 0, 3] > 0
    last = seen[:, 24:40].reshape(80, -1)
    assert 0.25 < probe_accuracy(last, right) < 0.75
    assert probe_accuracy(seen[:, 4:20].reshape(80, -1), right) == 1
    assert (np.linalg.norm(seen[:, 39, :3] - cue.NEUTRAL, axis=1) < 0.02).all()


def test_the_hand_moves_the_same_way_whatever_the_place(cue: CueReachEnv) -> None:
    paths = []
    for swapped in (False, True):
        who, observation = expert(cue, 5), cue.reset(seed=5)[0]
        if swapped:
            cue._right, cue._wrong = cue._wrong, cue._right
            observation = cue._observation()
        path = [observation]
        for _ in range(40):
            path.append(cue.step(who.act(path[-1]))[0])
        paths.append(np.stack(path))
    assert (paths[0][:5] != paths[1][:5]).any(1).all()
    np.testing.assert_array_equal(paths[0][5:], paths[1][5:])


def test_the_wrong_place_is_failure_at_any_time(cue: CueReachEnv) -> None:
    cue.reset(seed=0)
    right, wrong = cue._right, cue._wrong
    total, terminated, truncated, _ = outcome(cue, Route((cue.NEUTRAL, 45), (wrong, 100)), 0)
    assert (total, terminated, truncated) == (0, True, False)
    total, terminated, truncated, steps = outcome(cue, Route((wrong, 100)), 0)
    assert (total, terminated, truncated) == (0, True, False)
    assert steps < 30
    assert outcome(cue, Route((cue.NEUTRAL, 45), (right, 100)), 0)[:3] == (1, True, False)


def test_going_there_at_once_does_not_count(cue: CueReachEnv) -> None:
    cue.reset(seed=0)
    right = cue._right
    assert outcome(cue, Route((right, 150)), 0) == (0, False, True, 150)
    assert outcome(cue, Route((cue.NEUTRAL, 20), (right, 130)), 0) == (0, False, True, 150)  # too early
    assert outcome(cue, Route((right, 40), (cue.NEUTRAL, 30), (right, 80)), 0)[:3] == (1, True, False)


def test_episodes_are_truncated() -> None:
    env = CueReachEnv(max_steps=3)
    env.reset(seed=0)
    assert [env.step(np.zeros(3, np.float32))[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    with pytest.raises(ValueError, match="max_steps = 0; valid"):
        CueReachEnv(max_steps=0)
    with pytest.raises(ValueError, match="max_steps = 0; valid"):
        PickAndReturnEnv(max_steps=0)


def test_the_object_starts_in_one_of_two_patches(pick: PickAndReturnEnv) -> None:
    starts = np.stack([pick.reset(seed=seed)[0][4:7] for seed in range(60)])
    right = starts[:, 0] > 0
    assert 0.25 < right.mean() < 0.75
    offset = starts - pick.PATCHES[right.astype(int)]
    assert (abs(offset) <= [0.0201, 0.0201, 0.001]).all()
    assert (np.ptp(offset[:, :2], axis=0) > 0.03).all()


def test_hand_gripper_and_object_are_seen_as_meta_world_sees_them(pick: PickAndReturnEnv) -> None:
    oracle = PickAndReturnEnv(oracle=True)
    seen, informed = watched(pick, 4, 95), watched(oracle, 4, 95)
    np.testing.assert_array_equal(seen[-1], np.float32([*pick._arm._physics._get_curr_obs_combined_no_goal()[:7], 0]))
    np.testing.assert_array_equal(informed[:, :8], seen)
    np.testing.assert_array_equal(informed[:, 8:], seen[:1, 4:6].repeat(96, 0))
    assert seen[0, 3] > 0.99
    assert seen[-1, 3] < 0.6


def test_its_episodes_depend_on_their_seeds_and_actions_alone(pick: PickAndReturnEnv) -> None:
    watched(pick, 8, 90)
    np.testing.assert_array_equal(watched(pick, 3, 80), watched(PickAndReturnEnv(), 3, 80))


@pytest.mark.parametrize("make", [CueReachEnv, PickAndReturnEnv])
def test_noise_moves_the_hand(make: type[CueReachEnv] | type[PickAndReturnEnv]) -> None:
    ways = {}
    for noise, seed in ((0, 0), (0.3, 0), (0.3, 1)):
        env = make(noise=noise)
        first, still = env.reset(seed=seed)[0][:3], np.zeros(env.action_space.shape, np.float32)
        ways[noise, seed] = np.array([env.step(still)[0][:3] - first for _ in range(10)])
    assert np.linalg.norm(ways[0.3, 0][-1] - ways[0, 0][-1]) > 2e-3
    assert np.linalg.norm(ways[0.3, 0][-1] - ways[0.3, 1][-1]) > 2e-3
    with pytest.raises(ValueError, match=r"noise = -0.1; valid"):
        make(noise=-0.1)


def test_the_expert_of_the_cue_corrects_the_noise() -> None:
    env = CueReachEnv(noise=0.3)
    results = [outcome(env, expert(env, seed), seed) for seed in range(20)]
    assert sum(total for total, *_ in results) >= 19


def test_its_expert_succeeds(pick: PickAndReturnEnv) -> None:
    results = [outcome(pick, expert(pick, seed), seed) for seed in range(12)]
    assert sum(total for total, *_ in results) >= 11
    assert all(terminated for _, terminated, *_ in results)


@pytest.mark.slow
def test_when_its_expert_leaves_the_hub_hardly_anything_tells_the_side(pick: PickAndReturnEnv) -> None:
    hub, side, returns = [], [], []
    for seed in range(300):
        who, seen = expert(pick, seed), [pick.reset(seed=seed)[0]]
        reward = 0
        over = False
        while not over:
            observation, reward, terminated, truncated, _ = pick.step(who.act(seen[-1]))
            seen.append(observation)
            over = terminated or truncated
            if seen[-1][7] > seen[-2][7]:
                hub.append(np.concatenate(seen[-2:]))
                side.append(seen[0][4] > 0)
        returns.append(reward)
    assert len(hub) >= 0.97 * len(returns)
    assert np.mean(returns) >= 0.97
    assert probe_accuracy(np.stack(hub).astype(np.float64), np.array(side)) < 0.68


class Dropper:
    """Takes the object to the hub and drops it there."""

    def __init__(self, env: PickAndReturnEnv) -> None:
        self._expert, self._lifted = expert(env, 0), False

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        self._lifted |= bool(np.linalg.norm(observation[4:7] - PickAndReturnEnv.HUB) < 0.01)
        return np.array([0, 0, 0, -1], np.float32) if self._lifted else self._expert.act(observation)


def test_it_may_be_put_back_40_to_50_steps_after_it_came_to_the_hub(pick: PickAndReturnEnv) -> None:
    waits = set()
    for seed in range(6):
        who, seen = expert(pick, seed), [pick.reset(seed=seed)[0]]
        while not seen[-1][7]:
            seen.append(pick.step(who.act(seen[-1]))[0])
        near = [np.linalg.norm(observation[4:7] - pick.HUB) < pick.AT_HUB for observation in seen]
        waits.add(len(seen) - 1 - near.index(True))
        start, steps = seen[0][4:7], 0
        while abs(seen[-1][6] - start[2]) > 0.05 and steps < 150:  # nobody carries it back before
            seen.append(pick.step(who.act(seen[-1]))[0])
            steps += 1
        assert 5 < steps < 150
    assert len(waits) > 2
    assert waits <= set(range(40, 51))


class Impatient:
    """Puts it back before it may."""

    def __init__(self, env: PickAndReturnEnv) -> None:
        self._expert, self._lifted = expert(env, 0), False

    def act(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        self._lifted |= bool(np.linalg.norm(observation[4:7] - PickAndReturnEnv.HUB) < 0.06)
        return self._expert.act(np.where(np.arange(8) == 7, np.float32(self._lifted), observation))


def test_putting_it_back_too_early_is_failure() -> None:
    env = PickAndReturnEnv(noise=0)
    env.WAIT = (200, 200)  # type: ignore[misc]
    assert outcome(env, Impatient(env), 0)[:3] == (0, True, False)
    assert np.linalg.norm(env._arm.object[:2] - env._start[:2]) < 0.05


def test_putting_it_down_elsewhere_is_failure() -> None:
    env = PickAndReturnEnv(noise=0)
    assert outcome(env, expert(env, 0), 0)[:3] == (1, True, False)
    assert outcome(env, Dropper(env), 0)[:3] == (0, True, False)
    assert np.linalg.norm(env._arm.object[:2] - env._start[:2]) > 0.05


def test_an_object_that_was_never_lifted_is_no_success(pick: PickAndReturnEnv) -> None:
    pick.reset(seed=0)
    for _ in range(20):
        assert pick.step(np.array([0, 0, 1, -1], np.float32))[1:3] == (0, False)


@pytest.mark.parametrize(("identifier", "size"), [(CUE_REACH, 3), (PICK, 4)])
def test_it_is_a_world_that_can_be_saved(identifier: str, size: int) -> None:
    world, other = (make_world(identifier, num_envs=3) for _ in range(2))
    world.reset([0, 1, 2])
    actions = torch.rand(12, 3, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for action in actions[:6]:
        world.step(action)
    restored = other.load_state_dict(world.state_dict())
    for action in actions[6:]:
        step, same = world.step(action), other.step(action)
    assert restored.shape == (3, 4 + size)
    assert torch.equal(step.observation, same.observation)


def test_the_id_passes_on_its_options() -> None:
    env = gymnasium.make(CUE_REACH, oracle=True, max_steps=7).unwrapped
    assert isinstance(env, CueReachEnv)
    assert (env.oracle, env.max_steps) == (True, 7)
