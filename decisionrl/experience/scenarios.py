"""Sources of inventory scenarios: demand paths with the stock they start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decisionrl.envs.inventory.scenarios import (
    fresh_scenarios,
    initial_slots,
    series_scenarios,
    stationary_demand,
    take,
)
from decisionrl.envs.inventory.setting import Setting
from decisionrl.envs.inventory.simulator import Parameters, Scenario, Simulator, Slots
from decisionrl.learner import Update


class ContinuingScenarios:
    """Fresh demand every time, starting from the stock in which the last rollout ended.

    Short rollouts then see the states that the policy itself visits, without a warm-up in every one. Every
    ``redraw_every`` samples a share ``redraw`` of the states is replaced by random initial stock, which keeps
    the policy right away from its own path. So is, at once, every state in which some node's position is
    beyond ``runaway`` times its mean flow over the longest lead time: an untrained policy can drive a backlog
    without bound, and the inputs with it. ``Update.carry`` brings the final pipeline back.
    """

    steps_per_sample = 1

    def __init__(
        self,
        setting: Setting,
        simulator: Simulator,
        *,
        batch: int,
        periods: int,
        generator: torch.Generator,
        redraw: float = 0.125,
        redraw_every: int = 10,
        runaway: float = 10.0,
    ) -> None:
        if not 0 <= redraw <= 1:
            raise ValueError(f"redraw = {redraw}; valid: a share of the states, 0 to 1")
        for name, value in (("batch", batch), ("periods", periods), ("redraw_every", redraw_every)):
            if value < 1:
                raise ValueError(f"{name} = {value}; valid: a whole number >= 1")
        stationary_demand(setting)  # raises for a finite table of series
        self.setting, self.simulator = setting, simulator
        self.batch, self.periods, self.generator = batch, periods, generator
        self.redraw_every, self._redrawn = redraw_every, round(redraw * batch)
        self._samples = 0
        flow = setting.network.flow_scale(setting.demand.mean)[0] * (simulator.num_slots + 1)
        self._limit = torch.as_tensor(runaway * flow, device=simulator.device, dtype=simulator.dtype)
        self._slots: Slots = initial_slots(setting, simulator, batch, generator)

    def sample(self) -> Scenario:
        if self._redrawn and self._samples and self._samples % self.redraw_every == 0:
            self._redraw()
        self._samples += 1
        return fresh_scenarios(
            self.setting,
            self.simulator,
            batch=self.batch,
            periods=self.periods,
            generator=self.generator,
            slots=self._slots,
        )

    def observe(self, update: Update, /) -> None:
        slots: Slots = update.carry
        position = torch.stack(slots).sum(0).abs()
        gone = (position > self._limit).any(-1, keepdim=True)
        fresh = initial_slots(self.setting, self.simulator, self.batch, self.generator)
        self._slots = tuple(torch.where(gone, new, old) for new, old in zip(fresh, slots, strict=True))

    def state_dict(self) -> dict[str, Any]:
        return {
            "slots": list(self._slots),
            "samples": self._samples,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._slots = tuple(slot.to(self.simulator.device) for slot in state["slots"])
        self._samples = state["samples"]
        self.generator.set_state(state["generator"])

    def _redraw(self) -> None:
        new = initial_slots(self.setting, self.simulator, self._redrawn, self.generator)
        # The batch moves on by the redrawn share, so that every state is replaced in turn.
        self._slots = tuple(
            torch.cat([slot[self._redrawn :], fresh]) for slot, fresh in zip(self._slots, new, strict=True)
        )


class FiniteScenarios:
    """Shuffled mini-batches of a fixed set, the last one of an epoch kept even if it is smaller."""

    steps_per_sample = 1

    def __init__(self, scenario: Scenario, *, batch: int, generator: torch.Generator) -> None:
        if batch < 1:
            raise ValueError(f"batch = {batch}; valid: a whole number >= 1")
        self.scenario, self.batch, self.generator = scenario, batch, generator
        self._order = torch.empty(0, dtype=torch.int64)
        self._position = 0

    @property
    def samples_per_epoch(self) -> int:
        return -(-self.scenario.batch // self.batch)

    def sample(self) -> Scenario:
        if self._position >= len(self._order):
            self._order = torch.randperm(self.scenario.batch, generator=self.generator, device=self.generator.device)
            self._position = 0
        index = self._order[self._position : self._position + self.batch]
        self._position += self.batch
        return take(self.scenario, index)

    def observe(self, update: Update, /) -> None:
        """Nothing comes back: every rollout starts from its own initial stock."""

    def state_dict(self) -> dict[str, Any]:
        return {
            "order": self._order,
            "position": self._position,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._order = state["order"].to(self.generator.device)
        self._position = state["position"]
        self.generator.set_state(state["generator"])


class WindowedScenarios:
    """Windows of the training columns of finite series, each lane walking on with the stock it ended with.

    A lane is one item at one column. It moves on by ``periods`` columns after every rollout, and at the end of
    the training columns to a random item and column, its pipeline scaled by the ratio of the two recent mean
    demands: rollouts then see the states that the policy itself visits, without a warm-up in every one. Every
    ``redraw_every`` samples a share ``redraw`` of the lanes is replaced: another item and column, and a random
    pipeline of up to twice the recent mean demand in each slot. So is, at once, every lane in which some node
    holds more than ``runaway`` times its recent mean demand over the longest lead time.

    Costs, lead times and the calendar go with the item and the column. ``Update.carry`` brings the final
    pipeline back.
    """

    steps_per_sample = 1

    def __init__(
        self,
        setting: Setting,
        simulator: Simulator,
        *,
        batch: int,
        periods: int,
        generator: torch.Generator,
        redraw: float = 0.125,
        redraw_every: int = 10,
        runaway: float = 20.0,
    ) -> None:
        if not 0 <= redraw <= 1:
            raise ValueError(f"redraw = {redraw}; valid: a share of the lanes, 0 to 1")
        self.simulator, self.batch, self.periods, self.generator = simulator, batch, periods, generator
        self.redraw_every, self._redrawn, self._runaway = redraw_every, round(redraw * batch), runaway
        everything = series_scenarios(setting, simulator, "train")
        assert everything.time is not None
        self._demand, self._time, self._parameters = everything.demand, everything.time, everything.parameters
        self._history, self._items = everything.history, everything.batch
        self._starts = everything.periods - periods + 1
        if self._starts < 1:
            raise ValueError(f"periods = {periods}; valid: 1 to {everything.periods}, the training periods")
        flow = [setting.network.flow_scale(row)[0] for row in np.eye(setting.network.num_stores)]
        self._flow = torch.as_tensor(np.array(flow), device=simulator.device, dtype=simulator.dtype)
        self._samples = 0
        self._item, self._column = self._random(batch)
        self._slots: Slots = self._random_slots(self._item, self._column)

    def sample(self) -> Scenario:
        if self._redrawn and self._samples and self._samples % self.redraw_every == 0:
            # The lanes are replaced in turn.
            first = self._samples // self.redraw_every * self._redrawn
            lanes = torch.arange(self.batch, device=self.simulator.device)
            self._replace((lanes - first) % self.batch < self._redrawn)
        self._samples += 1
        rows = torch.arange(self._history + self.periods, device=self.simulator.device)[:, None] + self._column
        return Scenario(
            slots=self._slots,
            demand=self._demand[rows, self._item],
            parameters=Parameters(*(v[self._item] if v.ndim > 1 else v for v in self._parameters)),
            history=self._history,
            time=self._time[rows[: self.periods]],
        )

    def observe(self, update: Update, /) -> None:
        self._slots, before = update.carry, self._item
        self._column = self._column + self.periods
        over = self._column >= self._starts
        last = self._recent(before, self._column)
        item, column = self._random(self.batch)
        self._item, self._column = torch.where(over, item, before), torch.where(over, column, self._column)
        ratio = torch.where(over[:, None], self._recent(self._item, self._column) / last, 1.0)
        self._slots = tuple(slot * ratio for slot in self._slots)
        limit = self._runaway * (self.simulator.num_slots + 1) * self._recent(self._item, self._column)
        self._replace((torch.stack(self._slots).sum(0).abs() > limit).any(-1))

    def state_dict(self) -> dict[str, Any]:
        return {
            "item": self._item,
            "column": self._column,
            "slots": list(self._slots),
            "samples": self._samples,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        device = self.simulator.device
        self._item, self._column = state["item"].to(device), state["column"].to(device)
        self._slots = tuple(slot.to(device) for slot in state["slots"])
        self._samples = state["samples"]
        self.generator.set_state(state["generator"])

    def _random(self, count: int) -> tuple[Tensor, Tensor]:
        """Random items and start columns (of the periods after the history)."""
        device = self.simulator.device
        item = torch.randint(self._items, (count,), generator=self.generator, device=device)
        return item, torch.randint(self._starts, (count,), generator=self.generator, device=device)

    def _recent(self, item: Tensor, column: Tensor) -> Tensor:
        """[lanes, nodes] mean flow over the history before each lane's column, at least one unit for a store."""
        rows = torch.arange(self._history, device=self.simulator.device)[:, None] + column
        return self._demand[rows, item].mean(0).clamp(min=1.0) @ self._flow

    def _random_slots(self, item: Tensor, column: Tensor) -> Slots:
        shape = (self.simulator.num_slots, len(item), 1)
        multiple = torch.rand(shape, generator=self.generator, device=self.simulator.device, dtype=self.simulator.dtype)
        return tuple((2 * multiple * self._recent(item, column)).unbind(0))

    def _replace(self, which: Tensor) -> None:
        """Another item, column and random pipeline for some lanes."""
        item, column = self._random(self.batch)
        self._item, self._column = torch.where(which, item, self._item), torch.where(which, column, self._column)
        fresh = self._random_slots(self._item, self._column)
        self._slots = tuple(torch.where(which[:, None], new, old) for new, old in zip(fresh, self._slots, strict=True))
