"""From the log-probabilities of steps to the scores of sequences that preferences compare.

The score of a sequence y with own steps t is ``S(y) = kappa g(sum_t w_t (log pi_t - b_t))``: b is 0 or a reference's
log-probability, w discounts, averages or weighs, and g is the identity or one of the transforms below. A sequence is
a segment of control or a completion of a language model, whose prompt the mask leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from decisionrl.experience.trajectories import Trajectories
from decisionrl.objectives.policy_gradient import Evaluates
from decisionrl.reference import Reference

REFERENCE = "reference_log_prob"
"""The key in ``extras`` of the reference's log-probabilities [sequences, steps], where they were worked out before."""

EXPONENT_LIMIT = 80.0
"""Exponents of the power transform are bounded by this, so that float32 does not overflow."""


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """The sequences of a batch under the policy.

    Only what has no graph is cached: a part that looks at log-ratios without gradients must not cut those of others.

    Attributes:
        segments: [n, t].
        log_prob: log pi of every step, 0 at steps that do not count, [n, t].
        reference: gives log-probabilities to those who ask, unless ``segments.extras`` holds them; None without.
    """

    segments: Trajectories
    log_prob: Float[Tensor, "n t"]
    reference: Reference[Any] | None = None

    @classmethod
    def evaluated(cls, policy: Evaluates, segments: Trajectories, reference: Reference[Any] | None) -> Sequences:
        """Evaluate the policy, once."""
        log_prob = _own_steps(segments, policy.evaluate(segments).log_prob)
        return cls(segments=segments, log_prob=log_prob, reference=reference)

    @cached_property
    def length(self) -> Float[Tensor, " n"]:
        """How many steps of each count."""
        if self.segments.complete:
            return self.log_prob.new_full((len(self.log_prob),), self.log_prob.shape[1])
        return self.segments.mask.sum(1).to(self.log_prob.dtype)

    @cached_property
    def number(self) -> Int[Tensor, "n t"]:
        """The number of every own step within its sequence, from 0; other steps have no meaning."""
        if self.segments.complete:
            return torch.arange(self.log_prob.shape[1], device=self.log_prob.device).expand(self.log_prob.shape)
        return self.segments.mask.cumsum(1) - 1

    @property
    def total(self) -> Float[Tensor, " n"]:
        """L(y) = sum_t log pi_t."""
        return self.log_prob.sum(1)

    @cached_property
    def reference_log_prob(self) -> Float[Tensor, "n t"]:
        """log ref of every step, 0 at those that do not count; without a graph.

        Raises:
            ValueError: there is no reference.
        """
        if REFERENCE in self.segments.extras:
            return self.extra(REFERENCE).detach()
        if self.reference is None:
            raise ValueError(
                f"reference = None; valid: a Reference, or its log-probabilities in segments.extras[{REFERENCE!r}]"
            )
        with torch.no_grad():
            return _own_steps(self.segments, self.reference.module.evaluate(self.segments).log_prob)

    @property
    def log_ratio(self) -> Float[Tensor, "n t"]:
        """log pi - log ref of every step."""
        return self.log_prob - self.reference_log_prob

    @property
    def total_log_ratio(self) -> Float[Tensor, " n"]:
        """rho(y) = sum_t log pi_t - log ref_t."""
        return self.log_ratio.sum(1)

    def mean(self, steps: Float[Tensor, "n t"]) -> Float[Tensor, " n"]:
        """Over the steps that count; ``steps`` are 0 elsewhere, and so is the mean of a sequence without any."""
        return steps.sum(1) / self.length.clamp(min=1)

    def extra(self, name: str) -> Tensor:
        """``segments.extras[name]``, [n] or [n, t] with 0 at steps that do not count.

        Raises:
            ValueError: there is none.
        """
        if name not in self.segments.extras:
            raise ValueError(f"segments.extras has {sorted(self.segments.extras)}; valid: one with {name!r}")
        value = self.segments.extras[name].to(self.log_prob)
        return value if value.dim() == 1 else _own_steps(self.segments, value)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of sequences in the order in which they are preferred.

    Attributes:
        sequences: what the pairs point into.
        chosen, rejected: rows of it, [pairs]; of a tie, the first and the second.
        confidence: the probability that ``chosen`` is preferred, [pairs], at least 1/2 unless ``swapped``.
        weight: in the mean, [pairs]; 0 for a pair that does not count.
        teacher: the teacher's score of each sequence, [n]; None if nobody said.
    """

    sequences: Sequences
    chosen: Int[Tensor, " pairs"]
    rejected: Int[Tensor, " pairs"]
    confidence: Float[Tensor, " pairs"]
    weight: Float[Tensor, " pairs"]
    teacher: Float[Tensor, " n"] | None = None

    @property
    def strict(self) -> Float[Tensor, " pairs"]:
        """The weight of pairs that are no tie, 0 for ties."""
        return torch.where(self.confidence == 0.5, 0.0, self.weight)

    def swapped(self) -> Pairs:
        """The same pairs, the other one being preferred."""
        return Pairs(
            sequences=self.sequences,
            chosen=self.rejected,
            rejected=self.chosen,
            confidence=1 - self.confidence,
            weight=self.weight,
            teacher=self.teacher,
        )

    def of(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Those [n, ...] of the chosen and of the rejected sequences, [pairs, ...] each."""
        return values.index_select(0, self.chosen), values.index_select(0, self.rejected)

    def difference(self, values: Tensor) -> Tensor:
        """Chosen minus rejected, [pairs]."""
        chosen, rejected = self.of(values)
        return chosen - rejected


