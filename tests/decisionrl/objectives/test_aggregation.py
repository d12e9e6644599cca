"""Aggregations against plain Python loops."""

import pytest
import torch
from torch import Tensor

from decisionrl.names import UnknownNameError
from decisionrl.objectives.aggregation import AGGREGATIONS, aggregation
from decisionrl.objectives.terms import masked_quantile, sequence_mean


def by_hand(name: str, loss: Tensor, mask: Tensor) -> float:
    rows: list[list[float]] = [
        [value for value, counts in zip(values, flags, strict=True) if counts]
        for values, flags in zip(loss.tolist(), mask.tolist(), strict=True)
    ]
    filled = [row for row in rows if row]
    match name:
        case "token-mean":
            return sum(map(sum, rows)) / sum(map(len, rows))
        case "seq-mean-token-mean":
            return sum(sum(row) / len(row) for row in filled) / len(filled)
        case "seq-mean-token-sum":
            return sum(map(sum, rows)) / len(filled)
        case "seq-mean-token-sum-norm":
            return sum(map(sum, rows)) / (len(rows) * loss.shape[1])
        case "only-token-mean":
            return sum(sum(row) / len(row) for row in filled)
    raise AssertionError(name)


@pytest.fixture
def loss() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def mask() -> Tensor:
    return torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0]], dtype=torch.bool)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_against_loops(name: str, loss: Tensor, mask: Tensor) -> None:
    assert aggregation(name)(loss, mask).item() == pytest.approx(by_hand(name, loss, mask), rel=1e-12)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_no_mask_is_a_full_mask(name: str, loss: Tensor) -> None:
    full = torch.ones_like(loss, dtype=torch.bool)
    torch.testing.assert_close(aggregation(name)(loss, None), aggregation(name)(loss, full))


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_garbage_does_not_matter(name: str, loss: Tensor, mask: Tensor) -> None:
    expected = aggregation(name)(loss, mask)
    loss[~mask] = torch.nan
    loss.requires_grad_()
    found = aggregation(name)(loss, mask)
    assert found == expected
    (gradient,) = torch.autograd.grad(found, loss)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] > 0).all()


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_nothing_left_gives_zero_with_a_graph(name: str, loss: Tensor) -> None:
    loss.requires_grad_()
    found = aggregation(name)(loss, torch.zeros_like(loss, dtype=torch.bool))
    assert found.item() == 0
    (gradient,) = torch.autograd.grad(found, loss)
    assert (gradient == 0).all()


def test_with_equal_lengths_steps_and_sequences_weigh_the_same(loss: Tensor) -> None:
    mask = torch.arange(4).expand(5, 4) < 3
    torch.testing.assert_close(aggregation("token-mean")(loss, mask), aggregation("seq-mean-token-mean")(loss, mask))


def test_only_token_mean_is_the_sequence_mean_times_their_number(loss: Tensor, mask: Tensor) -> None:
    torch.testing.assert_close(
        aggregation("only-token-mean")(loss, mask), 4 * aggregation("seq-mean-token-mean")(loss, mask)
    )


def test_constant_length(loss: Tensor, mask: Tensor) -> None:
    found = aggregation("seq-mean-token-sum-norm", length=100)(loss, mask)
    torch.testing.assert_close(found, loss[mask].sum() / 500)


def test_unknown_names_are_refused_with_a_hint() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'token-mean'"):
        aggregation("token_mean")


def test_sequence_mean(loss: Tensor, mask: Tensor) -> None:
    found = sequence_mean(loss, mask)
    assert found.shape == (5, 1)
    assert found[2].item() == 0
    torch.testing.assert_close(found[3, 0], loss[3, 1:3].mean())


@pytest.mark.parametrize("level", [0.0, 0.3, 0.8, 1.0])
def test_masked_quantile_is_the_nearest_element(level: float, loss: Tensor, mask: Tensor) -> None:
    expected = torch.quantile(loss[mask], level, interpolation="nearest")
    assert masked_quantile(loss, mask, level) == expected


def test_masked_quantile_of_nothing() -> None:
    assert masked_quantile(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool), 0.5) == torch.inf
