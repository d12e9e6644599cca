"""The risk weight at known quantiles, its limits, bundles, and the tracker."""

from typing import Any

import pytest
import torch
from advantage_batches import answers
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.pipeline.risk import Form, Risk, bundles, risk_weight

SCORES = torch.arange(6, dtype=torch.float64)


def weight(form: Form, *, omega: float = 0.5) -> list[float]:
    low, high = SCORES.new_tensor(1.0), SCORES.new_tensor(4.0)
    return list(risk_weight(SCORES, low, high, alpha=0.2, beta=0.8, omega=omega, form=form).tolist())


def result(step: Risk, batch: Trajectories) -> Tensor:
    advantage = step(batch).advantage
    assert advantage is not None
    return advantage[:, 0]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("paper", [-4.5, -3.0, -2.0, -1.0, 0.0, 0.0]),
        ("release-constant", [-5.0, -2.0, -4 / 3, -2 / 3, 0.0, 0.0]),
        ("release", [-3.0, 0.0, 2 / 3, 4 / 3, 2.0, 2.0]),
        ("risk-seeking", [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]),
    ],
)
def test_known_numbers(form: Form, expected: list[float]) -> None:
    assert weight(form) == pytest.approx(expected, abs=1e-12)


def test_without_omega_it_is_cvar_at_beta() -> None:
    assert weight("paper", omega=0.0) == [-4.0, -3.0, -2.0, -1.0, 0.0, 0.0]


def test_the_weight_never_falls_and_never_is_positive() -> None:
    scores = torch.linspace(-3, 8, 200, dtype=torch.float64)
    values = risk_weight(
        scores, scores.new_tensor(1.0), scores.new_tensor(4.0), alpha=0.2, beta=0.8, omega=0.5, form="paper"
    )
    assert (values <= 0).all()
    assert (values.diff() >= -1e-12).all()


def test_the_whole_range_is_the_mean_with_a_constant_baseline() -> None:
    batch = answers([0.0, 3.0, 1.0, 2.0])
    mean = result(Risk(alpha=0.0, beta=1.0, bundle=1), batch)
    assert mean.tolist() == [-3.0, 0.0, -2.0, -1.0]
    centered = GroupNormalized(scale="none")(batch).advantage
    assert centered is not None
    torch.testing.assert_close(mean - mean.mean(), centered[:, 0])


def test_without_a_lower_tail_new_lows_are_not_cut_off() -> None:
    step = Risk(alpha=0.0, beta=1.0, bundle=1, rate=0.0)
    result(step, answers([0.0, 1.0]))
    assert result(step, answers([-5.0, 1.0])).tolist() == [-6.0, 0.0]


