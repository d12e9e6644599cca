"""Advantages of segments of an answer, by Monte-Carlo values of the states between (SPO-chain, arXiv 2505.23564).

A segment begins at a cut and ends before the next one. The cuts lie where the policy hesitated: at steps whose action
had a low probability. The states before them are valued by fresh rollouts, which is the source's work.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline.requirements import required, required_extra
from decisionrl.pipeline.returns import following, latest, outcomes, whitened, with_advantage

EQUAL = 1e-6
"""Values of siblings this near to each other differ by rounding."""


def unlikely(
    log_prob: Float[Tensor, "batch step"], mask: Bool[Tensor, "batch step"], threshold: float = 0.9
) -> Bool[Tensor, "batch step"]:
    """The steps of the mask whose action had ``pi_old(a_t | s_t) < threshold``."""
    _check_threshold(threshold)
    return mask & (log_prob < math.log(threshold))


@dataclass(frozen=True, kw_only=True)
class KeepUnlikely:
    """SPO's mask: ``extras["kept"]`` [batch, step] marks steps with ``pi_old(a_t | s_t) < threshold`` and A not 0.

    Attributes:
        whiten: bring the advantages of the marked steps to mean 0 and variance 1, as in the authors' code.

    Raises:
        ValueError: threshold is not above 0, or the batch has no advantage.
    """

    threshold: float = 0.9
    whiten: bool = True

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def __call__(self, batch: Trajectories) -> Trajectories:
        advantage = required(batch, "advantage", self)
        kept = unlikely(batch.log_prob, batch.mask, self.threshold) & (advantage.abs() > EQUAL)
        batch = batch.replace(extras={**batch.extras, "kept": kept})
        return with_advantage(batch, whitened(advantage, kept)) if self.whiten else batch


def cutpoints(
    log_prob: Float[Tensor, "batch step"],
    mask: Bool[Tensor, "batch step"],
    *,
    threshold: float = 0.9,
    interval: int = 5,
) -> Bool[Tensor, "batch step"]:
    """Every ``interval``-th unlikely step of a row, from the first one on, as in the authors' code."""
    if interval < 1:
        raise ValueError(f"interval = {interval}; valid: 1 or more")
    low = unlikely(log_prob, mask, threshold)
    return low & ((low.cumsum(1) - 1) % interval == 0)


def partition(cut: Bool[Tensor, "batch step"], segments: int) -> Bool[Tensor, "batch step"]:
    """Those of the cuts that divide a row into K segments with equally many cuts each, up to one.

    That minimizes the sum over segments of the squared number of cuts. Given n cuts, number j (from 0) lies in segment
    ``floor(j K / n)``; the first cut of each segment is kept. A row with fewer than K cuts keeps all.
    """
    if segments < 1:
        raise ValueError(f"segments = {segments}; valid: 1 or more")
    number = cut.cumsum(1) - 1
    total = cut.sum(1, keepdim=True).clamp(min=1)
    segment = number * segments // total
    return cut & ((number == 0) | (segment > (number - 1) * segments // total))


@dataclass(frozen=True, kw_only=True)
class SegmentMonteCarlo:
    """``A_t = V(end of t's segment) - V(its start)`` at unlikely steps, 0 at the others (SPO-chain).

    ``extras["cut"]`` [batch, step] bool marks the first steps of the segments, ``extras["state_value"]`` [batch, step]
    holds V of the state before those steps (and anything elsewhere). The last segment ends with the outcome, the sum of
    the row's rewards. What lies before the first cut has no start value and gets no credit; to credit it, cut at the
    first step, where V is the value of the prompt.

    Sets ``extras["kept"]`` [batch, step] to the steps that get credit, which alone should enter the loss: those with
    ``pi_old(a_t | s_t) < threshold`` at or behind a cut. With none, all advantages are 0.

    Attributes:
        threshold: rho; anything above 1 keeps every step.
        whiten: bring A to mean 0 and variance 1 over the kept steps, as the authors' code does.

    Raises:
        ValueError: a missing extra, or threshold <= 0.
    """

    threshold: float = 0.9
    whiten: bool = True

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def __call__(self, batch: Trajectories) -> Trajectories:
        cut = required_extra(batch, "cut", self) & batch.mask
        value = required_extra(batch, "state_value", self)
        begin = latest(cut)
        outcome = outcomes(batch.reward, batch.mask).unsqueeze(1)
        difference = torch.cat([value, outcome], 1).gather(1, following(cut)) - value.gather(1, begin.clamp(min=0))
        kept = unlikely(batch.log_prob, batch.mask, self.threshold) & (begin >= 0)
        advantage = whitened(difference, kept) if self.whiten else torch.where(kept, difference, 0.0)
        return with_advantage(batch.replace(extras={**batch.extras, "kept": kept}), advantage)


def _check_threshold(threshold: float) -> None:
    if not threshold > 0:
        raise ValueError(f"threshold = {threshold}; valid: a positive probability, or more than 1 for every step")
