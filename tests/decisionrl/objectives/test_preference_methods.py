"""Every named method: its value at the reference, symmetries, padding, limits, and what equals what."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_preferences import (
    ARGUMENTS,
    EVERY_METHOD,
    Stated,
    Table,
    batch_of,
    drawn,
    every_objective,
    loss_and_gradient,
    random_case,
    sequences,
)

from decisionrl.experience.preferences import PreferenceBatch
from decisionrl.names import UnknownNameError
from decisionrl.objectives.preference_links import DiscoPOP, ReverseKL
from decisionrl.objectives.preference_methods import METHODS, Method, build
from decisionrl.objectives.preference_scores import LengthDesensitized, log_odds
from decisionrl.reference import Reference

LN2 = math.log(2)
EXO = 0.5 * (math.log(0.5) - math.log(1 - 1e-3)) + 0.5 * (math.log(0.5) - math.log(1e-3))

# policy = reference, every step with log-probability -1, equal lengths of 4, equal KLs, equal scores
AT_REFERENCE = {
    "cpl": math.log1p(math.exp(0.2)),  # S = -0.4, and S+ - 0.5 S- = -0.2
    "cpl_bc": LN2 + 1,
    "ipo": 1 / (4 * 0.1**2),
    "rso_hinge": 1.0,
    "slic": 1 + 0.1 * 4,
    "exo": EXO,
    "nca": 2 * LN2,
    "bco_pair": 2 * LN2,
    "kto": 0.5,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "sppo_hard": 2 * (1 / (2 * 1e-3)) ** 2,
    "sppo_soft": 0.0,
    "discopop": 0.5 * LN2 + 0.5,
    "simpo": math.log1p(math.exp(1.0)),
    "alphapo": math.log1p(math.exp(1.0)),
    "alpha_dpo": math.log1p(math.exp(1.5)),
    "cpo": LN2 + 1,
    "orpo": 0.1 * LN2 + 1,
    "rpo": LN2 + 1,
}

# a constant on both totals changes these: they look at single scores, or are not linear in the totals
NOT_SHIFT_INVARIANT = {
    "cpl", "cpl_kl", "cpl_bc", "slic", "cpo", "rpo", "orpo",  # a bias or a likelihood of its own
    "nca", "bco_pair", "bco", "kto", "apo_zero", "apo_down", "sppo_hard", "sppo_soft",
    "alphapo", "dpop", "wpo", "aot_unpaired",
}  # fmt: skip

LOGISTIC_IN_DELTA = {
    "dpo": 0.1, "step_dpo": 0.4, "tr_dpo": 0.1, "ld_dpo": 0.1, "length_dpo": 0.1, "f_dpo": 0.1, "odpo": 0.1,
    "tdpo1": 0.1, "tdpo2": 0.1, "aot": 0.1, "aot_unpaired": 0.1, "cpl_kl": 0.1,
}  # fmt: skip


def at_reference() -> tuple[Stated, PreferenceBatch]:
    log_prob = torch.full((6, 4), -1.0, dtype=torch.float64)
    extras = {
        "reference_log_prob": log_prob,
        "log_expected_prob": log_prob,
        "forward_kl": torch.full_like(log_prob, 0.3),
        "win_probability": torch.full((6,), 0.5, dtype=torch.float64),
    }
    score = torch.zeros(6, dtype=torch.float64)
    return Stated(log_prob), batch_of(torch.ones(6, 4, dtype=torch.bool), [1.0, 0.0, 1.0], extras=extras, score=score)


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_value_where_the_policy_is_the_reference(name: str) -> None:
    found = every_objective(name)(*at_reference()).value.item()
    assert found == pytest.approx(AT_REFERENCE.get(name, LN2), rel=1e-12)


def swapped(batch: PreferenceBatch) -> PreferenceBatch:
    return dataclasses.replace(batch, first=batch.second, second=batch.first, label=1 - batch.label)


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_which_side_a_sequence_stands_on_does_not_matter(name: str) -> None:
    label = (1.0, 0.0, 0.5, 1.0)
    policy, batch = random_case(label)
    expected, gradient = loss_and_gradient(every_objective(name), policy, batch)
    found, other = loss_and_gradient(every_objective(name), policy, swapped(batch))
    if name not in ("aot", "aot_unpaired", "beta_dpo"):  # which take a tie's first sequence as the chosen one
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(other, gradient)
    strict = dataclasses.replace(batch, label=torch.tensor([1.0, 0.0, 0.1, 1.0], dtype=torch.float64))
    found, other = loss_and_gradient(every_objective(name), policy, swapped(strict))
    expected, gradient = loss_and_gradient(every_objective(name), policy, strict)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(other, gradient)


@pytest.mark.parametrize("name", sorted(set(EVERY_METHOD) - {"sppo_soft"}))  # which has targets instead of labels
def test_the_opposite_labels_give_another_loss(name: str) -> None:
    policy, batch = random_case((1.0, 0.0, 1.0, 0.0))
    opposite = dataclasses.replace(batch, label=1 - batch.label)
    assert (every_objective(name)(policy, batch).value - every_objective(name)(policy, opposite).value).abs() > 1e-4


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_a_constant_of_the_start_matters_only_to_absolute_losses(name: str) -> None:
    """Both sequences of a pair become more likely by the same factor, under the policy."""
    policy, batch = random_case((1.0, 0.0, 1.0, 0.0))
    full = batch.segments.replace(mask=torch.ones_like(batch.segments.mask))
    batch = dataclasses.replace(batch, segments=full)
    start = torch.tensor([0.2, 0.5, 0.1, 0.7], dtype=torch.float64).repeat(2).unsqueeze(1) / 50
    moved = Stated(policy.log_prob.detach() - start)
    plain, shifted = (every_objective(name)(each, batch).value for each in (policy, moved))
    assert torch.allclose(plain, shifted, rtol=1e-12, atol=1e-12) is (name not in NOT_SHIFT_INVARIANT)


@pytest.mark.parametrize("name", EVERY_METHOD)
@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_padding_changes_nothing(name: str, garbage: float) -> None:
    policy, batch = random_case()
    expected, gradient = loss_and_gradient(every_objective(name), policy, batch)

    def padded(tensor: Tensor) -> Tensor:
        """Two more steps that do not count; with them, the others that do not hold garbage as well."""
        inside = torch.where(batch.segments.mask, tensor, garbage)
        return torch.cat([inside, torch.full((len(tensor), 2), garbage, dtype=tensor.dtype)], 1)

    mask = torch.cat([batch.segments.mask, torch.zeros(8, 2, dtype=torch.bool)], 1)
    extras = {key: padded(value) if value.dim() == 2 else value for key, value in batch.segments.extras.items()}
    wide = dataclasses.replace(batch, segments=sequences(mask, extras=extras))
    found, wider = loss_and_gradient(every_objective(name), Stated(padded(policy.log_prob.detach())), wide)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(wider[:, :5], gradient)
    assert not wider[~mask].any()


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_pairs_without_weight_do_not_count(name: str) -> None:
    policy, batch = random_case((1.0, 0.0, 1.0, 0.0))
    three = torch.tensor([0, 1, 3])
    kept = dataclasses.replace(batch, first=batch.first[three], second=batch.second[three], label=batch.label[three])
    weighted = dataclasses.replace(batch, weight=torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64))
    arguments = {**ARGUMENTS.get(name, {}), **({"kept": 1.0} if name == "beta_dpo" else {})}
    expected, gradient = loss_and_gradient(build(name, **arguments), policy, kept)
    found, other = loss_and_gradient(build(name, **arguments), policy, weighted)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(other, gradient)

    nothing = dataclasses.replace(batch, weight=torch.zeros(4, dtype=torch.float64))
    found, gradient = loss_and_gradient(build(name, **arguments), policy, nothing)
    assert found == 0
    assert not gradient.any()


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_the_reference_gets_no_gradient_and_may_be_worked_out_before(name: str) -> None:
    policy, reference = Table(drawn(3, 4)), Reference(Table(drawn(3, 4, seed=1)))
    generator = torch.Generator().manual_seed(0)
    observation, action = (torch.randint(n, (8, 5), generator=generator) for n in (3, 4))
    _, batch = random_case((1.0, 0.0, 1.0, 0.0))
    extras = {key: value for key, value in batch.segments.extras.items() if key != "reference_log_prob"}
    segments = sequences(batch.segments.mask, extras=extras, observation=observation, action=action)
    live = dataclasses.replace(batch, segments=segments)
    before = reference.module.logits.clone()
    found = build(name, reference=reference, **ARGUMENTS.get(name, {}))(policy, live).value
    found.backward()
    assert reference.module.logits.grad is None
    assert torch.equal(reference.module.logits, before)
    known = reference.module.evaluate(segments).log_prob.requires_grad_()
    given = dataclasses.replace(live, segments=segments.replace(extras={**extras, "reference_log_prob": known}))
    assert torch.equal(every_objective(name)(policy, given).value, found)


@pytest.mark.parametrize("name", sorted(LOGISTIC_IN_DELTA))
def test_far_gaps(name: str) -> None:
    """Delta -> inf: no loss, no gradient; Delta -> -inf: a gradient of beta."""
    policy, batch = at_reference()
    far = torch.tensor([-1.0] * 3 + [1.0] * 3, dtype=torch.float64).unsqueeze(1)
    same = dataclasses.replace(batch, label=torch.ones(3, dtype=torch.float64))
    loss, gradient = loss_and_gradient(every_objective(name), Stated(policy.log_prob.detach() + 1e4 * far), same)
    assert loss < 1e-12
    assert gradient.abs().max() < 1e-12
    _, gradient = loss_and_gradient(every_objective(name), Stated(policy.log_prob.detach() - 1e4 * far), same)
    torch.testing.assert_close(gradient[3:], torch.full_like(gradient[3:], -LOGISTIC_IN_DELTA[name] / 3))


EQUAL: list[tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = [
    (("cpl_kl", {"bias": 1.0, "alpha": 0.3}), ("dpo", {"beta": 0.3})),
    (("cpl", {"bias": 1.0, "alpha": 0.3}), ("cpo", {"beta": 0.3, "cpo_alpha": 0.0})),
    (("cpl_bc", {"beta": 0.0}), ("cpl", {"bias": 1.0})),
    (("step_dpo", {"beta": 0.1}), ("dpo", {})),
    (("cdpo", {"epsilon": 0.0}), ("dpo", {})),
    (("robust_dpo", {"epsilon": 0.0}), ("dpo", {})),
    (("robust_dpo", {"epsilon": 0.2, "smoothing": 0.2}), ("dpo", {})),
    (("rpo", {"alpha": 0.0}), ("dpo", {})),
    (("dpop", {"beta": 0.1, "strength": 0.0}), ("dpo", {})),
    (("length_dpo", {"alpha": 0.0}), ("dpo", {})),
    (("f_dpo", {}), ("dpo", {})),
    (("f_dpo", {"divergence": "alpha", "alpha": 1.0}), ("dpo", {})),
    (("f_dpo", {"divergence": "alpha", "alpha": 0.0}), ("f_dpo", {"divergence": "forward_kl"})),
    (("ld_dpo", {"alpha": 1.0}), ("dpo", {})),
    (("beta_dpo", {"alpha": 0.0, "kept": 1.0}), ("dpo", {})),
    (("odpo", {"alpha": 0.0}), ("dpo", {})),
    (("tdpo2", {"alpha": 0.0}), ("dpo", {})),
    (("alpha_dpo", {"alpha": 0.0, "beta": 2.0, "gamma": 1.0}), ("simpo", {})),
    (("alphapo", {"alpha": 0.0}), ("simpo", {})),
    (("aot_unpaired", {"epsilon": 0.1}), ("aot_unpaired", {"smoothing": 0.1})),
]


@pytest.mark.parametrize(("one", "other"), EQUAL, ids=[f"{a[0]}-{b[0]}-{i}" for i, (a, b) in enumerate(EQUAL)])
def test_what_equals_what(one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]) -> None:
    policy, batch = random_case()
    found, gradient = loss_and_gradient(build(one[0], **one[1]), policy, batch)
    expected, other_gradient = loss_and_gradient(build(other[0], **other[1]), policy, batch)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, other_gradient)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_aot_of_one_pair_is_dpo(name: str) -> None:
    policy, batch = random_case((0.2,))
    found, gradient = loss_and_gradient(build(name), policy, batch)
    expected, other = loss_and_gradient(build("dpo"), policy, batch)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradient, other)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_aot_sorts(name: str) -> None:
    policy, batch = random_case((1.0, 1.0, 1.0, 1.0))
    mask = batch.segments.mask
    total = torch.where(mask, policy.log_prob, 0.0).sum(1).tolist()
    reference = torch.where(mask, batch.segments.extras["reference_log_prob"], 0.0).sum(1).tolist()
    if name == "aot":
        values = [total[i + 4] - total[i] for i in range(4)]
        others = [reference[i + 4] - reference[i] for i in range(4)]
    else:
        values, others = ([total[i + k] - reference[i + k] for i in range(4)] for k in (4, 0))
    gaps = [a - b for a, b in zip(sorted(values), sorted(others), strict=True)]
    expected = sum(0.9 * math.log1p(math.exp(-0.1 * d)) + 0.1 * math.log1p(math.exp(0.1 * d)) for d in gaps) / 4
    found = build(name, epsilon=0.1)(policy, batch).value.item()
    assert found == pytest.approx(expected, abs=1e-12)


def test_equal_lengths_make_normalizing_a_matter_of_scale() -> None:
    policy, batch = random_case()
    batch = dataclasses.replace(batch, segments=batch.segments.replace(mask=torch.ones(8, 5, dtype=torch.bool)))
    found = build("ln_dpo", beta=0.5)(policy, batch).value
    torch.testing.assert_close(found, build("dpo", beta=0.1)(policy, batch).value)
    found = build("ipo", tau=0.1)(policy, batch).value
    torch.testing.assert_close(25 * found, build("ipo", tau=0.02, normalized=False)(policy, batch).value)


def test_halves() -> None:
    """Point-wise methods of both sequences of a pair."""
    policy, batch = random_case()
    torch.testing.assert_close(
        2 * build("kto", baseline="zero")(policy, batch).value, build("apo_zero")(policy, batch).value
    )
    torch.testing.assert_close(
        2 * build("bco", shift=None)(policy, batch).value, build("bco_pair")(policy, batch).value
    )
    strict = dataclasses.replace(batch, label=torch.ones(4, dtype=torch.float64))
    won = torch.tensor([0.0] * 4 + [1.0] * 4, dtype=torch.float64)
    strict = dataclasses.replace(
        strict, segments=batch.segments.replace(extras={**batch.segments.extras, "win_probability": won})
    )
    soft, hard = (build(name, beta=0.5)(policy, strict).value for name in ("sppo_soft", "sppo_hard"))
    torch.testing.assert_close(2 * soft, hard)


def one_pair(chosen: float, rejected: float, **extras: list[list[float]]) -> tuple[Stated, PreferenceBatch]:
    """Two sequences of a step with these log-probabilities, and a reference of 0."""
    policy = Stated(torch.tensor([[rejected], [chosen]], dtype=torch.float64))
    more = {key: torch.tensor(value, dtype=torch.float64) for key, value in extras.items()}
    mask = torch.ones(2, 1, dtype=torch.bool)
    return policy, batch_of(mask, [1.0], extras={"reference_log_prob": torch.zeros(2, 1, dtype=torch.float64), **more})


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("ipo", {"tau": 0.5}, (1.5 - 1) ** 2),
        ("rso_hinge", {"beta": 0.4}, 1 - 0.4 * 1.5),
        ("slic", {"delta": 2.0, "weight": 0.5}, 2 - 1.5 + 0.5 * 0.5),
        ("nca", {"beta": 1.0}, -log_sigmoid(-0.5) - 0.5 * log_sigmoid(0.5) - 0.5 * log_sigmoid(2.0)),
        ("bco_pair", {"beta": 1.0}, -log_sigmoid(-0.5) - log_sigmoid(2.0)),
        ("apo_zero", {"beta": 1.0}, 1 - math.exp(log_sigmoid(-0.5)) + math.exp(log_sigmoid(-2.0))),
        ("apo_down", {"beta": 1.0}, math.exp(log_sigmoid(-0.5)) + 1 - math.exp(log_sigmoid(1.5))),
        ("sppo_hard", {"beta": 0.5}, (-0.5 - 1) ** 2 + (-2.0 + 1) ** 2),
        ("simpo", {"beta": 2.0, "gamma": 0.5}, -log_sigmoid(2 * 1.5 - 0.5)),
        (
            "alphapo",
            {"beta": 1.0, "gamma": 0.0, "alpha": 2.0},
            -log_sigmoid((1 - math.exp(1.0)) / 2 - (1 - math.exp(4.0)) / 2),
        ),
        ("cpo", {"beta": 1.0, "cpo_alpha": 0.7}, -log_sigmoid(1.5) + 0.7 * 0.5),
        ("dpop", {"beta": 1.0, "strength": 3.0}, -log_sigmoid(1.5 - 3 * 0.5)),
        ("f_dpo", {"beta": 1.0, "divergence": "forward_kl"}, -log_sigmoid(-math.exp(0.5) + math.exp(2.0))),
        (
            "f_dpo",
            {"beta": 1.0, "divergence": "jensen_shannon"},
            -log_sigmoid(log_sigmoid(-0.5) - log_sigmoid(-2.0)),
        ),
        (
            "f_dpo",
            {"beta": 1.0, "divergence": "alpha", "alpha": 0.5},
            -log_sigmoid(math.exp(0.25) / -0.5 - math.exp(1.0) / -0.5),
        ),
    ],
)
def test_golden_values(name: str, arguments: dict[str, Any], expected: float) -> None:
    """Log-ratios of -0.5 and -2."""
    assert build(name, **arguments)(*one_pair(-0.5, -2.0)).value.item() == pytest.approx(expected, abs=1e-12)


def test_orpo() -> None:
    p, q = math.exp(-0.5), math.exp(-2.0)
    gap = math.log(p / (1 - p)) - math.log(q / (1 - q))
    found = build("orpo", beta=0.3)(*one_pair(-0.5, -2.0)).value.item()
    assert found == pytest.approx(0.5 - 0.3 * log_sigmoid(gap), abs=1e-12)
    with pytest.raises(ValueError, match=r"mean log-probability = 0.25; valid: below 0 \(odds need probabilities"):
        build("orpo")(*one_pair(0.25, -2.0))
    x = torch.tensor([-1e-6, -0.5, -0.7, -30.0, -200.0], requires_grad=True)
    odds = log_odds(x)
    exact = x.detach().double() - torch.log1p(-x.detach().double().exp())
    torch.testing.assert_close(odds.detach().double(), exact, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(odds.sum(), x)[0].isfinite().all()


def test_odpo_asks_the_teacher_how_much_better() -> None:
    policy, batch = one_pair(-0.5, -2.0)
    with pytest.raises(ValueError, match=r"batch\.score = None; valid: a teacher's score"):
        build("odpo")(policy, batch)
    scored = dataclasses.replace(batch, score=torch.tensor([1.0, 4.0], dtype=torch.float64))
    found = build("odpo", beta=1.0, alpha=0.5)(policy, scored).value.item()
    assert found == pytest.approx(-log_sigmoid(1.5 - 0.5 * math.log(3)))


def test_wpo_weighs_by_the_policys_likelihood() -> None:
    policy, batch = one_pair(-0.5, -2.0, log_expected_prob=[[-1.0], [-0.25]])
    found, gradient = loss_and_gradient(build("wpo", beta=1.0), policy, batch)
    weight = math.exp((-0.5 + 0.25) + (-2.0 + 1.0))
    assert found.item() == pytest.approx(-weight * log_sigmoid(1.5))
    assert gradient[1].item() == pytest.approx(-weight / (1 + math.exp(1.5)))  # none passes the weight
    _, likely = one_pair(-0.5, -2.0, log_expected_prob=[[-9.0], [-9.0]])
    torch.testing.assert_close(build("wpo")(policy, likely).value, build("dpo")(policy, likely).value)
    bare = build("wpo", beta=1.0, key=None)(policy, batch).value.item()
    assert bare == pytest.approx(-math.exp(-2.5) * log_sigmoid(1.5))


@pytest.mark.parametrize(("name", "alpha", "through"), [("tdpo1", 1.0, True), ("tdpo2", 0.5, False)])
def test_tdpo(name: str, alpha: float, through: bool) -> None:
    policy, batch = one_pair(-0.5, -2.0)
    kl = torch.tensor([[0.7], [0.2]], dtype=torch.float64, requires_grad=True)  # of the rejected, of the chosen
    extras = {**batch.segments.extras, "forward_kl": kl}
    batch = dataclasses.replace(batch, segments=batch.segments.replace(extras=extras))
    loss = build(name, beta=1.0)(policy, batch).value
    gap = 1.5 - alpha * (0.7 - 0.2)
    assert loss.item() == pytest.approx(-log_sigmoid(gap))
    (gradient,) = torch.autograd.grad(loss, kl)
    slope = alpha / (1 + math.exp(gap))
    assert gradient.flatten().tolist() == pytest.approx([slope, -slope if through else 0.0])


def test_length_desensitizing_in_loops() -> None:
    policy, batch = random_case((1.0, 0.0, 1.0, 0.0))
    ratio = policy.log_prob - batch.segments.extras["reference_log_prob"]
    rows = [row[mask].tolist() for row, mask in zip(ratio, batch.segments.mask, strict=True)]
    losses = []
    for i, label in enumerate(batch.label.tolist()):
        chosen, rejected = (rows[i + 4], rows[i]) if label else (rows[i], rows[i + 4])
        shared = min(len(chosen), len(rejected))
        scores = [sum(each[:shared]) + 0.3 * sum(each[shared:]) for each in (chosen, rejected)]
        losses.append(-log_sigmoid(0.1 * (scores[0] - scores[1])))
    found = build("ld_dpo", alpha=0.3)(policy, batch).value.item()
    assert found == pytest.approx(sum(losses) / 4, abs=1e-12)
    with pytest.raises(ValueError, match=r"alpha = 2; valid: in \[0, 1\]"):
        LengthDesensitized(alpha=2)


def test_a_length_penalty_is_another_reward() -> None:
    """One step more costs the gap alpha, which a longer winner has to make up for in the reward."""
    policy, batch = at_reference()
    mask = torch.ones(6, 4, dtype=torch.bool)
    mask[3:, 1:] = False
    longer = dataclasses.replace(batch, segments=batch.segments.replace(mask=mask), label=torch.zeros(3))
    assert build("length_dpo", alpha=0.2)(policy, longer).value.item() == pytest.approx(-log_sigmoid(0.2 * 3))


def test_links_check_their_settings() -> None:
    with pytest.raises(ValueError, match=r"epsilon = 0; valid: above 0 and below 0\.5"):
        ReverseKL(0)
    with pytest.raises(ValueError, match=r"tau = 2; valid: in \(0, 1\]"):
        DiscoPOP(2)


def test_links_stay_finite() -> None:
    for name in EVERY_METHOD:
        for gap in (-300.0, 300.0):
            policy, batch = at_reference()
            log_prob = policy.log_prob.detach().float()
            log_prob[:3] += min(gap, 0)
            log_prob[3:] -= max(gap, 0)
            loss, gradient = loss_and_gradient(every_objective(name), Stated(log_prob), batch)
            assert loss.isfinite(), name
            assert gradient.isfinite().all(), name


def test_build() -> None:
    with pytest.raises(UnknownNameError, match="unknown preference method 'dp0'; did you mean 'dpo'"):
        build("dp0")
    with pytest.raises(ValueError, match="dpo has no lambda_; valid: beta, bias, coefficient, correction"):
        build("dpo", lambda_=0.5)
    with pytest.raises(ValueError, match="unknown divergence 'kl'"):
        build("f_dpo", divergence="kl")
    with pytest.raises(ValueError, match="baseline = 'batch'; valid: mismatched, zero"):
        build("kto", baseline="batch")
    objective = build("cpl", alpha=0.5, reduction="legacy_nonzero")
    assert objective == dataclasses.replace(METHODS["cpl"].make(alpha=0.5), reduction="legacy_nonzero")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_table_names_sources(method: Method) -> None:
    assert method.title
    assert method.limit
    assert method.source.startswith("https://") or [len(part) for part in method.source.split(".")] == [4, 5]
