"""The pairwise preference loss by itself: labels, bias, margins, weights, reductions, cloning, references."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_preferences import Stated, Table, batch_of, drawn, loss_and_gradient, random_case, sequences

from decisionrl.experience.preferences import PreferenceBatch, all_pairs
from decisionrl.learner import GradientLearner
from decisionrl.objectives.preference import Cloning, PairwisePreference, ordered, outcomes
from decisionrl.objectives.preference_adaptive import ExtraMargin
from decisionrl.objectives.preference_links import BinaryClassifier, Hinge
from decisionrl.objectives.preference_methods import build, cpl, cpl_bc, cpl_kl, dpo
from decisionrl.objectives.preference_scores import Sequences, SequenceScore
from decisionrl.policies.actor_critic import ActorCritic
from decisionrl.reference import Reference

SUM = SequenceScore()


def single(scores: list[float], label: list[float], **fields: Any) -> tuple[Stated, PreferenceBatch]:
    """Sequences of one step whose log-probability is their score."""
    policy = Stated(torch.tensor(scores, dtype=torch.float64).unsqueeze(1))
    return policy, batch_of(torch.ones(len(scores), 1, dtype=torch.bool), label, **fields)


def by_hand(policy: Stated, batch: PreferenceBatch, *, alpha: float, bias: float, gamma: float) -> float:
    """CPL, eq. 6, in plain loops."""
    scores = []
    for row, mask in zip(policy.log_prob.tolist(), batch.segments.mask.tolist(), strict=True):
        own = [value for value, counts in zip(row, mask, strict=True) if counts]
        scores.append(sum(alpha * gamma**t * value for t, value in enumerate(own)))
    total = 0.0
    for first, second, label in zip(batch.first.tolist(), batch.second.tolist(), batch.label.tolist(), strict=True):
        a, b = scores[first], scores[second]
        total += label * math.log1p(math.exp(bias * a - b)) + (1 - label) * math.log1p(math.exp(bias * b - a))
    return total / len(batch.label)


@pytest.mark.parametrize(("bias", "gamma"), [(1.0, 1.0), (0.5, 1.0), (0.75, 0.9)])
def test_it_is_the_formula_in_loops(bias: float, gamma: float) -> None:
    policy, batch = random_case()
    found = cpl(alpha=0.7, bias=bias, gamma=gamma)(policy, batch).value.item()
    assert found == pytest.approx(by_hand(policy, batch, alpha=0.7, bias=bias, gamma=gamma), abs=1e-12)


def test_one_step_with_a_reference_is_dpo_with_its_gradient() -> None:
    policy, batch = single([-0.3, -2.0, -1.1, -0.4], [1.0, 0.0])
    reference = drawn(4, 1)
    batch = dataclasses.replace(
        batch, segments=sequences(batch.segments.mask, extras={"reference_log_prob": reference})
    )
    found, gradient = loss_and_gradient(cpl_kl(alpha=0.3, bias=1.0), policy, batch)
    leaf = policy.log_prob.detach().squeeze(1).requires_grad_()
    rho = leaf - reference.squeeze(1)
    gaps = torch.stack([rho[2] - rho[0], rho[1] - rho[3]])
    expected = -torch.nn.functional.logsigmoid(0.3 * gaps).mean()
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(gradient.squeeze(1), torch.autograd.grad(expected, leaf)[0])


def test_a_constant_matters_only_under_a_bias() -> None:
    policy, batch = random_case(label=(1.0, 0.0))
    lengths = batch.segments.mask.sum(1, keepdim=True)
    moved = Stated(policy.log_prob.detach() + 3 / lengths)  # every score grows by 3
    plain, plain_gradient = loss_and_gradient(PairwisePreference(score=SUM), policy, batch)
    shifted, shifted_gradient = loss_and_gradient(PairwisePreference(score=SUM), moved, batch)
    torch.testing.assert_close(plain, shifted)
    torch.testing.assert_close(plain_gradient, shifted_gradient)
    biased = PairwisePreference(score=SUM, bias=0.5)
    assert biased(moved, batch).value < biased(policy, batch).value


@pytest.mark.parametrize("bias", [0.0, 0.5, 1.0])
def test_the_bias_scales_the_gradient_of_the_rejected(bias: float) -> None:
    policy, batch = single([-0.3, -2.0, -1.1, -0.4], [1.0, 0.0])
    _, gradient = loss_and_gradient(PairwisePreference(score=SUM, bias=bias), policy, batch)
    chosen, rejected = gradient[[2, 1], 0], gradient[[0, 3], 0]
    assert torch.equal(rejected, -bias * chosen)
    if not bias:
        expected = torch.nn.functional.softplus(-policy.log_prob[[2, 1], 0]).mean()
        torch.testing.assert_close(PairwisePreference(score=SUM, bias=0.0)(policy, batch).value, expected)


def test_a_tie_is_the_average_of_both_orders_and_sides_do_not_matter() -> None:
    objective = PairwisePreference(score=SUM, bias=0.5)
    losses = [objective(*single([-0.3, -2.0], [label])).value for label in (0.0, 0.5, 1.0, 0.2)]
    torch.testing.assert_close(losses[1], (losses[0] + losses[2]) / 2)
    torch.testing.assert_close(losses[3], 0.8 * losses[0] + 0.2 * losses[2])
    torch.testing.assert_close(objective(*single([-2.0, -0.3], [0.8])).value, losses[3])


def test_dense_pairs_are_a_double_loop_without_ties() -> None:
    log_prob, score = drawn(5, 3), torch.tensor([2.0, 0.5, 2.0, -1.0, 3.0], dtype=torch.float64)
    segments = sequences(torch.ones(5, 3, dtype=torch.bool))
    objective = PairwisePreference(score=SUM, bias=0.5)
    found = objective(Stated(log_prob), all_pairs(segments, score))
    total = log_prob.sum(1).tolist()
    losses = [
        math.log1p(math.exp(0.5 * total[j] - total[i])) for i in range(5) for j in range(5) if score[i] > score[j]
    ]
    assert found.value.item() == pytest.approx(sum(losses) / len(losses), abs=1e-12)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(objective(Stated(log_prob[order]), all_pairs(segments, score[order])).value, found.value)
    pair = objective(Stated(log_prob[:2]), batch_of(segments.mask[:2], [0.0])).value
    torch.testing.assert_close(
        objective(Stated(log_prob[:2]), all_pairs(segments.rows(slice(2)), score[:2])).value, pair
    )


def test_the_reductions_on_saturated_pairs() -> None:
    """Gaps of 17, 19 and 0.5: CPL's release, which rounds the loss of the first two to 0, divides by one pair."""
    policy, _ = single([-1.0, -40.0, -3.0], [])
    segments = sequences(torch.ones(3, 1, dtype=torch.bool))
    batch = all_pairs(segments, torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64))
    for reduction, expected in (("pairs", 0.1580), ("legacy_nonzero", 0.4741)):
        objective = PairwisePreference(score=SUM, bias=0.5, reduction=reduction)  # type: ignore[arg-type]
        assert objective(policy, batch).value.item() == pytest.approx(expected, abs=1e-4)
        assert objective(policy.float(), batch).value.item() == pytest.approx(expected, abs=1e-4)
        policy.double()


