"""Preferences about whole rankings: the Plackett-Luce likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decisionrl.experience.preferences import PreferenceBatch
from decisionrl.learner import Loss, Stateful
from decisionrl.objectives.policy_gradient import Evaluates
from decisionrl.objectives.preference_scores import Sequences, SequenceScore
from decisionrl.reference import Reference


@dataclass(frozen=True, kw_only=True)
class PlackettLuce:
    """``-sum_k log(exp S_(k) / sum_{j >= k} exp S_(j))``, sequences sorted by ``batch.score``, best first.

    Source: arXiv 2310.13639, app. A.5. Two sequences are a logistic pair, one is 0. Sequences of equal score do not
    compete: each has in its denominator itself and those strictly worse, so that ties alone have loss 0. Sequences
    with equal ``segments.group`` are one list (all of them where there is no group); the loss is the mean over lists.

    Attributes:
        score: S.
        reference: of relative scores.
    """

    score: SequenceScore
    reference: Reference[Any] | None = None

    def __call__(self, policy: Evaluates, batch: PreferenceBatch) -> Loss:
        """
        Raises:
            ValueError: the batch has no scores.
        """
        if batch.score is None:
            raise ValueError("batch.score = None; valid: a teacher's score of every sequence")
        score = self.score.of(Sequences.evaluated(policy, batch.segments, self.reference))
        same = _same_list(batch.segments.group, score)
        worse = same & (batch.score.unsqueeze(0) < batch.score.unsqueeze(1))
        itself = torch.eye(len(score), dtype=torch.bool, device=score.device)
        competitors = torch.where(worse | itself, score.unsqueeze(0), -torch.inf)
        lists = (~(same & same.new_ones(same.shape).tril(-1)).any(1)).sum()
        loss = (competitors.logsumexp(1) - score).sum() / lists
        with torch.no_grad():
            right = (worse & (score.unsqueeze(0) < score.unsqueeze(1))).sum() / worse.sum().clamp(min=1)
        return Loss(loss, {"preference_loss": loss.detach(), "accuracy": right.to(score)})

    def components(self) -> dict[str, Stateful]:
        """What has state across batches, to be named in the learner's ``components``."""
        return {} if self.reference is None else {"reference": self.reference}


def _same_list(group: Tensor | None, score: Tensor) -> Tensor:
    if group is None:
        return torch.ones(len(score), len(score), dtype=torch.bool, device=score.device)
    return group.unsqueeze(0) == group.unsqueeze(1)
