"""Copies of a single Gymnasium environment, stepped one after the other in this process."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from decisionrl.envs.world import EnvironmentFault, Observation, Step, check_space

Array = NDArray[Any]


class Copies:
    """A World of N environments made by one function.

    Every episode begins with ``reset(seed=...)`` and is determined by that seed and its actions, so the state of a copy
    is saved as those and restored by playing them again: bit for bit, if the environment is deterministic given
    its seed, as Gymnasium asks. What an environment returns is checked in every step.

    The tensors that ``step`` and ``restart`` return are the same ones every time.
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
        for i, env in enumerate(self.envs):
            for field in ("observation_space", "action_space"):
                if getattr(env, field) != getattr(self, field):
                    problem = f"{field} is {getattr(env, field)}; copy 0 has {getattr(self, field)}"
                    raise EnvironmentFault(name, f"copy {i}", problem)
        self._read = action_reader(self.action_space)
        self._rows = _rows(self.observation_space, num_envs)
        self._reward = np.zeros(num_envs, np.float32)
        self._terminated, self._truncated = np.zeros(num_envs, np.bool_), np.zeros(num_envs, np.bool_)
        self._shared = _tensors([row.buffer for row in self._rows.values()], self._rows, self.observation_space)
        self._step = Step(
            self._shared, *(torch.from_numpy(a) for a in (self._reward, self._terminated, self._truncated))
        )
        self._seeds = [0] * num_envs
        self._played: list[list[Any]] = [[] for _ in range(num_envs)]
        self.steps = 0

    def reset(self, seeds: Sequence[int]) -> Observation:
        return self.restart(range(self.num_envs), seeds)

    def restart(self, copies: Sequence[int], seeds: Sequence[int]) -> Observation:
        for i, seed in zip(copies, seeds, strict=True):
            self._begin(i, int(seed))
        return self._observation()

    def step(self, action: Tensor, *, idle: Collection[int] = ()) -> Step:
        envs, reward, terminated, truncated = self.envs, self._reward, self._terminated, self._truncated
        actions = self._read(action)
        rows = list(self._rows.values())
        single = rows[0] if isinstance(self._shared, Tensor) else None
        i = 0
        try:
            for i, given in enumerate(actions):
                if i in idle:
                    continue
                observation, reward[i], terminated[i], truncated[i], _ = envs[i].step(given)
                if single is not None:
                    single.put(i, observation)
                else:
                    self._put(i, observation)
                self._played[i].append(given)
        except EnvironmentFault:
            raise
        except _Unfit as unfit:
            raise self._fault(i, f"observation{unfit}") from None
        except Exception as error:
            raise self._fault(i, f"step({actions[i]!r}) raised {type(error).__name__}: {error}") from error
        self.steps += 1
        if not math.isfinite(reward.sum()):
            self._find_unfit_reward()
        for row in rows:
            if not row.finite():
                i = row.unfit()
                raise self._fault(i, f"observation{row.key} is {row.buffer[i].tolist()}; valid: finite numbers")
        if self.device.type == "cpu":
            return self._step
        return Step(self._observation(), *(part.to(self.device) for part in self._step[1:4]))  # type: ignore[union-attr]

    def branch(self, i: int, seed: int, actions: Tensor, *, noise: int) -> Observation:
        """Put copy ``i`` into the state that ``actions`` [steps, ...] lead to from ``seed``.

        Plays the episode again, then seeds the environment's own generator with ``noise``: from there on the copy has
        random numbers of its own.
        """
        self._begin(i, seed)
        if len(actions):
            for given in self._read(actions):
                self._replay(i, given)
        self.envs[i].unwrapped.np_random = np.random.default_rng(noise)
        return self._observation()

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "seeds": list(self._seeds),
            "actions": [torch.as_tensor(np.asarray(actions)) for actions in self._played],
        }

    def load_state_dict(self, state: Mapping[str, Any], /) -> Observation:
        if len(state["seeds"]) != self.num_envs:
            raise ValueError(f"num_envs = {self.num_envs}; the saved world has {len(state['seeds'])}")
        for i, (seed, actions) in enumerate(zip(state["seeds"], state["actions"], strict=True)):
            self._begin(i, seed)
            if len(actions):
                for given in self._read(actions):
                    self._replay(i, given)
        self.steps = state["steps"]
        return self._observation()

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def _made(self, make: Callable[[], gymnasium.Env[Any, Any]], i: int) -> gymnasium.Env[Any, Any]:
        try:
            env = make()
        except Exception as error:
            raise EnvironmentFault(
                self.name, f"copy {i}", f"making it raised {type(error).__name__}: {error}"
            ) from error
        for field in ("observation_space", "action_space", "reset", "step"):
            if not hasattr(env, field):
                raise EnvironmentFault(self.name, f"copy {i}", f"it has no {field}; valid is a gymnasium.Env")
        return env

    def _begin(self, i: int, seed: int) -> None:
        try:
            outcome = self.envs[i].reset(seed=seed)
        except Exception as error:
            raise self._fault(i, f"reset(seed={seed}) raised {type(error).__name__}: {error}") from error
        if not isinstance(outcome, tuple) or len(outcome) != 2:
            raise self._fault(i, f"reset() returned {_shown(outcome)}; valid: (observation, info)")
        try:
            self._put(i, outcome[0])
        except _Unfit as unfit:
            raise self._fault(i, f"observation of reset{unfit}") from None
        for row in self._rows.values():
            if not row.finite():
                raise self._fault(
                    i, f"observation of reset{row.key} is {row.buffer[i].tolist()}; valid: finite numbers"
                )
        self._seeds[i] = seed
        self._played[i] = []

    def _replay(self, i: int, given: Any) -> None:
        observation, *_ = self.envs[i].step(given)
        self._put(i, observation)
        self._played[i].append(given)

    def _put(self, i: int, observation: Any) -> None:
        if isinstance(self._shared, Tensor):
            self._rows[""].put(i, observation)
            return
        if not isinstance(observation, dict) or observation.keys() != self._rows.keys():
            raise _Unfit(f" has {_shown(observation)}; valid: a dict with the keys {sorted(self._rows)}")
        for key, row in self._rows.items():
            row.put(i, observation[key])

    def _observation(self) -> Observation:
        if self.device.type == "cpu":
            return self._shared
        if isinstance(self._shared, Tensor):
            return self._shared.to(self.device)
        return {key: value.to(self.device) for key, value in self._shared.items()}

    def _find_unfit_reward(self) -> None:
        for i, value in enumerate(self._reward):
            if not math.isfinite(value):
                raise self._fault(i, f"reward is {value}; valid: a finite number")

    def _fault(self, i: int, problem: str) -> EnvironmentFault:
        return EnvironmentFault(self.name, f"copy {i}, step {len(self._played[i])} of its episode", problem)


