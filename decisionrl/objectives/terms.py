"""What the parts of a policy-gradient objective see of a minibatch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.policies.evaluation import Evaluation

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to plus and minus this before they are exponentiated."""


@dataclass(frozen=True)
class Terms:
    """A minibatch under the current policy. Only ``evaluation`` and what follows from it have a graph.

    Attributes:
        evaluation: of the current policy.
        batch: as the source prepared it.
        advantage: A [batch, step], normalized if the objective does so.
        mask: the steps that count, [batch, step]; a part of ``batch.mask``.
    """

    evaluation: Evaluation
    batch: Trajectories
    advantage: Float[Tensor, "batch step"]
    mask: Bool[Tensor, "batch step"]

    @property
    def selection(self) -> Bool[Tensor, "batch step"] | None:
        """The mask, or None where it is known that all steps count, which saves the masking."""
        return None if self.batch.complete and self.mask is self.batch.mask else self.mask

    @cached_property
    def log_prob(self) -> Float[Tensor, "batch step"]:
        """log pi(a_t | s_t) of the current policy; 0 at steps that are not the policy's own.

        No gradient passes there, so that NaN at such a step stays where it is.
        """
        log_prob = self.evaluation.log_prob
        return log_prob if self.batch.complete else torch.where(self.batch.mask, log_prob, 0.0)

    @property
    def old_log_prob(self) -> Float[Tensor, "batch step"]:
        """The same at collection, with whatever stands at steps that are not the policy's own."""
        return self.batch.log_prob

    @cached_property
    def log_ratio(self) -> Float[Tensor, "batch step"]:
        """log pi - log pi_old, clamped."""
        return (self.log_prob - self.old_log_prob).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

    @cached_property
    def ratio(self) -> Float[Tensor, "batch step"]:
        """r = pi / pi_old."""
        return self.log_ratio.exp()

    @property
    def entropy(self) -> Float[Tensor, "batch step"]:
        """H of the current policy, without a graph.

        Raises:
            ValueError: the policy's entropy has no closed form.
        """
        if self.evaluation.entropy is None:
            raise ValueError("this method needs the entropy of the policy, which has none in closed form")
        return self.evaluation.entropy.detach()

    def detach(self) -> Terms:
        """The same without a graph, for what weighs, filters and reports. The head, if any, keeps its own."""
        current = self.evaluation
        entropy = None if current.entropy is None else current.entropy.detach()
        value = None if current.value is None else current.value.detach()
        evaluation = Evaluation(current.log_prob.detach(), entropy, value, current.head)
        return Terms(evaluation, self.batch, self.advantage, self.mask)


class Surrogate(Protocol):
    """A loss for every step, to minimize; at r = 1 its gradient is that of ``-A log pi``.

    What decides about clipping is computed without a graph. Values where ``terms.mask`` is False do not matter,
    but must not disturb others: statistics over a batch leave them out.
    """

    def __call__(self, terms: Terms, /) -> Float[Tensor, "batch step"]: ...

    def metrics(self, terms: Terms, /) -> dict[str, Tensor]:
        """Scalars to report, such as the share of clipped steps; called without gradients, on detached terms."""
        ...


class StepWeight(Protocol):
    """A factor [batch, step] on the surrogate's loss; called without gradients, on detached terms."""

    def __call__(self, terms: Terms, /) -> Float[Tensor, "batch step"]: ...


class StepFilter(Protocol):
    """Which of ``terms.mask``'s steps are kept; the others count as if they were padding.

    Called without gradients, on detached terms.
    """

    def __call__(self, terms: Terms, /) -> Bool[Tensor, "batch step"]: ...


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the steps of the mask, over all if it is None; 0 if there are none."""
    if mask is None:
        return values.mean()
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def sequence_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over each sequence's steps of the mask, [batch, 1]; 0 for a sequence without any."""
    if mask is None:
        return values.mean(1, keepdim=True)
    return torch.where(mask, values, 0.0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def masked_quantile(values: Tensor, mask: Tensor, level: float) -> Float[Tensor, ""]:
    """The element with index ``round(level (n - 1))`` of the mask's n values in order; infinity if there are none."""
    ordered = torch.where(mask, values, torch.inf).flatten().sort().values
    index = (level * (mask.sum() - 1)).round().clamp(min=0).long()
    return ordered.take(index)
