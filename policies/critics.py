"""Networks that judge rather than act: twin action values, state values, and rewards learned from preferences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from decisionrl.policies.actor_critic import Steps
from decisionrl.policies.encoders import Towers, encoder_for, orthogonal
from decisionrl.policies.evaluation import Batch, Observation

Aggregate = Literal["sum", "mean"]


class TwinQ(nn.Module):
    """Two action values that share nothing but the units of observations (arXiv 1802.09477, sec. 4.2).

    Encoded observations and actions (a Box as it is, discrete ones as indicators) side by side pass through ReLU layers
    with orthogonal weights, of gain sqrt 2 in hidden layers and 1 for the value.

    Args:
        observation_space: Box, image, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        hidden: widths of the hidden layers.
        normalize_observations: Boxes of floats, by statistics that :meth:`update_normalizer` gathers.
        generator: draws the weights; by default torch's global generator.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        hidden: Sequence[int] = (256, 256),
        normalize_observations: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.judge = _Judge(observation_space, action_space, 2, hidden, normalize_observations, generator)

    def forward(self, observation: Observation, action: Tensor) -> Float[Tensor, "2 n"]:
        """Q_1 and Q_2 of observations [n, ...] and actions [n, ...]."""
        return self.judge.forward(observation, action)

    def update_normalizer(self, observation: Observation, mask: Bool[Tensor, ...] | None = None) -> None:
        """Merge observations [..., ...], where ``mask`` [...] is set, into the statistics that normalize them."""
        self.judge.encoder.update(observation, mask)


class StateValue(nn.Module):
    """V of an observation, a network like those of :class:`TwinQ`."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        *,
        hidden: Sequence[int] = (256, 256),
        normalize_observations: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.judge = _Judge(observation_space, None, 1, hidden, normalize_observations, generator)

    def forward(self, observation: Observation) -> Float[Tensor, " n"]:
        """V of observations [n, ...]."""
        return self.judge.forward(observation, None)[0]

    def update_normalizer(self, observation: Observation, mask: Bool[Tensor, ...] | None = None) -> None:
        """Merge observations [..., ...], where ``mask`` [...] is set, into the statistics that normalize them."""
        self.judge.encoder.update(observation, mask)


class RewardMLP(nn.Module):
    """``r(s, a)``, a network like one of :class:`TwinQ`, and the score of a segment that its rewards add up to.

    aggregate: "sum" of the rewards (arXiv 1706.03741, eq. 1), or their "mean".

    Raises:
        ValueError: another aggregate.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        hidden: Sequence[int] = (256, 256),
        aggregate: Aggregate = "sum",
        normalize_observations: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if aggregate not in get_args(Aggregate):
            raise ValueError(f"aggregate = {aggregate!r}; valid: {', '.join(get_args(Aggregate))}")
        self.aggregate = aggregate
        self.judge = _Judge(observation_space, action_space, 1, hidden, normalize_observations, generator)

    def rewards(self, batch: Batch) -> Float[Tensor, "batch step"]:
        """The reward of every step. Masked steps are not computed; they are 0."""
        steps = Steps(batch.mask)
        return steps.put(self.judge(steps.take_observation(batch.observation), steps.take(batch.action))[0])

    def segment_scores(self, batch: Batch) -> Float[Tensor, " batch"]:
        """The sum or mean of each row's rewards; 0 for a row that is all padding."""
        total = self.rewards(batch).sum(1)
        return total if self.aggregate == "sum" else total / batch.mask.sum(1).clamp(min=1)

    def update_normalizer(self, observation: Observation, mask: Bool[Tensor, ...] | None = None) -> None:
        """Merge observations [..., ...], where ``mask`` [...] is set, into the statistics that normalize them."""
        self.judge.encoder.update(observation, mask)


class _Judge(nn.Module):
    """``towers`` numbers for an observation, or for an observation and an action, each by a perceptron of its own."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any] | None,
        towers: int,
        hidden: Sequence[int],
        normalize: bool,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.encoder = encoder_for(observation_space, normalize=normalize, generator=generator)
        self.action_encoder = None if action_space is None else encoder_for(action_space)
        inputs = self.encoder.features + (0 if self.action_encoder is None else self.action_encoder.features)
        self.towers = Towers(inputs, hidden, towers=towers, activation="relu", generator=generator)
        self.outputs = nn.ModuleList(
            orthogonal(nn.Linear, self.towers.features, 1, gain=1.0, generator=generator) for _ in range(towers)
        )

    def forward(self, observation: Observation, action: Tensor | None) -> Float[Tensor, "towers n"]:
        features = self.encoder(observation)
        if self.action_encoder is not None:
            features = torch.cat([features, self.action_encoder(action)], 1)
        hidden = self.towers(features.to(next(self.outputs.parameters()).dtype))
        return torch.cat([output(h) for output, h in zip(self.outputs, hidden, strict=True)], 1).T
