"""Small batches of trajectories for the tests of the pipeline."""

from typing import Any

import torch
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories


def rollout(mask: Tensor, **fields: Any) -> Trajectories:
    """Trajectories with this mask; what is not given is zero, and rows end at their last own step."""
    mask = mask.bool()
    zeros = torch.zeros(mask.shape, dtype=torch.float64)
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    defaults: dict[str, Any] = {
        "observation": zeros[..., None],
        "action": torch.zeros(mask.shape, dtype=torch.int64),
        "reward": zeros,
        "log_prob": zeros,
        "terminated": last,
        "truncated": torch.zeros_like(mask),
    }
    return Trajectories(mask=mask, **{**defaults, **fields})


def of_lengths(*lengths: int) -> Tensor:
    """A mask with so many own steps at the left of each row."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def random_rollout(seed: int, rows: int = 8, columns: int = 6, groups: int = 3, **fields: Any) -> Trajectories:
    """Random numbers everywhere, holes in the mask with garbage behind them, every row with an own step."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=generator) < 0.7
    mask[torch.arange(rows), torch.randint(columns, (rows,), generator=generator)] = True

    def normal() -> Tensor:
        return torch.randn(rows, columns, dtype=torch.float64, generator=generator)

    numbers = {
        "reward": normal(),
        "log_prob": normal(),
        "entropy": normal().abs(),
        "advantage": normal(),
        "group": torch.randint(groups, (rows,), generator=generator) * 7 - 3,
        "action": torch.randint(2, (rows, columns), generator=generator),
        "extras": {"reference_log_prob": normal()},
        **fields,
    }
    return with_garbage(rollout(mask, **numbers))


def with_garbage(batch: Trajectories) -> Trajectories:
    """NaN, large numbers and True outside the mask, in the mask itself excepted."""
    return _per_step(batch, lambda tensor: torch.where(_wide(batch.mask, tensor), tensor, _garbage(tensor))).replace(
        mask=batch.mask
    )


def padded(batch: Trajectories, columns: int = 3) -> Trajectories:
    """More columns of garbage at the right."""

    def longer(tensor: Tensor) -> Tensor:
        more = tensor.new_zeros(tensor.shape[0], columns, *tensor.shape[2:])
        return torch.cat([tensor, _garbage(more)], 1)

    mask = torch.cat([batch.mask, batch.mask.new_zeros(len(batch.mask), columns)], 1)
    return _per_step(batch, longer).replace(mask=mask)


def _per_step(batch: Trajectories, function: Any) -> Trajectories:
    shape = batch.mask.shape
    return batch.map(lambda tensor: function(tensor) if tensor.shape[:2] == shape else tensor)


def _garbage(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        return torch.full_like(tensor, torch.nan)
    return torch.full_like(tensor, True if tensor.dtype == torch.bool else 99)


def _wide(mask: Tensor, tensor: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *(1 for _ in tensor.shape[2:]))
