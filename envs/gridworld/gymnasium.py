"""Families of tasks as Gymnasium environments.

env = gymnasium.make("decisionrl.envs:decisionrl/Darkroom-v0", task=38)
envs = gymnasium.make_vec("decisionrl.envs:decisionrl/DarkroomPermuted-v0", num_envs=8)
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from decisionrl.envs.gridworld.family import TaskFamily
from decisionrl.envs.gridworld.world import TaskWorld

Array = NDArray[Any]
Info = dict[str, Any]


class TaskEnv(gymnasium.Env[Array, Any]):
    """One copy of :class:`TaskWorld`, with its arguments.

    ``reset(seed=s)`` plays the episode that seed s means to the world; without a seed it is drawn. ``info`` has the id
    of the ``task`` and ``success``, whether it is done in the state that the step led to.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's signature

    def __init__(self, family: str | TaskFamily, **options: Any) -> None:
        self.world = TaskWorld(family, num_envs=1, **options)
        self.observation_space, self.action_space = self.world.observation_space, self.world.action_space
        self._over = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        self._over = False
        seed = int(self.np_random.integers(2**63)) if seed is None else seed
        return self._seen(self.world.reset([seed])), self._info()

    def step(self, action: Any) -> tuple[Array, float, bool, bool, Info]:
        """Raises gymnasium.error.ResetNeeded when the episode is over or has not begun, and ValueError if the action
        is none of a discrete space."""
        if self._over:
            raise gymnasium.error.ResetNeeded(f"{self.world.name}: no episode is running; call reset()")
        step = self.world.step(_checked(np.asarray(action), self.action_space, self.world.name)[None])
        self._over = bool(step.over)
        return self._seen(step.observation), float(step.reward[0]), False, self._over, self._info()

    def _seen(self, observation: Any) -> Array:
        return _array(observation[0], self.observation_space)

    def _info(self) -> Info:
        return {"task": int(self.world.task[0]), "success": bool(self.world.success[0])}


class TaskVectorEnv(VectorEnv[Array, Array, Array]):
    """``num_envs`` copies of :class:`TaskWorld` with its arguments, which begin and end their episodes together.

    After ``reset(seed=s)`` copy i plays the episode of the single environment with seed s + i; the seeds of later ones
    are drawn from one stream. autoreset_mode: NEXT_STEP, the default (the step after the end of an episode ignores its
    action, resets and rewards 0), or SAME_STEP (the last observation is in ``info["final_obs"]``).

    Raises:
        ValueError: as TaskWorld, or the mode is DISABLED.
    """

    def __init__(
        self,
        family: str | TaskFamily,
        *,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **options: Any,
    ) -> None:
        self._mode = AutoresetMode(autoreset_mode)
        if self._mode == AutoresetMode.DISABLED:
            raise ValueError("autoreset_mode = DISABLED; valid: NEXT_STEP, SAME_STEP")
        self.metadata = {"render_modes": [], "autoreset_mode": self._mode}
        self.world, self.num_envs = TaskWorld(family, num_envs=num_envs, **options), num_envs
        self.single_observation_space = self.world.observation_space
        self.single_action_space = self.world.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._over = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        return self._begun(None if seed is None else [seed + i for i in range(self.num_envs)])

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, Info]:
        """Raises ValueError if the actions are none of a discrete space."""
        if self._over and self._mode == AutoresetMode.NEXT_STEP:
            observation, info = self._begun()
            reward, terminated, truncated = (np.zeros(self.num_envs, kind) for kind in (np.float64, np.bool_, np.bool_))
            return observation, reward, terminated, truncated, info
        step = self.world.step(_checked(np.asarray(actions), self.action_space, self.world.name))
        self._over = bool(step.over)
        observation, info = self._seen(step.observation), self._info()
        if self._over and self._mode == AutoresetMode.SAME_STEP:
            final = np.full(self.num_envs, None, dtype=object)
            for i, last in enumerate(observation):
                final[i] = last
            every = np.ones(self.num_envs, np.bool_)
            ended = {"final_obs": final, "_final_obs": every, "final_info": info, "_final_info": every}
            observation, begun = self._begun()
            info = begun | ended
        truncated = step.truncated.cpu().numpy()
        return observation, step.reward.cpu().numpy().astype(np.float64), np.zeros_like(truncated), truncated, info

    def _begun(self, seeds: list[int] | None = None) -> tuple[Array, Info]:
        self._over = False
        drawn: list[int] = self.np_random.integers(2**63, size=self.num_envs).tolist() if seeds is None else seeds
        return self._seen(self.world.reset(drawn)), self._info()

    def _seen(self, observation: Any) -> Array:
        return _array(observation, self.single_observation_space)

    def _info(self) -> Info:
        every = np.ones(self.num_envs, np.bool_)
        task, success = self.world.task.cpu().numpy().copy(), self.world.success.cpu().numpy()
        return {"task": task, "_task": every, "success": success, "_success": every}


def _checked(action: Array, space: gymnasium.Space[Any], name: str) -> Tensor:
    """Actions as a tensor. Those of a Box are not checked, as the family clips them."""
    if not isinstance(space, spaces.Box) and not space.contains(action):
        raise ValueError(f"{name}: action = {action.tolist()}; valid: an element of {space}")
    return torch.as_tensor(action)


def _array(observation: Tensor, space: gymnasium.Space[Any]) -> Array:
    """A NumPy copy, of the dtype of the space, that shares nothing with the world."""
    return observation.cpu().numpy().astype(space.dtype)
