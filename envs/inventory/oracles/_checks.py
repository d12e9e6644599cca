"""Argument checks shared by the oracles: each error names the argument, its value and what is valid."""

from __future__ import annotations

import math
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray


def check_finite(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a finite number."""
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, it must be a finite number")


def check_positive(name: str, value: float) -> None:
    """Raise ValueError unless `value` is finite and above zero."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}, it must be a finite number above 0")


def check_integer(name: str, value: int, lowest: int) -> None:
    """Raise ValueError unless `value` is an integer of at least `lowest`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < lowest:
        raise ValueError(f"{name} is {value!r}, it must be an integer of at least {lowest}")


def check_costs(holding_cost: float, underage_cost: float) -> None:
    """Raise ValueError unless both costs are finite and above zero."""
    check_positive("holding_cost", holding_cost)
    check_positive("underage_cost", underage_cost)


def checked_pmf(pmf: ArrayLike) -> NDArray[np.float64]:
    """`pmf` as an array [K] rescaled to sum 1; ValueError unless a distribution with a positive mean."""
    probabilities = np.asarray(pmf, dtype=np.float64)
    if probabilities.ndim != 1 or probabilities.size == 0:
        raise ValueError(f"pmf has shape {probabilities.shape}, it must be a vector of at least one probability")
    if not np.isfinite(probabilities).all() or probabilities.min() < 0.0:
        raise ValueError(f"pmf has the entry {probabilities.min()}, all must be finite and at least 0")
    total = float(probabilities.sum())
    if abs(total - 1.0) > 1e-9:
        raise ValueError(f"pmf sums to {total}, it must sum to 1")
    if not probabilities[1:].any():
        raise ValueError("pmf has no demand above 0, some entry after the first must be above 0")
    return probabilities / total


def checked_vector(name: str, values: ArrayLike, size: int | None = None) -> NDArray[np.float64]:
    """`values` as an array [size] of finite numbers; a scalar is repeated where `size` is given."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim == 0 and size is not None:
        vector = np.full(size, float(vector))
    if vector.ndim != 1 or vector.size == 0 or (size is not None and vector.size != size):
        expected = "a non-empty vector" if size is None else f"a number or a vector of length {size}"
        raise ValueError(f"{name} has shape {vector.shape}, it must be {expected}")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} is {vector.tolist()}, all entries must be finite")
    return vector


def checked_positive_vector(name: str, values: ArrayLike, size: int | None = None) -> NDArray[np.float64]:
    """Like `checked_vector`, with every entry above zero."""
    vector = checked_vector(name, values, size)
    if vector.min() <= 0.0:
        raise ValueError(f"{name} is {vector.tolist()}, all entries must be above 0")
    return vector
