import copy
import math
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decisionrl.learner import GradientLearner, Loss, NonFiniteError


def mse(policy: nn.Module, batch: tuple[Tensor, Tensor], /) -> Loss:
    x, y = batch
    value = (policy(x) - y).square().mean()
    return Loss(value, {"mse": value}, carry=x[0])


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 3, generator=generator), torch.randn(16, 1, generator=generator)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def weights(policy: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(policy.parameters()).detach().clone()


@pytest.mark.parametrize("clip_norm", [0.05, 1e6])
def test_updates_are_those_of_a_plain_torch_loop_with_clipping(clip_norm: float) -> None:
    policy, plain = network(), network()
    learner = GradientLearner(policy, mse, torch.optim.Adam(policy.parameters(), 0.01), clip_norm=clip_norm)
    optimizer = torch.optim.Adam(plain.parameters(), 0.01)
    for seed in range(5):
        update = learner.update(data(seed))
        optimizer.zero_grad()
        loss = mse(plain, data(seed)).value
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), clip_norm)
        optimizer.step()
        assert torch.equal(weights(policy), weights(plain))
        torch.testing.assert_close(update.metrics["gradient_norm"], norm)
        assert torch.equal(update.metrics["loss"], loss.detach())
        assert torch.equal(update.carry, data(seed)[0][0])
        assert all(value.dim() == 0 and not value.requires_grad for value in update.metrics.values())


def test_average_is_the_closed_form() -> None:
    policy = nn.Sequential(network(), nn.BatchNorm1d(1))
    decay = 0.8
    learner = GradientLearner(policy, mse, torch.optim.SGD(policy.parameters(), 0.1), ema_decay=decay)
    history = [weights(policy).double()]
    for seed in range(6):
        learner.update(data(seed))
        history.append(weights(policy).double())
    # ema_n = d^n w_0 + (1 - d) sum_k d^(n-k) w_k
    n = len(history) - 1
    expected = decay**n * history[0] + sum((1 - decay) * decay ** (n - k) * history[k] for k in range(1, n + 1))
    assert learner.ema_policy is not None
    torch.testing.assert_close(weights(learner.ema_policy).double(), expected, rtol=1e-5, atol=1e-6)
    buffers = zip(learner.ema_policy.buffers(), policy.buffers(), strict=True)
    assert all(torch.equal(average, own) for average, own in buffers)
    assert not any(p.requires_grad for p in learner.ema_policy.parameters())


class Poisoned:
    """From the third call on, makes the loss, a metric and the loss, or one gradient not finite."""

    def __init__(self, kind: str) -> None:
        self.kind, self.calls = kind, 0

    def __call__(self, policy: nn.Sequential, batch: tuple[Tensor, Tensor], /) -> Loss:
        self.calls += 1
        loss = mse(policy, batch)
        if self.calls < 3:
            return Loss(loss.value, {"mse": loss.value, "penalty": torch.zeros(())})
        bias = policy[2].bias
        match self.kind:
            case "loss":
                return Loss(loss.value * math.nan, {"mse": loss.value})
            case "metric":
                penalty = (bias * 0).log().sum()
                return Loss(loss.value - penalty, {"mse": loss.value, "penalty": penalty})
            case "gradient":  # finite, but with the derivative of the root at 0
                return Loss(loss.value + (bias * 0).sqrt().sum(), {"mse": loss.value})
        raise AssertionError(self.kind)


def run_updates(learner: GradientLearner, count: int) -> None:
    for _ in range(count):
        learner.update(data())


