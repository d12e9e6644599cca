"""Dynamic sampling and down-sampling."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_rollout_batches import of_lengths, padded, random_rollout, rollout

from decisionrl.objectives.aggregation import token_mean
from decisionrl.pipeline.filters import DownSample, DynamicSampling, most_varied


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def single_steps(rewards, group, **fields):
    return rollout(torch.ones(len(rewards), 1), reward=tensor(*rewards)[:, None], group=torch.tensor(group), **fields)


def transitions(advantage, entropy=None, group=None):
    entropy = torch.ones(len(advantage), 1, dtype=torch.float64) if entropy is None else tensor(*entropy)[:, None]
    return rollout(
        torch.ones(len(advantage), 1),
        advantage=tensor(*advantage)[:, None],
        entropy=entropy,
        group=None if group is None else torch.tensor(group),
        start_id=torch.arange(len(advantage)),
    )


# Dynamic sampling


def test_groups_of_equal_outcomes_go():
    batch = single_steps([1, 0, 0, 1, 1, 0, 5], group=[7, -2, 7, 4, 4, -2, 9])
    kept = DynamicSampling()(batch)
    assert kept.group.tolist() == [7, 7]
    assert kept.reward.flatten().tolist() == [1, 0]
    assert kept.metrics["useful_groups"].item() == 0.25


def test_mean_outcome_outside_the_bounds():
    rewards, group = [1, 0, 0, 0, 1, 1, 1, 0, 1, 0, 1, 0], [0] * 4 + [1] * 4 + [2] * 4
    batch = single_steps(rewards, group)
    assert DynamicSampling(low=0.25)(batch).group.unique().tolist() == [1, 2]
    assert DynamicSampling(high=0.75)(batch).group.unique().tolist() == [0, 2]
    assert DynamicSampling(low=0.25, high=0.75)(batch).group.unique().tolist() == [2]
    assert DynamicSampling(low=0.2, high=0.8)(batch).num_sequences == 12


def test_outcomes_are_of_whole_rows():
    reward = tensor([1, 0, 9], [0, 1, 9], [0, 0, 9], [1, 1, 9])
    batch = rollout(of_lengths(2, 2, 2, 2, 3)[:4], reward=reward, group=torch.tensor([0, 0, 1, 1]))
    assert DynamicSampling()(batch).group.tolist() == [1, 1]


def test_rows_without_own_steps_have_no_say():
    mask = torch.tensor([[1], [1], [0], [0]])
    batch = rollout(mask, reward=tensor([2], [2], [9], [9]), group=torch.tensor([0, 0, 0, 1]))
    kept = DynamicSampling()(batch)
    assert not kept.mask.any()
    assert kept.metrics["useful_groups"].item() == 0


def test_without_a_useful_group_the_loss_is_zero_with_a_graph():
    kept = DynamicSampling()(single_steps([1, 1, 0, 0], [0, 0, 1, 1], metrics={"return": torch.tensor(0.5)}))
    assert kept.num_sequences == 4
    parameter = torch.ones((), requires_grad=True)
    loss = token_mean(parameter * kept.reward, kept.mask)
    loss.backward()
    assert (loss.item(), parameter.grad.item()) == (0, 0)
    assert set(kept.metrics) == {"return", "useful_groups"}


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 1)), min_size=1, max_size=12))
@settings(max_examples=50)
def test_dynamic_sampling_against_plain_python(rows):
    batch = single_steps([float(reward) for _, reward in rows], [group for group, _ in rows])
    kept = DynamicSampling()(batch)
    useful = [g for g, _ in rows if len({reward for group, reward in rows if group == g}) == 2]
    expected = useful or [g for g, _ in rows]
    assert kept.group.tolist() == expected
    assert kept.mask.all() == bool(useful)


# Selection by variance


@given(
    st.lists(st.lists(st.integers(-4, 4), min_size=1, max_size=7), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.3, -1e9]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=50)
def test_no_subset_varies_more(groups, offset, random):
    rows = [(g, value + offset) for g, values in enumerate(groups) for value in values]
    random.shuffle(rows)
    number = [random.randint(1, len(values)) for values in groups]
    group, values = torch.tensor([g for g, _ in rows]), tensor(*(value for _, value in rows))
    chosen = most_varied(values, group, torch.tensor(number))
    for g, n in enumerate(number):
        mine = values[group == g]
        best = max(mine[list(subset)].var(correction=0) for subset in itertools.combinations(range(len(mine)), n))
        selected = values[chosen & (group == g)]
        assert len(selected) == n
        assert selected.var(correction=0).item() == pytest.approx(best.item(), abs=1e-5)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=20), st.floats(0.05, 1))
@settings(max_examples=50)
def test_what_is_selected_varies_at_least_as_much(advantage, share):
    advantage = (tensor(*advantage) - tensor(*advantage).mean()).tolist()
    chosen = DownSample(rows=(share, share), steps=(1, 1))(transitions(advantage))
    assert chosen.advantage.var().item() >= tensor(*advantage).var().item() - 1e-9
    assert chosen.num_sequences == max(2, round(share * len(advantage)))


def test_within_groups_then_across():
    #            group 0            group 1          group 2 (no use)
    advantage = [3, -1, -1, -1, 0.1, 0.1, -0.1, -0.1, 0, 0, 0, 0]
    batch = transitions(advantage, group=[5] * 4 + [1] * 4 + [3] * 4)
    within = DownSample(group_rows=(0.5, 0.5), rows=(1, 1), steps=(1, 1))(batch)
    assert within.group.tolist() == [5, 5, 1, 1, 3, 3]
    assert sorted(within.advantage.flatten().tolist()) == [-1, -0.1, 0, 0, 0.1, 3]
    across = DownSample(group_rows=(0.5, 0.5), rows=(1 / 3, 1 / 3), steps=(1, 1))(batch)
    assert sorted(across.advantage.flatten().tolist()) == [-1, -0.1, 0.1, 3]
    two = DownSample(group_rows=(0.5, 0.5), rows=(1 / 6, 1 / 6), steps=(1, 1))(batch)
    assert two.advantage.flatten().tolist() == [3, -1]
    assert two.metrics["kept_rows"].item() == pytest.approx(1 / 6)
    assert two.metrics["useful_rows"].item() == pytest.approx(2 / 3)


def test_zeros_go_first_while_there_are_others():
    advantage = [0, 5, 0, 6, 7, 8, 0, 0]
    chosen = DownSample(rows=(0.5, 0.5), steps=(1, 1))(transitions(advantage))
    assert chosen.advantage.flatten().tolist() == [5, 6, 7, 8]
    more = DownSample(rows=(0.75, 0.75), steps=(1, 1))(transitions(advantage))
    assert more.num_sequences == 6


def test_the_advantage_of_a_row_is_the_mean_over_own_steps():
    mask = of_lengths(1, 2, 4)
    advantage = tensor([3, 50, 50, 50], [-3, -3, 50, 50], [0, 0, 0, 1])
    batch = rollout(mask, advantage=advantage, start_id=torch.arange(3))
    assert DownSample(rows=(0.5, 0.5), steps=(1, 1))(batch).start_id.tolist() == [0, 1]


# Selection of steps


def test_steps_with_the_largest_scores():
    advantage, entropy = tensor([1, 1, 1, 9], [-2, -2, -2, -2]), tensor([0.4, 0.1, 3, 9], [0.4, 0.1, 0, 0.2])
    batch = rollout(of_lengths(3, 4), advantage=advantage, entropy=entropy)
    for share, expected in [
        (1 / 7, [[0, 0, 1, 0], [0, 0, 0, 0]]),
        (2 / 7, [[0, 0, 1, 0], [1, 0, 0, 0]]),
        (3 / 7, [[1, 0, 1, 0], [1, 0, 0, 1]]),  # a tie
        (1, [[1, 1, 1, 0], [1, 1, 1, 1]]),
    ]:
        chosen = DownSample(rows=(1, 1), steps=(share, share))(batch)
        assert chosen.extras["kept"].long().tolist() == expected
        assert torch.equal(chosen.mask, batch.mask)
        assert chosen.metrics["kept_steps"].item() == pytest.approx(sum(map(sum, expected)) / 7)


@pytest.mark.parametrize("grouped", [True, False])
def test_everything_kept_is_the_same_batch(grouped):
    batch = random_rollout(0) if grouped else random_rollout(0, group=None)
    batch = batch.replace(metrics={"return": torch.tensor(1.0)})
    chosen = DownSample(group_rows=(1, 1), rows=(1, 1), steps=(1, 1))(batch)
    for name in ("reward", "advantage", "mask", "action", "group"):
        before, after = getattr(batch, name), getattr(chosen, name)
        assert (before is None and after is None) or torch.equal(before.nan_to_num(), after.nan_to_num())
    assert torch.equal(chosen.extras["kept"], batch.mask)
    assert "return" in chosen.metrics


def test_garbage_outside_the_mask_changes_nothing():
    batch, select = random_rollout(3), DownSample(rows=(0.5, 0.5), steps=(0.4, 0.4))
    chosen, longer = select(batch), select(padded(batch))
    assert torch.equal(chosen.group, longer.group)
    assert torch.equal(longer.extras["kept"][:, : batch.num_columns], chosen.extras["kept"])
    assert not longer.extras["kept"][:, batch.num_columns :].any()


def test_order_of_rows_does_not_matter():
    batch, select = random_rollout(4, start_id=torch.arange(8)), DownSample(rows=(0.5, 0.5), steps=(0.4, 0.4))
    order = torch.randperm(8)
    chosen, mixed = select(batch), select(batch.rows(order))
    again = mixed.rows(mixed.start_id.argsort())
    assert torch.equal(again.start_id, chosen.start_id)
    assert torch.equal(again.extras["kept"], chosen.extras["kept"])


def test_schedule():
    batch = transitions(list(range(-10, 11)), entropy=[1 + i / 100 for i in range(21)])
    select = DownSample(rows=(4 / 21, 1.0), steps=(0.5, 1.0))
    for p, rows, steps in [(0.0, 4, 2), (0.5, round(12.5), round(12.5) * 0.75), (1.0, 21, 21)]:
        select.set_progress(p)
        chosen = select(batch)
        assert chosen.num_sequences == rows
        assert chosen.extras["kept"].sum().item() == steps


def test_schedule_is_saved():
    first, second = DownSample(), DownSample()
    first.set_progress(0.6)
    second.load_state_dict(first.state_dict())
    batch = random_rollout(5)
    assert torch.equal(first(batch).extras["kept"], second(batch).extras["kept"])
    assert first.state_dict() == second.state_dict() == {"progress": 0.6}


def test_a_lone_row_and_a_batch_without_steps():
    assert DownSample()(transitions([1.0])).num_sequences == 1
    empty = rollout(torch.zeros(3, 2), advantage=torch.full((3, 2), math.nan), entropy=torch.full((3, 2), math.nan))
    chosen = DownSample()(empty)
    assert not chosen.extras["kept"].any()
    assert chosen.metrics["kept_steps"].item() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DynamicSampling(low=0.5, high=0.5), "low = 0.5, high = 0.5; valid: low < high"),
        (lambda: DynamicSampling()(rollout(torch.ones(1, 1))), "group is None"),
        (lambda: DownSample(rows=(0.0, 1.0)), r"rows = \(0.0, 1.0\); valid"),
        (lambda: DownSample().set_progress(1.5), "p = 1.5; valid: 0 to 1"),
        (lambda: DownSample()(rollout(torch.ones(1, 1))), "advantage is None"),
        (
            lambda: DownSample()(rollout(torch.ones(1, 1), advantage=torch.ones(1, 1))),
            "entropy is None",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
