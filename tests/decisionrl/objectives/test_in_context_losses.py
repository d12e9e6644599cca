"""Losses of in-context learning: averages, what distinguishes AD, DPT and DICP, and gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces

from decisionrl.envs.gridworld.darkroom import darkroom
from decisionrl.experience.history_windows import InContextBatch
from decisionrl.learner import GradientLearner
from decisionrl.objectives.in_context import action_nll, planning_nll
from decisionrl.policies.in_context import InContextPolicy, PlanningPolicy
from decisionrl.policies.in_context_network import InContextSizes

G, H, EPISODES = 5, 4, 2
FAMILY = darkroom(size=G, horizon=H)
SMALL = InContextSizes(width=8, layers=2, heads=2, feedforward=16, dropout=0.0, attention_dropout=0.0)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made() -> InContextPolicy:
    space, actions = FAMILY.observation_space, FAMILY.action_space
    return InContextPolicy(space, actions, context=EPISODES * H, sizes=SMALL, generator=rng()).double()


def planner() -> PlanningPolicy:
    return PlanningPolicy(made(), FAMILY.observation_space, horizon=H, generator=rng(1)).double()


def recorded(*, optimal: bool = False) -> InContextBatch:
    """Episodes of a uniform (or the optimal) policy in Darkroom, labeled."""
    rows = 3
    task, generator = torch.tensor([7, 12, 17]), rng(2)  # goals near the start, so that there are rewards
    columns = []
    for t in range(EPISODES * H):
        if t % H == 0:
            state = FAMILY.start(torch.zeros(rows, 2))
        label = FAMILY.optimal_action(state, task)
        action = label if optimal else torch.randint(FAMILY.num_actions, (rows,), generator=generator)
        following, reward = FAMILY.step(state, action, task)
        start = torch.full((rows,), t % H == 0)
        columns.append((state[:, :2], action, reward, start, following[:, :2], label))
        state = following
    observation, action, reward, start, following, label = (torch.stack(each, 1) for each in zip(*columns, strict=True))
    return InContextBatch(
        observation=observation, action=action, reward=reward, start=start, next_observation=following, label=label
    )


def gradients(module: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    module.zero_grad()
    loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("target", ["action", "label"])
def test_the_action_loss_in_plain_loops(target: str) -> None:
    policy, batch = made(), recorded()
    batch = replace(batch, weight=torch.tensor([1.0, 0.0, 3.0]))
    log_p, wanted = policy(batch).log_softmax(-1), getattr(batch, target)
    every = sum(w * -log_p[b, t, wanted[b, t]] for b, w in ((0, 1), (2, 3)) for t in range(8)) / (4 * 8)
    last = sum(w * -log_p[b, 7, wanted[b, 7]] for b, w in ((0, 1), (2, 3))) / 4
    torch.testing.assert_close(action_nll(policy, batch, target=target).value, every)
    torch.testing.assert_close(action_nll(policy, batch, target=target, positions="last").value, last)


def test_equal_weights_are_none() -> None:
    """Without a filter, AD on weighted histories is AD."""
    policy, batch = made(), recorded()
    plain = action_nll(policy, batch)
    torch.testing.assert_close(action_nll(policy, replace(batch, weight=torch.full((3,), 0.4))).value, plain.value)
    assert plain.metrics["action_nll"] == plain.value
    assert not plain.metrics["action_nll"].requires_grad


def test_a_batch_without_weight_teaches_nothing() -> None:
    policy, batch = made(), replace(recorded(), weight=torch.zeros(3))
    loss = action_nll(policy, batch).value
    assert loss == 0
    assert all(gradient is not None and not gradient.any() for gradient in gradients(policy, loss).values())


def test_with_an_optimal_source_both_losses_are_one() -> None:
    policy = made()
    source = recorded(optimal=True)
    assert torch.equal(action_nll(policy, source).value, action_nll(policy, source, target="label").value)
    other = recorded()
    assert not torch.allclose(action_nll(policy, other).value, action_nll(policy, other, target="label").value)


@pytest.mark.parametrize("positions", ["all", "last"])
def test_the_planning_loss_in_plain_loops(positions: str) -> None:
    policy, batch = planner(), recorded()
    outputs, reward, following = policy(batch)
    torch.testing.assert_close(outputs, policy.base(batch))
    rows, columns = following[..., :G].log_softmax(-1), following[..., G:].log_softmax(-1)
    total, steps = 0.0, range(8) if positions == "all" else [7]
    for b in range(3):
        for t in steps:
            x0, x1 = batch.next_observation[b, t]
            total -= outputs[b, t].log_softmax(0)[batch.action[b, t]]
            total -= 0.5 * reward[b, t].log_softmax(0)[int(batch.reward[b, t])]
            total -= 0.5 * (rows[b, t, x0] + columns[b, t, x1])
    loss = planning_nll(policy, batch, model_weight=0.5, positions=positions)
    torch.testing.assert_close(loss.value, total / (3 * len(steps)))
    assert set(loss.metrics) == {"action_nll", "reward_nll", "next_observation_nll"}


def test_weights_may_be_those_of_actions_only() -> None:
    policy, batch = planner(), recorded()
    weighted = replace(batch, weight=torch.tensor([1.0, 0.0, 3.0]))
    of_both, of_none = (planning_nll(policy, each).metrics for each in (weighted, batch))
    of_actions = planning_nll(policy, weighted, weigh_model=False).metrics
    assert torch.equal(of_actions["action_nll"], of_both["action_nll"])
    for name in ("reward_nll", "next_observation_nll"):
        assert torch.equal(of_actions[name], of_none[name])
        assert not torch.allclose(of_both[name], of_none[name])


def test_without_the_model_gradients_are_those_of_distillation() -> None:
    policy, batch = planner(), recorded()
    ours = gradients(policy, planning_nll(policy, batch, model_weight=0.0).value)
    distilled = gradients(policy.base, action_nll(policy.base, batch).value)
    for name, gradient in distilled.items():
        torch.testing.assert_close(ours[f"base.{name}"], gradient, atol=1e-12, rtol=0)
    own = [gradient for name, gradient in ours.items() if not name.startswith("base.")]
    assert all(gradient is not None and not gradient.any() for gradient in own)
    with_model = gradients(policy, planning_nll(policy, batch).value)
    assert all(gradient is not None and gradient.abs().max() > 1e-6 for gradient in with_model.values())


def test_the_model_sees_the_action_of_its_step_alone() -> None:
    policy, batch = planner(), recorded()
    changed = replace(batch, action=batch.action.clone())
    changed.action[:, 5] = (changed.action[:, 5] + 1) % FAMILY.num_actions
    outputs, reward, following = (
        (one - two).abs().amax((0, 2)) > 1e-9 for one, two in zip(policy(batch), policy(changed), strict=True)
    )
    assert outputs.tolist() == [t > 5 for t in range(8)]
    assert reward.tolist() == following.tolist() == [t >= 5 for t in range(8)]


def test_gaussian_actions() -> None:
    space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    policy = InContextPolicy(
        space, spaces.Box(-1.0, 1.0, (2,), np.float32), context=4, sizes=SMALL, embedding="linear", generator=rng()
    ).double()
    batch = InContextBatch(
        observation=torch.randn(1, 1, 3, generator=rng()),
        action=torch.randn(1, 1, 2, generator=rng(1)).double(),
        reward=torch.zeros(1, 1),
        start=torch.ones(1, 1, dtype=torch.bool),
    )
    mean, log_std = policy(batch).chunk(2, -1)
    expected = -torch.distributions.Normal(mean, log_std.exp()).log_prob(batch.action).sum()
    torch.testing.assert_close(action_nll(policy, batch).value, expected)


@pytest.mark.parametrize("objective", [action_nll, partial(action_nll, target="label"), planning_nll])
def test_losses_fall(objective: object) -> None:
    policy = (planner() if objective is planning_nll else made()).float()
    batch = recorded()
    learner = GradientLearner(policy, objective, torch.optim.AdamW(policy.parameters(), lr=1e-2))
    losses = [learner.update(batch).metrics["loss"] for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_what_is_missing_or_has_no_meaning_is_named() -> None:
    policy, batch = planner(), recorded()
    for message, call in (
        (
            r"label = None; valid with target = 'label'",
            lambda: action_nll(policy.base, replace(batch, label=None), target="label"),
        ),
        (r"next_observation = None", lambda: planning_nll(policy, replace(batch, next_observation=None))),
        (
            r"reward = 0.5; valid: one of reward_values = \[0.0, 1.0\]",
            lambda: planning_nll(policy, replace(batch, reward=torch.full((3, 8), 0.5))),
        ),
        (r"model_weight = -1.0; valid: finite, at least 0", lambda: planning_nll(policy, batch, model_weight=-1.0)),
        (r"target = 'best'; valid: action, label", lambda: action_nll(policy.base, batch, target="best")),
        (r"positions = 'first'; valid: all, last", lambda: action_nll(policy.base, batch, positions="first")),
    ):
        with pytest.raises(ValueError, match=message):
            call()
