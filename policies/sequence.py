"""What policies that look back are made of: a transformer, the tokens of its steps, and the steps seen so far."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from decisionrl.policies.evaluation import Batch, Observation
from decisionrl.policies.normalizer import ObservationNormalizer

Norm = Literal["before", "after"]
Nonlinearity = Literal["relu", "gelu"]

_INITIAL_STD = 0.02
"""Of the weights of a transformer's blocks, as in GPT-2 and BERT."""


class Transformer(nn.Module):
    """Tokens to tokens: dropout, then ``layers`` blocks of self-attention and a two-layer perceptron.

    ``norm="before"`` is GPT-2's order, ``x + f(LayerNorm(x))`` and a last LayerNorm; ``norm="after"`` is that of BERT
    (arXiv 1810.04805) and the first transformer (arXiv 1706.03762), ``LayerNorm(x + f(x))``. There are no position
    embeddings: who needs them adds them to the tokens.

    Args:
        width: of a token.
        layers, heads: blocks, and attention heads in each.
        feedforward: hidden units of the perceptron.
        dropout: of the tokens, the attention weights and the output of each half of a block.
        causal: a token attends to itself and those before it, else to all.
        norm, activation: see above; the perceptron's nonlinearity.
        generator: draws the weights; by default torch's global generator.

    Raises:
        ValueError: an option has no valid value.
    """

    def __init__(
        self,
        width: int,
        *,
        layers: int,
        heads: int,
        feedforward: int,
        causal: bool,
        dropout: float = 0.1,
        norm: Norm = "before",
        activation: Nonlinearity = "relu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads = {heads}; valid: a divisor of width = {width}")
        if layers < 1:
            raise ValueError(f"layers = {layers}; valid: at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout = {dropout}; valid: at least 0 and below 1")
        for name, value, valid in (("norm", norm, get_args(Norm)), ("activation", activation, get_args(Nonlinearity))):
            if value not in valid:
                raise ValueError(f"{name} = {value!r}; valid: {', '.join(valid)}")
        self.causal = causal
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            _Block(width, heads, feedforward, causal, dropout, norm, activation, generator) for _ in range(layers)
        )
        self.last_norm = nn.LayerNorm(width) if norm == "before" else nn.Identity()

    def forward(
        self, tokens: Float[Tensor, "batch token width"], mask: Bool[Tensor, "batch token"] | None = None
    ) -> Float[Tensor, "batch token width"]:
        """What becomes of every token. Nobody attends to tokens outside ``mask`` (their content must be finite), and
        their own outputs mean nothing."""
        allowed = None if mask is None else self._allowed(mask)
        x = self.dropout(tokens)
        for block in self.blocks:
            x = block(x, allowed)
        return self.last_norm(x)  # type: ignore[no-any-return]

    def _allowed(self, mask: Tensor) -> Bool[Tensor, "batch 1 query key"]:
        tokens = mask.shape[1]
        whole = mask.new_ones(tokens, tokens)
        seen = mask[:, None, :] & (whole.tril() if self.causal else whole)
        itself = torch.eye(tokens, dtype=torch.bool, device=mask.device)  # no row is empty, so none becomes NaN
        return (seen | itself)[:, None]


