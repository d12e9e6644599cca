"""Backward recursions against plain loops, and the statistics beside them."""

import pytest
import torch
from advantage_batches import rich
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decisionrl.pipeline.returns import (
    accumulated,
    final_step,
    following,
    generalized_advantages,
    latest,
    next_values,
    outcomes,
    rewards_to_go,
    whitened,
)


@given(steps=st.integers(1, 70), rows=st.integers(1, 3), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_accumulated_is_the_recursion(steps: int, rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    addend = torch.randn(rows, steps, generator=generator, dtype=torch.float64)
    decay = torch.rand(rows, steps, generator=generator, dtype=torch.float64)
    kept = addend.clone()
    expected = torch.zeros_like(addend)
    after = torch.zeros(rows, dtype=torch.float64)
    for t in reversed(range(steps)):
        after = addend[:, t] + decay[:, t] * after
        expected[:, t] = after
    torch.testing.assert_close(accumulated(addend, decay), expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(addend, kept)


def test_accumulated_in_single_precision_over_a_long_window() -> None:
    generator = torch.Generator().manual_seed(0)
    addend = torch.randn(2, 2048, generator=generator)
    decay = torch.full_like(addend, 0.99 * 0.95)
    exact = accumulated(addend.double(), decay.double())
    torch.testing.assert_close(accumulated(addend, decay).double(), exact, rtol=0, atol=1e-5)


def test_steps_before_and_behind() -> None:
    flag = torch.tensor([[False, True, False, True, False], [False] * 5])
    assert latest(flag).tolist() == [[-1, 1, 1, 3, 3], [-1] * 5]
    assert following(flag).tolist() == [[1, 3, 3, 5, 5], [5] * 5]
    assert final_step(flag).tolist() == [[False, False, False, True, False], [False] * 5]


def test_next_values_skip_masked_steps() -> None:
    value = torch.tensor([[1.0, torch.nan, 3.0, 4.0, torch.inf]])
    mask = torch.tensor([[True, False, True, True, False]])
    assert next_values(value, mask, torch.tensor([9.0])).tolist() == [[3.0, 3.0, 4.0, 9.0, 9.0]]


def test_rewards_to_go_by_a_plain_loop() -> None:
    batch = rich(5)
    done = batch.terminated
    result = rewards_to_go(batch.reward, batch.mask, done, 0.9)
    for row in range(batch.num_sequences):
        after = 0.0
        for t in reversed(range(batch.num_columns)):
            if batch.mask[row, t]:
                after = float(batch.reward[row, t]) + (0.0 if done[row, t] else 0.9 * after)
            assert float(result[row, t]) == pytest.approx(after, abs=1e-12)


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_generalized_advantages_by_a_plain_loop(gamma: float, lam: float) -> None:
    batch = rich(6)
    assert batch.value is not None
    assert batch.next_value is not None
    fields: list[Tensor] = [batch.reward, batch.value, batch.next_value, batch.terminated, batch.truncated, batch.mask]
    result = generalized_advantages(*fields, gamma=gamma, lam=lam)
    for row in range(batch.num_sequences):
        after = 0.0
        for t in reversed(range(batch.num_columns)):
            reward, value, next_value, terminated, truncated, counts = (each[row, t].item() for each in fields)
            if counts:
                delta = reward + (0.0 if terminated else gamma * next_value) - value
                after = delta + (0.0 if terminated or truncated else gamma * lam * after)
            assert float(result[row, t]) == pytest.approx(after, abs=1e-12)


def test_outcomes_discount_by_the_policys_own_steps() -> None:
    reward = torch.tensor([[torch.nan, 1.0, torch.nan, 2.0, 4.0]])
    mask = torch.tensor([[False, True, False, True, True]])
    assert outcomes(reward, mask).item() == 7
    assert outcomes(reward, mask, 0.5).item() == 1 + 0.5 * 2 + 0.25 * 4
    assert outcomes(reward, mask, 0.0).item() == 1


def test_whitened_has_mean_zero_and_unbiased_variance_one() -> None:
    values = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 2
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)) < 0.7
    result = whitened(torch.where(mask, values, torch.nan), mask)
    assert result[mask].mean().item() == pytest.approx(0, abs=1e-12)
    assert result[mask].var().item() == pytest.approx(1, abs=1e-8)
    assert (result[~mask] == 0).all()
    assert whitened(torch.tensor([3.0]), torch.tensor([True])).item() == 0