@pytest.mark.parametrize("check_every", [1, 5])
@pytest.mark.parametrize(
    ("kind", "component"),
    [
        ("loss", "loss"),
        ("metric", "loss (through metric 'penalty')"),
        ("gradient", "gradient of parameter '2.bias'"),
    ],
)
def test_non_finite_names_step_and_component_and_spares_the_weights(
    kind: str, component: str, check_every: int
) -> None:
    policy = network()
    optimizer = torch.optim.Adam(policy.parameters(), 0.01, fused=True)
    learner = GradientLearner(policy, Poisoned(kind), optimizer, check_every=check_every)
    for _ in range(2):
        learner.update(data())
    before = weights(policy)
    with pytest.raises(NonFiniteError, match=r"update 3: .* not finite") as caught:
        run_updates(learner, 3)
    assert (caught.value.step, caught.value.component) == (3, component)
    assert torch.equal(weights(policy), before)
    assert all(state["step"] == 2 for state in optimizer.state.values())


def test_state_is_not_handed_out_after_a_failure_not_yet_reported() -> None:
    policy = network()
    optimizer = torch.optim.Adam(policy.parameters(), 0.01, fused=True)
    learner = GradientLearner(policy, Poisoned("gradient"), optimizer, check_every=100)
    run_updates(learner, 2)
    good = copy.deepcopy(learner.state_dict())
    run_updates(learner, 2)
    with pytest.raises(NonFiniteError, match="update 3"):
        learner.state_dict()
    learner.load_state_dict(good)  # going back mends it
    learner._objective = mse
    before = weights(policy)
    learner.update(data())
    learner.check()
    assert not torch.equal(weights(policy), before)


def test_overflowing_norm_of_finite_gradients_is_an_error() -> None:
    policy = nn.Linear(3, 1)
    learner = GradientLearner(
        policy, lambda p, b: Loss(1e30 * mse(p, b).value), torch.optim.SGD(policy.parameters(), 1.0)
    )
    with pytest.raises(NonFiniteError) as caught:
        learner.update(data())
    assert caught.value.component in ("gradient of parameter 'weight'", "total gradient norm")


def test_state_round_trip_goes_on_identically() -> None:
    def made() -> tuple[nn.Module, GradientLearner]:
        policy, target = network(), network()
        optimizer = torch.optim.Adam(policy.parameters(), 0.01)
        components = {"target": target}
        return policy, GradientLearner(policy, mse, optimizer, ema_decay=0.9, components=components)

    policy, learner = made()
    for seed in range(3):
        learner.update(data(seed))
    nn.init.zeros_(learner.components["target"][0].weight)  # type: ignore[index]
    other_policy, other = made()
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    assert other.components["target"][0].weight.abs().sum() == 0  # type: ignore[index]
    for seed in range(3, 6):
        learner.update(data(seed))
        other.update(data(seed))
    assert torch.equal(weights(policy), weights(other_policy))
    assert learner.ema_policy is not None
    assert other.ema_policy is not None
    assert torch.equal(weights(learner.ema_policy), weights(other.ema_policy))
    assert other.steps == 6
    plain = GradientLearner(policy, mse, torch.optim.Adam(policy.parameters()))
    with pytest.raises(ValueError, match="ema_decay"):
        plain.load_state_dict(learner.state_dict())


def test_autocast_runs_the_objective_in_bfloat16() -> None:
    policy = network()
    seen = []

    def objective(policy: nn.Module, batch: tuple[Tensor, Tensor], /) -> Loss:
        prediction = policy(batch[0])
        seen.append(prediction.dtype)
        return Loss((prediction.float() - batch[1]).square().mean())

    optimizer = torch.optim.SGD(policy.parameters(), 0.1)
    learner = GradientLearner(policy, objective, optimizer, amp_dtype=torch.bfloat16)
    learner.update(data())
    assert seen == [torch.bfloat16]
    assert policy[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"amp_dtype": torch.float16}, "bfloat16"),
        ({"check_every": 0}, "check_every"),
        ({"check_every": 2}, "fused"),
    ],
)
def test_bad_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    policy = network()
    with pytest.raises(ValueError, match=message):
        GradientLearner(policy, mse, torch.optim.SGD(policy.parameters(), 0.1), **arguments)


