"""What environments return, checked before it goes into tensors: whoever wrote one hears which field is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from decisionrl.envs.world import EnvironmentFault, Observation

_FLAGS = (bool, np.bool_)


class Unfit(ValueError):
    """A value that is not what Gymnasium's interface promises; the message names the field and what is valid."""


def read_reset(outcome: Any) -> Any:
    """The observation that ``reset`` returned."""
    if not isinstance(outcome, tuple) or len(outcome) != 2:
        raise Unfit(f"reset() returned {_shown(outcome)}; valid: (observation, info)")
    return outcome[0]


def read_step(outcome: Any) -> tuple[Any, float, bool, bool]:
    """Observation, reward, terminated and truncated that ``step`` returned; the observation is not looked at."""
    if not isinstance(outcome, tuple) or len(outcome) != 5:
        raise Unfit(f"step() returned {_shown(outcome)}; valid: (observation, reward, terminated, truncated, info)")
    observation, reward, terminated, truncated, _ = outcome
    if not isinstance(reward, float):
        if not isinstance(reward, int | np.bool_ | np.integer | np.floating):
            raise Unfit(f"reward is {_shown(reward)}; valid: a number")
        reward = float(reward)
    if not math.isfinite(reward):
        raise Unfit(f"reward is {reward}; valid: a finite number")
    if type(terminated) not in _FLAGS or type(truncated) not in _FLAGS:
        field, flag = ("truncated", truncated) if type(terminated) in _FLAGS else ("terminated", terminated)
        raise Unfit(f"{field} is {_shown(flag)}; valid: True or False")
    return observation, reward, terminated, truncated


class Observations:
    """The observations of all copies: one buffer for each key of a Dict space, or one.

    Attributes:
        tensors: they share the buffers' memory.
        put: ``put(i, observation)`` sets the row of a copy; Unfit if its keys, shape or dtype are not the space's.
    """

    def __init__(self, space: gymnasium.Space[Any], copies: int) -> None:
        if isinstance(space, spaces.Dict):
            self._buffers = {key: _Buffer(f"observation[{key!r}]", each, copies) for key, each in space.items()}
            self.tensors: Observation = {key: torch.from_numpy(each.array) for key, each in self._buffers.items()}
            self.put: Callable[[int, Any], None] = self._put_keys
        else:
            self._buffers = {"": _Buffer("observation", space, copies)}
            self.tensors = torch.from_numpy(self._buffers[""].array)
            self.put = self._buffers[""].put

    def check(self) -> tuple[int, str] | None:
        """The first copy with a value that no observation may have, and what is wrong with it; None if all are well."""
        for buffer in self._buffers.values():
            if (bad := buffer.bad()) is not None:
                return bad
        return None

    def _put_keys(self, i: int, observation: Any) -> None:
        if not isinstance(observation, dict) or observation.keys() != self._buffers.keys():
            raise Unfit(f"observation is {_shown(observation)}; valid: a dict with the keys {sorted(self._buffers)}")
        for key, buffer in self._buffers.items():
            buffer.put(i, observation[key])


class Checked(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Checks one environment from within: for copies in processes of their own. ``name`` says which copy it is."""

    def __init__(self, env: gymnasium.Env[Any, Any], name: str) -> None:
        super().__init__(env)
        self._name, self._steps = name, 0
        self._observations = Observations(env.observation_space, 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._steps = 0
        try:
            outcome = self.env.reset(seed=seed, options=options)
            self._check(read_reset(outcome))
        except Exception as error:
            raise EnvironmentFault(f"{self._name}, reset(seed={seed}): {described(error)}") from error
        return outcome

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._steps += 1
        try:
            outcome = self.env.step(action)
            self._check(read_step(outcome)[0])
        except Exception as error:
            where = f"step {self._steps} of its episode, step({action!r})"
            raise EnvironmentFault(f"{self._name}, {where}: {described(error)}") from error
        return outcome

    def _check(self, observation: Any) -> None:
        self._observations.put(0, observation)
        if (bad := self._observations.check()) is not None:
            raise Unfit(bad[1])


def described(error: Exception) -> str:
    """An exception of an environment, or what we found unfit, for a message."""
    return str(error) if isinstance(error, Unfit) else f"raised {type(error).__name__}: {error}"


class _Buffer:
    """The observations of one key of all copies, [copies, ...]."""

    def __init__(self, field: str, space: gymnasium.Space[Any], copies: int) -> None:
        self._field, self._space = field, space
        self._shape, self._dtype = space.shape or (), space.dtype
        limits = _limits(space)
        self.array: NDArray[Any] = np.zeros((copies, *self._shape), tensor_kind(space))
        self.array[:] = 0 if limits is None else limits[0]

    def put(self, i: int, value: Any) -> None:
        if getattr(value, "dtype", None) != self._dtype or value.shape != self._shape:
            self._check_kind(value)
        self.array[i] = value

    def bad(self) -> tuple[int, str] | None:
        bad = first_bad(self.array, self._space)
        return None if bad is None else (bad[0], f"{self._field} {bad[1]}")

    def _check_kind(self, value: Any) -> None:
        if not isinstance(value, int | float | np.ndarray | np.generic):
            raise Unfit(f"{self._field} is {_shown(value)}; valid: an element of {self._space}")
        array = np.asarray(value)
        if array.shape != self._shape:
            raise Unfit(f"{self._field} has shape {array.shape}; valid: {self._shape}, the shape of {self._space}")
        if not np.can_cast(array.dtype, self.array.dtype, "same_kind"):
            raise Unfit(f"{self._field} has dtype {array.dtype}; valid: {self._dtype}, the dtype of {self._space}")


def tensor_kind(space: gymnasium.Space[Any]) -> Any:
    """The dtype in which tensors carry observations of a space."""
    if np.issubdtype(space.dtype, np.floating):
        return np.float32
    return np.uint8 if space.dtype == np.uint8 else np.int64


def first_bad(observations: NDArray[Any], space: gymnasium.Space[Any]) -> tuple[int, str] | None:
    """The first copy whose observation is not finite, or lies outside a discrete space, and what is wrong with it."""
    if observations.dtype == np.float32:
        well, valid = np.isfinite(observations), "finite numbers"
    elif (limits := _limits(space)) is not None:
        low, high = limits
        well, valid = (observations >= low) & (observations <= high), f"from {_plain(low)} to {_plain(high)}"
    else:
        return None
    if well.all():
        return None
    i = int(well.reshape(len(well), -1).all(1).argmin())
    return i, f"is {observations[i].tolist()}; valid: {valid}"


def _limits(space: gymnasium.Space[Any]) -> tuple[Any, Any] | None:
    """The least and the greatest value of a discrete space, which policies may look up in a table."""
    if isinstance(space, spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return (0, 1) if isinstance(space, spaces.MultiBinary) else None


def _plain(value: Any) -> Any:
    return np.asarray(value).tolist()


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    if isinstance(value, dict):
        return f"a dict with the keys {sorted(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value) if value is None or isinstance(value, int | float | str) else f"a {type(value).__name__}"
