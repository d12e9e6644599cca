"""What every recipe equals in its limit, shown by gradients on one batch; what padding and order must not change.

All gradients are of the first update in float64, after the policy has moved away from the one that collected the
batch, so that ratios are not 1 and clips are active.
"""

import dataclasses
import math
from typing import Any

import pytest
import torch
from toy_recipes import NAMES, WITH_CRITIC, episodes, gradient, gradient_of, raw, streams, tiny

from decisionrl.experience.trajectories import Trajectories
from decisionrl.objectives.aggregation import seq_mean_token_mean, seq_mean_token_sum, token_mean
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.regularizers import ValueLoss
from decisionrl.objectives.surrogates import Clip, Reinforce
from decisionrl.pipeline.advantages import GAE, MonteCarlo
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.pipeline.returns import outcomes, whitened, with_advantage

CASES = [(name, {}) for name in NAMES] + [(name, {"base": "critic"}) for name in WITH_CRITIC]
IDS = [" ".join([name, *arguments.values()]) for name, arguments in CASES]


def close(first: torch.Tensor, second: torch.Tensor, tolerance: float = 1e-9) -> bool:
    assert second.abs().max() > 1e-6
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance * float(second.abs().max()))


def same(name: str, at: dict[str, Any], other: str, otherwise: dict[str, Any], *, moved: float = 0.3) -> bool:
    """Whether the two have the same gradient on the same raw experience."""
    experiment = tiny(name, **at)
    batch = raw(experiment)
    return close(gradient(experiment, batch, moved=moved), gradient(tiny(other, **otherwise), batch, moved=moved))


SUM = {"scale": "none", "aggregate": "seq-mean-token-sum"}
BAPO = {"low_start": 0.8, "low_end": 0.8, "high_start": 1.2, "high_end": 1.2}
D3S = {f"{part}_{end}": 1.0 for part in ("group_rows", "rows", "steps") for end in ("first", "last")}
PPO = {"gamma": 0.99, "gae_lambda": 0.95}
CAPO = {"delta_fisher": math.inf, "delta_hessian": math.inf}
ON_POLICY = {"moved": 0.0}


@pytest.mark.parametrize(
    ("name", "limit", "apart", "other", "otherwise", "where"),
    [
        ("gspo", {}, None, "grpo", {}, ON_POLICY),
        ("sapo", {}, None, "grpo", {}, ON_POLICY),
        ("bapo", BAPO, {}, "grpo", {}, {}),
        ("bapo", {**BAPO, "base": "critic"}, {"base": "critic"}, "ppo", PPO, {}),
        ("capo", CAPO, {"delta_fisher": 1e-6}, "grpo", {}, {}),
        ("capo", {**CAPO, "base": "critic"}, {"base": "critic", "delta_fisher": 1e-6}, "ppo", PPO, {}),
        ("d3s", D3S, {}, "grpo", {}, {}),
        ("d3s", {**D3S, "base": "critic"}, {"base": "critic"}, "ppo", PPO, {}),
        ("vade", {}, None, "grpo", {}, {}),
        ("xrpo", {"kappa": 0.0, "success": 5.0}, {"success": 5.0}, "grpo", {}, {}),
        ("dapo", {"clip_high": 0.2}, {}, "grpo", {"aggregate": "token-mean"}, {}),
        ("ares", {"success": 0.0, "dual_clip": None}, None, "grpo", {"aggregate": "token-mean", "clip_high": 0.3}, {}),
    ],
)
def test_limit_is_another_recipe(
    name: str,
    limit: dict[str, Any],
    apart: dict[str, Any] | None,
    other: str,
    otherwise: dict[str, Any],
    where: dict[str, Any],
) -> None:
    assert same(name, limit, other, otherwise, **where)
    if apart is not None:
        assert not same(name, apart, other, otherwise, **where)


def test_grpo_is_reinforce_with_the_mean_of_the_group() -> None:
    batch = episodes()
    experiment = tiny("grpo", **SUM)
    reward, group = outcomes(batch.reward, batch.mask), batch.group
    assert group is not None
    mean = torch.stack([reward[group == each].mean() for each in range(3)])[group]
    objective = PolicyGradient(surrogate=Reinforce(), aggregate=seq_mean_token_sum)
    expected = gradient_of(
        experiment, objective, (lambda given: with_advantage(given, (reward - mean).unsqueeze(1)),), batch, moved=0.0
    )
    assert close(gradient(experiment, batch, moved=0.0), expected)


def test_ppo_in_one_step_is_the_policy_gradient_with_generalized_advantages() -> None:
    batch = streams()
    experiment = tiny("ppo", **PPO)
    objective = PolicyGradient(surrogate=Reinforce(), value_loss=ValueLoss(), normalize_advantage=True)
    expected = gradient_of(experiment, objective, (GAE(gamma=0.99, lam=0.95),), batch, unit="step", moved=0.0)
    assert close(gradient(experiment, batch, moved=0.0), expected)
    assert not close(gradient(experiment, batch), expected), "no longer where the batch was collected"


