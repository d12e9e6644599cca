"""Improvement, stability and retention of learning histories: the values and properties of arXiv 2505.15143."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decisionrl.pipeline.history_scores import (
    improvement,
    largest_returns,
    retention,
    scale_returns,
    score,
    stability,
)
from decisionrl.seeding import generator

RETURN = st.floats(0, 10).map(lambda value: round(value, 6))
HISTORY = st.lists(RETURN, min_size=1, max_size=8)
SCORES = st.lists(st.floats(0, 2).map(lambda value: round(value, 6)), min_size=2, max_size=8, unique=True)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def history(*returns):
    """One history of one task."""
    return tensor(*returns)[None, None]


def ragged(*tasks):
    """Histories of different lengths, with nonsense as padding, and their mask."""
    longest = max(len(each) for task in tasks for each in task)
    nonsense = [math.nan, math.inf, -math.inf, 1e9, -1e9, 3.0, math.nan, math.inf]
    returns = tensor(*([[*each, *nonsense[: longest - len(each)]] for each in task] for task in tasks))
    mask = torch.tensor([[[e < len(each) for e in range(longest)] for each in task] for task in tasks])
    return returns, mask


# Scores


@pytest.mark.parametrize(
    ("returns", "improved", "stable"),
    [
        ([0] * 7, 0, 1),
        ([10] * 7, 0.5, 1),
        ([3] * 7, 3 / 20, 1),
        (range(11), 0.75, 1),
        (range(10, -1, -1), 0.75, 0.9),
        ([3, 0, 7, 1, 10, 2, 9, 4, 8, 5, 6], 0.75, 0.5),
        ([0, 10] * 5, 0.75, 0),
        ([5], 0.25, 1),
        ([0, 2, 1, 4, 3, 8], 0.55, 0.9),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values(returns, improved, stable, dtype):
    returns = history(*returns).to(dtype)
    assert improvement(returns, 10).dtype == stability(returns, 10).dtype == dtype
    assert improvement(returns, 10).item() == pytest.approx(improved, abs=1e-6)
    assert stability(returns, 10).item() == pytest.approx(stable, abs=1e-6)
    assert score(returns, 10).item() == pytest.approx(improved + stable, abs=1e-6)
    assert score(returns, 10, stability_weight=3).item() == pytest.approx(improved + 3 * stable, abs=1e-6)


@given(st.lists(HISTORY, min_size=2, max_size=4), st.floats(0, 5))
@settings(max_examples=50, deadline=None)
def test_against_plain_python(histories, weight):
    returns, mask = ragged(histories, histories[::-1])
    r_max = tensor(10, 20)
    actual = score(returns, r_max, stability_weight=weight, mask=mask)
    for task, (top, rows) in enumerate(zip((10, 20), (histories, histories[::-1]), strict=True)):
        for row, episodes in enumerate(rows):
            improved = (sum(episodes) / len(episodes) + max(episodes) - min(episodes)) / (2 * top)
            drops = [b - a for a, b in itertools.pairwise(episodes) if b < a]
            stable = 1 + (sum(drops) / len(drops) if drops else 0) / top
            assert actual[task, row].item() == pytest.approx(improved + weight * stable, abs=1e-12)


@given(HISTORY, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_order_matters_to_stability_alone(returns, random):
    shuffled = random.sample(returns, len(returns))
    given_order, ascending = history(*shuffled), history(*sorted(returns))
    assert improvement(given_order, 10).item() == pytest.approx(improvement(ascending, 10).item(), abs=1e-12)
    assert stability(ascending, 10).item() == 1
    assert score(ascending, 10).item() >= score(given_order, 10).item() - 1e-12


@given(HISTORY, st.floats(0.01, 100), st.floats(0, 5))
@settings(max_examples=50, deadline=None)
def test_ranges_scale_and_weight(returns, scale, weight):
    returns = history(*returns)
    improved, stable = improvement(returns, 10).item(), stability(returns, 10).item()
    assert -1e-12 <= improved <= 1 + 1e-12
    assert -1e-12 <= stable <= 1
    scaled = score(scale * returns, scale * 10, stability_weight=weight).item()
    assert scaled == pytest.approx(improved + weight * stable, abs=1e-9)
    assert score(returns, 10, stability_weight=0).item() == improved


def test_a_shift_changes_the_score():
    returns = history(0, 2, 1)
    assert score(returns + 1, 11).item() != pytest.approx(score(returns, 10).item(), abs=1e-3)


def test_a_huge_weight_ranks_by_stability():
    returns = 10 * torch.rand(1, 30, 12, generator=generator(0, "returns"), dtype=torch.float64)
    by_score = score(returns, 10, stability_weight=1e6).argsort(-1)
    torch.testing.assert_close(by_score, stability(returns, 10).argsort(-1))


def test_noise_lowers_stability_and_hardly_improvement():
    random = generator(0, "noise")
    ramp = torch.linspace(0, 10, 50, dtype=torch.float64)
    expected = {0: (1, 0.75), 0.5: (0.951, 0.746), 1: (0.898, 0.748), 2: (0.802, 0.750), 4: (0.650, 0.750)}
    for sd, (stable, improved) in expected.items():
        noise = torch.randn(1, 2000, 50, generator=random, dtype=torch.float64)
        returns = (ramp + sd * noise).clamp(0, 10)
        assert stability(returns, 10).mean().item() == pytest.approx(stable, abs=0.002)
        assert improvement(returns, 10).mean().item() == pytest.approx(improved, abs=0.002)


def test_faster_learners_score_higher():
    time = torch.linspace(0, 1, 40, dtype=torch.float64)
    rates = tensor(1, 2, 4, 8, 16)[:, None]
    returns = 10 * (1 - torch.exp(-rates * time))[None]
    assert (stability(returns, 10) == 1).all()
    assert (score(returns, 10).diff() > 0).all()


def test_a_dead_history_outranks_an_erratic_one():
    returns = tensor([[0] * 10, [0, 10] * 5])
    assert score(returns, 10).tolist() == [[1, 0.75]]


# Padding


def test_padding_changes_nothing():
    short, long = [1.0, 3.0, 2.0], [0.0, 5.0, 4.0, 4.0, 1.0, 9.0]
    returns, mask = ragged([short, long])
    for measure in (improvement, stability, score):
        separate = [measure(history(*each), 10).item() for each in (short, long)]
        assert measure(returns, 10, mask=mask)[0].tolist() == pytest.approx(separate, abs=1e-15)
    assert largest_returns(returns, mask=mask).tolist() == [9]


def test_padding_may_stand_first():
    returns, mask = ragged([[1.0, 3.0, 2.0], [0.0, 5.0, 4.0, 4.0, 1.0, 9.0]])
    later, later_mask = torch.roll(returns, 3, -1), torch.roll(mask, 3, -1)
    torch.testing.assert_close(score(later, 10, mask=later_mask)[:, 0], score(returns, 10, mask=mask)[:, 0])


def test_a_gap_is_no_drop():
    mask = torch.tensor([[[True, True, False, True, True]]])
    assert stability(history(8, 9, 5, 1, 0), 10, mask=mask).item() == pytest.approx(0.9)


# Scales


def test_largest_returns_are_of_each_task():
    assert largest_returns(tensor([[1, 5], [2, 3]], [[-4, -2], [-7, -1]])).tolist() == [5, -1]


def test_scaled_returns_lie_between_zero_and_one():
    costs = tensor([[-8, -4], [-2, 0]], [[10, 20], [30, 20]])
    scaled = scale_returns(costs, low=tensor(-8, 10), high=tensor(0, 30))
    assert scaled.tolist() == [[[0, 0.5], [0.75, 1]], [[0, 0.5], [1, 0.5]]]
    assert scale_returns(costs, low=-10, high=tensor(0, 30))[:, 0, 0].tolist() == [0.2, 0.5]


# Retention


@given(SCORES, st.floats(-5, 5), st.floats(0.1, 10), st.sampled_from([None, 0.05, 1.0]))
@settings(max_examples=50, deadline=None)
def test_probabilities_span_zero_to_one_and_follow_the_score(values, shift, scale, alpha):
    values = tensor(values)
    probability = retention(values, alpha=alpha)
    assert probability.amin().item() == 0
    assert probability.amax().item() == 1
    assert (probability.gather(1, values.argsort(-1)).diff() >= 0).all()
    moved = retention(scale * values + shift, alpha=None if alpha is None else scale * alpha)
    torch.testing.assert_close(moved, probability, atol=1e-6, rtol=0)


@given(SCORES, st.floats(0.1, 10))
@settings(max_examples=50, deadline=None)
def test_rules_against_plain_python(values, alpha):
    low, high = min(values), max(values)
    linear = [(value - low) / (high - low) for value in values]
    assert retention(tensor(values))[0].tolist() == pytest.approx(linear, abs=1e-9)
    total = sum(math.exp(value / alpha) for value in values)
    share = [math.exp(value / alpha) / total for value in values]
    softmax = [(each - min(share)) / (max(share) - min(share)) for each in share]
    assert retention(tensor(values), alpha=alpha)[0].tolist() == pytest.approx(softmax, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_limits_of_the_temperature(dtype):
    values = tensor([0.9, 0.2, 1.7, 1.0], [1.2, 1.3, 0.4, 1.1]).to(dtype)
    linear = retention(values)
    assert linear.dtype == dtype
    torch.testing.assert_close(retention(values, alpha=1e3), linear, atol=1e-3, rtol=0)
    torch.testing.assert_close(retention(values, alpha=1e9), linear, atol=1e-6, rtol=0)
    for alpha in (1e-3, 1e-300):
        best = torch.nn.functional.one_hot(values.argmax(-1), 4).to(dtype)
        torch.testing.assert_close(retention(values, alpha=alpha), best, atol=1e-6, rtol=0)


@pytest.mark.parametrize("alpha", [None, 1e-3, 1.0, 1e3])
def test_equal_scores_are_all_kept(alpha):
    assert retention(tensor([0.7, 0.7, 0.7], [1, 2, 3]), alpha=alpha)[0].tolist() == [1, 1, 1]
    assert retention(tensor([0.7], [0.0]), alpha=alpha).tolist() == [[1], [1]]


def test_scores_that_differ_by_rounding_are_equal():
    returns = torch.rand(1, 1, 999, generator=generator(0, "returns"), dtype=torch.float64)
    orders = torch.rand(50, 999, generator=generator(0, "orders")).argsort(-1)
    values = score(returns[0, 0][orders][None], 1, stability_weight=0)
    assert values.unique().numel() > 1
    assert (retention(values) == 1).all()


def test_tasks_do_not_see_each_other():
    values = torch.rand(3, 5, generator=generator(0, "scores"), dtype=torch.float64)
    together = retention(values, alpha=0.3)
    values[1:] *= 100
    assert torch.equal(retention(values, alpha=0.3)[0], together[0])


# Errors


@pytest.mark.parametrize("r_max", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize("measure", [improvement, stability, score])
def test_r_max_that_is_no_scale(measure, r_max):
    with pytest.raises(ValueError, match=rf"r_max\[1\] = {float(r_max)}; valid: finite"):
        measure(torch.ones(3, 2, 4), torch.tensor([1, r_max, 2]))
    with pytest.raises(ValueError, match=rf"r_max\[0\] = {float(r_max)} \(and 2 more\); valid: finite"):
        measure(torch.ones(3, 2, 4), r_max)


@pytest.mark.parametrize("measure", [improvement, stability, score])
def test_returns_that_make_no_sense(measure):
    returns = torch.ones(2, 3, 4)
    with pytest.raises(ValueError, match=r"returns are torch.float32 of shape \(3, 4\); valid: floats \[task, history"):
        measure(returns[0], 1)
    with pytest.raises(ValueError, match=r"returns are torch.int64 of shape \(2, 3, 4\); valid: floats"):
        measure(returns.long(), 1)
    with pytest.raises(ValueError, match=r"shape \(2, 3, 0\); valid: .* at least one of each"):
        measure(returns[..., :0], 1)
    with pytest.raises(ValueError, match=r"r_max is of shape \(3,\); valid: a number or shape \(2,\)"):
        measure(returns, torch.ones(3))
    returns[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"returns\[1, 2, 3\] = nan; valid: finite wherever the mask is True"):
        measure(returns, 1)


def test_masks_that_make_no_sense():
    returns, mask = torch.ones(2, 3, 4), torch.ones(2, 3, 4, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"mask is torch.bool of shape \(3, 4\); valid: torch.bool of shape \(2, 3, 4\)"
    ):
        score(returns, 1, mask=mask[0])
    with pytest.raises(ValueError, match=r"mask is torch.int64 of shape"):
        score(returns, 1, mask=mask.long())
    mask[0, 1] = mask[1, 2] = False
    with pytest.raises(ValueError, match=r"number of episodes\[0, 1\] = 0 \(and 1 more\); valid: one or more in every"):
        score(returns, 1, mask=mask)


def test_settings_out_of_range():
    for weight in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"stability_weight = {weight}; valid: finite, 0 or more"):
            score(torch.ones(1, 1, 1), 1, stability_weight=weight)
    for alpha in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"alpha = {alpha}; valid: finite and above 0, or None"):
            retention(torch.ones(1, 1), alpha=alpha)
    with pytest.raises(ValueError, match=r"score\[0, 1\] = inf; valid: finite"):
        retention(torch.tensor([[1, math.inf]]))
    with pytest.raises(ValueError, match=r"score is torch.float32 of shape \(4,\); valid: floats \[task, history\]"):
        retention(torch.ones(4))
    with pytest.raises(ValueError, match=r"high\[1\] = 3.0; valid: above low"):
        scale_returns(torch.ones(2, 1, 1), low=torch.tensor([1, 3]), high=3)
    with pytest.raises(ValueError, match=r"low\[0\] = -inf \(and 1 more\); valid: finite"):
        scale_returns(torch.ones(2, 1, 1), low=-math.inf, high=3)
