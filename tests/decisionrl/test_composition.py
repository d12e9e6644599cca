"""Learners in phases, in chains and averaged: what each batch trains, fresh moments, warm-up, resuming, errors."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decisionrl.composition import AveragedLearner, ChainedLearner, Phase, PhasedLearner
from decisionrl.ema import PowerAverage
from decisionrl.learner import GradientLearner, Loss
from decisionrl.reference import Reference

Batch = tuple[Tensor, Tensor]
WARM_UP = 4


def data(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 3, generator=generator), torch.randn(16, 1, generator=generator)


def network(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def cloning(policy: nn.Module, batch: Batch, /) -> Loss:
    return Loss((policy(batch[0]) - batch[1]).square().mean())


def ranking(policy: nn.Module, batch: Batch, /) -> Loss:
    score = policy(batch[0]) * batch[1]
    return Loss(nn.functional.softplus(-score).mean(), {"score": score.mean()}, carry=batch[0][0])


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def warmed_up(policy: nn.Module, reference: Reference[Any] | None = None) -> GradientLearner:
    optimizer = torch.optim.Adam(policy.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / WARM_UP))
    components = {"schedule": schedule} | ({} if reference is None else {"reference": reference})
    return GradientLearner(policy, ranking, optimizer, components=components, after_update=[schedule.step])


def two_phases(seed: int = 0, updates: int = 3) -> tuple[PhasedLearner, Reference[nn.Linear]]:
    policy = network(seed)
    reference = Reference(policy)
    first = GradientLearner(policy, cloning, torch.optim.Adam(policy.parameters(), 0.01))
    then = Phase(learner=warmed_up(policy, reference), begin=reference.snapshot)
    return PhasedLearner([Phase(learner=first, updates=updates), then]), reference


def test_loss_is_the_first_objective_until_its_updates_are_done() -> None:
    learner, _ = two_phases()
    for update in range(6):
        before = copy.deepcopy(learner.policy)
        expected = (cloning if update < 3 else ranking)(before, data(update)).value
        found = learner.update(data(update))
        assert torch.equal(found.metrics["loss"], expected.detach())
        assert ("score" in found.metrics) == (update >= 3)
    assert learner.updates == 6


def test_moments_begin_afresh_with_the_phase() -> None:
    learner, _ = two_phases()
    for update in range(5):
        learner.update(data(update))
    alone, _ = two_phases()  # the same pre-training, and then a new optimizer by hand
    for update in range(3):
        alone.update(data(update))
    policy = alone.policy
    optimizer = torch.optim.Adam(policy.parameters(), 0.01)
    for update in range(2):
        optimizer.param_groups[0]["lr"] = 0.01 * update / WARM_UP
        optimizer.zero_grad()
        ranking(policy, data(3 + update)).value.backward()
        optimizer.step()
    for one, other in zip(weights(learner.policy), weights(policy), strict=True):
        torch.testing.assert_close(one, other)
    second = learner.phases[1].learner
    assert isinstance(second, GradientLearner)
    assert all(state["step"] == 2 for state in second.optimizer.state.values())


def test_warm_up_starts_at_0_and_ends_at_the_base() -> None:
    learner, _ = two_phases()
    second = learner.phases[1].learner
    assert isinstance(second, GradientLearner)
    for update in range(3):
        learner.update(data(update))
    rates = []
    for update in range(WARM_UP + 2):
        rates.append(second.optimizer.param_groups[0]["lr"])
        before = weights(learner.policy)
        learner.update(data(3 + update))
        assert same(before, weights(learner.policy)) == (update == 0)
    assert rates == pytest.approx([0.0, 0.0025, 0.005, 0.0075, 0.01, 0.01])


def test_a_phase_begins_once_with_the_policy_of_its_first_update() -> None:
    learner, reference = two_phases()
    initial = weights(reference.module)
    for update in range(3):
        learner.update(data(update))
    assert same(weights(reference.module), initial)
    trained = weights(learner.policy)
    for update in range(4):
        learner.update(data(update))
        assert same(weights(reference.module), trained)
    assert not same(weights(learner.policy), trained)


@pytest.mark.parametrize("done", [0, 2, 3, 4])
def test_resuming_in_or_between_phases_is_exact(done: int) -> None:
    learner, reference = two_phases()
    for update in range(done):
        learner.update(data(update))
    other, other_reference = two_phases(seed=7)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for update in range(done, done + 4):
        ours, theirs = learner.update(data(update)), other.update(data(update))
        assert torch.equal(ours.metrics["loss"], theirs.metrics["loss"])
    assert same(weights(learner.policy), weights(other.policy))
    assert same(weights(reference.module), weights(other_reference.module))
    assert other.updates == done + 4


def test_phases_that_do_not_fit_are_errors() -> None:
    policy = network()
    learner = GradientLearner(policy, cloning, torch.optim.SGD(policy.parameters(), 0.1))
    last = Phase(learner=learner)
    for phases in ([], [Phase(learner=learner, updates=2)], [last, last], [Phase(learner=learner, updates=0), last]):
        with pytest.raises(ValueError, match="phases: valid are at least one, all but the last with updates >= 1"):
            PhasedLearner(phases)
    other = network(1)
    stranger = GradientLearner(other, cloning, torch.optim.SGD(other.parameters(), 0.1))
    with pytest.raises(ValueError, match="phases: their learners have different policies"):
        PhasedLearner([Phase(learner=stranger, updates=1), last])


def chain(seed: int = 0, **options: Any) -> ChainedLearner:
    actor, critic = network(seed), network(seed + 1)
    return ChainedLearner(
        {
            "actor": GradientLearner(actor, ranking, torch.optim.Adam(actor.parameters(), 0.01)),
            "critic": GradientLearner(critic, cloning, torch.optim.Adam(critic.parameters(), 0.01)),
        },
        **options,
    )


def test_every_learner_takes_every_batch_in_order() -> None:
    order = []

    def noted(name: str, objective: Any) -> Any:
        def call(policy: nn.Module, batch: Batch, /) -> Loss:
            order.append(name)
            return objective(policy, batch)

        return call

    policy = network()
    learners = {
        name: GradientLearner(policy, noted(name, cloning), torch.optim.SGD(policy.parameters(), 0.1)) for name in "ab"
    }
    learner = ChainedLearner(learners)
    learner.update(data(0))
    assert order == ["a", "b"]
    plain = network()
    for _ in range(2):
        step = GradientLearner(plain, cloning, torch.optim.SGD(plain.parameters(), 0.1))
        step.update(data(0))
    assert same(weights(policy), weights(plain))


def test_metrics_carry_the_name_of_all_but_the_first() -> None:
    learner = chain()
    update = learner.update(data(0))
    assert set(update.metrics) == {
        "loss", "gradient_norm", "score", "critic/loss", "critic/gradient_norm"
    }  # fmt: skip
    assert torch.equal(update.carry, data(0)[0][0])
    assert learner.policy is learner.learners["actor"].policy
    critic = learner.learners["critic"].policy
    assert chain(policy=critic).policy is critic


def test_some_learners_take_every_third_batch() -> None:
    learner = chain(every={"critic": 3})
    critic = learner.learners["critic"]
    moved = []
    for update in range(7):
        before = weights(critic.policy)
        metrics = learner.update(data(update)).metrics
        moved.append(not same(before, weights(critic.policy)))
        assert ("critic/loss" in metrics) == moved[-1]
    assert moved == [True, False, False, True, False, False, True]


@pytest.mark.parametrize("done", [1, 2, 3])
def test_resuming_a_chain_is_exact(done: int) -> None:
    learner, other = chain(every={"critic": 2}), chain(seed=7, every={"critic": 2})
    for update in range(done):
        learner.update(data(update))
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for update in range(done, done + 3):
        ours, theirs = learner.update(data(update)).metrics, other.update(data(update)).metrics
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("every", [{"judge": 2}, {"critic": 0}])
def test_bad_intervals_are_named(every: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"every = .*; valid: names among \['actor', 'critic'\] and numbers >= 1"):
        chain(every=every)
    with pytest.raises(ValueError, match="learners is empty"):
        ChainedLearner({})


def averaged(seed: int = 0) -> tuple[AveragedLearner, GradientLearner]:
    inner = warmed_up(network(seed))
    return AveragedLearner(inner, PowerAverage(inner.policy)), inner


def test_the_policy_is_the_average_by_the_power_law() -> None:
    """``d average + (1 - d) weights`` with ``d = 1 - i^(-3/4)`` after update i, and 0 after the first two."""
    learner, inner = averaged()
    expected = [each.double() for each in weights(inner.policy)]
    for i in range(9):
        learner.update(data(i))
        decay = 0.0 if i <= 1 else 1 - i**-0.75
        trained = weights(inner.policy)
        expected = [decay * old + (1 - decay) * new.double() for old, new in zip(expected, trained, strict=True)]
        for found, wanted in zip(weights(learner.policy), expected, strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-7)
        assert same(weights(learner.policy), trained) == (i <= 1)


def test_averaging_leaves_the_training_as_it_is() -> None:
    learner, inner = averaged()
    alone = warmed_up(network())
    for update in range(5):
        found, wanted = learner.update(data(update)), alone.update(data(update))
        assert found.metrics.keys() == wanted.metrics.keys() == {"loss", "score", "gradient_norm"}
        assert all(torch.equal(found.metrics[name], wanted.metrics[name]) for name in found.metrics)
        assert torch.equal(found.carry, wanted.carry)
    assert same(weights(inner.policy), weights(alone.policy))
    assert learner.policy is not inner.policy
    assert not any(each.requires_grad for each in learner.policy.parameters())


@pytest.mark.parametrize("done", [0, 1, 2, 5])
def test_resuming_an_average_is_exact(done: int) -> None:
    (learner, _), (other, _) = averaged(), averaged(seed=7)
    for update in range(done):
        learner.update(data(update))
    state = copy.deepcopy(learner.state_dict())
    assert state["policy"].keys() == learner.policy.state_dict().keys(), "what acts, also for who reads checkpoints"
    assert all(torch.equal(value, learner.policy.state_dict()[name]) for name, value in state["policy"].items())
    other.load_state_dict(state)
    for update in range(done, done + 4):
        ours, theirs = learner.update(data(update)).metrics, other.update(data(update)).metrics
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert same(weights(learner.policy), weights(other.policy))
