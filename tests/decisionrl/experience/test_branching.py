"""Episodes that go on from a state another one went through."""

import pytest
import torch
from counting_envs import Counting, Noisy
from stub_policies import Drawn
from test_episode_source import source

from decisionrl.envs.make import make_world
from decisionrl.experience.branching import SegmentValues
from decisionrl.experience.episodes import Task, play

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
