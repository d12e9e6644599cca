"""Any ``gymnasium.vector.VectorEnv`` as a World, in each of the three autoreset modes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from decisionrl.envs.checks import first_bad, tensor_kind
from decisionrl.envs.world import EnvironmentFault, Observation, Step, check_space

Array = NDArray[Any]


class VectorWorld:
    """A World of the copies of a vector environment.

    ``metadata["autoreset_mode"]`` says how copies restart:

    - NEXT_STEP: the step after an episode's end resets the copy and ignores its action; it is marked ``skipped``.
    - SAME_STEP: the copy is reset at once, and its last observation is taken from ``info["final_obs"]``.
    - DISABLED: ``restart`` resets the copies with ``options={"reset_mask": ...}``; a SyncVectorEnv or
      AsyncVectorEnv then has a seed for each episode (``seedable``), and its state can be saved.

    In the first two modes the environment draws its starts itself, and its state cannot be saved.

    Raises:
        EnvironmentFault: the environment raised, or returned what does not fit its spaces.
        UnsupportedSpaceError: its spaces do not fit into tensors.
        ValueError: it does not say its autoreset mode.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], *, name: str, device: torch.device | str = "cpu") -> None:
        self.env, self.name, self.num_envs = env, name, env.num_envs
        self.device = torch.device(device)
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        check_space(self.observation_space, "observation_space", name)
        check_space(self.action_space, "action_space", name, nested=False)
        self.mode = _mode(env, name)
        self._lists_seeds = isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        self.seedable = self.mode == AutoresetMode.DISABLED and self._lists_seeds
        self._steps = 0
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._current: Any = None  # what the environment last returned, after any reset
        self._seeds = [0] * self.num_envs
        self._played: list[list[Array]] = [[] for _ in range(self.num_envs)]

    def reset(self, seeds: Sequence[int]) -> Observation:
        self._seeds, self._played = [int(seed) for seed in seeds], [[] for _ in range(self.num_envs)]
        if len(self._seeds) != self.num_envs:
            raise ValueError(f"{self.name}: there are {len(self._seeds)} seeds; valid: num_envs = {self.num_envs}")
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._current = self._called("reset", seed=self._seeds if self._lists_seeds else self._seeds[0])[0]
        return self._read(self._current)

    def step(self, action: Tensor, *, idle: Collection[int] = ()) -> Step:
        given = self._given(action)
        if self.mode == AutoresetMode.DISABLED and (ended := [i for i in idle if self._ended[i]]):
            self.restart(ended, [self._seeds[i] for i in ended])  # the environment steps all copies or none
        skipped = self._ended if self.mode == AutoresetMode.NEXT_STEP and self._ended.any() else None
        self._steps += 1
        observation, reward, terminated, truncated, info = self._called("step", given)
        reward, terminated, truncated = (
            self._vector(value, field, kind)
            for value, field, kind in (
                (reward, "reward", np.float32),
                (terminated, "terminated", np.bool_),
                (truncated, "truncated", np.bool_),
            )
        )
        self._ended = terminated | truncated
        self._current = observation
        if self.seedable:
            for played, row in zip(self._played, given, strict=True):
                played.append(row)
        if self.mode == AutoresetMode.SAME_STEP and self._ended.any():
            observation = self._with_final(observation, info)
        return Step(
            self._read(observation),
            self._tensor(reward),
            self._tensor(terminated),
            self._tensor(truncated),
            [i for i in np.flatnonzero(self._ended).tolist() if i not in idle],
            None if skipped is None else self._tensor(skipped),
        )

    def restart(self, copies: Sequence[int], seeds: Sequence[int]) -> Observation:
        if self.mode == AutoresetMode.DISABLED:
            mask = np.zeros(self.num_envs, np.bool_)
            mask[list(copies)] = True
            keywords: dict[str, Any] = {"options": {"reset_mask": mask}}
            if self.seedable:
                for i, seed in zip(copies, seeds, strict=True):
                    self._seeds[i], self._played[i] = int(seed), []
                keywords["seed"] = [seed if mask[i] else None for i, seed in enumerate(self._seeds)]
            self._current = self._called("reset", **keywords)[0]
            self._ended = self._ended & ~mask
        return self._read(self._current)

    def state_dict(self) -> dict[str, Any] | None:
        if not self.seedable:
            return None
        actions = [torch.from_numpy(np.array(played)) for played in self._played]
        return {"seeds": list(self._seeds), "actions": actions}

    def load_state_dict(self, state: Mapping[str, Any], /) -> Observation:
        """Play the current episodes again. All copies step together, so those with less to play begin later."""
        seeds, actions = state["seeds"], state["actions"]
        if len(seeds) != self.num_envs:
            raise ValueError(f"{self.name}: num_envs = {self.num_envs}; the saved world has {len(seeds)}")
        longest = max(len(played) for played in actions)
        waits = [longest - len(played) for played in actions]
        space = self.action_space
        idling = torch.from_numpy(np.full(space.shape or (), getattr(space, "start", 0), space.dtype))
        observation = self.reset(seeds)
        for t in range(longest):
            waiting = [i for i, wait in enumerate(waits) if t < wait]
            given = [idling if i in waiting else actions[i][t - waits[i]] for i in range(self.num_envs)]
            observation = self.step(torch.stack(given), idle=waiting).observation
            if begin := [i for i, wait in enumerate(waits) if t + 1 == wait]:
                observation = self.restart(begin, [seeds[i] for i in begin])
        return observation

    def close(self) -> None:
        self.env.close()

    def _given(self, action: Tensor) -> Array:
        """The actions as the environment takes them, in memory of their own."""
        space = self.action_space
        shape = (self.num_envs, *(space.shape or ()))
        if action.shape != shape:
            raise ValueError(f"{self.name}: action has shape {list(action.shape)}; valid: {list(shape)}")
        given: Array = action.cpu().numpy()
        if isinstance(space, spaces.Box):
            given = np.clip(given, space.low, space.high)
        return given.astype(space.dtype)

    def _called(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        try:
            outcome = getattr(self.env, method)(*arguments, **keywords)
        except EnvironmentFault:
            raise
        except Exception as error:
            raise self._fault(f"{self._culprit()}{method}() raised {type(error).__name__}: {error}") from error
        wanted = 2 if method == "reset" else 5
        if not isinstance(outcome, tuple) or len(outcome) != wanted:
            raise self._fault(f"{method}() returned {type(outcome).__name__}; valid: a tuple of {wanted}")
        return outcome

    def _culprit(self) -> str:
        """The copy that failed, where its process ended for it."""
        pipes = getattr(self.env.unwrapped, "parent_pipes", [])
        return next((f"copy {i}, " for i, pipe in enumerate(pipes) if pipe is None), "")

    def _vector(self, value: Any, field: str, kind: type[np.generic]) -> Array:
        array = np.asarray(value)
        if array.shape != (self.num_envs,):
            raise self._fault(f"{field} has shape {array.shape}; valid: {(self.num_envs,)}")
        if not np.can_cast(array.dtype, kind, "same_kind"):
            raise self._fault(f"{field} has dtype {array.dtype}; valid: {np.dtype(kind)}")
        array = array.astype(kind)
        if not (well := np.isfinite(array)).all():
            copy = int(well.argmin())
            raise self._fault(f"copy {copy}, {field} is {array[copy]}; valid: a finite number")
        return array

    def _with_final(self, observation: Any, info: Mapping[str, Any]) -> Any:
        """The observations with the last ones of episodes that ended instead of the first of the next."""
        if "final_obs" not in info:
            raise self._fault("info has no 'final_obs' of the copies that ended, which SAME_STEP promises")
        final, ended = info["final_obs"], np.flatnonzero(self._ended)
        if not isinstance(observation, dict):
            complete = np.array(observation)
            for i in ended:
                complete[i] = final[i]
            return complete
        keys = {key: np.array(value) for key, value in observation.items()}
        for i in ended:
            for key, value in keys.items():
                value[i] = final[key][i] if isinstance(final, dict) else final[i][key]
        return keys

    def _read(self, observation: Any) -> Observation:
        space = self.observation_space
        if not isinstance(space, spaces.Dict):
            return self._observation(observation, space, "observation")
        if not isinstance(observation, dict) or observation.keys() != space.spaces.keys():
            raise self._fault(f"observation is no dict with the keys {sorted(space.spaces)}")
        return {key: self._observation(observation[key], each, f"observation[{key!r}]") for key, each in space.items()}

    def _observation(self, value: Any, space: gymnasium.Space[Any], field: str) -> Tensor:
        array = np.asarray(value)
        shape = (self.num_envs, *(space.shape or ()))
        if array.shape != shape:
            raise self._fault(f"{field} has shape {array.shape}; valid: {shape}")
        kind = tensor_kind(space)
        if not np.can_cast(array.dtype, kind, "same_kind"):
            raise self._fault(f"{field} has dtype {array.dtype}; valid: {space.dtype}")
        array = array.astype(kind)
        if bad := first_bad(array, space):
            raise self._fault(f"copy {bad[0]}, {field} {bad[1]}")
        return self._tensor(array)

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _fault(self, problem: str) -> EnvironmentFault:
        where = f"step {self._steps}" if self._steps else "reset"
        return EnvironmentFault(f"{self.name}, {where}: {problem}")


def _mode(env: VectorEnv[Any, Any, Any], name: str) -> AutoresetMode:
    mode = env.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError:
        valid = ", ".join(str(each) for each in AutoresetMode)
        raise ValueError(f"{name}: metadata['autoreset_mode'] = {mode!r}; valid: {valid}") from None
