"""Which rows of a rollout are worth learning from, and which of their steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline.returns import outcomes

Share = tuple[float, float]
"""A share in (0, 1] at the beginning and at the end of training, linear in between."""


@dataclass(frozen=True, kw_only=True)
class DynamicSampling:
    """Drops the groups that say nothing: those whose rows all have the same outcome (DAPO, arXiv 2503.14476, eq. 11).

    The outcome of a row is the sum of its rewards, so this belongs before any shaping of them. Rows without own steps
    have no say and go with their group. If no group is left, all rows stay with an empty mask: the loss is then zero
    with a graph. Reports ``useful_groups``, the share of groups that stayed.

    Attributes:
        low, high: where given, a group's mean outcome must also be strictly above ``low`` and below ``high``.

    Raises:
        ValueError: the batch has no groups.
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"low = {self.low}, high = {self.high}; valid: low < high")

    def __call__(self, batch: Trajectories) -> Trajectories:
        if batch.group is None:
            raise ValueError("group is None; valid: the number of each row's group, [batch]")
        names, group = torch.unique(batch.group, return_inverse=True)
        voters = batch.mask.any(1)
        voter_group, outcome = group[voters], outcomes(batch.reward, batch.mask)[voters]
        least = outcome.new_full((len(names),), torch.inf).scatter_reduce(0, voter_group, outcome, "amin")
        most = outcome.new_full((len(names),), -torch.inf).scatter_reduce(0, voter_group, outcome, "amax")
        useful = most > least
        number = torch.bincount(voter_group, minlength=len(names)).clamp(min=1)
        mean = outcome.new_zeros(len(names)).index_add(0, voter_group, outcome) / number
        if self.low is not None:
            useful &= mean > self.low
        if self.high is not None:
            useful &= mean < self.high
        metrics = {**batch.metrics, "useful_groups": useful.to(outcome.dtype).mean()}
        if not useful.any():
            return batch.replace(mask=torch.zeros_like(batch.mask), metrics=metrics)
        return batch.rows(useful[group]).replace(metrics=metrics)


