"""Rewards from preferences: the loss against a loop, its invariance, recovery of rewards, and P-IQL's schedule."""

import copy
import dataclasses
import math

import pytest
import torch
from toy_segments import ACTIONS, SEEN, behavior, padded, preferences, rng, segments

from decisionrl.experience.preferences import PreferenceBatch
from decisionrl.learner import GradientLearner
from decisionrl.objectives.implicit_q import ImplicitQLearning
from decisionrl.objectives.reward_model import BradleyTerryReward, OnLearnedReward, with_reward_model
from decisionrl.policies.critics import RewardMLP, StateValue, TwinQ
from decisionrl.reference import Reference


def model(aggregate="sum", seed: int = 0, hidden=(8,)) -> RewardMLP:
    return RewardMLP(SEEN, ACTIONS, hidden=hidden, aggregate=aggregate, generator=rng(seed)).double()


def batch(label=(1.0, 0.0, 0.3, 0.5), weight=None) -> PreferenceBatch:
    return preferences([0, 1, 2, 3], [1, 2, 3, 0], label, weight)


def test_loss_and_accuracy_are_those_of_a_loop() -> None:
    reward, pairs = model(), batch(weight=(1.0, 2.0, 0.5, 1.0))
    loss = BradleyTerryReward()(reward, pairs)
    scores = reward.segment_scores(pairs.segments).tolist()
    total = right = strict = weights = 0.0
    for i, j, y, w in zip(
        pairs.first.tolist(), pairs.second.tolist(), pairs.label.tolist(), pairs.weight.tolist(), strict=True
    ):
        p = 1 / (1 + math.exp(scores[i] - scores[j]))
        total -= w * (y * math.log(p) + (1 - y) * math.log(1 - p))
        weights += w
        if y != 0.5:
            strict += w
            right += w * ((p > 0.5) == (y > 0.5))
    assert float(loss.value.detach()) == pytest.approx(total / weights)
    assert float(loss.metrics["accuracy"]) == pytest.approx(right / strict)


def test_a_constant_in_every_reward_changes_nothing() -> None:
    reward = model()
    values = []
    for constant in (0.0, 7.0):
        with torch.no_grad():
            reward.judge.outputs[0].bias.fill_(constant)
        reward.zero_grad()
        loss = BradleyTerryReward()(reward, batch()).value
        loss.backward()
        values.append(loss.detach())
        assert reward.judge.outputs[0].bias.grad.abs().max() < 1e-12
    torch.testing.assert_close(*values)


def test_swapped_segments_with_swapped_labels_are_the_same_pair() -> None:
    reward, pairs = model("mean"), batch()
    swapped = dataclasses.replace(pairs, first=pairs.second, second=pairs.first, label=1 - pairs.label)
    losses = [BradleyTerryReward()(reward, each).value for each in (pairs, swapped)]
    torch.testing.assert_close(*losses)


def test_weightless_pairs_and_padding_do_not_matter() -> None:
    reward, pairs = model("mean"), batch(weight=(1.0, 1.0, 1.0, 0.0))
    three = PreferenceBatch(
        segments=padded(pairs.segments, 2), first=pairs.first[:3], second=pairs.second[:3], label=pairs.label[:3]
    )
    losses = [BradleyTerryReward()(reward, each).value for each in (pairs, three)]
    torch.testing.assert_close(*losses)
    nothing = dataclasses.replace(pairs, weight=torch.zeros(4, dtype=torch.float64))
    assert float(BradleyTerryReward()(reward, nothing).value.detach()) == 0


def test_loss_is_finite_for_scores_far_apart() -> None:
    reward = model()
    with torch.no_grad():
        reward.judge.outputs[0].weight.mul_(1e5)
    loss = BradleyTerryReward()(reward, batch(label=(1.0, 0.0, 1.0, 0.0))).value
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in reward.parameters())


