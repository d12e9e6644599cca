"""What a return is compared with: the scores of random and expert policies, D4RL's and our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from decisionrl.envs.world import World
from decisionrl.experience.acting import ActingPolicy
from decisionrl.experience.episodes import Played, Task, play
from decisionrl.modes import evaluating
from decisionrl.names import pick
from decisionrl.policies.evaluation import Batch, Evaluation, Observation
from decisionrl.seeding import generator


@dataclass(frozen=True)
class ReferenceScores:
    """Mean returns of uniformly random actions and of an expert.

    Raises:
        ValueError: they are equal.
    """

    random: float
    expert: float

    def __post_init__(self) -> None:
        if self.random == self.expert:
            raise ValueError(f"random = expert = {self.random}; valid: two different scores")

    def normalized(self, returns: float) -> float:
        """100 (R - random) / (expert - random) (arXiv 2004.07219): 0 is random, 100 the expert."""
        return 100 * (returns - self.random) / (self.expert - self.random)


D4RL = {
    "halfcheetah": ReferenceScores(-280.178953, 12135.0),
    "hopper": ReferenceScores(-20.272305, 3234.3),
    "walker2d": ReferenceScores(1.629008, 4592.3),
}
"""Task -> the constants of D4RL (arXiv 2004.07219) for all its MuJoCo sets.

They belong to the v2 environments on an older MuJoCo. Returns of Gymnasium's v5 environments are comparable in size
only, so beside a score with these constants stands one with references measured on the environment itself.
"""


def d4rl_scores(env: str) -> ReferenceScores:
    """D4RL's constants for an environment or data set, such as ``Hopper-v5`` or ``hopper-medium-v2``.

    Raises:
        UnknownNameError: D4RL has no MuJoCo set of that task.
    """
    return pick("task of D4RL", env.partition("-")[0].lower(), D4RL)


class UniformActions:
    """A policy that acts uniformly at random; the floor of every normalized score.

    Raises:
        ValueError: actions that are neither a number of choices nor a bounded box.
    """

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self._whole = isinstance(action_space, spaces.Discrete)
        if isinstance(action_space, spaces.Discrete):
            self._low, self._width = torch.tensor(int(action_space.start)), torch.tensor(float(action_space.n))
        elif isinstance(action_space, spaces.Box) and action_space.is_bounded():
            self._low = torch.as_tensor(action_space.low)
            self._width = torch.as_tensor(action_space.high) - self._low
        else:
            raise ValueError(f"action_space = {action_space}; valid: Discrete, or a Box with finite bounds")

    def act(
        self, observation: Observation, state: Tensor | None = None, *, noise: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Actions [N, ...] at the place in their range that the noise says.

        Raises:
            ValueError: there is no noise; random actions have no mode.
        """
        if noise is None:
            raise ValueError("noise = None; valid: a tensor, as uniformly random actions have no mode")
        above = noise * self._width
        return self._low + (above.floor().long() if self._whole else above), None

    def sample_noise(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
        """Uniform on [0, 1), [*shape, ...]."""
        return torch.rand((*shape, *self._low.shape), generator=generator)

    def initial_state(self, copies: int, /) -> None:
        """None: there is no memory."""

    def evaluate(self, batch: Batch, /) -> Evaluation:
        """Not needed of what only acts."""
        raise NotImplementedError("uniformly random actions are not learned from")

    def value(self, observation: Observation, state: Tensor | None = None) -> None:
        """None: there is no V."""


def played_episodes(
    world: World, policy: ActingPolicy, *, episodes: int, seed: int, stream: str, stochastic: bool = False
) -> Played:
    """Episodes from starts that seed and stream name, with the policy's deterministic or random actions."""
    starts = np.random.SeedSequence(seed, spawn_key=tuple(stream.encode())).generate_state(episodes) >> 1
    noise = generator(seed, f"{stream} actions", world.device) if stochastic else None
    with evaluating(policy):
        return play(world, policy, [Task(int(start)) for start in starts], generator=noise)


def random_score(world: World, *, episodes: int = 50, seed: int = 0) -> float:
    """The mean return of uniformly random actions over ``episodes`` episodes."""
    policy = UniformActions(world.action_space)
    played = played_episodes(world, policy, episodes=episodes, seed=seed, stream="random score", stochastic=True)
    return float(played.outcome.double().mean())


def expert_score(world: World, policy: ActingPolicy, *, episodes: int = 50, seed: int = 0) -> float:
    """The mean return of a policy's deterministic actions over ``episodes`` episodes."""
    played = played_episodes(world, policy, episodes=episodes, seed=seed, stream="expert score")
    return float(played.outcome.double().mean())
