"""What families of tasks for in-context learning have in common: a source, an expert and a world all use this."""

from __future__ import annotations

import random
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import gymnasium
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Shuffle = Literal["python", "numpy"]
"""Whose generator shuffles the tasks before they are split: ``random.Random`` or ``numpy.random.RandomState``."""


@runtime_checkable
class TaskFamily(Protocol):
    """Tasks that look alike and differ in what is hidden, as pure functions of tensors on one device.

    A state [..., n] holds the hidden part of an episode, too. States and actions share their leading shape, for example
    [tasks, streams]; task ids [...] need only broadcast to it, as [tasks, 1] does. Every episode takes ``horizon``
    steps: nothing ends it earlier.

    Attributes:
        num_tasks: ids are 0, ..., num_tasks - 1.
        start_draws: how many random numbers ``start`` takes.
        max_return: the return of the optimal policy in each task, from the best start if starts are random.
    """

    @property
    def name(self) -> str: ...

    @property
    def num_tasks(self) -> int: ...

    @property
    def horizon(self) -> int: ...

    @property
    def start_draws(self) -> int: ...

    @property
    def max_return(self) -> Float[Tensor, " tasks"]: ...

    @property
    def observation_space(self) -> gymnasium.spaces.Box: ...

    @property
    def action_space(self) -> gymnasium.Space[Any]: ...

    @property
    def device(self) -> torch.device: ...

    def to(self, device: torch.device | str) -> TaskFamily: ...

    def split(self, seed: int | None = None) -> tuple[Int[Tensor, " train"], Int[Tensor, " test"]]:
        """Ids of the tasks to train on and of those to test on; without a seed the published split."""
        ...

    def start(self, uniform: Float[Tensor, "... start_draws"]) -> Tensor:
        """First states from numbers that are uniform on [0, 1]."""
        ...

    def step(self, state: Tensor, action: Tensor, task: Int[Tensor, ...]) -> tuple[Tensor, Float[Tensor, ...]]:
        """The next state and the reward, float32."""
        ...

    def observation(self, state: Tensor) -> Tensor:
        """What is seen of a state."""
        ...

    def state_of(self, observation: Tensor, collected: Float[Tensor, ...]) -> Tensor:
        """The state in which this is seen once an episode has given so much reward; ``observation`` undone, so that
        recorded steps can be judged."""
        ...

    def success(self, state: Tensor, task: Int[Tensor, ...]) -> Bool[Tensor, ...]:
        """Whether a state is one in which the task is done."""
        ...

    def optimal_action(self, state: Tensor, task: Int[Tensor, ...]) -> Tensor: ...


def split_ids(
    name: str, num_tasks: int, *, train_share: float, seed: int, shuffle: Shuffle, device: torch.device
) -> tuple[Int[Tensor, " train"], Int[Tensor, " test"]]:
    """Shuffle the ids 0, ..., num_tasks - 1; the first ``round(train_share * num_tasks)`` are for training.

    Raises:
        ValueError: one of the parts is empty.
    """
    ids = list(range(num_tasks))
    if shuffle == "python":
        random.Random(seed).shuffle(ids)
    else:
        np.random.RandomState(seed).shuffle(ids)
    train = round(train_share * num_tasks)
    if not 0 < train < num_tasks:
        problem = f"train_share = {train_share} leaves {train} of {num_tasks} tasks for training"
        raise ValueError(f"{name}: {problem}; valid: from 1 to {num_tasks - 1}")
    return torch.tensor(ids[:train], device=device), torch.tensor(ids[train:], device=device)


def check_split(train_share: float, shuffle: str) -> None:
    """Raise ValueError unless :func:`split_ids` can take them."""
    if not 0 < train_share < 1:
        raise ValueError(f"train_share = {train_share}; valid: in (0, 1)")
    if shuffle not in get_args(Shuffle):
        raise ValueError(f"shuffle = {shuffle!r}; valid: {', '.join(get_args(Shuffle))}")


def check_flag(field: str, value: object) -> None:
    """Raise ValueError unless the value is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{field} = {value!r}; valid: True, False")


def check_whole(field: str, value: int, least: int) -> None:
    """Raise ValueError unless the value is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{field} = {value}; valid: a whole number >= {least}")
