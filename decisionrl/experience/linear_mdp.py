"""Episodes of linear MDPs for many runs at once: of the policy that is learned, or from a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.envs.linear_mdp.model import LinearMDP
from decisionrl.envs.linear_mdp.sampling import Episodes, draw_noise, rollout
from decisionrl.learner import Update
from decisionrl.seeding import generator

STREAM = "episodes"

BLOCK = 128
"""Episodes whose noise is drawn at once."""


class Tabulated(Protocol):
    """A policy that can be written as a table."""

    def probabilities(self) -> Float[Tensor, "*batch H S A"]: ...


class OnlineEpisodes:
    """One episode of every run under the current policy; a sample counts for one step.

    Every run has a random stream of its own, which only its seed decides: it does what it would do alone.

    Args:
        mdp: of batch () or [runs].
        policy: with a table [runs, H, S, A].
        seeds: one for each run. Runs of one seed see the same noise.
    """

    steps_per_sample = 1

    def __init__(self, mdp: LinearMDP, policy: Tabulated, *, seeds: Sequence[int]) -> None:
        self._mdp, self._policy = mdp, policy
        self._generators = _generators(seeds, mdp)
        self._position = 0
        self._draw()

    def sample(self) -> Episodes:
        if self._position == BLOCK:
            self._draw()
            self._position = 0
        noise = self._noise[self._position]
        self._position += 1
        return rollout(self._mdp, self._policy.probabilities(), noise)

    def observe(self, update: Update, /) -> None:
        """The policy is the learner's own, which has changed already."""

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._position, "generators": self._states}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        for each, saved in zip(self._generators, state["generators"], strict=True):
            each.set_state(saved)
        self._draw()
        self._position = state["position"]

    def _draw(self) -> None:
        """The noise of the next block, [episodes, runs, draws]; the generators' states are those before it."""
        self._states = [each.get_state() for each in self._generators]
        self._noise = _noise(self._generators, BLOCK, self._mdp.horizon)


class OfflineEpisodes:
    """The episodes of a dataset, a part of it at a time; a sample counts for its episodes of each run.

    Args:
        dataset: states [runs, episodes, H + 1], actions and rewards [runs, episodes, H].
        part: how many episodes of each run are in a sample; all of them by default. The last part may be smaller.

    Raises:
        ValueError: part is not a whole number >= 1.
        IndexError: from ``sample``, when there is no further episode.
    """

    def __init__(self, dataset: Episodes, *, part: int | None = None) -> None:
        self._dataset = dataset
        self._episodes = dataset.states.shape[1]
        self._part = self._episodes if part is None else part
        if self._part < 1:
            raise ValueError(f"part = {part}; valid: a whole number >= 1, or none for the whole dataset")
        self._position = 0
        self.steps_per_sample = 0

    def sample(self) -> Episodes:
        begin, end = self._position, min(self._position + self._part, self._episodes)
        if begin == end:
            raise IndexError(f"the dataset holds {self._episodes} episodes, and all of them were taken")
        self._position, self.steps_per_sample = end, end - begin
        data = self._dataset
        return Episodes(
            states=data.states[:, begin:end], actions=data.actions[:, begin:end], rewards=data.rewards[:, begin:end]
        )

    def observe(self, update: Update, /) -> None:
        """The data do not depend on what is learned."""

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._position}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._position = state["position"]


def collect(mdp: LinearMDP, policy: Float[Tensor, "*batch H S A"], *, episodes: int, seeds: Sequence[int]) -> Episodes:
    """A dataset of a behavior policy, [runs, episodes, ...], each run with a random stream of its own.

    Args:
        mdp: of batch () or [runs].
        policy: [H, S, A] or [runs, H, S, A].
    """
    noise = _noise(_generators(seeds, mdp), episodes, mdp.horizon)
    played = [rollout(mdp, policy, each) for each in noise]
    return Episodes(
        states=torch.stack([each.states for each in played], 1),
        actions=torch.stack([each.actions for each in played], 1),
        rewards=torch.stack([each.rewards for each in played], 1),
    )


def _generators(seeds: Sequence[int], mdp: LinearMDP) -> list[torch.Generator]:
    if not seeds:
        raise ValueError("seeds = []; valid: one for each run, at least one")
    return [generator(seed, STREAM, mdp.device) for seed in seeds]


def _noise(generators: Sequence[torch.Generator], episodes: int, horizon: int) -> Float[Tensor, "episodes runs draws"]:
    return torch.stack([draw_noise(episodes, horizon, generator=each) for each in generators], 1)
