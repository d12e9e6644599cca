"""Any ``gymnasium.vector.VectorEnv`` as a World, in each of the three autoreset modes."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from decisionrl.envs.world import EnvironmentFault, Observation, Step, check_space

Array = NDArray[Any]


class VectorWorld:
    """A World of the copies of a vector environment.

    ``metadata["autoreset_mode"]`` says how copies restart:

    - NEXT_STEP: the step after an episode's end resets the copy and ignores its action; it is marked ``skipped``.
    - SAME_STEP: the copy is reset at once, and its last observation is taken from ``info["final_obs"]``.
    - DISABLED: ``restart`` resets the copies with ``options={"reset_mask": ...}``; a SyncVectorEnv or
      AsyncVectorEnv then has a seed for each episode (``seedable``), and its state can be saved.

    In the first two modes the environment draws its starts itself, and its state cannot be saved: a resumed run
    begins new episodes, and says so in a warning.

    Raises:
        EnvironmentFault: the environment raised, or returned what does not fit its spaces.
        ValueError: it does not say its autoreset mode.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], *, name: str, device: torch.device | str = "cpu") -> None:
        self.env, self.name, self.num_envs = env, name, env.num_envs
        self.device = torch.device(device)
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        check_space(self.observation_space, "observation_space", name)
        check_space(self.action_space, "action_space", name, nested=False)
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            valid = ", ".join(str(each) for each in AutoresetMode)
            raise ValueError(f"{name}: metadata['autoreset_mode'] = {mode!r}; valid: {valid}")
        self.mode = mode
        self.seedable = mode == AutoresetMode.DISABLED and isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        self.steps = 0
        self._ended = np.zeros(self.num_envs, np.bool_)
        self._next: Any = None
        self._seeds = [0] * self.num_envs
        self._played: list[list[Array]] = [[] for _ in range(self.num_envs)]

    def reset(self, seeds: Sequence[int]) -> Observation:
        listed = isinstance(self.env.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        observation = self._called("reset", seed=[int(s) for s in seeds] if listed else int(seeds[0]))[0]
        self._ended[:] = False
        self._seeds, self._played = [int(seed) for seed in seeds], [[] for _ in range(self.num_envs)]
        return self._read(observation)

    def step(self, action: Tensor, *, idle: Collection[int] = ()) -> Step:
        spare = [i for i in idle if self._ended[i]]
        if spare and self.mode == AutoresetMode.DISABLED:
            self.restart(spare, [self._seeds[i] for i in spare])  # it steps all copies or none
        given = action.cpu().numpy()
        space = self.action_space
        if isinstance(space, spaces.Box):
            given = np.clip(given, space.low, space.high)
        given = given.astype(space.dtype, copy=False)
        skipped = self._ended if self.mode == AutoresetMode.NEXT_STEP and self._ended.any() else None
        observation, reward, terminated, truncated, info = self._called("step", given)
        self.steps += 1
        reward, terminated, truncated = (
            self._vector(value, field)
            for value, field in ((reward, "reward"), (terminated, "terminated"), (truncated, "truncated"))
        )
        if not np.isfinite(reward).all():
            copy = int((~np.isfinite(reward)).argmax())
            raise self._fault(f"reward of copy {copy} is {reward[copy]}; valid: a finite number")
        self._ended = terminated | truncated
        if self.seedable:
            for i in range(self.num_envs):
                self._played[i].append(given[i])
        if self.mode == AutoresetMode.SAME_STEP and self._ended.any():
            self._next = observation
            observation = self._with_final(observation, info)
        return Step(
            self._read(observation),
            torch.from_numpy(reward.astype(np.float32)).to(self.device),
            torch.from_numpy(terminated.astype(np.bool_)).to(self.device),
            torch.from_numpy(truncated.astype(np.bool_)).to(self.device),
            None if skipped is None else torch.from_numpy(skipped).to(self.device),
        )

    def restart(self, copies: Sequence[int], seeds: Sequence[int]) -> Observation:
        if self.mode == AutoresetMode.DISABLED:
            mask = np.zeros(self.num_envs, np.bool_)
            mask[list(copies)] = True
            options = {"reset_mask": mask}
            if self.seedable:
                full: list[int | None] = [None] * self.num_envs
                for i, seed in zip(copies, seeds, strict=True):
                    full[i] = self._seeds[i] = int(seed)
                    self._played[i] = []
                self._next = self._called("reset", seed=full, options=options)[0]
            else:
                self._next = self._called("reset", options=options)[0]
            self._ended[mask] = False
        elif self.mode == AutoresetMode.NEXT_STEP:
            return self._read(self._last)
        return self._read(self._next)

    def state_dict(self) -> dict[str, Any]:
        if not self.seedable:
            return {"steps": self.steps, "seeds": None}
        actions = [torch.as_tensor(np.asarray(played)) for played in self._played]
        return {"steps": self.steps, "seeds": list(self._seeds), "actions": actions}

    def load_state_dict(self, state: Mapping[str, Any], /) -> Observation:
        self.steps = state["steps"]
        if not self.seedable:
            warnings.warn(
                f"{self.name}: its state cannot be saved in autoreset mode {self.mode}; the resumed run goes on with "
                "new episodes and differs from an uninterrupted one (mode DISABLED, or an id, can be resumed)",
                RuntimeWarning,
                stacklevel=2,
            )
            return self.reset([self.steps + i for i in range(self.num_envs)])
        return self._replayed(state["seeds"], [actions.numpy() for actions in state["actions"]])

    def close(self) -> None:
        self.env.close()

    def _replayed(self, seeds: Sequence[int], actions: Sequence[Array]) -> Observation:
        """Play the current episodes again. All copies step together, so those with less to play begin later."""
        longest = max(len(played) for played in actions)
        waits = [longest - len(played) for played in actions]
        space = self.action_space
        filler = np.zeros(space.shape or (), space.dtype) + getattr(space, "start", 0)
        current = self.reset(seeds)
        for t in range(longest + 1):
            begin = [i for i, wait in enumerate(waits) if t <= wait and t > 0 and (t == wait or self._ended[i])]
            if begin:
                current = self.restart(begin, [seeds[i] for i in begin])
            if t < longest:
                given = [played[t - wait] if t >= wait else filler for played, wait in zip(actions, waits, strict=True)]
                current = self.step(torch.as_tensor(np.asarray(given))).observation
        self.steps -= longest
        return current

    def _called(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        try:
            outcome = getattr(self.env, method)(*arguments, **keywords)
        except Exception as error:
            raise self._fault(f"{method}() raised {type(error).__name__}: {error}") from error
        wanted = 2 if method == "reset" else 5
        if not isinstance(outcome, tuple) or len(outcome) != wanted:
            raise self._fault(f"{method}() returned {type(outcome).__name__}; valid: a tuple of {wanted}")
        if method == "step":
            self._last = outcome[0]
        return outcome

    def _vector(self, value: Any, field: str) -> Array:
        array = np.asarray(value)
        if array.shape != (self.num_envs,):
            raise self._fault(f"{field} has shape {array.shape}; valid: {(self.num_envs,)}")
        return array

    def _with_final(self, observation: Any, info: Mapping[str, Any]) -> Any:
        if "final_obs" not in info:
            raise self._fault("info has no 'final_obs' for the copies that ended; SAME_STEP promises it")
        final = info["final_obs"]
        if isinstance(observation, dict):
            complete = {key: np.array(value) for key, value in observation.items()}
            for i in np.flatnonzero(self._ended):
                for key, value in complete.items():
                    value[i] = final[i][key]
            return complete
        complete = np.array(observation)
        for i in np.flatnonzero(self._ended):
            complete[i] = final[i]
        return complete

    def _read(self, observation: Any) -> Observation:
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            if not isinstance(observation, dict) or observation.keys() != space.spaces.keys():
                raise self._fault(f"observation is no dict with the keys {sorted(space.spaces)}")
            return {key: self._tensor(observation[key], inner, f"[{key!r}]") for key, inner in space.spaces.items()}
        return self._tensor(observation, space, "")

    def _tensor(self, value: Any, space: Any, key: str) -> Tensor:
        array = np.asarray(value)
        shape = (self.num_envs, *(space.shape or ()))
        if array.shape != shape:
            raise self._fault(f"observation{key} has shape {array.shape}; valid: {shape}")
        if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            array = array.astype(np.float32)
            if not np.isfinite(array).all():
                copy = int((~np.isfinite(array)).reshape(self.num_envs, -1).any(1).argmax())
                raise self._fault(f"observation{key} of copy {copy} is {array[copy].tolist()}; valid: finite numbers")
        else:
            array = array.astype(np.uint8 if array.dtype == np.uint8 else np.int64)
        return torch.from_numpy(array).to(self.device)

    def _fault(self, problem: str) -> EnvironmentFault:
        return EnvironmentFault(self.name, f"step {self.steps}", problem)