@pytest.mark.parametrize("gap", [1e4, -1e4])
def test_large_gaps_are_finite_in_float32(gap: float) -> None:
    policy, batch = single([0.0, gap], [1.0])
    loss, gradient = loss_and_gradient(PairwisePreference(score=SUM), policy.float(), batch)
    assert loss.item() == max(-gap, 0)
    assert gradient.abs().max().item() == (0 if gap > 0 else 1)


def test_weights_and_pairs_that_do_not_count() -> None:
    objective = dpo(beta=1.0)
    policy, batch = random_case()
    some = dataclasses.replace(batch, weight=torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=torch.float64))
    index = torch.tensor([0, 2, 2])
    kept = dataclasses.replace(batch, first=batch.first[index], second=batch.second[index], label=batch.label[index])
    torch.testing.assert_close(objective(policy, some).value, objective(policy, kept).value)
    metrics = objective(policy, some).metrics
    torch.testing.assert_close(metrics, {**objective(policy, kept).metrics})

    broken = Stated(policy.log_prob.detach().index_fill(0, torch.tensor([1, 5]), torch.nan))
    loss, gradient = loss_and_gradient(objective, broken, some)
    torch.testing.assert_close(loss, objective(policy, kept).value.detach())
    assert gradient.isfinite().all()
    nothing = dataclasses.replace(batch, weight=torch.zeros(4, dtype=torch.float64))
    loss, gradient = loss_and_gradient(objective, policy, nothing)
    assert loss == 0
    assert not gradient.any()


