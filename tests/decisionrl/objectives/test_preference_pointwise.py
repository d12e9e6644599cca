"""KTO and BCO: single labelled sequences."""

import math

import pytest
import torch
from toy_preferences import Stated, Table, drawn, sequences

from decisionrl.experience.preferences import PreferenceBatch
from decisionrl.objectives.preference_methods import build
from decisionrl.objectives.preference_pointwise import LabelledBatch
from decisionrl.objectives.preference_scores import Sequences, SequenceScore
from decisionrl.reference import Reference


def labelled(
    scores: list[float], label: list[float], weight: list[float] | None = None
) -> tuple[Stated, LabelledBatch]:
    """Sequences of one step with these log-ratios."""
    log_prob = torch.tensor(scores, dtype=torch.float64).unsqueeze(1)
    mask = torch.ones_like(log_prob, dtype=torch.bool)
    return Stated(log_prob), LabelledBatch(
        segments=sequences(mask, extras={"reference_log_prob": torch.zeros_like(log_prob)}),
        label=torch.tensor(label, dtype=torch.float64),
        weight=None if weight is None else torch.tensor(weight, dtype=torch.float64),
    )


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_kto_without_a_baseline() -> None:
    policy, batch = labelled([0.3, -0.7, 2.0, math.nan], [1.0, 0.0, 0.25, 1.0], [1.0, 2.0, 1.0, 0.0])
    objective = build("kto", beta=0.5, desirable=1.3, undesirable=0.8, baseline="zero")
    good, bad = 1.3 * (1 - sigmoid(0.15)), 0.8 * (1 - sigmoid(0.35))
    mixed = 0.25 * 1.3 * (1 - sigmoid(1.0)) + 0.75 * 0.8 * (1 - sigmoid(-1.0))
    loss = objective(policy, batch).value
    assert loss.item() == pytest.approx((good + 2 * bad + mixed) / 4)
    (gradient,) = torch.autograd.grad(loss, policy.log_prob)
    assert gradient.isfinite().all()


def bandit(seed: int) -> tuple[Table, Reference[Table], LabelledBatch]:
    """One-step sequences of a contextual bandit, and every action in the context of the row before."""
    policy, reference = Table(drawn(3, 4, seed=seed)), Reference(Table(drawn(3, 4, seed=seed + 1)))
    generator = torch.Generator().manual_seed(seed)
    observation, action = (torch.randint(n, (6, 1), generator=generator) for n in (3, 4))
    mask = torch.ones(6, 1, dtype=torch.bool)
    batch = LabelledBatch(
        segments=sequences(mask, observation=observation, action=action),
        label=torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64),
        mismatched=sequences(mask, observation=observation, action=action.roll(1, 0)),
    )
    return policy, reference, batch


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_baseline_of_kto(seed: int) -> None:
    """The mean over mismatched sequences, at least 0, and no gradient passes it."""
    policy, reference, batch = bandit(seed)
    objective = build("kto", reference=reference, beta=0.5)
    assert batch.mismatched is not None
    others = Sequences.evaluated(policy, batch.mismatched, reference).total_log_ratio
    z = max(0.0, 0.5 * others.mean().item())
    r = 0.5 * Sequences.evaluated(policy, batch.segments, reference).total_log_ratio
    expected = torch.where(batch.label > 0, (z - r).sigmoid(), (r - z).sigmoid()).mean()
    loss = objective(policy, batch)
    torch.testing.assert_close(loss.value, expected)
    assert loss.metrics["shift"].item() == pytest.approx(z)
    found, wanted = (torch.autograd.grad(each, policy.logits)[0] for each in (loss.value, expected))
    torch.testing.assert_close(found, wanted)


def test_kto_says_what_it_lacks() -> None:
    policy, batch = labelled([0.3, -0.7], [1.0, 0.0])
    with pytest.raises(ValueError, match="mismatched = None; valid: Trajectories"):
        build("kto")(policy, batch)


def test_bco_shifts_by_the_running_mean() -> None:
    objective = build("bco", beta=1.0)
    objective(*labelled([1.0, 2.0], [1.0, 0.0]))
    loss = objective(*labelled([0.3, -0.7, 3.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]))
    delta = (1.0 + 2.0 + 0.3 - 0.7) / 4
    expected = (-math.log(sigmoid(0.3 - delta)) - math.log(sigmoid(0.7 + delta))) / 2
    assert loss.value.item() == pytest.approx(expected)
    assert loss.metrics["shift"].item() == pytest.approx(delta)
    with torch.no_grad():
        assert objective(*labelled([9.0, 9.0], [1.0, 0.0])).metrics["shift"].item() == pytest.approx(delta)


def test_shared_sequences_count_once_for_each_pair() -> None:
    policy, single = labelled([0.3, -0.7, 2.0], [0.0, 0.0, 0.0])
    batch = PreferenceBatch(
        segments=single.segments,
        first=torch.tensor([0, 0]),
        second=torch.tensor([1, 2]),
        label=torch.tensor([0.0, 1.0], dtype=torch.float64),
    )
    _, examples = labelled([0.3, -0.7, 2.0], [0.5, 0.0, 1.0], [2.0, 1.0, 1.0])
    objective = build("kto", baseline="zero")
    torch.testing.assert_close(objective(policy, batch).value, objective(policy, examples).value)


def test_metrics() -> None:
    metrics = build("kto", baseline="zero", score=SequenceScore(relative=True))(
        *labelled([0.3, -0.7, 2.0], [1.0, 0.0, 1.0])
    ).metrics
    assert metrics["desirable_score"].item() == pytest.approx(1.15)
    assert metrics["undesirable_score"].item() == pytest.approx(-0.7)
