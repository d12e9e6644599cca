"""Bandits as a family of tasks, so that what learns in its context learns them as it does any others."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor

from decisionrl.envs.gridworld.bandit import Bandits, bernoulli_bandits, gaussian_bandits
from decisionrl.envs.gridworld.family import check_split, check_whole, split_ids
from decisionrl.envs.seeded import uniform

Rewards = Literal["gaussian", "bernoulli"]


@dataclass(frozen=True, kw_only=True, eq=False)
class BanditFamily:
    """A task for each bandit, an action for each arm; a :class:`~decisionrl.envs.gridworld.family.TaskFamily`.

    An episode is ``horizon`` pulls, and what is seen is always 1. A state [..., 2] of int64 is the seed of the
    episode's noise and the number of the pull.

    Raises:
        ValueError: an option is not valid.
    """

    bandits: Bandits
    horizon: int
    train_share: float
    name: str = "bandit"

    start_draws = 1

    def __post_init__(self) -> None:
        check_whole("horizon", self.horizon, 1)
        check_split(self.train_share, "python")

    @property
    def num_tasks(self) -> int:
        return len(self.bandits.means)

    @property
    def device(self) -> torch.device:
        return self.bandits.means.device

    @property
    def observation_space(self) -> spaces.Box:
        return spaces.Box(0, 1, (1,), np.int32)

    @property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(self.bandits.means.shape[1])

    @property
    def max_return(self) -> Float[Tensor, " tasks"]:
        """The expected return of pulling the best arm all the time."""
        return self.horizon * self.bandits.means.amax(1)

    def to(self, device: torch.device | str) -> BanditFamily:
        return replace(self, bandits=replace(self.bandits, means=self.bandits.means.to(device)))

    def split(self, seed: int | None = None) -> tuple[Int[Tensor, " train"], Int[Tensor, " test"]]:
        """See :func:`~decisionrl.envs.gridworld.family.split_ids`; without a seed it is 0."""
        share, seed = self.train_share, 0 if seed is None else seed
        return split_ids(self.name, self.num_tasks, train_share=share, seed=seed, shuffle="python", device=self.device)

    def start(self, uniform: Float[Tensor, "... 1"]) -> Int[Tensor, "... 2"]:
        seed = (uniform.double() * 2**53).long()
        return torch.cat([seed, torch.zeros_like(seed)], -1)

    def step(
        self, state: Int[Tensor, "... 2"], action: Int[Tensor, ...], task: Int[Tensor, ...]
    ) -> tuple[Int[Tensor, "... 2"], Float[Tensor, ...]]:
        mean = self.bandits.means[task, action]
        first, second = uniform(state[..., 0].flatten(), state[..., 1].flatten(), 2).T.view(2, *mean.shape)
        following = torch.stack([state[..., 0], state[..., 1] + 1], -1)
        if self.bandits.noise is None:
            return following, (first <= mean).float()
        normal = (-2 * first.log()).sqrt() * (2 * torch.pi * second).cos()
        return following, mean.float() + self.bandits.noise * normal.float()

    def observation(self, state: Int[Tensor, "... 2"]) -> Int[Tensor, "... 1"]:
        return torch.ones_like(state[..., :1])

    def state_of(self, observation: Int[Tensor, "... 1"], collected: Float[Tensor, ...]) -> Int[Tensor, "... 2"]:
        """A state of unknown noise, on which no arm's worth depends."""
        return torch.zeros_like(observation).expand(*observation.shape[:-1], 2)

    def success(self, state: Int[Tensor, "... 2"], task: Int[Tensor, ...]) -> Bool[Tensor, ...]:
        """Never: there is always more to be had."""
        return torch.zeros_like(state[..., 0], dtype=torch.bool)

    def optimal_action(self, state: Int[Tensor, "... 2"], task: Int[Tensor, ...]) -> Int[Tensor, ...]:
        return self.bandits.optimal_arm[task].expand(state.shape[:-1])


def bandit(
    *,
    tasks: int = 10_000,
    arms: int = 5,
    rewards: Rewards = "gaussian",
    noise: float = 0.3,
    horizon: int = 500,
    train_share: float = 0.8,
    task_seed: int = 0,
) -> BanditFamily:
    """Bandits whose arms have means that are uniform on [0, 1] (arXiv 2306.14892, appendix, with 100,000 tasks).

    rewards: with Gaussian noise of standard deviation ``noise``, or 0 and 1. task_seed: of the means.

    Raises:
        ValueError: an option is not valid.
    """
    if rewards not in get_args(Rewards):
        raise ValueError(f"rewards = {rewards!r}; valid: {', '.join(get_args(Rewards))}")
    generator = torch.Generator().manual_seed(task_seed)
    if rewards == "gaussian":
        bandits = gaussian_bandits(tasks, arms=arms, noise=noise, generator=generator)
    else:
        bandits = bernoulli_bandits(tasks, arms=arms, generator=generator)
    return BanditFamily(bandits=bandits, horizon=horizon, train_share=train_share)
