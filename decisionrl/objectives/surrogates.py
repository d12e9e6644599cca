"""Surrogate losses of policy gradients, for every step: log-likelihood, clipped ratios, soft gates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decisionrl.objectives.terms import Terms, masked_mean


def clipped(ratio: Tensor, advantage: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """``-min(r A, clip(r, low, high) A)``: PPO's loss with any bounds on the ratio (arXiv 1707.06347, eq. 7)."""
    return -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)


def clip_fraction(terms: Terms, ratio: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """The share of steps that the bounds leave without a gradient."""
    stopped = torch.where(terms.advantage > 0, ratio > high, (ratio < low) & (terms.advantage < 0))
    return masked_mean(stopped.to(ratio.dtype), terms.mask)


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """``-A log pi`` (Williams 1992)."""

    def __call__(self, terms: Terms) -> Tensor:
        return -terms.advantage * terms.log_prob

    def metrics(self, terms: Terms) -> dict[str, Tensor]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Clip:
    """PPO's clipped ratio (arXiv 1707.06347, eq. 7), with a bound for each side (DAPO, arXiv 2503.14476, eq. 10).

    low, high: the ratio is clipped to [1 - low, 1 + high]. dual: c > 1 in ``min(loss, -c A)`` for A < 0, which
    bounds the loss where the ratio is large (arXiv 1912.09729, eq. 5).
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 or not self.high >= 0:
            raise ValueError(f"low = {self.low}, high = {self.high}; valid: low in [0, 1], high >= 0")
        if self.dual is not None and not self.dual > 1:
            raise ValueError(f"dual = {self.dual}; valid: a number above 1, or None")

    def __call__(self, terms: Terms) -> Tensor:
        loss = clipped(terms.ratio, terms.advantage, 1 - self.low, 1 + self.high)
        if self.dual is None:
            return loss
        return torch.where(terms.advantage < 0, torch.minimum(loss, -self.dual * terms.advantage), loss)

    def metrics(self, terms: Terms) -> dict[str, Tensor]:
        return {"clip_fraction": clip_fraction(terms, terms.ratio, 1 - self.low, 1 + self.high)}