class _Block(nn.Module):
    """Self-attention and perceptron, each added to what came in."""

    def __init__(
        self,
        width: int,
        heads: int,
        feedforward: int,
        causal: bool,
        dropout: float,
        norm: Norm,
        activation: Nonlinearity,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.norm = heads, causal, norm
        self.activate = functional.relu if activation == "relu" else functional.gelu
        self.dropout = nn.Dropout(dropout)
        self.attention_norm, self.feedforward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = _normal_linear(width, 3 * width, generator)
        self.attended = _normal_linear(width, width, generator)
        self.hidden = _normal_linear(width, feedforward, generator)
        self.output = _normal_linear(feedforward, width, generator)

    def forward(self, x: Tensor, allowed: Tensor | None) -> Tensor:
        if self.norm == "before":
            x = x + self._attention(self.attention_norm(x), allowed)
            return x + self._perceptron(self.feedforward_norm(x))
        x = self.attention_norm(x + self._attention(x, allowed))
        return self.feedforward_norm(x + self._perceptron(x))  # type: ignore[no-any-return]

    def _attention(self, x: Tensor, allowed: Tensor | None) -> Tensor:
        query, key, value = self.query_key_value(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=allowed,
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=self.causal and allowed is None,
        )
        return self.dropout(self.attended(mixed.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]

    def _perceptron(self, x: Tensor) -> Tensor:
        return self.dropout(self.output(self.activate(self.hidden(x))))  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class TransformerSizes:
    """Sizes of a :class:`Transformer`; the defaults are the decision transformer's (arXiv 2106.01345)."""

    width: int = 128
    layers: int = 3
    heads: int = 1
    feedforward: int = 512
    dropout: float = 0.1


class StepTransformer(nn.Module):
    """Steps of several parts, such as (z_t, s_t, a_t), through a transformer.

    The token of a part is ``LayerNorm(W part_t + b + e_t)``, e_t being learned for every time step of an episode; the
    tokens of a step stand one after the other in the order of ``parts``, and then come those of the next step.

    Args:
        parts: the features of each part, by name.
        sizes: of the transformer.
        timesteps: the longest episode; steps beyond it share the embedding of the last.
        untimed: parts whose tokens do not get e_t.

    The other arguments are those of :class:`Transformer`.
    """

    def __init__(
        self,
        parts: Mapping[str, int],
        sizes: TransformerSizes,
        *,
        timesteps: int,
        causal: bool,
        untimed: Collection[str] = (),
        norm: Norm = "before",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if timesteps < 1:
            raise ValueError(f"timesteps = {timesteps}; valid: at least 1")
        if unknown := set(untimed) - set(parts):
            raise ValueError(f"untimed = {sorted(unknown)}; valid: some of {', '.join(parts)}")
        width = sizes.width
        self.untimed = frozenset(untimed)
        self.embed = nn.ModuleDict({name: linear(features, width, generator) for name, features in parts.items()})
        self.embed_time: nn.Embedding = nn.utils.skip_init(nn.Embedding, timesteps, width)  # type: ignore[no-untyped-call]
        nn.init.normal_(self.embed_time.weight, generator=generator)
        self.norm = nn.LayerNorm(width)
        self.transformer = Transformer(
            width,
            layers=sizes.layers,
            heads=sizes.heads,
            feedforward=sizes.feedforward,
            dropout=sizes.dropout,
            causal=causal,
            norm=norm,
            generator=generator,
        )

    def forward(
        self,
        parts: Mapping[str, Float[Tensor, "batch step _"]],
        timestep: Int[Tensor, "batch step"],
        mask: Bool[Tensor, "batch step"] | None = None,
    ) -> dict[str, Float[Tensor, "batch step width"]]:
        """The transformer's output at the tokens of each part. Steps outside ``mask`` must be finite; see
        :class:`Transformer`."""
        time = self.embed_time(timestep.clamp(max=self.embed_time.num_embeddings - 1))
        embedded = [
            embed(parts[name]) if name in self.untimed else embed(parts[name]) + time
            for name, embed in self.embed.items()
        ]
        tokens = self.norm(torch.stack(embedded, 2).flatten(1, 2))
        token_mask = None if mask is None else mask.repeat_interleave(len(embedded), 1)
        outputs = self.transformer(tokens, token_mask).unflatten(1, (-1, len(embedded)))
        return dict(zip(self.embed, outputs.unbind(2), strict=True))


@dataclass(frozen=True, kw_only=True)
class Window:
    """Steps as networks see them.

    Attributes:
        observation: standardized, [batch, step, features]; zeros outside the mask.
        action: in units in which the Box is [-1, 1], [batch, step, features]; zeros outside the mask.
        timestep: the number of each step in its episode, [batch, step].
        mask: the steps that count, [batch, step]; None if all do, or if those that do not are behind the others and
            the network is causal.
    """

    observation: Float[Tensor, "batch step observation"]
    action: Float[Tensor, "batch step action"]
    timestep: Int[Tensor, "batch step"]
    mask: Bool[Tensor, "batch step"] | None = None


class WindowReader(nn.Module):
    """Batches as :class:`Window`: observations standardized by running statistics, actions scaled to [-1, 1].

    Args:
        observation_space: a Box of any shape; features are its entries.
        action_space: a Box of floats with finite bounds.

    Raises:
        TypeError: a space is no Box.
        ValueError: the action space has no bounds.
    """

    center: Tensor
    half_width: Tensor

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        super().__init__()
        for name, space in (("observation_space", observation_space), ("action_space", action_space)):
            if not isinstance(space, spaces.Box):
                raise TypeError(f"{name} = {space}; valid: a Box")
        assert isinstance(observation_space, spaces.Box)
        assert isinstance(action_space, spaces.Box)
        low, high = (torch.as_tensor(np.asarray(b, np.float32)) for b in (action_space.low, action_space.high))
        if not ((high - low).isfinite() & (high > low)).all():
            raise ValueError(f"action_space = {action_space}; valid: finite bounds, low < high")
        self.observation_features, self.action_features = math.prod(observation_space.shape), low.numel()
        self.observation_shape, self.action_shape = observation_space.shape, action_space.shape
        self.normalizer = ObservationNormalizer(observation_space.shape)
        self.register_buffer("center", (low + high) / 2, persistent=False)
        self.register_buffer("half_width", (high - low) / 2, persistent=False)

    def forward(self, batch: Batch) -> Window:
        """The window of a batch, whose ``extras["timestep"]`` says where it stands in its episode (default: at the
        beginning). Whatever is at masked steps is not read."""
        mask = None if batch.mask.all() else batch.mask
        timestep = extras_of(batch).get("timestep")
        if timestep is None:
            timestep = torch.arange(batch.mask.shape[1], device=batch.mask.device).expand(batch.mask.shape)
        return self.window(_tensor(batch.observation), batch.action, timestep, mask)

    def opened(self, observation: Observation) -> Float[Tensor, "n features"]:
        """A step of :class:`RecentSteps` whose action is still to come: the observation, and zeros."""
        seen = _tensor(observation).flatten(1).to(self.dtype)
        return torch.cat([seen, seen.new_zeros(len(seen), self.action_features)], 1)

    def recent(self, recent: RecentSteps) -> Window:
        """The window, for causal networks, of steps whose first features are those of :meth:`opened`."""
        rows, columns, _ = recent.steps.shape
        observed, both = self.observation_features, self.observation_features + self.action_features
        return self.window(
            recent.steps[..., :observed].reshape(rows, columns, *self.observation_shape),
            recent.steps[..., observed:both].reshape(rows, columns, *self.action_shape),
            recent.timestep,
        )

    def window(
        self,
        observation: Float[Tensor, "batch step ..."],
        action: Float[Tensor, "batch step ..."],
        timestep: Int[Tensor, "batch step"],
        mask: Bool[Tensor, "batch step"] | None = None,
    ) -> Window:
        """The window of these tensors."""
        observed = self.normalizer(observation.to(self.dtype)).flatten(2)
        scaled = ((action - self.center) / self.half_width).to(self.dtype).flatten(2)
        if mask is not None:
            timestep = torch.where(mask, timestep, 0)
            observed = torch.where(mask[..., None], observed, 0)
            scaled = torch.where(mask[..., None], scaled, 0)
        return Window(observation=observed, action=scaled, timestep=timestep, mask=mask)

    def action(self, scaled: Float[Tensor, "n features"]) -> Float[Tensor, "n ..."]:
        """Actions of the Box, from those in [-1, 1]."""
        return self.center + self.half_width * scaled.reshape(-1, *self.action_shape)

    def update(self, observation: Observation, mask: Bool[Tensor, ...] | None = None) -> None:
        """Merge observations [..., ...], where ``mask`` [...] is set, into the statistics that standardize them."""
        self.normalizer.update(_tensor(observation), mask)

    @property
    def dtype(self) -> torch.dtype:
        """Of what the networks see."""
        return self.center.dtype


@dataclass(frozen=True)
class RecentSteps:
    """The last steps of the episodes that run in some copies: what a policy with a transformer remembers.

    Packed into one tensor [copies, window * features + 1], whose rows are independent of each other, it is the
    ``state`` of the library's policies.

    Attributes:
        steps: oldest first, with zeros behind the newest, [copies, window, features].
        count: steps of each episode so far, [copies].
    """

    steps: Float[Tensor, "copies window features"]
    count: Int[Tensor, " copies"]

    @staticmethod
    def unpacked(state: Float[Tensor, "copies state"], window: int) -> RecentSteps:
        """The steps in a state of :meth:`packed`; a state of zeros has none."""
        return RecentSteps(state[:, :-1].view(len(state), window, -1), state[:, -1].long())

    def packed(self) -> Float[Tensor, "copies state"]:
        """As one tensor."""
        return torch.cat([self.steps.flatten(1), self.count[:, None].to(self.steps.dtype)], 1)

    def followed_by(self, step: Float[Tensor, "copies features"]) -> RecentSteps:
        """With one step more; where the window is full the oldest is forgotten."""
        window = self.steps.shape[1]
        full = self.count >= window
        kept = torch.where(full[:, None, None], self.steps.roll(-1, 1), self.steps)
        return RecentSteps(kept, self.count + 1).with_newest(step)

    def with_newest(self, values: Float[Tensor, "copies _"], first: int = 0) -> RecentSteps:
        """With these features of the newest step, from feature ``first`` on, replaced."""
        steps = self.steps.clone()
        steps[torch.arange(len(steps), device=steps.device), self.position, first : first + values.shape[1]] = values
        return RecentSteps(steps, self.count)

    @property
    def position(self) -> Int[Tensor, " copies"]:
        """Where the newest step stands in the window."""
        return (self.count - 1).clamp(0, self.steps.shape[1] - 1)

    @property
    def timestep(self) -> Int[Tensor, "copies window"]:
        """The number of each step in its episode; those behind the newest go on counting."""
        first = self.count - 1 - self.position
        return first[:, None] + torch.arange(self.steps.shape[1], device=self.count.device)

    def newest(self, values: Float[Tensor, "copies window ..."]) -> Float[Tensor, "copies ..."]:
        """What stands at the newest step."""
        return values[torch.arange(len(self.count), device=self.count.device), self.position]


def squared_error(predicted: Float[Tensor, "batch step features"], window: Window) -> Float[Tensor, "batch step"]:
    """``||a_hat_t - a_t||^2`` in the units of the window; 0 outside its mask."""
    error = (predicted - window.action).square().sum(-1)
    return error if window.mask is None else torch.where(window.mask, error, 0)


def linear(inputs: int, outputs: int, generator: torch.Generator | None = None) -> nn.Linear:
    """A linear layer with torch's initialization, uniform up to 1 / sqrt(inputs), drawn by the generator."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    bound = 1 / math.sqrt(inputs)
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


def extras_of(batch: Batch) -> Mapping[str, Tensor]:
    """The ``extras`` of a batch; none where it has no such field."""
    extras: Mapping[str, Tensor] = getattr(batch, "extras", {})
    return extras


def _normal_linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    nn.init.normal_(layer.weight, std=_INITIAL_STD, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _tensor(observation: Observation) -> Tensor:
    if not isinstance(observation, Tensor):
        raise TypeError(f"observation has the keys {sorted(observation)}; valid: one tensor")
    return observation
