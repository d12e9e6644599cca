"""The 1-D U-Net of Diffusion Policy (arXiv 2303.04137): convolutions over action tokens, told of the observations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from decisionrl.policies.diffusion_network import StepEmbedding

Conditioning = Literal["film", "attention"]

_HEADS = 4


@dataclass(frozen=True, kw_only=True)
class DiffusionUnetSizes:
    """Sizes of a :class:`DiffusionUnet`; the defaults are Diffusion Policy's for low-dimensional observations.

    Attributes:
        channels: of each level; between two levels the tokens are halved.
        kernel: of the convolutions, odd.
        groups: of the group normalizations.
        step_width: of the embedding of the diffusion step.
        conditioning: "film" scales and shifts every channel by what a linear map makes of the step's embedding and all
            observations side by side; "attention" does so with the step alone, and lets the tokens attend to the
            observations behind every residual block.
    """

    channels: Sequence[int] = (256, 512, 1024)
    kernel: int = 5
    groups: int = 8
    step_width: int = 256
    conditioning: Conditioning = "film"


class DiffusionUnet(nn.Module):
    """Noisy actions [batch, tokens, Da] and their diffusion step to what was predicted of them, of the same shape.

    Down the levels there are two residual blocks each and a convolution of stride 2 between levels; two blocks at the
    bottom; and up again the same with transposed convolutions, each level also reading what its counterpart made. A
    residual block is twice (convolution, GroupNorm, Mish), the conditioning in between, plus its input.

    Args:
        observation_features: Do, of one observation.
        action_features: Da.
        observations: To.
        tokens: a multiple of 2 to the number of levels less one.
        sizes: of the network.
        generator: draws the weights; by default torch's global generator.

    Raises:
        ValueError: an option has no valid value.
    """

    def __init__(
        self,
        observation_features: int,
        action_features: int,
        *,
        observations: int,
        tokens: int,
        sizes: DiffusionUnetSizes | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = sizes or DiffusionUnetSizes()
        channels = tuple(sizes.channels)
        if not channels or any(each % sizes.groups for each in channels):
            raise ValueError(f"channels = {channels}; valid: at least one, all multiples of groups = {sizes.groups}")
        if sizes.conditioning == "attention" and any(each % _HEADS for each in channels):
            raise ValueError(f"channels = {channels}; valid with attention: multiples of its {_HEADS} heads")
        if sizes.conditioning not in get_args(Conditioning):
            raise ValueError(f"conditioning = {sizes.conditioning!r}; valid: {', '.join(get_args(Conditioning))}")
        if sizes.kernel < 1 or not sizes.kernel % 2:
            raise ValueError(f"kernel = {sizes.kernel}; valid: an odd number >= 1")
        if tokens < 1 or tokens % (least := 2 ** (len(channels) - 1)):
            raise ValueError(f"tokens = {tokens}; valid with {len(channels)} levels: a multiple of {least}")
        width, self.conditioning = sizes.step_width, sizes.conditioning
        self.embed_step = nn.Sequential(
            StepEmbedding(width), nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)
        )
        attended: int | None = None
        modulation = width + observations * observation_features
        if self.conditioning == "attention":
            attended, modulation = width, width
            self.embed_observation = nn.Linear(observation_features, width)
            self.observation_position = nn.Parameter(torch.empty(observations, width))

        def blocks(inputs: int, outputs: int) -> _Level:
            return _Level(inputs, outputs, modulation, attended, sizes.kernel, sizes.groups)

        levels = list(pairwise((action_features, *channels)))
        self.down = nn.ModuleList(blocks(inputs, outputs) for inputs, outputs in levels)
        self.halved = nn.ModuleList(nn.Conv1d(each, each, 3, stride=2, padding=1) for each in channels[:-1])
        self.bottom = blocks(channels[-1], channels[-1])
        self.up = nn.ModuleList(blocks(2 * outputs, inputs) for inputs, outputs in reversed(levels[1:]))
        self.doubled = nn.ModuleList(
            nn.ConvTranspose1d(each, each, 4, stride=2, padding=1) for each in reversed(channels[:-1])
        )
        self.last = nn.Sequential(
            _Convolution(channels[0], channels[0], sizes.kernel, sizes.groups),
            nn.Conv1d(channels[0], action_features, 1),
        )
        _initialize(self, generator)

    def encode(self, context: Float[Tensor, "batch To Do"]) -> Tensor:
        """What the network keeps of the observations, the same for all diffusion steps: all of them side by side
        [batch, To Do], or a token of each [batch, To, width]."""
        if self.conditioning == "film":
            return context.flatten(1)
        return self.embed_observation(context) + self.observation_position  # type: ignore[no-any-return]

    def forward(
        self, noisy: Float[Tensor, "batch tokens Da"], step: Int[Tensor, " batch"], memory: Tensor
    ) -> Float[Tensor, "batch tokens Da"]:
        """What was predicted at these diffusion steps, given the memory of :meth:`encode`."""
        condition = self.embed_step(step)
        if self.conditioning == "film":
            condition = torch.cat([condition, memory], 1)
        x, skipped = noisy.mT, []
        for number, level in enumerate(self.down):
            x = level(x, condition, memory)
            skipped.append(x)
            if number < len(self.halved):
                x = self.halved[number](x)
        x = self.bottom(x, condition, memory)
        for level, doubled in zip(self.up, self.doubled, strict=True):
            x = doubled(level(torch.cat([x, skipped.pop()], 1), condition, memory))
        return self.last(x).mT  # type: ignore[no-any-return]


class _Level(nn.Module):
    """Two residual blocks."""

    def __init__(
        self, inputs: int, outputs: int, modulation: int, attended: int | None, kernel: int, groups: int
    ) -> None:
        super().__init__()
        self.first = _Block(inputs, outputs, modulation, attended, kernel, groups)
        self.second = _Block(outputs, outputs, modulation, attended, kernel, groups)

    def forward(self, x: Tensor, condition: Tensor, memory: Tensor) -> Float[Tensor, "batch outputs token"]:
        return self.second(self.first(x, condition, memory), condition, memory)  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Two convolutions with the conditioning in between, added to the input; then, if wanted, attention."""

    def __init__(
        self, inputs: int, outputs: int, modulation: int, attended: int | None, kernel: int, groups: int
    ) -> None:
        super().__init__()
        self.first = _Convolution(inputs, outputs, kernel, groups)
        self.modulate = nn.Sequential(nn.Mish(), nn.Linear(modulation, 2 * outputs))
        self.second = _Convolution(outputs, outputs, kernel, groups)
        self.around = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.attention: nn.MultiheadAttention | None = None
        if attended is not None:
            self.norm = nn.LayerNorm(outputs)
            self.attention = nn.MultiheadAttention(outputs, _HEADS, kdim=attended, vdim=attended, batch_first=True)

    def forward(
        self, x: Float[Tensor, "batch inputs token"], condition: Float[Tensor, "batch modulation"], memory: Tensor
    ) -> Float[Tensor, "batch outputs token"]:
        scale, shift = self.modulate(condition)[..., None].chunk(2, 1)
        x = self.around(x) + self.second(scale * self.first(x) + shift)
        if self.attention is None:
            return x
        return x + self.attention(self.norm(x.mT), memory, memory, need_weights=False)[0].mT  # type: ignore[no-any-return]


class _Convolution(nn.Sequential):
    """Convolution that keeps the number of tokens, GroupNorm, Mish."""

    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int) -> None:
        super().__init__(
            nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(groups, outputs), nn.Mish()
        )


def _initialize(network: nn.Module, generator: torch.Generator | None) -> None:
    """Weights uniform up to 1 / sqrt(inputs), positions N(0, 0.02^2), biases 0; norms keep their ones and zeros."""
    for name, parameter in network.named_parameters():
        if "position" in name:
            nn.init.normal_(parameter, std=0.02, generator=generator)
        elif parameter.dim() > 1:
            bound = 1 / math.sqrt(parameter[0].numel())
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
