"""Settings that are known to work on the labs and on data made here, so that a recipe's name and a path are enough."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

from decisionrl.experience.data import open_data
from decisionrl.experiment import Experiment

P = ParamSpec("P")

BRIEF = {"steps": 4000, "learning_rate": 3e-4}
SHORT = {**BRIEF, "hidden": [256, 256], "dropout": 0.0}
PAIRS = {**SHORT, "batch": 32}
CLONED_FIRST = {**PAIRS, "cloning_steps": 2000}
RELATIVE = {**CLONED_FIRST, "warmup": 200}
VALUES = {**SHORT, "batch": 256}

HINDSIGHT = {**BRIEF, "batch": 32, "sizes": "small", "warmup": 200, "clip_norm": 0.25}

CLONES: Mapping[str, Mapping[str, Any]] = {
    "bc": {**PAIRS, "length": 64},
    "sft": CLONED_FIRST,
    "cpl": RELATIVE,
    "cpl_bc": RELATIVE,
    "cpl_kl": RELATIVE,
    "dpo_control": RELATIVE,
    "iql": {**VALUES, "rescale_rewards": False},
    "p_iql": {**PAIRS, "reward_steps": 1000},
    "dt": {**BRIEF, "batch": 64, "width": 64, "layers": 2, "window": 10, "warmup": 200, "return_scale": 10.0},
    "oppo": {**HINDSIGHT, "horizon": None, "joint": True},
    "oppo_human": {**HINDSIGHT, "pairs": 500},
}
"""Recipe -> arguments on a few hundred episodes of a cloned policy."""

LAB = {"steps": 2000, "hidden": [64, 64]}

LABS: Mapping[str, Mapping[str, Any]] = {
    **{
        name: {**CLONES[name], **LAB, "cloning_steps": 500}
        for name in ("sft", "cpl", "cpl_bc", "cpl_kl", "dpo_control")
    },
    "bc": {**SHORT, **LAB, "batch": 256},
    **{name: {**CLONES[name], **LAB} for name in ("iql", "p_iql")},
    "dt": {**CLONES["dt"], "steps": 2000},
    "oppo": {**CLONES["oppo"], "steps": 1000, "learning_rate": 1e-3},
    "oppo_human": {**CLONES["oppo_human"], "steps": 1000, "learning_rate": 1e-3, "batch": 16},
}
"""Recipe -> arguments on the labs."""

MUJOCO: Mapping[str, Mapping[str, Any]] = {
    "bc": {**SHORT, "steps": 20_000, "batch": 256},
    "iql": {**SHORT, "steps": 20_000, "batch": 256},
    "dt": {**BRIEF, "steps": 10_000, "batch": 64, "width": 64, "layers": 2, "window": 10, "warmup": 500},
    "oppo": {
        **BRIEF,
        "steps": 3_000,
        "batch": 32,
        "sizes": "small",
        "joint": True,
        "preference_weight": 10.0,
        "context_learning_rate": 3e-3,
        "context_std": 0.1,
        "warmup": 500,
        "clip_norm": 0.25,
    },
}
"""Recipe -> arguments on what ``make-dataset sac`` makes."""


SMALL_DIFFUSION = {"sizes": "cpu", "future": 4, "steps": 3000, "learning_rate": 1e-3, "warmup": 200}

DEMONSTRATIONS: Mapping[str, Mapping[str, Any]] = {
    "bc": {**SHORT, "batch": 256},
    "diffusion_policy": {**SMALL_DIFFUSION, "network": "transformer", "action_steps": 1},
    "ptp": {**SMALL_DIFFUSION, "observations": 8},
}
"""Recipe -> arguments on a few hundred demonstrations of tasks that need memory."""

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "clones": CLONES,
    "lab": LABS,
    "sac": MUJOCO,
    "demonstrations": DEMONSTRATIONS,
}
"""What made the data, as its ``info["maker"]`` says -> recipe -> arguments."""


def offline_preset(recipe: str, data: str) -> Mapping[str, Any]:
    """What is to be the default where a recipe is called with this data; empty if nothing is known."""
    return PRESETS.get(str(open_data(data).info.get("maker")), {}).get(recipe, {})


def tuned(recipe: Callable[P, Experiment], *, default: str) -> Callable[P, Experiment]:
    """Let a recipe begin from the preset of its data, ``default`` where none is given; arguments take precedence."""

    @functools.wraps(recipe)
    def with_preset(*args: P.args, **kwargs: P.kwargs) -> Experiment:
        data = kwargs.get("data", default)
        return recipe(*args, **{**offline_preset(recipe.__name__, str(data)), **kwargs})

    return with_preset


def tuned_offline(recipe: Callable[P, Experiment]) -> Callable[P, Experiment]:
    """:func:`tuned` for recipes whose data is ``lab/point`` by default."""
    return tuned(recipe, default="lab/point")


def tuned_on_demonstrations(recipe: Callable[P, Experiment]) -> Callable[P, Experiment]:
    """:func:`tuned` for recipes whose data is ``lab/return-side`` by default."""
    return tuned(recipe, default="lab/return-side")
