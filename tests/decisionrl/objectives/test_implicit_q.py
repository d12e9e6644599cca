"""Implicit Q-learning: expectiles, its three losses against loops, no gradient across, and an MDP solved by it."""

import copy
import math

import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from toy_segments import ACTIONS, SEEN, behavior, padded, rng, segments

from decisionrl.experience.store import DatasetError
from decisionrl.experience.trajectories import Trajectories
from decisionrl.learner import GradientLearner
from decisionrl.objectives.implicit_q import ImplicitQLearning, expectile_loss
from decisionrl.policies.behavior import BehaviorPolicy
from decisionrl.policies.critics import StateValue, TwinQ
from decisionrl.reference import Reference


def expectile_of(sample: Tensor, tau: float) -> float:
    low, high = sample.min(), sample.max()
    for _ in range(200):  # the loss is convex: bisection on its derivative
        middle = ((low + high) / 2).requires_grad_()
        (slope,) = torch.autograd.grad(expectile_loss(sample - middle, tau).sum(), middle)
        low, high = (middle.detach(), high) if slope < 0 else (low, middle.detach())
    return float(low)


def test_expectile_of_a_half_is_half_the_square() -> None:
    error = torch.randn(50, generator=rng(), dtype=torch.float64)
    torch.testing.assert_close(expectile_loss(error, 0.5), error.square() / 2)
    assert expectile_of(error, 0.5) == pytest.approx(float(error.mean()))


def test_expectile_weighs_the_sides() -> None:
    found = expectile_loss(torch.tensor([2.0, -2.0, 0.0], dtype=torch.float64), 0.7)
    torch.testing.assert_close(found, torch.tensor([2.8, 1.2, 0.0], dtype=torch.float64))


def test_expectile_approaches_the_maximum() -> None:
    sample = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    found = [expectile_of(sample, tau) for tau in (0.5, 0.7, 0.9, 0.99, 1 - 1e-9)]
    assert found == sorted(found)
    assert found[-1] == pytest.approx(2.0, abs=1e-6)


def critics(hidden: tuple[int, ...] = (8,)) -> tuple[TwinQ, StateValue, Reference[TwinQ]]:
    q = TwinQ(SEEN, ACTIONS, hidden=hidden, generator=rng(1)).double()
    value = StateValue(SEEN, hidden=hidden, generator=rng(2)).double()
    target = Reference(TwinQ(SEEN, ACTIONS, hidden=hidden, generator=rng(3)).double(), every=1, rate=0.005)
    return q, value, target


def steps() -> Trajectories:
    terminated = torch.zeros(4, 5, dtype=torch.bool)
    terminated[1, 2] = terminated[3, 4] = True
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[2, 3:] = False
    return segments(terminated=terminated, truncated=~terminated, mask=mask)


def test_losses_are_those_of_a_loop() -> None:
    (q, value, target), policy, batch = critics(), behavior(), steps()
    discount, tau, temperature, limit = 0.9, 0.8, 0.2, 3.0
    objective = ImplicitQLearning(
        q, value, target, discount=discount, expectile=tau, temperature=temperature, weight_limit=limit
    )
    loss = objective(policy, batch)
    log_prob = policy.evaluate(batch).log_prob
    v_loss, q_loss, pi_loss, count, limited = 0.0, 0.0, 0.0, 0, 0
    for i in range(4):
        for t in range(5):
            if not batch.mask[i, t]:
                continue
            s, a = batch.observation[i, t][None], batch.action[i, t][None]
            ahead = float(value(batch.extras["next_observation"][i, t][None]).detach())
            goal = float(batch.reward[i, t]) + (0.0 if batch.terminated[i, t] else discount * ahead)
            u = min(target.module(s, a).flatten().tolist()) - float(value(s).detach())
            v_loss += (tau if u > 0 else 1 - tau) * u * u
            q_loss += sum((goal - each) ** 2 for each in q(s, a).flatten().tolist())
            weight = min(math.exp(u / temperature), limit)
            limited += weight == limit
            pi_loss -= weight * float(log_prob[i, t].detach())
            count += 1
    assert 0 < limited < count == 18
    expected = {"value_loss": v_loss, "q_loss": q_loss, "actor_loss": pi_loss}
    for name, total in expected.items():
        assert float(loss.metrics[name].detach()) == pytest.approx(total / count), name
    assert float(loss.value.detach()) == pytest.approx(sum(expected.values()) / count)


