"""Group advantages that also look at the policy: at its entropy (GTPO), at the likelihood of its answers (XRPO)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.objectives.terms import sequence_mean
from decisionrl.pipeline.groups import rows
from decisionrl.pipeline.requirements import required
from decisionrl.pipeline.returns import outcomes, with_advantage


@dataclass(frozen=True, kw_only=True)
class Sharpened:
    """A bonus for correct answers that the policy finds unlikely (XRPO, arXiv 2510.06672); stands after an estimator.

    ``A+ = A + min(max(novelty (1 - eta_i), 0), kappa A)`` where R_i > threshold and A > 0, otherwise A. With s_i the
    mean of ``log pi_old`` over the row's steps, ``eta_i = exp(s_i - mean(s))`` over the group. So A <= A+ <=
    (1 + kappa) A.

    Attributes:
        novelty: lambda_nov.
        kappa: the largest bonus relative to A.
        threshold: an outcome that reaches it is a success.

    Raises:
        ValueError: trajectories without ``group`` or ``advantage``.
    """

    novelty: float = 2.5
    kappa: float = 0.5
    threshold: float = 0.5

    def __post_init__(self) -> None:
        for name, value in (("novelty", self.novelty), ("kappa", self.kappa)):
            if not value >= 0:
                raise ValueError(f"{name} = {value}; valid: 0 or more")

    def __call__(self, batch: Trajectories) -> Trajectories:
        advantage = required(batch, "advantage", self)
        likelihood = sequence_mean(batch.log_prob, batch.mask).squeeze(1)
        eta = rows(batch, self).centered(likelihood).exp()
        success = outcomes(batch.reward, batch.mask) >= self.threshold
        bonus = torch.where(success, self.novelty * (1 - eta), 0.0).clamp(min=0).unsqueeze(1)
        return with_advantage(batch, advantage + torch.minimum(bonus, self.kappa * advantage.clamp(min=0)))


class EntropyShaped:
    """``A_i = delta_i (R_i - mean(R) - gamma <H>_i)`` over the group (GTPO, arXiv 2508.03772).

    <H>_i is the mean entropy of the policy over the row's steps at collection. delta_i is 0 for a row with
    ``<H>_i > threshold``; if the initial policy was above the threshold itself (mean of <H>_i over the first batch
    seen), delta is 1 throughout. Also sets ``extras["group_advantage"]`` [batch] to ``R_i - mean(R)``, whose sign
    decides between the answers in conflict.

    Args:
        gamma: weight of the entropy.
        threshold: in nats; 0.7 in the authors' code.
        initial_branch: ask for the entropy of the initial policy; the authors' code does not.

    Raises:
        ValueError: trajectories without ``group`` or ``entropy``.
    """

    def __init__(self, *, gamma: float = 0.1, threshold: float = math.log(2), initial_branch: bool = True) -> None:
        if not gamma >= 0:
            raise ValueError(f"gamma = {gamma}; valid: 0 or more")
        self.gamma, self.threshold, self.initial_branch = gamma, threshold, initial_branch
        self.initial_entropy: Tensor | None = None

    def __call__(self, batch: Trajectories) -> Trajectories:
        groups = rows(batch, self)
        entropy = sequence_mean(required(batch, "entropy", self), batch.mask).squeeze(1).detach()
        if self.initial_entropy is None:
            self.initial_entropy = (entropy * groups.weight).sum() / groups.weight.sum().clamp(min=1)
        kept = entropy <= self.threshold
        if self.initial_branch:
            kept = kept | (self.initial_entropy > self.threshold)
        relative = groups.centered(outcomes(batch.reward, batch.mask))
        shaped = torch.where(kept, relative - self.gamma * entropy, 0.0)
        batch = batch.replace(extras={**batch.extras, "group_advantage": relative.detach()})
        return with_advantage(batch, shaped.unsqueeze(1))

    def state_dict(self) -> dict[str, Any]:
        """The entropy of the initial policy, None before the first batch."""
        return {"initial_entropy": self.initial_entropy}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        self.initial_entropy = state["initial_entropy"]
