"""Reward shaping."""

import pytest
import torch
from torch import nn
from toy_rollout_batches import of_lengths, padded, random_rollout, rollout

from decisionrl.pipeline.returns import outcomes
from decisionrl.pipeline.rewards import (
    KLReward,
    OverlongPenalty,
    ReferenceLogProb,
    ScaleReward,
    add_to_last_step,
)
from decisionrl.policies.evaluation import Evaluation


class Bernoulli(nn.Module):
    """log pi(1) = logsigmoid(w o + b), with dropout that only evaluation mode turns off."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1, dtype=torch.float64)
        nn.init.constant_(self.linear.weight, weight)
        self.dropout = nn.Dropout(0.5)

    def evaluate(self, batch):
        logit = self.dropout(self.linear(batch.observation))[..., 0]
        return Evaluation(nn.functional.logsigmoid(torch.where(batch.action == 1, logit, -logit)))


def observed(seed=0):
    batch = random_rollout(seed)
    return batch.replace(observation=torch.randn(*batch.mask.shape, 1, dtype=torch.float64))


def test_outcome_is_the_sum_over_own_steps():
    batch = random_rollout(0)
    expected = [
        sum(r for r, m in zip(row.tolist(), own.tolist(), strict=True) if m)
        for row, own in zip(batch.reward, batch.mask, strict=True)
    ]
    outcome = outcomes(batch.reward, batch.mask)
    torch.testing.assert_close(outcome, torch.tensor(expected, dtype=torch.float64))
    wider = padded(batch)
    torch.testing.assert_close(outcomes(wider.reward, wider.mask), outcome)


def test_last_own_step_gets_the_bonus_wherever_it_lies():
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    reward = add_to_last_step(rollout(mask), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)).reward
    assert reward.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 3], [4, 0, 0, 0]]


@pytest.mark.parametrize(
    ("estimator", "difference", "expected"),
    [("k1", -0.5, -0.5), ("k2", -0.5, 0.125), ("k3", -0.5, 0.148721), ("k3", 0.5, 0.106531), ("k1", 0.0, 0.0)],
)
def test_kl_reward_of_one_step(estimator, difference, expected):
    one = torch.ones(1, 1, dtype=torch.float64)
    batch = rollout(torch.ones(1, 1), reward=one, log_prob=difference * one, extras={"reference_log_prob": 0 * one})
    shaped = KLReward(coefficient=2.0, estimator=estimator)(batch)
    assert shaped.reward.item() == pytest.approx(1 - 2 * expected, abs=2e-6)
    assert shaped.metrics["reference_kl"].item() == pytest.approx(expected, abs=1e-6)


def test_kl_reward_leaves_other_steps_alone_and_ignores_padding():
    batch = random_rollout(1)
    shaped, longer = KLReward(coefficient=0.1)(batch), KLReward(coefficient=0.1)(padded(batch))
    own = batch.mask
    expected = batch.reward - 0.1 * (batch.log_prob - batch.extras["reference_log_prob"])
    torch.testing.assert_close(shaped.reward[own], expected[own])
    assert shaped.reward[~own].isnan().all()
    torch.testing.assert_close(longer.reward[longer.mask], shaped.reward[own])
    torch.testing.assert_close(longer.metrics["reference_kl"], shaped.metrics["reference_kl"])
    assert shaped.metrics["reference_kl"].isfinite()


def test_kl_reward_needs_a_reference():
    with pytest.raises(ValueError, match="put ReferenceLogProb earlier"):
        KLReward(coefficient=0.1)(rollout(torch.ones(1, 1)))


@pytest.mark.parametrize(("length", "penalty"), [(1, 0.0), (6, 0.0), (7, -0.25), (8, -0.5), (10, -1.0), (12, -1.0)])
def test_overlong_penalty(length, penalty):
    reward = OverlongPenalty(max_length=10, buffer=4)(rollout(of_lengths(length, 12))).reward
    assert reward[0].sum().item() == penalty
    assert reward[0, length - 1].item() == penalty
    doubled = OverlongPenalty(max_length=10, buffer=4, factor=2.0)(rollout(of_lengths(length, 12))).reward
    torch.testing.assert_close(doubled, 2 * reward)


def test_overlong_penalty_counts_own_steps():
    mask = torch.tensor([[1, 0, 0, 1, 1]])
    assert OverlongPenalty(max_length=4, buffer=2)(rollout(mask)).reward.tolist() == [[0, 0, 0, 0, -0.5]]


def test_scale():
    batch = random_rollout(2)
    torch.testing.assert_close(ScaleReward(factor=0.5)(batch).reward, batch.reward / 2, equal_nan=True)


def test_reference_is_a_frozen_copy_in_evaluation_mode():
    policy = Bernoulli(0.7).train()
    reference, batch = ReferenceLogProb(policy), observed()
    expected = policy.eval().evaluate(batch).log_prob.detach()
    before = reference(batch).extras["reference_log_prob"]
    torch.testing.assert_close(before, expected, equal_nan=True)
    assert not before.requires_grad
    with torch.no_grad():
        policy.linear.weight.add_(1.0)
    torch.testing.assert_close(reference(batch).extras["reference_log_prob"], expected, equal_nan=True)
    assert policy.linear.weight.requires_grad

    reference.refresh(policy)
    after = reference(batch).extras["reference_log_prob"]
    torch.testing.assert_close(after, policy.evaluate(batch).log_prob.detach(), equal_nan=True)
    assert not torch.allclose(after[batch.mask], before[batch.mask])


def test_reference_of_the_collecting_policy_has_no_kl():
    policy, batch = Bernoulli(0.3).eval(), observed()
    batch = batch.replace(log_prob=policy.evaluate(batch).log_prob.detach())
    shaped = KLReward(coefficient=1.0)(ReferenceLogProb(policy)(batch))
    torch.testing.assert_close(shaped.reward, batch.reward, equal_nan=True)


def test_reference_state_round_trip():
    batch, first, second = observed(), ReferenceLogProb(Bernoulli(0.7)), ReferenceLogProb(Bernoulli(-0.2))
    second.load_state_dict(first.state_dict())
    torch.testing.assert_close(
        second(batch).extras["reference_log_prob"], first(batch).extras["reference_log_prob"], equal_nan=True
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: KLReward(coefficient=-1.0), "coefficient = -1.0; valid"),
        (lambda: OverlongPenalty(max_length=4, buffer=5), "buffer = 5; valid: 1 to max_length = 4"),
        (lambda: OverlongPenalty(max_length=4, buffer=2, factor=-1.0), "factor = -1.0; valid"),
        (lambda: ScaleReward(factor=0.0), "factor = 0.0; valid"),
    ],
)
def test_bad_configuration(build, message):
    with pytest.raises(ValueError, match=message):
        build()