def test_no_gradient_is_an_error() -> None:
    policy, other = network(), network()
    learner = GradientLearner(policy, lambda _, b: mse(other, b), torch.optim.SGD(policy.parameters(), 0.1))
    with pytest.raises(RuntimeError, match="no parameter"):
        learner.update(data())


def test_what_follows_an_update_is_called_after_the_step() -> None:
    policy = network()
    seen: list[Tensor] = []
    schedule_calls: list[int] = []
    learner = GradientLearner(
        policy,
        mse,
        torch.optim.SGD(policy.parameters(), 0.1),
        after_update=[lambda: seen.append(weights(policy)), lambda: schedule_calls.append(len(seen))],
    )
    for seed in range(3):
        before = weights(policy)
        learner.update(data(seed))
        assert len(seen) == seed + 1
        assert torch.equal(seen[-1], weights(policy))
        assert not torch.equal(seen[-1], before)
    assert schedule_calls == [1, 2, 3]  # in order, once an update


def test_nothing_follows_an_update_that_failed() -> None:
    policy = network()
    calls: list[None] = []
    optimizer = torch.optim.SGD(policy.parameters(), 0.1)
    learner = GradientLearner(policy, Poisoned("loss"), optimizer, after_update=[lambda: calls.append(None)])
    with pytest.raises(NonFiniteError):
        run_updates(learner, 3)
    assert len(calls) == 2


@pytest.mark.parametrize("fused", [False, True])
def test_each_group_is_clipped_by_itself(fused: bool) -> None:
    def made() -> tuple[nn.Sequential, torch.optim.Optimizer]:
        policy = network()
        groups = [{"params": policy[0].parameters()}, {"params": policy[2].parameters()}]
        return policy, torch.optim.SGD(groups, 1.0, fused=fused)

    def large_in_the_last(policy: nn.Module, batch: tuple[Tensor, Tensor], /) -> Loss:
        return Loss(mse(policy, batch).value + 50 * policy[2].bias.sum())  # type: ignore[index]

    policy, optimizer = made()
    before = [weights(part) for part in (policy[0], policy[2])]
    large_in_the_last(policy, data()).value.backward()
    norms = [torch.cat([p.grad.flatten() for p in part.parameters()]).norm() for part in (policy[0], policy[2])]
    limit = 2 * float(norms[0])
    assert norms[1] > limit  # so one group is clipped and one is not, though their total norm is far above
    learner = GradientLearner(policy, large_in_the_last, optimizer, clip_norm=limit, clip_each_group=True)
    reported = learner.update(data()).metrics["gradient_norm"]
    torch.testing.assert_close(reported, torch.stack(norms).norm())
    moved = [(old - weights(part)).norm() for old, part in zip(before, (policy[0], policy[2]), strict=True)]
    torch.testing.assert_close(moved[0], norms[0])
    torch.testing.assert_close(moved[1], torch.tensor(limit))
    other, other_optimizer = made()
    together = GradientLearner(other, large_in_the_last, other_optimizer, clip_norm=limit)
    together.update(data())
    total = torch.stack([(old - weights(part)).norm() for old, part in zip(before, (other[0], other[2]), strict=True)])
    torch.testing.assert_close(total.norm(), torch.tensor(limit))


@pytest.mark.slow
def test_overhead_of_an_update_is_small() -> None:
    policy, plain = network(), network()
    batch = data()
    learner = GradientLearner(policy, mse, torch.optim.Adam(policy.parameters(), fused=True), clip_norm=1e6)
    optimizer = torch.optim.Adam(plain.parameters(), fused=True)

    def bare() -> None:
        optimizer.zero_grad()
        mse(plain, batch).value.backward()
        optimizer.step()

    def best(function: Any) -> float:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            for _ in range(100):
                function()
            times.append((time.perf_counter() - start) / 100)
        return min(times)

    assert best(lambda: learner.update(batch)) - best(bare) < 100e-6
