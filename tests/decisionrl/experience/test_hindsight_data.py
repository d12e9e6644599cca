"""Returns that follow each step against plain loops, and the pairs they label."""

import pytest
import torch
from gymnasium import spaces

from decisionrl.experience.datasets import DatasetSource, Pairs, Windows
from decisionrl.experience.hindsight import (
    FutureReturnPairs,
    LabeledAndUnlabeled,
    NoisyWindows,
    with_future_returns,
    with_returns_to_go,
)
from decisionrl.experience.preferences import PreferencePairs, sample_segments
from decisionrl.experience.store import DatasetError, EpisodeStore, store_episodes

LENGTHS = (7, 1, 4, 12)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def store(reward: list[torch.Tensor] | None = None) -> EpisodeStore:
    """Episodes whose observations are [episode, step]."""
    episodes = []
    for number, length in enumerate(LENGTHS):
        seen = torch.stack([torch.full((length + 1,), float(number)), torch.arange(length + 1.0)], 1)
        over = torch.arange(length) == length - 1
        rewards = torch.randn(length, generator=rng(number)) if reward is None else reward[number]
        episodes.append(
            {
                "observation": seen,
                "action": torch.zeros(length, 1),
                "reward": rewards,
                "terminated": over & (number % 2 == 0),
                "truncated": over & (number % 2 == 1),
            }
        )
    return store_episodes(episodes, observation_space=spaces.Box(-99, 99, (2,)), action_space=spaces.Box(-1, 1, (1,)))


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_returns_to_go_run_to_the_end_of_the_episode(gamma, scale):
    found = with_returns_to_go(store(), gamma=gamma, scale=scale).extras["return_to_go"].tolist()
    wanted = []
    for number, length in enumerate(LENGTHS):
        reward = torch.randn(length, generator=rng(number)).tolist()
        for t in range(length):
            wanted.append(sum(gamma**k * r for k, r in enumerate(reward[t:])) / scale)
    assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("horizon", [1, 3, 200])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_future_returns_stop_at_the_horizon_or_the_end(horizon, scale):
    found = with_future_returns(store(), horizon, scale=scale).extras["future_return"].tolist()
    wanted = []
    for number, length in enumerate(LENGTHS):
        reward = torch.randn(length, generator=rng(number)).tolist()
        for t in range(length):
            wanted.append(sum(reward[t : t + horizon]) / scale)
    assert found == pytest.approx(wanted, abs=1e-6)


def test_a_small_reward_is_not_lost_behind_a_large_sum():
    reward = [torch.full((length,), 1e4) for length in LENGTHS]
    reward[3] = torch.full((12,), 1e-3)
    found = with_future_returns(store(reward), 2).extras["future_return"]
    torch.testing.assert_close(found[-12:-1], torch.full((11,), 2e-3), rtol=1e-6, atol=0)


def test_other_extras_stay():
    both = with_returns_to_go(with_future_returns(store(), 2))
    assert set(both.extras) == {"future_return", "return_to_go"}
    assert both.extras["future_return"].dtype == both.reward.dtype


def test_pairs_are_labeled_by_what_follows_their_first_step():
    episodes = with_future_returns(store(), 3)
    batch = FutureReturnPairs(episodes=episodes, size=200, length=5)(rng())
    assert batch.segments.mask.shape == (400, 5)
    assert batch.first.tolist() == list(range(200))
    assert batch.second.tolist() == list(range(200, 400))
    future = []
    for number, begin in batch.segments.observation[:, 0].long().tolist():
        reward = torch.randn(LENGTHS[number], generator=rng(number)).tolist()
        future.append(sum(reward[begin : begin + 3]))
    for pair in range(200):
        one, two = future[pair], future[200 + pair]
        if abs(one - two) < 1e-6:
            assert float(batch.weight[pair]) == 0
        else:
            assert (float(batch.label[pair]), float(batch.weight[pair])) == (float(two > one), 1.0)


def test_equal_returns_are_ties():
    episodes = with_future_returns(store([torch.full((length,), 0.1) for length in LENGTHS]), 1)
    batch = FutureReturnPairs(episodes=episodes, size=50, length=2)(rng())
    assert batch.weight.tolist() == [0.0] * 50


def test_an_episode_is_drawn_in_proportion_to_its_length_and_the_sides_are_independent():
    episodes = with_future_returns(store(), 3)
    batch = FutureReturnPairs(episodes=episodes, size=20_000, length=1)(rng())
    drawn = batch.segments.observation[:, 0, 0].long().view(2, -1)
    share = torch.tensor(LENGTHS) / sum(LENGTHS)
    for side in drawn:
        torch.testing.assert_close(side.bincount(minlength=4) / 20_000, share, atol=0.015, rtol=0)
    together = (drawn[0] * 4 + drawn[1]).bincount(minlength=16).view(4, 4) / 20_000
    torch.testing.assert_close(together, share[:, None] * share, atol=0.015, rtol=0)


def test_a_source_goes_on_from_where_it_was_saved():
    draw = FutureReturnPairs(episodes=with_future_returns(store(), 3), size=4, length=2)
    source, resumed = DatasetSource(draw, seed=1), DatasetSource(draw, seed=2)
    source.sample()
    resumed.load_state_dict(source.state_dict())
    assert torch.equal(source.sample().segments.observation, resumed.sample().segments.observation)


def test_labeled_pairs_come_with_noisy_windows():
    episodes = store()
    segments = sample_segments(episodes, 6, 3, generator=rng())
    rows = torch.arange(3)
    pairs = PreferencePairs(segments=segments, first=rows, second=rows + 3, label=torch.tensor([0.0, 0.5, 1.0]))
    windows = Windows(episodes=episodes, size=500, length=4)
    draw = LabeledAndUnlabeled(pairs=Pairs(pairs=pairs, size=5), windows=NoisyWindows(windows=windows, std=0.1))
    batch = draw(rng())
    assert len(batch.pairs.label) == 5
    noise = batch.windows.extras["observation_noise"]
    assert noise.shape == (500, 4, 2)
    assert float(noise.std()) == pytest.approx(0.1, rel=0.05)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert torch.equal(draw(rng()).windows.extras["observation_noise"], noise)


def test_errors_name_the_field():
    with pytest.raises(DatasetError, match="extras has no 'future_return'"):
        FutureReturnPairs(episodes=store(), size=1, length=1)
    with pytest.raises(ValueError, match="horizon = 0; valid: a whole number >= 1"):
        with_future_returns(store(), 0)
    with pytest.raises(ValueError, match=r"gamma = 1.5; valid: 0 to 1"):
        with_returns_to_go(store(), gamma=1.5)
    with pytest.raises(ValueError, match="scale = 0; valid: positive"):
        with_returns_to_go(store(), scale=0)
