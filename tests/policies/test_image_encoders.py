"""Image encoders: places in images, crops, independence of the frames beside, every space with images."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from decisionrl.policies.encoders import Concatenated, Flat, OneHot
from decisionrl.policies.image_encoders import (
    ConvEncoder,
    center_crop,
    context_encoder,
    random_crop,
    spatial_softmax,
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(256, shape, generator=rng(seed), dtype=torch.uint8)


def image_space(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def test_layers_are_those_of_the_page() -> None:
    made = ConvEncoder((3, 32, 24), generator=rng())
    kinds = [type(layer) for layer in made.layers]
    assert kinds == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 3 + [nn.Flatten, nn.Linear]
    convolutions = [layer for layer in made.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [16, 32, 32]
    assert all((c.kernel_size, c.stride, c.padding) == ((3, 3), (2, 2), (1, 1)) for c in convolutions)
    assert [layer.num_groups for layer in made.modules() if isinstance(layer, nn.GroupNorm)] == [1, 2, 2]
    assert made.layers[-1].in_features == 32 * 4 * 3
    assert made(images(5, 3, 32, 24)).shape == (5, made.features) == (5, 32)


@pytest.mark.parametrize("pool", ["flatten", "spatial_softmax"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 31), (32, 32), (33, 20)])
def test_any_size_that_leaves_something(pool: Any, height: int, width: int) -> None:
    if pool == "spatial_softmax" and height == 8:
        with pytest.raises(ValueError, match="at least 9 x 9"):
            ConvEncoder((1, height, width), pool=pool)
        return
    made = ConvEncoder((1, height, width), pool=pool, features=5, generator=rng())
    assert made.features == (5 if pool == "flatten" else 64)
    found = made(images(2, 1, height, width))
    assert found.shape == (2, made.features)
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_the_place_of_the_channels_does_not_matter() -> None:
    first, last = (
        ConvEncoder(shape, channels_first=shape[0] == 3, crop=10, generator=rng()).eval()
        for shape in ((3, 16, 12), (16, 12, 3))
    )
    pixels = images(4, 3, 16, 12)
    assert torch.equal(first(pixels), last(pixels.permute(0, 2, 3, 1)))


def test_pixels_are_scaled_to_one() -> None:
    made = ConvEncoder((1, 8, 8), generator=rng()).double()
    pixels = images(3, 1, 8, 8)
    found = made(pixels)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, made.layers(pixels.double() / 255))


@pytest.mark.parametrize("pool", ["flatten", "spatial_softmax"])
@pytest.mark.parametrize("training", [True, False])
def test_features_do_not_depend_on_the_frames_beside(pool: Any, training: bool) -> None:
    made = ConvEncoder((1, 16, 16), pool=pool, generator=rng()).double().train(training)
    pixels = images(12, 1, 16, 16)
    whole, order = made(pixels), torch.randperm(12, generator=rng())
    torch.testing.assert_close(made(pixels[order]), whole[order], rtol=0, atol=1e-10)
    brighter = torch.cat([pixels[:1], images(11, 1, 16, 16, seed=5) // 3])
    torch.testing.assert_close(made(brighter)[0], whole[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(made(pixels[:1]), whole[:1], rtol=0, atol=1e-10)


def test_weights_are_those_of_the_generator() -> None:
    first, again, other = (ConvEncoder((1, 8, 8), generator=rng(seed)) for seed in (0, 0, 1))
    pixels = images(2, 1, 8, 8)
    assert torch.equal(first(pixels), again(pixels))
    assert not torch.equal(first(pixels), other(pixels))


# Spatial softmax.


def test_places_against_plain_loops() -> None:
    maps = torch.randn(2, 3, 4, 5, generator=rng(), dtype=torch.float64)
    found = spatial_softmax(maps)
    for n in range(2):
        for c in range(3):
            total = sum(math.exp(maps[n, c, i, j]) for i in range(4) for j in range(5))
            x = sum(math.exp(maps[n, c, i, j]) / total * (-1 + 2 * j / 4) for i in range(4) for j in range(5))
            y = sum(math.exp(maps[n, c, i, j]) / total * (-1 + 2 * i / 3) for i in range(4) for j in range(5))
            assert found[n, c].tolist() == pytest.approx([x, y], abs=1e-12)


def test_places_of_a_peak_and_of_nothing() -> None:
    maps = torch.zeros(1, 3, 3, 3)
    maps[0, 0, 0, 2] = 1000  # top right
    maps[0, 1, 2, 1] = 1000  # the middle of the bottom
    assert spatial_softmax(maps)[0].tolist() == [[1, -1], [0, 1], [pytest.approx(0, abs=1e-6)] * 2]


# Crops.


def test_the_middle() -> None:
    pixels = torch.arange(5 * 6).view(1, 1, 5, 6)
    assert center_crop(pixels, 4)[0, 0, 0].tolist() == [1, 2, 3, 4]
    assert torch.equal(center_crop(pixels, 3)[0, 0], pixels[0, 0, 1:4, 1:4])
    assert torch.equal(center_crop(pixels, 5), pixels[:, :, :, :5])


def test_random_crops_are_squares_from_everywhere() -> None:
    """A pixel's value is its place, so each square says where it is from."""
    pixels = torch.stack([torch.arange(5 * 4).view(5, 4), 100 + torch.arange(5 * 4).view(5, 4)]).expand(600, 2, 5, 4)
    torch.manual_seed(0)
    found = random_crop(pixels, 3)
    assert found.shape == (600, 2, 3, 3)
    corners = found[:, 0, 0, 0]
    for i in range(600):
        top, left = divmod(int(corners[i]), 4)
        assert torch.equal(found[i], pixels[i, :, top : top + 3, left : left + 3])
    places, counts = corners.unique(return_counts=True)
    assert places.tolist() == [0, 1, 4, 5, 8, 9]
    assert counts.min() > 60


