"""Behavior cloning: the log-likelihood of recorded actions, of all of them or of what somebody preferred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.experience.preferences import PreferenceBatch
from decisionrl.experience.trajectories import Trajectories
from decisionrl.learner import Loss

Which = Literal["all", "preferred"]


@dataclass(frozen=True, kw_only=True)
class BehaviorCloning:
    """``-mean log pi(a_t | s_t)`` over the valid steps; supervised fine-tuning for a preference method.

    which: of a PreferenceBatch, "all" clones every segment once; "preferred" clones of each pair the segment that is
        preferred, and both of a tie (as in the baseline SFT of arXiv 2310.13639), pairs counting by their weight.
    weight: the name of the ``extras`` [batch, step] that multiply each step's log-likelihood; the mean is still over
        the number of steps.

    Raises:
        ValueError: another ``which``, one that the batch has no preferences for, or extras that are not there.
    """

    which: Which = "all"
    weight: str | None = None

    def __post_init__(self) -> None:
        if self.which not in get_args(Which):
            raise ValueError(f"which = {self.which!r}; valid: {', '.join(get_args(Which))}")

    def __call__(self, policy: Any, batch: Trajectories | PreferenceBatch, /) -> Loss:
        segments = batch.segments if isinstance(batch, PreferenceBatch) else batch
        times = segments.mask
        if self.which == "preferred":
            if not isinstance(batch, PreferenceBatch):
                raise ValueError("which = 'preferred'; valid with a PreferenceBatch, not with Trajectories")
            count = preferred_count(batch)[:, None]
            segments = segments.replace(mask=segments.mask & (count > 0))
            times = segments.mask * count
        log_prob = torch.where(segments.mask, policy.evaluate(segments).log_prob, 0.0)
        steps = torch.where(times.any(), times.sum(), 1)
        mean = (times * log_prob).sum() / steps
        weighted = mean if self.weight is None else (times * _weighted(log_prob, segments, self.weight)).sum() / steps
        return Loss(-weighted, {"log_prob": mean})


def _weighted(log_prob: Tensor, segments: Trajectories, name: str) -> Float[Tensor, "batch step"]:
    if name not in segments.extras:
        raise ValueError(f"weight = {name!r}; valid: one of the extras, {sorted(segments.extras)}")
    return torch.where(segments.mask, segments.extras[name], 0.0) * log_prob


def preferred_count(batch: PreferenceBatch) -> Float[Tensor, " sequences"]:
    """In how many pairs, each counted by its weight, a segment is the preferred one or one of a tie."""
    weight = torch.ones_like(batch.label) if batch.weight is None else batch.weight
    count = torch.zeros(batch.segments.num_sequences, dtype=weight.dtype, device=weight.device)
    count = count.index_add(0, batch.second, weight * (batch.label >= 0.5))
    return count.index_add(0, batch.first, weight * (batch.label <= 0.5))
