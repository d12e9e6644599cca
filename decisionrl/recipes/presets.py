"""Settings that are known to work on well-known environments, so that a recipe's name and an id are enough."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

from decisionrl.experiment import Experiment

P = ParamSpec("P")

MUJOCO = {
    "num_envs": 8,
    "horizon": 256,
    "normalize_observations": True,
    "normalize_rewards": True,
    "steps": 300_000,
}

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "ppo": {
        "CartPole-v1": {
            "num_envs": 8,
            "horizon": 32,
            "minibatch": 256,
            "epochs": 20,
            "gamma": 0.98,
            "gae_lambda": 0.8,
            "learning_rate": 1e-3,
            "anneal": True,
        },
        "Acrobot-v1": {
            "num_envs": 16,
            "horizon": 256,
            "epochs": 4,
            "gae_lambda": 0.94,
            "normalize_observations": True,
            "steps": 200_000,
        },
        "Pendulum-v1": {
            "num_envs": 4,
            "horizon": 1024,
            "gamma": 0.9,
            "learning_rate": 1e-3,
            "steps": 300_000,
        },
        "Hopper-v5": MUJOCO,
        "HalfCheetah-v5": MUJOCO,
    },
}
"""Recipe -> environment id -> arguments."""


def preset(recipe: str, env: object) -> Mapping[str, Any]:
    """The arguments that are not the recipe's defaults on this environment; empty if none are known."""
    return PRESETS.get(recipe, {}).get(env, {}) if isinstance(env, str) else {}


def tuned(recipe: Callable[P, Experiment]) -> Callable[P, Experiment]:
    """Let a recipe begin from the preset of its environment; arguments that are given take precedence."""

    @functools.wraps(recipe)
    def with_preset(*args: P.args, **kwargs: P.kwargs) -> Experiment:
        env = kwargs.get("env", "CartPole-v1") if kwargs.get("setting") is None else None
        return recipe(*args, **{**preset(recipe.__name__, env), **kwargs})

    return with_preset