class PairScore(Protocol):
    """The scores of the chosen and of the rejected sequences, [pairs] each; to swap the pairs swaps the scores.

    What treats the two differently is a margin.
    """

    def __call__(self, pairs: Pairs, /) -> tuple[Tensor, Tensor]: ...


Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class SequenceScore:
    """``S(y) = scale * transform(sum_t w_t (log pi_t - b_t))``.

    Attributes:
        scale: kappa; beta of DPO (arXiv 2305.18290), alpha of CPL (arXiv 2310.13639).
        relative: b = log ref; else b = 0.
        normalized: w_t = 1 / |y|, with |y| the number of steps that count (SimPO, arXiv 2405.14734).
        discount: w_t = gamma^t, t the number of the step among those that count (CPL, eq. 5).
        step_weight: the key in ``extras`` of more weights, [n, t].
        length_bonus: added to the score for every step that counts (R-DPO, arXiv 2403.19159).
        transform: g.
    """

    scale: float = 1.0
    relative: bool = False
    normalized: bool = False
    discount: float = 1.0
    step_weight: str | None = None
    length_bonus: float = 0.0
    transform: Transform | None = None

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale = {self.scale}; valid: above 0")
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount = {self.discount}; valid: in (0, 1]")

    def __call__(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return pairs.of(self.of(pairs.sequences))

    def of(self, sequences: Sequences) -> Float[Tensor, " n"]:
        """S of every sequence."""
        steps = sequences.log_ratio if self.relative else sequences.log_prob
        if self.discount != 1:
            steps = steps * self.discount ** sequences.number.to(steps)
        if self.step_weight is not None:
            steps = steps * sequences.extra(self.step_weight)
        total = sequences.mean(steps) if self.normalized else steps.sum(1)
        if self.transform is not None:
            total = self.transform(total)
        if self.length_bonus:
            return torch.add(self.length_bonus * sequences.length, total, alpha=self.scale)
        return self.scale * total


@dataclass(frozen=True, kw_only=True)
class LengthDesensitized:
    """LD-DPO (arXiv 2409.06411): ``S = scale (sum_{t <= l} x_t + alpha sum_{t > l} x_t)``, x = log pi - log ref.

    l is the length of the shorter sequence of the pair; alpha = 1 is DPO.
    """

    scale: float = 0.1
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha = {self.alpha}; valid: in [0, 1]")

    def __call__(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        chosen, rejected = pairs.of(pairs.sequences.length)
        shared = torch.minimum(chosen, rejected).unsqueeze(1)
        ratios, numbers = pairs.of(pairs.sequences.log_ratio), pairs.of(pairs.sequences.number)
        first, second = (
            self.scale * torch.where(number < shared, ratio, self.alpha * ratio).sum(1)
            for ratio, number in zip(ratios, numbers, strict=True)
        )
        return first, second


@dataclass(frozen=True, kw_only=True)
class Transported:
    """AOT (arXiv 2406.05882): the k-th smallest value of one kind is compared with the k-th smallest of the other.

    paired: L(chosen) - L(rejected) of the policy against that of the reference, over the batch; else rho(chosen)
    against rho(rejected), which does not ask what was paired with what. Both are DPO for a single pair. A pair counts
    fully or not at all here: nothing is read of its weight but whether it is 0.
    """

    scale: float = 0.1
    paired: bool = True

    def __call__(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        sequences = pairs.sequences
        if self.paired:
            values = pairs.difference(sequences.total)
            others = pairs.difference(sequences.reference_log_prob.sum(1))
        else:
            values, others = pairs.of(sequences.total_log_ratio)
        counts = pairs.weight > 0
        rank = torch.where(counts, values.detach(), torch.inf).argsort().argsort()
        matched = torch.where(counts, others, torch.inf).sort().values[rank]
        return self.scale * values, self.scale * torch.where(counts, matched, 0.0)


@dataclass(frozen=True)
class Power:
    """``g(x) = (exp(k x) - 1) / k``, and x at k = 0; the exponent is bounded by EXPONENT_LIMIT.

    f-DPO (arXiv 2309.16240) up to a constant: k = 0 is the reverse KL, k = -1 the forward KL, k = alpha - 1 the alpha
    divergence. AlphaPO (arXiv 2501.03884), ``(1 - p^-alpha) / alpha``: k = -alpha.
    """

    exponent: float

    def __call__(self, x: Tensor) -> Tensor:
        if self.exponent == 0:
            return x
        return (self.exponent * x).clamp(max=EXPONENT_LIMIT).expm1() / self.exponent


def jensen_shannon(x: Tensor) -> Tensor:
    """``g(x) = log sigmoid(x)``, f-DPO with the Jensen-Shannon divergence, up to a constant."""
    return logsigmoid(x)


def log_odds(x: Tensor) -> Tensor:
    """``g(x) = log(p / (1 - p))``, ``p = exp(x)`` (ORPO, arXiv 2403.07691).

    Raises:
        ValueError: some x >= 0, so that p is no probability below 1.
    """
    if (x >= 0).any():
        raise ValueError(
            f"mean log-probability = {float(x.detach().max())}; valid: below 0 (odds need probabilities of discrete "
            "actions, not densities of continuous ones)"
        )
    middle = -math.log(2)
    near = torch.log(-torch.expm1(x.clamp(min=middle)))  # each branch sees only where it is accurate and finite
    far = torch.log1p(-torch.exp(x.clamp(max=middle)))
    return x - torch.where(x > middle, near, far)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """``sum(w v) / sum(w)`` over those with w > 0; 0 if there are none."""
    total = weight.sum()
    return torch.where(weight > 0, weight * values, 0.0).sum() / torch.where(total > 0, total, 1.0)


def _own_steps(segments: Trajectories, steps: Tensor) -> Tensor:
    return steps if segments.complete else torch.where(segments.mask, steps, 0.0)
