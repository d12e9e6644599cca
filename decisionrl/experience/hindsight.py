"""What policies conditioned on hindsight learn from: returns that follow each step, and windows that they label."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from decisionrl.experience.datasets import Draw, Windows
from decisionrl.experience.preferences import PreferenceBatch
from decisionrl.experience.store import DatasetError, EpisodeStore
from decisionrl.experience.trajectories import Trajectories


def with_returns_to_go(store: EpisodeStore, *, scale: float = 1.0, gamma: float = 1.0) -> EpisodeStore:
    """The store with ``extras["return_to_go"]`` [steps]: R_t = sum_{k >= 0} gamma^k r_{t+k} / scale, to the episode's
    end (decision transformer, arXiv 2106.01345)."""
    _check_scale(scale)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma = {gamma}; valid: 0 to 1")
    reward = store.reward.double()
    found = torch.empty_like(reward)
    following = reward.new_zeros(store.num_episodes)
    for t in reversed(range(int(store.length.max()))):
        running = (store.length > t).nonzero().squeeze(1)
        rows = store.first[running] + t
        following[running] = reward[rows] + gamma * following[running]
        found[rows] = following[running]
    return _with(store, "return_to_go", found / scale)


def with_future_returns(store: EpisodeStore, horizon: int = 200, *, scale: float = 1.0) -> EpisodeStore:
    """The store with ``extras["future_return"]`` [steps]: (r_t + ... + r_{t + horizon - 1}) / scale, or as much of it
    as the episode still has. By it OPPO's scripted teacher (arXiv 2305.16217) compares windows that begin at t."""
    _check_scale(scale)
    if horizon < 1:
        raise ValueError(f"horizon = {horizon}; valid: a whole number >= 1")
    total = torch.cat([store.reward.new_zeros(1, dtype=torch.float64), store.reward.double().cumsum(0)])
    begin = torch.arange(store.num_steps, device=store.length.device)
    end = torch.minimum(begin + horizon, (store.first + store.length)[store.episode])
    return _with(store, "future_return", (total[end] - total[begin]) / scale)


@dataclass(frozen=True, kw_only=True)
class FutureReturnPairs:
    """``size`` pairs of independent windows, labeled by what followed them, for a
    :class:`~decisionrl.experience.datasets.DatasetSource`.

    A window begins at a step chosen uniformly, so that an episode is drawn in proportion to its length, and is padded
    beyond the end. The one with the larger ``extras["future_return"]`` at its first step is preferred; where they are
    equal the pair has weight 0.

    Raises:
        DatasetError: the episodes lack that extra; see :func:`with_future_returns`.
    """

    episodes: EpisodeStore
    size: int
    length: int

    def __post_init__(self) -> None:
        if "future_return" not in self.episodes.extras:
            raise DatasetError("extras has no 'future_return'; valid: episodes from with_future_returns")

    def __call__(self, generator: torch.Generator) -> PreferenceBatch:
        windows = Windows(episodes=self.episodes, size=2 * self.size, length=self.length)(generator)
        first, second = windows.extras["future_return"][:, 0].chunk(2)
        row = torch.arange(self.size, device=first.device)
        return PreferenceBatch(
            segments=windows,
            first=row,
            second=row + self.size,
            label=(second > first).to(windows.reward.dtype),
            weight=(second != first).to(windows.reward.dtype),
        )


@dataclass(frozen=True, kw_only=True)
class NoisyWindows:
    """Windows with ``extras["observation_noise"]``, N(0, std^2) [windows, steps, features], in units of standardized
    observations: what a policy is to see on top of them."""

    windows: Windows
    std: float = 0.1

    def __call__(self, generator: torch.Generator) -> Trajectories:
        batch = self.windows(generator)
        if not isinstance(batch.observation, Tensor):
            raise DatasetError(f"observation has the keys {sorted(batch.observation)}; valid: one tensor")
        seen = batch.observation.flatten(2)
        noise = self.std * torch.randn(seen.shape, generator=generator).to(seen)
        return batch.replace(extras={**batch.extras, "observation_noise": noise})


@dataclass(frozen=True, kw_only=True)
class LabeledBatch:
    """Pairs that somebody has labeled, and windows that nobody has.

    Attributes:
        pairs: for the preferences.
        windows: for learning to reconstruct.
    """

    pairs: PreferenceBatch
    windows: Trajectories


@dataclass(frozen=True, kw_only=True)
class LabeledAndUnlabeled:
    """Draws a :class:`LabeledBatch`.

    Attributes:
        pairs: draws the pairs, such as :class:`~decisionrl.experience.datasets.Pairs`.
        windows: draws the windows, such as :class:`NoisyWindows`.
    """

    pairs: Draw
    windows: Draw

    def __call__(self, generator: torch.Generator) -> LabeledBatch:
        return LabeledBatch(pairs=self.pairs(generator), windows=self.windows(generator))


def _with(store: EpisodeStore, name: str, values: Tensor) -> EpisodeStore:
    return dataclasses.replace(store, extras={**store.extras, name: values.to(store.reward.dtype)})


def _check_scale(scale: float) -> None:
    if not scale > 0:
        raise ValueError(f"scale = {scale}; valid: positive")
