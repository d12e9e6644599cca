"""Bandits of the Decision-Pretrained Transformer (arXiv 2306.14892, appendix): tasks, contexts to learn from, regret.

    generator = torch.Generator().manual_seed(0)
    bandits = gaussian_bandits(200, generator=generator)
    behavior = mixture_behavior(200, 5, generator=generator)
    context = pulled(bandits, behavior, steps=500, generator=generator)
    label = bandits.optimal_arm

All tensors are on the generator's device. Who learns online is in ``bandit_rules``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from decisionrl.envs.gridworld.family import check_whole


class Pulls(NamedTuple):
    """Which arms were pulled in each task, in their order, and what came of it."""

    arm: Int[Tensor, "tasks steps"]
    reward: Float[Tensor, "tasks steps"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Bandits:
    """A bandit for each task.

    Attributes:
        means: the mean reward of each arm.
        noise: standard deviation of the Gaussian noise of a reward; None for rewards that are 1 with probability
            ``means`` and else 0.
        features: of linear bandits, whose means are ``<theta, features[arm]>``.

    Raises:
        ValueError: noise is negative or not finite.
    """

    means: Float[Tensor, "tasks arms"]
    noise: float | None
    features: Float[Tensor, "arms dimensions"] | None = None

    def __post_init__(self) -> None:
        if self.noise is not None and not 0 <= self.noise < math.inf:
            raise ValueError(f"noise = {self.noise}; valid: a number >= 0, or None for rewards of 0 and 1")

    @property
    def optimal_arm(self) -> Int[Tensor, " tasks"]:
        return self.means.argmax(1)

    def mean(self, arm: Int[Tensor, "tasks draws"]) -> Float[Tensor, "tasks draws"]:
        """The mean rewards of arms."""
        return self.means.gather(1, arm)

    def regret(self, arm: Int[Tensor, "tasks draws"]) -> Float[Tensor, "tasks draws"]:
        """How much less than the best arm each arm earns on average; ``.cumsum(1)`` is the regret of online learning,
        and of an arm that was chosen from given data it is the suboptimality."""
        return self.means.amax(1, keepdim=True) - self.mean(arm)

    def pull(self, arm: Int[Tensor, "tasks draws"], generator: torch.Generator) -> Float[Tensor, "tasks draws"]:
        """A reward of each of these arms."""
        mean = self.mean(arm)
        if self.noise is None:
            return mean.bernoulli(generator=generator)
        return mean + self.noise * torch.empty_like(mean).normal_(generator=generator)


def gaussian_bandits(
    tasks: int,
    *,
    arms: int = 5,
    noise: float = 0.3,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Bandits:
    """Means are uniform on [0, 1]; rewards have Gaussian noise.

    The authors' code calls the 0.3 a variance and uses it as the standard deviation, as is done here.
    """
    return Bandits(means=_uniform(tasks, arms, generator, dtype), noise=noise)


def bernoulli_bandits(
    tasks: int, *, arms: int = 5, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Bandits:
    """Means are uniform on [0, 1], which is Beta(1, 1); rewards are 0 or 1."""
    return Bandits(means=_uniform(tasks, arms, generator, dtype), noise=None)


def linear_bandits(
    tasks: int,
    *,
    arms: int = 10,
    dimensions: int = 2,
    noise: float = 0.3,
    feature_seed: int = 1234,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Bandits:
    """Means are <theta, phi(arm)> with theta ~ N(0, I / d) in each task and features phi(arm) ~ N(0, I / d) that all
    tasks share: ``numpy.random.RandomState(feature_seed).normal(size=(arms, d)) / sqrt(d)``, as published."""
    for field, count in (("tasks", tasks), ("arms", arms), ("dimensions", dimensions)):
        check_whole(field, count, 1)
    drawn = np.random.RandomState(feature_seed).normal(size=(arms, dimensions))
    scale = 1 / math.sqrt(dimensions)
    features = scale * torch.from_numpy(drawn).to(generator.device, dtype)
    theta = scale * torch.randn(tasks, dimensions, generator=generator, device=generator.device, dtype=dtype)
    return Bandits(means=theta @ features.T, noise=noise, features=features)


def mixture_behavior(
    tasks: int,
    arms: int,
    *,
    generator: torch.Generator,
    favored: Int[Tensor, " tasks"] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "tasks arms"]:
    """The probabilities with which the context of each task pulls the arms,

        (1 - omega) Dirichlet(1, ..., 1) + omega [one arm],    omega uniform on {0, 0.1, ..., 1}.

    favored: the one arm; drawn uniformly by default. With ``Bandits.optimal_arm`` the data are biased to the expert's.
    """
    device = generator.device
    exponential = torch.empty(tasks, arms, device=device, dtype=dtype).exponential_(generator=generator)
    dirichlet = exponential / exponential.sum(1, keepdim=True)
    if favored is None:
        favored = torch.randint(arms, (tasks,), generator=generator, device=device)
    omega = torch.randint(11, (tasks, 1), generator=generator, device=device).to(dtype) / 10
    return (1 - omega) * dirichlet + omega * torch.nn.functional.one_hot(favored, arms)


def pulled(bandits: Bandits, behavior: Float[Tensor, "tasks arms"], *, steps: int, generator: torch.Generator) -> Pulls:
    """Arms drawn independently with these probabilities, and their rewards."""
    arm = behavior.multinomial(steps, replacement=True, generator=generator)
    return Pulls(arm, bandits.pull(arm, generator))


def _uniform(tasks: int, arms: int, generator: torch.Generator, dtype: torch.dtype) -> Float[Tensor, "tasks arms"]:
    for field, count in (("tasks", tasks), ("arms", arms)):
        check_whole(field, count, 1)
    return torch.rand(tasks, arms, generator=generator, device=generator.device, dtype=dtype)
