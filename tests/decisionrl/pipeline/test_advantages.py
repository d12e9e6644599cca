"""Monte Carlo, GAE, truncated GAE and the greedy baseline: numbers worked out by hand, and limit cases."""

from typing import Any

import pytest
import torch
from advantage_batches import rich, steps
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline.advantages import GAE, GreedyBaseline, MonteCarlo, TruncatedGAE
from decisionrl.pipeline.returns import next_values, whitened

VALUE = [0.2, 0.5, 0.4]


def answer(final_value: float, *, terminated: bool = False, reward: float = 0.0) -> Trajectories:
    value = torch.tensor([VALUE], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    return steps(
        [[0.0, 0.0, reward]],
        value=value,
        next_value=next_values(value, mask, torch.tensor([final_value], dtype=torch.float64)),
        terminated=[[False, False, terminated]],
    )


def rows(tensor: Tensor | None) -> list[Any]:
    assert tensor is not None
    return tensor.tolist()


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (answer(0.6), [0.205, -0.10, 0.0]),
        (answer(0.6, terminated=True, reward=1.0), [0.7465, 0.47, 0.6]),
    ],
    ids=["cut", "finished"],
)
def test_truncated_gae(batch: Trajectories, expected: list[float]) -> None:
    result = TruncatedGAE(estimator=GAE(gamma=1.0))(batch)
    assert rows(result.advantage)[0] == pytest.approx(expected, abs=1e-12)
    assert result.next_value is batch.next_value


def test_gae_bootstraps_where_truncated_gae_does_not() -> None:
    result = GAE(gamma=1.0)(answer(0.6))
    assert rows(result.advantage)[0] == pytest.approx([0.3855, 0.09, 0.2], abs=1e-12)
    assert rows(result.returns)[0] == pytest.approx([0.5855, 0.59, 0.6], abs=1e-12)


def test_truncated_gae_of_finished_rows_is_gae() -> None:
    batch = rich(7)
    last = batch.mask & (batch.mask.flip(1).cumsum(1).flip(1) == 1)
    finished = batch.replace(truncated=batch.truncated | last)
    assert torch.equal(TruncatedGAE()(finished).advantage, GAE()(finished).advantage)
    assert not torch.equal(TruncatedGAE()(batch).advantage, GAE()(batch).advantage)


def test_truncated_gae_of_constant_value_and_no_reward_is_zero() -> None:
    flat = torch.full((2, 4), 0.7, dtype=torch.float64)
    batch = steps(torch.zeros(2, 4), value=flat, next_value=flat + torch.tensor([0.0, 0, 0, 9.0]))
    assert (TruncatedGAE(estimator=GAE(gamma=1.0))(batch).advantage == 0).all()


def test_whitening_leaves_the_returns_alone() -> None:
    batch = rich(8)
    plain, white = GAE()(batch), GAE(whiten=True)(batch)
    assert plain.advantage is not None
    assert torch.equal(plain.returns, white.returns)
    torch.testing.assert_close(white.advantage, whitened(plain.advantage, batch.mask))


def test_gae_with_lambda_one_is_monte_carlo_with_bootstrap_and_baseline() -> None:
    """Within an episode next_value must be the V of the next state for the sum to telescope."""
    batch = rich(9)
    assert batch.value is not None
    chained = next_values(batch.value, batch.mask, torch.randn(12, dtype=torch.float64))
    batch = batch.replace(next_value=chained)
    gae = GAE(gamma=0.9, lam=1.0)(batch)
    monte_carlo = MonteCarlo(gamma=0.9, baseline=True, bootstrap=True)(batch)
    torch.testing.assert_close(gae.advantage, monte_carlo.advantage)
    torch.testing.assert_close(gae.returns, monte_carlo.returns)


def test_monte_carlo_by_hand() -> None:
    """An episode that terminates, a masked step, then one that goes on; and a truncated one."""
    batch = steps(
        [[1.0, 2.0, torch.nan, 4.0, 8.0], [1.0, 2.0, 4.0, 8.0, torch.nan]],
        mask=[[True, True, False, True, True], [True, True, True, True, False]],
        terminated=[[False, True, False, False, False], [False] * 5],
        truncated=[[False] * 5, [False, True, False, False, False]],
        value=[[0.5] * 5, [0.25] * 5],
        next_value=[[100.0, torch.nan, torch.nan, 100.0, 16.0], [100.0, 32.0, 100.0, 64.0, torch.nan]],
    )
    with_tail = MonteCarlo(gamma=0.5, bootstrap=True)(batch)
    assert rows(with_tail.advantage) == [[2.0, 2.0, 0.0, 12.0, 16.0], [10.0, 18.0, 24.0, 40.0, 0.0]]
    without = MonteCarlo(gamma=0.5)(batch)
    assert rows(without.advantage) == [[2.0, 2.0, 0.0, 8.0, 8.0], [2.0, 2.0, 8.0, 8.0, 0.0]]
    based = MonteCarlo(gamma=0.5, baseline=True)(batch)
    assert rows(based.returns) == rows(without.advantage)
    assert rows(based.advantage) == [[1.5, 1.5, 0.0, 7.5, 7.5], [1.75, 1.75, 7.75, 7.75, 0.0]]


def test_greedy_baseline() -> None:
    batch = steps(
        [[0.0, torch.nan, 1.0], [1.0, 2.0, torch.nan], [0.0, 0.0, 9.0]],
        mask=[[True, False, True], [True, True, False], [True] * 3],
        extras={"greedy_return": torch.tensor([0.25, 4.0, 1.0], dtype=torch.float64)},
    )
    assert rows(GreedyBaseline()(batch).advantage) == [[0.75, 0.0, 0.75], [-1.0, -2.0, 0.0], [8.0, 8.0, 8.0]]
    release = GreedyBaseline(difference_clip=5.0, discount=0.5)(batch)
    assert rows(release.advantage) == [[0.1875, 0.0, 0.375], [-0.25, -1.0, 0.0], [0.625, 1.25, 2.5]]


def test_no_greedy_return_is_reinforce() -> None:
    batch = rich(3)
    batch = batch.replace(
        extras={"greedy_return": torch.zeros(12)},
        terminated=torch.zeros_like(batch.mask),
        truncated=torch.zeros_like(batch.mask),
    )
    assert torch.equal(GreedyBaseline()(batch).advantage, MonteCarlo()(batch).advantage)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GAE(gamma=1.5), r"gamma = 1.5; valid: in \[0, 1\]"),
        (lambda: GAE(lam=-0.1), r"lam = -0.1; valid: in \[0, 1\]"),
        (lambda: MonteCarlo(gamma=2.0), r"gamma = 2.0"),
        (lambda: GreedyBaseline(difference_clip=0.0), r"difference_clip = 0.0; valid: a positive number"),
        (lambda: GreedyBaseline(discount=1.1), r"discount = 1.1"),
    ],
)
def test_arguments_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
