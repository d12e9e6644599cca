"""Sharpening by likelihood and shaping by entropy: by hand, bounds, and the memory of the first batch."""

import math

import pytest
import torch
from advantage_batches import answers, rich

from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.pipeline.returns import outcomes
from decisionrl.pipeline.shaped_advantages import EntropyShaped, Sharpened

PLAIN = GroupNormalized(scale="none")


def likely(outcome: list[float], probability: list[float]) -> Trajectories:
    return PLAIN(answers(outcome, log_prob=torch.tensor(probability, dtype=torch.float64).log().unsqueeze(1)))


def test_an_unlikely_success_is_worth_more() -> None:
    """Geometric mean of the probabilities is 0.2: eta = 4, 1/4, 1, 1."""
    batch = likely([1.0, 1.0, 0.0, 0.0], [0.8, 0.05, 0.2, 0.2])
    result = Sharpened(novelty=0.2)(batch).advantage
    assert result is not None
    assert result[:, 0].tolist() == pytest.approx([0.5, 0.5 + 0.2 * 0.75, -0.5, -0.5])
    capped = Sharpened()(batch).advantage
    assert capped is not None
    assert capped[:, 0].tolist() == pytest.approx([0.5, 0.75, -0.5, -0.5])


@pytest.mark.parametrize("off", [Sharpened(kappa=0.0), Sharpened(novelty=0.0), Sharpened(threshold=100.0)])
def test_switched_off_it_changes_nothing(off: Sharpened) -> None:
    batch = GroupNormalized()(rich(3))
    assert torch.equal(off(batch).advantage, batch.advantage)


def test_bounds_of_sharpening() -> None:
    batch = GroupNormalized()(rich(3))
    before, after = batch.advantage, Sharpened(threshold=-10.0)(batch).advantage
    assert before is not None
    assert after is not None
    success = (outcomes(batch.reward, batch.mask) > -10).unsqueeze(1)
    better = success & (before > 0)
    assert torch.equal(after[~better], before[~better])
    assert (after >= before).all()
    assert (after <= before + 0.5 * before.clamp(min=0) + 1e-12).all()
    assert (after > before).any()


def uncertain(outcome: list[float], entropy: list[float]) -> Trajectories:
    return answers(outcome, entropy=torch.tensor(entropy, dtype=torch.float64).unsqueeze(1))


def test_entropy_is_subtracted_and_too_much_of_it_filters() -> None:
    result = EntropyShaped()(uncertain([1.0, 1.0, 0.0, 0.0], [0.2, 0.8, 0.4, 0.0]))
    assert result.advantage is not None
    assert result.advantage[:, 0].tolist() == pytest.approx([0.48, 0.0, -0.54, -0.5])
    assert result.extras["group_advantage"].tolist() == [0.5, 0.5, -0.5, -0.5]


def test_entropy_is_the_mean_over_the_rows_own_steps() -> None:
    mask = torch.tensor([[True, False, True], [True, True, False]])
    entropy = torch.tensor([[0.1, torch.nan, 0.3], [0.6, 0.2, torch.nan]], dtype=torch.float64)
    result = EntropyShaped(gamma=1.0)(answers([1.0, 0.0], mask=mask, entropy=entropy)).advantage
    assert result is not None
    torch.testing.assert_close(result, torch.tensor([[0.3, 0, 0.3], [-0.9, -0.9, 0]], dtype=torch.float64))


def test_an_initial_policy_of_high_entropy_switches_the_filter_off_for_good() -> None:
    high, low = uncertain([1.0, 0.0], [0.8, 0.9]), uncertain([1.0, 0.0], [0.8, 0.1])
    step = EntropyShaped()
    for batch, expected in ((high, [0.42, -0.59]), (low, [0.42, -0.51])):
        result = step(batch).advantage
        assert result is not None
        assert result[:, 0].tolist() == pytest.approx(expected)
    fresh, release = EntropyShaped()(low).advantage, EntropyShaped(initial_branch=False, threshold=0.7)(high).advantage
    assert fresh is not None
    assert release is not None
    assert fresh[0, 0] == 0
    assert (release == 0).all()


def test_the_initial_entropy_survives_a_checkpoint() -> None:
    step, resumed = EntropyShaped(), EntropyShaped()
    step(uncertain([1.0, 0.0], [0.8, 0.9]))
    resumed.load_state_dict(step.state_dict())
    low = uncertain([1.0, 0.0], [0.8, 0.1])
    assert torch.equal(resumed(low).advantage, step(low).advantage)
    assert step.initial_entropy is not None
    assert step.initial_entropy.item() == pytest.approx(0.85)
    assert step.threshold == math.log(2)


def test_without_entropy_weight_and_filter_it_is_dr_grpo() -> None:
    batch = rich(5)
    assert torch.equal(EntropyShaped(gamma=0.0, threshold=math.inf)(batch).advantage, PLAIN(batch).advantage)


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"kappa = -0\.5; valid: 0 or more"):
        Sharpened(kappa=-0.5)
    with pytest.raises(ValueError, match=r"gamma = -1\.0; valid: 0 or more"):
        EntropyShaped(gamma=-1.0)
