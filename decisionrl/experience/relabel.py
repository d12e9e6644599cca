"""What is made of recorded episodes before learning: other rewards, the best of them, steps with what they led to."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.experience.store import DatasetError, EpisodeStore
from decisionrl.experience.trajectories import Trajectories
from decisionrl.modes import evaluating


class Rewarding(Protocol):
    """A model of rewards."""

    def rewards(self, batch: Trajectories, /) -> Float[Tensor, "batch step"]: ...


def rescaled_rewards(episodes: EpisodeStore, *, scale: float = 1000.0) -> EpisodeStore:
    """Rewards times ``scale / (max return - min return)``, over the undiscounted returns of the episodes.

    So implicit Q-learning (arXiv 2110.06169) treats the locomotion data of D4RL.

    Raises:
        DatasetError: all returns are the same.
    """
    low, high = episodes.returns.min(), episodes.returns.max()
    if low == high:
        raise DatasetError(f"reward: every episode's return is {float(low)}; valid: returns that differ")
    return dataclasses.replace(episodes, reward=episodes.reward * (scale / (high - low)).to(episodes.reward.dtype))


@torch.no_grad()
def relabeled(
    episodes: EpisodeStore, model: Rewarding, *, context: int = 1, offset: float = 0.0, rows: int = 1024
) -> EpisodeStore:
    """The episodes with what a model says, plus ``offset``, as their rewards.

    Args:
        episodes: on the model's device.
        model: in evaluation mode meanwhile.
        context: the reward of a step is what the model says of the last of the up to ``context`` steps that end with
            it; 1 suits a reward of state and action alone.
        offset: added to every reward.
        rows: how many steps are worked out together.

    Raises:
        DatasetError: context or rows below 1, or a reward that is not finite.
    """
    if context < 1 or rows < 1:
        raise DatasetError(f"context = {context}, rows = {rows}; valid: whole numbers >= 1")
    step = torch.arange(episodes.num_steps, device=episodes.length.device) - episodes.first[episodes.episode]
    start = (step - context + 1).clamp(min=0)
    parts = []
    with evaluating(model):
        for first in range(0, episodes.num_steps, rows):
            some = slice(first, first + rows)
            window = episodes.windows(episodes.episode[some], start[some], context)
            last = (step - start)[some, None]
            seen = window.replace(mask=torch.arange(context, device=last.device) <= last)
            parts.append(model.rewards(seen).gather(1, last).squeeze(1))
    return dataclasses.replace(episodes, reward=torch.cat(parts).to(episodes.reward.dtype) + offset)


def top_episodes(episodes: EpisodeStore, fraction: float) -> EpisodeStore:
    """The episodes of highest return, best first, as many as together have at most that fraction of all steps.

    The best one is always among them. Source: the data of percentile behavior cloning in arXiv 2106.01345, sec. 5.1.

    Raises:
        DatasetError: fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise DatasetError(f"fraction = {fraction}; valid: above 0 and at most 1")
    order = episodes.returns.argsort(descending=True, stable=True)
    most = math.floor(fraction * episodes.num_steps + 1e-6)
    count = int((episodes.length[order].cumsum(0) <= most).sum())
    return episodes.select(order[: max(count, 1)])


def consecutive_steps(segments: Trajectories) -> Trajectories:
    """All steps of each row but its last, [batch, steps - 1], with ``extras["next_observation"]``.

    Rows are of one episode each, as segments are. A step counts if the one after it does, too.

    Raises:
        DatasetError: rows of one step, or observations that are a dict.
    """
    if segments.num_columns < 2:
        raise DatasetError(f"segments have {segments.num_columns} step; valid: at least 2, a step and what followed")
    if not isinstance(segments.observation, Tensor):
        raise DatasetError("next_observation: valid with observations that are one tensor, not a dict")
    shape = segments.mask.shape
    steps = segments.replace(state=None).map(lambda each: each[:, :-1] if each.shape[:2] == shape else each)
    return steps.replace(
        mask=segments.mask[:, :-1] & segments.mask[:, 1:],
        complete=segments.complete,
        extras={**steps.extras, "next_observation": segments.observation[:, 1:]},
    )
