"""A supervised warm start: from random weights no reward is ever met, and nothing is learned."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from decisionrl.envs.text import TextTask
from decisionrl.envs.text.tokenizer import character_tokenizer
from decisionrl.evaluation.language import sampled_rewards
from decisionrl.experience.datasets import DatasetSource
from decisionrl.learner import GradientLearner
from decisionrl.llm.responses import Demonstrations
from decisionrl.llm.world import TextWorld
from decisionrl.objectives.imitation import BehaviorCloning
from decisionrl.policies.language import LanguagePolicy
from decisionrl.policies.language_models import quietly, tiny_model
from decisionrl.seeding import generator

LOGGER = logging.getLogger(__name__)

TOLD = 500
"""Updates between messages."""

PROMPT_TOKENS = 64
"""A prompt of as many tokens, without examples, can be read by every model of :func:`warm_started`."""

SEVERAL = 512
"""Prompts of which the longest can be read, too, and others that are up to twice as long."""


def warm_start(
    policy: LanguagePolicy,
    world: TextWorld,
    *,
    target: float = 0.3,
    batch: int = 64,
    learning_rate: float = 1e-3,
    limit: int = 5000,
    every: int = 10,
    responses: int = 256,
    examples: int = 0,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> float:
    """Imitate the world's demonstrations until a share ``target`` of sampled responses is right; that share.

    Args:
        policy: is trained in place.
        world: its prompts are imitated.
        target: the mean reward of sampled responses, as a share of the best, at which to stop; in (0, 1].
        batch, learning_rate: of Adam.
        limit: updates at most; there is a warning if they do not suffice.
        every: updates between measurements, of at least ``responses`` responses: one to each of as many prompts, or
            several where there are fewer.
        examples: at most so many solved ones stand in front of the prompts that are imitated; the share is of prompts
            without. A model that has never read any is lost when it is shown some.
        progress: told the updates so far and the share.

    Raises:
        ValueError: target is out of range, or the task does not say what the best reward is.
    """
    best = world.task.best_reward
    if not 0 < target <= 1:
        raise ValueError(f"target = {target}; valid: above 0 and at most 1")
    if best is None:
        raise ValueError(f"{world.name}: best_reward = None; valid for a warm start: a number")
    source = DatasetSource(Demonstrations(world=world, size=batch, examples=examples), seed=seed)
    learner = GradientLearner(
        policy,
        BehaviorCloning(),
        torch.optim.Adam(policy.trainable_parameters(), learning_rate, fused=True),
        clip_norm=1.0,
    )
    prompts = responses if world.num_starts is None else min(responses, world.num_starts)
    samples = -(-responses // prompts)
    share = 0.0
    for update in range(limit):
        if update % every == 0:
            rewards = sampled_rewards(policy, world, prompts=prompts, samples=samples, seed=seed)
            share = rewards.mean().item() / best
            if progress is not None:
                progress(update, share)
            if share >= target:
                return share
        learner.update(source.sample())
    warnings.warn(f"{world.name}: a share of {share:.2f} after {limit} updates; wanted: {target}", stacklevel=2)
    return share


def warm_started(
    task: TextTask, directory: Path, *, seed: int, prompts: Int[Tensor, " prompts"] | None = None, examples: int = 0
) -> Path:
    """The directory with a small transformer that :func:`warm_start` has trained, and its tokenizer; made where it is
    not there yet.

    prompts: the numbers of those that are imitated; by default all. One that was not tends to be answered in a single
    way, and if that is wrong no reward is ever met from which to learn another.

    Raises:
        ValueError: the task has no alphabet.
    """
    if directory.exists():
        return directory
    if task.alphabet is None:
        raise no_alphabet(task)
    tokenizer = character_tokenizer(task.alphabet)
    world = TextWorld(task, tokenizer, num_envs=256, prompts=prompts)
    several = range(SEVERAL if world.num_starts is None else min(SEVERAL, world.num_starts))
    longest = max(PROMPT_TOKENS, *(2 * len(world.prompt(start)) for start in several))
    context = (1 + examples) * (longest + task.max_tokens)
    model = tiny_model(len(tokenizer), context=context, generator=generator(seed, "language model"))
    LOGGER.info("%s: a small transformer imitates right answers until 30 %% of its own are right", task.name)
    warm_start(LanguagePolicy(model), world, examples=examples, seed=seed, progress=_told)
    LOGGER.info("kept in %s", directory)
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    shutil.rmtree(partial, ignore_errors=True)
    with quietly():
        model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if not directory.exists():
        partial.rename(directory)
    return directory


def _told(update: int, share: float) -> None:
    if update and update % TOLD == 0:
        LOGGER.info("%.0f %% after %d updates", 100 * share, update)


def no_alphabet(task: TextTask) -> ValueError:
    """Prompts of any text are not for a small transformer."""
    return ValueError(f"{task.name}: model = None; valid: a directory with a model that knows its language")
