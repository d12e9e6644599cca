"""Encoders of images in which every frame is encoded by itself, so that what it becomes can be kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from torch import Tensor, nn

from decisionrl.policies.encoders import (
    HIDDEN_GAIN,
    Concatenated,
    Encoder,
    channels_stand_first,
    encoder_for,
    is_image,
    orthogonal,
)

Pool = Literal["flatten", "spatial_softmax"]

GROUP = 16
"""Channels that GroupNorm normalizes together, as in Diffusion Policy (arXiv 2303.04137)."""


class ConvEncoder(Encoder):
    """uint8 images of any size, scaled to [0, 1], through convolutions that halve each side (kernel 3, stride 2).

    Each convolution is followed by GroupNorm (arXiv 1803.08494) and a ReLU. Nothing is normalized across a batch, so
    the features of a frame do not depend on the frames beside it.

    Args:
        shape: of an image.
        channels_first: whether the channels are the first dimension of it or the last.
        channels: of the convolutions, each 1 to 16 or a multiple of 16; they are normalized in groups of up to 16.
        features: of the linear layer behind ``pool="flatten"``; ``"spatial_softmax"`` yields two for each of the last
            channels, where it is in the image (:func:`spatial_softmax`), and has no use for it.
        pool: see features.
        crop: side of the square that is seen: in training mode anywhere, for each image independently, with the
            randomness of torch's global generator as in dropout; in evaluation mode the middle. None: all is seen.
        generator: draws the weights; by default torch's global generator.

    Raises:
        ValueError: an option has no valid value; what is seen of an image is below ``2^n`` pixels along a side with n
            convolutions, or ``2^n + 1`` with ``"spatial_softmax"``.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        channels_first: bool = True,
        channels: Sequence[int] = (16, 32, 32),
        features: int = 32,
        pool: Pool = "flatten",
        crop: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"shape = {tuple(shape)}; valid: channels and two sides")
        if pool not in get_args(Pool):
            raise ValueError(f"pool = {pool!r}; valid: {', '.join(get_args(Pool))}")
        if features < 1:
            raise ValueError(f"features = {features}; valid: at least 1")
        if not channels or any(each < 1 or (each > GROUP and each % GROUP) for each in channels):
            raise ValueError(
                f"channels = {tuple(channels)}; valid: at least one, each 1 to {GROUP} or a multiple of it"
            )
        entering, height, width = shape if channels_first else (shape[2], shape[0], shape[1])
        if crop is not None and not 1 <= crop <= min(height, width):
            raise ValueError(f"crop = {crop}; valid: None, or 1 to {min(height, width)}, the smaller side of the image")
        if crop is not None:
            height = width = crop
        smallest = 2 ** len(channels) + (pool == "spatial_softmax")
        if min(height, width) < smallest:
            raise ValueError(
                f"{height} x {width} pixels are seen of an image; valid with {len(channels)} convolutions and "
                f"pool = {pool!r}: at least {smallest} x {smallest}"
            )
        self.shape, self.channels_first, self.pool, self.crop = tuple(shape), channels_first, pool, crop
        layers: list[nn.Module] = []
        for out in channels:
            convolution = orthogonal(nn.Conv2d, entering, out, 3, 2, 1, gain=HIDDEN_GAIN, generator=generator)
            layers += [convolution, nn.GroupNorm(_groups(out), out), nn.ReLU(inplace=True)]
            entering, height, width = out, -(-height // 2), -(-width // 2)
        if pool == "flatten":
            self.features = features
            last = orthogonal(nn.Linear, entering * height * width, features, gain=1.0, generator=generator)
            layers += [nn.Flatten(), last]
        else:
            self.features = 2 * entering
        self.layers = nn.Sequential(*layers)

    def forward(self, observation: Int[Tensor, "n a b c"]) -> Float[Tensor, "n features"]:
        if tuple(observation.shape[1:]) != self.shape:
            raise ValueError(f"images of shape {tuple(observation.shape[1:])}; valid: {self.shape}")
        pixels = observation if self.channels_first else observation.permute(0, 3, 1, 2)
        if self.crop is not None:
            pixels = random_crop(pixels, self.crop) if self.training else center_crop(pixels, self.crop)
        encoded: Tensor = self.layers(pixels.to(next(self.parameters()).dtype) / 255)
        return encoded if self.pool == "flatten" else spatial_softmax(encoded).flatten(1)


def context_encoder(
    observation_space: spaces.Space[Any],
    *,
    features: int = 32,
    pool: Pool = "flatten",
    crop: int | None = None,
    generator: torch.Generator | None = None,
) -> Encoder:
    """An encoder for policies with a long context: :class:`ConvEncoder` for images, with these options, and for all
    else :func:`~decisionrl.policies.encoders.encoder_for` with normalized Boxes; for a flat Dict both side by side.

    Raises:
        TypeError: the space is of another kind.
        ValueError: an option has no valid value, an image is too small, or its channels stand in the middle.
    """

    def encoder(space: spaces.Space[Any]) -> Encoder:
        if not is_image(space):
            return encoder_for(space, normalize=True, generator=generator)
        assert isinstance(space, spaces.Box)
        first = channels_stand_first(space)
        return ConvEncoder(
            space.shape, channels_first=first, features=features, pool=pool, crop=crop, generator=generator
        )

    if not isinstance(observation_space, spaces.Dict):
        return encoder(observation_space)
    entries = observation_space.spaces
    if nested := [key for key, entry in entries.items() if isinstance(entry, spaces.Dict)]:
        raise TypeError(f"observation_space[{nested[0]!r}] is a Dict; valid: a Dict without Dicts inside")
    return Concatenated({key: encoder(entry) for key, entry in entries.items()})


def spatial_softmax(maps: Float[Tensor, "n channel height width"]) -> Float[Tensor, "n channel 2"]:
    """Where each channel is in the image: ``sum_ij softmax(map)_ij (x_j, y_i)`` (arXiv 1504.00702).

    x goes from -1 at the left to 1 at the right, y from -1 at the top to 1 at the bottom.
    """
    height, width = maps.shape[2:]
    weight = maps.flatten(2).softmax(2).view_as(maps)
    x = torch.linspace(-1, 1, width, dtype=maps.dtype, device=maps.device)
    y = torch.linspace(-1, 1, height, dtype=maps.dtype, device=maps.device)
    return torch.stack([weight.sum(2) @ x, weight.sum(3) @ y], 2)


def random_crop(pixels: Tensor, side: int) -> Tensor:
    """A square of each image [n, channels, height, width], from anywhere inside with equal probability."""
    squares = pixels.unfold(2, side, 1).unfold(3, side, 1)  # [n, channels, top, left, side, side], a view
    count, _, tops, lefts = squares.shape[:4]
    row = torch.arange(count, device=pixels.device)
    top = torch.randint(tops, (count,), device=pixels.device)
    left = torch.randint(lefts, (count,), device=pixels.device)
    return squares[row, :, top, left]


def center_crop(pixels: Tensor, side: int) -> Tensor:
    """The middle of images [n, channels, height, width]; of two middles the upper or left one."""
    top, left = ((length - side) // 2 for length in pixels.shape[2:])
    return pixels[:, :, top : top + side, left : left + side]


def _groups(channels: int) -> int:
    return max(1, channels // GROUP)
