"""Settings that are known to work on well-known environments, so that a recipe's name and an id are enough."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

from decisionrl.envs.text import TEXT, make_task
from decisionrl.envs.text.task import TextTask
from decisionrl.experiment import Experiment
from decisionrl.recipes.signatures import check_choices

P = ParamSpec("P")

GROUPS = {"groups": 4, "minibatch": 4, "epochs": 10, "learning_rate": 3e-3}
FASTER = {"groups": 4, "minibatch": 4, "epochs": 8, "learning_rate": 5e-3}
SINGLE = {"episodes": 32, "minibatch": 4, "epochs": 8, "learning_rate": 5e-3}

CARTPOLE: Mapping[str, Mapping[str, Any]] = {
    "reinforce": {"learning_rate": 1e-2},
    "ppo": {
        "num_envs": 8,
        "horizon": 32,
        "minibatch": 256,
        "epochs": 20,
        "gamma": 0.98,
        "gae_lambda": 0.8,
        "learning_rate": 1e-3,
        "anneal": True,
    },
    "grpo": GROUPS,
    "rloo": {"groups": 1, "learning_rate": 1e-2},
    "dapo": GROUPS,
    "gspo": FASTER,
    "sapo": GROUPS,
    "bapo": GROUPS,
    "dcpo": FASTER,
    "capo": GROUPS,
    "d3s": {**GROUPS, "minibatch": 2, "group_rows_first": 1.0, "rows_first": 0.5, "steps_first": 0.5},
    "remax": {"episodes": 4, "learning_rate": 1e-2},
    "spo": SINGLE,
    "segment_spo": {"interval": 25, "rollouts": 1, "minibatch": 2, "epochs": 8, "learning_rate": 5e-3},
    "hapo": FASTER,
    "tppo": {"horizon": 64, "minibatch": 128, "epochs": 8, "learning_rate": 1e-3},
    "riskpo": {**SINGLE, "reward_scale": 1 / 500},
    "vade": GROUPS,
    "xrpo": {**GROUPS, "budget": 32},
    "gtpo": {"groups": 1, "learning_rate": 1e-2},
    "ares": GROUPS,
}
"""Recipe -> arguments on CartPole-v1: the RL zoo's for PPO, the others tuned by hand on four seeds."""

MUJOCO = {
    "num_envs": 8,
    "horizon": 256,
    "normalize_observations": True,
    "normalize_rewards": True,
    "steps": 300_000,
}

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "CartPole-v1": CARTPOLE,
    "Acrobot-v1": {
        "ppo": {
            "num_envs": 16,
            "horizon": 256,
            "epochs": 4,
            "gae_lambda": 0.94,
            "normalize_observations": True,
            "steps": 200_000,
        },
    },
    "Pendulum-v1": {
        "ppo": {
            "num_envs": 4,
            "horizon": 1024,
            "gamma": 0.9,
            "learning_rate": 1e-3,
            "anneal": True,
            "steps": 300_000,
        },
    },
    "Hopper-v5": {"ppo": MUJOCO},
    "HalfCheetah-v5": {"ppo": MUJOCO},
}
"""Environment id -> recipe -> arguments."""


RESPONSES = {"groups": 64, "group_size": 8}
PASSES = {"epochs": 1, "minibatch": 128}
PROMPTS = {"num_starts": 529}
OFTEN = {"groups": 16, "group_size": 8}