def test_the_tracker_follows_the_quantiles() -> None:
    step = Risk(alpha=0.2, beta=0.8, bundle=1, rate=0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        step(answers(torch.rand(64, generator=generator, dtype=torch.float64) * 4 + 1))
    assert step.quantiles is not None
    assert step.quantiles.tolist() == pytest.approx([1.8, 4.2], abs=0.15)


def test_one_step_of_the_tracker() -> None:
    step = Risk(bundle=1)
    step(answers([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))
    assert step.quantiles is not None
    assert step.quantiles.tolist() == pytest.approx([1.0, 4.0])
    after = result(step, answers([0.0, 0.0, 2.0, 9.0]))
    assert step.quantiles.tolist() == pytest.approx([1.0 + 0.1 * (0.2 - 0.5), 4.0 + 0.1 * (0.8 - 0.75)])
    low, high = step.quantiles.tolist()
    assert after[3] == 0
    assert after[2].item() == pytest.approx(2 - high)
    assert after[0].item() == pytest.approx(-1.5 * low + low - high)


def bundled(batch: Trajectories, size: int, seed: int) -> Tensor:
    assert batch.group is not None
    return bundles(batch.group, size, torch.Generator().manual_seed(seed))


def prompts(seed: int, *, count: int = 6, size: int = 4) -> Trajectories:
    generator = torch.Generator().manual_seed(seed)
    group = (torch.arange(count) * 10).repeat(size)[torch.randperm(count * size, generator=generator)]
    return answers(torch.rand(count * size, generator=generator, dtype=torch.float64).round(decimals=2), group)


def test_a_bundle_has_one_answer_to_each_of_its_prompts() -> None:
    batch = prompts(0)
    assert batch.group is not None
    member = bundled(batch, 3, 0)
    assert torch.bincount(member).tolist() == [3] * 8
    together = {frozenset(batch.group[member == k].tolist()) for k in range(8)}
    assert len(together) == 2
    assert all(len(names) == 3 for names in together)


def test_answers_are_bundled_by_chance() -> None:
    batch = prompts(1, count=2)
    pairs = torch.zeros(8, 8)
    for seed in range(400):
        member = bundled(batch, 2, seed)
        pairs += member.unsqueeze(0) == member.unsqueeze(1)
    assert batch.group is not None
    different = batch.group.unsqueeze(0) != batch.group.unsqueeze(1)
    assert torch.equal(pairs[~different].reshape(8, 4).sum(1), torch.full((8,), 400.0))
    assert (pairs[different] / 400 - 0.25).abs().max() < 0.1


def test_everyone_in_a_bundle_gets_its_weight() -> None:
    batch = prompts(2)
    member = bundled(batch, 3, 4)
    scores = torch.zeros(8, dtype=torch.float64).index_add(0, member, batch.reward[:, 0])
    quantiles = scores.quantile(torch.tensor([0.2, 0.8], dtype=torch.float64))
    expected = risk_weight(scores, *quantiles, alpha=0.2, beta=0.8, omega=0.5, form="paper")[member]
    advantage = result(Risk(bundle=3, generator=torch.Generator().manual_seed(4)), batch)
    torch.testing.assert_close(advantage, expected)


@pytest.mark.parametrize("seed", range(4))
def test_shares_of_a_bundle_by_surplus(seed: int) -> None:
    batch, surplus = answers([0.0, 1.0, 0.0, 2.0], [0, 0, 1, 1]), [-0.5, 0.5, -1.0, 1.0]
    member = bundled(batch, 2, seed)
    plain = result(Risk(bundle=2, generator=torch.Generator().manual_seed(seed)), batch)
    shared = result(Risk(bundle=2, generator=torch.Generator().manual_seed(seed), credit="sum-mean"), batch)
    for i in range(4):
        total = sum(surplus[j] for j in range(4) if member[j] == member[i])
        assert shared[i].item() == pytest.approx(plain[i].item() * surplus[i] / total)


def test_equal_shares_where_nobody_has_a_surplus() -> None:
    batch = answers([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1])
    step = Risk(bundle=2, generator=torch.Generator().manual_seed(0), credit="sum-mean", form="release")
    step.quantiles = torch.tensor([0.0, 3.0], dtype=torch.float64)
    step.rate = 0.0
    expected = 1.0 / 0.6 / 2.5 / 2
    assert result(step, batch).tolist() == pytest.approx([expected] * 4)


def test_resumes_bit_for_bit() -> None:
    step = Risk(bundle=3, generator=torch.Generator().manual_seed(1))
    step(prompts(0))
    resumed = Risk(bundle=3, generator=torch.Generator().manual_seed(99))
    resumed.load_state_dict(step.state_dict())
    for seed in (1, 2):
        assert torch.equal(result(resumed, prompts(seed)), result(step, prompts(seed)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0.8, "beta": 0.2}, r"alpha = 0.8, beta = 0.2; valid: 0 <= alpha < beta <= 1"),
        ({"form": "code"}, r"form = 'code'; valid: paper, release"),
        ({"form": "release", "alpha": 0.0}, r"alpha = 0.0; valid: above 0"),
        ({"credit": "half"}, r"credit = 'half'; valid: uniform, sum-mean"),
        ({"omega": -1.0}, r"omega = -1.0; valid: 0 or more"),
        ({"bundle": 0}, r"bundle = 0; valid: 1 or more"),
        ({"rate": 2.0}, r"rate = 2.0; valid: in \[0, 1\]"),
        ({"bundle": 5}, r"bundle = 5 needs a generator"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Risk(**arguments)


def test_groups_that_cannot_be_bundled() -> None:
    step = Risk(bundle=2, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"groups of \[1, 2\] rows; valid for bundles: groups of one size"):
        step(answers([1.0, 0.0, 0.0], [0, 0, 1]))
    with pytest.raises(ValueError, match="3 groups; valid: a multiple of bundle = 2"):
        step(answers([1.0, 0.0, 0.0], [0, 1, 2]))
    with pytest.raises(ValueError, match="needs trajectories with group"):
        step(answers([1.0]).replace(group=None))
