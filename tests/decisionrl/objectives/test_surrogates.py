"""Surrogates: each against plain Python, against each other at r = 1, and what must not matter to any of them."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_minibatch import EVERY_SURROGATE, Told, random_terms, tensor, terms_of

from decisionrl.objectives.aggregation import seq_mean_token_mean, token_mean
from decisionrl.objectives.heterogeneous import HeterogeneousClip
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.surrogates import CISPO, Clip, Reinforce, SoftGate
from decisionrl.objectives.terms import Surrogate, Terms, masked_mean
from decisionrl.policies.evaluation import Evaluation

every_surrogate = pytest.mark.parametrize("surrogate", EVERY_SURROGATE, ids=repr)


def gradient(surrogate: Surrogate, terms: Terms) -> Tensor:
    """Of the assembled objective in the log-probabilities."""
    objective = PolicyGradient(surrogate=surrogate, aggregate=seq_mean_token_mean)
    value = objective(Told(terms.evaluation), terms.batch).value
    (result,) = torch.autograd.grad(value, terms.evaluation.log_prob)
    return result


@every_surrogate
def test_on_policy_the_gradient_is_that_of_reinforce(surrogate: Surrogate) -> None:
    if isinstance(surrogate, HeterogeneousClip):
        surrogate = replace(surrogate, beta=0.0)  # redistribution changes A at r = 1, too
    terms = random_terms(5, 6, spread=0.0, advantage_per="row")
    expected = gradient(Reinforce(), terms)
    assert expected.isfinite().all()
    assert expected.abs().sum() > 0
    torch.testing.assert_close(gradient(surrogate, terms), expected, rtol=1e-12, atol=0)


@every_surrogate
def test_garbage_at_padding_reaches_neither_loss_nor_gradient_nor_metrics(surrogate: Surrogate) -> None:
    terms = random_terms(5, 6)
    loss = PolicyGradient(surrogate=surrogate)(Told(terms.evaluation), terms.batch)
    assert loss.value.isfinite()
    assert all(metric.isfinite() for metric in loss.metrics.values())
    result = gradient(surrogate, terms)
    assert result.isfinite().all()
    assert (result[~terms.mask] == 0).all()


@every_surrogate
def test_padding_changes_nothing(surrogate: Surrogate) -> None:
    terms = random_terms(4, 5)

    def widened(values: Tensor, filling: float) -> Tensor:
        return torch.cat([values, torch.full((4, 3), filling, dtype=values.dtype)], 1)

    batch = terms.batch.map(lambda each: widened(each, 0.0 if each.dtype == torch.bool else torch.nan))
    log_prob = widened(terms.evaluation.log_prob.detach(), torch.inf).requires_grad_()
    assert terms.evaluation.entropy is not None
    wide = replace(terms, evaluation=Evaluation(log_prob, widened(terms.evaluation.entropy, torch.nan)), batch=batch)
    torch.testing.assert_close(gradient(surrogate, wide)[:, :5], gradient(surrogate, terms), rtol=1e-12, atol=1e-15)


@every_surrogate
def test_the_order_of_sequences_does_not_matter(surrogate: Surrogate) -> None:
    terms = random_terms(6, 4)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert terms.evaluation.entropy is not None
    log_prob = terms.evaluation.log_prob.detach()[order].requires_grad_()
    evaluation = Evaluation(log_prob, terms.evaluation.entropy[order])
    permuted = replace(terms, evaluation=evaluation, batch=terms.batch.rows(order))
    torch.testing.assert_close(gradient(surrogate, permuted), gradient(surrogate, terms)[order], rtol=1e-12, atol=1e-15)


@every_surrogate
def test_only_the_log_probabilities_get_a_gradient(surrogate: Surrogate) -> None:
    terms = random_terms(5, 6)
    advantage = terms.advantage.requires_grad_()
    value = PolicyGradient(surrogate=surrogate)(Told(terms.evaluation), terms.batch).value
    inputs = (terms.evaluation.log_prob, terms.evaluation.entropy, advantage)
    found = torch.autograd.grad(value, inputs, allow_unused=True)  # type: ignore[arg-type]
    assert found[0] is not None
    assert all(gradient is None for gradient in found[1:])


@every_surrogate
@pytest.mark.parametrize("gap", [1e4, -1e4, torch.inf])
def test_ratios_do_not_overflow(surrogate: Surrogate, gap: float) -> None:
    old = torch.full((2, 3), -1.0)
    advantage = torch.tensor([[1.0, -1.0, 0.0], [2.0, 0.5, -3.0]])
    terms = terms_of(torch.ones(2, 3), advantage, old_log_prob=old, entropy=torch.ones(2, 3))
    log_prob = torch.full((2, 3), -1.0) - gap
    log_prob[0, 0] = -1.0
    terms = replace(terms, evaluation=Evaluation(log_prob.requires_grad_(), torch.ones(2, 3)))
    result = gradient(surrogate, terms)
    assert result.isfinite().all()
    if not isinstance(surrogate, Reinforce | CISPO) and gap < torch.inf:
        assert surrogate(terms).isfinite().all()


@every_surrogate
def test_a_fully_masked_minibatch_gives_zero_with_a_graph(surrogate: Surrogate) -> None:
    terms = random_terms(3, 4)
    batch = terms.batch.replace(mask=torch.zeros(3, 4, dtype=torch.bool))
    loss = PolicyGradient(surrogate=surrogate, normalize_advantage=True)(Told(terms.evaluation), batch)
    assert loss.value.item() == 0
    assert loss.value.requires_grad
    assert all(metric.isfinite() for metric in loss.metrics.values())
    (result,) = torch.autograd.grad(loss.value, terms.evaluation.log_prob)
    assert (result == 0).all()


@every_surrogate
@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (1, 4)])
def test_single_steps_and_single_sequences_keep_their_dtype(surrogate: Surrogate, shape: tuple[int, int]) -> None:
    for dtype in (torch.float32, torch.float64):
        ones = torch.ones(shape, dtype=dtype)
        terms = terms_of(ones, ones, entropy=ones)
        loss = surrogate(terms)
        assert loss.shape == shape
        assert loss.dtype == dtype


def clipped_by_hand(r: float, a: float, low: float, high: float, dual: float | None) -> tuple[float, float]:
    """The loss, and its gradient in log r."""
    bounded = min(max(r, low), high)
    if r * a <= bounded * a:
        loss, slope = -r * a, -r * a
    else:
        loss, slope = -bounded * a, 0.0
    if dual is not None and a < 0 and loss > -dual * a:
        loss, slope = -dual * a, 0.0
    return loss, slope


@settings(max_examples=50, deadline=None)
@given(
    log_ratio=st.floats(-4, 4),
    advantage=st.floats(-3, 3),
    low=st.floats(0, 1),
    high=st.floats(0, 3),
    dual=st.none() | st.floats(1.01, 5),
)
def test_clip_is_the_textbook_formula(
    log_ratio: float, advantage: float, low: float, high: float, dual: float | None
) -> None:
    clip = Clip(low=low, high=high, dual=dual)
    terms = terms_of(tensor([math.exp(log_ratio)]), tensor([advantage]))
    r = terms.ratio.item()
    loss = clip(terms)
    expected, slope = clipped_by_hand(r, advantage, 1 - low, 1 + high, dual)
    assert loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-8)
    edges = (1 - low, 1 + high, dual or 0.0)
    if min(abs(r - edge) for edge in edges) > 1e-6:
        (found,) = torch.autograd.grad(loss.sum(), terms.evaluation.log_prob)
        assert found.item() == pytest.approx(slope, rel=1e-12)


def test_the_dual_clip_is_a_cap_on_the_unclipped_ratio() -> None:
    """TRL's delta: -min(min(r, delta) A, clip(r) A)."""
    ratio, advantage = torch.meshgrid(
        torch.linspace(0.1, 6, 41, dtype=torch.float64), tensor([-2.0, -1.0, 0.0, 1.0])[0], indexing="ij"
    )
    delta = 1.5
    expected = -torch.minimum(ratio.clamp(max=delta) * advantage, ratio.clamp(0.8, 1.28) * advantage)
    torch.testing.assert_close(Clip(low=0.2, high=0.28, dual=delta)(terms_of(ratio, advantage)), expected)


