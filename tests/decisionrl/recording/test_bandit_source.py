"""Contexts of bandits: the distribution of the arms, rewards of the family, tasks that do not influence each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from decisionrl.envs.gridworld import bandit
from decisionrl.envs.gridworld.bandit import mixture_behavior
from decisionrl.experience.data import open_histories_of
from decisionrl.experience.histories import Transitions, collect_histories
from decisionrl.recording.bandit_source import mixture_pulls
from decisionrl.recording.histories import HistoryPlan

FAMILY = bandit(tasks=3000, horizon=40)


def context(tasks: torch.Tensor | None = None, **options: Any) -> Transitions:
    tasks = torch.arange(3000) if tasks is None else tasks
    (episode,) = mixture_pulls(FAMILY, tasks, **options)
    return episode


def largest_share(arm: torch.Tensor) -> torch.Tensor:
    """Of the arm that each context pulls most, sorted over contexts."""
    counts = torch.nn.functional.one_hot(arm, 5).sum(1)
    return counts.amax(1).sort().values / arm.shape[1]


def test_arms_are_those_of_the_mixture() -> None:
    arm = context().action[:, 0]
    generator = torch.Generator().manual_seed(3)
    behavior = mixture_behavior(3000, 5, generator=generator)
    wanted = behavior.multinomial(40, replacement=True, generator=generator)
    assert (arm.flatten().bincount(minlength=5) / arm.numel() - 0.2).abs().max() < 0.02
    # Kolmogorov and Smirnov: the distribution of how one-sided contexts are.
    grid = torch.linspace(0, 1, 41)
    ours, theirs = ((largest_share(each)[:, None] <= grid).double().mean(0) for each in (arm, wanted))
    assert (ours - theirs).abs().max() < 1.95 * (2 / 3000) ** 0.5
    first, second = arm[:, :20], arm[:, 20:]
    same = (torch.nn.functional.one_hot(first, 5).sum(1) - torch.nn.functional.one_hot(second, 5).sum(1)).abs().sum(1)
    assert same.double().mean() < 12, "the two halves of a context are from the same probabilities"


def test_experts_favor_the_best_arm() -> None:
    best = FAMILY.bandits.optimal_arm[:, None, None]
    share = [(context(expert=expert).action == best).double().mean() for expert in (False, True)]
    assert share[0] == pytest.approx(0.2, abs=0.02)
    assert share[1] == pytest.approx(0.6, abs=0.02), "1/2 of 1/5, and 1/2 of 1"


def test_rewards_are_the_arms_with_noise_of_their_own() -> None:
    made = context(streams=2, tasks=torch.arange(500))
    error = made.reward - FAMILY.bandits.means[torch.arange(500)[:, None, None], made.action]
    assert error.std() == pytest.approx(0.3, rel=0.02)
    assert error.mean().abs() < 5 * 0.3 / error.numel() ** 0.5
    assert (error[:, 0] * error[:, 1]).mean().abs() < 5 * 0.09 / error[:, 0].numel() ** 0.5
    assert (made.observation == 1).all()
    assert torch.equal(made.observation, made.next_observation)


def test_tasks_do_not_influence_each_other_and_the_seed_decides() -> None:
    every = context(streams=3)
    some = context(torch.tensor([11, 4]), streams=3)
    for whole, part in zip(every, some, strict=True):
        assert torch.equal(whole[[11, 4]], part)
    assert torch.equal(context().action, context().action)
    assert not torch.equal(context().action, context(seed=1).action)


def test_a_lab_and_the_maker_have_them() -> None:
    lab = open_histories_of("lab/bandit")
    assert (lab.num_tasks, lab.num_histories, lab.episodes, lab.horizon) == (8000, 1, 1, 100)
    plan = HistoryPlan(env="bandit", source="mixture", streams=2, steps=40, env_options={"tasks": 20, "horizon": 20})
    made = collect_histories(plan.layout("train"), plan.learn)
    assert made.episode_returns().shape == (16, 2, 2)
    assert torch.equal(made.max_return, plan.family.max_return[plan.tasks("train")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "ppo"}, "source = 'ppo' with env = 'bandit'; valid with this env: mixture"),
        ({"source": "mixture", "env": "darkroom"}, "valid with this env: ppo, a2c, q_learning, sb3_ppo"),
        ({"source": "mixture", "env": "hidden_reach"}, "valid with this env: no source"),
        ({"source": "mixture", "rates": [0.1], "steps": 500}, "which does not learn: None"),
        ({"source": "mixture", "noise": 0.3, "steps": 500}, "noise = 0.3; valid with pulls that nobody learns from: 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HistoryPlan(**{"env": "bandit", **options})
