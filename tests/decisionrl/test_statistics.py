"""Estimates against closed forms, and intervals against the coverage they promise."""

import numpy as np
import pytest
from scipy import stats

from decisionrl.evaluation import (
    batch_means,
    bootstrap_mean,
    control_variate,
    interquartile_mean,
    paired_difference,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def coverage(intervals, truth):
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


def test_bootstrap_agrees_with_student_on_normal_samples():
    samples = rng().normal(10, 2, size=400)
    estimate = bootstrap_mean(samples, rng=rng(1), resamples=20_000)
    low, high = stats.t.interval(0.95, 399, samples.mean(), stats.sem(samples))
    assert estimate.value == samples.mean()
    assert estimate.low == pytest.approx(low, abs=0.01)
    assert estimate.high == pytest.approx(high, abs=0.01)
    assert estimate.n == 400


def test_bootstrap_of_many_samples():
    samples = rng().exponential(size=20_000)
    estimate = bootstrap_mean(samples, rng=rng(1))
    half = 1.96 * samples.std() / np.sqrt(len(samples))
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.06)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    generator = rng(2)
    runs = [bootstrap_mean(generator.normal(size=60), rng=generator, resamples=600) for _ in range(1_000)]
    assert abs(coverage(runs, 0.0) - 0.95) <= 0.03
    narrow = [
        bootstrap_mean(generator.normal(size=60), rng=generator, resamples=600, confidence=0.8) for _ in range(300)
    ]
    assert abs(coverage(narrow, 0.0) - 0.95) > 0.03  # the check above can fail


def test_the_same_generator_gives_the_same_interval():
    samples = rng().normal(size=30)
    assert bootstrap_mean(samples, rng=rng(3)) == bootstrap_mean(samples, rng=rng(3))
    assert bootstrap_mean(samples, rng=rng(3)) != bootstrap_mean(samples, rng=rng(4))


def test_samples_that_leave_nothing_to_resample():
    one, same = bootstrap_mean([2.0], rng=rng()), bootstrap_mean([2.0, 2.0], rng=rng())
    assert (one.value, one.low, one.high, one.n) == (2.0, None, None, 1)
    assert (same.value, same.low, same.high, same.n) == (2.0, 2.0, 2.0, 2)


@pytest.mark.parametrize("samples", [[], [[1.0]], [1.0, float("nan")]])
def test_unusable_samples_are_refused(samples):
    with pytest.raises(ValueError, match="samples"):
        bootstrap_mean(samples, rng=rng())


def autoregressive(generator, length, correlation):
    """A stationary AR(1) path of mean 5 and standard deviation 1."""
    noise = generator.normal(size=length) * np.sqrt(1 - correlation**2)
    path = np.empty(length)
    state = generator.normal()
    for period in range(length):
        state = correlation * state + noise[period]
        path[period] = state
    return 5 + path


def test_batch_means_cover_the_mean_of_a_correlated_path():
    generator = rng(5)
    paths = [autoregressive(generator, 3_000, 0.8) for _ in range(500)]
    assert abs(coverage([batch_means(path, batches=20) for path in paths], 5.0) - 0.95) <= 0.03
    independent = [batch_means(path, batches=3_000) for path in paths]
    assert coverage(independent, 5.0) < 0.7  # what taking the periods for independent would give


def test_batch_means_by_hand():
    estimate = batch_means([100.0, 7.0, 1.0, 3.0, 5.0, 7.0], batches=2, discard=1)
    half = stats.t.ppf(0.975, 1) * 4 / 2  # batches (1, 3) and (5, 7): means 2 and 6, standard error 2
    assert (estimate.value, estimate.n) == (4.0, 2)
    assert estimate.low == pytest.approx(4 - half)
    assert estimate.high == pytest.approx(4 + half)
    with pytest.raises(ValueError, match="do not make batches=32"):
        batch_means(np.ones(40), discard=20)
    with pytest.raises(ValueError, match="at least 2"):
        batch_means(np.ones(40), batches=1)


def test_common_random_numbers_narrow_a_difference():
    scenario = rng().normal(0, 10, size=300)
    better = scenario + 1 + 0.1 * rng(1).normal(size=300)
    difference = paired_difference(better, scenario, rng=rng(2))
    assert difference.low < 1 < difference.high
    assert difference.high - difference.low < 0.05
    with pytest.raises(ValueError, match="300 scenarios and baseline 2"):
        paired_difference(better, scenario[:2], rng=rng())


def test_control_variate_is_unbiased_and_narrow():
    generator = rng(7)
    runs = []
    for _ in range(400):
        control = generator.exponential(3.0, size=80)  # mean 3, known
        policy = control + 0.5 + 0.2 * generator.normal(size=80)  # mean 3.5
        runs.append(control_variate(policy, control, known_mean=3.0, rng=generator, resamples=600))
    values = np.array([run.value for run in runs])
    assert values.mean() == pytest.approx(3.5, abs=4 * 0.2 / np.sqrt(80 * 400))
    assert values.std() == pytest.approx(0.2 / np.sqrt(80), rel=0.15)  # against 3 / √80 without the control
    assert abs(coverage(runs, 3.5) - 0.95) <= 0.03


def test_interquartile_mean_is_the_trimmed_mean():
    scores = np.arange(16.0).reshape(4, 4)
    scores[3, 3] = 1e6
    estimate = interquartile_mean(scores, rng=rng())
    assert estimate.value == np.mean(np.arange(4, 12))
    assert estimate.low < estimate.value < estimate.high
    assert estimate.n == 16
    assert interquartile_mean(scores[:1], rng=rng()).low is None
    with pytest.raises(ValueError, match=r"\[seed, task\]"):
        interquartile_mean(np.ones(3), rng=rng())


def test_interquartile_mean_resamples_seeds_within_tasks():
    scores = np.array([0.0, 10.0, 20.0, 30.0]) + np.zeros((5, 1))  # tasks differ, seeds do not
    estimate = interquartile_mean(scores, rng=rng())
    assert (estimate.low, estimate.high) == (15.0, 15.0)


def test_interquartile_mean_covers_the_truth():
    generator = rng(8)
    centers = np.linspace(0, 1, 10)
    runs = [
        interquartile_mean(centers + generator.normal(size=(20, 10)), rng=generator, resamples=400) for _ in range(400)
    ]
    assert abs(coverage(runs, 0.5) - 0.95) <= 0.03
