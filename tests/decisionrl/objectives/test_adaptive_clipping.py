"""BAPO's search against the loop of the paper and its published numbers; DCPO's bounds."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_minibatch import Told, random_terms, tensor, terms_of

from decisionrl.objectives.adaptive_clipping import BalancedClip, DynamicClip
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.surrogates import Clip
from decisionrl.objectives.terms import Surrogate, Terms

RATIO = tensor([0.5, 0.7, 1.0, 1.4, 2.5])
ADVANTAGE = tensor([-1.0, -1.0, -1.0, 1.0, 1.0])


def share_by_hand(terms: Terms, low: float, high: float, clip: BalancedClip) -> float:
    positive = negative = 0.0
    for i, t in terms.mask.nonzero().tolist():
        r, a = terms.ratio[i, t].item(), terms.advantage[i, t].item()
        w = terms.old_log_prob[i, t].exp().item() if clip.old_probability else 1.0
        if clip.contribution == "value":
            positive += w * min(r, high) * max(a, 0)
            negative += w * max(r, low) * max(-a, 0)
        else:
            positive += w * r * max(a, 0) * (r <= high)
            negative += w * r * max(-a, 0) * (r >= low)
    total = positive + negative if clip.rho_denominator == "abs_sum" else abs(positive - negative)
    return positive / total if total else 1.0


def search_by_hand(terms: Terms, clip: BalancedClip) -> tuple[float, float]:
    """The while loop of the paper, and with the roles of the bounds exchanged that of the release."""
    lows = [clip.low[0]]
    highs = [clip.high[0]]
    while share_by_hand(terms, lows[-1], highs[-1], clip) < clip.target:
        room_below = lows[-1] + clip.low_step <= clip.low[1] + 1e-9
        room_above = highs[-1] + clip.high_step <= clip.high[1] + 1e-9
        if room_above and (clip.order == "high_first" or not room_below):
            highs.append(highs[-1] + clip.high_step)
        elif room_below:
            lows.append(lows[-1] + clip.low_step)
        else:
            break
    return lows[-1], highs[-1]


def test_published_search() -> None:
    clip = BalancedClip(target=0.58, old_probability=False)
    low, high, share = clip.bounds(terms_of(RATIO, ADVANTAGE))
    assert low.item() == pytest.approx(0.6)
    assert high.item() == pytest.approx(1.2 + 12 * 0.05)
    assert share.item() == pytest.approx(0.5818, abs=5e-5)


@pytest.mark.parametrize(
    ("low", "high", "by_value", "by_gradient"),
    [
        (0.6, 1.2, 0.5106, None),
        (0.9, 1.2, 0.4615, None),
        (0.6, 1.5, 0.5577, 0.4516),
        (0.9, 1.5, 0.5088, 0.5833),
        (0.6, 3.0, 0.6290, 0.6964),
        (0.9, 3.0, 0.5821, 0.7959),
    ],
)
def test_published_shares(low: float, high: float, by_value: float, by_gradient: float | None) -> None:
    fixed: dict[str, Any] = {"low": (low, low), "high": (high, high), "old_probability": False}
    terms = terms_of(RATIO, ADVANTAGE)
    assert BalancedClip(**fixed).bounds(terms)[2].item() == pytest.approx(by_value, abs=5e-5)
    if by_gradient is not None:
        share = BalancedClip(**fixed, contribution="active_gradient").bounds(terms)[2]
        assert share.item() == pytest.approx(by_gradient, abs=5e-5)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    target=st.floats(0, 1),
    contribution=st.sampled_from(["value", "active_gradient"]),
    rho_denominator=st.sampled_from(["abs_sum", "signed"]),
    order=st.sampled_from(["high_first", "low_first"]),
    old_probability=st.booleans(),
)
def test_the_search_is_the_papers_loop(seed: int, target: float, **options: Any) -> None:
    clip = BalancedClip(target=target, **options)
    terms = random_terms(3, 4, seed=seed)
    low, high, share = clip.bounds(terms)
    expected = search_by_hand(terms, clip)
    assert (low.item(), high.item()) == pytest.approx(expected)
    assert share.item() == pytest.approx(share_by_hand(terms, *expected, clip))
    assert 0.6 <= low.item() <= 0.9 + 1e-9
    assert 1.2 <= high.item() <= 3.0 + 1e-9


def test_the_whole_range_is_searched_in_spite_of_rounding() -> None:
    terms = terms_of(RATIO, -ADVANTAGE.abs())
    for clip in (BalancedClip(), BalancedClip(low=(0.8, 0.95), low_step=0.05, high=(1.2, 2.0), high_step=0.1)):
        low, high, share = clip.bounds(terms)
        assert (low.item(), high.item()) == pytest.approx((clip.low[1], clip.high[1]))
        assert share.item() == 0


@pytest.mark.parametrize("advantage", [ADVANTAGE.abs(), 0 * ADVANTAGE])
def test_without_negative_steps_there_is_nothing_to_search(advantage: Tensor) -> None:
    low, high, _ = BalancedClip(target=1.0).bounds(terms_of(RATIO, advantage))
    assert (low.item(), high.item()) == pytest.approx((0.6, 1.2))


def test_in_the_release_an_unmet_target_first_drives_the_lower_bound_up() -> None:
    clip = BalancedClip(target=0.58, old_probability=False, order="low_first")
    low, high, share = clip.bounds(terms_of(RATIO, ADVANTAGE))
    assert low.item() == pytest.approx(0.9)
    assert high.item() > 1.2
    assert share.item() >= 0.58


@pytest.mark.parametrize(
    "clip", [BalancedClip(low=(0.8, 0.8), high=(1.2, 1.2)), BalancedClip(low=(0.8, 0.9), target=0)]
)
def test_without_room_or_target_it_is_ppos_clip(clip: BalancedClip) -> None:
    terms = random_terms(4, 5)
    found, expected = clip(terms), Clip()(terms)
    torch.testing.assert_close(found[terms.mask], expected[terms.mask], rtol=1e-12, atol=0)


def test_the_start_of_the_search_does_not_depend_on_earlier_minibatches() -> None:
    clip = BalancedClip()
    terms = random_terms(4, 5)
    before = clip.bounds(terms)
    clip.bounds(terms_of(RATIO, -ADVANTAGE.abs()))
    assert clip.bounds(terms) == before


def test_metrics() -> None:
    metrics = BalancedClip(target=0.58, old_probability=False).metrics(terms_of(RATIO, ADVANTAGE))
    assert metrics["clip_high"].item() == pytest.approx(1.8)
    assert metrics["clip_low"].item() == pytest.approx(0.6)
    assert metrics["clip_fraction"].item() == pytest.approx(2 / 5)  # r = 0.5 and r = 2.5
    assert metrics["positive_share"].item() == pytest.approx(0.5818, abs=5e-5)


@pytest.mark.parametrize(
    ("q", "lower", "upper"),
    [
        (1.0, 0.8, 1.17082),
        (0.9, 0.76874, 1.18718),
        (0.64, 0.5, 1.25),
        (0.5, 0.5, 1.30623),
        (0.1, 0.5, 2.0),
        (0.01, 0.5, 5.0),
        (0.001, 0.5, 10.0),
        (1e-4, 0.5, 10.0),
        (0.0, 0.5, 10.0),
    ],
)
def test_published_bounds(q: float, lower: float, upper: float) -> None:
    found = DynamicClip().bounds(tensor([q]).log())
    assert tuple(each.item() for each in found) == pytest.approx((lower, upper), abs=5e-6)


def test_uncapped_bounds() -> None:
    _, upper = DynamicClip(cap=100.0).bounds(tensor([1e-3, 1e-4]).log())
    assert upper[0].tolist() == pytest.approx([14.651, 45.224], abs=5e-4)


def test_bounds_satisfy_the_constraint_with_equality() -> None:
    q = torch.linspace(0.01, 1, 100, dtype=torch.float64).unsqueeze(0)
    lower, upper = DynamicClip().bounds(q.log())
    torch.testing.assert_close(upper * (upper - 1) * q, torch.full_like(q, 0.2))
    wide = q >= 4 * 0.16
    torch.testing.assert_close((lower * (1 - lower) * q)[wide], torch.full_like(q, 0.16)[wide])
    assert (lower >= 0.5).all()
    assert (upper.diff() < 0).all()
    assert (lower.diff() >= 0).all()


@pytest.mark.parametrize("surrogate", [BalancedClip(), DynamicClip(), DynamicClip(dual=None)])
def test_the_gradient_takes_the_bounds_as_constants(surrogate: BalancedClip | DynamicClip) -> None:
    terms = random_terms(6, 5, spread=0.8)
    if isinstance(surrogate, BalancedClip):
        low, high, _ = surrogate.bounds(terms)
        low, high = low.expand(6, 5), high.expand(6, 5)
    else:
        low, high = surrogate.bounds(terms.old_log_prob)
    value = surrogate(terms)[terms.mask].sum()
    (found,) = torch.autograd.grad(value, terms.evaluation.log_prob)
    dual = surrogate.dual or torch.inf
    for i, t in terms.mask.nonzero().tolist():
        r, a = terms.ratio[i, t].item(), terms.advantage[i, t].item()
        active = r <= high[i, t] if a > 0 else low[i, t] <= r <= dual
        assert found[i, t].item() == pytest.approx(-r * a * bool(active), rel=1e-12)


def test_rare_actions_have_more_room_than_with_a_fixed_clip() -> None:
    terms = terms_of(tensor([3.0]), tensor([1.0]), old_log_prob=tensor([0.01]).log())
    assert DynamicClip().metrics(terms)["clip_fraction"].item() == 0
    assert Clip().metrics(terms)["clip_fraction"].item() == 1


@pytest.mark.parametrize(
    ("surrogate", "needs"),
    [(DynamicClip(), True), (BalancedClip(), True), (BalancedClip(old_probability=False), False), (Clip(), False)],
)
def test_what_needs_probabilities_says_so(surrogate: Surrogate, needs: bool) -> None:
    assert getattr(surrogate, "needs_probabilities", False) is needs


def test_in_float32_the_search_ends_where_it_does_in_float64() -> None:
    terms = random_terms(4, 5, padded=False)
    batch = terms.batch.map(lambda each: each.float() if each.is_floating_point() else each)
    evaluation = replace(terms.evaluation, log_prob=terms.evaluation.log_prob.float())
    small = Terms(evaluation, batch, terms.advantage.float(), terms.mask)
    low, high, share = BalancedClip(target=0.6).bounds(small)
    assert share.dtype == torch.float32
    expected = BalancedClip(target=0.6).bounds(terms)
    assert (low.item(), high.item()) == pytest.approx((expected[0].item(), expected[1].item()), abs=1e-6)
    assert PolicyGradient(surrogate=BalancedClip())(Told(evaluation), batch).value.dtype == torch.float32


def test_errors_name_the_field_and_the_value() -> None:
    with pytest.raises(ValueError, match=r"target = 1\.5; valid: a share"):
        BalancedClip(target=1.5)
    with pytest.raises(ValueError, match=r"low = \(0\.9, 0\.6\)"):
        BalancedClip(low=(0.9, 0.6))
    with pytest.raises(ValueError, match=r"high = \(0\.9, 2\.0\)"):
        BalancedClip(high=(0.9, 2.0))
    with pytest.raises(ValueError, match="contribution = 'loss'; valid: value, active_gradient"):
        BalancedClip(contribution="loss")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="low_step = 0"):
        BalancedClip(low_step=0)
    with pytest.raises(ValueError, match=r"cap = 0\.5"):
        DynamicClip(cap=0.5)
    with pytest.raises(ValueError, match=r"low = -0\.1"):
        DynamicClip(low=-0.1)
