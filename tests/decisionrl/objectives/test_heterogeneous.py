"""HAPO: the published entropy signal, both signs; clip and redistribution against loops; temperatures."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_minibatch import random_terms, tensor, terms_of

from decisionrl.objectives.heterogeneous import (
    HeterogeneousClip,
    adaptive_temperature,
    entropy_signal,
    entropy_statistics,
)
from decisionrl.objectives.surrogates import Clip

ENTROPY = tensor([0.01, 0.05, 0.2, 0.5, 1.0, 1.5, 2.0, 0.02, 0.3, 0.8])
INTENDED = tensor([-1.0, -0.651, -0.349, -0.151, 0.0, 0.585, 1.0, -0.849, -0.261, -0.048])
EVERY = torch.ones(1, 10, dtype=torch.bool)


def test_published_signal() -> None:
    found = entropy_signal(ENTROPY, entropy_statistics(ENTROPY, EVERY))
    torch.testing.assert_close(found, INTENDED, rtol=0, atol=5e-4)


def test_published_signal_with_the_sign_of_the_release() -> None:
    found = entropy_signal(ENTROPY, entropy_statistics(ENTROPY, EVERY), released_sign=True)
    torch.testing.assert_close(found, INTENDED.abs(), rtol=0, atol=5e-4)


def test_statistics() -> None:
    found = entropy_statistics(ENTROPY, EVERY, rho=0.8)
    logs = [math.log(h) for h in ENTROPY[0].tolist()]
    sigma = math.sqrt(sum(each**2 for each in logs) / 10)  # around the pivot, log 1
    assert found.pivot.item() == pytest.approx(0.0)
    assert found.spread.item() == pytest.approx(sigma)
    assert found.highest.item() == pytest.approx(math.log(2) / sigma)
    assert found.lowest.item() == pytest.approx(math.log(0.01) / sigma)


@settings(max_examples=40, deadline=None)
@given(entropies=st.lists(st.floats(0, 5), min_size=1, max_size=30), rho=st.floats(0, 1), released=st.booleans())
def test_the_signal_is_bounded_and_zero_at_the_pivot(entropies: list[float], rho: float, released: bool) -> None:
    entropy = tensor(entropies)
    statistics = entropy_statistics(entropy, torch.ones_like(entropy, dtype=torch.bool), rho=rho)
    signal = entropy_signal(entropy, statistics, released_sign=released)
    assert (signal.abs() <= 1).all()
    assert (signal == 0).any()
    if not released:
        order = entropy.flatten().argsort()
        assert (signal.flatten()[order].diff() >= -1e-12).all()


def test_equal_entropies_and_zero_entropies_give_no_signal() -> None:
    for value in (0.7, 0.0):
        entropy = torch.full((2, 3), value, dtype=torch.float64)
        statistics = entropy_statistics(entropy, torch.ones(2, 3, dtype=torch.bool))
        assert (entropy_signal(entropy, statistics) == 0).all()


def test_about_one_minus_rho_of_the_steps_are_uncertain() -> None:
    entropy = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    terms = terms_of(torch.ones_like(entropy), torch.ones_like(entropy), entropy=entropy)
    assert HeterogeneousClip().metrics(terms)["uncertain_fraction"].item() == pytest.approx(0.2, abs=2e-3)


def by_hand(r: float, a: float, h: float, clip: HeterogeneousClip) -> tuple[float, float]:
    """The loss, and its gradient in log r."""
    low = clip.low * (1 - clip.alpha * h) if h <= 0 else clip.low
    high = clip.high * (1 + clip.alpha * h) if h > 0 else clip.high
    neutral = 1 - low / 2 < r < 1 + high / 2
    if (h > 0 and not neutral) or (h <= 0 and neutral):
        a = a * (1 + clip.beta * h)
    bounded = min(max(r, 1 - low), 1 + high)
    loss, slope = (-r * a, -r * a) if r * a <= bounded * a else (-bounded * a, 0.0)
    if clip.dual is not None and a < 0 and loss > -clip.dual * a:
        loss, slope = -clip.dual * a, 0.0
    return loss, slope


@pytest.mark.parametrize(
    "clip",
    [
        HeterogeneousClip(),
        HeterogeneousClip(alpha=0.5, beta=0.3, rho=0.5, dual=2.0),
        HeterogeneousClip(low=0.7, alpha=2.0, dual=None),
        HeterogeneousClip(released_sign=True),
    ],
    ids=repr,
)
def test_against_loops(clip: HeterogeneousClip) -> None:
    terms = random_terms(8, 6, spread=0.7)
    signal = clip.signal(terms)
    loss = clip(terms)
    (found,) = torch.autograd.grad(loss[terms.mask].sum(), terms.evaluation.log_prob)
    for i, t in terms.mask.nonzero().tolist():
        r, a, h = (each[i, t].item() for each in (terms.ratio, terms.advantage, signal))
        expected, slope = by_hand(r, a, h, clip)
        assert loss[i, t].item() == pytest.approx(expected, rel=1e-9, abs=1e-8)
        assert found[i, t].item() == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize("clip", [HeterogeneousClip(alpha=0, beta=0), HeterogeneousClip()])
def test_without_a_signal_it_is_the_plain_clip(clip: HeterogeneousClip) -> None:
    terms = random_terms(5, 6)
    if clip.alpha:
        assert terms.evaluation.entropy is not None
        terms.evaluation.entropy.detach()[terms.mask] = 0.4
    expected = Clip(low=0.2, high=0.28, dual=10.0)(terms)
    torch.testing.assert_close(clip(terms)[terms.mask], expected[terms.mask], rtol=1e-12, atol=0)


def test_the_pivot_is_that_of_the_steps_that_count() -> None:
    mask = torch.tensor([[True] * 10 + [False] * 3])
    entropy = torch.cat([ENTROPY, tensor([1e6, torch.nan, 0.0])], 1)
    found = entropy_signal(entropy, entropy_statistics(entropy, mask))
    torch.testing.assert_close(found[mask].unsqueeze(0), INTENDED, rtol=0, atol=5e-4)


@pytest.mark.parametrize("tau", [0.0, 0.05, 0.1])
def test_temperatures_stay_in_their_range(tau: float) -> None:
    statistics = entropy_statistics(ENTROPY, EVERY)
    unseen = torch.cat([ENTROPY, tensor([0.0, 50.0])], 1)
    found = adaptive_temperature(unseen, statistics, base=0.8, tau=tau)
    expected = 0.8 * (1 + tau * torch.cat([INTENDED, tensor([-1.0, 1.0])], 1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_policy_without_an_entropy_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the entropy of the policy"):
        HeterogeneousClip()(terms_of(tensor([1.0]), tensor([1.0])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 2.0}, r"low = 2\.0"),
        ({"alpha": -1.0}, r"alpha = -1\.0; valid"),
        ({"beta": 1.5}, r"beta = 1\.5; valid: in \[0, 1\]"),
        ({"rho": -0.1}, r"rho = -0\.1; valid: in \[0, 1\]"),
        ({"dual": 1.0}, r"dual = 1\.0"),
    ],
)
def test_errors_name_the_field_and_the_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeterogeneousClip(**options)


def test_no_gradient_reaches_the_entropies() -> None:
    entropy: Tensor = ENTROPY.clone().requires_grad_()
    terms = terms_of(torch.full_like(ENTROPY, 1.3), torch.ones_like(ENTROPY), entropy=entropy)
    assert not HeterogeneousClip().signal(terms).requires_grad
    (found,) = torch.autograd.grad(HeterogeneousClip()(terms).sum(), entropy, allow_unused=True)
    assert found is None
