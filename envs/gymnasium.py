"""Our worlds as Gymnasium environments: a single ``gymnasium.Env`` and a native ``VectorEnv``, both on one step.

    import gymnasium
    import decisionrl.envs                                        # registers the ids

    env = gymnasium.make("decisionrl/OneStoreLost-v0")
    envs = gymnasium.make_vec("decisionrl/OneStoreLost-v0", num_envs=1024)

Observations are the flat rows of :class:`InventoryEnv` in raw units (wrap with NormalizeObservation, or
Stable-Baselines3's VecNormalize, for learning), as fresh float32 arrays; ``env.unwrapped.world`` is the tensor
world behind them. Actions are in [-1, 1] by default, as Stable-Baselines3 recommends: a over edge e orders
(a + 1) / 2 * high_e units, with high from :func:`order_limits`; ``normalize_actions=False`` takes units in
[0, high]. What lies outside the box is not cut: an order above high is placed, one below 0 counts as 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from decisionrl.envs.inventory.env import Feasibility, InventoryEnv
from decisionrl.envs.inventory.scenarios import Split
from decisionrl.envs.inventory.setting import Setting
from decisionrl.envs.inventory.simulator import Scenario
from decisionrl.envs.inventory.spaces import OrderSpace, observation_space

Array = NDArray[Any]
Info = dict[str, Any]


class InventorySingleEnv(gymnasium.Env[Array, Array]):
    """One inventory network, see :class:`InventoryEnv` for observation, action and reward.

    ``reset(seed=s)`` starts the random stream again; without a seed the stream goes on. A scenario in
    ``options={"scenario": scenario}`` (of one copy) is played instead of a new draw. info of a step: ``orders``
    [num_edges] as shipped, ``demand`` [num_stores], ``level`` [num_nodes] after demand.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's signature

    def __init__(
        self,
        setting: Setting | str | Path,
        *,
        normalize_actions: bool = True,
        max_order: float | Array | None = None,
        periods: int | None = None,
        split: Split = "train",
        feasibility: Feasibility = "proportional",
        device: torch.device | str = "cpu",
        seed: int | None = None,
    ) -> None:
        """normalize_actions: actions in [-1, 1] instead of units. max_order: the order at the upper end of the
        action space, one number or one for each edge, instead of :func:`order_limits`. The rest as in
        :class:`InventoryEnv`, with the same errors; ValueError for a max_order that is not positive and finite.
        """
        self.world = InventoryEnv(
            setting,
            num_envs=1,
            device=device,
            periods=periods,
            split=split,
            feasibility=feasibility,
            autoreset=False,
            seed=seed,
        )
        self._orders = OrderSpace(self.world, max_order, normalize=normalize_actions)
        self.action_space = self._orders.space
        self.observation_space = observation_space(self.world)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        return _array(self.world.reset(seed, scenario=_scenario(options)))[0], {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, Info]:
        orders = self._orders.read(action, self.action_space)
        observation, reward, terminated, truncated, info = _act(self.world, orders[None])
        details = {name: value[0] for name, value in info.items()}
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), details


class InventoryVectorEnv(VectorEnv[Array, Array, Array]):
    """``num_envs`` copies of an inventory network on the native batched step.

    All copies begin and end their episodes together and draw from one random stream: ``reset(seed=s)`` starts
    it again, and copy i is not the single environment with seed s + i (with one copy it is). autoreset_mode: as
    in Gymnasium's own vector environments; with NEXT_STEP, their default, the step after the end of an episode
    ignores its action, resets and rewards 0; with SAME_STEP the last observation and info of the episode are in
    ``info["final_obs"]`` and ``info["final_info"]``. info of a step as in :class:`InventorySingleEnv`, one row a
    copy.
    """

    def __init__(
        self,
        setting: Setting | str | Path,
        *,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        normalize_actions: bool = True,
        max_order: float | Array | None = None,
        periods: int | None = None,
        split: Split = "train",
        feasibility: Feasibility = "proportional",
        device: torch.device | str = "cpu",
        seed: int | None = None,
    ) -> None:
        """The arguments of :class:`InventorySingleEnv`, with the same errors; ValueError for another mode."""
        self._mode = AutoresetMode(autoreset_mode)
        if self._mode == AutoresetMode.DISABLED:
            raise ValueError("autoreset_mode = DISABLED; valid: NEXT_STEP, SAME_STEP")
        self.metadata = {"render_modes": [], "autoreset_mode": self._mode}
        self.num_envs = num_envs
        self.world = InventoryEnv(
            setting,
            num_envs=num_envs,
            device=device,
            periods=periods,
            split=split,
            feasibility=feasibility,
            autoreset=False,
            seed=seed,
        )
        self._orders = OrderSpace(self.world, max_order, normalize=normalize_actions)
        self.single_action_space = self._orders.space
        self.single_observation_space = observation_space(self.world)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        return _array(self.world.reset(seed, scenario=_scenario(options))), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, Info]:
        orders = self._orders.read(actions, self.action_space)
        if self.world.over:
            observation, info = self.reset()
            nothing = np.zeros(self.num_envs, dtype=np.bool_)
            return observation, np.zeros(self.num_envs), nothing, nothing.copy(), info
        observation, reward, terminated, truncated, details = _act(self.world, orders)
        info = self._with_masks(details)
        if self.world.over and self._mode == AutoresetMode.SAME_STEP:
            final = np.empty(self.num_envs, dtype=object)
            final[:] = list(observation)
            info = self._with_masks({"final_obs": final, "final_info": info})
            observation, _ = self.reset()
        return observation, reward, terminated, truncated, info

    def _with_masks(self, details: Info) -> Info:
        """Gymnasium's form: for each name a second entry that says which copies have it, here all of them."""
        return details | {f"_{name}": np.ones(self.num_envs, dtype=np.bool_) for name in details}


def _act(world: InventoryEnv, orders: Array) -> tuple[Array, Array, Array, Array, Info]:
    """One step of the world in fresh NumPy arrays."""
    with torch.no_grad():
        observation, reward, terminated, truncated, info = world.step(torch.from_numpy(orders))
    details = {name: _array(value) for name, value in info.items()}
    rewards = _array(reward).astype(np.float64)
    return _array(observation), rewards, terminated.cpu().numpy(), truncated.cpu().numpy(), details


def _array(value: Tensor) -> Array:
    """A NumPy copy that shares nothing with the world."""
    return np.array(value.cpu().numpy(), dtype=np.float32)


def _scenario(options: dict[str, Any] | None) -> Scenario | None:
    unknown = set(options or {}) - {"scenario"}
    if unknown:
        raise ValueError(f"reset options = {sorted(unknown)}; valid: 'scenario'")
    return (options or {}).get("scenario")
