"""Statistics over groups of any size: rows of one prompt, tokens of one prompt, children of one node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.pipeline.requirements import required


@dataclass(frozen=True)
class Groups:
    """Items in groups, each with a weight; what stands at items of weight 0 does not matter.

    Every statistic is returned for the items: each sees that of its own group. Where all values of a group are equal
    their mean is exactly that value and their deviations are exactly 0, so that rounding errors are never scaled up.

    Attributes:
        index: the group of every item, 0 .. count - 1.
        weight: how much an item counts: 1 or 0, or its number of tokens.
        count: the number of groups.
    """

    index: Int[Tensor, " items"]
    weight: Float[Tensor, " items"]
    count: int

    @property
    def size(self) -> Float[Tensor, " items"]:
        """The sum of the weights in the item's group."""
        return self._sums(self.weight)[self.index]

    def sum(self, values: Float[Tensor, " items"]) -> Float[Tensor, " items"]:
        """sum w x."""
        return self._sums(self.weight * self._counted(values, 0.0))[self.index]

    def mean(self, values: Float[Tensor, " items"]) -> Float[Tensor, " items"]:
        """sum w x / sum w; 0 in a group without weight."""
        low, high = self._extreme(values, "amin"), self._extreme(values, "amax")
        mean = self._sums(self.weight * self._counted(values, 0.0)) / self._sums(self.weight).clamp(min=1)
        return torch.where(low == high, low, mean)[self.index]

    def centered(self, values: Float[Tensor, " items"]) -> Float[Tensor, " items"]:
        """x minus the group's mean; 0 at items of weight 0."""
        return self._counted(values - self.mean(values), 0.0)

    def std(self, values: Float[Tensor, " items"], *, population: bool = False) -> Float[Tensor, " items"]:
        """Standard deviation in the group: unbiased (sum w - 1), or of the population (sum w); 0 for a lone item."""
        squares = self._sums(self.weight * self.centered(values).square())
        freedom = self._sums(self.weight) - (0 if population else 1)
        return (squares / freedom.clamp(min=1)).sqrt()[self.index]

    def max(self, values: Float[Tensor, " items"]) -> Float[Tensor, " items"]:
        """The largest value of the group; -inf in one without weight."""
        return self._extreme(values, "amax")[self.index]

    def _counted(self, values: Tensor, otherwise: float) -> Tensor:
        return torch.where(self.weight > 0, values, otherwise)

    def _sums(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.count).index_add(0, self.index, values)

    def _extreme(self, values: Tensor, which: Literal["amin", "amax"]) -> Tensor:
        start = float("inf") if which == "amin" else -float("inf")
        empty = values.new_full((self.count,), start)
        return empty.scatter_reduce(0, self.index, self._counted(values, start), which)


def numbered(ids: Int[Tensor, " items"]) -> tuple[Int[Tensor, " items"], int]:
    """Any integers as 0 .. n - 1 in ascending order, and n."""
    distinct, index = torch.unique(ids, return_inverse=True)
    return index, distinct.shape[0]


def rows(batch: Trajectories, user: object) -> Groups:
    """The rows by ``batch.group``; a row without a step of the policy's own does not count."""
    index, count = numbered(required(batch, "group", user))
    return Groups(index, batch.mask.any(1).to(batch.reward.dtype), count)


def occurrence(index: Int[Tensor, " items"]) -> Int[Tensor, " items"]:
    """How many earlier items have the same number."""
    index, count = numbered(index)
    size = torch.bincount(index, minlength=count)
    order = index.argsort(stable=True)
    place = torch.arange(len(index), device=index.device) - (size.cumsum(0) - size)[index[order]]
    return torch.empty_like(index).scatter(0, order, place)
