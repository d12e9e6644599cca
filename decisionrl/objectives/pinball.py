"""Pinball loss: what a quantile forecaster minimizes (Koenker and Bassett 1978)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.experience.forecasts import ForecastCases
from decisionrl.learner import Loss
from decisionrl.policies.quantile import QuantileForecaster, recent_scale


def pinball_loss(
    predicted: Float[Tensor, "*batch quantiles"], target: Float[Tensor, "*batch"], grid: Float[Tensor, " quantiles"]
) -> Float[Tensor, "*batch quantiles"]:
    """u (y - q)^+ + (1 - u) (q - y)^+ for each quantile u; its expectation is least at the u-quantile of y."""
    short = target[..., None] - predicted
    return torch.maximum(grid * short, (grid - 1) * short)


class Pinball:
    """Mean pinball loss over cases, horizons and quantiles, per period and relative to the series' recent mean.

    Weights that depend only on the inputs do not change which quantiles are best; these make all series count
    alike. Targets that are NaN (beyond the data) count nothing.
    """

    def __call__(self, policy: QuantileForecaster, batch: ForecastCases) -> Loss:
        known = torch.isfinite(batch.target)
        target = torch.where(known, batch.target, 0.0)
        horizon = torch.tensor(policy.horizons, dtype=target.dtype, device=target.device)
        weight = known / (recent_scale(batch.past_demand, policy.floor)[:, None] * horizon)
        loss = pinball_loss(policy(batch.past_demand, batch.time), target, policy.grid).mean(-1)
        return Loss(value=(loss * weight).sum() / known.sum())
