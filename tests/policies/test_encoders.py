"""Encoders of every observation space, hidden layers against autograd, running statistics against NumPy."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn import functional

from decisionrl.policies.encoders import NatureCNN, Towers, encoder_for
from decisionrl.policies.normalizer import ObservationNormalizer


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(space: spaces.Space, n: int = 4) -> torch.Tensor | dict[str, torch.Tensor]:
    space.seed(0)
    drawn = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: torch.as_tensor(np.stack([each[key] for each in drawn])) for key in space.spaces}
    return torch.as_tensor(np.stack(drawn))


MIXED = spaces.Dict(
    {
        "z": spaces.Discrete(3),
        "a": spaces.Box(-1, 1, (2, 2)),
        "bits": spaces.MultiBinary(3),
        "n": spaces.MultiDiscrete([2, 3]),
    }
)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (3,)),
        spaces.Box(-1, 1, (2, 3)),
        spaces.Box(-5, 5, (4,), np.int64),
        spaces.Discrete(5),
        spaces.MultiDiscrete([3, 2, 4]),
        spaces.MultiDiscrete([[3, 2], [4, 2]]),
        spaces.MultiBinary([2, 2]),
        MIXED,
    ],
    ids=str,
)
def test_features_are_gymnasiums_own_flattening(space):
    encoder, observation = encoder_for(space), samples(space)
    space.seed(0)
    expected = np.stack([spaces.flatten(space, space.sample()) for _ in range(4)])
    features = encoder(observation)
    assert encoder.features == spaces.flatdim(space)
    assert features.dtype == torch.float32
    np.testing.assert_array_equal(features.numpy(), expected)


def test_choices_that_do_not_start_at_zero():
    assert encoder_for(spaces.Discrete(3, start=5))(torch.tensor([6])).tolist() == [[0, 1, 0]]
    encoder = encoder_for(spaces.MultiDiscrete([2, 3], start=[-1, 4]))
    assert encoder(torch.tensor([[0, 4]])).tolist() == [[0, 1, 1, 0, 0]]


def test_image_layouts_agree_and_pixels_are_scaled():
    last = encoder_for(spaces.Box(0, 255, (40, 44, 3), np.uint8), generator=rng())
    first = encoder_for(spaces.Box(0, 255, (3, 40, 44), np.uint8), generator=rng())
    pixels = torch.randint(0, 256, (2, 40, 44, 3), dtype=torch.uint8, generator=rng())
    assert isinstance(last, NatureCNN)
    assert last.features == 512
    torch.testing.assert_close(last(pixels), first(pixels.permute(0, 3, 1, 2)))
    expected = first.layers(pixels.permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(last(pixels), expected)


def test_an_image_beside_a_vector():
    space = spaces.Dict({"image": spaces.Box(0, 255, (36, 36, 1), np.uint8), "speed": spaces.Box(-1, 1, (2,))})
    encoder, observation = encoder_for(space), samples(space)
    features = encoder(observation)
    assert features.shape == (4, 514)
    torch.testing.assert_close(features[:, 512:], observation["speed"])


@pytest.mark.parametrize(
    ("space", "error", "message"),
    [
        (spaces.Text(3), TypeError, "valid: Box, Discrete, MultiDiscrete, MultiBinary, Dict of these"),
        (spaces.Tuple([spaces.Discrete(2)]), TypeError, "observation_space = Tuple"),
        (spaces.Sequence(spaces.Discrete(2)), TypeError, "observation_space = Sequence"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}), TypeError, r"observation_space\['a'\] is a Dict"),
        (spaces.Box(0, 255, (7, 7, 3), np.uint8), ValueError, "7 x 7; valid: at least 36 x 36"),
        (spaces.Box(0, 255, (40, 3, 40), np.uint8), ValueError, "first or last"),
    ],
)
def test_what_cannot_be_encoded_is_refused(space, error, message):
    with pytest.raises(error, match=message):
        encoder_for(space)


# hidden layers


def by_hand(towers: Towers, tower: int, x: torch.Tensor) -> torch.Tensor:
    activate = {"tanh": torch.tanh, "relu": torch.relu, "elu": functional.elu}[towers.activation]
    i = 0
    while hasattr(towers, f"weight_{i}"):
        weight, bias = getattr(towers, f"weight_{i}")[tower], getattr(towers, f"bias_{i}")[tower]
        x = activate(x @ weight + bias)
        i += 1
    return x


def some_towers(activation: str, towers: int = 2, hidden: tuple[int, ...] = (5, 4)) -> Towers:
    made = Towers(3, hidden, towers=towers, activation=activation, generator=rng()).double()
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=rng(1), dtype=torch.float64)
    return made


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("hidden", [(), (5,), (5, 4, 6)])
def test_towers_are_ordinary_perceptrons_with_their_gradients(activation, count, hidden):
    towers = some_towers(activation, count, hidden)
    x = torch.randn(7, 3, generator=rng(2), dtype=torch.float64, requires_grad=True)
    variables = [x, *towers.parameters()]
    weight = torch.randn(7, towers.features, generator=rng(3), dtype=torch.float64)
    expected = [by_hand(towers, tower, x) for tower in range(count)]
    outputs = towers(x)
    for tower in range(count):
        torch.testing.assert_close(outputs[tower], expected[tower])
        torch.testing.assert_close(towers.only(tower, x), expected[tower])
    loss = sum((each * weight * (1 + i)).sum() for i, each in enumerate(outputs))
    reference = sum((each * weight * (1 + i)).sum() for i, each in enumerate(expected))
    single = sum((towers.only(i, x) * weight * (1 + i)).sum() for i in range(count))
    for gradients in (torch.autograd.grad(loss, variables), torch.autograd.grad(single, variables)):
        torch.testing.assert_close(gradients, torch.autograd.grad(reference, variables, retain_graph=True))


@pytest.mark.parametrize("activation", ["tanh", "elu"])
@pytest.mark.parametrize("frozen", [False, True])
def test_second_derivatives(activation, frozen):
    """As natural gradients and penalties on gradients need them, also with the first layer frozen."""
    towers = some_towers(activation)
    towers.weight_0.requires_grad_(not frozen)
    variables = [each for each in towers.parameters() if each.requires_grad]
    x = torch.randn(6, 3, generator=rng(2), dtype=torch.float64)

    def squared_gradient(outputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        first = torch.autograd.grad(sum(each.square().sum() for each in outputs), variables, create_graph=True)
        return list(torch.autograd.grad(sum(each.square().sum() for each in first), variables))

    expected = squared_gradient(tuple(by_hand(towers, tower, x) for tower in range(2)))
    torch.testing.assert_close(squared_gradient(towers(x)), expected)


def test_weights_are_orthogonal_with_gain_sqrt_two_and_follow_the_generator():
    towers = Towers(8, (8, 6), towers=2, generator=rng(3))
    for tower in range(2):
        for weight in (towers.weight_0[tower], towers.weight_1[tower]):
            torch.testing.assert_close(weight.T @ weight, 2 * torch.eye(weight.shape[1]), atol=1e-5, rtol=0)
    assert not torch.equal(towers.weight_0[0], towers.weight_0[1])
    again, other = (Towers(8, (8, 6), towers=2, generator=rng(seed)) for seed in (3, 4))
    assert torch.equal(again.weight_1, towers.weight_1)
    assert not torch.equal(other.weight_1, towers.weight_1)


def test_options_of_towers_are_checked():
    with pytest.raises(ValueError, match="activation = 'gelu'; valid: tanh, relu, elu"):
        Towers(3, (4,), towers=1, activation="gelu")
    with pytest.raises(ValueError, match=r"hidden = \(4, 0\); valid: widths of at least 1"):
        Towers(3, (4, 0), towers=1)


# running statistics


def test_statistics_over_chunks_are_those_of_all_observations():
    x = 100 + 3 * torch.randn(60, 2, 3, generator=rng(), dtype=torch.float64)
    mask = torch.rand(60, generator=rng(1)) < 0.6
    garbage = torch.where(mask[:, None, None], x, torch.nan)
    normalizer = ObservationNormalizer((2, 3), clip=1.5)
    normalizer.update(garbage[:1].unsqueeze(0), mask[:1].unsqueeze(0))
    normalizer.update(garbage[1:41].unflatten(0, (8, 5)), mask[1:41].unflatten(0, (8, 5)))
    normalizer.update(garbage[41:44], torch.zeros(3, dtype=torch.bool))
    normalizer.update(x[41:][mask[41:]])
    kept = x[mask].numpy()
    np.testing.assert_allclose(normalizer.mean.numpy(), kept.mean(0), rtol=1e-12)
    np.testing.assert_allclose(normalizer.variance.numpy(), kept.var(0), rtol=1e-10)
    assert normalizer.count == len(kept)
    expected = np.clip((x.numpy() - kept.mean(0)) / np.sqrt(kept.var(0) + 1e-8), -1.5, 1.5)
    np.testing.assert_allclose(normalizer(x.float()).numpy(), expected, atol=1e-4)
    assert normalizer(x.float()).dtype == torch.float32


def test_statistics_are_saved_with_the_weights():
    normalizer, other = ObservationNormalizer((2,)), ObservationNormalizer((2,))
    normalizer.update(torch.randn(9, 2, generator=rng()))
    other.load_state_dict(normalizer.state_dict())
    x = torch.randn(4, 2, generator=rng(1))
    assert torch.equal(other(x), normalizer(x))
    assert not torch.equal(other(x), x)


def test_only_boxes_of_floats_are_normalized():
    encoder = encoder_for(MIXED, normalize=True)
    observation = samples(MIXED, 6)
    before = encoder(observation)
    encoder.update({key: value.unflatten(0, (2, 3)) for key, value in observation.items()})
    after = encoder(observation)
    assert torch.equal(before[:, 4:], after[:, 4:])
    torch.testing.assert_close(after[:, :4].mean(0), torch.zeros(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("option", ["clip", "epsilon"])
def test_options_of_the_normalizer_are_checked(option):
    with pytest.raises(ValueError, match=f"{option} = 0; valid: positive"):
        ObservationNormalizer((2,), **{option: 0})
