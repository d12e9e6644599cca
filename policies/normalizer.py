"""Running mean and variance of observations, and observations in units of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor, nn


class ObservationNormalizer(nn.Module):
    """``clip((x - mean) / sqrt(variance + epsilon))``, elementwise over one tensor of observations.

    Only :meth:`update` changes the statistics, so whatever happens between two updates sees the same units. They
    are merged exactly (Chan, Golub and LeVeque 1983): many updates give the mean and (population) variance of all
    observations at once. Before the first, the mean is 0 and the variance 1.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, shape: Sequence[int], *, clip: float = 10.0, epsilon: float = 1e-8) -> None:
        super().__init__()
        for name, value in (("clip", clip), ("epsilon", epsilon)):
            if not value > 0:
                raise ValueError(f"{name} = {value}; valid: positive")
        self.clip, self.epsilon = clip, epsilon
        self.register_buffer("mean", torch.zeros(*shape, dtype=torch.float64))
        self.register_buffer("variance", torch.ones(*shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        # What forward applies, in the dtype of the networks.
        self.register_buffer("shift", torch.zeros(*shape))
        self.register_buffer("scale", torch.ones(*shape))

    def forward(self, observation: Tensor) -> Tensor:
        """[..., *shape] -> [..., *shape]."""
        return ((observation - self.shift) * self.scale).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, observation: Tensor, mask: Bool[Tensor, ...] | None = None) -> None:
        """Merge observations [..., *shape] into the statistics; where mask [...] is False they do not count."""
        leading = observation.shape[: observation.dim() - self.mean.dim()]
        rows = observation.reshape(-1, *self.mean.shape) if mask is None else observation[mask.expand(leading)]
        if not len(rows):
            return
        rows = rows.to(self.mean.dtype)
        mean = rows.mean(0)
        delta, total = mean - self.mean, self.count + len(rows)
        squares = self.variance * self.count + (rows - mean).square().sum(0)
        self.variance.copy_((squares + delta.square() * (self.count * len(rows) / total)) / total)
        self.mean.add_(delta * (len(rows) / total))
        self.count.copy_(total)
        self.shift.copy_(self.mean)
        self.scale.copy_((self.variance + self.epsilon).rsqrt())