def test_rloo_is_reinforce_with_the_mean_of_the_group_scaled() -> None:
    batch = episodes()
    assert close(gradient(tiny("rloo"), batch, moved=0.0), 4 / 3 * gradient(tiny("grpo", **SUM), batch, moved=0.0))


def test_dapo_drops_the_groups_that_say_nothing() -> None:
    batch = episodes()
    equal = batch.reward.where((batch.group != 1).unsqueeze(1), 0.0)
    batch = batch.replace(reward=equal)
    others = batch.rows(batch.group != 1)
    expected = gradient(tiny("grpo", aggregate="token-mean", clip_high=0.28), others)
    assert close(gradient(tiny("dapo"), batch), expected)


def test_gspo_of_single_steps_is_grpo() -> None:
    first = episodes().map(lambda tensor: tensor[:, :1] if tensor.dim() > 1 else tensor)
    assert close(gradient(tiny("gspo", clip_low=0.2, clip_high=0.2), first), gradient(tiny("grpo"), first))


def test_sapo_without_temperature_is_the_ratio_without_a_clip() -> None:
    batch = episodes()
    soft = gradient(tiny("sapo", tau_positive=1e-4, tau_negative=1e-4), batch)
    assert close(soft, gradient(tiny("grpo", clip_low=1.0, clip_high=1e6), batch), 1e-5)
    assert not close(gradient(tiny("sapo"), batch), gradient(tiny("grpo"), batch), 1e-5)


def test_dcpo_on_the_first_visit_has_the_advantages_of_grpo() -> None:
    batch = episodes()
    experiment = tiny("dcpo")
    objective = PolicyGradient(surrogate=Clip(), aggregate=seq_mean_token_mean)
    expected = gradient_of(experiment, objective, (GroupNormalized(eps=0.0),), batch, moved=0.0)
    assert close(gradient(experiment, batch, moved=0.0), batch.num_sequences * expected)
    again = gradient(experiment, batch.replace(reward=batch.reward.square()), moved=0.0)
    fresh = gradient(tiny("dcpo"), batch.replace(reward=batch.reward.square()), moved=0.0)
    assert not close(again, fresh)


def test_hapo_of_equal_lengths_is_grpo_scaled() -> None:
    batch = episodes()
    shortest = int(batch.mask.sum(1).min())
    batch = batch.map(lambda tensor: tensor[:, :shortest] if tensor.shape[:2] == batch.mask.shape else tensor)
    grpo = gradient(tiny("grpo", clip_high=0.28), batch)
    # The two have the same epsilon beside different standard deviations.
    assert close(gradient(tiny("hapo", alpha=0.0, beta=0.0), batch), math.sqrt(4 / 3) * grpo, 1e-6)
    assert not close(gradient(tiny("hapo"), batch), math.sqrt(4 / 3) * grpo, 1e-6)


def test_remax_against_nothing_is_reinforce() -> None:
    batch = episodes()
    last = batch.mask & ~torch.cat([batch.mask[:, 1:], torch.zeros_like(batch.mask[:, :1])], 1)
    at_the_end = batch.replace(reward=torch.where(last, batch.reward, 0.0))
    free = {**batch.extras, "greedy_return": torch.zeros(12, dtype=torch.float64)}
    expected = gradient(tiny("reinforce", baseline=False, gamma=1.0, normalize_advantage=False), at_the_end)
    assert close(gradient(tiny("remax"), at_the_end.replace(extras=free)), expected)
    assert not close(gradient(tiny("remax"), at_the_end), expected)


def test_reinforce_with_values_is_the_policy_gradient_at_lambda_one() -> None:
    batch = streams()
    # In whole episodes nothing is left to bootstrap.
    ends = torch.zeros_like(batch.mask)
    ends[:, -1] = True
    batch = batch.replace(terminated=batch.terminated | batch.truncated | ends, truncated=torch.zeros_like(ends))
    experiment = tiny("reinforce", gamma=0.9)
    objective = PolicyGradient(
        surrogate=Reinforce(), aggregate=seq_mean_token_sum, value_loss=ValueLoss(), normalize_advantage=True
    )
    expected = gradient_of(experiment, objective, (GAE(gamma=0.9, lam=1.0),), batch)
    assert close(gradient(experiment, batch), expected, 1e-6)


def test_spo_without_a_baseline_is_normalized_over_the_batch() -> None:
    batch = episodes()
    everyone = torch.ones(12, dtype=torch.bool)

    def normalized(given: Trajectories) -> Trajectories:
        return with_advantage(given, whitened(outcomes(given.reward, given.mask), everyone).unsqueeze(1))

    objective = PolicyGradient(surrogate=Clip(low=0.2, high=0.28), aggregate=token_mean)
    experiment = tiny("spo", initial_value=0.0)
    expected = gradient_of(experiment, objective, (normalized,), batch)
    assert close(gradient(experiment, batch), expected)
    assert not close(gradient(experiment, batch), expected), "the baselines have moved"


