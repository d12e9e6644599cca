"""Filters and weights that read the batch, and the one by entropy."""

import pytest
import torch
from toy_minibatch import Told, random_terms, tensor, terms_of

from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.step_filters import BatchWeight, Kept, TopEntropy
from decisionrl.objectives.surrogates import Reinforce

ONES = torch.ones(2, 2, dtype=torch.float64)


def test_kept_steps_and_kept_sequences() -> None:
    steps = torch.tensor([[True, False], [True, True]])
    assert Kept()(terms_of(ONES, ONES, extras={"kept": steps})).tolist() == steps.tolist()
    rows = terms_of(ONES, ONES, extras={"mine": torch.tensor([True, False])})
    assert Kept(key="mine")(rows).tolist() == [[True, True], [False, False]]


def test_weights() -> None:
    terms = terms_of(ONES, ONES, extras={"weight": tensor([[1.0, 2.0], [0.5, 0.0]])})
    value = PolicyGradient(surrogate=Reinforce(), weights=[BatchWeight()])(Told(terms.evaluation), terms.batch).value
    (gradient,) = torch.autograd.grad(value, terms.evaluation.log_prob)
    torch.testing.assert_close(gradient, -tensor([[1.0, 2.0], [0.5, 0.0]]) / 4)


def test_weights_of_sequences_multiply() -> None:
    extras = {"weight": tensor([1.0, 3.0])[0], "other": tensor([[1.0, 2.0], [3.0, 4.0]])}
    terms = terms_of(ONES, ONES, extras=extras)
    objective = PolicyGradient(surrogate=Reinforce(), weights=[BatchWeight(), BatchWeight(key="other")])
    value = objective(Told(terms.evaluation), terms.batch).value
    (gradient,) = torch.autograd.grad(value, terms.evaluation.log_prob)
    torch.testing.assert_close(gradient, -tensor([[1.0, 2.0], [9.0, 12.0]]) / 4)


@pytest.mark.parametrize("part", [Kept(), BatchWeight()])
def test_missing_extras(part: Kept | BatchWeight) -> None:
    with pytest.raises(ValueError, match=rf"extras have no '{part.key}', only \['other'\]"):
        part(terms_of(ONES, ONES, extras={"other": ONES}))


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5, 1.0])
def test_top_entropy(fraction: float) -> None:
    terms = random_terms(6, 7)
    kept = TopEntropy(fraction=fraction)(terms) & terms.mask
    count = int(terms.mask.sum())
    number = int(kept.sum())
    assert abs(number - fraction * count) <= 1
    ranked = terms.entropy[terms.mask].sort(descending=True).values
    assert terms.entropy[kept].sort(descending=True).values.tolist() == ranked[:number].tolist()


def test_top_entropy_error() -> None:
    with pytest.raises(ValueError, match=r"fraction = 0; valid: in \(0, 1\]"):
        TopEntropy(fraction=0)
