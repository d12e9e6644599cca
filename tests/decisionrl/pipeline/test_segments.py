"""Segments: where they are cut, what they are credited with."""

import math

import pytest
import torch
from advantage_batches import rich, steps
from hypothesis import given, settings
from hypothesis import strategies as st

from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline.returns import outcomes
from decisionrl.pipeline.segments import SegmentMonteCarlo, cutpoints, partition


def test_cutpoints_are_every_fifth_unlikely_step() -> None:
    probability = torch.tensor([[1.0, 0.5, 0.95, 0.1, 0.91, 0.2, 0.3, 0.89, 0.0, 0.99, 0.4, 0.5]])
    mask = torch.ones_like(probability, dtype=torch.bool)
    mask[0, 3] = False
    low = [1, 5, 6, 7, 8, 10, 11]
    for interval, expected in ((1, low), (2, [1, 6, 8, 11]), (5, [1, 10])):
        cut = cutpoints(probability.log(), mask, interval=interval)
        assert cut[0].nonzero().flatten().tolist() == expected


@given(cuts=st.lists(st.booleans(), min_size=1, max_size=20), segments=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_partition_balances_the_cuts(cuts: list[bool], segments: int) -> None:
    cut = torch.tensor([cuts])
    kept = partition(cut, segments)
    total = sum(cuts)
    assert not (kept & ~cut).any()
    assert kept.sum() == min(total, segments)
    if total:
        segment_of_cut = (kept.cumsum(1) - 1)[cut]
        assert segment_of_cut[0] == 0
        sizes = torch.bincount(segment_of_cut)
        assert sizes.max() - sizes.min() <= 1


def chain(**fields: object) -> Trajectories:
    """Two answers: cuts at steps 1 and 3; cuts at steps 0 and 2, with a masked step of another hand between."""
    log_prob = torch.tensor([[0.99, 0.5, 0.95, 0.5, 0.5], [0.5, 0.99, 0.8, 0.99, 0.8]]).log()
    return steps(
        [[0.0, 0.0, 0.0, 0.0, 1.0], [0.0, torch.nan, 0.0, 0.0, 0.0]],
        mask=[[True] * 5, [True, False, True, True, True]],
        log_prob=log_prob,
        extras={
            "cut": torch.tensor([[False, True, False, True, False], [True, True, True, False, False]]),
            "state_value": torch.tensor(
                [[9.0, 0.25, 9.0, 0.75, 9.0], [0.5, torch.nan, 0.125, 9.0, 9.0]], dtype=torch.float64
            ),
        },
        **fields,
    )


def test_credit_of_segments() -> None:
    plain = SegmentMonteCarlo(whiten=False)(chain())
    assert plain.extras["kept"].tolist() == [[False, True, False, True, True], [True, False, True, False, True]]
    assert plain.advantage is not None
    assert plain.advantage.tolist() == [[0.0, 0.5, 0.0, 0.25, 0.25], [-0.375, 0.0, -0.125, 0.0, -0.125]]
    every = SegmentMonteCarlo(whiten=False, threshold=1.1)(chain()).advantage
    assert every is not None
    assert every.tolist() == [[0.0, 0.5, 0.5, 0.25, 0.25], [-0.375, 0.0, -0.125, -0.125, -0.125]]


def test_whitened_over_the_kept_steps() -> None:
    result = SegmentMonteCarlo()(chain())
    assert result.advantage is not None
    kept = result.extras["kept"]
    assert result.advantage[kept].mean().item() == pytest.approx(0, abs=1e-12)
    assert result.advantage[kept].var().item() == pytest.approx(1, abs=1e-6)
    assert (result.advantage[~kept] == 0).all()


def test_nothing_kept_is_no_advantage() -> None:
    batch = chain()
    sure = SegmentMonteCarlo()(batch.replace(log_prob=torch.zeros_like(batch.log_prob)))
    uncut = SegmentMonteCarlo()(
        batch.replace(extras={**batch.extras, "cut": torch.zeros_like(batch.mask)}),
    )
    for result in (sure, uncut):
        assert result.advantage is not None
        assert (result.advantage == 0).all()
        assert not result.extras["kept"].any()


def test_one_segment_is_the_outcome_minus_the_value_of_the_prompt() -> None:
    batch = rich(4)
    cut = torch.zeros_like(batch.mask)
    cut[:, 0] = True
    result = SegmentMonteCarlo(threshold=2.0, whiten=False)(
        batch.replace(extras={**batch.extras, "cut": cut})
    ).advantage
    expected = (outcomes(batch.reward, batch.mask) - batch.extras["state_value"][:, 0]).unsqueeze(1)
    torch.testing.assert_close(result, torch.where(batch.mask, expected, 0.0))


def test_advantages_of_segments_telescope() -> None:
    batch = rich(5)
    result = SegmentMonteCarlo(threshold=math.inf, whiten=False)(batch).advantage
    assert result is not None
    cut = batch.extras["cut"] & batch.mask
    for row in range(batch.num_sequences):
        begins = cut[row].nonzero().flatten().tolist()
        if begins:
            total = (batch.reward[row][batch.mask[row]].sum() - batch.extras["state_value"][row, begins[0]]).item()
            assert sum(result[row, t].item() for t in begins) == pytest.approx(total)


def test_arguments_out_of_range() -> None:
    ones = torch.ones(1, 1)
    with pytest.raises(ValueError, match=r"threshold = 0\.0; valid: a positive probability"):
        SegmentMonteCarlo(threshold=0.0)
    with pytest.raises(ValueError, match=r"threshold = -1\.0; valid: a positive probability"):
        cutpoints(ones, ones.bool(), threshold=-1.0)
    with pytest.raises(ValueError, match="interval = 0; valid: 1 or more"):
        cutpoints(ones, ones.bool(), interval=0)
    with pytest.raises(ValueError, match="segments = 0; valid: 1 or more"):
        partition(ones.bool(), 0)