@settings(deadline=None, max_examples=40)
@given(
    data=st.data(),
    steps=st.integers(1, 4),
    padding=st.integers(1, 3),
    garbage=st.sampled_from([math.nan, math.inf, -math.inf, 1e30]),
    gamma=st.sampled_from([1.0, 0.9]),
    normalized=st.booleans(),
)
def test_padding_changes_nothing(
    data: st.DataObject, steps: int, padding: int, garbage: float, gamma: float, normalized: bool
) -> None:
    """Steps that do not count are put anywhere, with garbage in them."""
    rows = 4
    log_prob, reference = drawn(rows, steps), drawn(rows, steps, seed=1)
    wide = steps + padding
    place = torch.stack([torch.tensor(sorted(data.draw(st.permutations(range(wide)))[:steps])) for _ in range(rows)])
    mask = torch.zeros(rows, wide, dtype=torch.bool).scatter(1, place, True)

    def spread(tensor: Tensor) -> Tensor:
        return torch.full((rows, wide), garbage, dtype=torch.float64).scatter(1, place, tensor)

    score = SequenceScore(relative=True, discount=gamma, normalized=normalized)
    objective = PairwisePreference(score=score, bias=0.7, terms={"cloning_loss": Cloning()})
    narrow = batch_of(torch.ones(rows, steps, dtype=torch.bool), [1.0, 0.2], extras={"reference_log_prob": reference})
    padded = batch_of(mask, [1.0, 0.2], extras={"reference_log_prob": spread(reference)})
    expected, gradient = loss_and_gradient(objective, Stated(log_prob), narrow)
    found, wide_gradient = loss_and_gradient(objective, Stated(spread(log_prob)), padded)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(wide_gradient.gather(1, place), gradient)
    assert not wide_gradient[~mask].any()


def test_right_after_pre_training_every_score_is_zero() -> None:
    policy = Table(drawn(3, 4))
    reference = Reference(policy)
    generator = torch.Generator().manual_seed(0)
    observation, action = (torch.randint(n, (4, 6), generator=generator) for n in (3, 4))
    segments = sequences(torch.ones(4, 6, dtype=torch.bool), observation=observation, action=action)
    first = torch.arange(2)
    batch = PreferenceBatch(segments=segments, first=first, second=first + 2, label=torch.tensor([1.0, 0.0]))
    before = reference.module.logits.clone()
    loss = build("cpl_kl", reference=reference)(policy, batch)
    assert loss.value.item() == pytest.approx(math.log(2), abs=1e-15)
    assert loss.metrics["accuracy"] == 0
    (gradient,) = torch.autograd.grad(loss.value, policy.logits)
    assert gradient.abs().max() > 1e-3
    assert torch.equal(reference.module.logits, before)
    assert reference.module.logits.grad is None
    known = torch.where(segments.mask, reference.module.evaluate(segments).log_prob, 0.0)
    given = dataclasses.replace(batch, segments=segments.replace(extras={"reference_log_prob": known}))
    assert torch.equal(cpl_kl()(policy, given).value, loss.value)


def test_how_often_sequences_are_preferred() -> None:
    """A strict pair keeps one sequence, a tie both."""
    policy, batch = single([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], [1.0, 0.0, 0.5])
    won, lost = outcomes(ordered(batch, Sequences.evaluated(policy, batch.segments, None)))
    assert won.tolist() == [0, 1, 0.5, 1, 0, 0.5]
    assert lost.tolist() == [1, 0, 0.5, 0, 1, 0.5]


@pytest.mark.parametrize(
    ("of", "average", "expected"),
    [
        ("chosen", "steps", (6 + 20 + 0.5 * 8 + 0.5 * 2) / (2 + 4 + 0.5 * 2 + 0.5 * 1)),
        ("chosen", "sequences", (3 + 5 + 0.5 * 4 + 0.5 * 2) / 3),
        ("chosen", "sums", (6 + 20 + 0.5 * 8 + 0.5 * 2) / 3),
        ("all", "steps", (6 + 3 + 20 + 4 + 8 + 2) / (2 + 3 + 4 + 1 + 2 + 1)),
    ],
)
def test_cloning(of: Any, average: Any, expected: float) -> None:
    """A lost 3-step sequence and a lost single step against 2 and 4 steps, a tie, and a pair that does not count."""
    rows = [
        [3, 3, 0, 0],
        [5, 5, 5, 5],
        [4, 4, 0, 0],
        [9, 9, 9, 9],
        [1, 1, 1, 0],
        [4, 0, 0, 0],
        [2, 0, 0, 0],
        [9, 9, 9, 9],
    ]
    negative = torch.tensor(rows, dtype=torch.float64)
    batch = batch_of(negative > 0, [0.0, 0.0, 0.5, 1.0], weight=[1.0, 1.0, 1.0, 0.0])
    objective = PairwisePreference(
        score=SUM, terms={"cloning_loss": Cloning(weight=0.5, of=of, average=average)}, coefficient=1e-12
    )
    loss = objective(Stated(-negative), batch)
    assert loss.metrics["cloning_loss"].item() == pytest.approx(0.5 * expected)
    assert loss.value.item() == pytest.approx(0.5 * expected)


