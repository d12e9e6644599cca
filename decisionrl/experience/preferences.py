"""Preferences over segments: index pairs into an episode store, one label convention, and the batch objectives see."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from decisionrl.experience.store import DatasetError, EpisodeStore
from decisionrl.experience.trajectories import Trajectories


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Segments of one length, by the episode and the step where they begin.

    Attributes:
        episodes: where they are from.
        episode, start: [segments].
        length: steps of each.
        score: what a teacher thinks of each, larger is better, [segments]; None if nobody said.

    Raises:
        DatasetError: a segment points outside its episode.
    """

    episodes: EpisodeStore
    episode: Int[Tensor, " segments"]
    start: Int[Tensor, " segments"]
    length: int
    score: Float[Tensor, " segments"] | None = None

    def __post_init__(self) -> None:
        if self.length < 1:
            raise DatasetError(f"length = {self.length}; valid: a whole number >= 1")
        if self.episode.shape != self.start.shape or self.episode.dim() != 1:
            raise DatasetError(f"episode {tuple(self.episode.shape)} and start {tuple(self.start.shape)} must be [n]")
        store = self.episodes
        known = (self.episode >= 0) & (self.episode < store.num_episodes)
        if not known.all():
            row = int((~known).nonzero()[0])
            raise DatasetError(
                f"segment {row}: episode = {int(self.episode[row])}; valid: 0 to {store.num_episodes - 1}"
            )
        inside = (self.start >= 0) & (self.start + self.length <= store.length[self.episode])
        if not inside.all():
            row = int((~inside).nonzero()[0])
            raise DatasetError(
                f"segment {row}: steps {int(self.start[row])} to {int(self.start[row]) + self.length - 1} of episode "
                f"{int(self.episode[row])}, which has {int(store.length[self.episode[row]])} steps"
            )
        if self.score is not None and (self.score.shape != self.start.shape or not self.score.isfinite().all()):
            raise DatasetError(f"score: valid are {len(self)} finite numbers, one for each segment")

    def __len__(self) -> int:
        return len(self.start)

    def rows(self, index: Tensor) -> Trajectories:
        """Some of the segments, [n, length]."""
        return self.episodes.windows(self.episode[index], self.start[index], self.length)

    def scored(self, score: Tensor) -> Segments:
        """The segments with these scores."""
        return dataclasses.replace(self, score=score)

    def take(self, index: Tensor) -> Segments:
        """Some of the segments."""
        score = None if self.score is None else self.score[index]
        return dataclasses.replace(self, episode=self.episode[index], start=self.start[index], score=score)


def sample_segments(
    episodes: EpisodeStore, count: int, length: int, *, generator: torch.Generator | None = None
) -> Segments:
    """``count`` segments, every place where one fits being equally likely.

    Raises:
        DatasetError: no episode has ``length`` steps.
    """
    places = (episodes.length - length + 1).clamp(min=0)
    ends = places.cumsum(0)
    if not int(ends[-1]):
        raise DatasetError(f"length = {length}; valid: at most {int(episodes.length.max())}, the longest episode")
    drawn = torch.randint(int(ends[-1]), (count,), generator=generator).to(ends.device)
    episode = torch.searchsorted(ends, drawn, right=True)
    return Segments(episodes=episodes, episode=episode, start=drawn - (ends - places)[episode], length=length)


@dataclass(frozen=True, kw_only=True)
class PreferencePairs:
    """Which of two segments somebody preferred.

    The one label convention of the library: ``label`` is the probability that the **second** is preferred, so 1 says
    second, 0 says first and 0.5 says neither. ``decisionrl.experience.preference_formats`` has the others'.

    Attributes:
        segments: what the pairs point into.
        first, second: rows of ``segments``, [pairs].
        label: in [0, 1], [pairs].

    Raises:
        DatasetError: rows or labels outside their range.
    """

    segments: Segments
    first: Int[Tensor, " pairs"]
    second: Int[Tensor, " pairs"]
    label: Float[Tensor, " pairs"]

    def __post_init__(self) -> None:
        if not self.first.shape == self.second.shape == self.label.shape or self.label.dim() != 1:
            raise DatasetError("first, second and label must be [pairs]")
        for name in ("first", "second"):
            rows = getattr(self, name)
            if len(rows) and (rows.min() < 0 or rows.max() >= len(self.segments)):
                raise DatasetError(f"{name} has rows outside 0 to {len(self.segments) - 1}, the segments there are")
        valid = (self.label >= 0) & (self.label <= 1)
        if not valid.all():
            row = int((~valid).nonzero()[0])
            raise DatasetError(f"pair {row}: label = {float(self.label[row])}; valid: 0 to 1, or 0.5 for a tie")

    def __len__(self) -> int:
        return len(self.label)

    def take(self, index: Tensor) -> PreferencePairs:
        """Some of the pairs."""
        return dataclasses.replace(self, first=self.first[index], second=self.second[index], label=self.label[index])

    def batch(self, index: Tensor) -> PreferenceBatch:
        """Some of the pairs, with their segments: rows 0 to n - 1 are the first ones, n to 2n - 1 the second."""
        rows = torch.cat([self.first[index], self.second[index]])
        first = torch.arange(len(index), device=rows.device)
        return PreferenceBatch(
            segments=self.segments.rows(rows), first=first, second=first + len(index), label=self.label[index]
        )


@dataclass(frozen=True, kw_only=True)
class PreferenceBatch:
    """Pairs of sequences, which may share them; for language models a sequence is a completion.

    Attributes:
        segments: [sequences, steps].
        first, second: rows of ``segments``, [pairs].
        label: the probability that the second is preferred, [pairs].
        weight: of every pair in the mean, [pairs]; 0 for one that does not count. None: 1.
        score: a teacher's, [sequences]; for ranked lists.
    """

    segments: Trajectories
    first: Int[Tensor, " pairs"]
    second: Int[Tensor, " pairs"]
    label: Float[Tensor, " pairs"]
    weight: Float[Tensor, " pairs"] | None = None
    score: Float[Tensor, " sequences"] | None = None


def all_pairs(segments: Trajectories, score: Float[Tensor, " n"]) -> PreferenceBatch:
    """Every pair of n scored sequences once, n (n - 1) / 2, the better one preferred; a tie has weight 0."""
    first, second = torch.triu_indices(len(score), len(score), 1, device=score.device)
    label = (score[second] > score[first]).to(score.dtype)
    weight = (score[second] != score[first]).to(score.dtype)
    return PreferenceBatch(segments=segments, first=first, second=second, label=label, weight=weight, score=score)
