"""Clip ranges that depend on the data: balanced over a minibatch (BAPO), or set by each probability (DCPO)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.objectives.surrogates import check_dual, clip_fraction, clipped
from decisionrl.objectives.terms import LOG_RATIO_LIMIT, Terms

Contribution = Literal["value", "active_gradient"]
Denominator = Literal["abs_sum", "signed"]
Order = Literal["high_first", "low_first"]

STEP_TOLERANCE = 1e-9
"""A bound may pass the end of its range by this much: 0.95 - 0.8 is a little less than 3 * 0.05."""


@dataclass(frozen=True, kw_only=True)
class BalancedClip:
    """BAPO: PPO's clip with bounds that let steps with A > 0 have a given share of the loss.

    For every minibatch the bounds start at (a-, a+) and widen upwards in steps, the upper one to b+ and then the
    lower one to b-, until the share reaches ``target``:

    ``rho = P / (P + N)``, ``P = sum_{A>0} pi_old min(r, c_high) A``, ``N = sum_{A<0} pi_old max(r, c_low) |A|``.

    Where no bounds reach it, the last ones are used. All bounds are tried at once, so that there is no wait for the
    device; it takes a temporary as large as the minibatch times the number of bounds (52 by default). With several
    processes each has bounds of its own.
    Source: arXiv 2510.18927, algorithm 1, eq. 8. Its release differs: ``old_probability=False, order="low_first",
    dual=3.0``, and a target ratio of positive to negative x, which is the share x / (1 + x).

    Attributes:
        target: rho_0.
        low: [a-, b-], the range of the lower bound on the ratio.
        high: [a+, b+], the range of the upper one.
        low_step: delta_2.
        high_step: delta_1.
        contribution: what a step adds to the share. "value" is its clipped loss, as above; note that a higher c_low
            *lowers* that share, since c_low |A| is the value of a clipped step. "active_gradient" is r |A| where the
            clip is not active and 0 where it is, by which both bounds raise the share.
        rho_denominator: "abs_sum" as above; "signed" is |P - N|, eq. 8 read literally.
        old_probability: weigh by pi_old. Not for continuous actions, whose densities are no probabilities.
        order: which bound moves first.
        dual: c > 1 in ``min(loss, -c A)`` for A < 0; None without.
    """

    target: float = 0.4
    low: tuple[float, float] = (0.6, 0.9)
    high: tuple[float, float] = (1.2, 3.0)
    low_step: float = 0.02
    high_step: float = 0.05
    contribution: Contribution = "value"
    rho_denominator: Denominator = "abs_sum"
    old_probability: bool = True
    order: Order = "high_first"
    dual: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.target <= 1:
            raise ValueError(f"target = {self.target}; valid: a share in [0, 1]")
        if not 0 <= self.low[0] <= self.low[1] <= 1:
            raise ValueError(f"low = {self.low}; valid: 0 <= a- <= b- <= 1")
        if not 1 <= self.high[0] <= self.high[1]:
            raise ValueError(f"high = {self.high}; valid: 1 <= a+ <= b+")
        if not self.low_step > 0 or not self.high_step > 0:
            raise ValueError(f"low_step = {self.low_step}, high_step = {self.high_step}; valid: positive numbers")
        for name, value, valid in (
            ("contribution", self.contribution, get_args(Contribution)),
            ("rho_denominator", self.rho_denominator, get_args(Denominator)),
            ("order", self.order, get_args(Order)),
        ):
            if value not in valid:
                raise ValueError(f"{name} = {value!r}; valid: {', '.join(valid)}")
        check_dual(self.dual)

    @property
    def needs_probabilities(self) -> bool:
        """Whether ``exp(batch.log_prob)`` must be a probability rather than a density."""
        return self.old_probability

    def __call__(self, terms: Terms) -> Tensor:
        low, high, _ = self.bounds(terms)
        return clipped(terms.log_ratio, terms.advantage, low, high, self.dual)

    def metrics(self, terms: Terms) -> dict[str, Tensor]:
        low, high, share = self.bounds(terms)
        fraction = clip_fraction(terms, terms.ratio, low, high)
        return {"clip_fraction": fraction, "clip_low": low, "clip_high": high, "positive_share": share}

    def bounds(self, terms: Terms) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
        """c_low and c_high for this minibatch, and the share rho that they give (0 where no step has A != 0)."""
        ratio = terms.ratio.detach()
        path = ratio.new_tensor(self._path())
        low, high = path[:, 0, None], path[:, 1, None]
        weight = torch.where(terms.mask, terms.advantage, 0.0)
        if self.old_probability:
            weight = torch.where(terms.mask, weight * terms.old_log_prob.exp(), 0.0)
        ratio, weight = torch.where(terms.mask, ratio, 1.0).flatten(), weight.flatten()
        if self.contribution == "value":
            positive = ratio.minimum(high) @ weight.clamp(min=0)
            negative = ratio.maximum(low) @ -weight.clamp(max=0)
        else:
            positive = (ratio <= high).to(ratio.dtype) @ (ratio * weight.clamp(min=0))
            negative = (ratio >= low).to(ratio.dtype) @ (ratio * -weight.clamp(max=0))
        total = positive + negative if self.rho_denominator == "abs_sum" else (positive - negative).abs()
        reached = positive >= self.target * total
        reached[-1] = True
        first = reached.int().argmax()
        share = positive / torch.where(total > 0, total, 1.0)
        return path[:, 0].take(first), path[:, 1].take(first), share.take(first)

    def _path(self) -> list[tuple[float, float]]:
        """The pairs (c_low, c_high) in the order of the search."""
        lows, highs = _steps(self.low, self.low_step), _steps(self.high, self.high_step)
        if self.order == "high_first":
            return [(lows[0], high) for high in highs] + [(low, highs[-1]) for low in lows[1:]]
        return [(low, highs[0]) for low in lows] + [(lows[-1], high) for high in highs[1:]]


@dataclass(frozen=True, kw_only=True)
class DynamicClip:
    """DCPO: PPO's clip with bounds that leave rare actions more room.

    ``|r - 1| p <= eps`` with p = r q, q = pi_old(a), gives the bounds ``1/2 + 1/2 sqrt(max(1 - 4 low / q, 0))`` and
    ``1/2 + 1/2 sqrt(1 + 4 high / q)``, the latter at most ``cap``. q must be a probability: for discrete actions
    only. Source: arXiv 2509.02333 and its README; the release's script has low = 0.2, high = 0.28.

    Attributes:
        low: epsilon below.
        high: epsilon above.
        cap: the largest upper bound.
        dual: c > 1 in ``min(loss, -c A)`` for A < 0; None without.
    """

    needs_probabilities: ClassVar[bool] = True

    low: float = 0.16
    high: float = 0.2
    cap: float = 10.0
    dual: float | None = 10.0

    def __post_init__(self) -> None:
        if not self.low >= 0 or not self.high >= 0:
            raise ValueError(f"low = {self.low}, high = {self.high}; valid: numbers >= 0")
        if not 1 < self.cap <= math.exp(LOG_RATIO_LIMIT):
            raise ValueError(f"cap = {self.cap}; valid: above 1, at most exp({LOG_RATIO_LIMIT:g})")
        check_dual(self.dual)

    def __call__(self, terms: Terms) -> Tensor:
        return clipped(terms.log_ratio, terms.advantage, *self.bounds(terms.old_log_prob), self.dual)

    def metrics(self, terms: Terms) -> dict[str, Tensor]:
        return {"clip_fraction": clip_fraction(terms, terms.ratio, *self.bounds(terms.old_log_prob))}

    def bounds(self, old_log_prob: Float[Tensor, "batch step"]) -> tuple[Tensor, Tensor]:
        """The lower and the upper bound on the ratio, [batch, step]."""
        inverse = (-old_log_prob).exp()
        lower = 0.5 + 0.5 * (1 - 4 * self.low * inverse).clamp(min=0).sqrt()
        upper = 0.5 + 0.5 * (1 + 4 * self.high * inverse).sqrt()
        return lower, upper.clamp(max=self.cap)


def _steps(bounds: tuple[float, float], step: float) -> list[float]:
    """``start, start + step, ...`` up to the end of the range."""
    start, end = bounds
    return [start + k * step for k in range(math.floor((end - start + STEP_TOLERANCE) / step) + 1)]