def test_clip_fraction_counts_the_steps_without_a_gradient() -> None:
    ratio = tensor([0.5, 0.5, 1.0, 1.5, 1.5, 0.5, 1.5])
    advantage = tensor([1.0, -1.0, 1.0, 1.0, -1.0, 0.0, 0.0])
    terms = terms_of(ratio, advantage, mask=torch.tensor([[True] * 6 + [False]]))
    assert Clip().metrics(terms)["clip_fraction"].item() == pytest.approx(2 / 6)


def test_cispo_weighs_the_log_likelihood() -> None:
    ratio, advantage = tensor([0.1, 0.9, 3.0, 9.0]), tensor([1.0, -2.0, 1.0, -1.0])
    for surrogate, weights in (
        (CISPO(), [0.1, 0.9, 3.0, 5.0]),
        (CISPO(low=0.2, high=0.2), [0.8, 0.9, 1.2, 1.2]),
    ):
        terms = terms_of(ratio, advantage)
        loss = surrogate(terms)
        torch.testing.assert_close(loss, -tensor(weights) * advantage * terms.log_prob)
        (found,) = torch.autograd.grad(loss.sum(), terms.evaluation.log_prob)
        torch.testing.assert_close(found, -tensor(weights) * advantage)
    assert CISPO(low=0.2, high=0.2).metrics(terms)["clip_fraction"].item() == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("tau", "ratio", "gate", "weight"),
    [
        (1.0, 1.0, 2.0, 1.0),
        (1.0, 1.5, 2.489837, 0.940015),
        (1.0, 0.5, 1.510163, 0.940015),
        (1.0, 2.0, None, 0.786448),
        (1.0, 5.0, None, 0.070651),
        (1.05, 1.0, 1.904762, 1.0),
        (1.05, 1.5, None, 0.934140),
        (1.05, 2.0, None, 0.768110),
    ],
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_soft_gate_golden_values(tau: float, ratio: float, gate: float | None, weight: float, sign: float) -> None:
    terms = terms_of(tensor([ratio]), tensor([sign]))
    other = 7.0  # whichever temperature is the other sign's must not matter
    surrogate = (
        SoftGate(tau_positive=tau, tau_negative=other) if sign > 0 else SoftGate(tau_positive=other, tau_negative=tau)
    )
    loss = surrogate(terms)
    if gate is not None:
        assert loss.item() == pytest.approx(-sign * gate, abs=1e-6)
    (found,) = torch.autograd.grad(loss.sum(), terms.evaluation.log_prob)
    assert found.item() == pytest.approx(-sign * weight * ratio, abs=1e-5)
    assert surrogate.metrics(terms)["gate"].item() == pytest.approx(weight, abs=1e-6)


