"""The pairwise preference loss: CPL, DPO and their relatives as one objective with settings.

``preference_methods.METHODS`` names the settings of published methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.experience.preferences import PreferenceBatch
from decisionrl.learner import Loss, Stateful
from decisionrl.objectives.policy_gradient import Evaluates
from decisionrl.objectives.preference_adaptive import GapStatistics, GuidedSelection, Margin, PairWeight
from decisionrl.objectives.preference_links import Link, Logistic, Scores
from decisionrl.objectives.preference_scores import Pairs, PairScore, Sequences, weighted_mean
from decisionrl.reference import Reference

Reduction = Literal["pairs", "legacy_nonzero"]
Average = Literal["steps", "sequences", "sums"]


class Term(Protocol):
    """A scalar that is added to the loss."""

    def __call__(self, pairs: Pairs, /) -> Float[Tensor, ""]: ...


@dataclass(frozen=True, kw_only=True)
class PairwisePreference:
    """``coefficient * mean_i w_i [q l(S+, S-) + (1 - q) l(S-, S+)] + terms``.

    Each pair is put in the order in which its label says it is preferred; q is how sure the label is, so that a tie
    is the average of both orders. A pair of weight 0 does not count, and where none counts the loss is 0. The policy
    is evaluated once on all sequences.

    Attributes:
        score: S, of sequences in pairs.
        link: l.
        bias: lambda in [0, 1], which multiplies the score of the one that is not preferred (CPL, arXiv 2310.13639,
            eq. 6).
        margin: by how much S+ must be ahead.
        margins: more of it, each a function of the pairs.
        smoothing: eps in [0, 1/2); labels are taken to be wrong so often: ``q <- (1 - eps) q + eps (1 - q)``.
        correction: eps in [0, 1/2); the unbiased loss under labels that are flipped so often:
            ``q <- (q - eps) / (1 - 2 eps)`` (arXiv 2403.00409). It undoes ``smoothing`` with the same eps.
        weights: factors on the loss of each pair.
        coefficient: of the pair loss.
        terms: more losses by the name under which they are reported.
        reduction: "pairs" is the mean over the pairs. "legacy_nonzero" leaves out those whose loss vanishes beside 1
            in float32 (a logistic gap beyond 16.6), as CPL's release does, so that settled pairs do not dilute it.
        reference: of relative scores. ``segments.extras["reference_log_prob"]`` [sequences, steps] goes first.
        statistics: running moments that other parts look at; observed before use, and only while gradients are on.
        selection: which pairs of a training batch are used.

    Raises:
        ValueError: a setting is out of its range; a bias or margin beside a link that looks at single scores.
    """

    score: PairScore
    link: Link = field(default_factory=Logistic)
    bias: float = 1.0
    margin: float = 0.0
    margins: Sequence[Margin] = ()
    smoothing: float = 0.0
    correction: float = 0.0
    weights: Sequence[PairWeight] = ()
    coefficient: float = 1.0
    terms: Mapping[str, Term] = field(default_factory=dict)
    reduction: Reduction = "pairs"
    reference: Reference[Any] | None = None
    statistics: GapStatistics | None = None
    selection: GuidedSelection | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.bias <= 1:
            raise ValueError(f"bias = {self.bias}; valid: in [0, 1]")
        for name in ("smoothing", "correction"):
            if not 0 <= (value := getattr(self, name)) < 0.5:
                raise ValueError(f"{name} = {value}; valid: in [0, 0.5)")
        if self.reduction not in get_args(Reduction):
            raise ValueError(f"reduction = {self.reduction!r}; valid: {', '.join(get_args(Reduction))}")
        if self.link.absolute and (self.bias != 1 or self.margin or self.margins):
            raise ValueError(
                f"bias = {self.bias}, margin = {self.margin}, {len(self.margins)} margins; valid with "
                f"{type(self.link).__name__}, which looks at single scores: 1, 0 and none"
            )

    def __call__(self, policy: Evaluates, batch: PreferenceBatch) -> Loss:
        pairs = ordered(batch, Sequences.evaluated(policy, batch.segments, self.reference))
        if torch.is_grad_enabled():
            if self.statistics is not None:
                self.statistics.observe(pairs)
            if self.selection is not None:
                pairs = dataclasses.replace(pairs, weight=self.selection(pairs))
        counts = pairs.weight > 0
        chosen, rejected = (torch.where(counts, score, 0.0) for score in self.score(pairs))
        loss = self.coefficient * self._reduced(self._losses(pairs, chosen, rejected), pairs.weight)
        metrics = {"preference_loss": loss.detach(), **_metrics(pairs, chosen.detach(), rejected.detach())}
        for name, term in self.terms.items():
            value = term(pairs)
            metrics[name] = value.detach()
            loss = loss + value
        return Loss(loss, metrics)

    def components(self) -> dict[str, Stateful]:
        """What has state across batches, to be named in the learner's ``components``."""
        named = {
            "reference": self.reference,
            "preference_statistics": self.statistics,
            "preference_selection": self.selection,
        }
        return {name: component for name, component in named.items() if component is not None}

    def _losses(self, pairs: Pairs, chosen: Tensor, rejected: Tensor) -> Float[Tensor, " pairs"]:
        """Of every pair, both orders being weighed by how likely they are."""
        sure = pairs.confidence * (1 - 2 * self.smoothing) + self.smoothing
        sure = (sure - self.correction) / (1 - 2 * self.correction)
        losses = sure * self._loss(pairs, chosen, rejected) + (1 - sure) * self._loss(pairs.swapped(), rejected, chosen)
        for weight in self.weights:
            with torch.no_grad():
                factor = weight(pairs)
            losses = losses * factor
        return losses

    def _loss(self, pairs: Pairs, chosen: Tensor, rejected: Tensor) -> Float[Tensor, " pairs"]:
        """Of every pair in this order."""
        margin: Tensor | float = self.margin
        for more in self.margins:
            margin = margin + torch.where(pairs.weight > 0, more(pairs), 0.0)
        return self.link(Scores(pairs=pairs, chosen=chosen, rejected=rejected, bias=self.bias, margin=margin))

    def _reduced(self, losses: Tensor, weight: Tensor) -> Float[Tensor, ""]:
        if self.reduction == "legacy_nonzero":
            weight = torch.where(1 + losses.float() != 1, weight, 0.0)
        return weighted_mean(losses, weight)


