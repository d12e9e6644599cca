"""Sources of inventory scenarios: demand paths with the stock they start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from decisionrl.envs.inventory.scenarios import fresh_scenarios, initial_slots, stationary_demand, take
from decisionrl.envs.inventory.setting import Setting
from decisionrl.envs.inventory.simulator import Scenario, Simulator, Slots
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
