"""The record of a response beyond what every method needs: where it comes from, of what it is a part, what it cost.

A row of ``Trajectories`` is one sequence to train on. What it is trained after is ``state``, what it was sampled after
``sampling_state`` where the two differ, and ``log_prob`` is of ``state``. The rest are ``extras`` [batch]:

    batch = recorded(batch, trajectory=ids, segment=place, provenance=torch.full_like(ids, Provenance.HINTED))
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

import torch
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories


class Provenance(IntEnum):
    """Who wrote a response."""

    ON_POLICY = 0
    REPLAY = 1
    """An earlier policy."""

    HINTED = 2
    """The policy, after a prompt with a hint that it is not trained on."""

    REWRITTEN = 3
    """Somebody who improved on the policy."""

    FORCED = 4
    """The policy, after a beginning that was given."""


FIELDS: Mapping[str, str] = {
    "problem": "which problem it answers, a number that stays the same over the whole run",
    "trajectory": "rows with equal numbers are segments of one trajectory",
    "segment": "the place of the segment in its trajectory, from 0 on",
    "segments": "how many segments the trajectory has",
    "mode": "the budget or way of thinking that it was asked for; rows of a group may differ in it",
    "parent": "the trajectory that it branched off; -1 for none",
    "branch": "how many own tokens it shares with that one",
    "provenance": "who wrote it, a Provenance",
    "tokens": "own tokens of the trajectory",
    "tool_calls": "calls of tools in the trajectory",
    "turns": "stretches of own tokens in the trajectory, between what the environment said",
    "violated": "1 if the trajectory broke a limit, else 0",
    "kl_scale": "a factor on its KL penalty",
}
"""Name of an extra [batch] -> what it says. All are integers but ``kl_scale``."""


def recorded(batch: Trajectories, **fields: Tensor) -> Trajectories:
    """The batch with these fields.

    Raises:
        ValueError: a field is not of ``FIELDS``, has not one entry a row, or is of another kind of number.
    """
    for name, value in fields.items():
        if name not in FIELDS:
            raise ValueError(f"field {name!r}; valid: {', '.join(FIELDS)}")
        if value.shape != (batch.num_sequences,):
            raise ValueError(f"{name} has the shape {tuple(value.shape)}; valid: ({batch.num_sequences},), one a row")
        if value.is_floating_point() != (name == "kl_scale"):
            valid = "a floating-point number" if name == "kl_scale" else "an integer"
            raise ValueError(f"{name} is {value.dtype}; valid: {valid}")
    return batch.replace(extras={**batch.extras, **fields})


def counted(batch: Trajectories) -> Trajectories:
    """With ``tokens`` and ``turns``, summed over the segments of a trajectory where the rows are such."""
    begins = batch.mask & ~torch.cat([torch.zeros_like(batch.mask[:, :1]), batch.mask[:, :-1]], 1)
    counts = {"tokens": batch.mask.sum(1), "turns": begins.sum(1)}
    if "trajectory" in batch.extras:
        _, row = torch.unique(batch.extras["trajectory"], return_inverse=True)
        counts = {name: torch.zeros_like(count).index_add(0, row, count)[row] for name, count in counts.items()}
    return recorded(batch, **counts)
