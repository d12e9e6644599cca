"""Copies of a single Gymnasium environment, stepped one after the other in this process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from decisionrl.envs.checks import Observations, Unfit, described, read_reset, read_step
from decisionrl.envs.world import EnvironmentFault, Observation, Step, check_space


class Copies:
    """A World of N environments made by one function.

    Every episode begins with ``reset(seed=...)`` and is determined by that seed and its actions, so the state of a copy
    is saved as those and restored by playing them again: bit for bit, if the environment is deterministic given
    its seed, as Gymnasium asks. What an environment returns is checked in every step.

    On the CPU the tensors that ``step`` and ``restart`` return are the same ones every time.

    Raises:
        EnvironmentFault: an environment raised, or returned what does not fit its spaces.
        UnsupportedSpaceError: its spaces do not fit into tensors.
    """

    seedable = True

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[Any, Any]],
        num_envs: int,
        *,
        name: str,
        device: torch.device | str = "cpu",
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs = {num_envs}; valid: a whole number >= 1")
        self.name, self.num_envs, self.device = name, num_envs, torch.device(device)
        self.envs = [self._made(make, i) for i in range(num_envs)]
        self.observation_space, self.action_space = self.envs[0].observation_space, self.envs[0].action_space
        check_space(self.observation_space, "observation_space", name)
        check_space(self.action_space, "action_space", name, nested=False)
        self._check_same_spaces()
        self._read = action_reader(self.action_space)
        self._action_shape = (num_envs, *(self.action_space.shape or ()))
        self._observations = Observations(self.observation_space, num_envs)
        self._reward = np.zeros(num_envs, np.float32)
        self._ended = np.zeros((2, num_envs), np.bool_)  # terminated, truncated
        self._outcome = (torch.from_numpy(self._reward), *torch.from_numpy(self._ended))
        self._episodes = [_Episode(0) for _ in range(num_envs)]

    def reset(self, seeds: Sequence[int]) -> Observation:
        return self.restart(range(self.num_envs), seeds)

    def restart(self, copies: Sequence[int], seeds: Sequence[int]) -> Observation:
        for i, seed in zip(copies, seeds, strict=True):
            self._begin(i, int(seed))
        return self._observation()

    def step(self, action: Tensor, *, idle: Collection[int] = ()) -> Step:
        if action.shape != self._action_shape:
            raise ValueError(f"{self.name}: action has shape {list(action.shape)}; valid: {list(self._action_shape)}")
        envs, episodes, put, rewards = self.envs, self._episodes, self._observations.put, self._reward
        over: list[int] = []
        self._ended.fill(False)
        for i, given in enumerate(self._read(action)):
            if i in idle:
                continue
            episodes[i].actions.append(given)
            try:
                observation, rewards[i], final, cut = read_step(envs[i].step(given))
                put(i, observation)
            except Exception as error:
                raise self._fault(i, error) from error
            if final or cut:
                self._ended[:, i] = final, cut
                over.append(i)
        self._check_observations()
        reward, terminated, truncated = self._outcome
        device = self.device
        return Step(self._observation(), reward.to(device), terminated.to(device), truncated.to(device), over)

    def branch(self, i: int, seed: int, actions: Tensor, *, noise: int) -> Observation:
        """Put copy ``i`` into the state that ``actions`` [steps, ...] lead to from ``seed``.

        Plays the episode again, then seeds the environment's own generator with ``noise``: from there on the copy has
        random numbers of its own.
        """
        self._begin(i, seed)
        self._replay(i, actions)
        self._reseed(i, noise)
        return self._observation()

    def state_dict(self) -> dict[str, Any]:
        return {"episodes": [episode.state_dict() for episode in self._episodes]}

    def load_state_dict(self, state: Mapping[str, Any], /) -> Observation:
        if len(state["episodes"]) != self.num_envs:
            raise ValueError(f"{self.name}: num_envs = {self.num_envs}; the saved world has {len(state['episodes'])}")
        for i, saved in enumerate(state["episodes"]):
            self._begin(i, saved["seed"])
            if saved["branch"] is None:
                self._replay(i, saved["actions"])
            else:
                step, noise = saved["branch"]
                self._replay(i, saved["actions"][:step])
                self._reseed(i, noise)
                self._replay(i, saved["actions"][step:])
        return self._observation()

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _made(self, make: Callable[[], gymnasium.Env[Any, Any]], i: int) -> gymnasium.Env[Any, Any]:
        try:
            env = make()
        except Exception as error:
            problem = f"making it raised {type(error).__name__}: {error}"
            raise EnvironmentFault(f"{self.name}, copy {i}: {problem}") from error
        if not isinstance(env, gymnasium.Env):
            raise EnvironmentFault(f"{self.name}, copy {i}: it is a {type(env).__name__}; valid: a gymnasium.Env")
        return env

    def _check_same_spaces(self) -> None:
        for i, env in enumerate(self.envs):
            for which in ("observation_space", "action_space"):
                space, first = getattr(env, which), getattr(self, which)
                if space != first:
                    raise EnvironmentFault(f"{self.name}, copy {i}: {which} is {space}; valid: {first}, that of copy 0")

    def _begin(self, i: int, seed: int) -> None:
        self._episodes[i] = _Episode(seed)
        try:
            self._observations.put(i, read_reset(self.envs[i].reset(seed=seed)))
        except Exception as error:
            raise self._fault(i, error) from error
        self._check_observations()

    def _replay(self, i: int, actions: Tensor) -> None:
        if not len(actions):
            return
        for given in self._read(actions):
            self._episodes[i].actions.append(given)
            try:
                self._observations.put(i, read_step(self.envs[i].step(given))[0])
            except Exception as error:
                raise self._fault(i, error) from error

    def _reseed(self, i: int, noise: int) -> None:
        self.envs[i].unwrapped.np_random = np.random.default_rng(noise)
        self._episodes[i].branch = (len(self._episodes[i].actions), noise)

    def _observation(self) -> Observation:
        tensors = self._observations.tensors
        if isinstance(tensors, Tensor):
            return tensors.to(self.device)
        return {key: value.to(self.device) for key, value in tensors.items()}

    def _check_observations(self) -> None:
        if (bad := self._observations.check()) is not None:
            i, problem = bad
            raise self._fault(i, Unfit(problem))

    def _fault(self, i: int, error: Exception) -> EnvironmentFault:
        seed, actions = self._episodes[i].seed, self._episodes[i].actions
        where = f"step {len(actions)} of its episode, step({actions[-1]!r})" if actions else f"reset(seed={seed})"
        return EnvironmentFault(f"{self.name}, copy {i}, {where}: {described(error)}")


@dataclass
class _Episode:
    """What determines the state of a copy: the seed, the actions since, and where it got random numbers of its own."""

    seed: int
    actions: list[Any] = field(default_factory=list)
    branch: tuple[int, int] | None = None

    def state_dict(self) -> dict[str, Any]:
        actions = torch.from_numpy(np.array(self.actions))
        return {"seed": self.seed, "actions": actions, "branch": self.branch}


def action_reader(space: gymnasium.Space[Any]) -> Callable[[Tensor], Sequence[Any]]:
    """From a tensor of actions [copies, ...] to what each copy's ``step`` takes; Box actions are clipped."""
    if isinstance(space, spaces.Discrete):
        return Tensor.tolist
    dtype = space.dtype
    if isinstance(space, spaces.Box):
        low, high = space.low, space.high
        return lambda action: list(np.clip(action.cpu().numpy(), low, high).astype(dtype, copy=False))
    return lambda action: list(action.cpu().numpy().astype(dtype))
