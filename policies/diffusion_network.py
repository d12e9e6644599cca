"""The transformer of Diffusion Policy (arXiv 2303.04137): action tokens that attend to observations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

_INITIAL_STD = 0.02
"""Of linear layers, attention and positions, as in GPT-2."""


@dataclass(frozen=True, kw_only=True)
class DiffusionTransformerSizes:
    """Sizes of a :class:`DiffusionTransformer`; the defaults are the paper's.

    Attributes:
        width: of a token, d.
        layers, heads: decoder layers, and attention heads in each.
        embedding_dropout: of the tokens.
        dropout: inside the decoder layers.
        causal: action tokens attend to those before them and to what was seen by then.
    """

    width: int = 256
    layers: int = 8
    heads: int = 4
    embedding_dropout: float = 0.0
    dropout: float = 0.3
    causal: bool = True


class DiffusionTransformer(nn.Module):
    """Noisy actions [batch, tokens, Da] and their diffusion step to what was predicted of them, of the same shape.

    The memory is one token of the diffusion step (its sinusoidal embedding) and one linear token of every observation,
    all with learned positions, each through ``W_2 Mish(W_1 x)`` of 4 d hidden units. Decoder layers in GPT-2's
    order let the action tokens, linear with learned positions, attend to each other and to the memory. With ``causal``
    action token j sees the action tokens up to j and the observations up to ``To - 1 - present + j``: the present
    action, token ``present``, and those after it see all of them, past ones no more than was seen by their time.

    Args:
        observation_features: Do, of one observation.
        action_features: Da.
        observations: To.
        tokens: of the decoder.
        present: the token of the present action: To - 1 with all past actions, 0 without.
        sizes: of the network.
        generator: draws the weights; by default torch's global generator.

    Raises:
        ValueError: an option has no valid value.
    """

    unseen: Tensor

    def __init__(
        self,
        observation_features: int,
        action_features: int,
        *,
        observations: int,
        tokens: int,
        present: int,
        sizes: DiffusionTransformerSizes | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = sizes or DiffusionTransformerSizes()
        if sizes.heads < 1 or sizes.width % sizes.heads or sizes.width % 2:
            raise ValueError(
                f"width = {sizes.width}, heads = {sizes.heads}; valid: an even width that the heads divide"
            )
        if sizes.layers < 1:
            raise ValueError(f"layers = {sizes.layers}; valid: at least 1")
        if not 0 <= present < min(tokens, observations):
            raise ValueError(
                f"present = {present}; valid: at least 0 and below tokens = {tokens} and observations = {observations}"
            )
        width = sizes.width
        self.embed_step = StepEmbedding(width)
        self.embed_observation = nn.Linear(observation_features, width)
        self.memory_position = nn.Parameter(torch.empty(1 + observations, width))
        self.memory_perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        self.embed_action = nn.Linear(action_features, width)
        self.action_position = nn.Parameter(torch.empty(tokens, width))
        self.dropout = nn.Dropout(sizes.embedding_dropout)
        self.causal = sizes.causal
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads=sizes.heads, dropout=sizes.dropout) for _ in range(sizes.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, action_features)
        _initialize(self, generator)

        token, seen = torch.arange(tokens)[:, None], torch.arange(observations)
        later = seen > token + observations - 1 - present
        unseen = torch.cat([torch.zeros_like(token, dtype=torch.bool), later], 1)
        unseen = unseen if sizes.causal else torch.zeros_like(unseen)
        self.register_buffer("unseen", unseen, persistent=False)

    def encode(self, context: Float[Tensor, "batch To Do"]) -> Float[Tensor, "batch To width"]:
        """The memory of the observations, which is the same for all diffusion steps."""
        embedded = self.embed_observation(context) + self.memory_position[1:]
        return self.memory_perceptron(self.dropout(embedded))  # type: ignore[no-any-return]

    def forward(
        self,
        noisy: Float[Tensor, "batch tokens Da"],
        step: Int[Tensor, " batch"],
        memory: Float[Tensor, "batch To width"],
    ) -> Float[Tensor, "batch tokens Da"]:
        """What was predicted at these diffusion steps, given the memory of :meth:`encode`."""
        time = self.memory_perceptron(self.dropout(self.embed_step(step)[:, None] + self.memory_position[:1]))
        memory = torch.cat([time, memory], 1)
        x = self.dropout(self.embed_action(noisy) + self.action_position)
        seen = ~self.unseen
        for layer in self.layers:
            x = layer(x, memory, seen, causal=self.causal)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """``nn.TransformerDecoderLayer`` with GELU, norms first and 4 d hidden units, by the same weights and names.

    Without what torch's does for the general case one row takes 3/4 of the time on a CPU, a training step 9/10.
    """

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads=heads, dropout=dropout)
        self.multihead_attn = Attention(width, heads=heads, dropout=dropout)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        memory: Float[Tensor, "batch seen width"],
        seen: Bool[Tensor, "tokens seen"],
        *,
        causal: bool,
    ) -> Float[Tensor, "batch tokens width"]:
        """Tokens that attend to each other, with ``causal`` to none after them, and to the memory where ``seen``."""
        normed = self.norm1(x)
        x = x + self.dropout(self.self_attn(normed, normed, causal=causal))
        x = x + self.dropout(self.multihead_attn(self.norm2(x), memory, seen))
        hidden = self.dropout(gelu(self.linear1(self.norm3(x))))
        return x + self.dropout(self.linear2(hidden))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """``nn.MultiheadAttention``, by the same weights and names: queries, keys and values are rows of one matrix."""

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        memory: Float[Tensor, "batch seen width"],
        mask: Bool[Tensor, "tokens seen"] | None = None,
        *,
        causal: bool = False,
    ) -> Float[Tensor, "batch tokens width"]:
        """What tokens read from a memory where the mask lets them, or from each other if it is the same tensor."""
        if memory is x:
            queries, keys, values = self._projected(x, 0, 3)
        else:
            (queries,), (keys, values) = self._projected(x, 0, 1), self._projected(memory, 1, 3)
        dropout = self.dropout if self.training else 0.0
        read = scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.out_proj(read.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _projected(
        self, x: Float[Tensor, "batch tokens width"], first: int, last: int
    ) -> tuple[Float[Tensor, "batch heads tokens each"], ...]:
        """Of queries, keys and values those from the first up to the last."""
        width = x.shape[2]
        rows = slice(first * width, last * width)
        projected = linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        return projected.view(*x.shape[:2], last - first, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()


class StepEmbedding(nn.Module):
    """``sin(k w_i), cos(k w_i)`` of a diffusion step k, with ``w_i = 10000^(-i / (width / 2 - 1))``."""

    frequency: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        exponent = torch.arange(half) / max(half - 1, 1)
        self.register_buffer("frequency", torch.exp(-math.log(10000.0) * exponent), persistent=False)

    def forward(self, step: Int[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        angle = step[:, None] * self.frequency
        return torch.cat([angle.sin(), angle.cos()], 1)


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups for an optimizer: matrices and convolutions decay; biases, norms and positions do not.

    Frozen parameters are left out.
    """
    positions = {id(p) for m in module.modules() for name, p in m.named_parameters(recurse=False) if "position" in name}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [p for p in trained if p.dim() > 1 and id(p) not in positions]
    kept = {id(p) for p in decayed}
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in kept], "weight_decay": 0.0},
    ]


def _initialize(network: nn.Module, generator: torch.Generator | None) -> None:
    """Matrices and positions N(0, 0.02^2), biases 0; LayerNorms keep their ones and zeros."""
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=_INITIAL_STD, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