def test_no_gradient_of_one_loss_passes_through_another() -> None:
    (q, value, target), policy = critics(), behavior()
    objective = ImplicitQLearning(q, value, target)
    own = {"value_loss": value, "q_loss": q, "actor_loss": policy}
    for name, module in own.items():
        objective(policy, steps()).metrics[name].backward()
        for other in (q, value, policy, target.module):
            touched = any(p.grad is not None and bool(p.grad.any()) for p in other.parameters())
            assert touched == (other is module), name
            other.zero_grad()
    assert {id(p) for p in objective.parameters()} == {id(p) for m in (q, value) for p in m.parameters()}


def test_an_advantage_too_large_to_exponentiate_gives_the_limit() -> None:
    (q, value, target), policy = critics(), behavior()
    with torch.no_grad():
        for output in target.module.judge.outputs:
            output.bias.fill_(1e5)
    assert float(ImplicitQLearning(q, value, target)(policy, steps()).metrics["weight"]) == 100


def test_padding_does_not_matter() -> None:
    (q, value, target), policy, batch = critics(), behavior(), steps()
    objective = ImplicitQLearning(q, value, target)
    parameters = [*objective.parameters(), *policy.parameters()]
    gradients = [torch.autograd.grad(objective(policy, each).value, parameters) for each in (batch, padded(batch, 2))]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def chain() -> Trajectories:
    """Every step of a corridor of 4 states: left or right by one, reward 1 for reaching the last, which ends it."""
    states, actions = torch.meshgrid(torch.arange(3), torch.arange(2), indexing="ij")
    after = (states + 2 * actions - 1).clamp(min=0)
    done = after == 3
    return Trajectories(
        observation=states,
        action=actions,
        reward=done.double(),
        mask=torch.ones(3, 2, dtype=torch.bool),
        log_prob=torch.zeros(3, 2, dtype=torch.float64),
        terminated=done,
        truncated=torch.zeros(3, 2, dtype=torch.bool),
        extras={"next_observation": after},
    )


def learner_on_chain(rate: float = 0.05) -> GradientLearner:
    seen, actions = spaces.Discrete(4), spaces.Discrete(2)
    policy = BehaviorPolicy(seen, actions, hidden=(), generator=rng(0)).double()
    q = TwinQ(seen, actions, hidden=(32,), generator=rng(1)).double()
    value = StateValue(seen, hidden=(), generator=rng(2)).double()
    target = Reference(q, every=1, rate=rate)
    objective = ImplicitQLearning(q, value, target, discount=0.9, expectile=0.95, temperature=0.05)
    optimizer = torch.optim.Adam([*policy.parameters(), *objective.parameters()], 0.01)
    return GradientLearner(
        policy,
        objective,
        optimizer,
        components={"critics": objective, "target": target},
        after_update=[target.follow],
    )


def test_it_solves_a_corridor() -> None:
    learner, batch = learner_on_chain(), chain()
    for _ in range(1500):
        learner.update(batch)
    policy, critic = learner.policy, learner.components["critics"]
    assert isinstance(critic, ImplicitQLearning)
    found = critic.value(torch.arange(3)).detach()
    assert (found - torch.tensor([0.81, 0.9, 1.0])).abs().max() < 0.05  # tau = 0.95 stays just below the best
    assert policy.act(torch.arange(3))[0].tolist() == [1, 1, 1]


def test_state_round_trip_goes_on_identically() -> None:
    learner, other, batch = learner_on_chain(), learner_on_chain(), chain()
    for _ in range(5):
        learner.update(batch)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for _ in range(5):
        ours, theirs = learner.update(batch), other.update(batch)
        assert all(torch.equal(ours.metrics[name], theirs.metrics[name]) for name in ours.metrics)
    for one, same in zip(learner.policy.parameters(), other.policy.parameters(), strict=True):
        assert torch.equal(one, same)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discount": 1.1}, r"discount = 1.1; valid: in \[0, 1\]"),
        ({"expectile": 1.0}, "expectile = 1.0; valid: above 0 and below 1"),
        ({"temperature": 0.0}, "temperature = 0.0; valid: positive"),
        ({"weight_limit": -1.0}, "weight_limit = -1.0; valid: positive"),
    ],
)
def test_bad_settings_are_named(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImplicitQLearning(*critics(), **options)


def test_steps_without_what_followed_are_named() -> None:
    with pytest.raises(DatasetError, match=r"extras has \[\]; valid: with next_observation"):
        ImplicitQLearning(*critics())(behavior(), segments(extras={}))


def test_nothing_of_the_target_is_trained() -> None:
    q, value, target = critics()
    before = [p.clone() for p in target.module.parameters()]
    objective = ImplicitQLearning(q, value, target)
    policy = behavior()
    optimizer = torch.optim.Adam([*policy.parameters(), *objective.parameters()], 0.1)
    GradientLearner(policy, objective, optimizer).update(steps())
    assert all(torch.equal(p, old) for p, old in zip(target.module.parameters(), before, strict=True))
