"""Whole episodes beside the windows in which they ended: where T-PPO's value function learns (arXiv 2506.15050)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories, each_key, joined
from decisionrl.pipeline.advantages import MonteCarlo
from decisionrl.pipeline.requirements import required


class FinishedEpisodes:
    """Appends a row for every episode that ended in the batch, from its first step on; stands behind the estimator.

    For windows of a stream: row i of every batch goes on where row i of the last one ended. Steps of episodes that
    have not ended yet are remembered.

    - ``extras["kept"]`` [batch, step]: the windows' own steps, for the policy; each is in one batch only.
    - ``extras["valued"]`` [batch, step]: the steps of the appended rows, for the value function. Their ``returns``
      are the discounted returns to the episode's end, plus ``next_value`` there if it was truncated; their advantage
      is 0.

    Appended rows hold what was known at collection, in part under earlier policies.

    Args:
        gamma: the discount of the returns.

    Raises:
        ValueError: no ``advantage`` or ``next_value``, or another number of rows than in the batches before.
    """

    def __init__(self, *, gamma: float = 1.0) -> None:
        self._targets = MonteCarlo(gamma=gamma, bootstrap=True)
        self._unfinished: Trajectories | None = None

    def __call__(self, batch: Trajectories) -> Trajectories:
        required(batch, "advantage", self)
        steps = batch.replace(advantage=None, returns=None, state=None, metrics={}, complete=False)
        if self._unfinished is not None:
            if self._unfinished.num_sequences != batch.num_sequences:
                raise ValueError(
                    f"the batch has {batch.num_sequences} rows; valid: {self._unfinished.num_sequences} as before, the "
                    "same copies of the world"
                )
            steps = _beside(self._unfinished.to(batch.mask.device), steps)
        ended = (steps.terminated | steps.truncated) & steps.mask
        earlier = ended.cumsum(1) - ended.long()
        finished = steps.mask & (earlier < ended.sum(1, keepdim=True))
        copy = torch.arange(batch.num_sequences, device=ended.device).unsqueeze(1).expand_as(earlier)
        going_on = steps.mask & ~finished
        self._unfinished = _arranged(steps, going_on, copy, going_on.cumsum(1) - 1, batch.num_sequences)

        window = _marked(batch, kept=True)
        episodes = int(ended.sum())
        if not episodes:
            return window
        before = ended.sum(1).cumsum(0) - ended.sum(1)
        rows = _arranged(steps, finished, before.unsqueeze(1) + earlier, _place(steps.mask, ended), episodes)
        rows = self._targets(rows)
        state = None if batch.state is None else batch.state.new_zeros(episodes, *batch.state.shape[1:])
        rows = rows.replace(advantage=torch.zeros_like(rows.reward), state=state)
        if window.returns is None:
            window = window.replace(returns=torch.zeros_like(window.reward))
        return joined([window, _marked(rows, kept=False)]).replace(metrics=batch.metrics)

    def state_dict(self) -> dict[str, Any]:
        """The steps of the episodes that have not ended; None before the first batch."""
        return {"unfinished": None if self._unfinished is None else _tensors(self._unfinished)}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Take over a saved state."""
        self._unfinished = None if state["unfinished"] is None else Trajectories(**state["unfinished"])


def _tensors(batch: Trajectories) -> dict[str, Any]:
    """The fields that hold tensors, without the metrics."""
    values = {each.name: getattr(batch, each.name) for each in dataclasses.fields(batch) if each.name != "metrics"}
    return {name: value for name, value in values.items() if isinstance(value, Tensor | Mapping)}


def _beside(left: Trajectories, right: Trajectories) -> Trajectories:
    """The steps of the right behind those of the left, row by row."""
    first, second = _tensors(left), _tensors(right)
    return right.replace(
        **{name: each_key(lambda pair: torch.cat(list(pair), 1), [first[name], second[name]]) for name in second}
    )


def _place(mask: Bool[Tensor, "batch step"], ended: Bool[Tensor, "batch step"]) -> Int[Tensor, "batch step"]:
    """How many own steps of its episode come before a step."""
    position = mask.cumsum(1) - 1
    begin = torch.where(ended, position + 1, 0)
    begin = torch.cat([torch.zeros_like(begin[:, :1]), begin[:, :-1]], 1).cummax(1).values
    return position - begin


def _arranged(batch: Trajectories, which: Tensor, row: Tensor, column: Tensor, rows: int) -> Trajectories:
    """Some of the steps at other places [row, column] of new trajectories."""
    row, column = row[which], column[which]
    columns = int(column.max()) + 1 if len(column) else 0

    def moved(tensor: Tensor) -> Tensor:
        placed = tensor.new_zeros(rows, columns, *tensor.shape[2:])
        placed[row, column] = tensor[which]
        return placed

    return batch.map(moved)


def _marked(batch: Trajectories, *, kept: bool) -> Trajectories:
    """With the steps in "kept" or in "valued"."""
    none = torch.zeros_like(batch.mask)
    policy, value = (batch.mask, none) if kept else (none, batch.mask)
    return batch.replace(extras={**batch.extras, "kept": policy, "valued": value})
