"""The assembled objective: its parts, the short way for complete batches, and what it reports."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_minibatch import Told, random_terms, tensor, terms_of, trajectories

from decisionrl.objectives.aggregation import AGGREGATIONS, aggregation
from decisionrl.objectives.policy_gradient import PolicyGradient, normalized
from decisionrl.objectives.regularizers import KLPenalty, ValueLoss
from decisionrl.objectives.step_filters import BatchWeight, Kept, TopEntropy
from decisionrl.objectives.surrogates import Clip, Reinforce
from decisionrl.objectives.terms import Terms
from decisionrl.policies.evaluation import Evaluation

EVERYTHING: dict[str, Any] = {
    "surrogate": Clip(),
    "value_loss": ValueLoss(clip=0.2),
    "entropy_coefficient": 0.03,
    "kl": KLPenalty(coefficient=0.1),
    "normalize_advantage": True,
    "weights": [BatchWeight()],
    "filters": [TopEntropy(fraction=0.6)],
}


def full_terms(rows: int, columns: int, *, padded: bool) -> tuple[Evaluation, Any]:
    """An evaluation with value and entropy, of a batch with all that EVERYTHING reads."""
    terms = random_terms(rows, columns, padded=padded)
    generator = torch.Generator().manual_seed(9)

    def normal() -> Tensor:
        values = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        return torch.where(terms.mask, values, torch.nan)

    extras = {"reference_log_prob": normal(), "weight": normal().exp()}
    batch = terms.batch.replace(value=normal(), returns=normal(), extras=extras)
    return replace(terms.evaluation, value=normal().requires_grad_()), batch


def gradients(objective: PolicyGradient, evaluation: Evaluation, batch: Any) -> tuple[Tensor, ...]:
    value = objective(Told(evaluation), batch).value
    leaves = [leaf for leaf in (evaluation.log_prob, evaluation.entropy, evaluation.value) if leaf is not None]
    return torch.autograd.grad(value, leaves)


def test_the_sum_of_its_parts() -> None:
    evaluation, batch = full_terms(4, 5, padded=True)
    objective = PolicyGradient(**EVERYTHING)
    loss = objective(Told(evaluation), batch)

    advantage = normalized(batch.advantage, batch.mask)
    terms = Terms(evaluation, batch, advantage, batch.mask)
    kept = batch.mask & TopEntropy(fraction=0.6)(terms)
    assert 0 < kept.sum() < batch.mask.sum()
    assert evaluation.entropy is not None
    policy = (Clip()(terms) * batch.extras["weight"])[kept].mean()
    value = ValueLoss(clip=0.2)(terms)
    penalty = KLPenalty(coefficient=0.1)(terms)[kept].mean()
    expected = policy + value - 0.03 * evaluation.entropy[kept].mean() + penalty
    torch.testing.assert_close(loss.value, expected)
    found = {name: metric.item() for name, metric in loss.metrics.items()}
    ratio = (evaluation.log_prob - batch.log_prob)[batch.mask].exp()
    assert found == pytest.approx(
        {
            "policy_loss": policy.item(),
            "value_loss": value.item(),
            "kl_penalty": penalty.item(),
            "entropy": evaluation.entropy[batch.mask].mean().item(),
            "approx_kl": (ratio - 1 - ratio.log()).mean().item(),
            "kept_fraction": (kept.sum() / batch.mask.sum()).item(),
            "clip_fraction": Clip().metrics(replace(terms, mask=kept))["clip_fraction"].item(),
        }
    )
    assert not any(metric.requires_grad for metric in loss.metrics.values())


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_garbage_at_padding_reaches_no_gradient(name: str) -> None:
    evaluation, batch = full_terms(4, 5, padded=True)
    for gradient in gradients(PolicyGradient(**EVERYTHING, aggregate=aggregation(name)), evaluation, batch):
        assert gradient.isfinite().all()
        assert (gradient[~batch.mask] == 0).all()


@pytest.mark.parametrize("name", AGGREGATIONS)
@pytest.mark.parametrize("filters", [[], EVERYTHING["filters"]])
def test_complete_batches_take_a_shorter_way_to_the_same(name: str, filters: list[Any]) -> None:
    evaluation, batch = full_terms(6, 3, padded=False)
    objective = PolicyGradient(**{**EVERYTHING, "filters": filters}, aggregate=aggregation(name))
    complete = batch.replace(complete=True)
    for found, expected in zip(
        gradients(objective, evaluation, complete), gradients(objective, evaluation, batch), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    found_metrics = objective(Told(evaluation), complete).metrics
    expected_metrics = objective(Told(evaluation), batch).metrics
    torch.testing.assert_close(dict(found_metrics), dict(expected_metrics))


def test_nothing_left_by_the_filters_gives_zero_with_a_graph() -> None:
    kept = torch.zeros(1, 2, dtype=torch.bool)
    terms = terms_of(tensor([1.0, 2.0]), tensor([1.0, -1.0]), extras={"kept": kept})
    loss = PolicyGradient(surrogate=Clip(), filters=[Kept()], entropy_coefficient=0.1)(
        Told(terms.evaluation), terms.batch
    )
    assert loss.value.item() == 0
    (gradient,) = torch.autograd.grad(loss.value, terms.evaluation.log_prob)
    assert (gradient == 0).all()
    assert loss.metrics["kept_fraction"].item() == 0
    assert all(metric.isfinite() for metric in loss.metrics.values())


def test_later_filters_see_what_earlier_ones_left() -> None:
    entropy = tensor([1.0, 2.0, 3.0, 4.0])
    kept = torch.tensor([[True, True, False, False]])
    terms = terms_of(torch.ones_like(entropy), torch.ones_like(entropy), entropy=entropy, extras={"kept": kept})
    objective = PolicyGradient(surrogate=Reinforce(), filters=[Kept(), TopEntropy(fraction=0.5)])
    (gradient,) = torch.autograd.grad(objective(Told(terms.evaluation), terms.batch).value, terms.evaluation.log_prob)
    assert (gradient != 0).tolist() == [[True, True, False, False]]  # 2 is the upper half of {1, 2}; 1 the nearest


@dataclass(frozen=True)
class Leaky:
    """A weight that forgets to detach."""

    def __call__(self, terms: Terms) -> Tensor:
        return terms.ratio


def test_no_gradient_comes_through_weights() -> None:
    ratio, advantage = tensor([0.9, 1.1]), tensor([1.0, -1.0])
    terms = terms_of(ratio, advantage)
    objective = PolicyGradient(surrogate=Reinforce(), weights=[Leaky()])
    (gradient,) = torch.autograd.grad(objective(Told(terms.evaluation), terms.batch).value, terms.evaluation.log_prob)
    torch.testing.assert_close(gradient, -ratio * advantage / 2)


def test_without_a_closed_form_the_entropy_is_minus_log_prob() -> None:
    terms = terms_of(tensor([1.0, 1.0]), tensor([0.0, 0.0]), old_log_prob=tensor([-1.0, -3.0]))
    loss = PolicyGradient(surrogate=Clip(), entropy_coefficient=0.1)(Told(terms.evaluation), terms.batch)
    assert loss.metrics["entropy"].item() == pytest.approx(2.0)
    (gradient,) = torch.autograd.grad(loss.value, terms.evaluation.log_prob)
    torch.testing.assert_close(gradient, tensor([0.05, 0.05]))


def test_trajectories_without_an_advantage_are_refused() -> None:
    batch = trajectories(tensor([0.0]), tensor([0.0])).replace(advantage=None)
    with pytest.raises(ValueError, match="no advantage"):
        PolicyGradient(surrogate=Clip())(Told(Evaluation(tensor([0.0]))), batch)


def test_normalized() -> None:
    values = tensor([[1.0, 2.0, torch.nan], [4.0, torch.inf, torch.nan]])
    mask = values.isfinite()
    found = normalized(values, mask)[mask]
    valid = values[mask]
    torch.testing.assert_close(found, (valid - valid.mean()) / (valid.std() + 1e-8))
    torch.testing.assert_close(normalized(valid, None), found)


@pytest.mark.parametrize("mask", [None, torch.tensor([[True]])])
def test_a_lone_step_keeps_its_advantage(mask: Tensor | None) -> None:
    assert normalized(tensor([3.0]), mask).item() == 3.0


def test_flat_batches_are_known_to_be_complete() -> None:
    terms = random_terms(4, 5)
    assert not terms.batch.complete
    flat = terms.batch.flat()
    assert flat.complete
    assert flat.rows(slice(1, 3)).complete
    assert flat.to("cpu").complete
    assert flat.replace(returns=flat.advantage).complete
    assert not flat.replace(mask=~flat.mask).complete
    assert not terms.batch.rows(slice(0, 1)).complete
    assert random_terms(2, 3, padded=False).batch.flat().complete


def test_a_flat_batch_of_nothing_is_not_complete_and_gives_zero() -> None:
    terms = random_terms(2, 3)
    empty = terms.batch.replace(mask=torch.zeros(2, 3, dtype=torch.bool)).flat()
    assert not empty.complete
    log_prob = torch.zeros(0, 1, dtype=torch.float64, requires_grad=True)
    assert PolicyGradient(surrogate=Clip())(Told(Evaluation(log_prob)), empty).value.item() == 0
