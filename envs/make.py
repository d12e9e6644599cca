"""From what a user names to a World: a Gymnasium id, ``module:Class``, a function, a vector environment, a setting."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from decisionrl.envs.copies import Copies
from decisionrl.envs.registration import register_envs
from decisionrl.envs.vector_world import VectorWorld
from decisionrl.envs.world import World

EnvLike = str | Callable[..., gymnasium.Env[Any, Any]] | VectorEnv[Any, Any, Any]
"""A Gymnasium id, ``"module:Class"``, a function or class that makes a ``gymnasium.Env``, or a ``VectorEnv``."""


class EnvironmentNameError(ValueError):
    """No environment of that name."""


def make_world(
    env: EnvLike,
    *,
    num_envs: int = 1,
    workers: int = 0,
    options: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> World:
    """A World of ``num_envs`` copies.

    Args:
        env: see ``EnvLike``. ``module:Class`` is imported with the working directory on the path. A VectorEnv is used
            as it is, with its own number of copies.
        workers: 0 steps the copies in this process; a positive number steps each copy in a process of its own, which
            pays where one step takes longer than about 0.1 ms. Only 0 and ``num_envs`` are valid.
        options: keyword arguments of the environment.
        device: where observations and rewards go.

    Raises:
        EnvironmentNameError: there is no environment of that name.
        EnvironmentFault: it cannot be made, or breaks the interface.
        UnsupportedSpaceError: its spaces do not fit into tensors.
    """
    if isinstance(env, VectorEnv):
        return VectorWorld(env, name=env_name(env), device=device)
    if workers not in (0, num_envs):
        raise ValueError(f"workers = {workers}; valid: 0 (this process) or num_envs = {num_envs}")
    make, name = env_maker(env, options or {}), env_name(env)
    if workers == 0:
        return Copies(make, num_envs, name=name, device=device)
    vector = AsyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
    return VectorWorld(vector, name=name, device=device)


def env_maker(env: EnvLike, options: Mapping[str, Any]) -> Callable[[], gymnasium.Env[Any, Any]]:
    """A function that makes one copy."""
    if isinstance(env, VectorEnv):
        raise TypeError(f"{env_name(env)} is a VectorEnv; valid: an id or a function that makes a single environment")
    if not isinstance(env, str):
        return partial(env, **options)
    register_envs()
    if env in gymnasium.registry or _registered_by_module(env):
        return partial(gymnasium.make, env, disable_env_checker=True, **options)
    module, colon, attribute = env.partition(":")
    if colon and module.replace(".", "").isidentifier() and attribute.isidentifier():
        return partial(_imported(module, attribute), **options)
    try:
        gymnasium.spec(env)
    except gymnasium.error.Error as error:
        raise EnvironmentNameError(f"env = {env!r}: {error}; valid: a Gymnasium id, or module:Class") from None
    return partial(gymnasium.make, env, disable_env_checker=True, **options)


def env_name(env: EnvLike) -> str:
    """How messages and run directories call an environment."""
    if isinstance(env, str):
        return env
    if isinstance(env, VectorEnv):
        spec = env.spec
        return type(env.unwrapped).__name__ if spec is None else spec.id
    return getattr(env, "__qualname__", type(env).__qualname__)


def _registered_by_module(env: str) -> bool:
    """``module:Id-v0``, which imports the module that registers the id."""
    module, colon, identifier = env.partition(":")
    if not colon or "-v" not in identifier:
        return False
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise EnvironmentNameError(f"env = {env!r}: {module} cannot be imported: {error}") from None
    return identifier in gymnasium.registry


def _imported(module: str, attribute: str) -> Callable[..., gymnasium.Env[Any, Any]]:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise EnvironmentNameError(f"env = '{module}:{attribute}': {module} cannot be imported: {error}") from None
    found = getattr(loaded, attribute, None)
    if not callable(found):
        names = ", ".join(name for name, value in vars(loaded).items() if isinstance(value, type)) or "no classes"
        raise EnvironmentNameError(f"env = '{module}:{attribute}': {module} has no {attribute}; it has {names}")
    return found  # type: ignore[no-any-return]
