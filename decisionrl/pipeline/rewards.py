"""Reward shaping: a KL penalty, a penalty for overlong sequences, a constant scale, and the outcome of a row."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from decisionrl.experience.trajectories import Trajectories
from decisionrl.objectives.policy_gradient import Evaluates
from decisionrl.objectives.regularizers import Estimator, kl_estimate
from decisionrl.objectives.terms import masked_mean


def add_to_last_step(batch: Trajectories, bonus: Float[Tensor, " batch"]) -> Trajectories:
    """Add a number [batch] to the reward of the last own step of every row; a row without own steps gets none."""
    return batch.replace(reward=torch.where(_last_step(batch.mask), batch.reward + bonus[:, None], batch.reward))


def reference_log_ratio(batch: Trajectories) -> Float[Tensor, "batch step"]:
    """``log pi_old - log pi_ref`` of the actions taken, from ``extras["reference_log_prob"]``.

    Raises:
        ValueError: the batch has no reference log-probabilities.
    """
    if "reference_log_prob" not in batch.extras:
        raise ValueError("extras['reference_log_prob'] is missing; put ReferenceLogProb earlier into the pipeline")
    return batch.log_prob - batch.extras["reference_log_prob"]


@dataclass(frozen=True, kw_only=True)
class ScaleReward:
    """``r_t <- factor * r_t``."""

    factor: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ValueError(f"factor = {self.factor}; valid: a positive number")

    def __call__(self, batch: Trajectories) -> Trajectories:
        return batch.replace(reward=self.factor * batch.reward)


@dataclass(frozen=True, kw_only=True)
class KLReward:
    """``r_t <- r_t - beta k_t``: a penalty, at every step, for leaving a reference policy (arXiv 2203.02155, eq. 2).

    k_t estimates KL(pi_old, pi_ref) from the action taken, see ``kl_estimate``; the reward then depends on the policy
    that collected the batch, not on the one being trained. Reports ``reference_kl``, the mean k_t.

    Attributes:
        coefficient: beta.
        estimator: k1, k2 or k3. Only k1's sum over an episode is an unbiased estimate of the KL of whole episodes.

    Raises:
        ValueError: the batch has no ``extras["reference_log_prob"]``.
    """

    coefficient: float
    estimator: Estimator = "k1"

    def __post_init__(self) -> None:
        if not self.coefficient >= 0:
            raise ValueError(f"coefficient = {self.coefficient}; valid: a number >= 0")

    def __call__(self, batch: Trajectories) -> Trajectories:
        kl = kl_estimate(reference_log_ratio(batch), self.estimator)
        return batch.replace(
            reward=torch.where(batch.mask, batch.reward - self.coefficient * kl, batch.reward),
            metrics={**batch.metrics, "reference_kl": masked_mean(kl, batch.mask)},
        )


@dataclass(frozen=True, kw_only=True)
class OverlongPenalty:
    """DAPO's soft penalty for long rows (arXiv 2503.14476, eq. 13), added to the reward of the last own step.

    ``factor * clip(((L_max - L_buffer) - |o|) / L_buffer, -1, 0)`` with |o| the number of own steps: none up to
    L_max - L_buffer, then linear down to -factor at L_max.

    Attributes:
        max_length: L_max.
        buffer: L_buffer.
        factor: the largest penalty.
    """

    max_length: int
    buffer: int
    factor: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.max_length:
            raise ValueError(f"buffer = {self.buffer}; valid: 1 to max_length = {self.max_length}")
        if not self.factor >= 0:
            raise ValueError(f"factor = {self.factor}; valid: a number >= 0")

    def __call__(self, batch: Trajectories) -> Trajectories:
        length = batch.mask.sum(1).to(batch.reward.dtype)
        free = self.max_length - self.buffer
        return add_to_last_step(batch, self.factor * ((free - length) / self.buffer).clamp(-1, 0))


class ReferenceLogProb:
    """Sets ``extras["reference_log_prob"]`` [batch, step]: log pi_ref of the actions taken.

    pi_ref is a copy of a policy: without gradients, in evaluation mode, saved with the pipeline. What it says of
    masked steps means nothing.
    """

    def __init__(self, policy: nn.Module) -> None:
        """policy: a module with ``evaluate(batch)``; later changes to it do not reach the copy."""
        self._policy = copy.deepcopy(policy).requires_grad_(False).eval()

    def __call__(self, batch: Trajectories) -> Trajectories:
        with torch.no_grad():
            log_prob = cast(Evaluates, self._policy).evaluate(batch).log_prob
        return batch.replace(extras={**batch.extras, "reference_log_prob": log_prob})

    def refresh(self, policy: nn.Module) -> None:
        """Copy the weights and buffers that an equally built policy has now."""
        self._policy.load_state_dict(policy.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self._policy.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._policy.load_state_dict(state["policy"])


def _last_step(mask: Bool[Tensor, "batch step"]) -> Bool[Tensor, "batch step"]:
    """True at the last True of every row."""
    later = mask.flip(1).cumsum(1).flip(1) - mask.long()
    return mask & (later == 0)
