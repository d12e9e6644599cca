"""What a step of the pipeline needs of the trajectories, or an error that names it."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from decisionrl.experience.trajectories import Trajectories

Field = Literal["entropy", "value", "next_value", "group", "start_id", "advantage"]


def required(batch: Trajectories, name: Field, user: object) -> Tensor:
    """A field of the trajectories that may be None; ValueError if it is."""
    value: Tensor | None = getattr(batch, name)
    if value is None:
        raise ValueError(f"{type(user).__name__} needs trajectories with {name}; here it is None")
    return value


def required_extra(batch: Trajectories, key: str, user: object) -> Tensor:
    """``batch.extras[key]``; ValueError if there is none."""
    if key not in batch.extras:
        known = ", ".join(sorted(batch.extras)) or "none"
        raise ValueError(f"{type(user).__name__} needs extras[{key!r}]; there are: {known}")
    return batch.extras[key]
