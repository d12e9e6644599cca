"""Going back to states that episodes went through, to find out what they were worth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decisionrl.experience.episodes import EpisodeSource, Played, Task, evaluated
from decisionrl.experience.trajectories import Trajectories, joined
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
        if source.policy.initial_state(1) is not None:
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


@dataclass(frozen=True, kw_only=True)
class Tree:
    """Episodes that branch (SPO-tree, arXiv 2505.23564, section 5): every row of the batch is an edge.

    From a start, and from the state behind every edge whose episode has not ended, ``branching[d]`` edges of ``steps``
    steps grow; those of the last depth run to the end of the episode. Sets what
    :class:`decisionrl.pipeline.trees.TreeAdvantage` reads: ``extras["node"]`` and ``extras["parent"]`` [batch], -1 for
    the start, and ``extras["leaf_reward"]`` [batch], the return of the whole episode that ends with the edge, NaN where
    it goes on.
    """

    branching: tuple[int, ...] = (6, 6, 6)
    steps: int = 30

    def __post_init__(self) -> None:
        if not self.branching or min(self.branching) < 1 or self.steps < 1:
            raise ValueError(
                f"branching = {self.branching}, steps = {self.steps}; valid: at least one number, all whole and >= 1"
            )

    def __call__(self, start_ids: Tensor, source: EpisodeSource) -> Trajectories:
        if source.policy.initial_state(1) is not None:
            raise ValueError("a tree goes back to states of the world; a policy with memory has one of its own")
        trunk = [_Branch(start, torch.zeros(0), -1, 0.0) for start in start_ids.tolist()]
        levels: list[Trajectories] = []
        nodes = 0
        for depth, count in enumerate(self.branching):
            if not trunk:
                break
            parents = [branch for branch in trunk for _ in range(count)]
            noise = source.fresh_seeds(len(parents))
            tasks = [
                Task(source.seed_of(b.start), prefix=b.actions, noise=n) for b, n in zip(parents, noise, strict=True)
            ]
            last = depth + 1 == len(self.branching)
            played = source.play(tasks, max_steps=None if last else (depth + 1) * self.steps)
            total = torch.tensor([b.collected for b in parents], device=played.reward.device) + played.outcome
            goes_on = torch.zeros_like(played.cut) if last else played.cut
            length = torch.tensor([len(b.actions) for b in parents], device=total.device) + played.mask.sum(1)
            source.report(total[~goes_on], length[~goes_on])
            node = torch.arange(nodes, nodes + len(parents), device=total.device)
            nodes += len(parents)
            extras = {
                "node": node,
                "parent": torch.tensor([b.node for b in parents], device=total.device),
                "leaf_reward": torch.where(goes_on, torch.nan, total),
            }
            ids = torch.tensor([b.start for b in parents], device=total.device)
            level = evaluated(source.policy, played)
            levels.append(level.replace(start_id=ids, extras={**level.extras, **extras}))
            trunk = _grown(parents, played, goes_on, node, total)
        return joined(levels)


@dataclass(frozen=True)
class _Branch:
    """An edge that others may grow from: the actions that lead there, and the rewards on the way."""

    start: int
    actions: Tensor
    node: int
    collected: float


def _grown(parents: list[_Branch], played: Played, goes_on: Tensor, node: Tensor, total: Tensor) -> list[_Branch]:
    rows = goes_on.nonzero().flatten().tolist()
    names, returns = node.tolist(), total.tolist()
    grown = []
    for i in rows:
        own = played.action[i, played.steps[i]]
        actions = torch.cat([parents[i].actions, own]) if len(parents[i].actions) else own
        grown.append(_Branch(parents[i].start, actions, names[i], returns[i]))
    return grown
