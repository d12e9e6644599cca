"""Hidden layers with dropout: what is dropped and how often, their gradient, and what a plain network would give."""

import math

import pytest
import torch
from torch import Tensor, nn

from decisionrl.policies.dropout import HiddenLayers, kept, relu_dropout


def inputs(rows: int = 6, width: int = 3, units: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(units, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(units, generator=generator, dtype=torch.float64)
    return tuple(each.requires_grad_() for each in (x, weight, bias))  # type: ignore[return-value]


@pytest.mark.parametrize("p", [0.25, 0.5, 3 / 256, 0.1, 1 / 1024, 0.999])
def test_share_that_is_kept(p: float) -> None:
    torch.manual_seed(0)
    n = 400_000
    share = kept((n,), p).double().mean().item()
    assert abs(share - (1 - p)) < 4 * math.sqrt(p * (1 - p) / n)


def test_bits_decide_exactly_where_they_can() -> None:
    torch.manual_seed(0)
    assert kept((1000,), 0.0).all()
    for p, bits in ((0.25, 8), (1 / 1024, 16), (1 / 3, 32)):
        torch.manual_seed(1)
        flags = kept((37, 11), p)
        torch.manual_seed(1)
        words = torch.empty(math.ceil(37 * 11 * bits / 64), dtype=torch.int64).random_(-(2**63), None)
        uniforms = [(word % 2**64 >> shift) % 2**bits for word in words.tolist() for shift in range(0, 64, bits)]
        signed = [u - 2**bits if u >= 2 ** (bits - 1) else u for u in uniforms][: 37 * 11]
        expected = [(u + 2 ** (bits - 1)) / 2**bits >= round(p * 2**bits) / 2**bits for u in signed]
        assert flags.flatten().tolist() == expected


def test_units_and_rows_are_dropped_independently() -> None:
    torch.manual_seed(0)
    p = 0.25
    flags = kept((50_000, 16), p).double() - (1 - p)
    correlation = flags.T @ flags / (len(flags) * p * (1 - p))
    assert (correlation - torch.eye(16)).abs().max() < 5 / math.sqrt(len(flags))
    along_rows = (flags[1:] * flags[:-1]).mean() / (p * (1 - p))
    assert along_rows.abs() < 5 / math.sqrt(flags.numel())


@pytest.mark.parametrize("p", [0.25, 0.4])
def test_it_is_relu_times_a_mask(p: float) -> None:
    x, weight, bias = (each.detach() for each in inputs())
    torch.manual_seed(3)
    y = relu_dropout(x, weight, bias, p)
    torch.manual_seed(3)
    mask = kept(y.shape, p)
    assert 0 < mask.sum() < mask.numel()
    for i in range(len(x)):
        for j in range(len(bias)):
            z = sum(float(x[i, k] * weight[j, k]) for k in range(x.shape[1])) + float(bias[j])
            expected = max(z, 0.0) / (1 - p) if mask[i, j] else 0.0
            assert float(y[i, j]) == pytest.approx(expected, abs=1e-12)


def test_gradient_is_that_of_the_mask() -> None:
    p, (x, weight, bias) = 0.25, inputs()
    upstream = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.manual_seed(4)
    own = torch.autograd.grad(relu_dropout(x, weight, bias, p), (x, weight, bias), upstream)
    torch.manual_seed(4)
    mask = kept((6, 5), p)
    plain = nn.functional.linear(x, weight, bias).relu() * mask / (1 - p)
    for found, expected in zip(own, torch.autograd.grad(plain, (x, weight, bias), upstream), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_first_and_second_order() -> None:
    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        torch.manual_seed(5)
        return relu_dropout(x, weight, bias, 0.25)

    assert torch.autograd.gradcheck(layer, inputs())
    assert torch.autograd.gradgradcheck(layer, inputs())


def test_expectation_is_the_layer_without_dropout() -> None:
    torch.manual_seed(0)
    x, weight, bias = (each.detach() for each in inputs())
    n = 40_000
    drawn = relu_dropout(x.repeat(n, 1), weight, bias, 0.25).view(n, 6, 5)
    expected = nn.functional.linear(x, weight, bias).relu()
    deviation = expected * math.sqrt(0.25 / 0.75 / n)
    assert ((drawn.mean(0) - expected).abs() <= 5 * deviation).all()


def test_same_seed_same_units_and_none_in_evaluation_mode() -> None:
    layers = HiddenLayers(3, (8, 8), dropout=0.25, generator=torch.Generator().manual_seed(0))
    x = torch.randn(20, 3)
    torch.manual_seed(1)
    first, second = layers(x), layers(x)
    torch.manual_seed(1)
    assert torch.equal(layers(x), first)
    assert not torch.equal(first, second)
    plain = nn.Sequential(layers.layers[0], nn.ReLU(), layers.layers[1], nn.ReLU())
    torch.testing.assert_close(layers.without_dropout(x), plain(x))
    assert torch.equal(layers.eval()(x), layers.without_dropout(x))


def test_weights_are_orthogonal_and_no_layers_are_the_identity() -> None:
    layers = HiddenLayers(4, (6, 5), generator=torch.Generator().manual_seed(0))
    first, second = (layer.weight for layer in layers.layers)
    torch.testing.assert_close(first.T @ first, torch.eye(4))
    torch.testing.assert_close(second @ second.T, torch.eye(5))
    assert layers.features == 5
    assert all(not layer.bias.any() for layer in layers.layers)
    nothing = HiddenLayers(4, (), dropout=0.5)
    x = torch.randn(3, 4)
    assert torch.equal(nothing(x), x)
    assert nothing.features == 4


def test_under_autocast_the_products_are_in_bfloat16() -> None:
    layers = HiddenLayers(3, (8,), dropout=0.25)
    x = torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = layers(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layers.layers[0].weight.grad.dtype == torch.float32


def test_nan_is_not_hidden() -> None:
    x, weight, bias = (each.detach() for each in inputs())
    assert relu_dropout(x * math.nan, weight, bias, 0.25).isnan().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": (4, 0)}, r"hidden = \(4, 0\); valid: widths of at least 1"),
        ({"hidden": (4,), "dropout": 1.0}, r"dropout = 1.0; valid: in \[0, 1\)"),
        ({"hidden": (4,), "dropout": -0.1}, r"dropout = -0.1; valid"),
    ],
)
def test_bad_settings_are_named(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiddenLayers(3, **arguments)
