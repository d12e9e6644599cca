"""Bandits for in-context learning: their distributions, contexts, and the algorithms against plain loops."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from decisionrl.envs.gridworld.bandit import (
    Bandits,
    Pulls,
    bernoulli_bandits,
    gaussian_bandits,
    linear_bandits,
    mixture_behavior,
    pulled,
)
from decisionrl.envs.gridworld.bandit_rules import empirical_mean, lcb, lin_ucb, play, tally, thompson, ucb


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def context(tasks: int = 4, arms: int = 5, steps: int = 30) -> tuple[Bandits, Pulls]:
    """Some bandits, and pulls of them in which arm 2 is never chosen."""
    bandits = gaussian_bandits(tasks, arms=arms, generator=rng(), dtype=torch.float64)
    behavior = torch.ones(tasks, arms, dtype=torch.float64)
    behavior[:, 2] = 0
    return bandits, pulled(bandits, behavior, steps=steps, generator=rng(1))


def test_means_and_rewards_have_the_stated_distribution():
    gaussian, bernoulli = gaussian_bandits(2000, generator=rng()), bernoulli_bandits(2000, generator=rng(1))
    for bandits in (gaussian, bernoulli):
        assert bandits.means.shape == (2000, 5)
        assert (bandits.means.min() >= 0) & (bandits.means.max() <= 1)
        assert bandits.means.mean() == pytest.approx(1 / 2, abs=0.01)
        assert bandits.means.var() == pytest.approx(1 / 12, abs=0.003)
        assert torch.equal(bandits.optimal_arm, bandits.means.max(1).indices)
    arm = torch.arange(5).repeat(2000, 20)
    noise = gaussian.pull(arm, rng(2)) - gaussian.mean(arm)
    assert noise.mean().abs() < 0.003
    assert noise.std() == pytest.approx(0.3, abs=0.003)  # a standard deviation, not a variance
    won = bernoulli.pull(arm, rng(3))
    assert set(won.unique().tolist()) == {0, 1}
    by_arm = won.view(2000, 20, 5).mean(1) - bernoulli.means
    assert by_arm.mean().abs() < 0.01
    assert by_arm.std() == pytest.approx(math.sqrt(1 / 6 / 20), abs=0.005)  # E p (1 - p) = 1 / 6


def test_linear_bandits_share_their_features():
    bandits = linear_bandits(3000, generator=rng(), dtype=torch.float64)
    features = bandits.features
    assert features[0].tolist() == pytest.approx([0.333355, -0.842147], abs=1e-6)
    assert features[1].tolist() == pytest.approx([1.013077, -0.221078], abs=1e-6)
    assert torch.equal(linear_bandits(1, generator=rng(7), dtype=torch.float64).features, features)
    theta = torch.linalg.lstsq(features, bandits.means.T).solution.T
    torch.testing.assert_close(theta @ features.T, bandits.means)
    assert theta.mean(0).abs().max() < 0.04
    torch.testing.assert_close(theta.T.cov(), torch.eye(2, dtype=torch.float64) / 2, rtol=0, atol=0.04)


def test_behavior_mixes_a_dirichlet_and_one_arm():
    favored = torch.arange(22_000) % 5
    behavior = mixture_behavior(22_000, 5, generator=rng(), favored=favored, dtype=torch.float64)
    torch.testing.assert_close(behavior.sum(1), torch.ones(22_000, dtype=torch.float64))
    others = torch.ones(22_000, 5, dtype=torch.bool).scatter(1, favored[:, None], False)
    rest = behavior[others].view(22_000, 4)
    left = rest.sum(1)
    # E omega = 1/2: the arm has 1/2 + 1/2 1/5, each other arm a tenth; omega is 1 in one of 11 cases.
    assert behavior[~others].mean() == pytest.approx(0.6, abs=0.01)
    assert rest.mean(0).tolist() == pytest.approx([0.1] * 4, abs=0.005)
    assert (left == 0).double().mean() == pytest.approx(1 / 11, abs=0.01)
    # Given omega the rest is (1 - omega) B with B ~ Beta(4, 1): E B = 4/5, E B^2 = 2/3, E (1 - omega)^2 = 0.35.
    assert left.square().mean() == pytest.approx(0.35 * 2 / 3, abs=0.01)
    drawn = mixture_behavior(22_000, 5, generator=rng(1), dtype=torch.float64)
    assert drawn.mean(0).tolist() == pytest.approx([0.2] * 5, abs=0.01)


def test_the_share_of_the_one_arm_is_a_multiple_of_a_tenth():
    """Of two arms the other has (1 - omega) U with U uniform: j/10 to (j + 1)/10 if 1 - omega = k/10 is larger, and
    then in one of k cases."""
    behavior = mixture_behavior(110_000, 2, generator=rng(), favored=torch.zeros(110_000).long(), dtype=torch.float64)
    other = behavior[behavior[:, 1] > 0, 1]
    count = (10 * other).long().clamp(max=9).bincount(minlength=10)
    for j in range(10):
        expected = 10_000 * sum(1 / k for k in range(j + 1, 11))
        assert count[j] == pytest.approx(expected, abs=5 * math.sqrt(expected))


def test_contexts_follow_the_behavior():
    bandits, (arm, reward) = context(steps=4000)
    assert (arm.shape, reward.shape) == ((4, 4000), (4, 4000))
    assert not (arm == 2).any()
    for i in range(4):
        for k in (0, 1, 3, 4):
            assert (arm[i] == k).double().mean() == pytest.approx(0.25, abs=0.04)
            assert reward[i, arm[i] == k].mean() == pytest.approx(float(bandits.means[i, k]), abs=0.05)


def test_regret_is_what_the_best_arm_would_have_earned_more():
    bandits, (arm, _) = context()
    regret = bandits.regret(arm)
    for i, t in ((0, 0), (2, 17), (3, 29)):
        assert regret[i, t] == max(bandits.means[i]) - bandits.means[i, arm[i, t]]
    assert not bandits.regret(bandits.optimal_arm[:, None]).any()


def test_rules_are_the_formulas():
    _, pulls = context()
    known = tally(pulls, arms=5)
    for i in range(4):
        for k in range(5):
            rewards = [float(r) for a, r in zip(pulls.arm[i], pulls.reward[i], strict=True) if a == k]
            mean, count = (sum(rewards) / len(rewards), len(rewards)) if rewards else (0.0, 0)
            assert known.pulls[i, k] == count
            assert known.mean[i, k] == pytest.approx(mean)
            assert empirical_mean(known)[i, k] == pytest.approx(mean if count else math.inf)
            assert empirical_mean(known, unknown=0)[i, k] == pytest.approx(mean)
            assert ucb(known)[i, k] == pytest.approx(mean + math.sqrt(1 / count) if count else math.inf)
            assert lcb(known, scale=0.5)[i, k] == pytest.approx(mean - 0.5 / math.sqrt(max(count, 1)))


def test_thompson_draws_from_the_posterior():
    _, pulls = context(tasks=1, steps=12)
    known = tally(pulls, arms=5)
    draws = torch.cat([thompson(known, generator=rng(i), noise=0.5) for i in range(4000)])
    for k in range(5):
        rewards = pulls.reward[0, pulls.arm[0] == k]
        # Bayes' rule on a grid of means.
        grid = torch.linspace(-2, 3, 5001, dtype=torch.float64)
        log = -((grid - 0.5) ** 2) * 12 / 2 - ((rewards[:, None] - grid) ** 2).sum(0) / (2 * 0.25)
        weight = (log - log.max()).exp()
        weight /= weight.sum()
        mean = (weight * grid).sum()
        std = ((weight * (grid - mean) ** 2).sum()).sqrt()
        assert draws[:, k].mean() == pytest.approx(float(mean), abs=5 * float(std) / math.sqrt(4000))
        assert draws[:, k].std() == pytest.approx(float(std), rel=0.06)


def test_lin_ucb_is_the_plain_loop():
    bandits = linear_bandits(5, generator=rng(), dtype=torch.float64)
    history = play(bandits, partial(lin_ucb, features=bandits.features, beta=0.7), steps=40, generator=rng(1))
    phi = bandits.features.numpy()
    for i in range(5):
        gram, target = np.eye(2), np.zeros(2)
        for arm, reward in zip(history.arm[i].tolist(), history.reward[i].tolist(), strict=True):
            theta = np.linalg.solve(gram, target)
            value = [theta @ each + 0.7 * math.sqrt(each @ np.linalg.solve(gram, each)) for each in phi]
            assert arm == int(np.argmax(value))
            gram += np.outer(phi[arm], phi[arm])
            target += reward * phi[arm]


def test_playing_ucb_is_the_plain_loop():
    bandits = gaussian_bandits(3, generator=rng(), dtype=torch.float64)
    history = play(bandits, ucb, steps=50, generator=rng(1))
    for i in range(3):
        counts, sums = [0] * 5, [0.0] * 5
        for arm, reward in zip(history.arm[i].tolist(), history.reward[i].tolist(), strict=True):
            unknown = [k for k in range(5) if counts[k] == 0]
            value = [sums[k] / max(counts[k], 1) + 1 / math.sqrt(max(counts[k], 1)) for k in range(5)]
            assert arm == (unknown[0] if unknown else max(range(5), key=value.__getitem__))
            counts[arm] += 1
            sums[arm] += reward


def test_who_learns_regrets_less():
    bandits, luck = gaussian_bandits(200, generator=rng()), rng(3)
    rules = {
        "ucb": ucb,
        "thompson": partial(thompson, generator=rng(2)),
        "empirical_mean": empirical_mean,
        "random": lambda known: torch.rand(known.pulls.shape, generator=luck),
    }
    regrets = {}
    for name, rule in rules.items():
        history = play(bandits, rule, steps=200, generator=rng(1))
        regrets[name] = float(bandits.regret(history.arm).sum(1).mean())
    assert regrets["random"] == pytest.approx(200 / 3, rel=0.1)  # E max - E mean = 5/6 - 1/2
    assert max(regrets["ucb"], regrets["empirical_mean"]) < regrets["random"] / 2
    assert regrets["thompson"] < regrets["ucb"]


def test_features_help_and_pessimism_helps():
    bandits = linear_bandits(200, generator=rng())
    knowing = play(bandits, partial(lin_ucb, features=bandits.features), steps=100, generator=rng(1))
    ignorant = play(
        bandits, partial(thompson, generator=rng(2), prior_mean=0, prior_variance=1), steps=100, generator=rng(1)
    )
    assert bandits.regret(knowing.arm).sum(1).mean() < bandits.regret(ignorant.arm).sum(1).mean()
    biased = gaussian_bandits(1000, generator=rng())
    behavior = mixture_behavior(1000, 5, generator=rng(4), favored=biased.optimal_arm)
    known = tally(pulled(biased, behavior, steps=20, generator=rng(5)), arms=5)
    careful, greedy = (rule(known).argmax(1, keepdim=True) for rule in (lcb, partial(empirical_mean, unknown=0)))
    assert biased.regret(careful).mean() < biased.regret(greedy).mean()


def test_numbers_that_cannot_be():
    for field in ("tasks", "arms"):
        for make in (gaussian_bandits, bernoulli_bandits, linear_bandits):
            with pytest.raises(ValueError, match=f"{field} = 0; valid: a whole number >= 1"):
                make(**{"tasks": 2, "generator": rng(), field: 0})
    with pytest.raises(ValueError, match="dimensions = 0; valid"):
        linear_bandits(2, dimensions=0, generator=rng())
    for noise in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"noise = {noise}; valid: a number >= 0"):
            gaussian_bandits(2, noise=noise, generator=rng())
