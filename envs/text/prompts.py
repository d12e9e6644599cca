"""Users' own prompts and reward functions as a text task.

    task = PromptTask(rows=read_prompts("train.jsonl"), reward_functions=[accuracy, brevity], weights=[1.0, 0.1])

Rows are as TRL has them: a ``prompt``, which is a text or the messages of a conversation, perhaps a ``completion``
that is right, and other columns for the reward functions. So are reward functions, called by keywords:

    def accuracy(prompts, completions, answer, **columns):
        return [float(completion == right) for completion, right in zip(completions, answer)]
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from decisionrl.envs.gridworld.family import check_whole
from decisionrl.envs.text.task import Prompt, TextTaskDefaults, checked_index
from decisionrl.envs.world import EnvironmentFault

RewardFunction = Callable[..., Sequence[float | None]]
"""``f(prompts=, completions=, completion_ids=, **columns) -> rewards``, all of them lists with one entry a row."""

_NOT_COLUMNS = ("prompt", "completion", "completion_ids")
"""Columns of the rows that reward functions do not get under their names."""

LARGEST = torch.finfo(torch.float32).max
"""Rewards are float32."""

_ARGUMENTS = ("prompts", "completions")
"""What reward functions get anyway, so that no column can be called so."""


class PromptError(ValueError):
    """Prompts that cannot be read; names the file and the line, or the row, and the column."""


class RewardFunctionError(EnvironmentFault):
    """A reward function that failed or returned what is no reward; names the function and the row.

    responses: the whole batch that was to be rewarded, as (index of the prompt, text).
    """

    responses: Sequence[tuple[int, str]] = ()


class Rows(Protocol):
    """What prompts are read from: a list of dicts, or a ``datasets.Dataset``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