def action_reader(space: gymnasium.Space[Any]) -> Callable[[Tensor], Sequence[Any]]:
    """From a tensor of actions [copies, ...] to what each copy's ``step`` takes; Box actions are clipped."""
    if isinstance(space, spaces.Discrete):
        return lambda action: action.tolist()
    if isinstance(space, spaces.Box):
        low, high, dtype = space.low, space.high, space.dtype

        def clipped(action: Tensor) -> Sequence[Any]:
            return list(np.clip(action.cpu().numpy(), low, high).astype(dtype, copy=False))

        return clipped
    dtype = space.dtype
    return lambda action: list(action.cpu().numpy().astype(dtype, copy=False))


class _Unfit(ValueError):
    """An observation that is not of its space; the message goes behind the field's name."""


class _Row:
    """The observations of one key of all copies, [copies, ...]."""

    def __init__(self, key: str, space: gymnasium.Space[Any], num_envs: int) -> None:
        self.key = f"[{key!r}]" if key else ""
        self.shape: tuple[int, ...] = space.shape or ()
        self.floating = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)
        kind = np.float32 if self.floating else np.uint8 if space.dtype == np.uint8 else np.int64
        self.buffer = np.zeros((num_envs, *self.shape), kind)
        self.valid = f"shape {self.shape} of {space}"
        self.range = (int(space.start), int(space.start + space.n)) if isinstance(space, spaces.Discrete) else None

    def put(self, i: int, value: Any) -> None:
        if getattr(value, "shape", ()) != self.shape:
            raise _Unfit(f"{self.key} has {_shown(value)}; valid: {self.valid}")
        if self.range is not None and not self.range[0] <= value < self.range[1]:
            raise _Unfit(f"{self.key} is {value}; valid: from {self.range[0]} to {self.range[1] - 1}")
        try:
            self.buffer[i] = value
        except (TypeError, ValueError):
            raise _Unfit(f"{self.key} has {_shown(value)}; valid: {self.valid}") from None

    def finite(self) -> bool:
        return not self.floating or math.isfinite(self.buffer.sum()) or bool(np.isfinite(self.buffer).all())

    def unfit(self) -> int:
        """The first copy whose row is not finite."""
        bad = ~np.isfinite(self.buffer).reshape(len(self.buffer), -1).all(1)
        return int(bad.argmax())


def _rows(space: gymnasium.Space[Any], num_envs: int) -> dict[str, _Row]:
    if isinstance(space, spaces.Dict):
        return {key: _Row(key, inner, num_envs) for key, inner in space.spaces.items()}
    return {"": _Row("", space, num_envs)}


def _tensors(buffers: list[Array], rows: Mapping[str, _Row], space: gymnasium.Space[Any]) -> Observation:
    tensors = [torch.from_numpy(buffer) for buffer in buffers]
    return dict(zip(rows, tensors, strict=True)) if isinstance(space, spaces.Dict) else tensors[0]


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, dict):
        return f"a dict with the keys {sorted(map(str, value))}"
    return f"{type(value).__name__} {value!r}" if shape is None else f"shape {tuple(shape)}"
