"""What a text task is: a source, a verifier and a suite all rely on this, and users' own tasks fit in here."""

from __future__ import annotations

import operator
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from decisionrl.envs.gridworld.family import check_split, split_ids

Prompt = str | Sequence[Mapping[str, Any]]
"""A text, or the messages of a conversation, which whoever encodes it passes through the tokenizer's chat template."""


@runtime_checkable
class TextTask(Protocol):
    """Prompts, numbered by an index, and the rewards of whole responses.

    A prompt is determined by its index alone. A response is the text before the end symbol; what becomes of one that
    never ended is for the world to say.

    Attributes:
        alphabet: all characters that the prompts and their answers are made of, in a fixed order; None where that is
            any text, as with users' prompts.
        max_tokens: the longest response, in characters (tokens, where the alphabet is None); the end symbol, and what
            the environment says in between, are counted.
        num_prompts: indices are 0, ..., num_prompts - 1; None if any whole number >= 0 is one.
        best_reward: no response is worth more; None where that is unknown.
        triggers: after one of these characters, written by the policy, the environment appends ``reply`` to the
            response. Empty where it never speaks.

    A task may also have ``success``, the reward from which a response is right; see :func:`success_of`.
    """

    @property
    def name(self) -> str: ...

    @property
    def alphabet(self) -> str | None: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def num_prompts(self) -> int | None: ...

    @property
    def best_reward(self) -> float | None: ...

    @property
    def triggers(self) -> str: ...

    def prompt(self, index: int, /) -> Prompt: ...

    def reward(self, index: int, response: str, /) -> float: ...

    def rewards(
        self, indices: Sequence[int], responses: Sequence[str], /, *, tokens: Sequence[Sequence[int]] | None = None
    ) -> list[float]:
        """The rewards of a whole batch. tokens: the ids of each response, for verifiers that look at them."""
        ...

    def demonstration(self, index: int, generator: torch.Generator, /) -> str:
        """A response that is right, with what the environment says in it, to warm up a model by supervision."""
        ...

    def reply(self, index: int, response: str, noise: int, /) -> str:
        """What the environment appends to a response that ends with a trigger; may be nothing.

        noise: the seed of all that is random in this episode, a whole number >= 0. The length of a reply must not
        depend on it.
        """
        ...


class TextTaskDefaults(ABC):
    """The members of a :class:`TextTask` that most tasks share: the environment never speaks, each response is judged
    on its own, and the best reward is not known."""

    triggers = ""
    best_reward: float | None = None

    @abstractmethod
    def reward(self, index: int, response: str, /) -> float: ...

    def rewards(
        self, indices: Sequence[int], responses: Sequence[str], /, *, tokens: Sequence[Sequence[int]] | None = None
    ) -> list[float]:
        return [self.reward(index, response) for index, response in zip(indices, responses, strict=True)]

    def reply(self, index: int, response: str, noise: int, /) -> str:
        return ""


def success_of(task: TextTask) -> float | None:
    """The reward from which a response is right: ``task.success``, by default the best reward; None if unknown."""
    success: float | None = getattr(task, "success", task.best_reward)
    return success


def split(
    task: TextTask, *, train_share: float = 0.8, seed: int = 0
) -> tuple[Int[Tensor, " train"], Int[Tensor, " test"]]:
    """The indices of a finite task's prompts to train on, and those held out, shuffled.

    Raises:
        ValueError: the task is endless (hold out a range of its indices instead), or one of the parts is empty.
    """
    if task.num_prompts is None:
        raise ValueError(f"{task.name}: num_prompts = None; valid: a finite task, or ranges of indices")
    check_split(train_share, "python")
    device = torch.device("cpu")
    return split_ids(task.name, task.num_prompts, train_share=train_share, seed=seed, shuffle="python", device=device)


def own_characters(task: TextTask, index: int, response: str) -> list[bool]:
    """Which characters of a response are the policy's own; the others were said by the environment.

    Raises:
        ValueError: the response ends within a reply.
    """
    own: list[bool] = []
    while len(own) < len(response):
        own.append(True)
        if response[len(own) - 1] in task.triggers:
            own += [False] * len(task.reply(index, response[: len(own)], 0))
    if len(own) > len(response):
        raise ValueError(f"{task.name}: response {response!r} ends within a reply; valid: whole replies")
    return own


def checked_index(task: TextTask, index: int) -> int:
    """The index as an int; ValueError if the task has no such prompt."""
    number = operator.index(index)
    if number < 0 or (task.num_prompts is not None and number >= task.num_prompts):
        most = "" if task.num_prompts is None else f" to {task.num_prompts - 1}"
        raise ValueError(f"{task.name}: index = {index}; valid: whole numbers from 0{most}")
    return number


def random_numbers(stream: str, *numbers: int) -> random.Random:
    """A generator that is determined by its arguments, on every machine."""
    return random.Random(":".join([stream, *map(str, numbers)]))
