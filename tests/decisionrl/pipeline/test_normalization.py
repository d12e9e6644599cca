"""Running moments and the normalization of rewards, against NumPy and Stable-Baselines3."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_rollout_batches import padded, rollout

from decisionrl.pipeline.normalization import NormalizeReward, RunningMoments

TINY = 1e-30
"""A prior that leaves no trace in float64."""


class Scripted(gymnasium.Env):
    """Plays back rewards and ends; the end of an episode is a column of its own in the script."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, rewards, terminated, truncated):
        self.script = list(zip(rewards, terminated, truncated, strict=True))
        self.time = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        reward, terminated, truncated = self.script[self.time]
        self.time += 1
        return np.zeros(1, np.float32), float(reward), bool(terminated), bool(truncated), {}


@pytest.fixture
def script():
    generator = torch.Generator().manual_seed(0)
    shape = (3, 24)
    # Rewards that float32, in which Stable-Baselines3 returns them, holds exactly.
    reward = (torch.randint(-64, 64, shape, generator=generator) / 8 + 2).double()
    terminated = torch.rand(shape, generator=generator) < 0.15
    truncated = (torch.rand(shape, generator=generator) < 0.1) & ~terminated
    return rollout(torch.ones(shape), reward=reward, terminated=terminated, truncated=truncated)


def play(script, gamma, clip):
    """What Stable-Baselines3 makes of the rewards, and the wrapper after the last step."""
    rows = zip(script.reward, script.terminated, script.truncated, strict=True)
    makers = [lambda row=row: Scripted(*(each.tolist() for each in row)) for row in rows]
    wrapper = VecNormalize(DummyVecEnv(makers), norm_obs=False, gamma=gamma, clip_reward=clip)
    wrapper.reset()
    actions = np.zeros(len(makers), int)
    rewards = [wrapper.step(actions)[1] for _ in range(script.num_columns)]
    return torch.from_numpy(np.stack(rewards, 1)), wrapper


def columns(batch, start, stop):
    return batch.map(lambda tensor: tensor[:, start:stop])


@given(st.lists(st.lists(st.floats(-100, 100), max_size=6), min_size=1, max_size=5))
@settings(max_examples=50)
def test_moments_of_batches_are_those_of_all_values(batches):
    moments = RunningMoments(prior_count=TINY)
    for batch in batches:
        moments.update(torch.tensor(batch, dtype=torch.float64))
    values = [value for batch in batches for value in batch]
    assert moments.count.item() == pytest.approx(len(values))
    if values:
        assert moments.mean.item() == pytest.approx(np.mean(values), abs=1e-9)
        assert moments.variance.item() == pytest.approx(np.var(values), rel=1e-9, abs=1e-9)


def test_moments_of_a_shape_and_a_mask():
    values = torch.randn(4, 5, 3)
    mask = torch.rand(4, 5) < 0.5
    moments = RunningMoments((3,), prior_count=TINY)
    moments.update(torch.where(mask[..., None], values, torch.nan), mask)
    torch.testing.assert_close(moments.mean, values[mask].double().mean(0))
    torch.testing.assert_close(moments.variance, values[mask].double().var(0, correction=0))
    assert moments.mean.dtype == torch.float64


def test_moments_are_accurate_far_from_zero():
    moments = RunningMoments(prior_count=TINY)
    values = 1e8 + torch.arange(4, dtype=torch.float64)
    for value in values:
        moments.update(value)
    assert moments.variance.item() == pytest.approx(1.25)


def test_moments_reject_wrong_shapes():
    with pytest.raises(ValueError, match=r"values are of shape \(4, 2\); valid: anything that ends with \(3,\)"):
        RunningMoments((3,)).update(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"mask is of shape \(3,\); valid: \(4,\)"):
        RunningMoments().update(torch.zeros(4), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="prior_count = 0"):
        RunningMoments(prior_count=0)


@pytest.mark.parametrize(("gamma", "clip"), [(0.9, 10.0), (0.99, 1.0), (1.0, 10.0)])
def test_windows_of_one_step_are_stable_baselines(script, gamma, clip):
    expected, wrapper = play(script, gamma, clip)
    normalize = NormalizeReward(gamma=gamma, clip=clip)
    steps = [normalize(columns(script, t, t + 1)).reward for t in range(script.num_columns)]
    torch.testing.assert_close(torch.cat(steps, 1).float(), expected, rtol=1e-6, atol=0)
    assert normalize.moments.variance.item() == pytest.approx(wrapper.ret_rms.var, rel=1e-12)
    assert normalize.moments.mean.item() == pytest.approx(wrapper.ret_rms.mean, rel=1e-12)
    assert normalize.moments.count.item() == pytest.approx(wrapper.ret_rms.count, rel=1e-12)


def test_longer_windows_end_with_the_same_statistics(script):
    _, wrapper = play(script, 0.9, 10.0)
    normalize = NormalizeReward(gamma=0.9)
    for start in (0, 7, 14):
        window = columns(script, start, start + 7 if start < 14 else 24)
        scaled = normalize(window)
    assert normalize.moments.variance.item() == pytest.approx(wrapper.ret_rms.var, rel=1e-12)
    expected = (window.reward / np.sqrt(wrapper.ret_rms.var + 1e-8)).clamp(-10, 10)
    torch.testing.assert_close(scaled.reward, expected)


def test_masked_steps_are_as_if_they_were_not_there(script):
    plain, holey = NormalizeReward(gamma=0.9), NormalizeReward(gamma=0.9)
    expected = plain(script).reward
    middle = columns(script, 0, 10)
    mixed = padded(middle, 2)
    rest = columns(script, 10, 24)
    both = rollout(
        torch.cat([mixed.mask, rest.mask], 1),
        **{
            name: torch.cat([getattr(mixed, name), getattr(rest, name)], 1)
            for name in ("reward", "terminated", "truncated")
        },
    )
    scaled = holey(both)
    torch.testing.assert_close(scaled.reward[both.mask].reshape(3, -1), expected)
    assert scaled.reward[~both.mask].isnan().all()
    torch.testing.assert_close(holey.state_dict()["running"], plain.state_dict()["running"])


def test_nothing_to_see_changes_nothing(script):
    normalize = NormalizeReward(gamma=0.9)
    normalize(script)
    before = normalize.moments.variance.clone()
    normalize(script.replace(mask=torch.zeros_like(script.mask)))
    torch.testing.assert_close(normalize.moments.variance, before, rtol=1e-15, atol=0)


def test_single_precision_stays(script):
    assert NormalizeReward(gamma=0.9)(script.replace(reward=script.reward.float())).reward.dtype == torch.float32


def test_state_round_trip(script):
    first, second = NormalizeReward(gamma=0.9), NormalizeReward(gamma=0.9)
    assert second.state_dict()["running"] is None
    first(columns(script, 0, 11))
    second.load_state_dict(first.state_dict())
    rest = columns(script, 11, 24)
    assert torch.equal(second(rest).reward, first(rest).reward)


def test_other_copies_are_an_error(script):
    normalize = NormalizeReward(gamma=0.9)
    normalize(script)
    with pytest.raises(ValueError, match="the batch has 2 rows; valid: 3"):
        normalize(script.rows(slice(2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, "gamma = 1.5; valid"),
        ({"gamma": 0.9, "clip": 0}, "clip = 0; valid"),
        ({"gamma": 0.9, "epsilon": math.inf}, "epsilon = inf; valid"),
    ],
)
def test_bad_configuration(options, message):
    with pytest.raises(ValueError, match=message):
        NormalizeReward(**options)
