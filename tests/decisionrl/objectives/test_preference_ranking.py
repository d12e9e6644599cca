"""The Plackett-Luce loss of ranked sequences."""

import dataclasses
import itertools
import math

import pytest
import torch
from toy_preferences import Stated, drawn, loss_and_gradient, sequences

from decisionrl.experience.preferences import PreferenceBatch, all_pairs
from decisionrl.objectives.preference import PairwisePreference
from decisionrl.objectives.preference_ranking import PlackettLuce
from decisionrl.objectives.preference_scores import SequenceScore

SCORE = SequenceScore(scale=0.5)
OBJECTIVE = PlackettLuce(score=SCORE)


def ranked(score: list[float], *, group: list[int] | None = None, seed: int = 0) -> tuple[Stated, PreferenceBatch]:
    mask = torch.ones(len(score), 3, dtype=torch.bool)
    lists = None if group is None else torch.tensor(group)
    segments = sequences(mask, group=lists)
    return Stated(drawn(len(score), 3, seed=seed)), all_pairs(segments, torch.tensor(score, dtype=torch.float64))


def by_hand(policy: Stated, score: list[float]) -> float:
    own = (0.5 * policy.log_prob.sum(1)).tolist()
    left = sorted(range(len(score)), key=lambda i: -score[i])
    total = 0.0
    while left:
        total -= own[left[0]] - math.log(sum(math.exp(own[i]) for i in left))
        left = left[1:]
    return total


def test_the_formula_in_loops() -> None:
    score = [0.3, -2.0, 5.0, 1.0]
    policy, batch = ranked(score)
    assert OBJECTIVE(policy, batch).value.item() == pytest.approx(by_hand(policy, score))


def test_it_is_a_likelihood() -> None:
    """Over all rankings of three it sums to 1."""
    total = sum(
        math.exp(-OBJECTIVE(*ranked(list(order))).value.item()) for order in itertools.permutations([0.0, 1.0, 2.0])
    )
    assert total == pytest.approx(1)


def test_two_are_a_pair_and_one_is_nothing() -> None:
    policy, batch = ranked([1.0, 4.0])
    found, gradient = loss_and_gradient(OBJECTIVE, policy, batch)  # type: ignore[arg-type]
    expected, other = loss_and_gradient(PairwisePreference(score=SCORE), policy, batch)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, other)
    assert OBJECTIVE(*ranked([1.0])).value == 0


def test_ties_do_not_compete() -> None:
    policy, batch = ranked([2.0, 2.0, 2.0])
    found, gradient = loss_and_gradient(OBJECTIVE, policy, batch)  # type: ignore[arg-type]
    assert found == 0
    assert not gradient.any()
    policy, batch = ranked([2.0, 2.0, 1.0])
    own = (0.5 * policy.log_prob.sum(1)).tolist()
    expected = sum(math.log1p(math.exp(own[2] - own[i])) for i in (0, 1))
    assert OBJECTIVE(policy, batch).value.item() == pytest.approx(expected)


def test_groups_are_lists_and_the_order_of_rows_does_not_matter() -> None:
    score, group = [0.3, -2.0, 5.0, 1.0, 0.5], [7, 3, 7, 3, 7]
    policy, batch = ranked(score, group=group)
    parts = []
    for number in (7, 3):
        rows = [i for i in range(5) if group[i] == number]
        parts.append(by_hand(Stated(policy.log_prob.detach()[rows]), [score[i] for i in rows]))
    loss = OBJECTIVE(policy, batch).value
    assert loss.item() == pytest.approx(sum(parts) / 2)
    order = [4, 2, 0, 1, 3]
    _, other = ranked([score[i] for i in order], group=[group[i] for i in order])
    torch.testing.assert_close(OBJECTIVE(Stated(policy.log_prob.detach()[order]), other).value, loss)


def test_accuracy_and_errors() -> None:
    policy, batch = ranked([0.0, 1.0, 2.0])
    policy = Stated(torch.tensor([[0.0], [2.0], [1.0]], dtype=torch.float64).expand(3, 3) / 3)
    assert OBJECTIVE(policy, batch).metrics["accuracy"].item() == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"batch\.score = None; valid: a teacher's score"):
        OBJECTIVE(policy, dataclasses.replace(batch, score=None))
