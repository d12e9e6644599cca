"""Clipping, advantages and temperatures that follow the entropy of each step (HAPO, arXiv 2509.16591)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from decisionrl.objectives.surrogates import check_dual, clip_fraction, clipped
from decisionrl.objectives.terms import Terms, masked_mean, masked_quantile

FLOOR = 1e-8
"""Stands in for an entropy, a spread or a largest deviation of zero."""


@dataclass(frozen=True)
class EntropyStatistics:
    """Of a batch's log-entropies: what :func:`entropy_signal` is measured by. Scalars without a graph.

    Attributes:
        pivot: Q, the rho-quantile of log H.
        spread: sigma, the root of the mean squared distance from the pivot.
        highest: the largest (log H - Q) / sigma, at least 1e-8.
        lowest: the smallest, at most -1e-8.
    """

    pivot: Float[Tensor, ""]
    spread: Float[Tensor, ""]
    highest: Float[Tensor, ""]
    lowest: Float[Tensor, ""]


def entropy_statistics(
    entropy: Float[Tensor, "batch step"], mask: Bool[Tensor, "batch step"], *, rho: float = 0.8
) -> EntropyStatistics:
    """The statistics of log max(H, 1e-8) over the mask (arXiv 2509.16591, eq. 5; sigma as in the release)."""
    log_entropy = _log(entropy.detach())
    pivot = masked_quantile(log_entropy, mask, rho)
    distance = log_entropy - pivot
    spread = masked_mean(distance.square(), mask).sqrt().clamp(min=FLOOR)
    deviation = torch.where(mask, distance / spread, 0.0)
    return EntropyStatistics(pivot, spread, deviation.max().clamp(min=FLOOR), deviation.min().clamp(max=-FLOOR))


def entropy_signal(
    entropy: Float[Tensor, "*batch"], statistics: EntropyStatistics, *, released_sign: bool = False
) -> Float[Tensor, "*batch"]:
    """h~ in [-1, 1]: 0 at the pivot, 1 at the highest entropy of the batch, -1 at the lowest.

    With h = (log H - Q) / sigma: ``h / h_max`` where h > 0 and ``h / |h_min|`` elsewhere (arXiv 2509.16591, eq. 6).
    Entropies outside the range of the statistics are clamped to it.

    released_sign: divide by h_min rather than |h_min|, as the release does by mistake; then low entropies count as
    high ones. For replication only.
    """
    deviation = (_log(entropy.detach()) - statistics.pivot) / statistics.spread
    lowest = statistics.lowest if released_sign else -statistics.lowest
    return torch.where(deviation > 0, deviation / statistics.highest, deviation / lowest).clamp(-1, 1)


def adaptive_temperature(
    entropy: Float[Tensor, "*batch"],
    statistics: EntropyStatistics,
    *,
    base: float = 1.0,
    tau: float = 0.1,
    released_sign: bool = False,
) -> Float[Tensor, "*batch"]:
    """``base (1 + tau h~)``: sample hotter where the policy is uncertain (arXiv 2509.16591, eq. 8).

    entropy: of the next action at the base temperature. statistics: of the last batch. The release's form of the
    signal, which keeps the temperature in base [1 - tau, 1 + tau]; the paper writes (log H - Q) / sigma, which is
    unbounded and can make it negative. The release has tau = 0.05.
    """
    return base * (1 + tau * entropy_signal(entropy, statistics, released_sign=released_sign))


@dataclass(frozen=True, kw_only=True)
class HeterogeneousClip:
    """HAPO's surrogate: PPO's clip with bounds and advantages that follow the entropy signal h~ of each step.

    - Bounds (eq. 12-13): ``eps_low (1 - alpha h~)`` where h~ <= 0, ``eps_high (1 + alpha h~)`` where h~ > 0: confident
      steps may fall further, uncertain ones rise further.
    - Advantages (eq. 10-11): ``A (1 + beta h~)`` where h~ > 0 and the ratio has left the neutral zone
      (1 - eps_low / 2, 1 + eps_high / 2), or where h~ <= 0 and it is inside; A elsewhere.

    The statistics behind h~ are those of the current policy's entropies in the minibatch. Where all are equal this
    is ``Clip``; so it is for alpha = beta = 0. Source: arXiv 2509.16591.

    Attributes:
        low: eps_low.
        high: eps_high; 0.2 in the released scripts.
        alpha: how far the bounds follow h~.
        beta: how far the advantages do.
        rho: the quantile of log H at which h~ changes sign.
        dual: c > 1 in ``min(loss, -c A)`` for A < 0; None without.
        released_sign: see :func:`entropy_signal`.
    """

    low: float = 0.2
    high: float = 0.28
    alpha: float = 1.0
    beta: float = 1.0
    rho: float = 0.8
    dual: float | None = 10.0
    released_sign: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 or not self.high >= 0:
            raise ValueError(f"low = {self.low}, high = {self.high}; valid: low in [0, 1], high >= 0")
        if not self.alpha >= 0:
            raise ValueError(f"alpha = {self.alpha}; valid: a number >= 0")
        for name, value in (("beta", self.beta), ("rho", self.rho)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} = {value}; valid: in [0, 1]")
        check_dual(self.dual)

    def __call__(self, terms: Terms) -> Tensor:
        signal = self.signal(terms)
        low, high = self._bounds(signal)
        advantage = self._redistributed(terms, signal, low, high)
        return clipped(terms.log_ratio, advantage, low, high, self.dual)

    def metrics(self, terms: Terms) -> dict[str, Tensor]:
        signal = self.signal(terms)
        uncertain = (signal > 0).to(signal.dtype)
        return {
            "clip_fraction": clip_fraction(terms, terms.ratio, *self._bounds(signal)),
            "uncertain_fraction": masked_mean(uncertain, terms.selection),
        }

    def signal(self, terms: Terms) -> Float[Tensor, "batch step"]:
        """h~ of every step."""
        statistics = entropy_statistics(terms.entropy, terms.mask, rho=self.rho)
        return entropy_signal(terms.entropy, statistics, released_sign=self.released_sign)

    def _bounds(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        """The lower and the upper bound on the ratio, [batch, step]."""
        low = self.low * (1 - self.alpha * signal.clamp(max=0))
        high = self.high * (1 + self.alpha * signal.clamp(min=0))
        return 1 - low, 1 + high

    def _redistributed(self, terms: Terms, signal: Tensor, low: Tensor, high: Tensor) -> Tensor:
        ratio = terms.ratio.detach()
        neutral = (ratio > (1 + low) / 2) & (ratio < (1 + high) / 2)
        changed = (signal > 0) ^ neutral
        return torch.where(changed, terms.advantage * (1 + self.beta * signal), terms.advantage)


def _log(entropy: Tensor) -> Tensor:
    return entropy.clamp(min=FLOOR).log()