def test_rewards_are_recovered_from_preferences() -> None:
    reward, truth = model(hidden=()), torch.tensor([1.0, -2.0, 0.5, 0.0, 1.5], dtype=torch.float64)
    learner = GradientLearner(reward, BradleyTerryReward(), torch.optim.Adam(reward.parameters(), 0.05))
    accuracy = torch.zeros(())
    for seed in range(400):
        steps = segments(rows=64, steps=3, seed=seed)
        returns = torch.cat([steps.observation, steps.action], 2).sum(1) @ truth
        first, second = torch.arange(32), torch.arange(32, 64)
        label = torch.sigmoid(returns[32:] - returns[:32])  # exact probabilities, soft labels
        accuracy = learner.update(PreferenceBatch(segments=steps, first=first, second=second, label=label)).metrics[
            "accuracy"
        ]
    torch.testing.assert_close(reward.judge.outputs[0].weight[0], truth, atol=0.05, rtol=0)
    assert accuracy > 0.95


def parts(seed: int = 0) -> tuple[GradientLearner, GradientLearner]:
    policy, reward = behavior(), model(seed=seed)
    q = TwinQ(SEEN, ACTIONS, hidden=(8,), generator=rng(1)).double()
    value = StateValue(SEEN, hidden=(8,), generator=rng(2)).double()
    target = Reference(q, every=1, rate=0.005)
    objective = ImplicitQLearning(q, value, target)
    iql = GradientLearner(
        policy,
        OnLearnedReward(objective=objective, reward=reward),
        torch.optim.Adam([*policy.parameters(), *objective.parameters()], 1e-3),
        components={"critics": objective, "target": target},
        after_update=[target.follow],
    )
    return iql, GradientLearner(reward, BradleyTerryReward(), torch.optim.Adam(reward.parameters(), 1e-3))


def test_steps_of_segments_have_the_rewards_of_the_model() -> None:
    iql, reward = parts()
    pairs = batch()
    seen = []

    def objective(policy, steps):
        seen.append(steps)
        return iql.components["critics"](policy, steps)

    wrapped = OnLearnedReward(objective=objective, reward=reward.policy)
    loss = wrapped(iql.policy, pairs)
    (steps,) = seen
    assert steps.reward.shape == (4, 4)
    assert not steps.reward.requires_grad
    torch.testing.assert_close(steps.reward, reward.policy.rewards(pairs.segments)[:, :-1].detach())
    torch.testing.assert_close(steps.extras["next_observation"], pairs.segments.observation[:, 1:])
    unrewarded = pairs.segments.replace(reward=pairs.segments.reward * torch.nan)
    assert torch.equal(wrapped(iql.policy, dataclasses.replace(pairs, segments=unrewarded)).value, loss.value)


def test_the_reward_moves_first_and_then_stays() -> None:
    iql, reward = parts()
    learner = with_reward_model(iql, reward, updates=3)
    assert learner.policy is iql.policy

    def snapshot(module) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in module.parameters()]

    def moved(before, module) -> bool:
        return any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))

    for update in range(6):
        modules = (iql.policy, iql.components["critics"].q, iql.components["critics"].value, reward.policy)
        before = [snapshot(module) for module in modules]
        metrics = learner.update(batch()).metrics
        assert [moved(*each) for each in zip(before, modules, strict=True)] == [True, True, True, update < 3]
        assert ("reward/loss" in metrics) == (update < 3)
        assert "q_loss" in metrics
    assert (iql.steps, reward.steps) == (6, 3)  # one optimizer throughout: its moments stay


@pytest.mark.parametrize("done", [2, 3, 4])
def test_state_round_trip_around_the_change(done: int) -> None:
    learner = with_reward_model(*parts(), updates=3)
    for _ in range(done):
        learner.update(batch())
    other = with_reward_model(*parts(seed=5), updates=3)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for _ in range(3):
        ours, theirs = learner.update(batch()).metrics, other.update(batch()).metrics
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
