"""A supervised warm start: from a random start no reward is ever met, and nothing is learned."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from decisionrl.evaluation.language import sampled_rewards
from decisionrl.experience.datasets import DatasetSource
from decisionrl.learner import GradientLearner
from decisionrl.llm.responses import Demonstrations
from decisionrl.llm.world import TextWorld
from decisionrl.objectives.imitation import BehaviorCloning
from decisionrl.policies.language import LanguagePolicy


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
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> float:
    """Imitate the world's demonstrations until a share ``target`` of sampled responses is right; that share.

    Args:
        policy: is trained in place.
        world: its prompts are the ones imitated and measured; leave out those that are to be learned without.
        target: the mean reward of sampled responses, as a share of the best, at which to stop; in (0, 1].
        batch, learning_rate: of Adam.
        limit: updates at most; there is a warning if they do not suffice.
        every: updates between measurements, of ``responses`` responses.
        progress: told the updates so far and the share.

    Raises:
        ValueError: target is out of range.
    """
    if not 0 < target <= 1:
        raise ValueError(f"target = {target}; valid: above 0 and at most 1")
    source = DatasetSource(Demonstrations(world=world, size=batch), seed=seed)
    trained = [each for each in policy.parameters() if each.requires_grad]
    learner = GradientLearner(policy, BehaviorCloning(), torch.optim.Adam(trained, learning_rate), clip_norm=1.0)
    share = 0.0
    for update in range(1, limit + 1):
        learner.update(source.sample())
        if update % every == 0:
            rewards = sampled_rewards(policy, world, prompts=responses, samples=1, seed=seed)
            share = rewards.mean().item() / world.task.best_reward
            if progress is not None:
                progress(update, share)
            if share >= target:
                return share
    warnings.warn(f"{world.name}: a share of {share:.2f} after {limit} updates; wanted: {target}", stacklevel=2)
    return share
