"""Trajectories for the tests of advantage estimators."""

from typing import Any

import torch
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories

GARBAGE = {"log_prob": float("nan"), "reward": float("nan"), "value": float("inf"), "next_value": float("nan")}


def answers(outcome: list[float] | Tensor, group: list[int] | Tensor | None = None, **fields: Any) -> Trajectories:
    """Rows of one step each (or as wide as ``mask``), rewarded at the last one of the mask."""
    outcome = torch.as_tensor(outcome, dtype=torch.float64)
    mask = fields.pop("mask", torch.ones(len(outcome), 1, dtype=torch.bool))
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    reward = torch.where(last, outcome.unsqueeze(1), 0.0)
    group = torch.zeros(len(outcome), dtype=torch.int64) if group is None else torch.as_tensor(group)
    return steps(reward, mask=mask, terminated=last, group=group, **fields)


def steps(reward: list[list[float]] | Tensor, **fields: Any) -> Trajectories:
    """Rows with these rewards [batch, step]; fields as lists are made tensors."""
    reward = torch.as_tensor(reward, dtype=torch.float64)
    flags = {name: torch.zeros(reward.shape, dtype=torch.bool) for name in ("terminated", "truncated")}
    defaults: dict[str, Any] = {
        "mask": torch.ones(reward.shape, dtype=torch.bool),
        "log_prob": torch.zeros_like(reward),
        **flags,
    }
    given = {name: torch.tensor(each) if isinstance(each, list) else each for name, each in fields.items()}
    given = {
        name: each.double() if isinstance(each, Tensor) and each.is_floating_point() else each
        for name, each in given.items()
    }
    shape = reward.shape
    return Trajectories(
        observation=torch.zeros(*shape, 1), action=torch.zeros(shape), reward=reward, **defaults | given
    )


def rich(
    seed: int = 0, rows: int = 12, columns: int = 7, groups: int = 4, dtype: torch.dtype = torch.float64
) -> Trajectories:
    """Everything any estimator reads, random, with holes in the mask and garbage there."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    def flags(share: float) -> Tensor:
        return torch.rand(rows, columns, generator=generator) < share

    mask = flags(0.8)
    mask[:, 0] = True
    group = torch.arange(rows) % groups
    batch = Trajectories(
        observation=normal(rows, columns, 2),
        action=normal(rows, columns),
        reward=normal(rows, columns),
        mask=mask,
        log_prob=-normal(rows, columns).abs(),
        terminated=flags(0.2),
        truncated=flags(0.2),
        entropy=normal(rows, columns).abs() / 2,
        value=normal(rows, columns),
        next_value=normal(rows, columns),
        group=group,
        start_id=group * 3,
        advantage=normal(rows, columns),
        extras={
            "greedy_return": normal(rows),
            "step_end": flags(0.5),
            "cut": flags(0.3),
            "state_value": normal(rows, columns),
            "node": torch.arange(rows),
            "parent": torch.full((rows,), -1),
            "leaf_reward": normal(rows),
        },
    )
    return spoiled(batch)


def spoiled(batch: Trajectories) -> Trajectories:
    """With garbage wherever the mask is False."""
    names = ("reward", "log_prob", "value", "next_value", "entropy", "advantage")
    changes = {name: torch.where(batch.mask, getattr(batch, name), torch.nan) for name in names}
    changes["truncated"] = batch.truncated | ~batch.mask
    extras = dict(batch.extras)
    extras["state_value"] = torch.where(batch.mask, extras["state_value"], torch.inf)
    extras["cut"], extras["step_end"] = extras["cut"] | ~batch.mask, extras["step_end"] | ~batch.mask
    return batch.replace(**changes, extras=extras)


def padded(batch: Trajectories, columns: int) -> Trajectories:
    """With more columns, full of garbage, on the right."""
    width = batch.num_columns

    def pad(tensor: Tensor) -> Tensor:
        if tensor.shape[1:2] != (width,):
            return tensor
        tail = tensor[:, :1].expand(-1, columns, *tensor.shape[2:])
        return torch.cat([tensor, tail], 1)

    wide = batch.map(pad)
    mask = wide.mask.clone()
    mask[:, width:] = False
    return spoiled(wide.replace(mask=mask))
