"""Offline preference-guided policy optimization (OPPO, arXiv 2305.16217): a policy that hindsight conditions.

What a window of experience achieved is encoded as a vector z; a policy acts given z; and the vector z* that
preferred windows are encoded close to says how to act. There is no reward model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from decisionrl.policies.evaluation import Batch, Evaluation, Observation
from decisionrl.policies.sequence import (
    RecentSteps,
    StepTransformer,
    TransformerSizes,
    Window,
    WindowReader,
    linear,
    squared_error,
)

Pooling = Literal["mean", "sum"]


@dataclass(frozen=True, kw_only=True)
class HindsightSizes:
    """Sizes of a :class:`HindsightPolicy`.

    Attributes:
        encoder: of I_theta.
        policy: of pi(a | s, z).
        context: dimensions of z.
        window: K, the steps that the policy sees when it acts.
    """

    encoder: TransformerSizes
    policy: TransformerSizes
    context: int
    window: int


REFERENCE = HindsightSizes(encoder=TransformerSizes(heads=2), policy=TransformerSizes(), context=8, window=20)
"""Of the released code for scripted teachers."""

HUMAN = HindsightSizes(encoder=TransformerSizes(heads=2), policy=TransformerSizes(heads=2), context=16, window=100)
"""Of the released code for human labels."""

SMALL = HindsightSizes(
    encoder=TransformerSizes(width=64, layers=2, heads=2, feedforward=256),
    policy=TransformerSizes(width=64, layers=2, feedforward=256),
    context=8,
    window=10,
)
"""For a CPU."""


class HindsightEncoder(nn.Module):
    """I_theta: windows to z [batch, context], by a bidirectional transformer over the tokens s_0, a_0, s_1, a_1, ...

    Args:
        pooling: of the transformer's outputs before the last, linear layer. "mean" is over the tokens of steps in the
            mask. "sum" is that of the released code, which counts the padding; a window's z then depends on how far it
            is padded.
    """

    def __init__(
        self,
        observation_features: int,
        action_features: int,
        context: int,
        *,
        sizes: TransformerSizes,
        timesteps: int = 1000,
        pooling: Pooling = "mean",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling = {pooling!r}; valid: {', '.join(get_args(Pooling))}")
        self.pooling = pooling
        self.steps = StepTransformer(
            {"observation": observation_features, "action": action_features},
            sizes,
            timesteps=timesteps,
            causal=False,
            norm="after",
            generator=generator,
        )
        self.head = linear(sizes.width, context, generator)

    def forward(self, window: Window) -> Float[Tensor, "batch context"]:
        parts = {"observation": window.observation, "action": window.action}
        outputs = self.steps(parts, window.timestep, window.mask)
        total = outputs["observation"] + outputs["action"]
        return self.head(total.sum(1) if self.pooling == "sum" else _mean(total, window.mask) / len(parts))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Prediction:
    """What the policy makes of a window.

    Attributes:
        action: a_hat_t in [-1, 1], from z, s_0, a_0, ..., s_t, [batch, step, features].
        observation: s_t, standardized, reconstructed from the same and a_t; None without that head.
    """

    action: Float[Tensor, "batch step action"]
    observation: Float[Tensor, "batch step observation"] | None = None


class ContextualPolicy(nn.Module):
    """pi(a | s, z): a causal transformer over the tokens z, s_0, a_0, z, s_1, a_1, ...; a_hat_t = tanh(W y(s_t) + b).

    Args:
        timed_context: the tokens of z get the embedding of their time step too, as in the released code for scripted
            teachers; that for human labels leaves it out.
        reconstruct_observations: with a linear head that says s_t from y(a_t), which the latter code trains.
    """

    def __init__(
        self,
        observation_features: int,
        action_features: int,
        context: int,
        *,
        sizes: TransformerSizes,
        timesteps: int = 1000,
        timed_context: bool = True,
        reconstruct_observations: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.steps = StepTransformer(
            {"context": context, "observation": observation_features, "action": action_features},
            sizes,
            timesteps=timesteps,
            causal=True,
            untimed=() if timed_context else ("context",),
            generator=generator,
        )
        self.action_head = linear(sizes.width, action_features, generator)
        self.observation_head = (
            linear(sizes.width, observation_features, generator) if reconstruct_observations else None
        )

    def forward(
        self, window: Window, context: Float[Tensor, "batch context"] | Float[Tensor, "batch step context"]
    ) -> Prediction:
        """context: one z for all steps of a row, or one for each step."""
        if context.dim() == 2:
            context = context[:, None].expand(-1, window.timestep.shape[1], -1)
        parts = {"context": context, "observation": window.observation, "action": window.action}
        outputs = self.steps(parts, window.timestep, window.mask)
        observation = None if self.observation_head is None else self.observation_head(outputs["action"])
        return Prediction(self.action_head(outputs["observation"]).tanh(), observation)


class HindsightPolicy(nn.Module):
    """pi(a | s, z*), with the encoder I_theta and the vector z* that it is trained with.

    It acts deterministically and remembers the last K steps. ``evaluate`` says how well it reconstructs a window
    given the window's own z.

    Args:
        observation_space, action_space: Boxes, the latter with bounds.
        sizes: ``REFERENCE``, ``HUMAN``, ``SMALL`` or others.
        timesteps: the longest episode.
        pooling: see :class:`HindsightEncoder`.
        timed_context, reconstruct_observations: see :class:`ContextualPolicy`.
        context_std: z* is drawn from N(0, context_std^2); 2 with scripted teachers, 1 with human labels.
        legacy_context_padding: act as the released code does, which gives z* to the newest step only and zeros to
            those before it, unlike in training. By default z* stands at every step.
        generator: draws the weights and z*; by default torch's global generator.

    Attributes:
        reader: batches as the windows that encoder and policy see.
        encoder: I_theta.
        contextual: pi(a | s, z).
        context: z*, [context].

    Raises:
        TypeError, ValueError: a space is no Box, or an option has no valid value.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        sizes: HindsightSizes = REFERENCE,
        timesteps: int = 1000,
        pooling: Pooling = "mean",
        timed_context: bool = True,
        reconstruct_observations: bool = False,
        context_std: float = 2.0,
        legacy_context_padding: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if sizes.window < 1:
            raise ValueError(f"sizes.window = {sizes.window}; valid: at least 1")
        self.window, self.legacy_context_padding = sizes.window, legacy_context_padding
        self.reader = WindowReader(observation_space, action_space)
        features = self.reader.observation_features, self.reader.action_features, sizes.context
        self.encoder = HindsightEncoder(
            *features, sizes=sizes.encoder, timesteps=timesteps, pooling=pooling, generator=generator
        )
        self.contextual = ContextualPolicy(
            *features,
            sizes=sizes.policy,
            timesteps=timesteps,
            timed_context=timed_context,
            reconstruct_observations=reconstruct_observations,
            generator=generator,
        )
        self.context = nn.Parameter(context_std * torch.randn(sizes.context, generator=generator))

    def encode(self, batch: Batch) -> Float[Tensor, "batch context"]:
        """z = I_theta(tau) of every row."""
        return self.encoder(self.reader(batch))  # type: ignore[no-any-return]

    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, "n state"]]:
        """Actions [N, ...] for observations [N, ...] given z*, and the next state; noise changes nothing."""
        reader = self.reader
        state = self.initial_state(len(observation)) if state is None else state
        recent = RecentSteps.unpacked(state, self.window).followed_by(reader.opened(observation))
        window = reader.recent(recent)
        context = self.context.expand(*window.timestep.shape, -1)
        if self.legacy_context_padding:
            column = torch.arange(self.window, device=context.device)
            context = torch.where((column == recent.position[:, None])[..., None], context, 0)
        action = reader.action(recent.newest(self.contextual(window, context).action))
        return action, recent.with_newest(action.flatten(1), reader.observation_features).packed()

    def evaluate(self, batch: Batch) -> Evaluation:
        """``log_prob = -||a_hat_t - a_t||^2`` with z = I_theta(tau) of the row itself and the Box scaled to [-1, 1]; 0
        at masked steps. Up to scale and constant it is that of a Gaussian of fixed variance."""
        window = self.reader(batch)
        return Evaluation(-squared_error(self.contextual(window, self.encoder(window)).action, window))

    def value(self, observation: Observation, state: Tensor | None = None) -> None:
        """None: there is no critic."""

    def initial_state(self, n: int) -> Float[Tensor, "n state"]:
        """The state before the first observation of an episode: zeros."""
        features = self.reader.observation_features + self.reader.action_features
        return self.context.new_zeros(n, self.window * features + 1)

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Nothing, [*shape, 0]: the policy is deterministic."""
        return self.context.new_zeros(*shape, 0)

    def update_normalizer(self, observation: Observation, mask: Bool[Tensor, ...] | None = None) -> None:
        """Merge observations [..., ...], where ``mask`` [...] is set, into the statistics that standardize them."""
        self.reader.update(observation, mask)


def _mean(values: Float[Tensor, "batch step width"], mask: Tensor | None) -> Float[Tensor, "batch width"]:
    if mask is None:
        return values.mean(1)
    return torch.where(mask[..., None], values, 0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
