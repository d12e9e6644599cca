"""Parts of preference losses that look at the batch or remember earlier ones: margins, pair weights, statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.objectives.preference_scores import Pairs, PairScore, weighted_mean


class Margin(Protocol):
    """What the score of the chosen sequence must be ahead by, [pairs]; may treat the two sequences differently."""

    def __call__(self, pairs: Pairs, /) -> Float[Tensor, " pairs"]: ...


class PairWeight(Protocol):
    """A factor on the loss of every pair, [pairs]; called without gradients."""

    def __call__(self, pairs: Pairs, /) -> Float[Tensor, " pairs"]: ...


@dataclass(frozen=True, kw_only=True)
class ExtraMargin:
    """``weight (e+ - e-)`` with e = ``extras[key]`` [n], such as another objective's reward."""

    key: str
    weight: float = 1.0

    def __call__(self, pairs: Pairs) -> Tensor:
        return self.weight * pairs.difference(pairs.sequences.extra(self.key))


@dataclass(frozen=True, kw_only=True)
class TeacherMargin:
    """ODPO (arXiv 2402.10571): ``alpha log |score+ - score-|`` of the batch's teacher; 0 for equal scores."""

    alpha: float = 1.0

    def __call__(self, pairs: Pairs) -> Tensor:
        if pairs.teacher is None:
            raise ValueError("batch.score = None; valid: a teacher's score of every sequence")
        distance = pairs.difference(pairs.teacher).abs()
        return self.alpha * torch.where(distance > 0, distance, 1.0).log()


@dataclass(frozen=True, kw_only=True)
class LikelihoodMargin:
    """DPOP (arXiv 2402.13228): ``beta lambda max(0, L_ref(chosen) - L(chosen))``."""

    beta: float
    strength: float

    def __call__(self, pairs: Pairs) -> Tensor:
        chosen, _ = pairs.of(pairs.sequences.total_log_ratio)
        return self.beta * self.strength * (-chosen).relu()


@dataclass(frozen=True, kw_only=True)
class SequentialKLMargin:
    """TDPO (arXiv 2404.11999): ``beta alpha (K- - K+)`` with ``K = sum_t KL(ref || pi)`` at each state of a sequence.

    The KL of every step stands in ``extras[key]`` [n, t] and has the policy's graph if it is to be trained through.
    detached: no gradient passes K+, as in TDPO2; TDPO1 has alpha = 1 and passes it.
    """

    beta: float
    alpha: float = 1.0
    detached: bool = True
    key: str = "forward_kl"

    def __call__(self, pairs: Pairs) -> Tensor:
        chosen, rejected = pairs.of(pairs.sequences.extra(self.key).sum(1))
        return self.beta * self.alpha * (rejected - (chosen.detach() if self.detached else chosen))


@dataclass(frozen=True, kw_only=True)
class PolicyLikelihood:
    """WPO (arXiv 2406.11827): ``min(1, w(chosen) w(rejected))``, ``w = exp(mean_t log pi_t - log sum_v p_v^2)``.

    The weights say how likely the current policy would have been to write the pair. ``extras[key]`` [n, t] holds
    log sum_v p_v^2 at every step; key = None leaves it out.
    """

    key: str | None = "log_expected_prob"

    def __call__(self, pairs: Pairs) -> Tensor:
        sequences = pairs.sequences
        steps = sequences.log_prob.detach()
        if self.key is not None:
            steps = steps - sequences.extra(self.key).detach()
        chosen, rejected = pairs.of(sequences.mean(steps))
        return (chosen + rejected).clamp(max=0).exp()


