"""Demand on a lattice: an array `pmf` [K] whose entry k is the probability of a demand of k lattice cells."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import fft, stats

from decisionrl.envs.inventory.oracles._checks import check_finite, check_integer, check_positive

# Beyond this many standard deviations a normal has less mass (1e-19) than double precision can resolve.
_NORMAL_REACH = 9.0


def poisson_pmf(*, mean: float) -> NDArray[np.float64]:
    """Probabilities of Poisson(`mean`) demand in units, [K], cut where the tail is below 1e-16.

    Raises ValueError if `mean` is not a positive number.
    """
    check_positive("mean", mean)
    support = np.arange(int(stats.poisson.isf(1e-16, mean)) + 2)
    pmf: NDArray[np.float64] = np.asarray(stats.poisson.pmf(support, mean))
    pmf /= pmf.sum()
    return pmf


def clipped_normal_pmf(*, mean: float, std: float, width: float) -> NDArray[np.float64]:
    """Probabilities of max(0, N(`mean`, `std`²)) demand rounded to cells of `width` units, [K].

    Entry 0 also holds the mass that clipping moves to zero. Moments err by O(`width`²).

    Raises ValueError if `std` or `width` is not positive or `mean` is not finite.
    """
    check_finite("mean", mean)
    check_positive("std", std)
    check_positive("width", width)
    cells = max(1, math.ceil((mean + _NORMAL_REACH * std) / width))
    upper_edges = (np.arange(cells + 1) + 0.5) * width
    pmf: NDArray[np.float64] = np.diff(stats.norm.cdf(upper_edges, loc=mean, scale=std), prepend=0.0)
    pmf /= pmf.sum()
    return pmf


def convolve_pmf(pmf: NDArray[np.float64], periods: int) -> NDArray[np.float64]:
    """Probabilities of the sum of `periods` ≥ 0 independent demands, [`periods`·(K − 1) + 1].

    Raises ValueError if `periods` is not an integer of at least 0.
    """
    check_integer("periods", periods, 0)
    size = periods * (len(pmf) - 1) + 1
    padded = int(fft.next_fast_len(size, real=True))
    folded = fft.irfft(fft.rfft(pmf, padded) ** periods, padded)[:size]
    # Rounding in the transform leaves entries of about -1e-17.
    probabilities: NDArray[np.float64] = np.maximum(folded, 0.0)
    return probabilities


def newsvendor_costs(
    pmf: NDArray[np.float64], *, holding_cost: float, underage_cost: float, width: float = 1.0
) -> NDArray[np.float64]:
    """E[h (y − D)⁺ + p (D − y)⁺] for y = 0, `width`, 2·`width`, …, [K]."""
    # E (y − D)⁺ is the integral of the distribution function up to y.
    overage = width * np.concatenate(([0.0], np.cumsum(np.cumsum(pmf))[:-1]))
    levels = width * np.arange(len(pmf))
    costs: NDArray[np.float64] = holding_cost * overage + underage_cost * (pmf @ levels - levels + overage)
    return costs
