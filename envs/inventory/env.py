"""The inventory world to act in step by step: many copies of one network as torch tensors on one device.

The same transition and cost as :meth:`Simulator.rollout`, for policies that are trained or judged through
``reset`` and ``step``. All copies share the clock: their episodes begin and end together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from decisionrl.envs.inventory.feasibility import Rationing
from decisionrl.envs.inventory.scenarios import (
    Split,
    fresh_scenarios,
    make_simulator,
    scenario_parameters,
    series_scenarios,
    take,
)
from decisionrl.envs.inventory.setting import Setting, load_setting, scenario_values
from decisionrl.envs.inventory.simulator import InfeasibleOrderError, Observation, Parameters, Scenario, Slots

Feasibility = Literal["proportional", "assert"]

Step = tuple[
    Float[Tensor, "copies features"],
    Float[Tensor, " copies"],
    Bool[Tensor, " copies"],
    Bool[Tensor, " copies"],
    dict[str, Tensor],
]
"""Observation, reward, terminated, truncated, info."""

PARAMETER_POOL = 4096
"""Scenarios from which copies draw their costs and lead times where a setting names no number of them."""


class ActionError(ValueError):
    """An action that cannot be read; names the world, the step, the field and what would be valid."""


class InventoryEnv:
    """``num_envs`` copies of an inventory network: ``step`` orders over every edge, then demand falls.

    Action [num_envs, num_edges]: units to order over each edge, in the order of ``setting.network.edges``. With
    feasibility = "proportional" orders below 0 count as 0 and a node that cannot fill all orders rations its
    stock in proportion to them (:class:`Rationing`); with "assert" an order that cannot be raises
    InfeasibleOrderError and changes nothing (slow: it reads the device in every step).

    Observation [num_envs, D]: raw units, columns named by ``observation_names``:

    - ``stock[NODE,j]``: units at NODE on hand (j = 0) or arriving in j periods, for all slots that can be
      filled: as many as the longest lead time into the node, or as a store's initial stock fills;
    - ``past_demand[STORE,k]``: demand k periods ago, where the setting shows past demand, oldest first;
    - ``days_from_christmas``: of the week ordered in, in half years, for series;
    - ``holding_cost[STORE]``, ``underage_cost[STORE]``, ``lead_time[EDGE]``: where they vary by scenario.

    Reward [num_envs]: minus the cost of the period summed over the network; in a profit network, the profit.
    An episode never terminates; it is truncated after ``periods`` steps. Then, with autoreset, the observation
    returned is the first of the next episode and ``info["final_obs"]`` the last of this one; without, ``reset``
    must come next. The demand of a whole episode is drawn at reset, from one stream for all copies.

    Rewards and observations are differentiable in the actions; act under ``torch.no_grad()`` where no gradient
    is wanted.
    """

    def __init__(
        self,
        setting: Setting | str | Path,
        *,
        num_envs: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        periods: int | None = None,
        split: Split = "train",
        feasibility: Feasibility = "proportional",
        autoreset: bool = True,
        seed: int | None = None,
    ) -> None:
        """Build the world; call ``reset`` before the first ``step``.

        setting: a Setting, the name of a shipped one or a TOML file. periods: length of an episode, by default
        that of the setting's split. split: of a series, the columns in which each copy replays an item drawn
        at reset; demand that is drawn ignores all of it but the periods. seed: of the demand, the initial
        stock and the items; None for one that differs in every run.

        Raises ValueError for a number or a choice that is not valid, SettingError and DemandError for a setting
        that cannot be used.
        """
        self.setting = setting if isinstance(setting, Setting) else load_setting(setting)
        self.name = f"inventory world {self.setting.name!r}"
        if num_envs < 1:
            raise ValueError(f"{self.name}: num_envs = {num_envs}; valid is a whole number >= 1")
        if feasibility not in ("proportional", "assert"):
            raise ValueError(f"{self.name}: feasibility = {feasibility!r}; valid: 'proportional', 'assert'")
        self.num_envs, self.feasibility, self.autoreset = num_envs, feasibility, autoreset
        self.network = self.setting.network
        self.simulator = make_simulator(self.setting, device=device, dtype=dtype)
        self.device, self.dtype = self.simulator.device, dtype
        self.generator = torch.Generator(self.device)
        _ = self.generator.seed() if seed is None else self.generator.manual_seed(seed)
        self.periods = self._choose_periods(periods, split)
        self._items = self._series(split) if self.setting.is_series else None
        self._pool = self._parameter_pool(split)
        self._ration = Rationing(self.network, device=self.device, dtype=dtype)
        self._reach = _slots_in_use(self.setting)
        self._varying = _varying_columns(self.setting)
        self.observation_names = _observation_names(self.setting, self._reach, self._varying)
        in_use = [n * self.simulator.num_slots + j for n, reach in enumerate(self._reach) for j in range(reach)]
        self._stock_columns = torch.tensor(in_use, device=self.device)
        self._scenario: Scenario | None = None
        self._slots: Slots = ()
        self._demand = torch.empty(0)  # [periods, num_envs, num_nodes]
        self._period = 0

    @property
    def num_edges(self) -> int:
        """Length of one copy's action."""
        return self.network.num_edges

    @property
    def period(self) -> int:
        """Steps taken in this episode."""
        return self._period

    @property
    def over(self) -> bool:
        """Whether the episode has ended and ``reset`` must come next (never so with autoreset)."""
        return self._scenario is not None and self._period >= self._scenario.periods

    @property
    def where(self) -> str:
        """The world and the step to come, for messages."""
        return f"{self.name}, step {self._period}"

    @property
    def scenario(self) -> Scenario:
        """The start and the demand of the running episode; hand it to ``reset`` to play it again."""
        if self._scenario is None:
            raise RuntimeError(f"{self.name}: there is no episode yet; call reset() first")
        return self._scenario

    def reset(self, seed: int | None = None, *, scenario: Scenario | None = None) -> Float[Tensor, "copies features"]:
        """Begin an episode in every copy and return its first observation.

        seed: start the random stream again. scenario: play this one, with num_envs scenarios of as many periods
        as it has, instead of a new draw. Raises ValueError if its sizes do not fit the world.
        """
        if seed is not None:
            self.generator.manual_seed(seed)
        if scenario is None:
            scenario = self._draw()
        else:
            self._check_scenario(scenario)
        self._begin(scenario, scenario.slots, 0)
        return self._flat(self.observation())

    def step(self, action: Float[Tensor, "copies edges"]) -> Step:
        """Order, let demand fall, and return (observation, reward, terminated, truncated, info).

        info holds tensors: ``orders`` [num_envs, num_edges] as shipped, ``demand`` [num_envs, num_stores], ``level``
        [num_envs, num_nodes] on hand after shipping and demand (below 0: unmet demand) and, at the end of an
        episode with autoreset, ``final_obs``. The first three may share memory with the state: do not write to
        them. Raises ActionError for an action of the wrong shape or, at once if it lies on the CPU and else at the
        end of the episode, with NaN or infinite values; InfeasibleOrderError with feasibility = "assert";
        RuntimeError when the episode is over or has not begun.
        """
        scenario = self.scenario
        if self.over:
            raise RuntimeError(f"{self.where}: the episode of {scenario.periods} periods is over; call reset()")
        action = self._read(action)
        orders = self._ration(action, self._slots[0]) if self.feasibility == "proportional" else action.clone()
        demand, parameters = self._demand[self._period], scenario.parameters
        following, level = self.simulator.transition(self._slots, orders, demand, parameters)
        if self.feasibility == "assert":
            self._assert_feasible(orders, demand, following)
        reward = -self.simulator.cost(level, orders, demand, parameters)
        info = {"orders": orders, "demand": demand[:, self.network.num_warehouses :], "level": level}
        self._slots = following
        self._period += 1
        observation = self._flat(self.observation())
        terminated = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        truncated = torch.full_like(terminated, self.over)
        if self.over:
            self._check_finite()
            if self.autoreset:
                info["final_obs"] = observation
                observation = self.reset()
        return observation, reward, terminated, truncated, info

    def observation(self) -> Observation:
        """The structured view of the state, for policies that are called on the simulator's Observation."""
        return self.simulator.observe(self.scenario, self._slots, self._period)

    def state_dict(self) -> dict[str, Any]:
        """Everything a replay needs, as plain data and tensors: the random stream, the episode and its state."""
        state: dict[str, Any] = {"generator": self.generator.get_state(), "period": self._period, "episode": None}
        if self._scenario is not None:
            state["episode"] = {
                "start": [slot.detach().clone() for slot in self._scenario.slots],
                "slots": [slot.detach().clone() for slot in self._slots],
                "demand": self._scenario.demand.clone(),
                "parameters": {name: value.clone() for name, value in self._scenario.parameters._asdict().items()},
                "time": None if self._scenario.time is None else self._scenario.time.clone(),
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Return to a saved state of a world with the same setting and number of copies.

        Raises ValueError if the sizes do not fit.
        """
        episode = state["episode"]
        if episode is None:
            self._scenario, self._period = None, 0
        else:
            scenario = Scenario(
                slots=tuple(self._own(slot) for slot in episode["start"]),
                demand=self._own(episode["demand"]),
                parameters=Parameters(**{name: self._own(value) for name, value in episode["parameters"].items()}),
                history=self.setting.history,
                time=None if episode["time"] is None else self._own(episode["time"]),
            )
            self._check_scenario(scenario)
            self._begin(scenario, tuple(self._own(slot) for slot in episode["slots"]), state["period"])
        self.generator.set_state(state["generator"].cpu())

    # ------------------------------------------------------------------------------------------- episodes

    def _choose_periods(self, periods: int | None, split: Split) -> int:
        phase = self.setting.phases.get(split)
        if phase is None and (periods is None or self.setting.is_series):
            valid = ", ".join(map(repr, self.setting.phases)) or "none, the setting has no [paper] table"
            raise ValueError(f"{self.name}: split = {split!r} is not in the setting; valid: {valid}")
        longest = phase.periods if phase is not None and self.setting.is_series else None
        chosen = phase.periods if phase is not None and periods is None else periods
        if chosen is None or chosen < 1 or (longest is not None and chosen > longest):
            limit = f" to {longest}, the length of split {split!r}" if longest else ""
            raise ValueError(f"{self.name}: periods = {chosen}; valid is a whole number from 1{limit}")
        return chosen

    def _series(self, split: Split) -> Scenario:
        """All items of the split, cut to the length of an episode."""
        items = series_scenarios(self.setting, self.simulator, split)
        return dataclasses.replace(items, demand=items.demand[: items.history + self.periods])

    def _parameter_pool(self, split: Split) -> Parameters | None:
        """Costs and lead times to draw from where they vary; those of a series belong to its items."""
        if self.setting.is_series or not self.setting.per_scenario:
            return None
        count = self.setting.phases[split].scenarios if split in self.setting.phases else PARAMETER_POOL
        count = min(len(scenario_values(draw, count)) for draw in self.setting.per_scenario.values())
        return scenario_parameters(self.setting, self.simulator, count)

    def _draw(self) -> Scenario:
        if self._items is not None:
            return take(self._items, self._choose(self._items.batch))
        parameters = self.simulator.parameters
        if self._pool is not None:
            index = self._choose(next(value.shape[0] for value in self._pool if value.ndim > 1))
            parameters = Parameters(*(value[index] if value.ndim > 1 else value for value in self._pool))
        return fresh_scenarios(
            self.setting,
            self.simulator,
            batch=self.num_envs,
            periods=self.periods,
            generator=self.generator,
            parameters=parameters,
        )

    def _choose(self, count: int) -> Tensor:
        """[num_envs] numbers below count, with replacement."""
        return torch.randint(count, (self.num_envs,), generator=self.generator, device=self.device)

    def _begin(self, scenario: Scenario, slots: Slots, period: int) -> None:
        if scenario.time is not None and len(scenario.time) == scenario.periods:
            # The observation after the last period shows the last week known.
            scenario = dataclasses.replace(scenario, time=torch.cat([scenario.time, scenario.time[-1:]]))
        self._scenario, self._slots, self._period = scenario, slots, period
        self._demand = self.simulator.node_demand(scenario.demand[scenario.history :])

    def _own(self, value: Tensor) -> Tensor:
        return value.detach().to(self.device, self.dtype, copy=True)

    def _check_scenario(self, scenario: Scenario) -> None:
        sizes = (len(scenario.slots), scenario.batch, scenario.demand.shape[-1], scenario.history)
        valid = (self.simulator.num_slots, self.num_envs, self.network.num_stores, self.setting.history)
        for name, size, need in zip(("slots", "scenarios", "stores", "history"), sizes, valid, strict=True):
            if size != need:
                raise ValueError(f"{self.name}: the scenario has {name} = {size}; valid: {need}")
        for j, slot in enumerate(scenario.slots):
            hidden = torch.tensor([j >= reach for reach in self._reach], device=slot.device)
            if bool((slot[..., hidden] != 0).any()):
                raise ValueError(f"{self.name}: the scenario has stock in slot {j} of a node without that slot")

    # ------------------------------------------------------------------------------- actions, observations

    def _read(self, action: Tensor) -> Tensor:
        valid = (self.num_envs, self.num_edges)
        if not isinstance(action, Tensor):
            raise ActionError(f"{self.where}: action is a {type(action).__name__}; valid is a tensor {list(valid)}")
        if action.shape != valid:
            raise ActionError(
                f"{self.where}: action has shape {list(action.shape)}; valid: {list(valid)}, copies and edges"
            )
        if action.device.type == "cpu" and not bool(torch.isfinite(action).all()):
            copy, edge = (~torch.isfinite(action)).nonzero()[0].tolist()
            raise ActionError(
                f"{self.where}: action = {float(action[copy, edge])} over edge {self.network.edges[edge].name} of "
                f"copy {copy}; valid are finite numbers"
            )
        return action.to(self.device, self.dtype)

    def _assert_feasible(self, orders: Tensor, demand: Tensor, following: Slots) -> None:
        try:
            self.simulator.assert_feasible(self._slots, orders, demand, following, self._period)
        except InfeasibleOrderError as error:
            raise InfeasibleOrderError(f"{self.name}, {error}") from None

    def _check_finite(self) -> None:
        """Stock that was ever NaN or infinite still is: one look at the end of an episode finds it."""
        if not bool(torch.isfinite(torch.stack(self._slots)).all()):
            raise ActionError(f"{self.where}: the stock is NaN or infinite; an action of this episode held such values")

    def _flat(self, observation: Observation) -> Float[Tensor, "copies features"]:
        stock = torch.stack(observation.slots, -1).flatten(-2)  # [copies, nodes x slots]
        parts = [stock[:, self._stock_columns]]
        if observation.past_demand is not None:
            parts.append(observation.past_demand.flatten(-2))
        if observation.time is not None:
            parts.append(observation.time.expand(self.num_envs, -1))
        for field, columns in self._varying.items():
            value: Tensor = getattr(observation.parameters, field)
            parts.append(value.expand(self.num_envs, -1)[:, columns])
        return torch.cat(parts, -1)


def order_limits(setting: Setting) -> NDArray[np.float64]:
    """[num_edges] units per period that no sensible order exceeds for long; bounds of a finite action space.

    An edge can carry all that its destination needs in a period of peak demand, with everything the destination
    in turn supplies. Peak demand of a store: mean + 3 standard deviations (of a series: over items and periods).
    """
    network = setting.network
    node, edge = np.zeros(network.num_nodes), np.zeros(network.num_edges)
    node[network.num_warehouses :] = np.maximum(setting.demand.mean + 3 * setting.demand.std, 0.0)
    for e in reversed(range(network.num_edges)):  # destinations come after their sources
        edge[e] = node[network.edge_destination[e]]
        if network.edge_source[e] >= 0:
            node[network.edge_source[e]] += edge[e]
    return edge


def _slots_in_use(setting: Setting) -> list[int]:
    """For each node how many slots can hold stock: the longest lead time into it, or more at the start."""
    network = setting.network
    varying = setting.lead_time_range
    reach = [0] * network.num_nodes
    for node, lead in zip(network.edge_destination, network.lead_times, strict=True):
        if varying is not None and node >= network.num_warehouses:
            lead = varying[1]
        reach[node] = max(reach[node], lead)
    if setting.initial_stock[1] > 0 and not setting.is_series:  # series start without stock
        for node in range(network.num_warehouses, network.num_nodes):
            reach[node] = max(reach[node], setting.stocked_slots)
    return reach


def _varying_columns(setting: Setting) -> dict[str, list[int]]:
    """The columns of each parameter that varies by scenario: stores, or edges into stores."""
    network = setting.network
    stores = list(range(network.num_warehouses, network.num_nodes))
    into_stores = [edge for edge, node in enumerate(network.edge_destination) if node >= network.num_warehouses]
    return {field: into_stores if field == "lead_time" else stores for field in setting.per_scenario}


def _observation_names(setting: Setting, reach: list[int], varying: Mapping[str, list[int]]) -> tuple[str, ...]:
    network = setting.network
    names = [f"stock[{node},{j}]" for node, slots in zip(network.node_names, reach, strict=True) for j in range(slots)]
    for store in network.node_names[network.num_warehouses :]:
        names += [f"past_demand[{store},{k}]" for k in range(setting.history, 0, -1)]
    if setting.is_series:
        names.append("days_from_christmas")
    for field, columns in varying.items():
        places = [edge.name for edge in network.edges] if field == "lead_time" else network.node_names
        names += [f"{field}[{places[column]}]" for column in columns]
    return tuple(names)
