"""Other rewards for recorded episodes, the best episodes, and steps with what they led to."""

import pytest
import torch
from gymnasium import spaces
from torch import nn

from decisionrl.experience.relabel import consecutive_steps, relabeled, rescaled_rewards, top_episodes
from decisionrl.experience.store import DatasetError, EpisodeStore, store_episodes

LENGTHS = (3, 5, 1, 4)


def store(rewards=None) -> EpisodeStore:
    generator = torch.Generator().manual_seed(0)
    episodes = []
    for number, steps in enumerate(LENGTHS):
        last = torch.arange(steps) == steps - 1
        episodes.append(
            {
                "observation": torch.randn(steps + 1, 2, generator=generator),
                "action": torch.randn(steps, 1, generator=generator),
                "reward": torch.randn(steps, generator=generator) if rewards is None else rewards[number],
                "terminated": last & (number % 2 == 0),
                "truncated": last & (number % 2 == 1),
            }
        )
    return store_episodes(
        episodes, observation_space=spaces.Box(-9, 9, (2,)), action_space=spaces.Box(-9, 9, (1,)), info={"env": "toy"}
    )


def with_returns(returns) -> EpisodeStore:
    return store([torch.full((n,), each / n) for n, each in zip(LENGTHS, returns, strict=True)])


def test_rescaled_returns_span_the_scale() -> None:
    episodes = store()
    found = rescaled_rewards(episodes)
    span = float(episodes.returns.max() - episodes.returns.min())
    expected = [float(each) * 1000 / span for each in episodes.reward]
    torch.testing.assert_close(found.reward, torch.tensor(expected))
    assert float(found.returns.max() - found.returns.min()) == pytest.approx(1000, rel=1e-5)
    assert found.reward.dtype == torch.float32
    assert found.info == episodes.info
    with pytest.raises(DatasetError, match=r"reward: every episode's return is 0.0; valid: returns that differ"):
        rescaled_rewards(with_returns((0.0, 0.0, 0.0, 0.0)))


class StepReward(nn.Module):
    """Observation, action and step in one number; random in training mode."""

    def rewards(self, batch):
        noise = torch.randn(batch.mask.shape) if self.training else 0.0
        return torch.where(batch.mask, batch.observation.sum(2) + 2 * batch.action[..., 0], 0.0) + noise


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_rewards_are_the_models(rows: int) -> None:
    episodes, model = store(), StepReward()
    found = relabeled(episodes, model, offset=0.5, rows=rows)
    expected = episodes.observations_before().sum(1) + 2 * episodes.action[:, 0] + 0.5
    torch.testing.assert_close(found.reward, expected)
    assert model.training
    assert torch.equal(found.terminated, episodes.terminated)
    assert not torch.equal(found.returns, episodes.returns)


class Past:
    """The sum of all valid steps of a window, a look at what the model was shown."""

    def rewards(self, batch):
        return torch.where(batch.mask, batch.action[..., 0], 0.0).sum(1, keepdim=True).expand(batch.mask.shape)


@pytest.mark.parametrize("context", [1, 3, 9])
def test_a_step_is_judged_by_what_came_before_it(context: int) -> None:
    episodes = store()
    found = relabeled(episodes, Past(), context=context, rows=5).reward.tolist()
    action, row = episodes.action[:, 0].tolist(), 0
    for steps in LENGTHS:
        for t in range(steps):
            expected = sum(action[row + max(0, t - context + 1) : row + t + 1])
            assert found[row + t] == pytest.approx(expected, abs=1e-5)
        row += steps


def test_rewards_that_cannot_be_are_named() -> None:
    class Broken:
        def rewards(self, batch):
            return torch.full(batch.mask.shape, torch.nan)

    with pytest.raises(DatasetError, match="reward is not finite in episode 0, step 0"):
        relabeled(store(), Broken())
    with pytest.raises(DatasetError, match="context = 0, rows = 1024; valid"):
        relabeled(store(), Past(), context=0)


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (1.0, [2, 0, 3, 1]),
        (8 / 13, [2, 0, 3]),  # 1 + 3 + 4 steps
        (0.6, [2, 0]),  # the next one does not fit, and none after it is looked for
        (1 / 13, [2]),
        (0.01, [2]),  # at least one
    ],
)
def test_best_episodes_up_to_a_share_of_the_steps(fraction: float, expected: list[int]) -> None:
    episodes = with_returns((3.0, -1.0, 7.0, 2.0))
    found = top_episodes(episodes, fraction)
    assert found.length.tolist() == [LENGTHS[each] for each in expected]
    assert torch.equal(found.returns, episodes.returns[expected])
    assert torch.equal(found.action, torch.cat([episodes.action[episodes.episode == each] for each in expected]))


def test_no_share_is_no_fraction() -> None:
    for fraction in (0.0, 1.1):
        with pytest.raises(DatasetError, match=f"fraction = {fraction}; valid: above 0 and at most 1"):
            top_episodes(store(), fraction)


def test_steps_of_a_row_with_what_followed() -> None:
    episodes = store()
    rows = episodes.windows(torch.tensor([0, 1, 3]), torch.tensor([0, 1, 0]), 4)
    found = consecutive_steps(rows)
    assert found.mask.tolist() == [[True, True, False], [True] * 3, [True] * 3]
    for i, (episode, start) in enumerate(((0, 0), (1, 1), (3, 0))):
        for t in range(3):
            if found.mask[i, t]:
                step = torch.tensor([start + t])
                seen = episodes.observation_at(torch.tensor([episode]), step)[0]
                after = episodes.observation_at(torch.tensor([episode]), step + 1)[0]
                assert torch.equal(found.observation[i, t], seen)
                assert torch.equal(found.extras["next_observation"][i, t], after)
                assert torch.equal(found.action[i, t], rows.action[i, t])
    assert found.extras["timestep"].shape == (3, 3)
    whole = episodes.windows(torch.tensor([1]), torch.tensor([0]), 5)
    assert consecutive_steps(whole).complete
    with pytest.raises(DatasetError, match="segments have 1 step; valid: at least 2"):
        consecutive_steps(episodes.windows(torch.tensor([1]), torch.tensor([0]), 1))
