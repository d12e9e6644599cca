"""Running moments, the adaptive margin, the dynamic temperature and its selection, and their states."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from toy_preferences import Stated, batch_of, drawn, loss_and_gradient, random_case

from decisionrl.experience.preferences import PreferenceBatch
from decisionrl.learner import GradientLearner
from decisionrl.objectives.preference import ordered
from decisionrl.objectives.preference_adaptive import GapStatistics, GuidedSelection, RunningMoments
from decisionrl.objectives.preference_methods import build
from decisionrl.objectives.preference_scores import Sequences


def log_ratios(gaps: list[float]) -> tuple[Stated, PreferenceBatch]:
    """Pairs of sequences of two steps whose log-ratios differ by these, the second being preferred."""
    n = len(gaps)
    second = torch.tensor(gaps, dtype=torch.float64).unsqueeze(1) / 2
    log_prob = torch.cat([torch.zeros(n, 2, dtype=torch.float64), second.expand(n, 2)]) - 20
    reference = torch.full_like(log_prob, -20.0)
    mask = torch.ones(2 * n, 2, dtype=torch.bool)
    return Stated(log_prob), batch_of(mask, [1.0] * n, extras={"reference_log_prob": reference})


def test_moments_over_batches() -> None:
    batches = [drawn(n, seed=n) for n in (3, 5, 4)]
    moments, total = RunningMoments(0.9), RunningMoments(momentum=None)
    for values in batches:
        for each in (moments, total):
            each.observe(values, torch.ones_like(values))
    mean = deviation = None
    for values in batches:
        new = values.mean().item(), values.std(correction=0).item()
        mean = new[0] if mean is None else 0.9 * mean + 0.1 * new[0]
        deviation = new[1] if deviation is None else 0.9 * deviation + 0.1 * new[1]
    assert moments.mean.item() == pytest.approx(mean)
    assert moments.deviation.item() == pytest.approx(deviation)
    torch.testing.assert_close(total.mean, torch.cat(batches).mean())

    before = copy.deepcopy(moments.state_dict())
    moments.observe(torch.full((2,), torch.nan, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    assert moments.state_dict() == before
    fresh = RunningMoments(0.9)
    fresh.load_state_dict(before)
    for each in (moments, fresh):
        each.observe(batches[0], torch.ones_like(batches[0]))
    assert torch.equal(moments.mean, fresh.mean)
    with pytest.raises(ValueError, match=r"momentum = 1; valid: in \[0, 1\), or None"):
        RunningMoments(1)


def test_the_margin_of_alpha_dpo() -> None:
    """Mean log-ratios differ by 1 and 2: z is -1 and 1 after the first batch."""
    policy, batch = log_ratios([2.0, 4.0])
    objective = build("alpha_dpo", beta=0.5, gamma=0.3, alpha=0.2)
    found = objective(policy, batch).value.item()
    losses = [math.log1p(math.exp(-(0.5 * (d - 0.2 * z) - 0.3))) for d, z in ((1.0, -1.0), (2.0, 1.0))]
    assert found == pytest.approx(sum(losses) / 2, abs=1e-7)


def test_the_temperature_of_beta_dpo() -> None:
    objective = build("beta_dpo", beta=0.2, alpha=0.5, kept=1.0, momentum=0.9)
    first, second = log_ratios([1.0, 3.0]), log_ratios([6.0, 8.0])
    assert objective(*first).value.item() == pytest.approx(
        sum(math.log1p(math.exp(-0.2 * d)) for d in (1.0, 3.0)) / 2  # the first batch sets M
    )
    beta = 0.2 * (1 + 0.5 * (7 - (0.9 * 2 + 0.1 * 7)))
    expected = sum(math.log1p(math.exp(-beta * d)) for d in (6.0, 8.0)) / 2
    found, gradient = loss_and_gradient(objective, *second)
    assert found.item() == pytest.approx(expected)
    slopes = [-beta / (1 + math.exp(beta * d)) / 2 for d in (6.0, 8.0)]  # no gradient passes the temperature
    assert gradient[2:, 0].tolist() == pytest.approx(slopes)

    objective(*log_ratios([-900.0, -900.0]))
    policy, batch = log_ratios([-9000.0])
    floor = objective(policy, batch).value.item()
    assert floor == pytest.approx(1e-3 * 9000, rel=1e-3)


def test_which_pairs_beta_dpo_keeps() -> None:
    """A share of those that count, pairs far from the running mean the least often."""
    policy, batch = log_ratios([0.0, 0.1, -0.1, 0.05, -0.05, 30.0, 0.0])
    batch = dataclasses.replace(batch, weight=torch.tensor([1.0] * 6 + [0.0], dtype=torch.float64))
    statistics = GapStatistics()
    statistics.moments.load_state_dict(
        {"mean": torch.tensor(0.0), "deviation": torch.tensor(1.0), "seen": torch.ones(())}
    )
    selection = GuidedSelection(statistics, kept=0.5, generator=torch.Generator().manual_seed(0))
    pairs = ordered(batch, Sequences.evaluated(policy, batch.segments, None))
    weights = torch.stack([selection(pairs) for _ in range(200)])
    assert (weights.sum(1) == 3).all()
    assert not weights[:, 5:].any()
    share = weights[:, :5].mean(0)
    assert ((share > 0.45) & (share < 0.75)).all()  # 3 of 5 alike
    with pytest.raises(ValueError, match=r"kept = 0; valid: in \(0, 1\]"):
        GuidedSelection(statistics, kept=0, generator=torch.Generator())


@pytest.mark.parametrize("name", ["alpha_dpo", "beta_dpo", "bco"])
def test_states_move_in_training_only_and_are_saved(name: str) -> None:
    policy, batch = random_case((1.0, 0.0, 1.0, 0.0, 1.0, 0.0))
    objective = build(name)
    assert objective.components()

    def state() -> dict[str, Any]:
        return {key: copy.deepcopy(dict(each.state_dict())) for key, each in objective.components().items()}

    def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
        return all(torch.equal(a[key][field], b[key][field]) for key in a for field in a[key])

    initial = state()
    with torch.no_grad():
        objective(policy, batch)
    assert same(state(), initial)
    objective(policy, batch)
    assert not same(state(), initial)

    saved = state()
    expected = [objective(policy, batch).value.item() for _ in range(3)]
    other = build(name)
    for key, component in other.components().items():
        component.load_state_dict(saved[key])
    assert [other(policy, batch).value.item() for _ in range(3)] == expected


def test_a_learner_saves_the_components() -> None:
    policy, batch = random_case()
    objective = build("beta_dpo")
    learner = GradientLearner(
        policy, objective, torch.optim.SGD(policy.parameters(), 0.1), components=objective.components()
    )
    learner.update(batch)
    assert set(learner.state_dict()["components"]) == {"preference_statistics", "preference_selection"}
