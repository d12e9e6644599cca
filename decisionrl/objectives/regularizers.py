"""What stands beside the surrogate: the value loss, and the distance to a reference policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from decisionrl.objectives.terms import LOG_RATIO_LIMIT, Terms, masked_mean

Estimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True, kw_only=True)
class ValueLoss:
    """``coefficient * mean (V - returns)^2`` over the batch's steps, whatever the filters say of them.

    There is no other factor of 1/2: the defaults are Stable-Baselines3's ``vf_coef * mse``.

    clip: bound V's change since collection to +-clip and take the larger of the two errors, as the release of
    PPO does (arXiv 1707.06347's code; arXiv 2006.05990 found no benefit). key: only over the steps of
    ``batch.extras[key]`` [batch, step]; None takes all of the batch's.
    """

    coefficient: float = 0.5
    clip: float | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip = {self.clip}; valid: a positive number, or None")

    def __call__(self, terms: Terms) -> Tensor:
        batch, value = terms.batch, terms.evaluation.value
        if value is None:
            raise ValueError("a value loss needs a policy with a value head")
        if batch.returns is None:
            raise ValueError("a value loss needs returns; this pipeline's advantage estimator sets none")
        mask = None if batch.complete else batch.mask
        if self.key is not None:
            if self.key not in batch.extras:
                raise ValueError(
                    f"extras have no {self.key!r}, only {sorted(batch.extras)}; a pipeline step must set it"
                )
            mask = batch.mask & batch.extras[self.key]
        if mask is not None:
            value = torch.where(mask, value, 0.0)
        error = mse_loss(value, batch.returns, reduction="none")
        if self.clip is not None:
            if batch.value is None:
                raise ValueError("a clipped value loss needs the values at collection; the batch has none")
            bounded = batch.value + (value - batch.value).clamp(-self.clip, self.clip)
            error = torch.maximum(error, mse_loss(bounded, batch.returns, reduction="none"))
        return self.coefficient * masked_mean(error, mask)


def kl_estimate(log_ratio: Tensor, estimator: Estimator, *, straight_through: bool = False) -> Tensor:
    """An estimate of KL(pi, ref) from ``d = log pi - log ref`` at the sampled action, elementwise.

    k1 = d, k2 = d^2 / 2, k3 = exp(-d) + d - 1 (k3 with -d clamped to +-20 and the result to +-10). Only k2's gradient
    is an unbiased estimate of KL's on-policy; straight_through keeps the value and takes k2's gradient.
    """
    if estimator not in get_args(Estimator):
        raise ValueError(f"estimator = {estimator!r}; valid: {', '.join(get_args(Estimator))}")
    k2 = log_ratio.square() / 2
    if estimator == "k2":
        return k2
    if estimator == "k1":
        value = log_ratio
    else:
        clamped = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        value = (torch.exp(-clamped) + clamped - 1).clamp(-10, 10)
    return k2 - k2.detach() + value.detach() if straight_through else value


@dataclass(frozen=True, kw_only=True)
class KLPenalty:
    """``coefficient * KL(pi, reference)`` at every step, from ``batch.extras["reference_log_prob"]``.

    weighted: multiply by ``batch.extras["kl_weight"]`` [batch, step], for a coefficient that varies.
    """

    coefficient: float
    estimator: Estimator = "k3"
    straight_through: bool = False
    weighted: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.coefficient < float("inf"):
            raise ValueError(f"coefficient of the KL penalty = {self.coefficient}; valid: a number >= 0")

    def __call__(self, terms: Terms) -> Tensor:
        extras = terms.batch.extras
        if "reference_log_prob" not in extras:
            raise ValueError("a KL penalty needs extras['reference_log_prob']; put ReferenceLogProb into the pipeline")
        log_ratio = terms.log_prob - extras["reference_log_prob"]
        kl = self.coefficient * kl_estimate(log_ratio, self.estimator, straight_through=self.straight_through)
        if not self.weighted:
            return kl
        if "kl_weight" not in extras:
            raise ValueError("a weighted KL penalty needs extras['kl_weight']; a pipeline step must set it")
        return kl * extras["kl_weight"]
