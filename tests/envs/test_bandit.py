"""The prompt bandit: what it plays, and the values it claims to know exactly."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from decisionrl.envs.bandit import PromptBandit
from decisionrl.envs.make import make_world


def test_it_is_a_gymnasium_environment() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        warnings.filterwarnings("ignore", message=".*not having a spec.*|.*No render.*|.*render_modes.*")
        check_env(PromptBandit(), skip_render_check=True)


def test_rewards_come_at_the_rate_of_the_table() -> None:
    env = PromptBandit(prompts=2, actions=2, table_seed=3)
    wins, tries = np.zeros((2, 2)), np.zeros((2, 2))
    env.reset(seed=0)
    rng = np.random.default_rng(1)
    for _ in range(8000):
        prompt, _ = env.reset()
        action = int(rng.integers(2))
        _, reward, terminated, truncated, _ = env.step(action)
        assert (terminated, truncated) == (True, False)
        wins[prompt, action] += reward
        tries[prompt, action] += 1
    error = np.sqrt(0.25 / tries)
    assert (np.abs(wins / tries - env.success.numpy()) < 4.5 * error).all()
    assert tries.sum(1) / 8000 == pytest.approx([0.5, 0.5], abs=0.03)


def test_a_seed_decides_prompt_and_luck() -> None:
    env, other = PromptBandit(), PromptBandit()
    for seed in range(50):
        prompt, _ = env.reset(seed=seed)
        assert other.reset(seed=seed)[0] == prompt
        best = int(env.success[prompt].argmax())
        worst = int(env.success[prompt].argmin())
        # The same luck: what the worst action wins, the best one wins too.
        assert env.step(best)[1] >= other.step(worst)[1]


def test_the_optimum_is_the_best_of_all_deterministic_policies() -> None:
    env = PromptBandit(prompts=3, actions=4, table_seed=1)
    values = [
        float(env.value(torch.eye(4, dtype=torch.float64)[list(actions)]))
        for actions in itertools.product(range(4), repeat=3)
    ]
    assert env.optimal_value == pytest.approx(max(values), abs=1e-15)


def test_the_value_of_a_policy_is_a_sum_over_prompts_and_actions() -> None:
    env = PromptBandit(prompts=3, actions=4, table_seed=2)
    policy = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(1)
    plain = sum(float(policy[m, k] * env.success[m, k]) for m in range(3) for k in range(4)) / 3
    assert float(env.value(policy)) == pytest.approx(plain, abs=1e-15)


def test_the_gradient_in_the_logits_is_the_policy_gradient() -> None:
    env = PromptBandit(prompts=3, actions=4, table_seed=2)
    logits = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    policy = logits.softmax(1)
    (gradient,) = torch.autograd.grad(env.value(policy), logits)
    mean = (policy * env.success).sum(1, keepdim=True)
    torch.testing.assert_close(gradient, (policy * (env.success - mean) / 3).detach(), rtol=1e-12, atol=1e-15)


def test_the_table_is_the_same_for_every_copy() -> None:
    world = make_world("decisionrl.envs.bandit:PromptBandit", num_envs=3, options={"prompts": 5})
    tables = [env.unwrapped.success for env in world.envs]  # type: ignore[attr-defined]
    assert tables[0].shape == (5, 6)
    assert all(torch.equal(table, tables[0]) for table in tables)
    assert not torch.equal(PromptBandit(prompts=5, table_seed=1).success, tables[0])


@pytest.mark.parametrize("name", ["prompts", "actions"])
def test_sizes_that_cannot_be(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} = 0; valid: a whole number >= 1"):
        PromptBandit(**{name: 0})


def test_a_step_needs_an_episode() -> None:
    env = PromptBandit()
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(0)
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(0)