class RunningMoments:
    """A mean and a standard deviation over batches, that of a batch counting before it is used.

    Args:
        momentum: m in ``value <- m value + (1 - m) of the batch``, the first batch setting it; None weighs all that
            was ever seen alike.

    Attributes:
        mean, deviation: so far; 0 and 1 before the first batch.
    """

    def __init__(self, momentum: float | None = 0.9) -> None:
        if momentum is not None and not 0 <= momentum < 1:
            raise ValueError(f"momentum = {momentum}; valid: in [0, 1), or None")
        self.momentum = momentum
        self.mean, self.deviation, self._seen = torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.0)

    @torch.no_grad()
    def observe(self, values: Float[Tensor, " n"], weight: Float[Tensor, " n"]) -> None:
        """Take in a batch; one without weight changes nothing."""
        self.mean, self.deviation, self._seen = (each.to(values) for each in (self.mean, self.deviation, self._seen))
        total = weight.sum()
        mean = weighted_mean(values, weight)
        deviation = weighted_mean((values - mean).square(), weight).sqrt()
        if self.momentum is None:
            rate = total / (self._seen + total).clamp(min=torch.finfo(values.dtype).tiny)
        else:
            rate = torch.where(self._seen > 0, 1 - self.momentum, 1.0).to(values) * (total > 0)
        self.mean = self.mean.lerp(mean, rate)
        self.deviation = self.deviation.lerp(deviation, rate)
        self._seen = self._seen + total

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "deviation": self.deviation, "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.mean, self.deviation, self._seen = state["mean"], state["deviation"], state["seen"]


class GapStatistics:
    """Running moments of ``rho(chosen) - rho(rejected)`` over the pairs that are no tie.

    normalized: of the means over steps instead of the sums.
    """

    def __init__(self, *, normalized: bool = False, momentum: float = 0.9) -> None:
        self.normalized = normalized
        self.moments = RunningMoments(momentum)

    @torch.no_grad()
    def gap(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        """Of these pairs."""
        sequences = pairs.sequences
        ratio = sequences.mean(sequences.log_ratio) if self.normalized else sequences.total_log_ratio
        return pairs.difference(ratio)

    def standardized(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        """The pairs' gaps, less the running mean, over the running deviation."""
        return (self.gap(pairs) - self.moments.mean) / (self.moments.deviation + 1e-8)

    def observe(self, pairs: Pairs) -> None:
        """Take in a batch."""
        self.moments.observe(self.gap(pairs), pairs.strict)

    def state_dict(self) -> dict[str, Any]:
        return self.moments.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.moments.load_state_dict(state)


@dataclass(frozen=True, kw_only=True)
class AdaptiveMargin:
    """alpha-DPO (arXiv 2410.10148): ``beta alpha z`` with z the standardized gap of mean log-ratios, detached."""

    statistics: GapStatistics
    beta: float
    alpha: float

    def __call__(self, pairs: Pairs) -> Tensor:
        return self.beta * self.alpha * self.statistics.standardized(pairs)


@dataclass(frozen=True, kw_only=True)
class DynamicScale:
    """beta-DPO (arXiv 2407.08639): the scores times ``max(floor, 1 + alpha (mean gap - M))``.

    M is the running mean, the mean gap that of the batch's pairs which count and are no tie.
    """

    score: PairScore
    statistics: GapStatistics
    alpha: float
    floor: float

    def __call__(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        mean = weighted_mean(self.statistics.gap(pairs), pairs.strict)
        factor = (1 + self.alpha * (mean - self.statistics.moments.mean)).clamp(min=self.floor)
        chosen, rejected = self.score(pairs)
        return factor * chosen, factor * rejected


class GuidedSelection:
    """beta-DPO's filter (arXiv 2407.08639): a share of the pairs, drawn without replacement with
    probabilities in proportion to ``exp(-z^2 / 2)``, z being their standardized gap.

    Args:
        statistics: where z is from.
        kept: the share, rounded down to a whole number of pairs, at least one.
        generator: on the CPU; its state is saved with the component.
    """

    def __init__(self, statistics: GapStatistics, *, kept: float, generator: torch.Generator) -> None:
        if not 0 < kept <= 1:
            raise ValueError(f"kept = {kept}; valid: in (0, 1]")
        self.statistics, self.kept = statistics, kept
        self._generator = generator

    @torch.no_grad()
    def __call__(self, pairs: Pairs) -> Float[Tensor, " pairs"]:
        """The pairs' weights, 0 for those that are left out."""
        counts = pairs.weight > 0
        z = self.statistics.standardized(pairs)
        uniform = torch.rand(len(z), generator=self._generator, dtype=torch.float64).to(z)
        gumbel = -(-uniform.clamp(min=torch.finfo(z.dtype).tiny).log()).log()
        key = torch.where(counts, gumbel - z.square() / 2, -math.inf)
        place = key.argsort(descending=True).argsort()
        return torch.where(place < (self.kept * counts.sum()).floor().clamp(min=1), pairs.weight, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._generator.set_state(state["generator"])
