"""Deterministic MDPs: soft optima and values against plain iteration, the telescoping advantage, the gridworld."""

from __future__ import annotations

import itertools
import math
import warnings

import gymnasium
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from decisionrl.envs.make import make_world
from decisionrl.envs.tabular import DeterministicMDP, TabularEnv, gridworld


def random_mdp(seed: int = 0, states: int = 7, actions: int = 3, gamma: float = 0.9) -> DeterministicMDP:
    rng = torch.Generator().manual_seed(seed)
    terminal = torch.arange(states) == states - 1
    return DeterministicMDP(
        next_state=torch.randint(states, (states, actions), generator=rng),
        reward=torch.randn(states, actions, dtype=torch.float64, generator=rng),
        terminal=terminal,
        gamma=gamma,
        start=(~terminal).double() / (states - 1),
    )


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("mdp", [random_mdp(), random_mdp(1, gamma=0.99), gridworld(4)], ids=["a", "b", "grid"])
def test_the_soft_optimum_is_that_of_value_iteration(mdp: DeterministicMDP, temperature: float) -> None:
    led_to, reward, terminal = mdp.next_state.tolist(), mdp.reward.tolist(), mdp.terminal.tolist()
    value = [0.0] * mdp.num_states
    for _ in range(int(math.log(1e-12) / math.log(mdp.gamma))):
        before = value
        value = [0.0] * mdp.num_states
        for s in range(mdp.num_states):
            if not terminal[s]:
                q = [r + mdp.gamma * before[after] for r, after in zip(reward[s], led_to[s], strict=True)]
                top = max(q)
                value[s] = top + temperature * math.log(sum(math.exp((each - top) / temperature) for each in q))
    optimum = mdp.soft_optimum(temperature)
    assert optimum.value.tolist() == pytest.approx(value, abs=1e-8)


