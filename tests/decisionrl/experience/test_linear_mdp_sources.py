"""Episodes of linear MDPs: streams of their own, states that continue them, datasets part by part."""

from __future__ import annotations

import copy

import pytest
import torch

from decisionrl.envs.linear_mdp import Episodes, american_put, five_state
from decisionrl.experience.linear_mdp import BLOCK, OfflineEpisodes, OnlineEpisodes, collect
from decisionrl.policies.tabular import TabularPolicy


def equal(a: Episodes, b: Episodes) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("states", "actions", "rewards"))


def five_state_policy(runs: int) -> TabularPolicy:
    return TabularPolicy((runs, 3, 5, 16))


@pytest.mark.parametrize("taken", [0, 3, BLOCK - 1, BLOCK, BLOCK + 5])
def test_a_restored_source_goes_on_with_the_same_episodes(taken: int) -> None:
    mdp, policy = five_state(), five_state_policy(2)
    source = OnlineEpisodes(mdp, policy, seeds=[4, 5])
    for _ in range(taken):
        source.sample()
    state = copy.deepcopy(source.state_dict())
    expected = [source.sample() for _ in range(BLOCK + 2)]
    other = OnlineEpisodes(mdp, policy, seeds=[6, 7])
    other.load_state_dict(state)
    assert all(equal(other.sample(), each) for each in expected)


def test_episodes_differ_and_a_run_does_not_depend_on_the_others() -> None:
    mdp = five_state()
    together = OnlineEpisodes(mdp, five_state_policy(3), seeds=[1, 2, 1])
    alone = OnlineEpisodes(mdp, five_state_policy(1), seeds=[2])
    batches = [together.sample() for _ in range(20)]
    for batch in batches:
        assert torch.equal(batch.actions[1], alone.sample().actions[0])
        assert torch.equal(batch.actions[0], batch.actions[2])
    actions = torch.stack([batch.actions for batch in batches])
    assert (actions[1:, 0] != actions[:-1, 0]).any()
    assert (actions[:, 0] != actions[:, 1]).any()


def test_episodes_follow_the_policy_as_it_is_now() -> None:
    policy = five_state_policy(1)
    source = OnlineEpisodes(five_state(), policy, seeds=[0])
    for action in (3, 9):
        policy.table.zero_()[..., action] = 1
        assert (source.sample().actions == action).all()


def test_a_dataset_is_given_out_once_part_by_part() -> None:
    mdp = five_state()
    data = collect(mdp, five_state_policy(1).table[0], episodes=10, seeds=[0, 1])
    assert data.states.shape == (2, 10, 4)
    assert data.actions.shape == data.rewards.shape == (2, 10, 3)
    source = OfflineEpisodes(data, part=4)
    sizes = []
    parts = []
    for _ in range(3):
        parts.append(source.sample())
        sizes.append(source.steps_per_sample)
    assert sizes == [4, 4, 2]
    assert torch.equal(torch.cat([part.states for part in parts], 1), data.states)
    with pytest.raises(IndexError, match="holds 10 episodes"):
        source.sample()
    other = OfflineEpisodes(data, part=4)
    other.sample()
    again = OfflineEpisodes(data, part=4)
    again.load_state_dict(other.state_dict())
    assert equal(again.sample(), parts[1])
    assert equal(OfflineEpisodes(data).sample(), data)


def test_datasets_of_a_seed_begin_alike() -> None:
    mdp = american_put(horizon=4, start_price=torch.tensor([96.0, 104.0], dtype=torch.float64))
    hold = torch.zeros(4, 6, 2, dtype=torch.float64)
    hold[..., 0] = 1
    long, short = (collect(mdp, hold, episodes=n, seeds=[3, 9]) for n in (8, 5))
    assert torch.equal(long.states[:, :5], short.states)
    assert (long.actions == 0).all()
    assert (long.states[:, :, -1] <= 4).all()


def test_bad_requests() -> None:
    mdp = five_state()
    with pytest.raises(ValueError, match="seeds = "):
        OnlineEpisodes(mdp, five_state_policy(1), seeds=[])
    data = collect(mdp, five_state_policy(1).table[0], episodes=2, seeds=[0])
    with pytest.raises(ValueError, match="part = 0; valid"):
        OfflineEpisodes(data, part=0)
