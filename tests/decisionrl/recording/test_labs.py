"""Labs: what is recorded is what their environments do, and their scores are what they say."""

from __future__ import annotations

import functools
from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from decisionrl.envs import point, two_modes
from decisionrl.envs.make import make_world
from decisionrl.envs.point import PointReachEnv
from decisionrl.envs.tabular import gridworld
from decisionrl.envs.two_modes import TwoModesEnv
from decisionrl.evaluation.episodes import ReturnEvaluator
from decisionrl.experience.store import DatasetError
from decisionrl.recording.labs import Lab, gridworld_lab, point_lab, two_modes_lab

MAKERS = [gridworld_lab, two_modes_lab, point_lab]


class Rule(nn.Module):
    """A function of the observation as an acting policy."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def act(self, observation: Tensor, state: None = None, *, noise: None = None) -> tuple[Tensor, None]:
        return self.function(observation), None

    def initial_state(self, copies: int) -> None:
        return None


def mean_return(env: str, function: Callable[[Tensor], Tensor], episodes: int = 100) -> float:
    evaluate = ReturnEvaluator(lambda copies: make_world(env, num_envs=copies))
    return float(evaluate(Rule(function), episodes=episodes)["mean_return"])  # type: ignore[arg-type]


def seen(lab: Lab) -> Tensor:
    """The observations of all segments, [segments, length, ...]."""
    observation = lab.segments.rows(torch.arange(len(lab.segments))).observation
    assert isinstance(observation, Tensor)
    return observation


@pytest.mark.parametrize("make", MAKERS)
def test_a_seed_is_a_lab(make: Callable[..., Lab]) -> None:
    lab, again, other = make(seed=3), make(seed=3), make(seed=4)
    assert torch.equal(lab.episodes.action, again.episodes.action)
    assert torch.equal(lab.segments.start, again.segments.start)
    for name, score in lab.scores.items():
        assert torch.equal(score, again.scores[name])
        assert score.dtype == torch.float64
        assert torch.equal(lab.scored(name).score, score)  # type: ignore[arg-type]
    assert not torch.equal(lab.episodes.action, other.episodes.action)
    assert lab.episodes.info["random_score"] == other.episodes.info["random_score"]
    with pytest.raises(DatasetError, match=r"score = 'x'; valid: .*return"):
        lab.scored("x")


@pytest.mark.parametrize("make", MAKERS)
def test_the_environment_that_a_lab_names_is_the_recorded_one(make: Callable[..., Lab]) -> None:
    """Its spaces hold what was recorded, and uniformly random actions earn the score that stands for them."""
    episodes = make(episodes=20).episodes
    env = gymnasium.make(episodes.info["env"], **episodes.info.get("env_options", {}))
    assert (env.observation_space, env.action_space) == (episodes.observation_space, episodes.action_space)
    assert isinstance(episodes.observation, Tensor)
    for row in episodes.observation[:50].numpy():
        assert env.observation_space.contains(row)
    for row in episodes.action[:50].numpy():
        assert env.action_space.contains(row)
    env.action_space.seed(0)
    returns = []
    for seed in range(300):
        env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    error = np.std(returns) / np.sqrt(len(returns)) + 1e-9
    assert abs(np.mean(returns) - episodes.info["random_score"]) < 5 * error
    low, high = episodes.info["random_score"], episodes.info["expert_score"]
    assert episodes.returns.mean() <= high
    assert episodes.normalized_score(low) == 0
    assert episodes.normalized_score(high) == pytest.approx(100)


def test_the_gridworld_was_walked() -> None:
    lab = gridworld_lab(size=4)
    mdp, episodes = gridworld(4), lab.episodes
    before, after = (
        episodes.observations_before(),
        episodes.observation_at(
            episodes.episode, torch.arange(episodes.num_steps) - episodes.first[episodes.episode] + 1
        ),
    )
    assert isinstance(before, Tensor)
    assert isinstance(after, Tensor)
    assert torch.equal(after, mdp.next_state[before, episodes.action])
    assert torch.equal(episodes.reward.double(), mdp.reward[before, episodes.action])
    assert torch.equal(episodes.terminated, mdp.terminal[after])
    last = episodes.first + episodes.length - 1
    assert torch.equal((episodes.terminated | episodes.truncated).nonzero().flatten(), last)
    assert (episodes.length[episodes.truncated[last]] == 50).all()


def test_regret_tells_apart_what_returns_do_not() -> None:
    lab = gridworld_lab()
    optimum = gridworld().soft_optimum(0.02)
    batch = lab.segments.rows(torch.arange(20))
    for row in range(20):
        steps = [(int(s), int(a)) for s, a in zip(seen(lab)[row], batch.action[row], strict=True)]
        regret = sum(float(optimum.advantage[s, a]) for s, a in steps)
        assert float(lab.scores["regret"][row]) == pytest.approx(regret, abs=1e-8)
    first, second = torch.triu_indices(len(lab.segments), len(lab.segments), 1)
    ties = {name: (score[first] == score[second]).double().mean() for name, score in lab.scores.items()}
    assert ties["return"] > 0.5
    assert ties["regret"] < 0.01
    everywhere = torch.zeros(25, 4, dtype=torch.bool)
    everywhere[seen(lab).flatten(), lab.segments.rows(torch.arange(len(lab.segments))).action.flatten()] = True
    assert everywhere[:24].double().mean() > 0.95


def test_two_modes_are_opposites() -> None:
    lab = two_modes_lab()
    batch = lab.segments.rows(torch.arange(len(lab.segments)))
    state = seen(lab).double().numpy()
    sign = 2 * lab.scores["good"].numpy()[:, None, None] - 1
    difference = batch.action.numpy() - sign * two_modes.good_action(state)
    assert np.abs(difference).mean() == pytest.approx(0.1 * np.sqrt(2 / np.pi), rel=0.2)  # of the noise, a bit clipped
    np.testing.assert_allclose(batch.reward, two_modes.reward_of(state, batch.action.double().numpy()), atol=1e-5)
    assert (lab.scores["return"][lab.scores["good"] == 1] > lab.scores["return"][lab.scores["good"] == 0].max()).all()
    assert 0.4 < lab.scores["good"].mean() < 0.6

    def rule(act: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensor], Tensor]:
        return lambda observation: torch.from_numpy(act(observation.double().numpy())).float()

    assert mean_return("decisionrl/TwoModes-v0", rule(two_modes.good_action)) == pytest.approx(30)
    assert mean_return("decisionrl/TwoModes-v0", rule(two_modes.bad_action)) < 5


def test_the_point_moved_as_its_environment_does() -> None:
    episodes = point_lab(episodes=5).episodes
    env = PointReachEnv()
    for number in range(5):
        window = episodes.windows(torch.tensor([number]), torch.tensor([0]), 40)
        assert isinstance(window.observation, Tensor)
        env.reset(seed=0)
        env._observation = window.observation[0, 0].double().numpy()
        for step in range(40):
            observation, reward, terminated, truncated, info = env.step(window.action[0, step].numpy())
            assert float(window.reward[0, step]) == pytest.approx(reward, abs=1e-5)
            if step < 39:
                np.testing.assert_allclose(observation, window.observation[0, step + 1], atol=1e-5)
            assert (terminated, truncated) == (False, step == 39)
            assert info["success"] == (np.abs(observation[:2] - observation[2:]) <= point.REACHED).all()


def test_the_value_of_a_point_is_what_the_optimal_actions_earn() -> None:
    rng = np.random.default_rng(0)
    begin = observation = rng.uniform(-1, 1, (200, 4))
    total = np.zeros(200)
    for _ in range(25):
        position = point.moved(observation[:, :2], point.optimal_action(observation))
        observation = np.concatenate([position, observation[:, 2:]], 1)
        total -= np.abs(observation[:, :2] - observation[:, 2:]).sum(1)
    np.testing.assert_allclose(point.optimal_value(begin), total, atol=1e-12)
    act = functools.partial(rng.uniform, -1, 1)
    position = point.moved(begin[:, :2], act((200, 2)))
    advantage = (
        -np.abs(position - begin[:, 2:]).sum(1)
        + point.optimal_value(np.concatenate([position, begin[:, 2:]], 1))
        - point.optimal_value(begin)
    )
    assert advantage.max() < 1e-12
    assert advantage.min() < -0.1


def test_regret_in_the_point_lab_is_what_the_steps_cost() -> None:
    lab = point_lab()
    state = seen(lab).double().numpy()
    batch = lab.segments.rows(torch.arange(len(lab.segments)))
    position = point.moved(state[..., :2], batch.action.double().numpy())
    after = np.concatenate([position, state[..., 2:]], -1)
    regret = (batch.reward.double().numpy() + point.optimal_value(after) - point.optimal_value(state)).sum(1)
    np.testing.assert_allclose(lab.scores["regret"], regret, atol=1e-4)
    assert (lab.scores["regret"] < 0).all()
    assert (lab.scores["distance"] <= 0).all()


def test_preferences_by_regret_beat_cloning_in_the_point_lab() -> None:
    """Contrastive preference learning (arXiv 2310.13639, equation 6) with alpha 0.1 and lambda 0.5."""
    segments = point_lab().scored("regret")
    everything = segments.rows(torch.arange(len(segments)))
    assert isinstance(everything.observation, Tensor)
    assert segments.score is not None

    def trained(contrastive: bool) -> float:
        rng = torch.Generator().manual_seed(1)
        torch.manual_seed(0)
        hidden = [nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
        network = nn.Sequential(*hidden, nn.Linear(64, 2), nn.Tanh())
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        for _ in range(800):
            index = torch.randperm(len(segments), generator=rng)[:32]
            error = (network(everything.observation[index]) - everything.action[index]).square().sum((1, 2))
            loss = error.mean()
            if contrastive:
                better = segments.score[index, None] > segments.score[None, index]
                loss = nn.functional.softplus(0.1 * (error[:, None] - 0.5 * error[None, :]))[better].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return mean_return("decisionrl/PointReach-v0", network)

    cloned, preferred = trained(False), trained(True)
    assert cloned < -16
    assert preferred > cloned + 3


@pytest.mark.parametrize("make", [PointReachEnv, TwoModesEnv])
def test_episodes_end_and_begin(make: Callable[..., gymnasium.Env[np.ndarray, np.ndarray]]) -> None:
    env = make(max_steps=2)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.step(np.zeros(2))
    first, _ = env.reset(seed=1)
    assert np.array_equal(env.reset(seed=1)[0], first)
    assert [env.step(np.zeros(2))[2:4] for _ in range(2)] == [(False, False), (False, True)]
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.step(np.zeros(2))
    with pytest.raises(ValueError, match="max_steps = 0; valid: a whole number >= 1"):
        make(max_steps=0)
