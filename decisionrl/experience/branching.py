"""Going back to states that episodes went through, to find out what they were worth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decisionrl.experience.episodes import EpisodeSource, Task
from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline.segments import cutpoints


@dataclass(frozen=True, kw_only=True)
class SegmentValues:
    """Monte-Carlo values of the states where segments begin (SPO-chain, arXiv 2505.23564, section 4).

    A segment begins at every ``interval``-th step whose action had a probability below ``threshold``. From the state
    before it ``rollouts`` fresh episodes are played to their end. Sets ``extras["cut"]`` [batch, step], where segments
    begin, and there ``extras["state_value"]``: the mean return of the whole episode, what was collected before
    the state included, so that values and outcomes differ by what the segment brought.
    """

    interval: int = 5
    rollouts: int = 9
    threshold: float = 0.9

    def __post_init__(self) -> None:
        if self.interval < 1 or self.rollouts < 1:
            raise ValueError(f"interval = {self.interval}, rollouts = {self.rollouts}; valid: whole numbers >= 1")

    def __call__(self, batch: Trajectories, source: EpisodeSource) -> Trajectories:
        if batch.state is not None:
            raise ValueError("segment values go back to a state of the world; a policy with memory has one of its own")
        cut = cutpoints(batch.log_prob, batch.mask, threshold=self.threshold, interval=self.interval)
        value = torch.zeros_like(batch.reward)
        row, column = cut.nonzero(as_tuple=True)
        if len(row):
            value[row, column] = self._values(batch, row, column, source)
        return batch.replace(extras={**batch.extras, "cut": cut, "state_value": value})

    def _values(self, batch: Trajectories, row: Tensor, column: Tensor, source: EpisodeSource) -> Tensor:
        assert batch.start_id is not None
        seeds = [source.seed_of(start) for start in batch.start_id.tolist()]
        states = [(b, t) for b, t in zip(row.tolist(), column.tolist(), strict=True) for _ in range(self.rollouts)]
        noise = source.fresh_seeds(len(states))
        tasks = [Task(seeds[b], prefix=batch.action[b, :t], noise=n) for (b, t), n in zip(states, noise, strict=True)]
        to_go = source.play(tasks).outcome.view(-1, self.rollouts).mean(1)
        before = torch.where(batch.mask, batch.reward, 0.0).cumsum(1) - batch.reward
        return before[row, column] + to_go
