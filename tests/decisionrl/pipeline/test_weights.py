"""GTPO's conflict weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_rollout_batches import padded, random_rollout, rollout

from decisionrl.pipeline.weights import ConflictWeights


def answers(*rows, advantage, group=None, **fields):
    """Rows of tokens, padded with -1, each with one advantage."""
    longest = max(map(len, rows))
    action = torch.tensor([[*row, *[-1] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
    spread = torch.tensor(advantage, dtype=torch.float64)[:, None].expand(mask.shape)
    group = torch.tensor(group or [0] * len(rows))
    return rollout(mask, action=action, advantage=torch.where(mask, spread, torch.nan), group=group, **fields)


def weights(batch, **options):
    """The weights of the own steps, row by row."""
    weight = ConflictWeights(**options)(batch).extras["weight"]
    return [row[own].tolist() for row, own in zip(weight, batch.mask, strict=True)]


def plain(rows, advantage, group):
    """The definition, one step at a time."""
    result = []
    for row, a, g in zip(rows, advantage, group, strict=True):
        peers = [(r, b) for r, b, h in zip(rows, advantage, group, strict=True) if h == g]
        factors = [1.0] * len(row)
        for direction in (1, -1):
            for position, token in enumerate(row[::direction]):
                having = [b for r, b in peers if len(r) > position and r[::direction][position] == token]
                if a == 0 or not (any(b > 0 for b in having) and any(b < 0 for b in having)):
                    break
                factors[position if direction == 1 else len(row) - 1 - position] *= 2.0 if a > 0 else 0.0
        result.append(factors)
    return result


def test_shared_beginning_and_end():
    assert weights(answers([5, 7, 9, 2], [5, 8, 9, 2], advantage=[1, -1])) == [[2, 1, 2, 2], [0, 1, 0, 0]]


def test_the_end_is_aligned_at_the_right():
    batch = answers([5, 7, 9, 2], [5, 8, 4, 9, 2], advantage=[1, -1])
    assert weights(batch) == [[2, 1, 2, 2], [0, 1, 1, 0, 0]]


def test_identical_rows():
    assert weights(answers([5, 7, 9, 2], [5, 7, 9, 2], advantage=[1, -1])) == [[4] * 4, [0] * 4]


def test_zero_rows_neither_vote_nor_change():
    assert weights(answers([5, 7], [5, 8], [5, 7], advantage=[1, 0, 0])) == [[1, 1], [1, 1], [1, 1]]
    assert weights(answers([5, 7], [5, 8], [5, 8], advantage=[1, -1, 0])) == [[2, 1], [0, 1], [1, 1]]


def test_only_rows_of_the_same_group_conflict():
    batch = answers([5, 7], [5, 8], [5, 6], advantage=[1, -1, -1], group=[3, 8, 3])
    assert weights(batch) == [[2, 1], [1, 1], [0, 1]]


def test_a_conflict_behind_a_difference_does_not_count():
    batch = answers([1, 5, 2], [3, 5, 4], advantage=[1, -1])
    assert weights(batch) == [[1, 1, 1], [1, 1, 1]]


def test_division_by_conflicts():
    batch = answers([5, 7, 9, 2], [5, 8, 9, 2], [1, 1], advantage=[1, -1, 1])
    divided = weights(batch, divide_by_conflicts=True)
    assert divided == [[pytest.approx(w / 3) for w in (2, 1, 2, 2)], [0, pytest.approx(1 / 3), 0, 0], [1, 1]]


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(-1, 1), st.integers(0, 1)),
        min_size=1,
        max_size=7,
    )
)
@settings(max_examples=50)
def test_against_the_definition(cases):
    rows, advantage, group = zip(*cases, strict=True)
    batch = answers(*rows, advantage=advantage, group=list(group))
    assert weights(batch) == plain(rows, advantage, group)


def test_garbage_outside_the_mask_changes_nothing():
    batch = random_rollout(0, rows=12, groups=2)
    assert weights(batch) == weights(padded(batch))
    left_aligned = [row[own].tolist() for row, own in zip(batch.action, batch.mask, strict=True)]
    sign = torch.where(batch.mask, batch.advantage, 0.0).sum(1).tolist()
    assert weights(batch) == plain(left_aligned, sign, batch.group.tolist())
    assert len({w for row in weights(batch) for w in row}) > 2


def test_order_of_rows_does_not_matter():
    batch, order = random_rollout(1, rows=12, groups=2), torch.randperm(12)
    assert [weights(batch)[i] for i in order] == weights(batch.rows(order))


def test_a_key_of_observation_and_action():
    batch = answers([5, 7], [5, 7], advantage=[1, -1], observation=torch.tensor([[0, 1], [0, 2]]))
    assert weights(batch) == [[4, 4], [0, 0]]
    assert weights(batch, key=lambda b: 10 * b.observation + b.action) == [[2, 1], [0, 1]]


def test_weights_multiply():
    batch = answers([5, 7], [5, 8], advantage=[1, -1], extras={"weight": torch.full((2, 2), 0.5)})
    assert weights(batch) == [[1, 0.5], [0, 0.5]]


def test_no_own_steps():
    batch = random_rollout(2)
    empty = batch.replace(mask=torch.zeros_like(batch.mask))
    assert (ConflictWeights()(empty).extras["weight"] == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": None}, "group is None"),
        ({"advantage": None}, "advantage is None"),
        ({"action": torch.zeros(2, 2)}, "the actions are torch.float32"),
        ({"action": torch.zeros(2, 2, 3, dtype=torch.int64)}, r"of shape \(2, 2, 3\); valid: whole numbers of shape"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        ConflictWeights()(answers([5, 7], [5, 8], advantage=[1, -1]).replace(**changes))
