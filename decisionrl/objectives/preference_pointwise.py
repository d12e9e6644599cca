"""Preferences about single sequences: each is desirable or not, whatever it was compared with (KTO, BCO)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from decisionrl.experience.preferences import PreferenceBatch
from decisionrl.experience.trajectories import Trajectories
from decisionrl.learner import Loss, Stateful
from decisionrl.objectives.policy_gradient import Evaluates
from decisionrl.objectives.preference import ordered, outcomes
from decisionrl.objectives.preference_adaptive import RunningMoments
from decisionrl.objectives.preference_scores import Sequences, SequenceScore, weighted_mean
from decisionrl.reference import Reference


@dataclass(frozen=True, kw_only=True)
class LabelledBatch:
    """Sequences that somebody judged one by one, such as episodes with or without success.

    Attributes:
        segments: [n, t].
        label: the probability that the sequence is desirable, [n].
        weight: in the mean, [n]; 0 for one that does not count. None: 1.
        mismatched: starts with actions that belong to other starts, [m, t], which tell how far the policy is from the
            reference; for :class:`MismatchedShift`.
    """

    segments: Trajectories
    label: Float[Tensor, " n"]
    weight: Float[Tensor, " n"] | None = None
    mismatched: Trajectories | None = None


class PointLink(Protocol):
    """The losses of every sequence if it is desirable and if it is not, [n] each."""

    def __call__(self, score: Float[Tensor, " n"], shift: Tensor | float, /) -> tuple[Tensor, Tensor]: ...


class Shift(Protocol):
    """What scores are compared with, without a graph; ``scored`` gives the scores of other sequences."""

    def __call__(
        self, score: Tensor, weight: Tensor, mismatched: Trajectories | None, scored: Callable[[Trajectories], Tensor]
    ) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Prospect:
    """KTO (arXiv 2402.01306): ``desirable (1 - sigmoid(S - z))`` and ``undesirable (1 - sigmoid(z - S))``."""

    desirable: float = 1.0
    undesirable: float = 1.0

    def __call__(self, score: Tensor, shift: Tensor | float) -> tuple[Tensor, Tensor]:
        return self.desirable * (shift - score).sigmoid(), self.undesirable * (score - shift).sigmoid()


@dataclass(frozen=True)
class Classifier:
    """BCO (arXiv 2404.04656): ``-log sigmoid(S - delta)`` and ``-log sigmoid(delta - S)``."""

    def __call__(self, score: Tensor, shift: Tensor | float) -> tuple[Tensor, Tensor]:
        return softplus(shift - score), softplus(score - shift)


@dataclass(frozen=True)
class MismatchedShift:
    """KTO's z: the mean score of mismatched sequences, at least 0."""

    def __call__(
        self, score: Tensor, weight: Tensor, mismatched: Trajectories | None, scored: Callable[[Trajectories], Tensor]
    ) -> Tensor:
        if mismatched is None:
            raise ValueError(
                "mismatched = None; valid: Trajectories, or an objective with shift = None, which is z = 0"
            )
        with torch.no_grad():
            return scored(mismatched).mean().clamp(min=0)


class RunningShift:
    """BCO's delta: the mean of all scores so far, those of the batch included; moves only while gradients are on."""

    def __init__(self) -> None:
        self.moments = RunningMoments(momentum=None)

    def __call__(
        self, score: Tensor, weight: Tensor, mismatched: Trajectories | None, scored: Callable[[Trajectories], Tensor]
    ) -> Tensor:
        if torch.is_grad_enabled():
            self.moments.observe(score.detach(), weight)
        return self.moments.mean.to(score)

    def state_dict(self) -> dict[str, Any]:
        return self.moments.state_dict()

    def load_state_dict(self, state: Any, /) -> None:
        self.moments.load_state_dict(state)


@dataclass(frozen=True, kw_only=True)
class PointwisePreference:
    """``mean_i w_i [p desirable(S_i - z) + (1 - p) undesirable(S_i - z)]``, p being the label.

    Of a :class:`~decisionrl.experience.preferences.PreferenceBatch` every sequence is one example for each pair it is
    in, desirable where it is preferred.

    Attributes:
        score: S.
        link: the two losses.
        shift: z; None is 0.
        reference: of relative scores.
    """

    score: SequenceScore
    link: PointLink
    shift: Shift | None = None
    reference: Reference[Any] | None = None

    def __call__(self, policy: Evaluates, batch: LabelledBatch | PreferenceBatch) -> Loss:
        sequences = Sequences.evaluated(policy, batch.segments, self.reference)
        labelled = batch if isinstance(batch, LabelledBatch) else _examples(batch, sequences)
        label = labelled.label.to(sequences.log_prob)
        weight = torch.ones_like(label) if labelled.weight is None else labelled.weight.to(label)
        score = torch.where(weight > 0, self.score.of(sequences), 0.0)

        def scored(others: Trajectories) -> Tensor:
            return self.score.of(Sequences.evaluated(policy, others, self.reference))

        shift = 0.0 if self.shift is None else self.shift(score, weight, labelled.mismatched, scored)
        desirable, undesirable = self.link(score, shift)
        loss = weighted_mean(label * desirable + (1 - label) * undesirable, weight)
        seen = score.detach()
        metrics = {
            "preference_loss": loss.detach(),
            "desirable_score": weighted_mean(seen, weight * label),
            "undesirable_score": weighted_mean(seen, weight * (1 - label)),
            "shift": torch.as_tensor(shift, dtype=seen.dtype, device=seen.device),
        }
        return Loss(loss, metrics)

    def components(self) -> dict[str, Stateful]:
        """What has state across batches, to be named in the learner's ``components``."""
        named: dict[str, Stateful] = {}
        if self.reference is not None:
            named["reference"] = self.reference
        if isinstance(self.shift, RunningShift):
            named["preference_shift"] = self.shift
        return named


def _examples(batch: PreferenceBatch, sequences: Sequences) -> LabelledBatch:
    won, lost = outcomes(ordered(batch, sequences))
    weight = won + lost
    return LabelledBatch(segments=batch.segments, label=won / torch.where(weight > 0, weight, 1.0), weight=weight)
