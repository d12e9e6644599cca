"""Batched worlds as Stable-Baselines3 sees them. Importing this imports Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from decisionrl.envs.world import World
from decisionrl.experience.histories import Transitions

Array = NDArray[Any]


class EpisodeVecEnv(VecEnv):  # type: ignore[misc, unused-ignore]
    """A world all of whose episodes take equally many steps, as a vectorized environment that remembers them.

    To a learner it is what a ``DummyVecEnv`` of as many single environments is: a copy whose episode is over is reset
    in the same step, and its last observation is in ``info["terminal_observation"]``.

    Attributes:
        episode: what all copies did in the last episode that is over, [copy, step, ...].

    Args:
        generator: draws the seed of every episode.
        time_limit: episodes end only because of their limit, so Stable-Baselines3 goes on from the value of the last
            observation; otherwise nothing comes after it.
    """

    episode: Transitions

    def __init__(self, world: World, *, generator: torch.Generator, time_limit: bool) -> None:
        self.world, self.time_limit = world, time_limit
        self._generator = generator
        super().__init__(world.num_envs, world.observation_space, world.action_space)

    def reset(self) -> Array:
        seeds = torch.randint(2**62, (self.num_envs,), generator=self._generator).tolist()
        seen = self._copied(self.world.reset(seeds))
        self._seen, self._actions, self._rewards = [seen], list[Tensor](), list[Tensor]()
        return self._array(seen)

    def step_async(self, actions: Array) -> None:
        self._actions.append(torch.from_numpy(actions.copy()))

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        step = self.world.step(self._actions[-1])
        reward, over = step.reward.float().cpu().clone(), bool(step.over)
        self._rewards.append(reward)
        self._seen.append(self._copied(step.observation))
        observation = self._array(self._seen[-1])
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if over:
            infos = [{"terminal_observation": last, "TimeLimit.truncated": self.time_limit} for last in observation]
            seen, action, rewards = (torch.stack(each, 1) for each in (self._seen, self._actions, self._rewards))
            self.episode = Transitions(seen[:, :-1], action, rewards, seen[:, 1:])
            observation = self.reset()
        # Stable-Baselines3 writes into the rewards.
        return observation, reward.numpy().copy(), np.full(self.num_envs, over), infos

    def close(self) -> None:
        self.world.close()

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        value = None if attr_name == "render_mode" else getattr(self.world, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        raise NotImplementedError(f"{attr_name}: copies of {self.world.name} have no attributes of their own")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError(f"{method_name}: copies of {self.world.name} have no methods of their own")

    def env_is_wrapped(self, wrapper_class: type[Any], indices: int | Iterable[int] | None = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def _copied(self, observation: Any) -> Tensor:
        """One that later steps do not overwrite, on the CPU."""
        copy: Tensor = observation.cpu().clone()
        return copy

    def _array(self, observation: Tensor) -> Array:
        return observation.numpy().astype(self.observation_space.dtype)
