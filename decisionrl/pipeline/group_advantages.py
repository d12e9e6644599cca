"""Advantages relative to the other answers of the group: the rows that share a prompt or a start.

R_i is the outcome of row i, the sum of its rewards. Groups may differ in size; a group of one and a group of equal
outcomes get advantage 0 (verl gives a group of one A = R).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline.groups import Groups, numbered, rows
from decisionrl.pipeline.requirements import required, required_extra
from decisionrl.pipeline.returns import outcomes, rewards_to_go, with_advantage

Scale = Literal["group", "batch", "none"]


@dataclass(frozen=True, kw_only=True)
class GroupNormalized:
    """``A_i = (R_i - mean(R)) / (std(R) + eps)`` over the group, at all steps (GRPO, arXiv 2402.03300, sec. 4.1.2).

    Attributes:
        scale: whose standard deviation: the group's, the whole batch's, or none (Dr. GRPO, arXiv 2503.20783).
        eps: 1e-6 in verl, 1e-4 in TRL.
        population: divide the squares by G rather than G - 1.
        gamma: discounts the rewards in R.

    Raises:
        ValueError: an unknown scale, or trajectories without ``group``.
    """

    scale: Scale = "group"
    eps: float = 1e-6
    population: bool = False
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise ValueError(f"scale = {self.scale!r}; valid: {', '.join(get_args(Scale))}")

    def __call__(self, batch: Trajectories) -> Trajectories:
        outcome = outcomes(batch.reward, batch.mask, self.gamma)
        groups = rows(batch, self)
        advantage = groups.centered(outcome)
        if self.scale != "none":
            scope = groups if self.scale == "group" else Groups(torch.zeros_like(groups.index), groups.weight, 1)
            advantage = scaled(advantage, scope.std(outcome, population=self.population), self.eps)
        return with_advantage(batch, advantage.unsqueeze(1))


@dataclass(frozen=True, kw_only=True)
class ProcessNormalized:
    """``A_t = sum_{t' >= t} (r_t' - mean(r)) / (std(r) + eps)`` (GRPO, arXiv 2402.03300, sec. 4.1.3).

    Mean and standard deviation are over all step rewards in the group. A reward was given where
    ``extras["step_end"]`` [batch, step] is True, at the end of a reasoning step, or at every step.

    Attributes:
        every_step: all steps have a reward, as in control; the extra is not looked at.

    Raises:
        ValueError: trajectories without ``group``, or without that extra where it is needed.
    """

    eps: float = 1e-6
    population: bool = False
    every_step: bool = False

    def __call__(self, batch: Trajectories) -> Trajectories:
        rewarded = batch.mask if self.every_step else required_extra(batch, "step_end", self) & batch.mask
        index, count = numbered(required(batch, "group", self))
        every = index.unsqueeze(1).expand_as(rewarded).flatten()
        steps = Groups(every, rewarded.flatten().to(batch.reward.dtype), count)
        reward = batch.reward.flatten()
        normal = scaled(steps.centered(reward), steps.std(reward, population=self.population), self.eps)
        return with_advantage(
            batch, rewards_to_go(normal.view_as(batch.reward), batch.mask, torch.zeros_like(batch.mask))
        )


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """``A_i = R_i - mean_{j != i}(R_j) = G / (G - 1) (R_i - mean(R))`` (RLOO, arXiv 2402.14740).

    Raises:
        ValueError: trajectories without ``group``.
    """

    def __call__(self, batch: Trajectories) -> Trajectories:
        groups = rows(batch, self)
        size = groups.size
        advantage = groups.centered(outcomes(batch.reward, batch.mask)) * size / (size - 1).clamp(min=1)
        return with_advantage(batch, advantage.unsqueeze(1))


@dataclass(frozen=True, kw_only=True)
class TokenGroupAverage:
    """``A_i = (R_i - mu) / (sigma + 1e-6)`` with statistics of the group's tokens (HAPO, arXiv 2509.16591).

    mu and the population sigma are over all tokens of the group, each with the outcome of its answer. A long answer
    counts with all its tokens, so A sums to 0 over the group's tokens.

    Attributes:
        fallback_limit: a group in which some abs(A) reaches this gets the advantages of ``GroupNormalized()``, as in
            the authors' code; None: no group does.

    Raises:
        ValueError: trajectories without ``group``.
    """

    fallback_limit: float | None = 5.0

    def __post_init__(self) -> None:
        if self.fallback_limit is not None and not self.fallback_limit > 0:
            raise ValueError(f"fallback_limit = {self.fallback_limit}; valid: a positive number, or None")

    def __call__(self, batch: Trajectories) -> Trajectories:
        outcome = outcomes(batch.reward, batch.mask)
        groups = rows(batch, self)
        tokens = Groups(groups.index, batch.mask.sum(1).to(outcome.dtype), groups.count)
        advantage = scaled(tokens.centered(outcome), tokens.std(outcome, population=True), 1e-6)
        if self.fallback_limit is not None:
            by_row = scaled(groups.centered(outcome), groups.std(outcome), 1e-6)
            advantage = torch.where(groups.max(advantage.abs()) >= self.fallback_limit, by_row, advantage)
        return with_advantage(batch, advantage.unsqueeze(1))


def scaled(centered: Tensor, std: Tensor, eps: float) -> Tensor:
    """``centered / (std + eps)``, and 0 where the standard deviation is 0, even with eps = 0."""
    return torch.where(std > 0, centered / (std + eps), 0.0)
