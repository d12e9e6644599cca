"""Values and advantages of trees of answers."""

import statistics

import pytest
import torch
from advantage_batches import answers
from hypothesis import given, settings
from hypothesis import strategies as st

from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.pipeline.trees import TreeAdvantage, tree_values

NAN = float("nan")


def edges(node: list[int], parent: list[int], leaf_reward: list[float], group: list[int] | None = None) -> Trajectories:
    extras = {
        "node": torch.tensor(node),
        "parent": torch.tensor(parent),
        "leaf_reward": torch.tensor(leaf_reward, dtype=torch.float64),
    }
    return answers([0.0] * len(node), group, extras=extras)


def first(step: TreeAdvantage, batch: Trajectories) -> list[float]:
    advantage = step(batch).advantage
    assert advantage is not None
    return list(advantage[:, 0].tolist())


TREE = edges([4, 1, 2, 3], [2, -1, -1, 2], [1.0, 1.0, NAN, 0.0])


def test_values_are_means_over_children() -> None:
    parent = torch.tensor([-1, 0, 0, 1, 1, 1, -1])
    reward = torch.tensor([NAN, NAN, 1.0, 1.0, 0.0, 0.5, 0.25])
    assert tree_values(parent, reward).tolist() == [0.75, 0.5, 1.0, 1.0, 0.0, 0.5, 0.25]


def test_a_small_tree() -> None:
    assert first(TreeAdvantage(), TREE) == [0.5, 0.25, -0.25, -0.5]
    assert first(TreeAdvantage(baseline="grpo"), TREE) == pytest.approx([1.0, 1.0, -1.0, -1.0], abs=1e-6)


def test_trees_of_other_groups_have_their_own_names() -> None:
    both = edges([4, 1, 2, 3, 1, 2], [2, -1, -1, 2, -1, -1], [1.0, 1.0, NAN, 0.0, 1.0, 0.0], [9, 9, 9, 9, 4, 4])
    assert first(TreeAdvantage(), both) == [0.5, 0.25, -0.25, -0.5, 0.5, -0.5]


@pytest.mark.parametrize(
    ("baseline", "estimator"),
    [("rloo", GroupNormalized(scale="none")), ("grpo", GroupNormalized(population=True, eps=1e-8))],
)
def test_depth_one_is_a_group_with_mean_baseline(baseline: str, estimator: GroupNormalized) -> None:
    reward = [1.0, 0.25, 0.5, 0.0, 1.0]
    group = [0, 0, 0, 1, 1]
    flat = edges([0, 1, 2, 0, 1], [-1] * 5, reward, group)
    assert torch.equal(
        TreeAdvantage(baseline=baseline)(flat).advantage,  # type: ignore[arg-type]
        estimator(answers(reward, group)).advantage,
    )


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_random_trees_by_recursion(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 15))
    parents = [data.draw(st.integers(-1, n - 1)) for n in range(size)]
    rewards = [NAN if n in parents else data.draw(st.floats(-1, 1, width=16)) for n in range(size)]

    def value(node: int) -> float:
        children = [n for n in range(size) if parents[n] == node]
        return statistics.fmean(value(n) for n in children) if children else rewards[node]

    order = data.draw(st.permutations(range(size)))
    batch = edges(list(order), [parents[n] for n in order], [rewards[n] for n in order])
    result = first(TreeAdvantage(), batch)
    for place, node in enumerate(order):
        assert result[place] == pytest.approx(value(node) - value(parents[node]), abs=1e-9)
    for node in set(parents):
        assert sum(result[place] for place, n in enumerate(order) if parents[n] == node) == pytest.approx(0, abs=1e-9)


def test_equal_siblings_have_no_advantage_at_all() -> None:
    batch = edges([0, 1, 2], [-1] * 3, [0.1] * 3)
    assert first(TreeAdvantage(), batch) == first(TreeAdvantage(baseline="grpo"), batch) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (edges([1, 2], [-1, -1], [1.0, NAN]), "neither a reward nor children"),
        (edges([1, 1], [-1, -1], [1.0, 0.0]), "names a node twice"),
        (edges([1, 2], [-1, 7], [1.0, 0.0]), "2 nodes without a row in 1 groups"),
        (edges([1, 2, 3], [2, 1, -1], [NAN, NAN, 0.0]), "neither a reward nor children"),
    ],
)
def test_rows_that_are_no_tree(batch: Trajectories, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TreeAdvantage()(batch)


def test_unknown_baseline() -> None:
    with pytest.raises(ValueError, match="baseline = 'mean'; valid: rloo, grpo"):
        TreeAdvantage(baseline="mean")  # type: ignore[arg-type]
