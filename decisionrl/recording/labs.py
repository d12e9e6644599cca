"""Labs: recorded behavior in small worlds whose every answer is known exactly, made in less than a second.

They are what a newcomer tries first and what tests compare with: segments of a suboptimal behavior, and scores of
teachers that make no mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from decisionrl.envs import point, two_modes
from decisionrl.envs.tabular import DeterministicMDP, TabularEnv, gridworld
from decisionrl.experience.preferences import Segments, sample_segments
from decisionrl.experience.store import DatasetError, EpisodeStore
from decisionrl.seeding import generator

Array = NDArray[Any]

REFERENCE_EPISODES = 1000
"""From how many episodes the scores of uniformly random and of optimal actions are worked out."""


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Segments of recorded episodes, and what teachers think of each.

    Attributes:
        segments: without a score; ``segments.episodes.info`` names the environment.
        scores: by the teacher's name, [segments], in float64; larger is better.
    """

    segments: Segments
    scores: Mapping[str, Float[Tensor, " segments"]]

    @property
    def episodes(self) -> EpisodeStore:
        """Where the segments are from."""
        return self.segments.episodes

    def scored(self, score: str) -> Segments:
        """The segments with the scores of that name.

        Raises:
            DatasetError: there is none.
        """
        if score not in self.scores:
            raise DatasetError(f"score = {score!r}; valid: {', '.join(sorted(self.scores))}")
        return self.segments.scored(self.scores[score])


def gridworld_lab(
    *,
    size: int = 5,
    temperature: float = 0.02,
    behavior_temperature: float = 0.05,
    noise: float = 0.3,
    episodes: int = 400,
    segments: int = 500,
    length: int = 4,
    seed: int = 0,
) -> Lab:
    """The sparse-goal gridworld, walked by somebody who cares too little; scores are exact.

    The behavior is ``(1 - noise) softmax(A*(s, .) / behavior_temperature) + noise / 4`` with the soft-optimal advantage
    A* of ``gridworld(size).soft_optimum(temperature)``. Scores: ``regret``, the sum of A*(s, a) over a segment, less
    negative for less regret; ``return``, the sum of its rewards, which are 0 in most segments.
    """
    mdp, env = gridworld(size), TabularEnv(size=size)
    optimum = mdp.soft_optimum(temperature)
    behavior = (1 - noise) * (optimum.advantage / behavior_temperature).softmax(1) + noise / mdp.num_actions
    store = _store(
        _walks(mdp, behavior, episodes, env.max_steps, generator(seed, "episodes")),
        env,
        terminal=mdp.terminal.numpy(),
        info={
            "maker": "lab",
            "env": "decisionrl/PreferenceGridworld-v0",
            "env_options": {"size": size},
            "seed": seed,
            **_references(
                lambda rng: _walks(mdp, torch.full_like(behavior, 0.25), REFERENCE_EPISODES, env.max_steps, rng),
                lambda rng: _walks(mdp, optimum.policy, REFERENCE_EPISODES, env.max_steps, rng),
            ),
        },
    )
    chosen = sample_segments(store, segments, length, generator=generator(seed, "segments"))
    steps = chosen.rows(torch.arange(len(chosen)))
    state = steps.observation
    assert isinstance(state, Tensor)
    scores = {
        "regret": optimum.advantage[state, steps.action].sum(1),
        "return": steps.reward.double().sum(1),
    }
    return Lab(segments=chosen, scores=scores)