class DownSample:
    """D^3S: the rows whose advantages vary most, then the steps with the largest |A| H (arXiv 2509.22115).

    1. Within every group the N_s rows whose advantages have the largest variance; skipped where there are no groups.
    2. Of what is left, the N rows of the batch for which the same holds. Rows of advantage 0 are left out first, as
       long as N others are there.
    3. Of their steps, the share K with the largest |A_t| H_t, ties kept: ``extras["kept"]`` [batch, step] for a filter
       of the objective. The mask stays as it is.

    The advantage of a row is the mean over its own steps, and nothing is normalized anew. N_s, N and K are shares of
    the group, of the whole batch and of the remaining steps; at least two rows are kept where there are two. Each is
    given at the beginning and at the end of training, and moves linearly with the progress p:
    ``(1 - p) first + p last``. Minibatch selection for PPO is the same on flat transitions ([n, 1], no groups).

    Reports ``useful_rows``, the share of rows with A != 0 before, ``kept_rows`` and ``kept_steps``, the shares kept.
    """

    def __init__(self, *, group_rows: Share = (0.5, 1.0), rows: Share = (0.25, 1.0), steps: Share = (0.2, 1.0)) -> None:
        """The paper states no numbers; these defaults end at the whole batch, and begin with few steps as it does.

        group_rows: N_s / group size; (1, 1) for the selection over the batch alone.
        rows: N / batch size; (1, 1) for the selection within groups alone (D^3S-I).
        steps: K; (1, 1) for the selection of rows alone (D^1S).
        """
        for name, share in (("group_rows", group_rows), ("rows", rows), ("steps", steps)):
            if not all(0 < each <= 1 for each in share):
                raise ValueError(f"{name} = {share}; valid: two shares in (0, 1]")
        self.group_rows, self.rows, self.steps = group_rows, rows, steps
        self._progress = 0.0

    def set_progress(self, p: float) -> None:
        """p: how much of the training is done, 0 to 1."""
        if not 0 <= p <= 1:
            raise ValueError(f"p = {p}; valid: 0 to 1")
        self._progress = float(p)

    def __call__(self, batch: Trajectories) -> Trajectories:
        """Select rows and steps.

        Raises:
            ValueError: there is no advantage, or no entropy while K < 1.
        """
        if batch.advantage is None:
            raise ValueError("advantage is None; put an advantage estimator before DownSample")
        if batch.entropy is None and self._share(self.steps) < 1:
            raise ValueError("entropy is None; the choice of steps needs the entropy at collection, or steps = (1, 1)")
        steps = batch.mask.sum(1)
        advantage = torch.where(batch.mask, batch.advantage, 0.0).sum(1) / steps.clamp(min=1)
        index = self._select_rows(advantage, batch.group)
        chosen = batch.rows(index)
        kept = self._select_steps(chosen)
        metrics = {
            "useful_rows": (advantage != 0).to(advantage.dtype).mean(),
            "kept_rows": advantage.new_tensor(len(index) / batch.num_sequences),
            "kept_steps": kept.sum() / chosen.mask.sum().clamp(min=1),
        }
        return chosen.replace(extras={**chosen.extras, "kept": kept}, metrics={**batch.metrics, **metrics})

    def state_dict(self) -> dict[str, Any]:
        return {"progress": self._progress}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._progress = state["progress"]

    def _share(self, share: Share) -> float:
        return (1 - self._progress) * share[0] + self._progress * share[1]

    def _select_rows(self, advantage: Tensor, group: Tensor | None) -> Int[Tensor, " kept"]:
        """The numbers of the rows that stay, ascending."""
        index = torch.arange(len(advantage), device=advantage.device)
        if group is not None:
            inverse = torch.unique(group, return_inverse=True)[1]
            size = torch.bincount(inverse)
            number = (self._share(self.group_rows) * size.double()).round().long().clamp(min=2).minimum(size)
            index = index[most_varied(advantage, inverse, number)]
        total = min(max(2, round(self._share(self.rows) * len(advantage))), len(index))
        useful = index[advantage[index] != 0]
        if len(useful) >= total:
            index = useful
        return index[most_varied(advantage[index], torch.zeros_like(index), index.new_tensor([total]))]

    def _select_steps(self, batch: Trajectories) -> Bool[Tensor, "batch step"]:
        share = self._share(self.steps)
        if share == 1:
            return batch.mask
        assert batch.advantage is not None
        assert batch.entropy is not None
        score = batch.advantage.abs() * batch.entropy
        valid = score[batch.mask]
        if len(valid) == 0:
            return batch.mask
        threshold = valid.topk(max(1, round(share * len(valid)))).values[-1]
        return batch.mask & (score >= threshold)


def most_varied(
    values: Float[Tensor, " rows"], group: Int[Tensor, " rows"], number: Int[Tensor, " groups"]
) -> Bool[Tensor, " rows"]:
    """Of every group g, the ``number[g]`` rows whose values have the largest variance.

    That subset always consists of the k smallest and the number[g] - k largest values for some k, so that all k are
    tried, for all groups at once, on cumulative sums.

    group: 0 to groups - 1. number: at most the size of the group.
    """
    size = torch.bincount(group, minlength=len(number))
    order = values.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - (size.cumsum(0) - size)[group[order]]

    # Centering keeps the differences of sums below exact where the values share a large offset.
    wide = values.double()
    mean = torch.zeros(len(size), dtype=wide.dtype, device=wide.device).index_add(0, group, wide) / size.clamp(min=1)
    longest = int(size.max())
    table = wide.new_zeros(len(size), longest + 1)
    table[group, rank + 1] = wide - mean[group]
    first, second = table.cumsum(1), table.square().cumsum(1)

    # Column k: the k smallest, and those from rank size - number + k on.
    k = torch.arange(longest + 1, device=order.device).expand_as(table)
    upper = (size - number)[:, None] + k
    allowed = k <= number[:, None]
    upper = torch.where(allowed, upper, 0)

    def chosen(sums: Tensor) -> Tensor:
        return sums + sums[:, -1:] - sums.gather(1, upper)

    spread = chosen(second) - chosen(first).square() / number[:, None].clamp(min=1)
    best = torch.where(allowed, spread, -torch.inf).argmax(1)
    return (rank < best[group]) | (rank >= (size - number + best)[group])
