"""Demand processes against their moments, series files against what was written, the calendar against real dates."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from decisionrl.envs.inventory.demand import (
    Demand,
    NegativeBinomialDemand,
    NormalDemand,
    PoissonDemand,
    SeriesDemand,
    read_series,
    seasonal_series,
)

PROCESSES: dict[str, Any] = {
    "normal": NormalDemand(mean=np.array([5.0]), std=np.array([1.6]), clip=False),
    "correlated": NormalDemand(
        mean=np.array([3.7, 4.8, 6.9]), std=np.array([1.8, 2.1, 1.7]), correlation=0.5, clip=False
    ),
    "opposed": NormalDemand(mean=np.array([3.0, 4.0]), std=np.array([1.0, 2.0]), correlation=-1.0, clip=False),
    "poisson": PoissonDemand(mean=np.array([5.0, 0.4, 30.0])),
    "negative_binomial": NegativeBinomialDemand(mean=np.array([5.0, 2.0]), dispersion=np.array([3.0, 0.5])),
}


def fresh(demand: Any, periods: int = 40, batch: int = 5000, seed: int = 0) -> np.ndarray:
    """[draws, stores] in float64 from the torch sampler."""
    paths = demand.sample(periods, batch, torch.Generator().manual_seed(seed))
    assert paths.shape == (periods, batch, len(demand.mean))
    assert paths.dtype == torch.float32
    return paths.flatten(0, 1).double().numpy()


def legacy(demand: Any, periods: int = 40, batch: int = 5000, seed: int = 0) -> np.ndarray:
    paths = demand.sample_legacy(np.random.RandomState(seed), batch, periods)
    assert paths.shape == (batch, len(demand.mean), periods)
    return np.moveaxis(paths, 1, -1).reshape(-1, len(demand.mean))


@pytest.mark.parametrize("sampler", [fresh, legacy])
@pytest.mark.parametrize("name", PROCESSES)
def test_moments(name: str, sampler: Any) -> None:
    """Mean, variance and covariance within 4 standard errors, estimated from the draws themselves."""
    demand = PROCESSES[name]
    draws = sampler(demand)
    n = len(draws)
    centred = draws - demand.mean
    np.testing.assert_array_less(np.abs(centred.mean(0)), 4 * draws.std(0) / n**0.5)
    squares = centred**2
    np.testing.assert_array_less(np.abs(squares.mean(0) - demand.std**2), 4 * squares.std(0) / n**0.5)
    correlation = getattr(demand, "correlation", 0.0)
    for i in range(len(demand.mean)):
        for j in range(i):
            products = centred[:, i] * centred[:, j] / (demand.std[i] * demand.std[j])
            assert abs(products.mean() - correlation) < 4 * products.std() / n**0.5 + 1e-6


@pytest.mark.parametrize("sampler", [fresh, legacy])
@pytest.mark.parametrize("name", PROCESSES)
def test_periods_are_independent(name: str, sampler: Any) -> None:
    demand = PROCESSES[name]
    # fresh: [period, scenario]; legacy: [scenario, period]; either way neighbours are independent.
    draws = (sampler(demand) - demand.mean) / demand.std
    products = draws[1:] * draws[:-1]
    np.testing.assert_array_less(np.abs(products.mean(0)), 4 * products.std(0) / len(products) ** 0.5)


def test_variance_of_the_negative_binomial() -> None:
    demand = PROCESSES["negative_binomial"]
    np.testing.assert_allclose(demand.std**2, [5 + 25 / 3, 2 + 4 / 0.5])
    draws = fresh(demand)[:, 0]
    counts = np.array([(draws == k).mean() for k in range(8)])
    expected = stats.nbinom.pmf(np.arange(8), 3.0, 3.0 / 8.0)
    assert (np.abs(counts - expected) < 4 * (expected / len(draws)) ** 0.5).all()


@pytest.mark.parametrize("sampler", [fresh, legacy])
def test_clipping(sampler: Any) -> None:
    """max(0, N(1, 2)): P(0) = Phi(-1/2), and the mean of the clipped normal."""
    demand = NormalDemand(mean=np.array([1.0]), std=np.array([2.0]))
    draws = sampler(demand)[:, 0]
    assert draws.min() == 0
    zero = stats.norm.cdf(-0.5)
    assert abs((draws == 0).mean() - zero) < 4 * (zero * (1 - zero) / len(draws)) ** 0.5
    mean = 1.0 * stats.norm.cdf(0.5) + 2.0 * stats.norm.pdf(0.5)
    assert abs(draws.mean() - mean) < 4 * draws.std() / len(draws) ** 0.5
    unclipped = NormalDemand(mean=np.array([1.0]), std=np.array([2.0]), clip=False)
    assert sampler(unclipped).min() < -3


def test_whole_units_are_announced() -> None:
    assert [PROCESSES[k].integer for k in PROCESSES] == [False, False, False, True, True]
    for name in ("poisson", "negative_binomial"):
        draws = fresh(PROCESSES[name])
        assert (draws == draws.round()).all()
        assert draws.min() >= 0
    assert SeriesDemand(table=torch.tensor([[[1.0, 2.0]]])).integer
    assert not SeriesDemand(table=torch.tensor([[[1.0, 2.5]]])).integer


@pytest.mark.parametrize("name", PROCESSES)
def test_same_seed_same_paths(name: str) -> None:
    demand: Demand = PROCESSES[name]
    np.testing.assert_array_equal(fresh(demand, 3, 5, seed=4), fresh(demand, 3, 5, seed=4))
    assert (fresh(demand, 3, 5, seed=4) != fresh(demand, 3, 5, seed=5)).any()


# --- the calendar --------------------------------------------------------------------------------------------

# Rows of the published table of weeks (dates_with_info.csv).
KNOWN = {
    date(2013, 1, 1): 7,
    date(2013, 6, 25): 182,
    date(2013, 7, 2): -176,
    date(2013, 12, 3): -22,
    date(2014, 6, 24): 181,
    date(2015, 12, 29): 4,
    date(2016, 6, 28): -180,
    date(2016, 11, 29): -26,
    date(2017, 6, 27): -181,
    date(2017, 8, 8): -139,
}


def test_days_from_christmas() -> None:
    demand = SeriesDemand(table=torch.zeros(1, 1, 242))
    days = demand.days_from_christmas
    assert len(days) == 243
    for day, expected in KNOWN.items():
        assert days[(day - date(2013, 1, 1)).days // 7] == expected


def test_days_from_christmas_of_the_published_table() -> None:
    folder = os.environ.get("DECISIONRL_DATA")
    path = Path(folder or ".") / "favorita_21_stores" / "dates_with_info.csv"
    if not path.is_file():
        pytest.skip("set DECISIONRL_DATA to the folder that holds favorita_21_stores")
    table = pd.read_csv(path)
    days = SeriesDemand(table=torch.zeros(1, 1, len(table))).days_from_christmas
    np.testing.assert_array_equal(days[:-1], table["days_from_christmas"])


# --- series --------------------------------------------------------------------------------------------------


def rows(table: torch.Tensor, periods: list[Any], seed: int = 0) -> pd.DataFrame:
    """One row for each number, shuffled."""
    items, stores, _ = table.shape
    frame = pd.DataFrame(
        [
            {"item": f"i{i}", "store": s, "period": periods[t], "demand": float(value)}
            for i in range(items)
            for s in range(stores)
            for t, value in enumerate(table[i, s])
        ]
    )
    return frame.sample(frac=1, random_state=seed)


TABLE = torch.arange(24.0).reshape(2, 3, 4)
WEEKS = ["2015-03-02", "2015-03-09", "2015-03-16", "2015-03-23"]


def test_tensor_files(tmp_path: Path) -> None:
    torch.save(TABLE.double(), tmp_path / "sales.pt")
    np.save(tmp_path / "sales.npy", TABLE.numpy())
    for name in ("sales.pt", "sales.npy"):
        series = read_series(tmp_path / name, start=date(2014, 1, 6))
        torch.testing.assert_close(series.table, TABLE)
        assert series.start == date(2014, 1, 6)
    np.testing.assert_allclose(series.mean, [7.5, 11.5, 15.5])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("periods", "start"),
    [
        ([0, 1, 2, 10], date(2013, 1, 1)),
        (WEEKS, date(2015, 3, 2)),
        (["w01", "w02", "w03", "w04"], date(2013, 1, 1)),
    ],
)
def test_table_files(tmp_path: Path, suffix: str, periods: list[Any], start: date) -> None:
    frame, path = rows(TABLE, periods), tmp_path / f"sales{suffix}"
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    series = read_series(path)
    torch.testing.assert_close(series.table, TABLE)
    assert series.start == start


def test_parquet_with_real_dates(tmp_path: Path) -> None:
    rows(TABLE, [pd.Timestamp(week) for week in WEEKS]).to_parquet(tmp_path / "sales.parquet")
    series = read_series(tmp_path / "sales.parquet")
    torch.testing.assert_close(series.table, TABLE)
    assert series.start == date(2015, 3, 2)
    assert series.days_from_christmas[0] == 67


def test_generated_series_look_like_weekly_sales() -> None:
    demand = seasonal_series(items=400, stores=3, periods=156, seed=1, level=40.0, christmas_bump=2.0)
    table = demand.table
    assert table.shape == (400, 3, 156)
    assert demand.integer
    assert float(table.min()) == 0
    # Median level, over-dispersion, weeks without sales, and the peak before Christmas.
    assert 25 < float(table.mean(-1).median()) < 60
    assert (demand.std > 2 * demand.mean**0.5).all()
    assert float((table == 0).float().mean()) > 0.01
    days = demand.days_from_christmas[:-1]
    peak = table[:, :, (days >= -10) & (days <= 0)].mean()
    assert float(peak) > 1.4 * float(table[:, :, days.abs() > 60].mean())
    again = seasonal_series(items=400, stores=3, periods=156, seed=1, level=40.0, christmas_bump=2.0)
    assert torch.equal(table, again.table)
    other = seasonal_series(items=400, stores=3, periods=156, seed=2, level=40.0, christmas_bump=2.0)
    assert not torch.equal(table, other.table)
