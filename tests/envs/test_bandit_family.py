"""Bandits as a family of tasks: rewards as stated, noise that the state decides, what is optimal."""

from __future__ import annotations

import pytest
import torch

from decisionrl.envs.gridworld import TaskWorld, bandit
from decisionrl.envs.gridworld.bandit_family import BanditFamily


def pulled(family: BanditFamily, arm: int, episodes: int) -> torch.Tensor:
    """Rewards of one arm of task 0, [episode, pull]."""
    state = family.start(torch.rand(episodes, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    rewards = []
    for _ in range(family.horizon):
        state, reward = family.step(state, torch.full((episodes,), arm), torch.tensor(0))
        rewards.append(reward)
    return torch.stack(rewards, 1)


def test_gaussian_rewards_have_their_mean_and_standard_deviation() -> None:
    family = bandit(tasks=3, noise=0.3, horizon=10)
    rewards = pulled(family, 2, 4000)
    error = rewards - family.bandits.means[0, 2]
    assert error.mean().abs() < 5 * 0.3 / 200
    assert error.std() == pytest.approx(0.3, rel=0.02)
    normal = error.flatten() / 0.3
    assert (normal.abs() < 1).double().mean() == pytest.approx(0.6827, abs=0.015)
    pulls = error / error.std()
    correlation = pulls.T @ pulls / len(pulls)  # of the pulls of an episode with each other
    assert (correlation - torch.eye(10)).abs().max() < 5 / 4000**0.5


def test_bernoulli_rewards_are_one_as_often_as_their_mean() -> None:
    family = bandit(tasks=3, rewards="bernoulli", horizon=10)
    rewards = pulled(family, 1, 4000)
    assert set(rewards.unique().tolist()) == {0.0, 1.0}
    assert rewards.mean() == pytest.approx(family.bandits.means[0, 1].item(), abs=5 * 0.5 / 200)


def test_the_best_arm_is_optimal_and_its_mean_the_largest_return() -> None:
    family = bandit(tasks=50, horizon=7)
    state = family.state_of(torch.ones(50, 4, 1, dtype=torch.int64), torch.zeros(50, 4))
    best = family.optimal_action(state, torch.arange(50)[:, None])
    assert best.shape == (50, 4)
    for task in range(50):
        means = family.bandits.means[task].tolist()
        assert best[task].tolist() == [means.index(max(means))] * 4
        assert family.max_return[task] == pytest.approx(7 * max(means))


def test_noise_is_of_the_episode_and_not_of_the_arm_or_the_other_copies() -> None:
    family = bandit(tasks=4, horizon=6)
    world, alone = TaskWorld(family, num_envs=5, task=1), TaskWorld(family, num_envs=1, task=1)
    world.reset([7, 8, 9, 10, 7])
    alone.reset([10])
    for arm in (0, 3, 1, 1, 4, 2):
        step, one = world.step(torch.full((5,), arm)), alone.step(torch.tensor([arm]))
        assert step.observation.tolist() == [[1]] * 5
        assert step.reward[0] == step.reward[4]
        assert step.reward[0] != step.reward[1]
        assert one.reward[0] == step.reward[3]


def test_what_is_not_valid() -> None:
    with pytest.raises(ValueError, match=r"rewards = 'beta'; valid: gaussian, bernoulli"):
        bandit(rewards="beta")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"noise = -1"):
        bandit(tasks=3, noise=-1)
    with pytest.raises(ValueError, match=r"horizon = 0; valid: a whole number >= 1"):
        bandit(tasks=3, horizon=0)
