"""Returns of whole episodes, the measure of a policy for control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from decisionrl.envs.world import World
from decisionrl.evaluation.statistics import bootstrap_mean
from decisionrl.experience.acting import ActingPolicy
from decisionrl.experience.episodes import Task, play
from decisionrl.modes import evaluating

COPIES = 16
"""Episodes that are played side by side."""


@dataclass(frozen=True)
class ReturnEvaluator:
    """Plays a policy's deterministic actions, each episode from a start of its own that training does not choose.

    make_world: makes a world of as many copies, kept for the next evaluation. copies: at most, side by side.
    """

    make_world: Callable[[int], World]
    copies: int = COPIES
    _worlds: dict[int, World] = field(default_factory=dict, repr=False)

    def __call__(
        self, policy: ActingPolicy, *, episodes: int | None = None, seed: int = 1, long: bool = True
    ) -> dict[str, Any]:
        """Mean undiscounted return with a 95 % bootstrap interval over episodes (default: 100, not ``long`` 10)."""
        episodes = episodes or (100 if long else 10)
        copies = min(episodes, self.copies)
        if copies not in self._worlds:
            self._worlds[copies] = self.make_world(copies)
        world = self._worlds[copies]
        seeds = np.random.SeedSequence(seed, spawn_key=tuple(b"evaluation")).generate_state(episodes) >> 1
        with torch.no_grad(), evaluating(policy):
            played = play(world, policy, [Task(int(each)) for each in seeds], generator=None)
        returns = played.outcome.double().cpu().numpy()
        estimate = bootstrap_mean(returns, rng=np.random.default_rng(seed))
        return {
            "mean_return": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "episodes": episodes,
            "mean_length": float(played.mask.sum(1).double().mean()),
        }
