"""Factors on the loss of single steps that depend on the rollout alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories


@dataclass(frozen=True, kw_only=True)
class ConflictWeights:
    """GTPO's lambda: no negative gradient on what good and bad rows of a group share (arXiv 2508.03772).

    A step is in conflict if some row of its group with A > 0 and some row with A < 0 have the same key at the same
    position. A is ``extras["group_advantage"]`` [batch] where it is there (the return relative to the group, before it
    was shaped), else the row's mean advantage. Only unbroken runs of conflicts count: from the first step
    on (positions counted from the left) and back from the last (positions counted from the right). In each of the two
    runs a conflict weighs 2 where A > 0 and 0 where A < 0; the product of both, in {0, 1, 2, 4}, becomes
    ``extras["weight"]`` [batch, step], times the weights that are there already. Rows of A = 0 neither
    count nor change. Positions are those among a row's own steps.

    Attributes:
        key: what makes two steps the same, batch -> whole numbers [batch, step]; by default the action, which for a
            language model is the token. For control give a number for the pair of observation and action.
        divide_by_conflicts: divide a row's weights by its number of steps in either run (at least 1), as the release
            means to do; its own count mixes up positions from the left and from the right.

    Raises:
        ValueError: the batch has no groups or no advantage, or the keys are not whole numbers [batch, step].
    """

    key: Callable[[Trajectories], Int[Tensor, "batch step"]] | None = None
    divide_by_conflicts: bool = False

    def __call__(self, batch: Trajectories) -> Trajectories:
        if batch.group is None:
            raise ValueError("group is None; valid: the number of each row's group, [batch]")
        if batch.advantage is None:
            raise ValueError("advantage is None; put an advantage estimator before ConflictWeights")
        mask, key = batch.mask, batch.action if self.key is None else self.key(batch)
        if key.is_floating_point() or key.shape != mask.shape:
            raise ValueError(
                f"the {'actions' if self.key is None else 'keys'} are {key.dtype} of shape {tuple(key.shape)}; "
                f"valid: whole numbers of shape {tuple(mask.shape)}, such as a key makes of the batch"
            )
        relative = batch.extras.get("group_advantage")
        if relative is None:
            relative = torch.where(mask, batch.advantage, 0.0).sum(1)
        sign = relative.sign()[:, None].expand(mask.shape)
        from_left = mask.cumsum(1) - 1
        from_right = mask.sum(1, keepdim=True) - 1 - from_left
        forward = _run(_conflicts(batch.group, from_left, key, sign, mask), mask)
        backward = _run(_conflicts(batch.group, from_right, key, sign, mask).flip(1), mask.flip(1)).flip(1)

        in_conflict = torch.where(sign > 0, 2.0, torch.where(sign < 0, 0.0, 1.0)).to(batch.advantage.dtype)
        weight = torch.where(forward, in_conflict, 1.0) * torch.where(backward, in_conflict, 1.0)
        if self.divide_by_conflicts:
            weight = weight / (forward | backward).sum(1, keepdim=True).clamp(min=1)
        if "weight" in batch.extras:
            weight = weight * batch.extras["weight"]
        return batch.replace(extras={**batch.extras, "weight": weight})


def _conflicts(group: Tensor, position: Tensor, key: Tensor, sign: Tensor, mask: Tensor) -> Bool[Tensor, "batch step"]:
    """Whether rows of both signs have the step's (group, position, key); False for rows of sign 0."""
    voters = mask & (sign != 0)
    keys = torch.unique(key[voters], return_inverse=True)[1]
    groups = torch.unique(group, return_inverse=True)[1][:, None].expand(mask.shape)[voters]
    place = groups * mask.shape[1] + position[voters]
    triple = torch.unique(place * (len(keys) + 1) + keys, return_inverse=True)[1]
    positive = sign[voters] > 0
    in_good, in_bad = mask.new_zeros(2, len(triple)).unbind()
    in_good[triple[positive]] = True
    in_bad[triple[~positive]] = True
    conflict = torch.zeros_like(mask)
    conflict[voters] = (in_good & in_bad)[triple]
    return conflict


def _run(conflict: Tensor, mask: Tensor) -> Bool[Tensor, "batch step"]:
    """The conflicts that no own step without one precedes."""
    return conflict & ((mask & ~conflict).cumsum(1) == 0)
