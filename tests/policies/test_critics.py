"""Critics: the networks that are written down, twins that differ, rewards and scores of segments, padding, states."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional

from decisionrl.policies.critics import RewardMLP, StateValue, TwinQ

SEEN = spaces.Box(-np.inf, np.inf, (3,))
ACTIONS = spaces.Box(-1, 1, (2,))


@dataclass(frozen=True)
class Experience:
    observation: Tensor
    action: Tensor
    mask: Tensor
    state: Tensor | None = None
    start: Tensor | None = None


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def experience(batch: int = 3, steps: int = 4) -> Experience:
    return Experience(
        observation=torch.randn(batch, steps, 3, generator=rng(1), dtype=torch.float64),
        action=torch.randn(batch, steps, 2, generator=rng(2), dtype=torch.float64),
        mask=torch.ones(batch, steps, dtype=torch.bool),
    )


def by_hand(critic: nn.Module, tower: int, features: Tensor) -> Tensor:
    judge = critic.judge
    for i in range(2):
        features = (features @ getattr(judge.towers, f"weight_{i}")[tower]).add(
            getattr(judge.towers, f"bias_{i}")[tower]
        )
        features = features.relu()
    return functional.linear(features, judge.outputs[tower].weight, judge.outputs[tower].bias).squeeze(-1)


def test_networks_are_those_that_are_written_down() -> None:
    batch = experience()
    observation, action = batch.observation.flatten(0, 1), batch.action.flatten(0, 1)
    both = torch.cat([observation, action], 1)
    options = {"hidden": (8, 6), "normalize_observations": False, "generator": rng()}
    q = TwinQ(SEEN, ACTIONS, **options).double()
    found = q(observation, action)
    assert found.shape == (2, 12)
    assert not torch.allclose(found[0], found[1])
    for tower in range(2):
        torch.testing.assert_close(found[tower], by_hand(q, tower, both))
    value = StateValue(SEEN, **options).double()
    torch.testing.assert_close(value(observation), by_hand(value, 0, observation))
    reward = RewardMLP(SEEN, ACTIONS, **options).double()
    torch.testing.assert_close(reward.rewards(batch).flatten(), by_hand(reward, 0, both))


def test_twins_have_gradients_of_their_own() -> None:
    q = TwinQ(SEEN, ACTIONS, hidden=(8,), generator=rng()).double()
    batch = experience()
    q(batch.observation[0], batch.action[0])[0].sum().backward()
    assert q.judge.towers.weight_0.grad[0].any()
    assert not q.judge.towers.weight_0.grad[1].any()
    assert q.judge.outputs[1].weight.grad is None or not q.judge.outputs[1].weight.grad.any()


def test_discrete_actions_are_indicators() -> None:
    q = TwinQ(spaces.Discrete(4), spaces.Discrete(3, start=1), hidden=(), generator=rng())
    table = q(torch.arange(4).repeat_interleave(3), torch.arange(1, 4).repeat(4))
    weight, bias = q.judge.outputs[0].weight[0], q.judge.outputs[0].bias
    torch.testing.assert_close(table[0].view(4, 3), weight[:4, None] + weight[None, 4:] + bias)


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_segment_scores_add_up_valid_steps_alone(aggregate: str) -> None:
    batch = experience()
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    padded = Experience(
        torch.where(mask[..., None], batch.observation, torch.nan),
        torch.where(mask[..., None], batch.action, torch.inf),
        mask,
    )
    model = RewardMLP(SEEN, ACTIONS, hidden=(8,), aggregate=aggregate, generator=rng()).double()
    rewards = model.rewards(batch)
    torch.testing.assert_close(model.rewards(padded), torch.where(mask, rewards, 0.0))
    scores = model.segment_scores(padded)
    for i, length in enumerate((4, 2, 0)):
        expected = sum(float(rewards[i, t].detach()) for t in range(length))
        expected /= length if aggregate == "mean" and length else 1
        assert float(scores[i].detach()) == pytest.approx(expected)
    scores.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", [TwinQ, StateValue, RewardMLP])
def test_states_round_trip_with_the_units_of_observations(kind) -> None:
    def made(seed: int) -> nn.Module:
        arguments = (SEEN,) if kind is StateValue else (SEEN, ACTIONS)
        return kind(*arguments, hidden=(8,), generator=rng(seed)).double()

    def outputs(critic: nn.Module) -> Tensor:
        if kind is RewardMLP:
            return critic.rewards(batch)
        observation, action = batch.observation.flatten(0, 1), batch.action.flatten(0, 1)
        return critic(observation) if kind is StateValue else critic(observation, action)

    batch, critic, other = experience(), made(0), made(1)
    before = outputs(critic)
    critic.update_normalizer(5 * batch.observation + 1, batch.mask)
    assert not torch.equal(outputs(critic), before)
    assert not torch.equal(outputs(other), outputs(critic))
    other.load_state_dict(critic.state_dict())
    assert torch.equal(outputs(other), outputs(critic))


def test_unknown_aggregate_is_named() -> None:
    with pytest.raises(ValueError, match="aggregate = 'last'; valid: sum, mean"):
        RewardMLP(SEEN, ACTIONS, aggregate="last")
