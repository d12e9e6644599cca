"""Group advantages: published numbers, plain loops over groups of any size, reductions."""

import math
import statistics

import pytest
import torch
from advantage_batches import answers, rich
from hypothesis import given, settings
from hypothesis import strategies as st

from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline import PipelineStep
from decisionrl.pipeline.group_advantages import GroupNormalized, LeaveOneOut, ProcessNormalized, TokenGroupAverage
from decisionrl.pipeline.groups import Groups, occurrence
from decisionrl.pipeline.returns import outcomes


def first(step: PipelineStep, batch: Trajectories) -> list[float]:
    advantage = step(batch).advantage
    assert advantage is not None
    return list(advantage[:, 0].tolist())


HALF, QUARTER = [1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("step", "outcome", "expected"),
    [
        (GroupNormalized(), HALF, [0.866024, -0.866024, -0.866024, 0.866024]),
        (GroupNormalized(eps=1e-4), HALF, [0.865875, -0.865875, -0.865875, 0.865875]),
        (GroupNormalized(), QUARTER, [1.499997, -0.499999, -0.499999, -0.499999]),
        (GroupNormalized(population=True), QUARTER, [1.732047, -0.577349, -0.577349, -0.577349]),
        (GroupNormalized(population=True, eps=0.0), HALF, [1.0, -1.0, -1.0, 1.0]),
        (GroupNormalized(scale="none"), QUARTER, [0.75, -0.25, -0.25, -0.25]),
        (LeaveOneOut(), QUARTER, [1.0, -1 / 3, -1 / 3, -1 / 3]),
    ],
)
def test_known_numbers(step: PipelineStep, outcome: list[float], expected: list[float]) -> None:
    assert first(step, answers(outcome)) == pytest.approx(expected, abs=1e-6)


@given(
    data=st.lists(st.tuples(st.integers(-3, 3), st.floats(-10, 10, width=16)), min_size=1, max_size=12),
    population=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_by_plain_loops(data: list[tuple[int, float]], population: bool) -> None:
    group, outcome = [each[0] for each in data], [each[1] for each in data]
    batch = answers(outcome, group)
    spread = statistics.pstdev if population else statistics.stdev
    everyone = spread(outcome) if len(set(outcome)) > 1 else 0.0
    by_group = first(GroupNormalized(population=population), batch)
    by_batch = first(GroupNormalized(population=population, scale="batch"), batch)
    leave_one_out = first(LeaveOneOut(), batch)
    for i, (key, value) in enumerate(data):
        others = [each for k, (name, each) in enumerate(data) if name == key and k != i]
        members = [*others, value]
        relative = value - statistics.fmean(members)
        if len(set(members)) == 1:
            assert by_group[i] == by_batch[i] == leave_one_out[i] == 0
            continue
        assert by_group[i] == pytest.approx(relative / (spread(members) + 1e-6), abs=1e-6)
        assert by_batch[i] == pytest.approx(relative / (everyone + 1e-6), abs=1e-6)
        assert leave_one_out[i] == pytest.approx(value - statistics.fmean(others), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "step",
    [GroupNormalized(), GroupNormalized(eps=0.0), GroupNormalized(scale="batch"), LeaveOneOut(), TokenGroupAverage()],
)
def test_equal_outcomes_have_no_advantage_at_all(step: PipelineStep, dtype: torch.dtype) -> None:
    """Rounding in the mean of equal numbers must not be divided by a tiny standard deviation."""
    batch = answers([0.1, 0.1, 0.1, 0.7], [5, 5, 5, -2])
    assert first(step, batch.replace(reward=batch.reward.to(dtype))) == [0.0, 0.0, 0.0, 0.0]


def test_a_row_without_steps_is_in_no_group() -> None:
    mask = torch.tensor([[True], [True], [False], [True]])
    with_empty = answers([1.0, 0.0, 7.0, 0.0], mask=mask)
    for step in (GroupNormalized(), LeaveOneOut(), TokenGroupAverage()):
        one, other, nothing, last = first(step, with_empty)
        assert nothing == 0
        assert [one, other, last] == first(step, answers([1.0, 0.0, 0.0]))


def test_process_rewards_by_plain_loops() -> None:
    batch = rich(11)
    result = ProcessNormalized()(batch).advantage
    rewarded = batch.mask & batch.extras["step_end"]
    assert result is not None
    assert batch.group is not None
    for row in range(batch.num_sequences):
        given = batch.reward[rewarded & (batch.group == batch.group[row]).unsqueeze(1)]
        for t in range(batch.num_columns):
            later = batch.reward[row, t:][rewarded[row, t:]]
            expected = (
                ((later - given.mean()) / (given.std() + 1e-6)).sum() if batch.mask[row, t] else torch.tensor(0.0)
            )
            assert result[row, t].item() == pytest.approx(expected.item(), abs=1e-9)


def test_a_reward_at_every_step_needs_no_marks() -> None:
    batch = rich(12)
    marked = ProcessNormalized()(batch.replace(extras={"step_end": torch.ones_like(batch.mask)}))
    torch.testing.assert_close(ProcessNormalized(every_step=True)(batch.replace(extras={})).advantage, marked.advantage)


def test_one_process_reward_at_the_end_is_outcome_supervision() -> None:
    batch = answers([1.0, 0.0, 0.5], mask=torch.tensor([[True] * 3, [True, True, False], [True, False, False]]))
    process = ProcessNormalized()(batch.replace(extras={"step_end": batch.terminated}))
    torch.testing.assert_close(process.advantage, GroupNormalized()(batch).advantage)


def lengths(*counts: int) -> torch.Tensor:
    return torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)