SMALL_LANGUAGE: Mapping[str, Mapping[str, Any]] = {
    **{
        name: {**RESPONSES, **PASSES}
        for name in ("grpo", "dapo", "gspo", "sapo", "bapo", "capo", "d3s", "hapo", "ares")
    },
    "rloo": OFTEN,
    "gtpo": {**OFTEN, "entropy_coefficient": 0.0},
    **{name: {**RESPONSES, **PASSES, **PROMPTS} for name in ("dcpo", "vade")},
    "xrpo": {"groups": 64, "budget": 512, "shown": 0, **PASSES, **PROMPTS},
    "reinforce": {"episodes": 128, "gamma": 1.0},
    "remax": {"episodes": 128},
    "ppo": {"num_envs": 512, "epochs": 1, "minibatch": 384, "gamma": 1.0, "gae_lambda": 1.0},
    "tppo": {"horizon": 8, "gamma": 1.0, "gae_lambda": 1.0, **PASSES},
    "spo": {"episodes": 512, **PASSES, **PROMPTS},
    "riskpo": {"episodes": 500, "bundle": 5, **PASSES},
    "segment_spo": {"episodes": 128, "interval": 1, "rollouts": 4, "epochs": 1, "minibatch": 32},
}
"""Recipe -> arguments for the small transformer on text tasks: an update from about 128 responses, four in a batch
where a recipe has minibatches; where prompts have no end, as many of them as modular addition has. The small
transformer has never read an example in front of a prompt, and is lost after one, so that XRPO shows it none. Its
critic knows nothing at first, so that T-PPO's windows are not shorter than responses. GTPO takes entropy off the
rewards, so that it has no bonus for it."""

OWN_LANGUAGE: Mapping[str, Mapping[str, Any]] = {"riskpo": {"episodes": 60, "bundle": 5}}
"""Recipe -> arguments for a model of one's own."""

TOKENS: Mapping[str, Any] = {"num_envs": 512, "clip_norm": 1.0, "steps": 1_200_000}

SMALL_RATES: Mapping[str, Any] = {
    "learning_rate": 5e-4,
    "anneal": True,
    "entropy_coefficient": 0.02,
    "share_prompts": True,
}


def _on_text(recipe: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The small transformer's settings; a model of one's own has but a learning rate of the usual size."""
    if arguments.get("model") is None:
        return {**TOKENS, **SMALL_RATES, **_fitting(SMALL_LANGUAGE.get(recipe, {}), arguments)}
    rate = 1e-6 if arguments.get("lora_rank") is None else 1e-5
    return {**TOKENS, "learning_rate": rate, **OWN_LANGUAGE.get(recipe, {})}


def _fitting(given: Mapping[str, Any], arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """With all prompts to train on as starts and no more groups than those, and windows as long as a response."""
    if not {"num_starts", "horizon"} & given.keys():
        return given
    env = arguments["env"]
    task = env if isinstance(env, TextTask) else make_task(env, **(arguments.get("env_options") or {}))
    fitting = dict(given)
    if "horizon" in given:
        fitting["horizon"] = max(given["horizon"], arguments.get("max_steps") or task.max_tokens)
    if "num_starts" in given and task.num_prompts is not None:
        there = round((1 - (arguments.get("held_out") or 0)) * task.num_prompts)
        fitting["num_starts"] = there
        fitting |= {name: min(given[name], there) for name in ("groups", "episodes") if name in given}
    return fitting


def preset(recipe: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is to be the default where a recipe is called with these arguments; empty if nothing is known.

    Those of recipes with two bases are for groups.
    """
    env = arguments.get("env", "CartPole-v1")
    if isinstance(env, TextTask):
        return _on_text(recipe, arguments)
    if arguments.get("setting") is not None or arguments.get("base") == "critic" or not isinstance(env, str):
        return {}
    if env.startswith(TEXT):
        return _on_text(recipe, arguments)
    return PRESETS.get(env, {}).get(recipe, {})


def tuned(recipe: Callable[P, Experiment]) -> Callable[P, Experiment]:
    """Let a recipe begin from the preset of its environment; arguments that are given take precedence, and are refused
    where they are none of the values that there are."""

    @functools.wraps(recipe)
    def with_preset(*args: P.args, **kwargs: P.kwargs) -> Experiment:
        check_choices(recipe, kwargs)
        return recipe(*args, **{**preset(recipe.__name__, kwargs), **kwargs})

    return with_preset
