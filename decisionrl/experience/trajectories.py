"""Trajectories: sequences of steps, padded on the right, as a plain dataclass of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from decisionrl.policies.evaluation import Observation

NO_TOKEN = -1
"""Stands in rows of tokens where there is none."""


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """Steps of a policy in some world, [batch, step]; for a language model a step is a token.

    A row is one sequence in time: a whole episode, padded on the right, or a window of a stream in which episodes
    may end. Only steps with ``mask`` are the policy's own and count; the others (padding, tokens of a tool, a step
    that did nothing but reset a copy) may lie anywhere.

    A plain dataclass rather than a tensordict: small control problems index a batch often, and indexing this costs no
    more than indexing its tensors.

    Attributes:
        observation: what the policy saw before it acted, [batch, step, ...], or a dict of such tensors. For a language
            model, the token before; -1 where the row has ended.
        action: [batch, step] or [batch, step, ...].
        reward: the reward of the step.
        mask: True at the policy's own steps.
        log_prob: log-probability of the action at collection.
        terminated: the episode ended in this step, in a state that has no future.
        truncated: the episode ended in this step, in a state that has one.
        entropy: of the policy at collection, in nats; None where unknown.
        value: V of the observation at collection; None without a critic.
        next_value: V of the state that the step led to, before any reset; nothing is read of it where ``terminated``.
        start: True at the first step of an episode; None if only the first of every row is.
        state: the policy's recurrent state before the first step of the row, [batch, ...]. For a language model, the
            tokens before it, [batch, prompt] of integers, with -1 where there is none.
        sampling_state: what the row was sampled after, where that is not ``state``, such as a prompt with a hint; None
            if it is. Whatever is trained reads ``state``.
        group: rows with equal numbers share a start: the same prompt, or the same reset seed.
        start_id: which prompt or start it was, a name that stays the same over the whole run; -1 for a fresh one.
        advantage: set by an advantage estimator.
        returns: the targets of the value function, set by an advantage estimator that has any.
        complete: it is known that every step is the policy's own and that there are some, so that objectives need not
            look at ``mask``; set by ``flat``, and given up by ``replace`` when it changes the mask.
        extras: more tensors, all of which begin with [batch] or [batch, step].
        metrics: scalars to report with the update, such as the return of the episodes that ended.
    """

    observation: Observation
    action: Tensor
    reward: Float[Tensor, "batch step"]
    mask: Bool[Tensor, "batch step"]
    log_prob: Float[Tensor, "batch step"]
    terminated: Bool[Tensor, "batch step"]
    truncated: Bool[Tensor, "batch step"]
    entropy: Float[Tensor, "batch step"] | None = None
    value: Float[Tensor, "batch step"] | None = None
    next_value: Float[Tensor, "batch step"] | None = None
    start: Bool[Tensor, "batch step"] | None = None
    state: Tensor | None = None
    sampling_state: Tensor | None = None
    group: Int[Tensor, " batch"] | None = None
    start_id: Int[Tensor, " batch"] | None = None
    advantage: Float[Tensor, "batch step"] | None = None
    returns: Float[Tensor, "batch step"] | None = None
    complete: bool = False
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_sequences(self) -> int:
        """The number of rows."""
        return self.mask.shape[0]

    @property
    def num_columns(self) -> int:
        """The padded length."""
        return self.mask.shape[1]

    @property
    def of_tokens(self) -> bool:
        """The policy is a language model."""
        return self.state is not None and not self.state.is_floating_point()

    def replace(self, **changes: Any) -> Trajectories:
        """A copy with other fields."""
        if "mask" in changes:
            changes.setdefault("complete", False)
        return dataclasses.replace(self, **changes)

    def map(self, function: Callable[[Tensor], Tensor]) -> Trajectories:
        """Apply a function of the leading dimension, such as indexing rows, to every tensor but the metrics."""
        changes: dict[str, Any] = {}
        for name in _FIELDS:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                changes[name] = function(value)
            elif isinstance(value, Mapping):
                changes[name] = {key: function(tensor) for key, tensor in value.items()}
        return dataclasses.replace(self, **changes)

    def rows(self, index: Tensor | slice) -> Trajectories:
        """Some of the sequences; their metrics stay behind."""
        return self.map(lambda tensor: tensor[index]).replace(metrics={})

    def flat(self) -> Trajectories:
        """The policy's own steps one by one, [steps, 1], in row order, for policies without memory.

        What belongs to a row (group, extras of shape [batch]) is repeated for each of its steps.
        """
        rows, columns = self.mask.shape
        bare = self.replace(state=None, sampling_state=None, start=None)
        if self.complete or self.mask.all():

            def pick(tensor: Tensor) -> Tensor:
                if tensor.shape[:2] == (rows, columns):
                    return tensor.reshape(rows * columns, 1, *tensor.shape[2:])
                return tensor.repeat_interleave(columns, 0)

            return bare.map(pick).replace(complete=rows * columns > 0)
        row, column = self.mask.nonzero(as_tuple=True)
        return bare.map(
            lambda tensor: tensor[row, column].unsqueeze(1) if tensor.shape[:2] == (rows, columns) else tensor[row]
        ).replace(complete=len(row) > 0)

    def to(self, device: torch.device | str) -> Trajectories:
        """On another device."""
        return self.map(lambda tensor: tensor.to(device))


def joined(batches: Sequence[Trajectories]) -> Trajectories:
    """The sequences of several batches under each other, padded on the right to one length; metrics stay behind."""
    columns = max(batch.num_columns for batch in batches)
    first = batches[0]

    def stacked(tensors: Sequence[Tensor], filler: int = 0) -> Tensor:
        shapes = zip(tensors, batches, strict=True)
        return torch.cat(
            [_widened(t, columns, filler) if t.shape[:2] == batch.mask.shape else t for t, batch in shapes]
        )

    changes: dict[str, Any] = {}
    for name in _FIELDS:
        values = [getattr(batch, name) for batch in batches]
        if name in ("state", "sampling_state"):  # [batch, ...]: its second dimension is no step, however long it is
            changes[name] = None if values[0] is None else _states(values, first.of_tokens)
        elif name == "observation" and first.of_tokens:
            changes[name] = stacked(values, NO_TOKEN)
        elif isinstance(values[0], Tensor | Mapping):
            changes[name] = each_key(stacked, values)
    return first.replace(**changes, metrics={})


def each_key(function: Callable[[Sequence[Tensor]], Tensor], values: Sequence[Any]) -> Any:
    """Apply a function of several tensors to them, or to those of each key if they are dicts."""
    if isinstance(values[0], Tensor):
        return function(values)
    return {key: function([value[key] for value in values]) for key in values[0]}


def _states(states: Sequence[Tensor], of_tokens: bool) -> Tensor:
    if not of_tokens:
        return torch.cat(list(states))
    longest = max(state.shape[1] for state in states)
    return torch.cat([_widened(state, longest, NO_TOKEN) for state in states])


def _widened(tensor: Tensor, columns: int, filler: int) -> Tensor:
    missing = columns - tensor.shape[1]
    if not missing:
        return tensor
    return torch.cat([tensor, tensor.new_full((tensor.shape[0], missing, *tensor.shape[2:]), filler)], 1)


_FIELDS = tuple(each.name for each in dataclasses.fields(Trajectories) if each.name != "metrics")