def test_soft_gate_uses_the_negative_temperature_where_the_advantage_is_zero() -> None:
    gate = SoftGate().metrics(terms_of(tensor([1.5]), tensor([0.0])))["gate"]
    assert gate.item() == pytest.approx(0.934140, abs=1e-6)


def test_soft_gate_limits() -> None:
    ratio, advantage = tensor([0.3, 1.0, 2.0]), tensor([1.0, -1.0, 2.0])
    for tau, expected, tolerance in ((1e-4, -ratio * advantage, 1e-6), (500.0, tensor([0.0, 1.0, 0.0]), 1e-12)):
        terms = terms_of(ratio, advantage)
        loss = SoftGate(tau_positive=tau, tau_negative=tau)(terms)
        (found,) = torch.autograd.grad(loss.sum(), terms.evaluation.log_prob)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-12)


def test_errors_name_the_field_and_the_value() -> None:
    with pytest.raises(ValueError, match=r"low = 1\.5, high = 0\.2; valid"):
        Clip(low=1.5)
    with pytest.raises(ValueError, match=r"dual = 0\.9; valid: a number above 1"):
        Clip(dual=0.9)
    with pytest.raises(ValueError, match=r"high = -1"):
        CISPO(high=-1)
    with pytest.raises(ValueError, match=r"tau_positive = 0"):
        SoftGate(tau_positive=0)


def test_the_mean_of_a_minibatch_is_that_of_its_steps() -> None:
    terms = random_terms(5, 6)
    loss = Clip()(terms)
    by_hand = [loss[i, t].item() for i, t in terms.mask.nonzero().tolist()]
    assert token_mean(loss, terms.mask).item() == pytest.approx(sum(by_hand) / len(by_hand))
    assert masked_mean(loss, terms.mask).item() == pytest.approx(sum(by_hand) / len(by_hand))
