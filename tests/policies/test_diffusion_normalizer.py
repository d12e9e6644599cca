"""The linear normalizer of actions: limits, constant dimensions, the way back."""

import pytest
import torch

from decisionrl.policies.action_normalizer import LinearNormalizer

DATA = torch.tensor([[0.0, 5.0, -3.0], [10.0, 5.0, 1.0], [4.0, 5.0, 0.0]], dtype=torch.float64)


def fitted(**options: object) -> LinearNormalizer:
    normalizer = LinearNormalizer((3,), **options).double()
    normalizer.fit(DATA)
    return normalizer


def test_limits_become_plus_and_minus_one_and_a_constant_becomes_zero() -> None:
    normalized = fitted()(DATA)
    assert normalized[:, 1].tolist() == [0, 0, 0]
    torch.testing.assert_close(normalized[:, 0], torch.tensor([-1, 1, -0.2], dtype=torch.float64))
    torch.testing.assert_close(normalized[:, 2], torch.tensor([-1, 1, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("mode", ["limits", "gaussian"])
def test_there_and_back(mode: str) -> None:
    normalizer = fitted(mode=mode)
    values = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normalizer.inverse(normalizer(values)), values)
    torch.testing.assert_close(normalizer.inverse(normalizer(DATA)), DATA)


def test_gaussian_has_mean_zero_and_std_one() -> None:
    normalized = fitted(mode="gaussian")(DATA)
    torch.testing.assert_close(normalized.mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(normalized.std(0, correction=0), torch.tensor([1.0, 0, 1], dtype=torch.float64))


def test_a_small_range_is_stretched_only_if_it_is_not_below_range_eps() -> None:
    data = torch.tensor([[0.0], [1e-3]], dtype=torch.float64)
    for range_eps, width in ((1e-4, 2.0), (1e-2, 1e-3)):
        normalizer = LinearNormalizer((1,), range_eps=range_eps).double()
        normalizer.fit(data)
        assert float(normalizer(data).diff(dim=0)) == pytest.approx(width)


def test_before_fitting_it_is_the_identity() -> None:
    assert torch.equal(LinearNormalizer((3,)).double()(DATA), DATA)


def test_actions_of_any_shape_and_leading_dimensions() -> None:
    normalizer = LinearNormalizer((2, 3)).double()
    data = torch.randn(4, 5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    normalizer.fit(data)
    torch.testing.assert_close(normalizer(data).amax((0, 1)), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(normalizer(data).amin((0, 1)), -torch.ones(2, 3, dtype=torch.float64))


def test_state_round_trip() -> None:
    other = LinearNormalizer((3,)).double()
    other.load_state_dict(fitted().state_dict())
    assert torch.equal(other(DATA), fitted()(DATA))


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"constant in dimensions \[1\].*range_eps = 0.0001"):
        fitted(constant="error")
    with pytest.raises(ValueError, match="data is empty"):
        LinearNormalizer((3,)).fit(DATA[:0])
    with pytest.raises(ValueError, match="mode = 'minmax'; valid: limits, gaussian"):
        fitted(mode="minmax")
    with pytest.raises(ValueError, match="constant = 'drop'; valid: center, error"):
        fitted(constant="drop")
    with pytest.raises(ValueError, match="range_eps = 0; valid: positive"):
        fitted(range_eps=0)
