"""Bandit algorithms that in-context learners are compared with (arXiv 2306.14892, appendix), for all tasks at once.

Each gives every arm a number, and the arm of the largest is pulled; of equal ones the first.

    online = play(bandits, ucb, steps=500, generator=generator)
    bandits.regret(online.arm).cumsum(1)

    arm = lcb(tally(context, arms=5)).argmax(1, keepdim=True)  # from given data
    bandits.regret(arm)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.envs.gridworld.bandit import Bandits, Pulls


class Tally(NamedTuple):
    """How often each arm was pulled, and the sum of its rewards."""

    pulls: Float[Tensor, "tasks arms"]
    total: Float[Tensor, "tasks arms"]

    @property
    def mean(self) -> Float[Tensor, "tasks arms"]:
        """The mean reward; 0 of arms that were never pulled."""
        return self.total / self.pulls.clamp(min=1)


Index = Callable[[Tally], Float[Tensor, "tasks arms"]]


def tally(pulls: Pulls, *, arms: int) -> Tally:
    """What the rules need to know of some pulls."""
    nothing = pulls.reward.new_zeros(len(pulls.arm), arms)
    return _added(Tally(nothing, nothing), pulls)


def play(bandits: Bandits, index: Index, *, steps: int, generator: torch.Generator) -> Pulls:
    """Pull an arm in every task ``steps`` times by a rule, from no knowledge."""
    nothing = torch.zeros_like(bandits.means)
    known, history = Tally(nothing, nothing), []
    for _ in range(steps):
        arm = index(known).argmax(1, keepdim=True)
        history.append(Pulls(arm, bandits.pull(arm, generator)))
        known = _added(known, history[-1])
    arms, rewards = zip(*history, strict=True)
    return Pulls(torch.cat(arms, 1), torch.cat(rewards, 1))


def empirical_mean(known: Tally, *, unknown: float = math.inf) -> Float[Tensor, "tasks arms"]:
    """The mean reward. Arms that were never pulled count as ``unknown``: online they come first; for given data, 0."""
    return known.mean.where(known.pulls > 0, unknown)


def ucb(known: Tally, *, scale: float = 1.0) -> Float[Tensor, "tasks arms"]:
    """Mean + scale / sqrt(count), infinite for arms that were never pulled."""
    return known.mean + scale * known.pulls.rsqrt()


def lcb(known: Tally, *, scale: float = 1.0) -> Float[Tensor, "tasks arms"]:
    """Mean - scale / sqrt(count), for given data; arms that were never pulled count as one reward of 0."""
    return known.mean - scale * known.pulls.clamp(min=1).rsqrt()


def thompson(
    known: Tally,
    *,
    generator: torch.Generator,
    prior_mean: float = 1 / 2,
    prior_variance: float = 1 / 12,
    noise: float = 0.3,
) -> Float[Tensor, "tasks arms"]:
    """A draw from the posterior of each mean, with a Gaussian prior and noise of that standard deviation.

    Contexts of linear bandits are collected with prior_mean = 0 and prior_variance = 1.
    """
    precision = 1 / prior_variance + known.pulls / noise**2
    mean = (prior_mean / prior_variance + known.total / noise**2) / precision
    return mean + torch.empty_like(mean).normal_(generator=generator) * precision.rsqrt()


def lin_ucb(
    known: Tally, *, features: Float[Tensor, "arms dimensions"], beta: float = 1.0
) -> Float[Tensor, "tasks arms"]:
    """<theta, phi> + beta sqrt(phi' S^-1 phi) with S = I + sum phi phi' and theta = S^-1 sum reward phi, the sums over
    the pulls so far."""
    dimensions = features.shape[1]
    gram = torch.einsum("ta,ad,ae->tde", known.pulls, features, features)
    inverse = torch.linalg.inv(gram + torch.eye(dimensions).to(gram))
    theta = torch.einsum("tde,ta,ae->td", inverse, known.total, features)
    width = torch.einsum("ad,tde,ae->ta", features, inverse, features).sqrt()
    return theta @ features.T + beta * width


def _added(known: Tally, pulls: Pulls) -> Tally:
    count = known.pulls.scatter_add(1, pulls.arm, torch.ones_like(pulls.reward))
    return Tally(count, known.total.scatter_add(1, pulls.arm, pulls.reward))