def test_the_parts_of_the_soft_optimum_belong_together() -> None:
    mdp, alive = random_mdp(), slice(0, 6)
    optimum = mdp.soft_optimum(0.3)
    assert torch.equal(optimum.advantage, optimum.q - optimum.value[:, None])
    torch.testing.assert_close(optimum.policy[alive], (optimum.advantage[alive] / 0.3).exp(), rtol=1e-10, atol=0)
    torch.testing.assert_close(optimum.policy.sum(1), torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(optimum.q, mdp.reward + mdp.gamma * optimum.value[mdp.next_state], rtol=0, atol=0)
    assert optimum.value[-1] == 0


def test_a_cold_optimum_is_the_best_deterministic_policy() -> None:
    mdp = random_mdp(states=4, actions=2)
    best = torch.stack(
        [mdp.evaluate(torch.eye(2, dtype=torch.float64)[list(each)]) for each in itertools.product(range(2), repeat=4)]
    ).amax(0)
    torch.testing.assert_close(mdp.soft_optimum(1e-4).value, best, rtol=0, atol=2e-3)


def test_a_policy_is_worth_what_it_earns() -> None:
    mdp = random_mdp()
    policy = torch.rand(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).softmax(1)
    value = [0.0] * 7
    for _ in range(400):
        value = [
            0.0
            if s == 6
            else sum(
                float(policy[s, a]) * (float(mdp.reward[s, a]) + 0.9 * value[int(mdp.next_state[s, a])])
                for a in range(3)
            )
            for s in range(7)
        ]
    assert mdp.evaluate(policy).tolist() == pytest.approx(value, abs=1e-12)


def test_the_sum_of_advantages_telescopes() -> None:
    """sum_t gamma^t A*(s_t, a_t) = gamma^k V*(s_k) - V*(s_0) + sum_t gamma^t r_t (arXiv 2310.13639, appendix D.2)."""
    rng = torch.Generator().manual_seed(0)
    for mdp in (random_mdp(gamma=0.97), gridworld(4)):
        optimum = mdp.soft_optimum(0.1)
        for _ in range(50):
            first = state = int(torch.multinomial(mdp.start, 1, generator=rng))
            advantages, rewards, steps = 0.0, 0.0, 0
            while steps < 10 and not mdp.terminal[state]:
                action = int(torch.randint(mdp.num_actions, (1,), generator=rng))
                advantages += mdp.gamma**steps * float(optimum.advantage[state, action])
                rewards += mdp.gamma**steps * float(mdp.reward[state, action])
                state, steps = int(mdp.next_state[state, action]), steps + 1
            telescoped = mdp.gamma**steps * float(optimum.value[state]) - float(optimum.value[first]) + rewards
            assert advantages == pytest.approx(telescoped, abs=1e-8)


def test_the_gridworld_is_a_grid() -> None:
    mdp = gridworld(3)
    assert mdp.next_state.tolist()[:4] == [[1, 3, 0, 0], [2, 4, 0, 1], [2, 5, 1, 2], [4, 6, 3, 0]]
    assert mdp.terminal.tolist() == [False] * 8 + [True]
    assert mdp.reward.nonzero().tolist() == [[5, 1], [7, 0]]
    assert mdp.start.tolist() == [1 / 8] * 8 + [0]
    distance = torch.tensor([4, 3, 2, 3, 2, 1, 2, 1])
    assert mdp.soft_optimum(1e-3).value[:8].tolist() == pytest.approx((0.9 ** (distance - 1)).tolist(), abs=0.01)


def test_the_environment_plays_the_tables() -> None:
    env = gymnasium.make("decisionrl/PreferenceGridworld-v0", size=4, max_steps=20).unwrapped
    assert isinstance(env, TabularEnv)
    mdp, rng = gridworld(4), torch.Generator().manual_seed(0)
    ends = set()
    for seed in range(30):
        state, _ = env.reset(seed=seed)
        assert env.reset(seed=seed)[0] == state
        assert not mdp.terminal[state]
        for step in range(20):
            action = int(torch.randint(4, (1,), generator=rng))
            led_to, reward, terminated, truncated, _ = env.step(action)
            assert led_to == int(mdp.next_state[state, action])
            assert reward == float(mdp.reward[state, action])
            assert terminated == bool(mdp.terminal[led_to])
            assert truncated == (step == 19 and not terminated)
            state = led_to
            if terminated or truncated:
                ends.add(terminated)
                break
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(0)
    assert ends == {True, False}
    with pytest.raises(gymnasium.error.ResetNeeded):
        TabularEnv().step(0)


@pytest.mark.parametrize("name", ["PreferenceGridworld", "PointReach", "TwoModes"])
def test_labs_are_gymnasium_environments(name: str) -> None:
    env = gymnasium.make(f"decisionrl/{name}-v0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=r".*different from the unwrapped version.*|.*render.*|.*infinity.*")
        check_env(env.unwrapped, skip_render_check=True)
    world = make_world(f"decisionrl/{name}-v0", num_envs=2)
    assert world.observation_space == env.observation_space
    world.close()


def test_tables_that_do_not_fit() -> None:
    mdp = gridworld(2)

    def changed(**changes: object) -> None:
        fields = ("next_state", "reward", "terminal", "gamma", "start")
        DeterministicMDP(**{**{name: getattr(mdp, name) for name in fields}, **changes})

    with pytest.raises(ValueError, match=r"gamma = 1; valid: between 0 and 1"):
        changed(gamma=1)
    with pytest.raises(ValueError, match=r"next_state \(4, 4\) and reward \(4, 3\); valid: both \[S, A\]"):
        changed(reward=mdp.reward[:, :3])
    with pytest.raises(ValueError, match=r"terminal \(3,\) and start \(4,\); valid: \[4\]"):
        changed(terminal=mdp.terminal[:3])
    with pytest.raises(ValueError, match="next_state is from 0 to 4; valid: 0 to 3"):
        changed(next_state=mdp.next_state + (mdp.next_state == 3))
    with pytest.raises(ValueError, match="start: valid are probabilities with sum 1 that are 0 in terminal states"):
        changed(start=torch.full((4,), 0.25))
    with pytest.raises(ValueError, match="temperature = 0; valid: a positive number"):
        mdp.soft_optimum(0)
    with pytest.raises(ValueError, match="size = 1; valid: a whole number >= 2"):
        gridworld(1)
    with pytest.raises(ValueError, match="max_steps = 0; valid: a whole number >= 1"):
        TabularEnv(max_steps=0)
