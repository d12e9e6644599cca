"""From what a user names to a World: a Gymnasium id, ``module:Class``, a function, a vector environment, a setting."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from decisionrl.envs.checks import Checked
from decisionrl.envs.copies import Copies
from decisionrl.envs.gymnasium import InventorySingleEnv
from decisionrl.envs.inventory.world import InventoryWorld
from decisionrl.envs.registration import WORLDS
from decisionrl.envs.text import TASKS, TEXT
from decisionrl.envs.vector_world import VectorWorld
from decisionrl.envs.world import EnvironmentFault, World, check_space

EnvLike = str | Path | Callable[..., gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any]
"""A Gymnasium id, ``"module:Class"``, ``"module:Id-v0"``, a function or class that makes a ``gymnasium.Env``, a
``VectorEnv``, or an inventory setting: ``"inventory/NAME"`` or the path of a TOML file."""

INVENTORY = "inventory/"


class EnvironmentNameError(ValueError):
    """No environment of that name."""


def make_world(
    env: EnvLike,
    *,
    num_envs: int = 1,
    workers: int = 0,
    options: Mapping[str, Any] | None = None,
    max_steps: int | None = None,
    device: torch.device | str = "cpu",
) -> World:
    """A World of ``num_envs`` copies.

    Args:
        env: see ``EnvLike``. ``module:...`` is imported with the working directory on the path. A VectorEnv is used
            as it is, with its own number of copies.
        workers: 0 steps the copies in this process; a positive number steps each copy in a process of its own, which
            pays where one step takes longer than about 0.1 ms. Only 0 and ``num_envs`` are valid, and 0 alone for
            inventory settings and the ids in ``WORLDS``, all copies of which are stepped at once.
        options: keyword arguments of the environment.
        max_steps: truncate episodes of as many steps; for an inventory setting, their number of periods.
        device: where observations and rewards go.

    Raises:
        EnvironmentNameError: there is no environment of that name.
        EnvironmentFault: it cannot be made, or breaks the interface.
        UnsupportedSpaceError: its spaces do not fit into tensors.
        ValueError: num_envs, workers, options or max_steps are not valid.
        SettingError: an inventory setting is not.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs = {num_envs}; valid: a whole number >= 1")
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps = {max_steps}; valid: a whole number >= 1, or None")
    if isinstance(env, VectorEnv):
        if options or workers or max_steps:
            given = f"options = {dict(options or {})}, workers = {workers}, max_steps = {max_steps}"
            raise ValueError(f"{given}; valid with a VectorEnv, which is made already: none of them")
        return VectorWorld(env, name=env_name(env), device=device)
    if workers not in (0, num_envs):
        raise ValueError(f"workers = {workers}; valid: 0 (this process) or num_envs = {num_envs}")
    if (setting := _setting(env)) is not None:
        if workers:
            raise ValueError(f"workers = {workers}; valid: 0, as inventory worlds step all copies at once")
        periods = {} if max_steps is None else {"periods": max_steps}
        return InventoryWorld(setting, num_envs=num_envs, device=device, **{**(options or {}), **periods})
    if (world := _batched(env)) is not None:
        if workers:
            raise ValueError(f"workers = {workers}; valid: 0, as {env} steps all copies at once")
        limit = {} if max_steps is None else {"max_steps": max_steps}
        return world(num_envs=num_envs, device=device, **{**(options or {}), **limit})
    make, name = env_maker(env, options or {}), env_name(env)
    if max_steps is not None:
        make = partial(_limited, make, max_steps)
    if workers == 0:
        return Copies(make, num_envs, name=name, device=device)
    return VectorWorld(_in_workers(make, num_envs, name), name=name, device=device)


