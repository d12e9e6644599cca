"""The batched inventory network as a World: thousands of copies in one tensor operation."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from decisionrl.envs.inventory.env import InventoryEnv
from decisionrl.envs.inventory.scenarios import Split, take
from decisionrl.envs.inventory.setting import Setting
from decisionrl.envs.inventory.simulator import Parameters, Scenario
from decisionrl.envs.inventory.spaces import OrderSpace, observation_space, units
from decisionrl.envs.world import Step


class InventoryWorld:
    """``num_envs`` copies of an inventory network, see :class:`InventoryEnv` for observation, reward and arguments.

    Action [num_envs, num_edges] in [-1, 1]: a over edge e orders (a + 1) / 2 * high_e units, where high is
    ``max_order``, by default :func:`order_limits`.

    The seed of a copy decides its initial stock, demand, costs and lead times: those that
    ``InventorySingleEnv.reset(seed=...)`` draws. Episodes have a fixed length and are truncated. All copies share the
    clock, so ``restart`` takes all of them at once.

    Raises:
        ValueError, SettingError, DemandError: as InventoryEnv.
    """

    seedable = True

    def __init__(
        self,
        setting: Setting | str | Path,
        *,
        num_envs: int,
        periods: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_order: float | NDArray[Any] | None = None,
        split: Split = "train",
    ) -> None:
        def built(copies: int) -> InventoryEnv:
            return InventoryEnv(
                setting,
                num_envs=copies,
                device=device,
                dtype=dtype,
                periods=periods,
                split=split,
                autoreset=False,
                seed=0,
            )

        self.env, self._one = built(num_envs), built(1)
        self.name, self.num_envs, self.device = self.env.name, num_envs, self.env.device
        orders = OrderSpace(self.env, max_order, normalize=True)
        self.observation_space: gymnasium.Space[Any] = observation_space(self.env)
        self.action_space: gymnasium.Space[Any] = orders.space
        self._high = torch.as_tensor(orders.high, device=self.device, dtype=dtype)
        self._observation = torch.empty(0)

    def reset(self, seeds: Sequence[int]) -> Float[Tensor, "copies features"]:
        return self.restart(range(self.num_envs), seeds)

    @torch.no_grad()
    def step(self, action: Float[Tensor, "copies edges"], *, idle: Collection[int] = ()) -> Step:
        orders = units(action.to(self.device, self._high.dtype).clamp(-1, 1), self._high)
        self._observation, reward, terminated, truncated, _ = self.env.step(orders)
        over = [i for i in range(self.num_envs) if i not in idle] if self.env.over else []
        return Step(self._observation, reward, terminated, truncated, over)

    @torch.no_grad()
    def restart(self, copies: Sequence[int], seeds: Sequence[int]) -> Float[Tensor, "copies features"]:
        """Begin an episode in every copy. Raises ValueError if ``copies`` are not all of them."""
        if sorted(copies) != list(range(self.num_envs)):
            raise ValueError(
                f"{self.name}: restart({list(copies)}); valid: all of its {self.num_envs} copies, which share a clock"
            )
        seed_of = dict(zip(copies, seeds, strict=True))
        unique, index = np.unique([seed_of[i] for i in range(self.num_envs)], return_inverse=True)
        drawn = _joined([self._drawn(int(seed)) for seed in unique])
        self._observation = self.env.reset(scenario=take(drawn, torch.as_tensor(index, device=self.device)))
        return self._observation

    def state_dict(self) -> dict[str, Any]:
        return {"env": self.env.state_dict(), "observation": self._observation.clone()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> Float[Tensor, "copies features"]:
        self.env.load_state_dict(state["env"])
        self._observation = state["observation"].to(self.device, copy=True)
        return self._observation

    def close(self) -> None:
        """Nothing to close."""

    def _drawn(self, seed: int) -> Scenario:
        self._one.reset(seed)
        return self._one.scenario


def _joined(scenarios: Sequence[Scenario]) -> Scenario:
    """Scenarios of one setting side by side; they share the calendar."""
    first = scenarios[0]
    parameters = [scenario.parameters for scenario in scenarios]
    return dataclasses.replace(
        first,
        slots=tuple(torch.cat(slots) for slots in zip(*(scenario.slots for scenario in scenarios), strict=True)),
        demand=torch.cat([scenario.demand for scenario in scenarios], 1),
        parameters=Parameters(
            *(torch.cat(values) if values[0].ndim > 1 else values[0] for values in zip(*parameters, strict=True))
        ),
    )
