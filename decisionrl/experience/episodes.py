"""EpisodeSource: whole episodes from chosen starts, several from each, for methods that compare them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from decisionrl.envs.copies import Copies
from decisionrl.envs.world import EnvironmentFault, World
from decisionrl.experience.acting import (
    ActingPolicy,
    EpisodeStatistics,
    EvaluatingPolicy,
    joined_rows,
    rows_of,
    update_normalizer,
)
from decisionrl.experience.trajectories import Trajectories, each_key, joined
from decisionrl.pipeline import PipelineStep, load_states, states, tell
from decisionrl.pipeline.returns import next_values
from decisionrl.policies.evaluation import Observation
from decisionrl.seeding import generator

if TYPE_CHECKING:
    from decisionrl.learner import Update
    from decisionrl.pipeline.curricula import Starts

ENDLESS = 100_000
"""Steps after which an episode that nobody limits is taken for one that never ends."""

NOISE_CHUNK = 64
"""Steps whose randomness is drawn at once."""


@dataclass(frozen=True)
class Task:
    """An episode to play: from the start of ``seed``, or from the state that ``prefix`` leads to from there.

    With a prefix the environment's own randomness goes on from ``noise``.
    """

    seed: int
    prefix: Tensor | None = None
    noise: int = 0

    @property
    def played(self) -> int:
        """Steps of the prefix."""
        return 0 if self.prefix is None else len(self.prefix)


@dataclass(frozen=True)
class Played:
    """Episodes in the order of their tasks, [episodes, steps], padded on the right.

    ``cut`` [episodes] marks those that nothing but ``max_steps`` has ended. ``state`` is the policy's before the first
    step, where it is not the initial one of every episode, and ``sampling_state`` what it was when it acted, where that
    is another; ``extras`` are more tensors, [episodes, ...]. ``log_prob`` and ``entropy`` are of the actions when they
    were sampled, if that is to be believed; else they are worked out.
    """

    observation: Observation
    action: Tensor
    reward: Tensor
    mask: Tensor
    terminated: Tensor
    truncated: Tensor
    final_observation: Observation
    final_state: Tensor | None
    cut: Tensor
    state: Tensor | None = None
    sampling_state: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    log_prob: Tensor | None = None
    entropy: Tensor | None = None

    @property
    def steps(self) -> Tensor:
        """The columns where something happened, whoever did it, [episodes, steps]."""
        of_tokens = self.state is not None and not self.state.is_floating_point()
        return self.observation >= 0 if of_tokens and isinstance(self.observation, Tensor) else self.mask

    @property
    def outcome(self) -> Tensor:
        """The undiscounted return of every episode."""
        return self.reward.sum(1)


@runtime_checkable
class PlaysItself(Protocol):
    """A world that plays whole episodes, many at once, instead of being stepped.

    num_starts: an episode's seed is one of as many numbers, from 0 on; None: any.
    """

    num_envs: int

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def num_starts(self) -> int | None: ...

    def play(
        self, policy: Any, tasks: Sequence[Task], *, generator: torch.Generator | None, max_steps: int | None = None
    ) -> Played: ...


def play(
    world: World | PlaysItself,
    policy: EvaluatingPolicy,
    tasks: Sequence[Task],
    *,
    generator: torch.Generator | None,
    max_steps: int | None = None,
) -> Played:
    """Play the tasks on the world's copies, each copy going on with the next task when it has ended one; or let the
    world do it, if it has a ``play`` of its own.

    generator: of the actions' randomness; None plays the policy's deterministic actions. max_steps: an episode of as
    many steps, those of a prefix included, is truncated. Policies with memory begin every episode with their
    initial state; those that condition on rewards have ``hear(state, reward [copies]) -> state``, told of every step.

    Raises:
        ValueError: the world cannot start a copy from a seed, or not go back to a state; there is no task.
        EnvironmentFault: without ``max_steps``, an episode has not ended after 100,000 steps.
    """
    if isinstance(world, PlaysItself):
        return world.play(policy, tasks, generator=generator, max_steps=max_steps)
    return _stepped(world, cast(ActingPolicy, policy), tasks, generator=generator, max_steps=max_steps)


def _stepped(
    world: World,
    policy: ActingPolicy,
    tasks: Sequence[Task],
    *,
    generator: torch.Generator | None,
    max_steps: int | None,
) -> Played:
    if not world.seedable:
        raise ValueError(
            f"{world.name}: episodes from chosen starts need a world that heeds a seed for each copy; valid: an id, "
            "module:Class, a function, or a SyncVectorEnv or AsyncVectorEnv with autoreset mode DISABLED"
        )
    if not tasks:
        raise ValueError("tasks is empty; valid: at least one episode")
    copies, limit = world.num_envs, ENDLESS if max_steps is None else max_steps
    waiting = deque(range(len(tasks)))
    playing: list[int | None] = [waiting.popleft() if waiting else None for _ in range(copies)]
    length = [0] * copies
    idle = {i for i, task in enumerate(playing) if task is None}
    current = _begun(world, tasks, {i: task for i, task in enumerate(playing) if task is not None}, range(copies))
    initial = state = policy.initial_state(copies)
    hear = getattr(policy, "hear", None)
    log = _Log()
    final: dict[int, tuple[Observation, Tensor | None]] = {}
    cut: set[int] = set()
    noise: deque[Tensor] = deque()
    with torch.no_grad():
        while len(idle) < copies:
            if generator is not None and not noise:
                noise.extend(policy.sample_noise((NOISE_CHUNK, copies), generator).unbind(0))
            seen = each_key(lambda each: each[0].clone(), [current])
            action, state = policy.act(current, state, noise=None if generator is None else noise.popleft())
            step = world.step(action, idle=idle)
            if hear is not None and state is not None:
                state = hear(state, step.reward)
            log.add(seen, action.clone(), step.reward.clone(), step.terminated.clone(), playing, length)
            current = step.observation
            length = [n + 1 for n in length]
            ended, over = set(step.over), []
            for i, task in enumerate(playing):
                if task is not None and (i in ended or length[i] + tasks[task].played >= limit):
                    if max_steps is None and i not in ended:
                        raise EnvironmentFault(
                            f"{world.name}, copy {i}: its episode has not ended in {ENDLESS:,} steps; valid: an "
                            "environment whose episodes end, or a limit, max_steps"
                        )
                    if i not in ended:
                        cut.add(task)
                    final[task] = rows_of(current, [i]), None if state is None else state[[i]]
                    playing[i] = waiting.popleft() if waiting else None
                    length[i] = 0
                    over.append(i)
            if not over:
                continue
            idle.update(i for i in over if playing[i] is None)
            if begin := {i: task for i in over if (task := playing[i]) is not None}:
                current = _begun(world, tasks, begin, over)
            if state is not None and initial is not None:
                state = state.index_copy(0, torch.tensor(over, device=state.device), initial[over])
    return log.played([final[task] for task in range(len(tasks))], cut, world.device)


def _begun(world: World, tasks: Sequence[Task], begin: Mapping[int, int], copies: Sequence[int]) -> Observation:
    """Begin the tasks in their copies; the other ``copies`` begin anything, for worlds that restart all at once."""
    spare = tasks[next(iter(begin.values()))].seed
    current = world.restart(copies, [tasks[begin[i]].seed if i in begin else spare for i in copies])
    for i, index in begin.items():
        task = tasks[index]
        if task.prefix is not None:
            if not isinstance(world, Copies):
                raise ValueError(f"{world.name}: going back to a state needs copies in this process (workers = 0)")
            current = world.branch(i, task.seed, task.prefix, noise=task.noise)
    return current


class _Log:
    """What all copies did in every step, and which episode and step of it that was."""

    def __init__(self) -> None:
        self._steps: list[tuple[Observation, Tensor, Tensor, Tensor]] = []
        self._episode: list[list[int]] = []
        self._position: list[list[int]] = []

    def add(
        self,
        observation: Observation,
        action: Tensor,
        reward: Tensor,
        terminated: Tensor,
        episode: Sequence[int | None],
        position: Sequence[int],
    ) -> None:
        self._steps.append((observation, action, reward, terminated))
        self._episode.append([-1 if e is None else e for e in episode])
        self._position.append(list(position))

    def played(
        self, final: Sequence[tuple[Observation, Tensor | None]], cut: Collection[int], device: torch.device
    ) -> Played:
        """One row an episode."""
        episode = torch.tensor(self._episode, device=device).flatten()
        position = torch.tensor(self._position, device=device).flatten()
        kept = episode >= 0
        row, column = episode[kept], position[kept]
        shape = (len(final), int(column.max()) + 1)

        def arranged(values: Sequence[Tensor]) -> Tensor:
            flat = torch.stack(list(values)).flatten(0, 1)[kept]
            padded = torch.zeros(*shape, *flat.shape[1:], dtype=flat.dtype, device=device)
            padded[row, column] = flat
            return padded

        observations, actions, rewards, terminations = zip(*self._steps, strict=True)
        mask = torch.zeros(shape, dtype=torch.bool, device=device)
        mask[row, column] = True
        terminated = arranged(terminations)
        last = mask & ~torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
        return Played(
            observation=each_key(arranged, observations),
            action=arranged(actions),
            reward=arranged(rewards),
            mask=mask,
            terminated=terminated,
            truncated=last & ~terminated,
            final_observation=each_key(joined_rows, [seen for seen, _ in final]),
            final_state=None if final[0][1] is None else torch.cat([state for _, state in final if state is not None]),
            cut=torch.tensor([task in cut for task in range(len(final))], device=device),
        )


Growth = Callable[[Tensor, "EpisodeSource"], Trajectories]
"""``(start ids, source) -> batch`` with ``start_id``, from episodes that it lets the source play."""

StateValues = Callable[[Trajectories, "EpisodeSource"], Trajectories]
"""``(batch, source) -> batch`` with more extras, from episodes that it lets the source play."""


class EpisodeSource:
    """Whole episodes from the starts that ``starts`` proposes, one row each, with equal ``group`` for equal starts.

    A start is a number; the reset seed that belongs to it is the same over the whole run. Episodes of one group so
    begin in the same state and, where the world is random, share its random numbers.

    Args:
        world: where the policy acts; must be ``seedable``.
        policy: what acts.
        starts: proposes starts, and hears the scores of their episodes.
        score: from returns [episodes] to what ``starts`` hears, such as 1 for a success; by default the returns.
        max_steps: longer episodes are truncated; None leaves that to the environment.
        greedy: also play the deterministic actions once from every start: ``extras["greedy_return"]`` [batch].
        tree: grows the episodes of a round from their starts in another way, such as Tree of
            ``decisionrl.experience.branching``; the starts then hear no scores.
        values: works out more from states that the episodes went through, such as SegmentValues of
            ``decisionrl.experience.branching``.
        pipeline: what is done to each batch; ends in an advantage estimator.
        seed: of the starts and the actions.
    """

    def __init__(
        self,
        world: World | PlaysItself,
        policy: EvaluatingPolicy,
        *,
        starts: Starts,
        score: Callable[[Tensor], Tensor] | None = None,
        max_steps: int | None = None,
        greedy: bool = False,
        tree: Growth | None = None,
        values: StateValues | None = None,
        pipeline: Sequence[PipelineStep] = (),
        seed: int = 0,
    ) -> None:
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps = {max_steps}; valid: a whole number >= 1, or None")
        self.world, self.policy, self.starts, self.pipeline = world, policy, starts, tuple(pipeline)
        self.steps_per_sample = 0
        self._score, self._max_steps, self._greedy, self._values = score, max_steps, greedy, values
        self._tree = tree
        self._seed = seed
        self._choice = generator(seed, "starts")
        self._noise = generator(seed, "actions", world.device)
        self._episodes = EpisodeStatistics(0)
        self._batch: Trajectories | None = None

    def sample(self) -> Trajectories:
        """A batch; if the world fails, the next one begins where this one did.

        Raises:
            EnvironmentFault: the world failed.
        """
        before = deepcopy(self.state_dict())
        try:
            return self._sample()
        except EnvironmentFault:
            self.load_state_dict(before)
            raise

    def _sample(self) -> Trajectories:
        self.steps_per_sample = 0
        with torch.no_grad():
            rounds: list[Trajectories] = []
            while (ids := self.starts.propose(self._choice)) is not None:
                rounds.append(self._round(ids) if self._tree is None else self._tree(ids, self))
            if not rounds:
                raise RuntimeError("starts proposed no episode")
            batch = joined(rounds)
            assert batch.start_id is not None
            batch = batch.replace(group=torch.unique(batch.start_id, return_inverse=True)[1])
            if self._greedy:
                batch = self._with_greedy(batch)
            if self._values is not None:
                batch = self._values(batch, self)
            self._batch = batch
            for step in self.pipeline:
                batch = step(batch)
        return batch.replace(metrics={**batch.metrics, **self._episodes.metrics()})

    def observe(self, update: Update) -> None:
        tell(self.pipeline, update)
        if self._batch is not None:
            update_normalizer(self.policy, self._batch)
            self._batch = None

    def state_dict(self) -> dict[str, Any]:
        return {**self._state(), "pipeline": states(self.pipeline)}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._load(state)
        load_states(self.pipeline, state["pipeline"])

    def _state(self) -> dict[str, Any]:
        return {
            "starts": self.starts.state_dict(),
            "choice": self._choice.get_state(),
            "noise": self._noise.get_state(),
            "episodes": self._episodes.state_dict(),
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self.starts.load_state_dict(state["starts"])
        self._choice.set_state(state["choice"])
        self._noise.set_state(state["noise"].cpu())
        self._episodes.load_state_dict(state["episodes"])

    def seed_of(self, start: int) -> int:
        """The reset seed that belongs to a start; see :func:`seed_of`."""
        return seed_of(start, seed=self._seed, count=getattr(self.world, "num_starts", None))

    def fresh_seeds(self, count: int) -> list[int]:
        """Seeds never used before."""
        return torch.randint(2**31, (count,), generator=self._choice).tolist()

    def play(self, tasks: Sequence[Task], *, greedy: bool = False, max_steps: int | None = None) -> Played:
        """Play episodes; their steps count for the batch. max_steps: an earlier limit than the source's."""
        limits = [limit for limit in (max_steps, self._max_steps) if limit is not None]
        played = play(
            self.world,
            self.policy,
            tasks,
            generator=None if greedy else self._noise,
            max_steps=min(limits) if limits else None,
        )
        self.steps_per_sample += int(played.mask.sum())
        return played

    def report(self, returns: Tensor, lengths: Tensor) -> None:
        """Take whole episodes into the statistics of this source."""
        for total, steps in zip(returns.tolist(), lengths.tolist(), strict=True):
            self._episodes.ended(total, steps)

    def _round(self, ids: Tensor) -> Trajectories:
        played = self.play([Task(self.seed_of(start)) for start in ids.tolist()])
        outcome = played.outcome.cpu()
        self.starts.observe(ids, outcome if self._score is None else self._score(outcome))
        self.report(outcome, played.mask.sum(1))
        return evaluated(self.policy, played).replace(start_id=ids.to(self.world.device))

    def _with_greedy(self, batch: Trajectories) -> Trajectories:
        assert batch.start_id is not None
        assert batch.group is not None
        each = self.play([Task(self.seed_of(start)) for start in torch.unique(batch.start_id).tolist()], greedy=True)
        return batch.replace(extras={**batch.extras, "greedy_return": each.outcome[batch.group]})