@dataclass(frozen=True, kw_only=True)
class Cloning:
    """``weight * mean of -log pi``: behavior cloning beside the preference loss.

    Attributes:
        weight: of the term.
        of: "chosen" counts a sequence as often as it is preferred (half for each of a tie); "all" counts each once
            that is in a pair which counts.
        average: "steps" is the mean over all steps, "sequences" the mean over sequences of their means over steps,
            "sums" the mean over sequences of their sums.
    """

    weight: float = 1.0
    of: Literal["chosen", "all"] = "chosen"
    average: Average = "steps"

    def __post_init__(self) -> None:
        for name, value, valid in (("of", self.of, ("chosen", "all")), ("average", self.average, get_args(Average))):
            if value not in valid:
                raise ValueError(f"{name} = {value!r}; valid: {', '.join(valid)}")

    def __call__(self, pairs: Pairs) -> Tensor:
        sequences = pairs.sequences
        won, lost = outcomes(pairs)
        count = won if self.of == "chosen" else (won + lost > 0).to(won)
        if self.average == "sequences":
            return -self.weight * weighted_mean(sequences.mean(sequences.log_prob), count)
        total = torch.where(count > 0, count * sequences.total, 0.0).sum()
        over = (count * sequences.length).sum() if self.average == "steps" else count.sum()
        return -self.weight * total / torch.where(over > 0, over, 1.0)


def ordered(batch: PreferenceBatch, sequences: Sequences) -> Pairs:
    """The pairs of a batch, the likelier winner as ``chosen``."""
    label = batch.label.to(sequences.log_prob)
    second = label > 0.5
    return Pairs(
        sequences=sequences,
        chosen=torch.where(second, batch.second, batch.first),
        rejected=torch.where(second, batch.first, batch.second),
        confidence=torch.maximum(label, 1 - label),
        weight=torch.ones_like(label) if batch.weight is None else batch.weight.to(label),
        teacher=batch.score,
    )


def outcomes(pairs: Pairs) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """How often every sequence is preferred and how often it is not, by the pairs' weights; half each for a tie."""
    nobody = pairs.weight.new_zeros(len(pairs.sequences.log_prob))
    sure, unsure = pairs.weight * pairs.confidence, pairs.weight * (1 - pairs.confidence)
    won = nobody.index_add(0, pairs.chosen, sure).index_add(0, pairs.rejected, unsure)
    lost = nobody.index_add(0, pairs.rejected, sure).index_add(0, pairs.chosen, unsure)
    return won, lost


@torch.no_grad()
def _metrics(pairs: Pairs, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """``ties`` is the share of pairs that are; the others are means over the pairs that are none."""
    strict = pairs.strict
    total = strict.sum()
    named = {
        "accuracy": (chosen > rejected).to(chosen),
        "score_gap": chosen - rejected,
        "chosen_score": chosen,
        "rejected_score": rejected,
    }
    named["chosen_log_prob"], named["rejected_log_prob"] = pairs.of(pairs.sequences.total.detach())
    means = torch.where(strict > 0, torch.stack(list(named.values())), 0.0) @ strict / torch.where(total > 0, total, 1)
    every = pairs.weight.sum()
    ties = (every - total) / torch.where(every > 0, every, 1.0)
    return {**dict(zip(named, means.unbind(), strict=True)), "ties": ties}
