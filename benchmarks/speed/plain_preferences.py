"""A step of contrastive preference learning as it is written down in plain PyTorch: the yardstick of the library's.

Segments lie in arrays of their own, the network is an ``nn.Sequential`` and dropout is torch's. Both orders of a pair
are worked out and weighed by the label (arXiv 2310.13639, eq. 6, and ties).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import softplus


@dataclass(frozen=True)
class Segments:
    """Scored segments: observations [n, steps, ...], actions [n, steps, ...] and scores [n]."""

    observation: NDArray[np.float32]
    action: NDArray[np.float32]
    score: NDArray[np.float32]

    def batch(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Observations and actions of both sides, the first ones first, and labels: 1 if the second is better."""
        rows = np.concatenate([first, second])
        better = np.sign(self.score[second] - self.score[first])
        return (
            torch.from_numpy(self.observation[rows]),
            torch.from_numpy(self.action[rows]),
            torch.from_numpy((better + 1) / 2),
        )


class PlainLearner:
    """Adam on the preference loss; every batch is of random segments, each with a random partner."""

    def __init__(
        self,
        segments: Segments,
        *,
        hidden: Sequence[int],
        dropout: float,
        pairs: int,
        alpha: float = 0.1,
        bias: float = 0.5,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        self.segments, self.pairs, self.alpha, self.bias, self.device = segments, pairs, alpha, bias, device
        layers: list[nn.Module] = []
        width = segments.observation.shape[-1]
        for units in hidden:
            layers += [nn.Linear(width, units), nn.Dropout(dropout), nn.ReLU()]
            width = units
        layers += [nn.Linear(width, segments.action.shape[-1]), nn.Tanh()]
        self.network = nn.Sequential(*layers).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4)
        self.generator = np.random.default_rng(seed)

    def loss(self, observation: Tensor, action: Tensor, label: Tensor) -> Tensor:
        """Of a batch of pairs."""
        log_prob = -(self.network(observation) - action).square().sum(-1)
        first, second = (self.alpha * log_prob).sum(-1).chunk(2)
        first_wins, second_wins = first - self.bias * second, second - self.bias * first
        return (label * softplus(-second_wins) + (1 - label) * softplus(-first_wins)).mean()

    def step(self) -> None:
        """Draw a batch and take an optimizer step on it."""
        count = len(self.segments.score)
        rows = self.generator.integers(count, size=(2, self.pairs))
        batch = [each.to(self.device) for each in self.segments.batch(rows[0], rows[1])]
        self.optimizer.zero_grad()
        loss = self.loss(*batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
