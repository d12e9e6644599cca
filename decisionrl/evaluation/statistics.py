"""Estimates with 95 % intervals: what the rows of a results table are made of.

Every function that draws random numbers takes its generator as an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
_JACKKNIFE_LIMIT = 2_000  # beyond it the bias correction costs n² and changes nothing visible
_RESAMPLED_NUMBERS = 20_000_000  # how many numbers one chunk of resamples may hold


@dataclass(frozen=True)
class Estimate:
    """A value, the bounds of its interval (None where one number says nothing), and the sample count."""

    value: float
    low: float | None
    high: float | None
    n: int


def bootstrap_mean(
    samples: ArrayLike,
    *,
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
    resamples: int = 2_000,
) -> Estimate:
    """The mean of independent samples (one per scenario or episode) with its bootstrap interval.

    Bias-corrected and accelerated up to 2,000 samples, the percentile interval beyond. Below about ten
    samples any bootstrap interval is too narrow.

    Args:
        samples: [scenario], finite.
    """
    values = _vector(samples, "samples")
    mean = float(values.mean())
    if len(values) == 1:
        return Estimate(mean, None, None, 1)
    if np.ptp(values) == 0:
        return Estimate(mean, mean, mean, len(values))
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _RESAMPLED_NUMBERS // len(values)),
        vectorized=True,
        confidence_level=confidence,
        method="BCa" if len(values) <= _JACKKNIFE_LIMIT else "percentile",
        rng=rng,
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), len(values))


def batch_means(
    path: ArrayLike,
    *,
    batches: int = 32,
    discard: int = 0,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """The long-run mean of one correlated path, with Student's interval over the means of equal batches.

    The first `discard` periods (warm-up) are dropped, and so is what is left over at the front when the rest
    does not divide by `batches`. Batches must be long compared with the correlation time of the path. `n` is
    the number of batches.

    Args:
        path: [period], finite.

    Raises:
        ValueError: fewer than two batches, or a path too short to give each of them one period.
    """
    values = _vector(path, "path")[discard:]
    length = len(values) // batches if batches >= 2 else 0
    if length == 0:
        raise ValueError(f"{len(values)} periods after discard={discard} do not make batches={batches} (at least 2)")
    means = values[len(values) - length * batches :].reshape(batches, length).mean(axis=1)
    mean = float(means.mean())
    quantile = float(stats.t.ppf((1 + confidence) / 2, batches - 1))
    half = quantile * float(means.std(ddof=1)) / math.sqrt(batches)
    return Estimate(mean, mean - half, mean + half, batches)


def paired_difference(
    treatment: ArrayLike,
    baseline: ArrayLike,
    *,
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
    resamples: int = 2_000,
) -> Estimate:
    """The mean of `treatment - baseline` over the same scenarios (common random numbers), with its interval.

    Args:
        treatment: [scenario]
        baseline: [scenario], in the same order.
    """
    first, second = _vector(treatment, "treatment"), _vector(baseline, "baseline")
    if len(first) != len(second):
        raise ValueError(f"treatment has {len(first)} scenarios and baseline {len(second)}; they must be paired")
    return bootstrap_mean(first - second, rng=rng, confidence=confidence, resamples=resamples)


def control_variate(
    policy: ArrayLike,
    control: ArrayLike,
    *,
    known_mean: float,
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
    resamples: int = 2_000,
) -> Estimate:
    """The mean of `policy`, measured against a control whose mean is known exactly.

    `known_mean + mean(policy - control)` over the same scenarios: unbiased, and its interval is that of the
    difference, which is narrow where the two move together.

    Args:
        policy: [scenario]
        control: [scenario], in the same order.
    """
    difference = paired_difference(policy, control, rng=rng, confidence=confidence, resamples=resamples)
    return Estimate(
        known_mean + difference.value,
        None if difference.low is None else known_mean + difference.low,
        None if difference.high is None else known_mean + difference.high,
        difference.n,
    )


def interquartile_mean(
    scores: ArrayLike,
    *,
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
    resamples: int = 2_000,
) -> Estimate:
    """The mean of the middle half of all scores, with the percentile interval of a stratified bootstrap.

    Seeds are resampled within each task, so that every resample holds every task (Agarwal et al., "Deep
    reinforcement learning at the edge of the statistical precipice", arXiv 2108.13264). `n` is the number of
    scores.

    Args:
        scores: [seed, task], finite.
    """
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"scores must be finite and of shape [seed, task], got shape {list(table.shape)}")

    def statistic(*tasks: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        return np.asarray(stats.trim_mean(np.concatenate(tasks, axis=axis), 0.25, axis=axis))

    value = float(statistic(table.ravel()))
    if len(table) == 1:
        return Estimate(value, None, None, table.size)
    interval = stats.bootstrap(
        tuple(table.T),
        statistic,
        n_resamples=resamples,
        batch=max(1, _RESAMPLED_NUMBERS // table.size),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=rng,
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high), table.size)


def _vector(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """`values` as a finite vector of float64, or a ValueError that names it."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"{name} must be one-dimensional and not empty, got shape {list(vector.shape)}")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(vector)).sum())} numbers that are not finite")
    return vector