def test_margins_and_step_weights() -> None:
    mask = torch.ones(4, 2, dtype=torch.bool)
    reward, weight = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64), drawn(4, 2, seed=3)
    batch = batch_of(mask, [1.0, 0.0], extras={"reward": reward, "weight": weight})
    policy = Stated(drawn(4, 2))
    score = SequenceScore(step_weight="weight", length_bonus=0.25)
    objective = PairwisePreference(
        score=score, link=Hinge(10.0), margin=0.5, margins=(ExtraMargin(key="reward", weight=2.0),)
    )
    s = (weight * policy.log_prob).sum(1).tolist()
    expected = [10 - (s[2] - s[0] - 0.5 - 2 * (4 - 1)), 10 - (s[1] - s[3] - 0.5 - 2 * (2 - 8))]
    assert objective(policy, batch).value.item() == pytest.approx(sum(expected) / 2)


def test_metrics() -> None:
    policy, batch = single([-1.0, -2.0, -3.0, -0.5, -3.0, -2.5], [1.0, 1.0, 0.5], weight=[1.0, 3.0, 4.0])
    metrics = PairwisePreference(score=SequenceScore(scale=2.0))(policy, batch).metrics
    # pairs (0 loses to 3), (1 loses to 4), a tie
    expected = {
        "accuracy": 0.25,
        "score_gap": 2 * (0.5 - 3) / 4,
        "chosen_score": 2 * (-0.5 - 9) / 4,
        "rejected_score": 2 * (-1 - 6) / 4,
        "chosen_log_prob": (-0.5 - 9) / 4,
        "rejected_log_prob": (-1 - 6) / 4,
        "ties": 0.5,
    }
    assert {name: metrics[name].item() for name in expected} == pytest.approx(expected)
    assert all(not value.requires_grad for value in metrics.values())


def test_it_trains_an_actor_critic() -> None:
    """Actions of one sign are preferred; the learner's state holds the reference."""
    generator = torch.Generator().manual_seed(0)
    observations, actions = (spaces.Box(-1, 1, (n,)) for n in (3, 2))
    policy = ActorCritic(observations, actions, hidden=(8,), critic=None, generator=generator)
    mask = torch.ones(16, 5, dtype=torch.bool)
    mask[::3, 3:] = False
    observation = torch.randn(16, 5, 3, generator=generator)
    action = 0.1 * torch.randn(16, 5, 2, generator=generator)
    action[8:] += 0.5
    observation[~mask] = torch.nan
    segments = sequences(mask, observation=observation, action=action)
    first = torch.arange(8)
    batch = PreferenceBatch(segments=segments, first=first, second=first + 8, label=torch.ones(8))
    objective = build("cpl_kl", reference=Reference(policy))
    learner = GradientLearner(
        policy, objective, torch.optim.Adam(policy.parameters(), 0.03), components=objective.components()
    )
    losses = [learner.update(batch).metrics for _ in range(20)]
    assert losses[0]["loss"].item() == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1]["loss"] < 0.9 * losses[0]["loss"]
    assert losses[-1]["accuracy"] == 1
    assert set(learner.state_dict()["components"]) == {"reference"}


def test_cloning_of_all_is_cpl_bc() -> None:
    policy, batch = random_case()
    found = cpl_bc(alpha=0.1, beta=2.0)(policy, batch).value
    mask = batch.segments.mask
    cloning = -policy.log_prob[mask].mean()
    torch.testing.assert_close(found, cpl(alpha=0.1, bias=1.0)(policy, batch).value + 2 * cloning)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"bias": 1.5}, r"bias = 1.5; valid: in \[0, 1\]"),
        ({"smoothing": 0.5}, r"smoothing = 0.5; valid: in \[0, 0.5\)"),
        ({"correction": -0.1}, r"correction = -0.1; valid"),
        ({"reduction": "sum"}, "reduction = 'sum'; valid: pairs, legacy_nonzero"),
        ({"link": BinaryClassifier(), "bias": 0.5}, "BinaryClassifier, which looks at single scores"),
    ],
)
def test_settings_out_of_range(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairwisePreference(score=SUM, **settings_)


def test_what_a_batch_lacks_is_named() -> None:
    policy, batch = single([-1.0, -2.0], [1.0])
    with pytest.raises(ValueError, match="reference = None; valid: a Reference, or"):
        dpo()(policy, batch)
    with pytest.raises(ValueError, match=r"segments.extras has \[\]; valid: one with 'weight'"):
        PairwisePreference(score=SequenceScore(step_weight="weight"))(policy, batch)
    with pytest.raises(ValueError, match="scale = 0; valid: above 0"):
        SequenceScore(scale=0)
    with pytest.raises(ValueError, match="discount = 0"):
        SequenceScore(discount=0)
    with pytest.raises(ValueError, match="average = 'mean'; valid: steps, sequences, sums"):
        Cloning(average="mean")  # type: ignore[arg-type]
