"""DatasetSource: batches drawn from recorded data, for learning without an environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from decisionrl.experience.preferences import PreferenceBatch, PreferencePairs, Segments, all_pairs
from decisionrl.experience.store import DatasetError, EpisodeStore
from decisionrl.experience.trajectories import Trajectories
from decisionrl.seeding import generator

if TYPE_CHECKING:
    from decisionrl.learner import Update

Draw = Callable[[torch.Generator], Any]
"""``draw(generator) -> batch``: everything random comes from the generator, which lives on the CPU."""


class DatasetSource:
    """A batch is whatever ``draw`` makes; one update is one of the Trainer's steps.

    Args:
        draw: such as :class:`Windows`, :class:`Pairs` or :class:`DensePairs`.
        seed: of the drawing.
    """

    steps_per_sample = 1

    def __init__(self, draw: Draw, *, seed: int = 0) -> None:
        self.draw = draw
        self._generator = generator(seed, "dataset")

    def sample(self) -> Any:
        return self.draw(self._generator)

    def observe(self, update: Update, /) -> None:
        """Nothing depends on it."""

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._generator.set_state(state["generator"])


@dataclass(frozen=True, kw_only=True)
class Windows:
    """``size`` windows of ``length`` steps that begin at a step chosen uniformly, so that an episode is drawn in
    proportion to its length; those that reach beyond the end are padded. ``length = 1`` draws single steps.
    ``following``: with ``extras["next_observation"]``."""

    episodes: EpisodeStore
    size: int
    length: int = 1
    following: bool = False

    def __call__(self, generator: torch.Generator) -> Trajectories:
        step = _drawn(self.episodes.num_steps, self.size, generator, self.episodes.length.device)
        episode = self.episodes.episode[step]
        first = self.episodes.first[episode]
        return self.episodes.windows(episode, step - first, self.length, following=self.following)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """``size`` of the pairs, with replacement."""

    pairs: PreferencePairs
    size: int

    def __post_init__(self) -> None:
        if not len(self.pairs):
            raise DatasetError("pairs is empty; valid: at least one pair")

    def __call__(self, generator: torch.Generator) -> PreferenceBatch:
        return self.pairs.batch(_drawn(len(self.pairs), self.size, generator, self.pairs.first.device))


@dataclass(frozen=True, kw_only=True)
class DensePairs:
    """``size`` different scored segments and all pairs of them."""

    segments: Segments
    size: int

    def __post_init__(self) -> None:
        if self.segments.score is None:
            raise DatasetError("segments have no score; valid: segments.scored(...)")
        if not 2 <= self.size <= len(self.segments):
            raise DatasetError(f"size = {self.size}; valid: 2 to {len(self.segments)}, the segments there are")

    def __call__(self, generator: torch.Generator) -> PreferenceBatch:
        score = self.segments.score
        assert score is not None
        index = torch.randperm(len(self.segments), generator=generator)[: self.size].to(score.device)
        return all_pairs(self.segments.rows(index), score[index])


@dataclass(frozen=True, kw_only=True)
class Shortened:
    """The comparisons of ``draw``, each sequence cut down to ``length`` steps from a random one on; the label stays.

    So a policy with a short memory learns from preferences over longer segments, whose steps must all count.
    """

    draw: Callable[[torch.Generator], PreferenceBatch]
    length: int

    def __call__(self, generator: torch.Generator) -> PreferenceBatch:
        batch = self.draw(generator)
        rows, columns = batch.segments.mask.shape
        if not 1 <= self.length <= columns:
            raise DatasetError(f"length = {self.length}; valid: 1 to {columns}, the steps of a segment")
        start = _drawn(columns - self.length + 1, rows, generator, batch.segments.mask.device)
        row = torch.arange(rows, device=start.device)[:, None]
        column = start[:, None] + torch.arange(self.length, device=start.device)
        short = batch.segments.map(lambda each: each[row, column] if each.shape[:2] == (rows, columns) else each)
        return replace(batch, segments=short)


def _drawn(count: int, size: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(count, (size,), generator=generator).to(device)