def test_segment_spo_of_one_segment_is_the_return_less_the_value_of_the_start() -> None:
    batch = episodes()
    cut = torch.zeros_like(batch.mask)
    cut[:, 0] = True
    batch = batch.replace(extras={**batch.extras, "cut": cut})
    value = batch.extras["state_value"][:, :1]

    def less_the_value(given: Trajectories) -> Trajectories:
        difference = (outcomes(given.reward, given.mask).unsqueeze(1) - value).expand_as(given.reward)
        return with_advantage(given, whitened(difference, given.mask))

    experiment = tiny("segment_spo", threshold=1.1)
    objective = PolicyGradient(surrogate=Clip(), aggregate=token_mean)
    assert close(gradient(experiment, batch), gradient_of(experiment, objective, (less_the_value,), batch))


def test_tppo_with_windows_of_whole_episodes_is_ppo_with_monte_carlo_targets() -> None:
    batch = streams()
    ends = torch.zeros_like(batch.mask)
    ends[:, -1] = True

    def targets(given: Trajectories) -> Trajectories:
        return given.replace(returns=MonteCarlo(gamma=0.99, bootstrap=True)(given).returns)

    experiment = tiny("tppo")
    pipeline = (GAE(gamma=0.99, lam=0.95, whiten=True), targets)
    objective = PolicyGradient(surrogate=Clip(), value_loss=ValueLoss())
    for truncated in (False, True):
        over = batch.replace(truncated=ends) if truncated else batch.replace(terminated=batch.terminated | ends)
        expected = gradient_of(experiment, objective, pipeline, over, unit="step")
        assert close(gradient(tiny("tppo"), over), expected)
    assert not close(gradient(tiny("tppo"), batch), gradient_of(experiment, objective, pipeline, batch, unit="step")), (
        "unfinished episodes have no value targets"
    )


def test_d3s_with_a_critic_trains_on_the_advantages_it_chose_by() -> None:
    experiment = tiny("d3s", base="critic", rows_first=0.25)
    batch = experiment.source.sample()
    objective = experiment.learner.learner._objective
    assert not objective.normalize_advantage
    assert batch.advantage.abs().mean() > 1, "the largest of advantages with deviation 1"


def test_riskpo_without_extra_weight_is_the_conditional_value_at_risk() -> None:
    batch = episodes()

    def shortfall(given: Trajectories) -> Trajectories:
        returns = outcomes(given.reward, given.mask)
        return with_advantage(given, -(returns.quantile(0.8) - returns).clamp(min=0).unsqueeze(1))

    plain = {"center": False, "reward_scale": 1.0}
    experiment = tiny("riskpo", omega=0.0, **plain)
    objective = PolicyGradient(surrogate=Clip(), aggregate=token_mean)
    expected = gradient_of(experiment, objective, (shortfall,), batch)
    assert close(gradient(experiment, batch), expected)
    assert not close(gradient(tiny("riskpo", omega=0.5, **plain), batch), expected)


def test_vade_on_all_starts_plays_all_of_them() -> None:
    starts = tiny("vade", groups=6).source.sample().start_id
    assert sorted(starts.tolist()) == sorted(list(range(6)) * 3)


def test_gtpo_without_entropy_and_conflict_is_reinforce_with_the_mean_of_the_group() -> None:
    batch = episodes()
    assert isinstance(batch.observation, torch.Tensor)
    generator = torch.Generator().manual_seed(4)
    unlike = batch.replace(observation=torch.randn(batch.observation.shape, generator=generator, dtype=torch.float64))
    objective = PolicyGradient(surrogate=Reinforce(), aggregate=seq_mean_token_mean)
    pipeline = (GroupNormalized(scale="none"),)
    plain = {"entropy_weight": 0.0, "entropy_threshold": math.inf}
    assert close(gradient(tiny("gtpo", **plain), unlike), gradient_of(tiny("grpo"), objective, pipeline, unlike))
    shared = gradient(tiny("gtpo", **plain), batch)
    assert not close(shared, gradient_of(tiny("grpo"), objective, pipeline, batch)), "groups share their first steps"
    assert not close(gradient(tiny("gtpo"), batch), shared)


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
def test_padding_makes_no_difference(name: str, arguments: dict[str, Any]) -> None:
    experiment = tiny(name, **arguments)
    batch = raw(experiment)
    expected = gradient(experiment, batch)
    assert close(gradient(tiny(name, **arguments), padded(batch)), expected)


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
def test_order_makes_no_difference(name: str, arguments: dict[str, Any]) -> None:
    experiment = tiny(name, **arguments)
    batch = raw(experiment)
    expected = gradient(experiment, batch)
    backwards = torch.arange(batch.num_sequences).flip(0)
    assert close(gradient(tiny(name, **arguments), batch.rows(backwards)), expected)


def padded(batch: Trajectories) -> Trajectories:
    """With three more columns of garbage."""
    rows, columns = batch.mask.shape

    def pad(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[:2] != (rows, columns):
            return tensor
        garbage = math.nan if tensor.is_floating_point() else True if tensor.dtype == torch.bool else 1
        return torch.cat([tensor, tensor.new_full((rows, 3, *tensor.shape[2:]), garbage)], 1)

    wide = batch.map(pad)
    return dataclasses.replace(wide, mask=wide.mask & (torch.arange(columns + 3) < columns))
