"""Learners whose learning is recorded: tabular reinforcement learning in all tasks of a grid at once.

    family = darkroom()
    train, test = family.split()
    for episode in tabular_ppo(family, train, streams=50):  # Transitions [task, stream, step, ...]
        ...

Each source plays one episode in every stream of every task, yields it, learns from it, and plays the next one. What
happens in a task is a function of the seed and the task alone: on a CPU it is the same, bit for bit, whichever other
tasks are there. Everything is on the family's device.

A policy is a table over the cells that are seen; the learners of DICP (arXiv 2502.19009) see no more, either. In Dark
Key-to-Door a cell does not tell whether the key is had, and PPO ends at a mean return of about 1.5 of 2 for it. With
``hidden_state=True`` the table is one over the cell and the number of rewards given, and it reaches 2. What is recorded
is in both cases only what is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from decisionrl.envs.gridworld.darkroom import GridFamily
from decisionrl.envs.gridworld.family import check_whole
from decisionrl.envs.seeded import uniform
from decisionrl.experience.histories import Transitions
from decisionrl.pipeline.returns import accumulated
from decisionrl.seeding import generator

MOST_STREAMS = 2**20
"""Seeds of streams are numbered so that those of two tasks never meet."""

Rate = float | Float[Tensor, " task"] | Float[Tensor, "task stream"]
"""One for all, for each task, or for each stream."""


def tabular_ppo(
    family: GridFamily,
    tasks: Int[Tensor, " task"],
    *,
    streams: int = 50,
    episodes: int = 50,
    noise: float = 0.0,
    seed: int = 0,
    hidden_state: bool = False,
    learning_rate: Rate = 0.05,
    epochs: int = 10,
    clip: float = 0.2,
    discount: float = 0.99,
    gae_lambda: float = 0.95,
    entropy: float = 0.01,
    value_coefficient: float = 0.5,
) -> Iterator[Transitions]:
    """PPO (arXiv 1707.06347) with a softmax table and a table of values for each task, which its streams share.

    A task's streams are histories of one learner, as in DICP (arXiv 2502.19009). After each episode there are
    ``epochs`` steps of Adam on the mean of

        - min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) + value_coefficient (V - R)^2 - entropy H

    over the task's transitions, with A the generalized advantages (arXiv 1506.02438), of mean 0 and standard deviation
    1 in each task, R = A + V before that, and no value after the last step.

    Args:
        tasks: ids.
        streams: of each task.
        episodes: of each stream; as many updates, after the last of which nothing is played.
        noise: the share of each task's streams that act at random and are not learned from, see
            :func:`random_streams`.
        hidden_state: the policy sees how many rewards an episode has given, where they come once.
        learning_rate: of Adam, for all, for each task, or for each stream; in the last case every stream has a learner
            of its own.

    Raises:
        ValueError: an argument is out of its range, or a task is not one of the family.
    """
    for name, value in (("entropy", entropy), ("value_coefficient", value_coefficient)):
        _check_between(name, value, 0, math.inf)
    _check_between("clip", clip, 0, 1)
    _check_discount(discount, gae_lambda)
    check_whole("epochs", epochs, 1)
    check_whole("episodes", episodes, 1)
    arena = make_arena(family, tasks, streams=streams, noise=noise, seed=seed, hidden_state=hidden_state)
    rate = _rate("learning_rate", learning_rate, arena)
    return _played_ppo(
        arena,
        rate,
        episodes=episodes,
        epochs=epochs,
        clip=clip,
        discount=discount,
        gae_lambda=gae_lambda,
        entropy=entropy,
        value_coefficient=value_coefficient,
    )


def a2c(
    family: GridFamily,
    tasks: Int[Tensor, " task"],
    *,
    streams: int = 50,
    episodes: int = 50,
    noise: float = 0.0,
    seed: int = 0,
    hidden_state: bool = False,
    learning_rate: Rate = 0.3,
    discount: float = 0.99,
    gae_lambda: float = 1.0,
    entropy: float = 0.01,
    value_coefficient: float = 0.5,
) -> Iterator[Transitions]:
    """Advantage actor-critic (arXiv 1602.01783): :func:`tabular_ppo` with a single step on each episode, at which all
    ratios are 1 and nothing is clipped (arXiv 2205.09123). Its arguments and errors are those of PPO."""
    return tabular_ppo(
        family,
        tasks,
        streams=streams,
        episodes=episodes,
        noise=noise,
        seed=seed,
        hidden_state=hidden_state,
        learning_rate=learning_rate,
        epochs=1,
        discount=discount,
        gae_lambda=gae_lambda,
        entropy=entropy,
        value_coefficient=value_coefficient,
    )


def q_learning(
    family: GridFamily,
    tasks: Int[Tensor, " task"],
    *,
    streams: int = 50,
    episodes: int = 50,
    noise: float = 0.0,
    seed: int = 0,
    hidden_state: bool = False,
    step_size: Rate = 0.5,
    epsilon: float = 0.3,
    discount: float = 0.99,
) -> Iterator[Transitions]:
    """Q-learning with a table for each stream: independent learners, unlike those of :func:`tabular_ppo`.

    After each step Q(s, a) += step_size (r + discount max Q(s', .) - Q(s, a)). The horizon is not seen, so the last
    step has a future like all others. Actions are uniform with a probability that falls linearly from ``epsilon`` in
    the first episode to 0 in the last, and else uniform among those with the largest Q.

    Args:
        step_size: for all, for each task, or for each stream.
        tasks, streams, episodes, noise, seed, hidden_state: see :func:`tabular_ppo`.

    Raises:
        ValueError: an argument is out of its range, or a task is not one of the family.
    """
    _check_between("epsilon", epsilon, 0, 1)
    _check_discount(discount)
    check_whole("episodes", episodes, 1)
    arena = make_arena(family, tasks, streams=streams, noise=noise, seed=seed, hidden_state=hidden_state)
    rate = _rate("step_size", step_size, arena)
    if (rate > 1).any():
        raise ValueError(f"step_size is up to {float(rate.max())}; valid: in (0, 1]")
    return _played_q_learning(arena, rate, episodes=episodes, epsilon=epsilon, discount=discount)


def random_streams(
    tasks: Int[Tensor, " task"], streams: int, *, share: float, seed: int = 0
) -> Bool[Tensor, "task stream"]:
    """Which streams act at random when ``share`` is the ``noise`` of a source: ``round(share * streams)`` of each task,
    drawn once (arXiv 2505.15143, section 4.3, where they are 30 % of the histories).

    Raises:
        ValueError: the share is not in [0, 1].
    """
    _check_between("noise", share, 0, 1)
    drawn = uniform(stream_seeds(tasks, streams, seed).flatten(), torch.tensor(-1, device=tasks.device), 1)
    rank = drawn.view(len(tasks), streams).argsort(1).argsort(1)
    return rank < round(share * streams)


class Played(NamedTuple):
    """An episode of all streams, and in which rows of the table they were."""

    transitions: Transitions
    row: Int[Tensor, "task stream step"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Arena:
    """The streams of some tasks, in which policies over ``num_rows`` rows of a table act.

    Attributes:
        tasks: ids.
        seeds: of the streams.
        random: which act at random, whatever their policy.
    """

    family: GridFamily
    tasks: Int[Tensor, " task"]
    seeds: Int[Tensor, "task stream"]
    random: Bool[Tensor, "task stream"]
    hidden_state: bool

    @property
    def shape(self) -> torch.Size:
        """Tasks and streams."""
        return self.seeds.shape

    @property
    def num_rows(self) -> int:
        """Of a policy's table."""
        hidden = self.family.goals.shape[1] + 1 if self.hidden_state else 1
        return hidden * self.family.size**2

    def row(self, state: Int[Tensor, "... 3"]) -> Int[Tensor, ...]:
        """The row of the table for a state."""
        x0, x1, given = state.unbind(-1)
        size = self.family.size
        cell = x0 * size + x1
        return cell + given * size**2 if self.hidden_state else cell

    @torch.no_grad()
    def play(
        self,
        episode: int,
        policy: Callable[[Int[Tensor, "task stream"]], Float[Tensor, "task stream action"]],
        learn: Callable[[Tensor, Tensor, Tensor, Tensor], None] | None = None,
    ) -> Played:
        """One episode.

        Args:
            episode: its number, which its random numbers depend on.
            policy: from rows to the probabilities of the actions.
            learn: is told (row, action, reward, next row) after each step.
        """
        family, task = self.family, self.tasks[:, None]
        count = family.start_draws + family.horizon
        number = torch.tensor(episode, device=family.device)
        drawn = uniform(self.seeds.flatten(), number, count).float().view(*self.shape, count)
        state = family.start(drawn[..., : family.start_draws])
        rows, states, actions, rewards = [self.row(state)], [state], [], []
        for step in range(family.start_draws, count):
            chance = drawn[..., step]
            at_random = (chance * family.num_actions).ceil().long() - 1
            action = at_random.where(self.random, sampled(policy(rows[-1]), chance))
            state, reward = family.step(state, action, task)
            rows.append(self.row(state))
            if learn is not None:
                learn(rows[-2], action, reward, rows[-1])
            states.append(state)
            actions.append(action)
            rewards.append(reward)
        seen = family.observation(torch.stack(states, 2))
        transitions = Transitions(seen[:, :, :-1], torch.stack(actions, 2), torch.stack(rewards, 2), seen[:, :, 1:])
        return Played(transitions, torch.stack(rows[:-1], 2))


def make_arena(
    family: GridFamily,
    tasks: Int[Tensor, " task"],
    *,
    streams: int,
    noise: float = 0.0,
    seed: int = 0,
    hidden_state: bool = False,
) -> Arena:
    """The streams in which a source of these arguments acts.

    Raises:
        ValueError: an argument is out of its range, or a task is not one of the family.
    """
    check_whole("streams", streams, 1)
    if streams > MOST_STREAMS:
        raise ValueError(f"streams = {streams}; valid: up to {MOST_STREAMS}")
    if tasks.ndim != 1 or not len(tasks) or tasks.is_floating_point():
        raise ValueError(f"tasks are {tasks.dtype} of shape {list(tasks.shape)}; valid: whole numbers, at least one")
    if tasks.min() < 0 or tasks.max() >= family.num_tasks:
        found = f"tasks are from {int(tasks.min())} to {int(tasks.max())}"
        raise ValueError(f"{found}; valid for {family.name}: from 0 to {family.num_tasks - 1}")
    tasks = tasks.to(family.device, torch.int64)
    return Arena(
        family=family,
        tasks=tasks,
        seeds=stream_seeds(tasks, streams, seed),
        random=random_streams(tasks, streams, share=noise, seed=seed),
        hidden_state=hidden_state,
    )


class Statistics(NamedTuple):
    """All that the loss of tables depends on: sums over the transitions of a learner, whose weights sum to 1.

    Attributes:
        gains, losses: of the weighted advantages above 0 and below 0, with each action in each row.
        visits: of the weights in each row.
        target: the mean return in each row; 0 where there is no visit.
    """

    gains: Float[Tensor, "task learner row action"]
    losses: Float[Tensor, "task learner row action"]
    visits: Float[Tensor, "task learner row"]
    target: Float[Tensor, "task learner row"]


def sampled(probability: Float[Tensor, "... action"], chance: Float[Tensor, ...]) -> Int[Tensor, ...]:
    """Actions with these probabilities, from numbers that are uniform on (0, 1]."""
    return (chance[..., None] > probability[..., :-1].cumsum(-1)).sum(-1)


def advantages(
    reward: Float[Tensor, "... step"], value: Float[Tensor, "... step"], *, discount: float, gae_lambda: float
) -> Float[Tensor, "... step"]:
    """Generalized advantages (arXiv 1506.02438) of whole episodes, after which there is nothing."""
    future = torch.cat([value[..., 1:], torch.zeros_like(value[..., :1])], -1)
    error = reward + discount * future - value
    return accumulated(error, torch.full_like(error, discount * gae_lambda))


@torch.no_grad()
def statistics(
    row: Int[Tensor, "task learner sample"],
    action: Int[Tensor, "task learner sample"],
    advantage: Float[Tensor, "task learner sample"],
    target: Float[Tensor, "task learner sample"],
    weight: Float[Tensor, "task learner sample"],
    *,
    num_rows: int,
    num_actions: int,
) -> Statistics:
    """Sums over samples; advantages are brought to mean 0 and standard deviation 1 first."""
    centered = advantage - (weight * advantage).sum(-1, keepdim=True)
    deviation = (weight * centered.square()).sum(-1, keepdim=True).sqrt()
    weighted = weight * centered / (deviation + 1e-8)

    def summed(values: Tensor, index: Tensor, size: int) -> Tensor:
        return values.new_zeros(*values.shape[:2], size).scatter_add(2, index, values)

    def by_action(values: Tensor) -> Tensor:
        pairs = summed(values, row * num_actions + action, num_rows * num_actions)
        return pairs.view(*pairs.shape[:2], num_rows, num_actions)

    visits = summed(weight, row, num_rows)
    total = summed(weight * target, row, num_rows)
    return Statistics(
        gains=by_action(weighted.clamp(min=0)),
        losses=by_action(weighted.clamp(max=0)),
        visits=visits,
        target=(total / visits).where(visits > 0, 0.0),
    )


def ppo_loss(
    logits: Float[Tensor, "task learner row action"],
    value: Float[Tensor, "task learner row"],
    old_log_policy: Float[Tensor, "task learner row action"],
    seen: Statistics,
    *,
    clip: float,
    entropy: float,
    value_coefficient: float,
) -> Float[Tensor, "task learner"]:
    """The loss of :func:`tabular_ppo` up to a constant.

    All transitions with one row and action share a ratio, so their clipped terms add up to those of the sum of the
    positive advantages and of the sum of the negative ones; and squared errors from several targets are, up to a
    constant, those from their mean. A step of Adam costs the same, then, however many streams there are.
    """
    log_policy = logits.log_softmax(-1)
    ratio = (log_policy - old_log_policy).exp()
    surrogate = seen.gains * ratio.clamp(max=1 + clip) + seen.losses * ratio.clamp(min=1 - clip)
    uncertainty = -(log_policy.exp() * log_policy).sum(-1)
    per_row = value_coefficient * (value - seen.target).square() - entropy * uncertainty
    return (seen.visits * per_row).sum(-1) - surrogate.sum((-2, -1))


class Adam:
    """Adam (arXiv 1412.6980) with its usual constants and a step size that may differ along the first dimensions."""

    def __init__(self, parameters: list[Tensor], rate: Float[Tensor, "task learner"]) -> None:
        self.parameters = parameters
        self._rates = [rate.view(*rate.shape, *(1,) * (each.dim() - 2)) for each in parameters]
        self._moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in parameters]
        self._steps = 0

    @torch.no_grad()
    def step(self, gradients: tuple[Tensor, ...]) -> None:
        self._steps += 1
        first_share, second_share = 1 - 0.9**self._steps, 1 - 0.999**self._steps
        for parameter, gradient, rate, (first, second) in zip(
            self.parameters, gradients, self._rates, self._moments, strict=True
        ):
            first.lerp_(gradient, 0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            parameter.sub_(rate * (first / first_share) / ((second / second_share).sqrt() + 1e-8))


def _played_ppo(
    arena: Arena,
    rate: Float[Tensor, "task learner"],
    *,
    episodes: int,
    epochs: int,
    clip: float,
    discount: float,
    gae_lambda: float,
    entropy: float,
    value_coefficient: float,
) -> Iterator[Transitions]:
    actions = arena.family.num_actions
    logits = rate.new_zeros(*rate.shape, arena.num_rows, actions).requires_grad_()
    value = rate.new_zeros(*rate.shape, arena.num_rows).requires_grad_()
    optimizer = Adam([logits, value], rate)
    place = _place(rate)

    def pooled(values: Tensor) -> Tensor:
        """The samples of each learner, from values [task, stream, step]."""
        return values.reshape(*rate.shape, -1)

    learned = pooled((~arena.random).float()[..., None].expand(-1, -1, arena.family.horizon))
    weight = learned / learned.sum(-1, keepdim=True).clamp(min=1)

    for episode in range(episodes):
        table = logits.detach().softmax(-1)

        def policy(row: Tensor, table: Tensor = table) -> Tensor:
            return table[*place, row]

        played = arena.play(episode, policy)
        yield played.transitions
        if episode == episodes - 1:
            return
        expected = value.detach()[*(each[..., None] for each in place), played.row]
        advantage = advantages(played.transitions.reward, expected, discount=discount, gae_lambda=gae_lambda)
        seen = statistics(
            pooled(played.row),
            pooled(played.transitions.action),
            pooled(advantage),
            pooled(advantage + expected),
            weight,
            num_rows=arena.num_rows,
            num_actions=actions,
        )
        old_log_policy = logits.detach().log_softmax(-1)
        for _ in range(epochs):
            with torch.enable_grad():
                loss = ppo_loss(
                    logits,
                    value,
                    old_log_policy,
                    seen,
                    clip=clip,
                    entropy=entropy,
                    value_coefficient=value_coefficient,
                )
                gradients = torch.autograd.grad(loss.sum(), optimizer.parameters)
            optimizer.step(gradients)


def _played_q_learning(
    arena: Arena, rate: Float[Tensor, "task learner"], *, episodes: int, epsilon: float, discount: float
) -> Iterator[Transitions]:
    actions = arena.family.num_actions
    rate = rate.expand(arena.shape)
    table = rate.new_zeros(*rate.shape, arena.num_rows, actions)
    place = _place(rate)

    def learn(row: Tensor, action: Tensor, reward: Tensor, next_row: Tensor) -> None:
        target = reward + discount * table[*place, next_row].amax(-1)
        table[*place, row, action] += rate * (target - table[*place, row, action])

    for episode in range(episodes):
        exploring = epsilon * (1 - episode / max(episodes - 1, 1))

        def policy(row: Tensor, exploring: float = exploring) -> Tensor:
            worth = table[*place, row]
            best = (worth == worth.amax(-1, keepdim=True)).float()
            return (1 - exploring) * best / best.sum(-1, keepdim=True) + exploring / actions

        yield arena.play(episode, policy, learn).transitions


def stream_seeds(tasks: Int[Tensor, " task"], streams: int, seed: int) -> Int[Tensor, "task stream"]:
    """Of the random numbers of each stream, whichever tasks are there."""
    first = torch.randint(2**62, (), generator=generator(seed, "tabular sources")).to(tasks.device)
    return first + tasks[:, None] * MOST_STREAMS + torch.arange(streams, device=tasks.device)


def _rate(name: str, rate: Rate, arena: Arena) -> Float[Tensor, "task learner"]:
    """With one learner for each task, or one for each stream."""
    tasks, streams = arena.shape
    given = torch.as_tensor(rate, dtype=torch.float32, device=arena.tasks.device)
    if given.shape not in ((), (tasks,), (tasks, streams)):
        raise ValueError(f"{name} has shape {list(given.shape)}; valid: a number, [{tasks}] or [{tasks}, {streams}]")
    if not (given.isfinite() & (given > 0)).all():
        raise ValueError(f"{name} = {rate}; valid: finite and above 0")
    return given if given.ndim == 2 else given.reshape(-1, 1).expand(tasks, 1)


def _place(rate: Float[Tensor, "task learner"]) -> tuple[Int[Tensor, "task 1"], Int[Tensor, "1 learner"]]:
    """Indices of tasks and learners that broadcast to [task, stream]."""
    tasks, learners = (torch.arange(size, device=rate.device) for size in rate.shape)
    return tasks[:, None], learners[None]


def _check_between(name: str, value: float, low: float, high: float) -> None:
    if not (low <= value <= high and math.isfinite(value)):
        raise ValueError(
            f"{name} = {value}; valid: {f'in [{low}, {high}]' if high < math.inf else f'finite, >= {low}'}"
        )


def _check_discount(discount: float, gae_lambda: float = 1.0) -> None:
    _check_between("discount", discount, 0, 1)
    _check_between("gae_lambda", gae_lambda, 0, 1)