def test_token_average_of_two_answers() -> None:
    result = TokenGroupAverage()(answers([1.0, 0.0], mask=lengths(2, 6))).advantage
    assert result is not None
    assert result[:, 0].tolist() == pytest.approx([1.732051, -0.577350], abs=1e-5)
    assert result.sum().item() == pytest.approx(0, abs=1e-12)


def test_token_average_sums_to_zero_over_the_tokens_of_every_group() -> None:
    batch = rich(12)
    assert batch.group is not None
    result = TokenGroupAverage(fallback_limit=None)(batch).advantage
    assert result is not None
    sums = torch.zeros(4, dtype=torch.float64).index_add(0, batch.group, result.sum(1))
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12)


def test_token_average_of_equal_lengths_is_grpo_with_population_deviation() -> None:
    batch = answers([1.0, 0.0, 0.3, 0.2, 0.9], [0, 0, 0, 1, 1], mask=lengths(3, 3, 3, 3, 3))
    assert first(TokenGroupAverage(), batch) == pytest.approx(first(GroupNormalized(population=True), batch))
    three, two = math.sqrt(3 / 2), math.sqrt(2)
    larger = [a * b for a, b in zip(first(GroupNormalized(), batch), [three] * 3 + [two] * 2, strict=True)]
    assert first(TokenGroupAverage(), batch) == pytest.approx(larger, abs=1e-5)


def test_an_extreme_token_average_falls_back_to_grpo_for_its_group_only() -> None:
    mask = lengths(1, 40, 2, 6)
    batch = answers([1.0, 0.0, 1.0, 0.0], [0, 0, 1, 1], mask=mask)
    assert first(TokenGroupAverage(fallback_limit=None), batch)[0] == pytest.approx(math.sqrt(40), abs=1e-3)
    usual = first(GroupNormalized(), batch)
    assert first(TokenGroupAverage(), batch) == pytest.approx([*usual[:2], 1.732051, -0.577350], abs=1e-5)


def test_discounted_outcome() -> None:
    batch = answers([1.0, 1.0], mask=lengths(1, 3))
    assert first(GroupNormalized(scale="none", gamma=0.5), batch) == [0.375, -0.375]
    assert outcomes(batch.reward, batch.mask, 0.5).tolist() == [1.0, 0.25]


def test_weighted_groups() -> None:
    groups = Groups(torch.tensor([0, 0, 1, 0]), torch.tensor([2.0, 1.0, 3.0, 0.0]), 3)
    values = torch.tensor([1.0, 4.0, 5.0, torch.nan])
    assert groups.size.tolist() == [3, 3, 3, 3]
    assert groups.sum(values).tolist() == [6, 6, 15, 6]
    assert groups.mean(values).tolist() == [2, 2, 5, 2]
    assert groups.centered(values).tolist() == [-1, 2, 0, 0]
    assert groups.std(values, population=True).tolist() == pytest.approx([math.sqrt(2)] * 2 + [0, math.sqrt(2)])
    assert groups.std(values)[0].item() == pytest.approx(math.sqrt(3))
    assert groups.max(values).tolist() == [4, 4, 5, 4]


def test_occurrence_counts_earlier_equal_numbers() -> None:
    assert occurrence(torch.tensor([7, -1, 7, 7, -1, 3])).tolist() == [0, 0, 1, 2, 1, 0]


def test_unknown_arguments() -> None:
    with pytest.raises(ValueError, match="scale = 'row'; valid: group, batch, none"):
        GroupNormalized(scale="row")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"fallback_limit = 0\.0; valid: a positive number"):
        TokenGroupAverage(fallback_limit=0.0)
