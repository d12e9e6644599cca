"""Episodes that go on from a state another one went through."""

import pytest
import torch
from counting_envs import Counting, Noisy
from stub_policies import Drawn
from test_episode_source import source

from decisionrl.envs.make import make_world
from decisionrl.experience.branching import SegmentValues, Tree
from decisionrl.experience.episodes import Task, play
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.pipeline.trees import TreeAdvantage

PREFIX = torch.tensor([[0.5], [-0.25], [1.0]])


def walks(tasks, num_envs=2, **keywords):
    return play(make_world(Noisy, num_envs=num_envs), Drawn([[0.0]]), tasks, generator=None, **keywords)


@pytest.mark.parametrize("num_envs", [1, 2, 4])
def test_a_branch_begins_where_the_prefix_ends(num_envs):
    world = make_world(Noisy)
    world.reset([9])
    for action in PREFIX:
        observation = world.step(action[None]).observation.clone()
    played = walks([Task(9, PREFIX, noise) for noise in (1, 2, 1)] + [Task(9)], num_envs)
    assert played.mask.sum(1).tolist() == [5, 5, 5, 8]
    assert torch.equal(played.observation[:3, 0], observation.expand(3, 1))
    assert torch.equal(played.observation[0], played.observation[2])
    assert not torch.isclose(played.observation[0, 1], played.observation[1, 1])
    assert torch.equal(played.observation[3, 0], make_world(Noisy).reset([9])[0])


def test_the_steps_of_the_prefix_count():
    played = walks([Task(9, PREFIX, 1), Task(9)], max_steps=4)
    assert played.mask.sum(1).tolist() == [1, 4]
    assert played.truncated.sum(1).tolist() == [1, 1]


def test_a_deterministic_branch_retraces_the_episode():
    whole = play(make_world(Counting), Drawn([2]), [Task(2)], generator=None)
    parts = play(
        make_world(Counting), Drawn([2]), [Task(2, whole.action[0, :t], noise=5) for t in range(5)], generator=None
    )
    for t in range(5):
        assert parts.outcome[t] == whole.reward[0, t:].sum()


def test_segment_values_are_monte_carlo_means():
    values = SegmentValues(interval=2, rollouts=400)
    one = source([0, 1, 2, 3], env=Noisy, policy=Drawn([[-0.5], [0.5]]), values=values, num_envs=8)
    batch = one.sample()
    cut, value = batch.extras["cut"], batch.extras["state_value"]
    assert cut.any()
    for row, t in cut.nonzero().tolist():
        # reward = position after the step, a martingale: from position x before step t on, each reward is x on average
        position = batch.observation[row, t, 0]
        exact = batch.reward[row, :t].sum() + (8 - t) * position
        spread = sum((8 - t - k) ** 2 for k in range(8 - t)) ** 0.5 * (1.25 / 400) ** 0.5
        assert abs(value[row, t] - exact) < 5 * spread
    again = source([0], policy=Drawn([0]), values=SegmentValues(interval=1, threshold=1.5, rollouts=2)).sample()
    assert torch.equal(again.extras["state_value"][again.mask], again.reward.sum().expand(int(again.mask.sum())))


def test_segment_values_refuse_nonsense():
    with pytest.raises(ValueError, match="interval = 0, rollouts = 9; valid: whole numbers >= 1"):
        SegmentValues(interval=0)


def test_a_tree_by_hand():
    """Counting: start seed s, rewards s + 10 t + action, an end after 3 + s % 4 steps or 5."""
    tree = Tree(branching=(2, 3), steps=2)
    batch = source([7, 8], policy=Drawn([0, 1, 2]), tree=tree, num_envs=3).sample()
    node, parent, leaf = (batch.extras[name] for name in ("node", "parent", "leaf_reward"))
    assert batch.num_sequences == 2 * 2 + 2 * 2 * 3
    assert sorted(node.tolist()) == list(range(16))
    assert (parent == -1).sum() == 4
    for row in range(16):
        steps = int(batch.mask[row].sum())
        path, at = [row], int(parent[row])
        while at >= 0:
            above = int((node == at).nonzero())
            assert batch.start_id[above] == batch.start_id[row]
            path.insert(0, above)
            at = int(parent[above])
        if len(path) == 1:
            assert steps == 2
            assert leaf[row].isnan()
            continue
        assert len(path) == 2
        # the edge begins where its parent ended
        assert batch.observation[row, 0, 1] == 2
        assert batch.observation[row, 0, 2] == batch.action[path[0], 1]
        assert batch.observation[row, 0, 0] == batch.observation[path[0], 0, 0]
        assert leaf[row] == batch.reward[path[0]].sum() + batch.reward[row].sum()
    advantage = TreeAdvantage()(batch).advantage
    for each in set(parent.tolist()):
        for group in (0, 1):
            siblings = (parent == each) & (batch.group == group)
            if siblings.any():
                assert advantage[siblings, 0].sum().abs() < 1e-2


def test_branches_that_end_early_are_leaves():
    batch = source([1], policy=Drawn([0]), tree=Tree(branching=(2, 2), steps=50)).sample()
    assert batch.num_sequences == 2
    assert torch.equal(batch.extras["leaf_reward"], batch.reward.sum(1))


def test_a_tree_of_depth_one_is_a_group():
    batch = source([3, 4], env=Noisy, policy=Drawn([[-0.5], [0.5]]), tree=Tree(branching=(5,), steps=1)).sample()
    advantage = TreeAdvantage()(batch).advantage
    expected = GroupNormalized(scale="none")(batch).advantage
    torch.testing.assert_close(advantage, expected)


def test_trees_refuse_nonsense():
    with pytest.raises(ValueError, match=r"branching = \(\), steps = 30"):
        Tree(branching=())
