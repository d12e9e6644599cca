"""Clipping the ratio of a whole sequence rather than that of each step (GSPO, RiskPO)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decisionrl.objectives.surrogates import check_dual, clip_fraction, clipped
from decisionrl.objectives.terms import Terms, sequence_mean


@dataclass(frozen=True, kw_only=True)
class SequenceClip:
    """PPO's clip on the sequence ratio ``s_i = (prod_t r_it)^(1 / |o_i|)``, the same at all steps of a row.

    Source: GSPO, arXiv 2507.18071, eq. 5-7, whose bounds are the defaults; RiskPO (arXiv 2510.00911) clips this ratio
    too. A row must be one sequence. GSPO goes with the aggregation "seq-mean-token-mean". On rows of one step this
    is ``Clip``.

    Attributes:
        low: s is clipped to [1 - low, 1 + high].
        high: see low.
        dual: c > 1 in ``min(loss, -c A)`` for A < 0; None without.
        token_gradient: take ``log s_it = log pi_it - sg(log pi_it) + sg(log s_i)`` (GSPO-token, eq. 13), by which the
            advantage may differ between the steps of a row: each step's gradient has its own A. Otherwise the loss
            of every step sends its gradient through all steps of the row. Where the steps of a row share A, the
            mean over the row has the same gradient either way.
    """

    low: float = 3e-4
    high: float = 4e-4
    dual: float | None = None
    token_gradient: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1 or not self.high >= 0:
            raise ValueError(f"low = {self.low}, high = {self.high}; valid: low in [0, 1], high >= 0")
        check_dual(self.dual)

    def __call__(self, terms: Terms) -> Tensor:
        log_ratio = self._log_ratio(terms)
        if self.token_gradient:
            log_ratio = terms.log_prob - terms.log_prob.detach() + log_ratio.detach()
        return clipped(log_ratio, terms.advantage, 1 - self.low, 1 + self.high, self.dual)

    def metrics(self, terms: Terms) -> dict[str, Tensor]:
        ratio = self._log_ratio(terms).exp()
        return {"clip_fraction": clip_fraction(terms, ratio, 1 - self.low, 1 + self.high)}

    @staticmethod
    def _log_ratio(terms: Terms) -> Tensor:
        """log s_i at every step of its row, [batch, step]; 0 at masked steps, by which no gradient passes to s_i."""
        log_ratio = sequence_mean(terms.log_ratio, terms.selection).expand_as(terms.log_ratio)
        return log_ratio if terms.selection is None else torch.where(terms.mask, log_ratio, 0.0)
