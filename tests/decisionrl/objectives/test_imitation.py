"""Behavior cloning against loops: all steps, preferred segments, ties, weights, padding."""

import dataclasses

import pytest
import torch
from toy_segments import behavior, padded, preferences, segments

from decisionrl.experience.preferences import all_pairs
from decisionrl.objectives.imitation import BehaviorCloning, preferred_count


def close(found: torch.Tensor, expected: float) -> bool:
    return float(found.detach()) == pytest.approx(expected, abs=1e-12)


def log_prob(policy, batch) -> list[list[float]]:
    return policy.evaluate(batch).log_prob.tolist()


def test_mean_over_valid_steps() -> None:
    policy, batch = behavior(), segments()
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [False] * 5, [True] * 4 + [False]])
    lp, total, count = log_prob(policy, batch), 0.0, 0
    for i in range(4):
        for t in range(5):
            if mask[i, t]:
                total, count = total + lp[i][t], count + 1
    loss = BehaviorCloning()(policy, batch.replace(mask=mask))
    assert close(loss.value, -total / count)
    assert close(loss.metrics["log_prob"], total / count)


def test_weights_multiply_steps() -> None:
    policy = behavior()
    weight = torch.rand(4, 5, dtype=torch.float64)
    batch = segments(extras={"weight": weight})
    lp = log_prob(policy, batch)
    expected = -sum(float(weight[i, t]) * lp[i][t] for i in range(4) for t in range(5)) / 20
    assert close(BehaviorCloning(weight="weight")(policy, batch).value, expected)
    with pytest.raises(ValueError, match=r"weight = 'gain'; valid: one of the extras, \['weight'\]"):
        BehaviorCloning(weight="gain")(policy, batch)


def test_all_segments_count_once_however_many_pairs_they_are_in() -> None:
    policy, batch = behavior(), preferences([0, 0, 0], [1, 2, 3], [0.0, 0.5, 1.0])
    assert torch.equal(BehaviorCloning()(policy, batch).value, BehaviorCloning()(policy, batch.segments).value)


def test_preferred_is_one_segment_of_a_strict_pair_and_both_of_a_tie() -> None:
    policy = behavior()
    batch = preferences([0, 1, 2, 3], [4, 5, 6, 7], [0.0, 1.0, 0.5, 0.8], rows=8)
    assert preferred_count(batch).tolist() == [1, 0, 1, 0, 0, 1, 1, 1]
    lp = log_prob(policy, batch.segments)
    kept = [0, 5, 2, 6, 7]
    expected = -sum(sum(lp[row]) for row in kept) / (5 * len(kept))
    assert close(BehaviorCloning(which="preferred")(policy, batch).value, expected)


def test_preferred_of_ranked_segments_counts_every_pair_but_ties() -> None:
    policy, batch = behavior(), segments()
    score = torch.tensor([1.0, 3.0, 3.0, 2.0], dtype=torch.float64)
    pairs = all_pairs(batch, score)
    lp, total, count = log_prob(policy, batch), 0.0, 0
    for i in range(4):
        for j in range(4):
            if score[i] > score[j]:
                total, count = total + sum(lp[i]), count + 5
    assert preferred_count(pairs).tolist() == [0, 2, 2, 1]
    assert close(BehaviorCloning(which="preferred")(policy, pairs).value, -total / count)


def test_a_batch_of_ties_that_do_not_count_has_loss_and_gradient_0() -> None:
    policy = behavior()
    pairs = all_pairs(segments(), torch.ones(4, dtype=torch.float64))
    loss = BehaviorCloning(which="preferred")(policy, pairs)
    loss.value.backward()
    assert float(loss.value.detach()) == 0
    assert all(not parameter.grad.any() for parameter in policy.parameters())


@pytest.mark.parametrize("which", ["all", "preferred"])
def test_padding_does_not_matter(which) -> None:
    policy, batch = behavior(), preferences([0, 1], [2, 3], [1.0, 0.5])
    wider = dataclasses.replace(batch, segments=padded(batch.segments, 3))
    losses = [BehaviorCloning(which=which)(policy, each).value for each in (batch, wider)]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, list(policy.parameters())) for loss in losses]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="which = 'best'; valid: all, preferred"):
        BehaviorCloning(which="best")
    with pytest.raises(ValueError, match="valid with a PreferenceBatch"):
        BehaviorCloning(which="preferred")(behavior(), segments())
