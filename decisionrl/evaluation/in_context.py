"""Returns of a policy that learns in its context: episode after episode of a task that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from decisionrl.envs.gridworld.family import TaskFamily
from decisionrl.envs.gridworld.world import TaskWorld
from decisionrl.evaluation.statistics import bootstrap_mean
from decisionrl.modes import evaluating
from decisionrl.policies.in_context import InContextPolicy, PlanningPolicy
from decisionrl.seeding import generator

EPISODES = 100
"""That a policy has to find out what its task is, as in filtered learning histories (arXiv 2505.15143)."""

QUICK_EPISODES = 10
ROWS = 64
"""Contexts that are measured side by side, at least."""


def in_context_returns(
    policy: InContextPolicy | PlanningPolicy, world: TaskWorld, *, episodes: int, seed: int
) -> Float[Tensor, "copies episodes"]:
    """Returns of so many episodes in a row in every copy, whose context begins empty and is carried over their ends.

    Weights stay as they are; actions are sampled.
    """
    noise, state = generator(seed, "actions", world.device), policy.initial_state(world.num_envs)
    starts = np.random.SeedSequence(seed, spawn_key=tuple(b"starts")).generate_state(episodes * world.num_envs) >> 1
    returns = []
    ended = torch.zeros(world.num_envs, dtype=torch.bool, device=world.device)
    with torch.no_grad(), evaluating(policy):
        for seeds in starts.reshape(episodes, world.num_envs).tolist():
            observation, total = world.reset(seeds), torch.zeros(world.num_envs, device=world.device)
            for t in range(world.max_steps):
                drawn = policy.sample_noise((world.num_envs,), noise)
                action, state = policy.act(observation, state, noise=drawn)
                step = world.step(action)
                state = policy.hear(state, step.reward, ended | (t + 1 == world.max_steps))
                observation, total = world.observation, total + step.reward
            returns.append(total)
    return torch.stack(returns, 1)


def enhancement(base: Float[Tensor, ...], changed: Float[Tensor, ...]) -> float:
    """``(mean changed - mean base) / mean base`` over whole curves, so that a faster rise counts as well as a higher
    end (arXiv 2505.15143, sec. 4).

    Raises:
        ValueError: the mean of the base is not positive.
    """
    before = base.double().mean().item()
    if not before > 0:
        raise ValueError(f"the mean return of the base is {before}; valid: above 0")
    return (changed.double().mean().item() - before) / before


@dataclass(frozen=True, kw_only=True)
class InContextEvaluator:
    """Measures a policy in tasks of a family, several contexts in each: at least 64 in all.

    Attributes:
        tasks: ids.
        episodes: of each context.

    Raises:
        ValueError: there is no task, or nothing to earn in them.
    """

    family: TaskFamily
    tasks: Int[Tensor, " task"]
    episodes: int = EPISODES

    def __post_init__(self) -> None:
        if not len(self.tasks):
            raise ValueError("tasks is empty; valid: at least one task")
        if self.optimum == 0:
            found = f"{self.family.name}: the largest returns of the {len(self.tasks)} tasks are 0 on average"
            raise ValueError(f"{found}; valid: tasks in which something can be earned")

    @property
    def optimum(self) -> float:
        """The mean return of the optimal policy."""
        return self.family.max_return[self.tasks].double().mean().item()

    @property
    def replicas(self) -> int:
        """Contexts in each task."""
        return -(-ROWS // len(self.tasks))

    def returns(
        self, policy: InContextPolicy | PlanningPolicy, *, episodes: int | None = None, seed: int = 1
    ) -> Float[Tensor, "task replica episode"]:
        """Of all contexts."""
        device = next(policy.parameters()).device
        tasks = self.tasks.repeat_interleave(self.replicas)
        world = TaskWorld(self.family, num_envs=len(tasks), task=tasks, device=device)
        found = in_context_returns(policy, world, episodes=episodes or self.episodes, seed=seed)
        return found.view(len(self.tasks), self.replicas, -1)

    def __call__(
        self,
        policy: InContextPolicy | PlanningPolicy,
        *,
        episodes: int | None = None,
        seed: int = 1,
        long: bool = True,
    ) -> dict[str, Any]:
        """The mean return over the whole curve of ``episodes`` in a row, with a 95 % bootstrap interval over tasks;
        that of the first episode and of the last tenth; the optimal policy's as the reference."""
        episodes = episodes or (self.episodes if long else min(QUICK_EPISODES, self.episodes))
        returns = self.returns(policy, episodes=episodes, seed=seed).double().cpu()
        estimate = bootstrap_mean(returns.mean((1, 2)).numpy(), rng=np.random.default_rng(seed))
        return {
            "mean_return": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "episodes": episodes,
            "first_return": returns[..., 0].mean().item(),
            "last_return": returns[..., -max(1, episodes // 10) :].mean().item(),
            "tasks": len(self.tasks),
            "contexts": returns[..., 0].numel(),
            "reference": self.optimum,
            "reference_kind": "exact",
            "gap": (self.optimum - estimate.value) / abs(self.optimum),
        }
