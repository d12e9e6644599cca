"""Rewards divided by the running standard deviation of the discounted return, as Stable-Baselines3 does it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories


class RunningMoments:
    """Mean and variance (population) of all values seen, merged batch by batch (Chan, Golub and LeVeque 1979).

    ``mean <- mean + d n_b / n`` and ``n var <- n_a var_a + n_b var_b + d^2 n_a n_b / n`` with d the difference of the
    two means and n = n_a + n_b; in float64 whatever the values are. A batch without values changes nothing.

    Attributes:
        mean, variance: tensors of ``shape``; 0 and 1 before any value.
        count: n, a scalar tensor; starts at ``prior_count``, the weight of those first values.
    """

    def __init__(self, shape: tuple[int, ...] = (), *, prior_count: float = 1e-4) -> None:
        """
        shape: of one value; the dimensions of a batch come before it.
        prior_count: above 0; 1e-4 as in Stable-Baselines3.
        """
        if not prior_count > 0:
            raise ValueError(f"prior_count = {prior_count}; valid: a number above 0")
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self.variance = torch.ones(shape, dtype=torch.float64)
        self.count = torch.tensor(prior_count, dtype=torch.float64)

    def update(self, values: Tensor, mask: Tensor | None = None) -> None:
        """Merge a batch [..., *shape]; mask [...]: which of its values count.

        Raises:
            ValueError: the values do not end with ``shape``, or the mask is not of the batch's shape.
        """
        shape = self.mean.shape
        leading = values.ndim - len(shape)
        if leading < 0 or values.shape[leading:] != shape:
            raise ValueError(
                f"values are of shape {tuple(values.shape)}; valid: anything that ends with {tuple(shape)}"
            )
        if mask is None:
            mask = torch.ones(values.shape[:leading], dtype=torch.bool, device=values.device)
        elif mask.shape != values.shape[:leading]:
            raise ValueError(f"mask is of shape {tuple(mask.shape)}; valid: {tuple(values.shape[:leading])}")
        weight = mask.reshape(-1, *(1 for _ in shape))
        flat = torch.where(weight, values.detach().reshape(-1, *shape).double(), 0.0)
        number = mask.sum()
        mean = flat.sum(0) / number.clamp(min=1)
        spread = torch.where(weight, flat - mean, 0.0).square().sum(0)

        old_mean, old_variance, old_count = (each.to(values.device) for each in (self.mean, self.variance, self.count))
        count = old_count + number
        difference = mean - old_mean
        self.mean = old_mean + difference * number / count
        self.variance = (old_variance * old_count + spread + difference.square() * old_count * number / count) / count
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "variance": self.variance, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.mean, self.variance, self.count = state["mean"], state["variance"], state["count"]


class NormalizeReward:
    """``r_t <- clip(r_t / sqrt(var(G) + epsilon), -clip, clip)`` with G the running discounted return of each copy.

    ``G_t = gamma G_{t-1} + r_t`` runs on from window to window and is forgotten where an episode ends; all its values
    feed one running variance. For windows of a stream, whose rows are the same copies of a world every time. Steps
    outside the mask do not count, as if they were not there.

    This is the reward part of Stable-Baselines3's VecNormalize. There the variance is updated with one step of all
    copies and then scales that step; here it is updated with a whole window and then scales all of it, so that
    rewards of one window share one scale. With windows of one step the two agree exactly.
    """

    def __init__(self, *, gamma: float, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        """
        gamma: the discount, in [0, 1].
        clip: the largest absolute reward that comes out.
        epsilon: beside the variance.
        """
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma = {gamma}; valid: in [0, 1]")
        if not clip > 0:
            raise ValueError(f"clip = {clip}; valid: a number above 0, math.inf for none")
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise ValueError(f"epsilon = {epsilon}; valid: a number above 0")
        self.gamma, self.clip, self.epsilon = gamma, clip, epsilon
        self.moments = RunningMoments()
        self._running: Tensor | None = None

    def __call__(self, batch: Trajectories) -> Trajectories:
        """Scale the rewards.

        Raises:
            ValueError: the number of rows is not that of the batches before.
        """
        self.moments.update(self._discounted_returns(batch), batch.mask)
        scale = (self.moments.variance + self.epsilon).sqrt()
        scaled = (batch.reward.double() / scale).clamp(-self.clip, self.clip).to(batch.reward.dtype)
        return batch.replace(reward=torch.where(batch.mask, scaled, batch.reward))

    def state_dict(self) -> dict[str, Any]:
        return {"moments": self.moments.state_dict(), "running": self._running}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self.moments.load_state_dict(state["moments"])
        self._running = state["running"]

    def _discounted_returns(self, batch: Trajectories) -> Tensor:
        """G [batch, step] in float64; keeps G after the last step, which is 0 where an episode ended in it."""
        mask, rows = batch.mask, batch.num_sequences
        if self._running is None:
            self._running = torch.zeros(rows, dtype=torch.float64, device=mask.device)
        elif len(self._running) != rows:
            raise ValueError(
                f"the batch has {rows} rows; valid: {len(self._running)} as before, the same copies of the world"
            )
        reward = torch.where(mask, batch.reward.double(), 0.0)
        goes_on = ~(mask & (batch.terminated | batch.truncated))
        discount = torch.where(mask, self.gamma, torch.ones_like(reward))
        running = self._running.to(mask.device)
        returns = []
        for r, d, g in zip(reward.unbind(1), discount.unbind(1), goes_on.unbind(1), strict=True):
            returns.append(r + d * running)
            running = returns[-1] * g
        self._running = running
        return torch.stack(returns, 1)
