"""Training cases for demand forecasters: what was sold before a period, and what was sold from then on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.envs.inventory.demand import DemandError, SeriesDemand
from decisionrl.envs.inventory.scenarios import DAYS_SCALE, Split
from decisionrl.envs.inventory.setting import Setting
from decisionrl.learner import Update


@dataclass(frozen=True)
class ForecastCases:
    """A batch of cases.

    past_demand: [cases, history]. time: [cases, features] of the period to come. target: [cases, horizons]
    cumulative demand over the next h periods, NaN where the data end before.
    """

    past_demand: Float[Tensor, "cases history"]
    time: Float[Tensor, "cases features"]
    target: Float[Tensor, "cases horizons"]


class ForecastData:
    """All sliding windows over the series of one split; a case is a series and the column it looks ahead from.

    No column outside the split is read, neither as history nor as target. skip: leave out the first columns
    after the history (the periods that are not reported, which an earlier split may share).
    """

    def __init__(self, setting: Setting, split: Split, *, horizons: Sequence[int], skip: int = 0) -> None:
        demand, phase = setting.demand, setting.phases[split]
        if not isinstance(demand, SeriesDemand):
            raise DemandError(f"setting {setting.name!r} has no series to forecast; valid: demand.kind = 'series'")
        if setting.history < 1:
            raise DemandError("demand.history = 0; valid: at least 1 past demand to forecast from")
        first, last = phase.columns or (0, demand.table.shape[2])
        self.history = setting.history
        self.series = demand.table[: phase.scenarios, :, first:last].flatten(0, 1)
        self.days = demand.days_from_christmas[first:last] / DAYS_SCALE
        self.first = self.history + skip
        self.columns = self.series.shape[1] - self.first
        if self.columns < 1:
            raise DemandError(f"split {split!r} has {self.series.shape[1]} columns; valid: more than {self.first}")
        ends = torch.arange(self.columns)[:, None] + self.first + torch.tensor(list(horizons))
        self._known = ends <= self.series.shape[1]
        self._ends = ends.clamp(max=self.series.shape[1])
        total = self.series.double().cumsum(1)
        self._total = torch.nn.functional.pad(total, (1, 0))

    def __len__(self) -> int:
        return self.series.shape[0] * self.columns

    def take(self, index: Tensor) -> ForecastCases:
        """Cases by number, 0 <= index < len(self)."""
        row, offset = index // self.columns, index % self.columns
        column = offset + self.first
        past = self.series[row[:, None], column[:, None] + torch.arange(-self.history, 0)]
        target = self._total[row[:, None], self._ends[offset]] - self._total[row, column][:, None]
        target = torch.where(self._known[offset], target, torch.nan)
        return ForecastCases(past, self.days[column][:, None], target.to(past.dtype))


class ForecastSource:
    """Random cases, with replacement."""

    steps_per_sample = 1

    def __init__(self, data: ForecastData, *, batch: int, generator: torch.Generator) -> None:
        self.data, self.batch, self.generator = data, batch, generator

    def sample(self) -> ForecastCases:
        return self.data.take(torch.randint(len(self.data), (self.batch,), generator=self.generator))

    def observe(self, update: Update, /) -> None:
        """Nothing comes back."""

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.generator.set_state(state["generator"])
