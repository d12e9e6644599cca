"""KL estimators, the KL penalty, and the value loss."""

from typing import Any

import pytest
import torch
from torch import Tensor
from toy_minibatch import random_terms, tensor, terms_of, trajectories

from decisionrl.objectives.regularizers import Estimator, KLPenalty, ValueLoss, kl_estimate
from decisionrl.objectives.terms import Terms
from decisionrl.policies.evaluation import Evaluation


@pytest.mark.parametrize(
    ("estimator", "gap", "expected"),
    [
        ("k1", -0.5, -0.5),
        ("k2", -0.5, 0.125),
        ("k3", -0.5, 0.148721),
        ("k3", 0.5, 0.106531),
        ("k1", 0.0, 0.0),
        ("k2", 0.0, 0.0),
        ("k3", 0.0, 0.0),
        ("k3", -1e3, 10.0),
    ],
)
def test_published_values(estimator: Estimator, gap: float, expected: float) -> None:
    for straight_through in (False, True):
        found = kl_estimate(tensor([gap]), estimator, straight_through=straight_through)
        assert found.item() == pytest.approx(expected, abs=1e-6)


def categorical() -> tuple[Tensor, Tensor]:
    """Logits of a policy, a leaf, and the log-probabilities of a reference."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    return logits, torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_their_expectation_is_kl(estimator: Estimator) -> None:
    logits, reference = categorical()
    log_prob = logits.log_softmax(0)
    kl = (log_prob.exp() * (log_prob - reference)).sum()
    expectation = (log_prob.exp() * kl_estimate(log_prob - reference, estimator)).sum()
    torch.testing.assert_close(expectation, kl)


@pytest.mark.parametrize(
    ("estimator", "straight_through", "unbiased"),
    [("k2", False, True), ("k1", False, False), ("k3", False, False), ("k1", True, True), ("k3", True, True)],
)
def test_which_expected_gradients_are_that_of_kl(estimator: Estimator, straight_through: bool, unbiased: bool) -> None:
    logits, reference = categorical()
    log_prob = logits.log_softmax(0)
    (expected,) = torch.autograd.grad((log_prob.exp() * (log_prob - reference)).sum(), logits, retain_graph=True)
    estimate = kl_estimate(log_prob - reference, estimator, straight_through=straight_through)
    (found,) = torch.autograd.grad((log_prob.exp().detach() * estimate).sum(), logits)
    assert torch.allclose(found, expected) is unbiased
    if estimator == "k1" and not straight_through:
        torch.testing.assert_close(found, torch.zeros_like(found))


def test_k2_and_k3_are_not_negative() -> None:
    gaps = torch.linspace(-5, 5, 101, dtype=torch.float64)
    for estimator in ("k2", "k3"):
        values = kl_estimate(gaps, estimator)
        assert (values >= 0).all()
        assert (values[gaps.abs() > 1e-9] > 0).all()


def test_penalty() -> None:
    reference = tensor([-1.5, -0.5])
    terms = terms_of(tensor([1.0, 1.0]), tensor([0.0, 0.0]), extras={"reference_log_prob": reference})
    found = KLPenalty(coefficient=0.1)(terms)
    torch.testing.assert_close(found, 0.1 * tensor([0.106531, 0.148721]), rtol=0, atol=1e-6)
    weighted = {"reference_log_prob": reference, "kl_weight": tensor([2.0, 0.5])}
    terms = terms_of(tensor([1.0, 1.0]), tensor([0.0, 0.0]), extras=weighted)
    torch.testing.assert_close(KLPenalty(coefficient=0.1, weighted=True)(terms), found * tensor([2.0, 0.5]))
    torch.testing.assert_close(KLPenalty(coefficient=0.1)(terms), found)


@pytest.mark.parametrize(
    ("penalty", "extras", "message"),
    [
        (KLPenalty(coefficient=1), {}, "needs extras\\['reference_log_prob'\\]"),
        (
            KLPenalty(coefficient=1, weighted=True),
            {"reference_log_prob": tensor([0.0])},
            "needs extras\\['kl_weight'\\]",
        ),
    ],
)
def test_missing_extras(penalty: KLPenalty, extras: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        penalty(terms_of(tensor([1.0]), tensor([0.0]), extras=extras))


def test_unknown_estimator() -> None:
    with pytest.raises(ValueError, match="estimator = 'k4'; valid: k1, k2, k3"):
        kl_estimate(tensor([0.0]), "k4")  # type: ignore[arg-type]


def value_terms(**fields: Any) -> Terms:
    """Two steps that count between two of padding, whose values are garbage."""
    mask = torch.tensor([[False, True, True, False]])
    old = tensor([torch.nan, 0.5, 1.0, torch.inf])
    returns = tensor([torch.nan, 2.0, 1.5, torch.nan])
    batch = trajectories(torch.zeros(1, 4), torch.zeros(1, 4), mask, **{"value": old, "returns": returns, **fields})
    value = tensor([torch.nan, 1.0, 1.1, torch.inf]).requires_grad_()
    return Terms(Evaluation(torch.zeros(1, 4), value=value), batch, torch.zeros(1, 4), mask)


@pytest.mark.parametrize(("clip", "errors"), [(None, (1.0, 0.16)), (0.2, (1.3**2, 0.16)), (5.0, (1.0, 0.16))])
def test_value_loss(clip: float | None, errors: tuple[float, float]) -> None:
    terms = value_terms()
    loss = ValueLoss(coefficient=0.5, clip=clip)(terms)
    assert loss.item() == pytest.approx(0.5 * sum(errors) / 2)
    assert terms.evaluation.value is not None
    (gradient,) = torch.autograd.grad(loss, terms.evaluation.value)
    bounded = clip == 0.2  # the first step has moved by 0.5
    assert gradient[0].tolist() == pytest.approx([0.0, 0.0 if bounded else -0.5, -0.2, 0.0])


def test_filters_do_not_take_steps_from_the_critic() -> None:
    terms = value_terms()
    filtered = Terms(terms.evaluation, terms.batch, terms.advantage, terms.mask & False)
    assert ValueLoss()(filtered) == ValueLoss()(terms)


def test_value_loss_of_a_complete_batch_is_that_of_a_full_mask() -> None:
    terms = random_terms(4, 3, padded=False)
    value = torch.linspace(0, 1, 12, dtype=torch.float64).view(4, 3)
    evaluation = Evaluation(terms.log_prob, value=value)
    losses = [
        ValueLoss()(Terms(evaluation, batch, terms.advantage, batch.mask))
        for complete in (False, True)
        for batch in [terms.batch.replace(returns=terms.advantage, complete=complete)]
    ]
    torch.testing.assert_close(losses[0], losses[1])


def test_value_loss_says_what_it_misses() -> None:
    terms = value_terms()
    with pytest.raises(ValueError, match="needs a policy with a value head"):
        ValueLoss()(Terms(Evaluation(terms.log_prob), terms.batch, terms.advantage, terms.mask))
    with pytest.raises(ValueError, match="needs returns"):
        ValueLoss()(value_terms(returns=None))
    with pytest.raises(ValueError, match="values at collection"):
        ValueLoss(clip=0.2)(value_terms(value=None))
    with pytest.raises(ValueError, match="clip = 0; valid"):
        ValueLoss(clip=0)


def test_value_loss_over_some_steps_only() -> None:
    terms = value_terms()
    valued = terms.batch.mask & (torch.arange(terms.batch.num_columns) % 2 == 0)
    batch = terms.batch.replace(extras={"valued": valued | ~terms.batch.mask})
    loss = ValueLoss(key="valued")(Terms(terms.evaluation, batch, terms.advantage, terms.mask))
    narrow = batch.replace(mask=valued)
    assert loss == ValueLoss()(Terms(terms.evaluation, narrow, terms.advantage, valued))
    assert loss != ValueLoss()(terms)


def test_value_loss_over_no_steps_is_zero_with_a_graph() -> None:
    terms = value_terms()
    batch = terms.batch.replace(extras={"valued": torch.zeros_like(terms.batch.mask)})
    loss = ValueLoss(key="valued")(Terms(terms.evaluation, batch, terms.advantage, terms.mask))
    assert loss == 0
    assert terms.evaluation.value is not None
    (gradient,) = torch.autograd.grad(loss, terms.evaluation.value)
    assert (gradient == 0).all()


def test_value_loss_names_the_missing_extra() -> None:
    with pytest.raises(ValueError, match="extras have no 'valued'"):
        ValueLoss(key="valued")(value_terms())
