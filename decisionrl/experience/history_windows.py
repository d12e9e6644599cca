"""HistoryWindows: batches of what learners did over several episodes, for policies that learn in their context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from decisionrl.experience.histories import LearningHistories
from decisionrl.experience.store import DatasetError

Teacher = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``teacher(observation [..., n], collected [...], task [...])`` is the optimal action; collected is the reward of the
episode so far, before the step, and task the id."""


@dataclass(frozen=True, kw_only=True)
class InContextBatch:
    """Windows of learning histories.

    Attributes:
        observation: s_t, [batch, step, ...].
        action: a_t, [batch, step, ...].
        reward: r_t, of a_t, [batch, step].
        start: where an episode begins, [batch, step].
        next_observation: s_{t+1}, which at the end of an episode is not the next in the window, [batch, step, ...]; a
            model of the world is trained on it.
        label: the optimal action at s_t, [batch, step, ...].
        weight: of each window, [batch]; by default all are equal.
    """

    observation: Tensor
    action: Tensor
    reward: Float[Tensor, "batch step"]
    start: Bool[Tensor, "batch step"]
    next_observation: Tensor | None = None
    label: Tensor | None = None
    weight: Float[Tensor, " batch"] | None = None


@dataclass(frozen=True, kw_only=True)
class HistoryWindows:
    """``size`` windows of ``episodes`` whole episodes of a history each, chosen uniformly with replacement.

    An episode is followed by the ``every``-th after it, so that a window of few episodes shows much of the learning.

    Attributes:
        histories: of all tasks; which of them may be drawn, and how often, is for ``LearningHistories.select``.
        weight: of each history on the loss.
        teacher: labels every step with the optimal action, for decision-pretrained transformers.
        device: where batches are.

    Raises:
        DatasetError: a size that is not valid, or histories are shorter than a window.
    """

    histories: LearningHistories
    size: int
    episodes: int = 4
    every: int = 1
    weight: Float[Tensor, "task history"] | None = None
    teacher: Teacher | None = None
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        for name in ("size", "episodes", "every"):
            if getattr(self, name) < 1:
                raise DatasetError(f"{name} = {getattr(self, name)}; valid: a whole number >= 1")
        if self._beginnings < 1:
            raise DatasetError(
                f"episodes = {self.episodes}, every = {self.every}: a window spans {self._span} episodes; valid: at "
                f"most {self.histories.episodes}, those of a history"
            )
        shape = (self.histories.num_tasks, self.histories.num_histories)
        if self.weight is not None and self.weight.shape != shape:
            raise DatasetError(f"weight has shape {list(self.weight.shape)}; valid: {list(shape)}")

    @property
    def steps(self) -> int:
        """Of a window."""
        return self.episodes * self.histories.horizon

    def __call__(self, generator: torch.Generator) -> InContextBatch:
        histories = self.histories
        task, history, first = (
            torch.randint(count, (self.size,), generator=generator)
            for count in (histories.num_tasks, histories.num_histories, self._beginnings)
        )
        return self.batch(task, history, first)

    def batch(
        self, task: Int[Tensor, " batch"], history: Int[Tensor, " batch"], first: Int[Tensor, " batch"]
    ) -> InContextBatch:
        """The windows of these rows and places of the histories that begin with episode ``first``."""
        histories, count = self.histories, self.episodes
        episode = first[:, None] + self.every * torch.arange(count)
        by_episode = histories.windows(
            task.repeat_interleave(count),
            history.repeat_interleave(count),
            (histories.horizon * episode).flatten(),
            histories.horizon,
        )
        label = None
        if self.teacher is not None:
            collected = by_episode.reward.cumsum(1) - by_episode.reward
            ids = histories.task[task].repeat_interleave(count)[:, None]
            label = self._joined(self.teacher(by_episode.observation, collected, ids))
        start = torch.zeros_like(by_episode.reward, dtype=torch.bool)
        start[:, 0] = True
        return InContextBatch(
            observation=self._joined(by_episode.observation),
            action=self._joined(by_episode.action),
            reward=self._joined(by_episode.reward),
            start=self._joined(start),
            next_observation=self._joined(by_episode.next_observation),
            label=label,
            weight=None if self.weight is None else self.weight[task, history].to(self.device),
        )

    @property
    def _span(self) -> int:
        """Episodes from the first to the last of a window."""
        return (self.episodes - 1) * self.every + 1

    @property
    def _beginnings(self) -> int:
        """Episodes with which a window may begin."""
        return self.histories.episodes - self._span + 1

    def _joined(self, by_episode: Tensor) -> Tensor:
        """[batch * episodes, horizon, ...] to [batch, steps, ...], on the device."""
        return by_episode.reshape(-1, self.steps, *by_episode.shape[2:]).to(self.device)
