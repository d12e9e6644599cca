"""Tabular learners: PPO against plain loops, tasks and streams that do not influence each other, what is learned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from decisionrl.envs.gridworld import dark_key_to_door, darkroom, darkroom_permuted
from decisionrl.experience.histories import Transitions
from decisionrl.pipeline.history_filter import HistoryFilter
from decisionrl.recording.tabular_sources import (
    Adam,
    a2c,
    advantages,
    make_arena,
    ppo_loss,
    q_learning,
    random_streams,
    sampled,
    statistics,
    tabular_ppo,
)

SMALL = darkroom(size=5, horizon=10)

Learn = Callable[..., Iterable[Transitions]]

SOURCES: list[Learn] = [tabular_ppo, a2c, q_learning]


def played(pieces: Iterable[Transitions]) -> Transitions:
    """All episodes one after another."""
    return Transitions(*(torch.cat(each, 2) for each in zip(*pieces, strict=True)))


def returns(pieces: Iterable[Transitions]) -> Tensor:
    """[task, stream, episode]."""
    return torch.stack([each.reward.sum(-1) for each in pieces], -1)


def same(left: Transitions, right: Transitions) -> bool:
    return all(a.equal(b) for a, b in zip(left, right, strict=True))


# What is recorded


@pytest.mark.parametrize("source", SOURCES)
def test_transitions_are_those_of_the_family(source: Learn) -> None:
    tasks = torch.tensor([3, 24, 7])
    for episode in source(SMALL, tasks, streams=4, episodes=3):
        state = SMALL.placed(torch.full((3, 4, 2), 2))
        for step in range(SMALL.horizon):
            assert episode.observation[:, :, step].equal(SMALL.observation(state))
            state, reward = SMALL.step(state, episode.action[:, :, step], tasks[:, None])
            assert episode.reward[:, :, step].equal(reward)
            assert episode.next_observation[:, :, step].equal(SMALL.observation(state))


@pytest.mark.parametrize("source", SOURCES)
def test_the_seed_decides(source: Learn) -> None:
    one, again, other = (
        played(source(SMALL, torch.arange(3), streams=4, episodes=4, noise=0.25, seed=seed)) for seed in (1, 1, 2)
    )
    assert same(one, again)
    assert not one.action.equal(other.action)


def test_starts_are_random_where_the_family_says_so() -> None:
    family = darkroom(size=5, horizon=4, start="random")
    starts = played(tabular_ppo(family, torch.arange(2), streams=50, episodes=8)).observation[:, :, ::4]
    assert starts.flatten(0, 2).unique(dim=0).shape == (25, 2)


def test_first_actions_are_uniform() -> None:
    (first,) = tabular_ppo(SMALL, torch.arange(25), streams=200, episodes=1)
    share = torch.bincount(first.action.flatten(), minlength=5) / first.action.numel()
    assert share.sub(0.2).abs().max() < 4 * math.sqrt(0.16 / first.action.numel())


# Independence


@pytest.mark.parametrize("source", SOURCES)
def test_tasks_do_not_influence_each_other(source: Learn) -> None:
    learn = partial(source, SMALL, streams=6, episodes=12, noise=1 / 3)
    tasks = torch.tensor([20, 3, 11, 8])
    together = played(learn(tasks))
    for row, task in enumerate(tasks):
        alone = played(learn(task[None]))
        assert same(alone, Transitions(*(each[row, None] for each in together)))


def test_streams_with_rates_of_their_own_have_learners_of_their_own() -> None:
    tasks, streams = torch.tensor([6, 12]), 3
    rates = torch.tensor([[0.1, 0.3, 0.5], [0.2, 0.1, 0.4]])
    others = torch.tensor([[0.1, 0.01, 0.9], [0.2, 0.5, 0.05]])
    learn = partial(tabular_ppo, SMALL, tasks, streams=streams, episodes=10)
    one, other = (played(learn(learning_rate=each)) for each in (rates, others))
    assert one.action[:, 0].equal(other.action[:, 0])
    assert not one.action[:, 1].equal(other.action[:, 1])
    shared, single = (played(learn(learning_rate=each)) for each in (torch.tensor([0.05, 0.05]), 0.05))
    assert same(shared, single)
    one_stream = (played(learn(learning_rate=each, streams=1)) for each in (torch.full((2, 1), 0.1), 0.1))
    assert same(*one_stream)


def test_each_task_may_have_a_rate() -> None:
    tasks = torch.tensor([6, 6])
    learned = returns(tabular_ppo(SMALL, tasks, streams=10, episodes=15, learning_rate=torch.tensor([1e-6, 0.1])))
    idle, busy = learned[:, :, -5:].mean((1, 2))
    assert busy > idle + 3


# Noise


@pytest.mark.parametrize(("share", "streams", "count"), [(0.3, 50, 15), (0.3, 20, 6), (0.0, 7, 0), (1.0, 7, 7)])
def test_the_noise_is_exactly_that_share_of_the_streams(share: float, streams: int, count: int) -> None:
    chosen = random_streams(torch.arange(73), streams, share=share)
    assert chosen.shape == (73, streams)
    assert (chosen.sum(1) == count).all()
    if 0 < share < 1:
        assert len(chosen.unique(dim=0)) > 60  # tasks have streams of their own
        assert not chosen.equal(random_streams(torch.arange(73), streams, share=share, seed=1))


@pytest.mark.parametrize("source", SOURCES)
def test_random_streams_stay_random_and_the_others_learn(source: Learn) -> None:
    tasks, episodes = torch.arange(10), 60
    noisy = random_streams(tasks, 10, share=0.3)
    pieces = list(source(SMALL, tasks, streams=10, episodes=episodes, noise=0.3))
    late = played(pieces[-10:])
    action = late.action[noisy].flatten()
    share = torch.bincount(action, minlength=5) / len(action)
    assert share.sub(0.2).abs().max() < 4 * math.sqrt(0.16 / len(action))
    mean = returns(pieces)[..., -10:].mean(-1)
    assert mean[~noisy].mean() > mean[noisy].mean() + 3


# PPO against plain loops


def plain_loss(
    logits: Tensor,
    value: Tensor,
    old_logits: Tensor,
    samples: list[tuple[int, int, float, float]],
    *,
    clip: float,
    entropy: float,
    value_coefficient: float,
) -> Tensor:
    """The mean loss of (row, action, advantage, target), one by one."""
    total = torch.zeros((), dtype=logits.dtype)
    for row, action, advantage, target in samples:
        log_policy, old = logits[row].log_softmax(-1), old_logits[row].log_softmax(-1)
        ratio = (log_policy[action] - old[action]).exp()
        total = total - torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        total = total + value_coefficient * (value[row] - target) ** 2
        total = total + entropy * (log_policy.exp() * log_policy).sum()
    return total / len(samples)


def normalized(advantage: Tensor) -> Tensor:
    return (advantage - advantage.mean()) / (advantage.std(unbiased=False) + 1e-8)


def test_the_gradient_of_an_update_is_that_of_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    shape, rows, actions, count = (3, 2), 4, 3, 30

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*shape, *sizes, generator=generator, dtype=torch.float64)

    row, action = (torch.randint(high, (*shape, count), generator=generator) for high in (rows, actions))
    advantage, target, old_logits = normal(count), normal(count), normal(rows, actions)
    logits = (old_logits + 0.3 * normal(rows, actions)).requires_grad_()
    value = normal(rows).requires_grad_()
    options = {"clip": 0.2, "entropy": 0.01, "value_coefficient": 0.5}
    weight = torch.full((*shape, count), 1 / count, dtype=torch.float64)
    seen = statistics(row, action, advantage, target, weight, num_rows=rows, num_actions=actions)
    loss = ppo_loss(logits, value, old_logits.log_softmax(-1), seen, **options).sum()
    gradients = torch.autograd.grad(loss, [logits, value])

    ratio = (logits.log_softmax(-1) - old_logits.log_softmax(-1)).exp()
    assert (ratio > 1.2).any()
    assert (ratio < 0.8).any()
    for task in range(shape[0]):
        for learner in range(shape[1]):
            at = task, learner
            values = row[at].tolist(), action[at].tolist(), normalized(advantage[at]).tolist(), target[at].tolist()
            one = [each[at].detach().requires_grad_() for each in (logits, value)]
            plain = torch.autograd.grad(
                plain_loss(one[0], one[1], old_logits[at], list(zip(*values, strict=True)), **options), one
            )
            for gradient, wanted in zip(gradients, plain, strict=True):
                torch.testing.assert_close(gradient[at], wanted)


def test_actions_are_those_of_plain_ppo() -> None:
    """Updates with torch's Adam on single transitions give the policy that played what is recorded."""
    task, streams, noise = torch.tensor([13]), 6, 1 / 3
    episodes = list(tabular_ppo(SMALL, task, streams=streams, episodes=3, noise=noise, epochs=4))
    arena = make_arena(SMALL, task, streams=streams, noise=noise)
    learned = ~arena.random[0]
    logits, value = torch.zeros(25, 5, requires_grad=True), torch.zeros(25, requires_grad=True)
    optimizer = torch.optim.Adam([logits, value], lr=0.05)
    for number, episode in enumerate(episodes):
        policy = logits.detach().softmax(-1)
        assert same(arena.play(number, lambda row, policy=policy: policy[row]).transitions, episode)  # type: ignore[misc]
        row = arena.row(torch.nn.functional.pad(episode.observation, (0, 1)))[0, learned]
        before, old_logits = value.detach().clone(), logits.detach().clone()
        advantage = torch.zeros(row.shape)
        for stream in range(len(row)):
            later = 0.0
            for step in reversed(range(10)):
                after = float(before[row[stream, step + 1]]) if step < 9 else 0.0
                now = float(before[row[stream, step]])
                later = float(episode.reward[0, learned][stream, step]) + 0.99 * after - now + 0.99 * 0.95 * later
                advantage[stream, step] = later
        columns = (row, episode.action[0, learned], normalized(advantage), advantage + before[row])
        samples = list(zip(*(column.flatten().tolist() for column in columns), strict=True))
        for _ in range(4):
            optimizer.zero_grad()
            loss = plain_loss(logits, value, old_logits, samples, clip=0.2, entropy=0.01, value_coefficient=0.5)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def test_advantages_are_the_sums_of_their_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    reward, value = (torch.randn(2, 3, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    got = advantages(reward, value, discount=0.9, gae_lambda=0.8)
    for task in range(2):
        for stream in range(3):
            v = [*value[task, stream].tolist(), 0.0]
            error = [reward[task, stream, t].item() + 0.9 * v[t + 1] - v[t] for t in range(7)]
            for t in range(7):
                wanted = sum((0.9 * 0.8) ** (k - t) * error[k] for k in range(t, 7))
                assert got[task, stream, t].item() == pytest.approx(wanted)
    to_go = reward.flip(-1).cumsum(-1).flip(-1)
    torch.testing.assert_close(advantages(reward, value, discount=1.0, gae_lambda=1.0), to_go - value)


def test_adam_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(2)
    start, rates = torch.randn(2, 1, 4, 3, generator=generator), torch.tensor([[0.05], [0.2]])
    own = Adam([start.clone()], rates)
    theirs = [start[task].clone().requires_grad_() for task in range(2)]
    optimizers = [torch.optim.Adam([each], lr=float(rate)) for each, rate in zip(theirs, rates, strict=True)]
    for _ in range(20):
        gradient = torch.randn(2, 1, 4, 3, generator=generator)
        own.step((gradient,))
        for task in range(2):
            theirs[task].grad = gradient[task]
            optimizers[task].step()
    torch.testing.assert_close(own.parameters[0], torch.stack([each.detach() for each in theirs]))


def test_actions_are_drawn_with_their_probabilities() -> None:
    probability = torch.tensor([0.25, 0.0, 0.5, 0.25, 0.0])
    chance = (torch.arange(1000) + 1) / 1000
    action = sampled(probability.expand(1000, 5), chance)
    assert torch.bincount(action, minlength=5).tolist() == [250, 0, 500, 250, 0]


# What is learned


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("source", SOURCES)
def test_learners_improve(source: Learn, seed: int) -> None:
    learned = returns(source(SMALL, torch.arange(20), streams=10, episodes=30, seed=seed)).mean((0, 1))
    assert learned[0] < 1
    assert learned[-3:].mean() > (8 if source is not q_learning else 5)


def test_permuted_actions_are_learned_too() -> None:
    family = darkroom_permuted(size=4, horizon=15)
    learned = returns(tabular_ppo(family, torch.arange(0, 120, 6), streams=20, episodes=20))
    assert learned[..., 0].mean() < 1
    assert learned[..., -1].mean() > 0.9 * family.max_return.mean()


@pytest.mark.parametrize("seed", [0, 1])
def test_q_learning_ends_at_the_optimum(seed: int) -> None:
    family = darkroom(size=3, horizon=8)
    learned = returns(q_learning(family, torch.arange(9), streams=10, episodes=200, epsilon=0.5, seed=seed))
    assert learned[..., -1].equal(family.max_return[:, None].expand(9, 10))


def test_the_hidden_state_tells_whether_the_key_is_had() -> None:
    """The key is at the start, and there is time for one step there and two to the door. Where only the cell is seen,
    one stays exactly once with a probability p (1 - p) <= 1/4, so the return is 1.25 at most."""
    family = dark_key_to_door(size=4, horizon=3)
    start, door = 2 * 4 + 2, 0 * 4 + 2
    learn = partial(tabular_ppo, family, torch.tensor([16 * start + door]), streams=100, episodes=60)
    pieces = list(learn(hidden_state=True))
    assert returns(pieces)[..., -5:].mean() > 1.9
    assert pieces[0].observation.shape[-1] == 2  # what is recorded is what is seen
    assert returns(learn())[..., -5:].mean() < 1.4


@pytest.mark.parametrize("seed", [0, 1])
def test_the_filter_removes_random_histories(seed: int) -> None:
    tasks, streams = torch.arange(20), 20
    learned = returns(tabular_ppo(SMALL, tasks, streams=streams, episodes=30, noise=0.3, seed=seed))
    noisy = random_streams(tasks, streams, share=0.3, seed=seed)
    assert noisy.float().mean() == pytest.approx(0.3)
    index = HistoryFilter()(learned, SMALL.max_return[tasks], torch.Generator().manual_seed(seed)).index
    assert noisy.gather(1, index).float().mean() < 0.1
    assert learned.take_along_dim(index[..., None], 1).mean() > learned.mean() + 1


# Arguments


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        (tabular_ppo, {"streams": 0}, "streams = 0; valid: a whole number >= 1"),
        (tabular_ppo, {"streams": 2**21}, "streams = 2097152; valid: up to 1048576"),
        (tabular_ppo, {"episodes": 2.5}, "episodes = 2.5; valid: a whole number >= 1"),
        (tabular_ppo, {"epochs": 0}, "epochs = 0; valid: a whole number >= 1"),
        (tabular_ppo, {"noise": 1.5}, r"noise = 1.5; valid: in \[0, 1\]"),
        (tabular_ppo, {"clip": -0.1}, r"clip = -0.1; valid: in \[0, 1\]"),
        (tabular_ppo, {"entropy": math.inf}, "entropy = inf; valid: finite, >= 0"),
        (tabular_ppo, {"learning_rate": 0.0}, "learning_rate = 0.0; valid: finite and above 0"),
        (
            tabular_ppo,
            {"learning_rate": torch.ones(3)},
            r"learning_rate has shape \[3\]; valid: a number, \[2\] or \[2,",
        ),
        (a2c, {"discount": 1.1}, r"discount = 1.1; valid: in \[0, 1\]"),
        (a2c, {"gae_lambda": math.nan}, r"gae_lambda = nan; valid: in \[0, 1\]"),
        (q_learning, {"epsilon": -1}, r"epsilon = -1; valid: in \[0, 1\]"),
        (q_learning, {"step_size": 1.5}, r"step_size is up to 1.5; valid: in \(0, 1\]"),
    ],
)
def test_arguments_are_checked_at_once(source: Learn, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source(SMALL, torch.arange(2), **changes)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (torch.tensor([0, 25]), "tasks are from 0 to 25; valid for darkroom: from 0 to 24"),
        (
            torch.tensor([], dtype=torch.int64),
            r"tasks are torch.int64 of shape \[0\]; valid: whole numbers, at least one",
        ),
        (torch.tensor([0.5]), r"tasks are torch.float32 of shape \[1\]"),
    ],
)
def test_tasks_are_checked(tasks: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tabular_ppo(SMALL, tasks)