def two_modes_lab(
    *,
    episodes: int = 300,
    good: float = 0.5,
    noise: float = 0.1,
    segments: int = 500,
    length: int = 10,
    seed: int = 0,
) -> Lab:
    """A random walk beside which somebody does the right thing in some episodes and the opposite in the others.

    An episode is a good one with probability ``good``; its actions are ``g(s) + noise w`` with w standard normal, the
    others' ``-g(s) + noise w``, both clipped. The store's ``extras["good"]`` says which. Scores: ``good``, 1 or 0;
    ``return``, the sum of a segment's rewards.
    """
    env = two_modes.TwoModesEnv()
    is_good = torch.rand(episodes, generator=generator(seed, "modes")).numpy() < good

    def record(count: int, act: Callable[[Array], Array], rng: torch.Generator) -> _Episodes:
        def step(state: Array, action: Array) -> tuple[Array, Array]:
            return two_modes.walked(state, _normal(state.shape, rng)), two_modes.reward_of(state, action)

        return _episodes(_normal((count, 3), rng), env.max_steps, act, step)

    noises = generator(seed, "noise")

    def behavior(state: Array) -> Array:
        action = np.where(is_good[:, None], two_modes.good_action(state), two_modes.bad_action(state))
        return np.clip(action + noise * _normal(action.shape, noises), -1, 1)

    store = _store(
        record(episodes, behavior, generator(seed, "episodes")),
        env,
        info={
            "maker": "lab",
            "env": "decisionrl/TwoModes-v0",
            "seed": seed,
            **_references(
                lambda rng: record(REFERENCE_EPISODES, lambda state: _uniform((len(state), 2), rng), rng),
                lambda rng: record(REFERENCE_EPISODES, two_modes.good_action, rng),
            ),
        },
        extras={"good": np.repeat(is_good, env.max_steps)},
    )
    chosen = sample_segments(store, segments, length, generator=generator(seed, "segments"))
    steps = chosen.rows(torch.arange(len(chosen)))
    return Lab(
        segments=chosen,
        scores={"good": steps.extras["good"][:, 0].double(), "return": steps.reward.double().sum(1)},
    )


def point_lab(
    *,
    episodes: int = 300,
    offset: tuple[float, float] = (0.6, -0.4),
    noise: float = 0.3,
    segments: int = 500,
    length: int = 10,
    seed: int = 0,
) -> Lab:
    """A point that somebody steers beside its goal, always to the same side.

    In an episode the behavior aims at ``g + u * offset`` with one u, uniform on [0, 1], as
    ``clip((g + u * offset - p) / STEP) + noise w``, clipped: cloning learns to aim at ``g + offset / 2``, while noise
    alone would average out. Scores: ``regret``, the sum of A* = r + V*(s') - V*(s) over a segment with V* in closed
    form, less negative for less regret; ``distance``, minus the sum of ||a - a*(s)||^2; ``return``, the sum of rewards,
    which says more of where a segment begins than of what is done in it.
    """
    env = point.PointReachEnv()

    def record(count: int, act: Callable[[Array], Array], rng: torch.Generator) -> _Episodes:
        def step(observation: Array, action: Array) -> tuple[Array, Array]:
            position, goal = point.moved(observation[:, :2], action), observation[:, 2:]
            return np.concatenate([position, goal], 1), -np.abs(position - goal).sum(1)

        return _episodes(_uniform((count, 4), rng), env.max_steps, act, step)

    noises = generator(seed, "noise")
    beside = (1 + _uniform((episodes, 1), noises)) / 2 * np.asarray(offset)

    def behavior(observation: Array) -> Array:
        aimed = point.optimal_action(observation + np.concatenate([np.zeros_like(beside), beside], 1))
        return np.clip(aimed + noise * _normal(aimed.shape, noises), -1, 1)

    recorded = record(episodes, behavior, generator(seed, "episodes"))
    store = _store(
        recorded,
        env,
        info={
            "maker": "lab",
            "env": "decisionrl/PointReach-v0",
            "seed": seed,
            **_references(
                lambda rng: record(REFERENCE_EPISODES, lambda seen: _uniform((len(seen), 2), rng), rng),
                lambda rng: record(REFERENCE_EPISODES, point.optimal_action, rng),
            ),
        },
    )
    value = point.optimal_value(recorded.observation)
    difference = recorded.action - point.optimal_action(recorded.observation[:, :-1])
    chosen = sample_segments(store, segments, length, generator=generator(seed, "segments"))
    by_step = {
        "regret": recorded.reward + value[:, 1:] - value[:, :-1],
        "distance": -(difference**2).sum(-1),
        "return": recorded.reward,
    }
    steps = chosen.start[:, None] + torch.arange(length)
    scores = {name: torch.from_numpy(each)[chosen.episode[:, None], steps].sum(1) for name, each in by_step.items()}
    return Lab(segments=chosen, scores=scores)


