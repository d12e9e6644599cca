"""Surrogate losses of policy gradients, for every step: log-likelihood, clipped ratios, soft gates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from decisionrl.objectives.terms import LOG_RATIO_LIMIT, Terms, masked_mean

Bound = TypeVar("Bound", Tensor, float)


def clipped(
    log_ratio: Tensor, advantage: Tensor, low: Tensor | float, high: Tensor | float, dual: float | None = None
) -> Tensor:
    """``-min(r A, clip(r, low, high) A)`` with r = exp(log_ratio), and for A < 0 at most ``-dual A``.

    PPO's loss (arXiv 1707.06347, eq. 7) with any bounds on the ratio, and the dual clip of arXiv 1912.09729, eq. 5.
    Written as ``-A exp(clip(log r))``: the sign of A tells which bounds can act. It is one operation with a graph
    where the textbook form has three, and needs no second one to keep the exponential finite.
    """
    rising = advantage > 0
    lower = _where(rising, -LOG_RATIO_LIMIT, _log(low), log_ratio)
    upper = _where(rising, _log(high), LOG_RATIO_LIMIT if dual is None else _log(dual), log_ratio)
    return -advantage * log_ratio.clamp(lower, upper).exp()


def clip_fraction(terms: Terms, ratio: Tensor, low: Bound, high: Bound) -> Tensor:
    """The share of steps that the bounds leave without a gradient."""
    stopped = (ratio - ratio.clamp(low, high)) * terms.advantage > 0
    return masked_mean(stopped.to(ratio.dtype), terms.selection)


def check_dual(dual: float | None) -> None:
    """Raise a ValueError if ``dual`` is no bound of the dual clip."""
    if dual is not None and not dual > 1:
        raise ValueError(f"dual = {dual}; valid: a number above 1, or None")


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
    bounds the loss where the ratio is large (arXiv 1912.09729, eq. 5). TRL's ``delta``, a cap on the unclipped
    ratio, is the same thing for any delta >= 1 + high.
    """

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 or not self.high >= 0:
            raise ValueError(f"low = {self.low}, high = {self.high}; valid: low in [0, 1], high >= 0")
        check_dual(self.dual)

    def __call__(self, terms: Terms) -> Tensor:
        log_ratio = terms.log_prob - terms.old_log_prob
        return clipped(log_ratio, terms.advantage, 1 - self.low, 1 + self.high, self.dual)

    def metrics(self, terms: Terms) -> dict[str, Tensor]:
        return {"clip_fraction": clip_fraction(terms, terms.ratio, 1 - self.low, 1 + self.high)}


@dataclass(frozen=True, kw_only=True)
class CISPO:
    """``-sg(clip(r, 1 - low, 1 + high)) A log pi``: the clip bounds a weight, and no step loses its gradient.

    Source: CISPO of MiniMax-M1, arXiv 2506.13585, eq. 4-5. The defaults bound the weight only from above, as the
    paper does, at the 5 that TRL recommends for its ``epsilon_high``; verl uses low = high = 0.2.
    """

    low: float = 1.0
    high: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 or not self.high >= 0:
            raise ValueError(f"low = {self.low}, high = {self.high}; valid: low in [0, 1], high >= 0")

    def __call__(self, terms: Terms) -> Tensor:
        weight = terms.ratio.detach().clamp(1 - self.low, 1 + self.high)
        return -weight * terms.advantage * terms.log_prob

    def metrics(self, terms: Terms) -> dict[str, Tensor]:
        bounded = (terms.ratio < 1 - self.low) | (terms.ratio > 1 + self.high)
        return {"clip_fraction": masked_mean(bounded.to(terms.ratio.dtype), terms.selection)}


@dataclass(frozen=True, kw_only=True)
class SoftGate:
    """``-f(r) A`` with ``f(r) = (4 / tau) sigmoid(tau (r - 1))``: no step is cut off, far ones fade.

    The weight of a step's gradient is ``f'(r) r = sech(tau (r - 1) / 2)^2 r``. tau is tau_positive where A > 0
    and tau_negative elsewhere. Source: SAPO, arXiv 2511.20347.
    """

    tau_positive: float = 1.0
    tau_negative: float = 1.05

    def __post_init__(self) -> None:
        if not self.tau_positive > 0 or not self.tau_negative > 0:
            raise ValueError(
                f"tau_positive = {self.tau_positive}, tau_negative = {self.tau_negative}; valid: positive numbers"
            )

    def __call__(self, terms: Terms) -> Tensor:
        tau = self._tau(terms)
        return -terms.advantage * torch.sigmoid(tau * (terms.ratio - 1)) * (4 / tau)

    def metrics(self, terms: Terms) -> dict[str, Tensor]:
        openness = torch.sigmoid(self._tau(terms) * (terms.ratio - 1))
        return {"gate": masked_mean(4 * openness * (1 - openness), terms.selection)}

    def _tau(self, terms: Terms) -> Tensor:
        return _where(terms.advantage > 0, self.tau_positive, self.tau_negative, terms.log_prob)


def _where(condition: Tensor, yes: Tensor | float, no: Tensor | float, like: Tensor) -> Tensor:
    """torch.where, which makes float32 of two numbers, with the dtype of ``like`` instead."""
    if isinstance(yes, Tensor) or isinstance(no, Tensor):
        return torch.where(condition, yes, no)
    return torch.full_like(like, no).masked_fill_(condition, yes)


def _log(bound: Tensor | float) -> Tensor | float:
    """The logarithm of a bound on the ratio, within +-LOG_RATIO_LIMIT."""
    least, most = math.exp(-LOG_RATIO_LIMIT), math.exp(LOG_RATIO_LIMIT)
    return bound.clamp(least, most).log() if isinstance(bound, Tensor) else math.log(min(max(bound, least), most))
