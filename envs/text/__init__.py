"""Text tasks with exact rewards: prompts, verifiers and demonstrations as pure functions.

    task = make_task("text/countdown")
    task.prompt(7), task.reward(7, "1+2-1")

Models, generation and worlds are elsewhere; users' prompts and reward functions are in ``prompts``.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, cast

from decisionrl.envs.text.task import Prompt, TextTask, TextTaskDefaults, own_characters, split

__all__ = [
    "TASKS",
    "TEXT",
    "Prompt",
    "TextTask",
    "TextTaskDefaults",
    "make_task",
    "own_characters",
    "split",
    "task_maker",
]

TEXT = "text/"
"""How the ids of tasks begin."""

TASKS = {
    "text/modular-addition": ("decisionrl.envs.text.modular_addition", "ModularAddition"),
    "text/sorting": ("decisionrl.envs.text.sorting", "Sorting"),
    "text/countdown": ("decisionrl.envs.text.countdown", "Countdown"),
    "text/prompt-bandit": ("decisionrl.envs.text.prompt_bandit", "PromptBandit"),
    "text/key-token-chain": ("decisionrl.envs.text.key_token_chain", "KeyTokenChain"),
    "text/stop-vote": ("decisionrl.envs.text.stop_vote", "StopVote"),
    "text/mod-chain": ("decisionrl.envs.text.mod_chain", "ModChain"),
}
"""Ids of tasks, and the module and class of each; imported when used."""


def task_maker(name: str) -> Callable[..., TextTask]:
    """The class of a task; ValueError that lists all ids if there is none."""
    if name not in TASKS:
        raise ValueError(f"task = {name!r}; valid: {', '.join(TASKS)}")
    module, attribute = TASKS[name]
    return cast(Callable[..., TextTask], getattr(importlib.import_module(module), attribute))


def make_task(name: str, **options: Any) -> TextTask:
    """The task of that id with these options, such as ``make_task("text/modular-addition", modulus=97)``.

    Raises:
        ValueError: there is no such task or option, or an option has no valid value.
    """
    maker = task_maker(name)
    known = inspect.signature(maker).parameters
    for option in options:
        if option not in known:
            valid = ", ".join(f"{each.name} = {each.default!r}" for each in known.values())
            raise ValueError(f"{name} has no option {option!r}; valid, with defaults: {valid}")
    return maker(**options)
