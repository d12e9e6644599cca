"""Demand processes: what customers ask for at each store in each period.

Stationary processes draw fresh paths ``[periods, batch, num_stores]`` from an explicit generator on any
device. ``SeriesDemand`` holds a finite table of real or generated series.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor


class DemandError(ValueError):
    """A demand process or data file that cannot be used; names the field, the value and what is valid."""


class StationaryDemand(Protocol):
    """Independent identically distributed demand vectors."""

    @property
    def mean(self) -> NDArray[np.float64]:
        """[num_stores] mean per period (of the parameters: before any clipping at 0)."""
        ...

    @property
    def std(self) -> NDArray[np.float64]:
        """[num_stores] standard deviation per period."""
        ...

    @property
    def integer(self) -> bool:
        """Whether demand comes in whole units."""
        ...

    def sample(
        self, periods: int, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "periods batch stores"]:
        """Fresh paths on the generator's device."""
        ...

    def sample_legacy(self, rng: np.random.RandomState, scenarios: int, periods: int) -> NDArray[np.float64]:
        """[scenarios, num_stores, periods] by the numpy recipe of the paper's released code."""
        ...


@dataclass(frozen=True, kw_only=True)
class NormalDemand:
    """Normal, or multivariate normal with one correlation for all pairs; clipped at 0 unless told otherwise."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    correlation: float = 0.0
    clip: bool = True
    integer = False

    def __post_init__(self) -> None:
        _require_positive("std", self.std)
        _require_finite("mean", self.mean)
        low = -1.0 / max(1, len(self.mean) - 1)
        if not low <= self.correlation <= 1:
            raise DemandError(
                f"demand.correlation = {self.correlation}; valid: {low:.3g} to 1 for {len(self.mean)} stores"
            )

    @cached_property
    def covariance(self) -> NDArray[np.float64]:
        outer = np.outer(self.std, self.std)
        covariance: NDArray[np.float64] = self.correlation * outer
        np.fill_diagonal(covariance, self.std**2)
        return covariance

    @cached_property
    def _factor(self) -> NDArray[np.float64]:
        values, vectors = np.linalg.eigh(self.covariance)  # also right when the matrix is singular
        factor: NDArray[np.float64] = vectors * np.sqrt(np.clip(values, 0.0, None))
        return factor

    def sample(
        self, periods: int, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "periods batch stores"]:
        device = generator.device
        noise = torch.randn(periods, batch, len(self.mean), generator=generator, device=device, dtype=dtype)
        if len(self.mean) == 1:
            demand = noise.mul_(float(self.std[0])).add_(float(self.mean[0]))
        else:
            factor = torch.as_tensor(self._factor, device=device, dtype=dtype)
            demand = noise @ factor.T + torch.as_tensor(self.mean, device=device, dtype=dtype)
        return demand.clamp_(min=0) if self.clip else demand

    def sample_legacy(self, rng: np.random.RandomState, scenarios: int, periods: int) -> NDArray[np.float64]:
        if len(self.mean) == 1:
            demand = rng.normal(self.mean[0], self.std[0], size=(scenarios, 1, periods))
        else:
            draws = rng.multivariate_normal(self.mean, self.covariance, size=(scenarios, periods))
            demand = np.transpose(draws, (0, 2, 1))
        return np.maximum(demand, 0.0) if self.clip else demand


@dataclass(frozen=True, kw_only=True)
class PoissonDemand:
    mean: NDArray[np.float64]
    integer = True

    def __post_init__(self) -> None:
        _require_positive("mean", self.mean)

    @property
    def std(self) -> NDArray[np.float64]:
        return np.sqrt(self.mean)

    def sample(
        self, periods: int, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "periods batch stores"]:
        rate = torch.as_tensor(self.mean, device=generator.device, dtype=dtype)
        return torch.poisson(rate.expand(periods, batch, len(self.mean)), generator=generator)

    def sample_legacy(self, rng: np.random.RandomState, scenarios: int, periods: int) -> NDArray[np.float64]:
        shape = (scenarios, len(self.mean), periods)
        return rng.poisson(self.mean[None, :, None], size=shape).astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class NegativeBinomialDemand:
    """Poisson with a gamma rate: variance = mean + mean^2 / dispersion."""

    mean: NDArray[np.float64]
    dispersion: NDArray[np.float64]
    integer = True

    def __post_init__(self) -> None:
        _require_positive("mean", self.mean)
        _require_positive("dispersion", self.dispersion)

    @property
    def std(self) -> NDArray[np.float64]:
        return np.sqrt(self.mean + self.mean**2 / self.dispersion)

    def sample(
        self, periods: int, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "periods batch stores"]:
        device = generator.device
        shape = (periods, batch, len(self.mean))
        concentration = torch.as_tensor(self.dispersion, device=device, dtype=dtype).expand(shape)
        scale = torch.as_tensor(self.mean / self.dispersion, device=device, dtype=dtype)
        rate = torch._standard_gamma(concentration, generator=generator) * scale
        return torch.poisson(rate, generator=generator)

    def sample_legacy(self, rng: np.random.RandomState, scenarios: int, periods: int) -> NDArray[np.float64]:
        shape = (scenarios, len(self.mean), periods)
        probability = self.dispersion / (self.dispersion + self.mean)
        draws = rng.negative_binomial(self.dispersion[None, :, None], probability[None, :, None], size=shape)
        return draws.astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class SeriesDemand:
    """A finite table of series: [items, num_stores, periods], one scenario per item.

    start: date of the first column (weekly columns); gives the time feature days_from_christmas.
    """

    table: Float[Tensor, "items stores periods"]
    start: date = date(2013, 1, 1)

    def __post_init__(self) -> None:
        if self.table.ndim != 3:
            raise DemandError(f"the series have the shape {list(self.table.shape)}; valid: [items, stores, periods]")
        if 0 in self.table.shape:
            raise DemandError(f"the series have the shape {list(self.table.shape)}; valid: at least one of each")
        bad = int((~torch.isfinite(self.table)).sum())
        if bad:
            item, store, period = (int(i) for i in (~torch.isfinite(self.table)).nonzero()[0])
            raise DemandError(
                f"the series hold {bad} missing, NaN or infinite values, the first at item {item}, store {store}, "
                f"period {period} (counted from 0); valid are finite numbers"
            )

    @property
    def mean(self) -> NDArray[np.float64]:
        return self.table.double().mean(dim=(0, 2)).numpy()

    @property
    def std(self) -> NDArray[np.float64]:
        return self.table.double().std(dim=(0, 2)).numpy()

    @property
    def integer(self) -> bool:
        return bool((self.table == self.table.round()).all())

    @cached_property
    def days_from_christmas(self) -> Float[Tensor, " periods"]:
        """Signed days to the nearest 25 December for each weekly column and one beyond the last."""
        days = [self.start + timedelta(weeks=w) for w in range(self.table.shape[2] + 1)]
        return torch.tensor([float(_days_from_christmas(day)) for day in days])


Demand = NormalDemand | PoissonDemand | NegativeBinomialDemand | SeriesDemand


def _days_from_christmas(day: date) -> int:
    distances = [(day - date(year, 12, 25)).days for year in (day.year - 1, day.year)]
    return min(distances, key=abs)


def seasonal_series(
    *,
    items: int,
    stores: int,
    periods: int,
    seed: int,
    level: float = 40.0,
    level_spread: float = 1.0,
    christmas_bump: float = 0.8,
    intermittence: float = 0.01,
    dispersion: float = 6.0,
    start: date = date(2013, 1, 1),
) -> SeriesDemand:
    """Weekly sales for people who have no data: lognormal levels x a yearly season x over-dispersed counts.

    level: median units per store-week. level_spread: standard deviation of the log level over items.
    christmas_bump: relative height of the peak around 25 December. intermittence: probability of a week
    without sales. dispersion: of the negative binomial noise (larger is closer to Poisson).
    """
    rng = np.random.default_rng(seed)
    item_level = level * np.exp(level_spread * rng.standard_normal((items, 1, 1)))
    store_level = np.exp(0.4 * rng.standard_normal((1, stores, 1)))
    trend = 1 + 0.15 * rng.standard_normal((items, 1, 1)) * np.linspace(0.0, 1.0, periods)
    days = np.array([_days_from_christmas(start + timedelta(weeks=w)) for w in range(periods)], dtype=float)
    amplitude = 0.15 * rng.random((items, 1, 1))
    phase = 2 * np.pi * rng.random((items, 1, 1))
    season = 1 + amplitude * np.sin(2 * np.pi * np.arange(periods) / 52.18 + phase)
    bump = 1 + christmas_bump * rng.random((items, 1, 1)) * np.exp(-0.5 * ((days + 4) / 9.0) ** 2)
    rate = item_level * store_level * np.clip(trend, 0.2, None) * season * bump
    counts = rng.poisson(rate * rng.gamma(dispersion, 1 / dispersion, rate.shape)).astype(np.float32)
    counts[rng.random(counts.shape) < intermittence] = 0.0
    return SeriesDemand(table=torch.from_numpy(counts), start=start)


def read_series(path: str | Path, *, start: date = date(2013, 1, 1)) -> SeriesDemand:
    """Read [items, stores, periods] sales from a tensor (.pt), .npy, .csv or .parquet file.

    A table has one row per item, store and period with the columns ``item``, ``store``, ``period`` (whole
    numbers or sortable labels; ISO dates work) and ``demand``; every combination must be present once.
    Raises DemandError naming the file and the field.
    """
    path = Path(path)
    if not path.is_file():
        raise DemandError(f"{path}: no such data file")
    try:
        if path.suffix == ".pt":
            table = load_tensor(path).float()
        elif path.suffix == ".npy":
            table = torch.from_numpy(np.load(path, allow_pickle=False)).float()
        elif path.suffix in (".csv", ".parquet"):
            table, start = _read_table(path, start)
        else:
            raise DemandError(f"{path}: unknown file type {path.suffix!r}; valid: .pt, .npy, .csv, .parquet")
        return SeriesDemand(table=table, start=start)
    except DemandError as error:
        raise DemandError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DemandError(f"{path}: cannot be read as a {path.suffix} file of numbers ({first_line})") from error


def load_tensor(path: Path) -> Tensor:
    """The one tensor a .pt file holds. Nothing in the file is run; DemandError if it is anything else."""
    try:
        values = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception:
        raise DemandError(
            f"{path}: is not a tensor saved by torch.save (or it holds more than plain tensors, which is refused, "
            "since loading it could run code)"
        ) from None
    if not isinstance(values, Tensor):
        raise DemandError(f"{path}: holds a {type(values).__name__}; valid is one tensor")
    return values


def _read_table(path: Path, start: date) -> tuple[Tensor, date]:
    import pandas as pd

    frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    missing = [c for c in ("item", "store", "period", "demand") if c not in frame.columns]
    if missing:
        raise DemandError(
            f"{path}: no column {', '.join(missing)}; valid: item, store, period, demand "
            f"(found {', '.join(map(str, frame.columns))})"
        )
    if frame.duplicated(["item", "store", "period"]).any():
        first = frame[frame.duplicated(["item", "store", "period"])].iloc[0]
        raise DemandError(
            f"{path}: item {first['item']}, store {first['store']}, period {first['period']} occurs more than once"
        )
    pivot = frame.set_index(["item", "store", "period"])["demand"].unstack("period")
    items, stores = (pivot.index.get_level_values(k).unique() for k in ("item", "store"))
    if len(pivot) != len(items) * len(stores):
        raise DemandError(f"{path}: {len(items)} items x {len(stores)} stores, but only {len(pivot)} pairs have rows")
    values = pivot.sort_index().to_numpy(dtype=np.float32, copy=True).reshape(len(items), len(stores), -1)
    if not pd.api.types.is_numeric_dtype(pivot.columns.dtype):
        with contextlib.suppress(ValueError):  # labels that are no dates are in order all the same
            start = pd.Timestamp(str(pivot.columns[0])).date()
    return torch.from_numpy(values), start


def _require_positive(field: str, values: NDArray[np.float64]) -> None:
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise DemandError(f"demand.{field} = {np.asarray(values).tolist()}; valid are finite numbers > 0")


def _require_finite(field: str, values: NDArray[np.float64]) -> None:
    if not np.isfinite(values).all():
        raise DemandError(f"demand.{field} = {np.asarray(values).tolist()}; valid are finite numbers")