def test_crops_are_random_in_training_mode_only() -> None:
    made, pixels = ConvEncoder((1, 20, 20), crop=12, generator=rng()), images(6, 1, 20, 20)
    torch.manual_seed(0)
    first = made(pixels)
    second = made(pixels)
    torch.manual_seed(0)
    assert torch.equal(first, made(pixels))
    assert not torch.equal(first, second)
    assert torch.equal(made.eval()(pixels), made(pixels))
    small = ConvEncoder((1, 12, 12), generator=rng()).eval()
    small.load_state_dict(made.state_dict())
    assert torch.equal(made(pixels), small(pixels[:, :, 4:16, 4:16]))


# Spaces.


def test_encoders_of_spaces() -> None:
    assert isinstance(context_encoder(spaces.Box(-1, 1, (3,))), Flat)
    assert context_encoder(spaces.Box(-1, 1, (3,))).normalizer is not None
    assert isinstance(context_encoder(spaces.Discrete(3)), OneHot)
    last = context_encoder(image_space(12, 16, 3), crop=10, pool="spatial_softmax", generator=rng())
    assert isinstance(last, ConvEncoder)
    assert (last.channels_first, last.crop, last.features) == (False, 10, 64)
    space = spaces.Dict({"camera": image_space(1, 8, 8), "hand": spaces.Box(-9, 9, (2,))})
    both = context_encoder(space, features=7, generator=rng())
    assert isinstance(both, Concatenated)
    assert both.features == 7 + 2
    seen = {"camera": images(4, 1, 8, 8), "hand": torch.randn(4, 2, generator=rng())}
    both.update(seen)
    found = both(seen)
    torch.testing.assert_close(found[:, 7:].mean(0), torch.zeros(2), rtol=0, atol=1e-6)
    assert torch.equal(found[:, :7], both.encoders[0](seen["camera"]))


def test_gradients_reach_every_weight() -> None:
    made = ConvEncoder((1, 16, 16), crop=12, pool="spatial_softmax", generator=rng())
    made(images(4, 1, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in made.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (8, 8)}, r"shape = \(8, 8\)"),
        ({"shape": (1, 7, 8)}, r"7 x 8 pixels are seen.*at least 8 x 8"),
        ({"crop": 7}, r"7 x 7 pixels are seen.*at least 8 x 8"),
        ({"crop": 17}, r"crop = 17; valid: None, or 1 to 16"),
        ({"crop": 0}, r"crop = 0; valid: None, or 1 to 16"),
        ({"pool": "max"}, r"pool = 'max'; valid: flatten, spatial_softmax"),
        ({"features": 0}, r"features = 0; valid: at least 1"),
        ({"channels": (16, 40, 33)}, r"channels = \(16, 40, 33\); valid"),
        ({"channels": ()}, r"channels = \(\); valid: at least one"),
    ],
)
def test_settings_that_are_not_valid(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvEncoder(**{"shape": (1, 16, 18), **options})


def test_observations_that_are_not_valid() -> None:
    with pytest.raises(ValueError, match=r"images of shape \(16, 16, 1\); valid: \(1, 16, 16\)"):
        ConvEncoder((1, 16, 16))(images(2, 16, 16, 1))
    with pytest.raises(ValueError, match="channels, the smallest dimension, first or last"):
        context_encoder(image_space(16, 3, 16))
    with pytest.raises(TypeError, match=r"observation_space\['inner'\] is a Dict"):
        context_encoder(spaces.Dict({"inner": spaces.Dict({"camera": image_space(1, 8, 8)})}))
    with pytest.raises(TypeError, match="Text"):
        context_encoder(spaces.Text(3))
