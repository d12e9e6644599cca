"""The policy gradient, assembled: surrogate x weights over kept steps, value loss, entropy bonus, KL penalty."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.learner import Loss
from decisionrl.objectives.aggregation import Aggregation, token_mean
from decisionrl.objectives.regularizers import KLPenalty, ValueLoss
from decisionrl.objectives.terms import StepFilter, StepWeight, Surrogate, Terms, masked_mean
from decisionrl.policies.evaluation import Batch, Evaluation


class Evaluates(Protocol):
    """The one method an objective needs of a policy."""

    def evaluate(self, batch: Batch, /) -> Evaluation: ...


@dataclass(frozen=True, kw_only=True)
class PolicyGradient:
    """``aggregate(weights * surrogate) + value loss - entropy_coefficient * entropy + KL penalty``.

    Made for trajectories that a pipeline has given advantages. Whether its rows are episodes, single transitions
    ([n, 1]) or answers of a language model, it does not know.

    Attributes:
        surrogate: the loss of every step.
        aggregate: how steps become one number; also for entropy and KL.
        weights: factors on the surrogate's loss.
        filters: one after the other, which steps are kept at all.
        value_loss: how the critic learns; None without one.
        entropy_coefficient: of the entropy bonus; where the entropy has no closed form, ``-log_prob`` stands for it.
        kl: a penalty for leaving a reference policy.
        normalize_advantage: to mean 0 and standard deviation 1 over the kept steps of the minibatch.
    """

    surrogate: Surrogate
    aggregate: Aggregation = token_mean
    weights: Sequence[StepWeight] = ()
    filters: Sequence[StepFilter] = ()
    value_loss: ValueLoss | None = None
    entropy_coefficient: float = 0.0
    kl: KLPenalty | None = None
    normalize_advantage: bool = False

    def __call__(self, policy: Evaluates, batch: Trajectories) -> Loss:
        if batch.advantage is None:
            raise ValueError("the trajectories have no advantage; the source's pipeline needs an advantage estimator")
        own = None if batch.complete else batch.mask
        advantage = batch.advantage.detach()
        if self.normalize_advantage:
            advantage = normalized(advantage, own)
        terms = Terms(policy.evaluate(batch), batch, advantage, batch.mask)
        seen = terms.detach()
        if self.filters:
            terms, seen = self._filtered(terms, seen)
        loss = self.surrogate(terms)
        for weight in self.weights:
            with torch.no_grad():
                factor = weight(seen)
            loss = loss * factor
        total = self.aggregate(loss, terms.selection)
        metrics = {"policy_loss": total.detach()}
        if self.value_loss is not None:
            value_loss = self.value_loss(terms)
            metrics["value_loss"] = value_loss.detach()
            total = total + value_loss
        if self.entropy_coefficient:
            bonus = self.aggregate(_entropy(terms), terms.selection)
            total = total.sub(bonus, alpha=self.entropy_coefficient)
        if self.kl is not None:
            penalty = self.aggregate(self.kl(terms), terms.selection)
            metrics["kl_penalty"] = penalty.detach()
            total = total + penalty
        with torch.no_grad():
            metrics["entropy"] = masked_mean(_entropy(seen), own)
            metrics["approx_kl"] = masked_mean(seen.ratio - 1 - seen.log_ratio, own)
            metrics.update(self.surrogate.metrics(seen))
            if self.filters:
                metrics["kept_fraction"] = terms.mask.sum() / batch.mask.sum().clamp(min=1)
        return Loss(total, metrics)

    @torch.no_grad()
    def _filtered(self, terms: Terms, seen: Terms) -> tuple[Terms, Terms]:
        """The two with the mask that the filters leave."""
        for keep in self.filters:
            seen = dataclasses.replace(seen, mask=seen.mask & keep(seen))
        return dataclasses.replace(terms, mask=seen.mask), seen


def normalized(values: Tensor, mask: Tensor | None) -> Tensor:
    """To mean 0 and unbiased standard deviation 1 over the mask, over all if it is None; a lone step keeps its value.

    The 1e-8 stands beside the standard deviation, as in Stable-Baselines3.
    """
    if mask is None:
        return values if values.numel() == 1 else (values - values.mean()) / (values.std() + 1e-8)
    count = mask.sum()
    mean = masked_mean(values, mask)
    centered = torch.where(mask, values - mean, 0.0)
    std = (centered.square().sum() / (count - 1).clamp(min=1)).sqrt()
    return torch.where(count > 1, centered / (std + 1e-8), values)


def _entropy(terms: Terms) -> Tensor:
    """Of the policy; where it has no closed form, -log pi, whose expectation it is."""
    entropy = terms.evaluation.entropy
    return -terms.log_prob if entropy is None else entropy