def read_prompts(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, UTF-8 with an object in every line; empty lines are skipped.

    Raises:
        PromptError: a line is no object with a valid prompt, or has other columns than the first, or there is none.
        FileNotFoundError: there is no such file.
    """
    rows: list[dict[str, Any]] = []
    with open(path, "rb") as file:
        for number, read in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                line = read.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise PromptError(f"{where}: {error}; valid: UTF-8") from error
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise PromptError(f"{where}: {error}; valid: an object in each line") from error
            if not isinstance(row, dict):
                raise PromptError(f"{where} is a {type(row).__name__}; valid: an object")
            _check_prompt(row, where)
            if rows and row.keys() != rows[0].keys():
                raise PromptError(f"{where} has columns {', '.join(row)}; valid, as before: {', '.join(rows[0])}")
            rows.append(row)
    if not rows:
        raise PromptError(f"{path} has no prompts; valid: an object in each line")
    return rows


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptTask(TextTaskDefaults):
    """Prompts with reward functions; the reward of a response is the weighted sum of what they say.

    A function may return None for a row that it does not judge, which then adds nothing. A row that no function
    judges has no reward, which is an error. To a conversation the completion is the assistant's message,
    ``[{"role": "assistant", "content": response}]``. Functions get ``completion_ids`` only if ``rewards`` is given the
    tokens. Messages are kept as they are.

    Args:
        rows: each with ``prompt``, and the same columns in all.
        reward_functions: see ``RewardFunction``; none may be async.
        weights: of the functions; by default all 1.
        max_tokens: the longest response, in tokens, with the end symbol.
        best_reward: no response is worth more, if that is known.
        name: for messages.

    Raises:
        PromptError: there are no rows, or the first has no valid prompt or a column of a reserved name.
        ValueError: an option has no valid value.
    """

    rows: Rows
    reward_functions: Sequence[RewardFunction]
    weights: Sequence[float] | None = None
    max_tokens: int = 256
    best_reward: float | None = None
    name: str = "prompts"

    alphabet = None

    def __post_init__(self) -> None:
        check_whole("max_tokens", self.max_tokens, 1)
        if isinstance(self.rows, Mapping | str) or not (
            hasattr(self.rows, "__len__") and hasattr(self.rows, "__getitem__")
        ):
            kind = type(self.rows).__name__
            raise PromptError(f"{self.name}: rows is a {kind}; valid: a list of dicts, or a datasets.Dataset")
        if not len(self.rows):
            raise PromptError(f"{self.name}: rows is empty; valid: at least one prompt")
        if taken := [column for column in self.row(0) if column in _ARGUMENTS]:
            raise PromptError(f"{self.name} has a column {taken[0]}; valid: other names than {', '.join(_ARGUMENTS)}")
        if not isinstance(self.reward_functions, Sequence):
            raise ValueError(f"reward_functions = {self.reward_functions!r}; valid: a list of functions")
        if not self.reward_functions:
            raise ValueError("reward_functions is empty; valid: at least one function")
        for function in self.reward_functions:
            if not callable(function) or inspect.iscoroutinefunction(function):
                raise ValueError(f"reward_functions has {function!r}; valid: functions that are not async")
        if self.weights is not None and len(self.weights) != len(self.reward_functions):
            raise ValueError(f"weights has {len(self.weights)}; valid: {len(self.reward_functions)}, one a function")
        if self.weights is not None and not all(map(math.isfinite, self.weights)):
            raise ValueError(f"weights = {self.weights}; valid: finite numbers")

    @property
    def num_prompts(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Mapping[str, Any]:
        """All columns of a prompt."""
        row = self.rows[checked_index(self, index)]
        _check_prompt(row, f"{self.name}, row {index}")
        return row

    def prompt(self, index: int, /) -> Prompt:
        prompt: Prompt = self.row(index)["prompt"]
        return prompt

    def reward(self, index: int, response: str, /) -> float:
        return self.rewards([index], [response])[0]

    def rewards(
        self, indices: Sequence[int], responses: Sequence[str], /, *, tokens: Sequence[Sequence[int]] | None = None
    ) -> list[float]:
        """The rewards of a batch, for which each function is called once.

        Raises:
            RewardFunctionError: a function fails, returns another number of rewards or what is no finite number, or
                all return None for a row.
            ValueError: there are not as many responses, or tokens, as indices.
        """
        given = {"responses": responses} if tokens is None else {"responses": responses, "tokens": tokens}
        for field, values in given.items():
            if len(values) != len(indices):
                raise ValueError(f"{field} has {len(values)}; valid: {len(indices)}, one for each index")
        if len(indices) == 0:
            return []
        arguments = self._arguments(indices, responses)
        if tokens is not None:
            arguments["completion_ids"] = [list(each) for each in tokens]
        try:
            return self._weighted(arguments, indices)
        except RewardFunctionError as error:
            error.responses = list(zip(indices, responses, strict=True))
            raise

    def demonstration(self, index: int, generator: torch.Generator, /) -> str:
        """The column ``completion``, or the content of the one message in it.

        Raises:
            PromptError: there is no such column, or something else in it.
        """
        completion = self.row(index).get("completion")
        if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], Mapping):
            completion = completion[0].get("content")
        if not isinstance(completion, str):
            raise PromptError(f"{self.name}, row {index}: completion = {completion!r}; valid: a text, or one message")
        return completion

    def _weighted(self, arguments: Mapping[str, list[Any]], indices: Sequence[int]) -> list[float]:
        weights = [1.0] * len(self.reward_functions) if self.weights is None else self.weights
        totals, judged = [0.0] * len(indices), [False] * len(indices)
        for function, weight in zip(self.reward_functions, weights, strict=True):
            for i, score in enumerate(_scores(function, arguments, indices)):
                if score is not None:
                    totals[i] += weight * score
                    judged[i] = True
        names = ", ".join(map(_name, self.reward_functions))
        for total, row in zip(totals, indices, strict=True):
            if not abs(total) <= LARGEST:
                raise RewardFunctionError(f"{names}: {total!r} in all for row {row}; valid: a finite number of float32")
        if not all(judged):
            row = indices[judged.index(False)]
            raise RewardFunctionError(f"{names}: None for row {row}; valid: a number from at least one function")
        return totals

    def _arguments(self, indices: Sequence[int], responses: Sequence[str]) -> dict[str, list[Any]]:
        """What reward functions are called with."""
        rows = [self.row(index) for index in indices]
        columns = [column for column in self.row(0) if column not in _NOT_COLUMNS]
        for index, row in zip(indices, rows, strict=True):
            if missing := [column for column in columns if column not in row]:
                raise PromptError(f"{self.name}, row {index} has no {missing[0]}; valid: the columns of row 0")
        return {
            "prompts": [row["prompt"] for row in rows],
            "completions": [
                response if isinstance(row["prompt"], str) else [{"role": "assistant", "content": response}]
                for row, response in zip(rows, responses, strict=True)
            ],
            **{column: [row[column] for row in rows] for column in columns},
        }


def _check_prompt(row: Mapping[str, Any], where: str) -> None:
    """Raise PromptError unless the row has a text or messages to answer."""
    if not isinstance(row, Mapping):
        raise PromptError(f"{where} is a {type(row).__name__}; valid: a dict with a prompt")
    if "prompt" not in row:
        raise PromptError(f"{where} has no prompt; its columns: {', '.join(row) or 'none'}")
    prompt = row["prompt"]
    messages = isinstance(prompt, list) and all(isinstance(each, Mapping) and "role" in each for each in prompt)
    if not prompt or not (isinstance(prompt, str) or messages):
        raise PromptError(f"{where}: prompt = {prompt!r}; valid: a text, or a list of messages with a role")


def _scores(function: RewardFunction, arguments: Mapping[str, list[Any]], indices: Sequence[int]) -> list[float | None]:
    name = _name(function)
    try:
        returned: Any = function(**arguments)
        ordered = isinstance(returned, Iterable) and not isinstance(returned, Mapping | Set)
        rewards = list(returned) if ordered else None
    except Exception as error:
        rows = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
        raise RewardFunctionError(f"{name}, rows {rows}: {type(error).__name__}: {error}") from error
    if rewards is None:
        raise RewardFunctionError(f"{name} returned {returned!r}; valid: a list with a reward for each row")
    if len(rewards) != len(indices):
        raise RewardFunctionError(
            f"{name} returned {len(rewards)} rewards for {len(indices)} rows, from {indices[0]} on"
        )
    return [_score(value, name, index) for value, index in zip(rewards, indices, strict=True)]


def _score(value: Any, name: str, index: int) -> float | None:
    if value is None:
        return None
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        value = value.item()
    if not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise RewardFunctionError(
            f"{name} returned {value!r} for row {index}; valid: a finite number of float32, or None"
        )
    return float(value)


def _name(function: RewardFunction) -> str:
    return getattr(function, "__name__", type(function).__name__)