def seed_of(start: int, *, seed: int, count: int | None) -> int:
    """The reset seed of start number ``start``. Where there are but ``count``, each is met once before any is met
    again, every time in another order.

    seed: of the order.
    """
    if count is not None:
        turn, place = divmod(start, count)
        return int(_order(seed, turn, count)[place])
    return int(np.random.SeedSequence((seed, start)).generate_state(1)[0] >> 1)


@lru_cache(maxsize=4)
def _order(seed: int, turn: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, turn)).permutation(count)


def evaluated(policy: EvaluatingPolicy, played: Played) -> Trajectories:
    """The episodes with what the policy says of them."""
    batch = Trajectories(
        observation=played.observation,
        action=played.action,
        reward=played.reward,
        mask=played.mask,
        log_prob=torch.zeros_like(played.reward) if played.log_prob is None else played.log_prob,
        entropy=played.entropy,
        terminated=played.terminated,
        truncated=played.truncated,
        state=policy.initial_state(len(played.mask)) if played.state is None else played.state,
        sampling_state=played.sampling_state,
        extras=played.extras,
    )
    if played.log_prob is not None:
        return batch
    evaluation = policy.evaluate(batch)
    batch = batch.replace(log_prob=evaluation.log_prob, entropy=evaluation.entropy, value=evaluation.value)
    if evaluation.value is None:
        return batch
    following = next_values(evaluation.value, played.mask, torch.zeros_like(evaluation.value[:, 0]))
    if not played.truncated.any():  # a value of what is over is not worth the work
        return batch.replace(next_value=following)
    last = policy.value(played.final_observation, played.final_state)
    assert last is not None
    return batch.replace(next_value=torch.where(played.truncated, last[:, None], following))
