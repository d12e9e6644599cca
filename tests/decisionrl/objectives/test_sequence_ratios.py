"""The clip on sequence ratios: against loops, and its two forms against each other."""

import math
from dataclasses import replace

import pytest
import torch
from toy_minibatch import Told, random_terms, tensor, terms_of

from decisionrl.objectives.aggregation import seq_mean_token_mean
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.sequence_ratios import SequenceClip
from decisionrl.objectives.step_filters import Kept
from decisionrl.objectives.surrogates import Clip
from decisionrl.objectives.terms import Terms


def gradient(surrogate: SequenceClip | Clip, terms: Terms) -> torch.Tensor:
    terms = replace(terms)
    loss = seq_mean_token_mean(surrogate(terms), terms.mask)
    return torch.autograd.grad(loss, terms.evaluation.log_prob)[0]


@pytest.mark.parametrize("token_gradient", [True, False])
def test_against_loops(token_gradient: bool) -> None:
    terms = random_terms(6, 5)
    low, high = 0.1, 0.15
    found = SequenceClip(low=low, high=high, token_gradient=token_gradient)(terms)
    stopped = 0
    for i in range(6):
        steps = terms.mask[i].nonzero().flatten().tolist()
        gaps = [(terms.evaluation.log_prob[i, t] - terms.old_log_prob[i, t]).item() for t in steps]
        ratio = math.exp(sum(gaps) / len(gaps))
        for t in steps:
            a = terms.advantage[i, t].item()
            bounded = min(max(ratio, 1 - low), 1 + high)
            assert found[i, t].item() == pytest.approx(-min(ratio * a, bounded * a), rel=1e-12)
            stopped += bounded * a < ratio * a
    assert stopped > 0
    fraction = SequenceClip(low=low, high=high).metrics(terms)["clip_fraction"]
    assert fraction.item() == pytest.approx(stopped / terms.mask.sum().item())


def test_the_two_forms_have_one_gradient_where_a_row_shares_its_advantage() -> None:
    terms = random_terms(6, 5, advantage_per="row")
    token, sequence = (SequenceClip(low=0.1, high=0.1, token_gradient=form) for form in (True, False))
    torch.testing.assert_close(gradient(token, terms), gradient(sequence, terms), rtol=1e-12, atol=1e-15)


def test_with_an_advantage_for_each_step_the_two_forms_differ() -> None:
    ratio, advantage = tensor([1.0, 1.0]), tensor([1.0, 3.0])
    token, sequence = (
        gradient(SequenceClip(token_gradient=form), terms_of(ratio, advantage)) for form in (True, False)
    )
    torch.testing.assert_close(token, -tensor([0.5, 1.5]))
    torch.testing.assert_close(sequence, -tensor([1.0, 1.0]))


@pytest.mark.parametrize("token_gradient", [True, False])
def test_rows_of_one_step_are_clipped_as_by_ppo(token_gradient: bool) -> None:
    terms = random_terms(8, 1)
    bounds = {"low": 0.2, "high": 0.28, "dual": 3.0}
    sequence = SequenceClip(**bounds, token_gradient=token_gradient)
    torch.testing.assert_close(gradient(sequence, terms), gradient(Clip(**bounds), terms), rtol=1e-12, atol=0)


def test_filtered_steps_count_as_padding() -> None:
    kept = torch.tensor([[True, False, True]])
    terms = terms_of(tensor([2.0, 50.0, 0.5]), tensor([1.0, 1.0, 1.0]), extras={"kept": kept})
    loss = PolicyGradient(surrogate=SequenceClip(), filters=[Kept()])(Told(terms.evaluation), terms.batch)
    assert loss.value.item() == pytest.approx(-1.0)  # (2 * 0.5) ** (1 / 2)
    assert loss.metrics["kept_fraction"].item() == pytest.approx(2 / 3)


def test_errors_name_the_field_and_the_value() -> None:
    with pytest.raises(ValueError, match=r"low = -1, high = 0\.0004; valid"):
        SequenceClip(low=-1)
