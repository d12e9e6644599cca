"""Batched worlds whose episodes are determined by their seeds, as Gymnasium environments: one copy, or many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from decisionrl.envs.world import World

Array = NDArray[Any]
Info = dict[str, Any]


class WorldEnv(gymnasium.Env[Array, Any]):
    """The only copy of a world.

    ``reset(seed=s)`` plays the episode that seed s means to the world; without a seed it is drawn.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's signature

    def __init__(self, world: World) -> None:
        self.world = world
        self.observation_space, self.action_space = world.observation_space, world.action_space
        self._over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        self._over = False
        seed = int(self.np_random.integers(2**63)) if seed is None else seed
        observation = as_array(self.world.reset([seed]), self.observation_space)[0]
        return observation, self._info(np.zeros(1))

    def step(self, action: Any) -> tuple[Array, float, bool, bool, Info]:
        """Raises gymnasium.error.ResetNeeded when the episode is over or has not begun, and ValueError if the action
        is none of a discrete space."""
        if self._over:
            raise gymnasium.error.ResetNeeded(f"{self.world.name}: no episode is running; call reset()")
        step = self.world.step(_checked(np.asarray(action), self.action_space, self.world.name)[None])
        self._over = bool(step.over)
        observation, reward = as_array(step.observation, self.observation_space)[0], as_array(step.reward)
        return observation, float(reward[0]), bool(step.terminated[0]), bool(step.truncated[0]), self._info(reward)

    def told(self, reward: Array) -> Mapping[str, Array]:
        """What ``info`` has of every copy; reward: of the step, zeros after a reset."""
        return {}

    def _info(self, reward: Array) -> Info:
        return {name: value[0].item() for name, value in self.told(reward).items()}


class WorldVectorEnv(VectorEnv[Array, Array, Array]):
    """All copies of a world; each begins anew when its own episode has ended.

    After ``reset(seed=s)`` copy i plays the episode of the single environment with seed s + i; the seeds of later ones
    are drawn from one stream. autoreset_mode: NEXT_STEP, the default (the step after the end of an episode ignores its
    action, resets and rewards 0), or SAME_STEP (the last observation is in ``info["final_obs"]``).

    Raises:
        ValueError: the mode is DISABLED; from ``step``, the actions are none of a discrete space.
    """

    def __init__(self, world: World, *, autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP) -> None:
        self._mode = AutoresetMode(autoreset_mode)
        if self._mode == AutoresetMode.DISABLED:
            raise ValueError("autoreset_mode = DISABLED; valid: NEXT_STEP, SAME_STEP")
        self.metadata = {"render_modes": [], "autoreset_mode": self._mode}
        self.world, self.num_envs = world, world.num_envs
        self.single_observation_space, self.single_action_space = world.observation_space, world.action_space
        self.observation_space = batch_space(world.observation_space, self.num_envs)
        self.action_space = batch_space(world.action_space, self.num_envs)
        self._over: Sequence[int] = ()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        self._over = ()
        every = range(self.num_envs)
        observation = self._begun(every, None if seed is None else [seed + i for i in every])
        return observation, self._info(np.zeros(self.num_envs))

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, Info]:
        ended = list(self._over) if self._mode == AutoresetMode.NEXT_STEP else []
        step = self.world.step(_checked(np.asarray(actions), self.action_space, self.world.name), idle=ended)
        self._over = step.over
        observation, reward = self._seen(step.observation), as_array(step.reward).astype(np.float64)
        terminated, truncated = as_array(step.terminated), as_array(step.truncated)
        if ended:
            observation = self._begun(ended)
            reward[ended], terminated[ended], truncated[ended] = 0, False, False
        info = self._info(reward)
        if self._over and self._mode == AutoresetMode.SAME_STEP:
            final = np.full(self.num_envs, None, dtype=object)
            for i in self._over:
                final[i] = observation[i]
            last = {"final_obs": final, "final_info": info}
            observation = self._begun(self._over)
            over = terminated | truncated
            info = self._info(reward) | last | {f"_{name}": over for name in last}
        return observation, reward, terminated, truncated, info

    def told(self, reward: Array) -> Mapping[str, Array]:
        """What ``info`` has of every copy; reward: of the step, zeros after a reset."""
        return {}

    def _begun(self, copies: Sequence[int], seeds: Sequence[int] | None = None) -> Array:
        """What is seen once these copies have begun an episode; drawn without seeds."""
        drawn: Sequence[int] = self.np_random.integers(2**63, size=len(copies)).tolist() if seeds is None else seeds
        return self._seen(self.world.restart(copies, drawn))

    def _seen(self, observation: Any) -> Array:
        return as_array(observation, self.single_observation_space)

    def _info(self, reward: Array) -> Info:
        """Gymnasium's form: for each name a second entry that says which copies have it, here all of them."""
        info: Info = dict(self.told(reward))
        return info | {f"_{name}": np.ones(self.num_envs, np.bool_) for name in info}


def as_array(value: Any, space: gymnasium.Space[Any] | None = None) -> Array:
    """A NumPy copy, of the dtype of the space, that shares nothing with the world."""
    return np.array(value.cpu().numpy(), dtype=None if space is None else space.dtype)


def _checked(action: Array, space: gymnasium.Space[Any], name: str) -> Tensor:
    """Actions as a tensor. Those of a Box are not checked, as worlds clip them."""
    if not isinstance(space, spaces.Box) and not space.contains(action):
        raise ValueError(f"{name}: action = {action.tolist()}; valid: an element of {space}")
    return torch.as_tensor(action)