def env_maker(env: EnvLike, options: Mapping[str, Any]) -> Callable[[], gymnasium.Env[Any, Any]]:
    """A function that makes one copy."""
    if isinstance(env, VectorEnv):
        raise TypeError(f"{env_name(env)} is a VectorEnv; valid: an id or a function that makes a single environment")
    if (setting := _setting(env)) is not None:
        return partial(InventorySingleEnv, setting, **options)
    if not isinstance(env, str):
        if not callable(env):
            raise TypeError(f"env is a {type(env).__name__}; valid: an id, module:Class, a function, or a VectorEnv")
        return partial(env, **options)
    module, colon, attribute = env.partition(":")
    if colon:
        loaded = _imported(env, module)
        if attribute not in gymnasium.registry:
            return partial(_attribute(env, loaded, attribute), **options)
    else:
        _check_id(env)
    return partial(gymnasium.make, env, disable_env_checker=True, **options)


def _limited(make: Callable[[], gymnasium.Env[Any, Any]], max_steps: int) -> gymnasium.Env[Any, Any]:
    return gymnasium.wrappers.TimeLimit(make(), max_steps)


def env_name(env: EnvLike) -> str:
    """How messages and run directories call an environment."""
    if isinstance(env, str | Path):
        return str(env)
    if isinstance(env, VectorEnv):
        spec = env.spec
        return type(env.unwrapped).__name__ if spec is None else spec.id
    return getattr(env, "__qualname__", type(env).__qualname__)


def _check_id(env: str) -> None:
    if env.startswith(TEXT):
        raise EnvironmentNameError(f"env = {env!r} is a text task; valid here: a Gymnasium id, or module:Class")
    try:
        gymnasium.spec(env)
    except gymnasium.error.Error as error:
        meant = f"Did you mean {TEXT + env!r}? " if TEXT + env in TASKS else ""
        raise EnvironmentNameError(f"env = {env!r}: {error} {meant}Valid: a Gymnasium id, or module:Class") from None


def _setting(env: EnvLike) -> str | Path | None:
    """The inventory setting that is meant; None if none is."""
    if isinstance(env, Path):
        return env
    if not isinstance(env, str) or not env.startswith(INVENTORY):
        return None
    name = env.removeprefix(INVENTORY)
    return Path(name) if name.endswith(".toml") else name


def _batched(env: EnvLike) -> Callable[..., World] | None:
    """What makes the batched world behind an id; None if there is none."""
    identifier = env.rpartition(":")[2] if isinstance(env, str) else ""
    if identifier not in WORLDS:
        return None
    module, name = WORLDS[identifier]
    return partial(getattr(importlib.import_module(module), name), **gymnasium.spec(identifier).kwargs)


def _in_workers(make: Callable[[], gymnasium.Env[Any, Any]], num_envs: int, name: str) -> AsyncVectorEnv:
    try:
        makers = [partial(_checked, make, f"{name}, copy {i}", name) for i in range(num_envs)]
        return AsyncVectorEnv(makers, autoreset_mode=AutoresetMode.DISABLED)
    except (EnvironmentFault, ValueError):
        raise
    except Exception as error:
        raise EnvironmentFault(f"{name}: starting the workers raised {type(error).__name__}: {error}") from error


def _checked(make: Callable[[], gymnasium.Env[Any, Any]], copy: str, name: str) -> gymnasium.Env[Any, Any]:
    try:
        env = make()
    except Exception as error:
        raise EnvironmentFault(f"{copy}: making it raised {type(error).__name__}: {error}") from error
    check_space(env.observation_space, "observation_space", name)
    check_space(env.action_space, "action_space", name, nested=False)
    return Checked(env, copy)


def _imported(env: str, module: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except (ImportError, ValueError) as error:  # ValueError: an empty name
        raise EnvironmentNameError(f"env = {env!r}: {module} cannot be imported: {error}") from None


def _attribute(env: str, module: ModuleType, attribute: str) -> Callable[..., gymnasium.Env[Any, Any]]:
    found = getattr(module, attribute, None)
    if not callable(found):
        classes = [name for name, value in vars(module).items() if _is_env(value)]
        raise EnvironmentNameError(
            f"env = {env!r}: {module.__name__} has no {attribute}; its environments: {', '.join(classes) or 'none'}"
        )
    return found  # type: ignore[no-any-return]


def _is_env(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, gymnasium.Env) and value is not gymnasium.Env