@dataclass(frozen=True)
class _Episodes:
    """Episodes side by side: observation [episodes, steps + 1, ...], action and reward [episodes, steps, ...]."""

    observation: Array
    action: Array
    reward: Array


def _episodes(
    observation: Array,
    steps: int,
    act: Callable[[Array], Array],
    step: Callable[[Array, Array], tuple[Array, Array]],
) -> _Episodes:
    """Play ``step(observation, action) -> next observation, reward`` from these observations on."""
    seen, actions, rewards = [observation], [], []
    for _ in range(steps):
        actions.append(act(seen[-1]))
        observation, reward = step(seen[-1], actions[-1])
        seen.append(observation)
        rewards.append(reward)
    return _Episodes(np.stack(seen, 1), np.stack(actions, 1), np.stack(rewards, 1))


def _walks(
    mdp: DeterministicMDP, policy: Float[Tensor, "S A"], count: int, steps: int, rng: torch.Generator
) -> _Episodes:
    """Walks of a tabular policy; in terminal states they stay and earn nothing."""
    led_to, reward = mdp.next_state.clone(), mdp.reward.clone()
    led_to[mdp.terminal] = mdp.terminal.nonzero()
    reward[mdp.terminal] = 0.0

    def act(state: Array) -> Array:
        return torch.multinomial(policy[state], 1, generator=rng)[:, 0].numpy()

    def step(state: Array, action: Array) -> tuple[Array, Array]:
        return led_to[state, action].numpy(), reward[state, action].numpy()

    start = torch.multinomial(mdp.start, count, replacement=True, generator=rng)
    return _episodes(start.numpy(), steps, act, step)


def _store(
    recorded: _Episodes,
    env: gymnasium.Env[Any, Any],
    *,
    info: Mapping[str, Any],
    terminal: Array | None = None,
    extras: Mapping[str, Array] | None = None,
) -> EpisodeStore:
    """Episodes as a store. ``terminal`` [states] says which of the observed states end an episode; the others are
    truncated after the last step."""
    count, steps = recorded.reward.shape
    over = np.zeros((count, steps), bool) if terminal is None else terminal[recorded.observation[:, 1:]]
    length = np.where(over.any(1), over.argmax(1) + 1, steps)
    number = np.arange(steps + 1)
    lasts = number[:-1] == length[:, None] - 1
    played = number[:-1] < length[:, None]
    return EpisodeStore(
        observation=_tensor(recorded.observation[number <= length[:, None]]),
        action=_tensor(recorded.action[played]),
        reward=_tensor(recorded.reward[played]),
        terminated=torch.from_numpy((lasts & over)[played]),
        truncated=torch.from_numpy((lasts & ~over)[played]),
        length=torch.from_numpy(length),
        observation_space=env.observation_space,
        action_space=env.action_space,
        extras={name: torch.from_numpy(each) for name, each in (extras or {}).items()},
        info=info,
    )


def _references(
    uniform: Callable[[torch.Generator], _Episodes], expert: Callable[[torch.Generator], _Episodes]
) -> dict[str, float]:
    """The mean returns of two policies, the same for labs of every seed."""
    rng = generator(0, "references")
    named = {"random_score": uniform, "expert_score": expert}
    return {name: float(record(rng).reward.sum(1).mean()) for name, record in named.items()}


def _tensor(array: Array) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.float() if tensor.is_floating_point() else tensor


def _uniform(shape: tuple[int, ...], rng: torch.Generator) -> Array:
    """Uniform on [-1, 1]."""
    return (2 * torch.rand(shape, generator=rng, dtype=torch.float64) - 1).numpy()


def _normal(shape: tuple[int, ...], rng: torch.Generator) -> Array:
    return torch.randn(shape, generator=rng, dtype=torch.float64).numpy()
