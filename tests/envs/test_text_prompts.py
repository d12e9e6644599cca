"""Users' prompts and reward functions: what they are called with, how rewards add up, and what is said of faults."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decisionrl.envs.text import TextTask, split
from decisionrl.envs.text.prompts import PromptError, PromptTask, RewardFunctionError, read_prompts

ROWS = [
    {"prompt": "1+1=", "completion": "2", "answer": "2", "kind": "sum"},
    {"prompt": "2*3=", "completion": "6", "answer": "6", "kind": "product"},
    {"prompt": "4+4=", "completion": "8", "answer": "8", "kind": "sum"},
]


def exact(completions: list[str], answer: list[str], **columns: Any) -> list[float]:
    return [float(given == right) for given, right in zip(completions, answer, strict=True)]


def only_sums(completions: list[str], kind: list[str], **columns: Any) -> list[float | None]:
    return [len(given) if each == "sum" else None for given, each in zip(completions, kind, strict=True)]


def task(*functions: Callable[..., Any], **options: Any) -> PromptTask:
    return PromptTask(**{"rows": ROWS, "reward_functions": functions, **options})


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_becomes_a_task(tmp_path: Path) -> None:
    rows = read_prompts(written(tmp_path, "\n\n".join(json.dumps(row) for row in ROWS) + "\n"))
    assert rows == ROWS
    made = task(exact, rows=rows, name="sums")
    assert isinstance(made, TextTask)
    assert made.num_prompts == 3
    assert [made.prompt(index) for index in range(3)] == ["1+1=", "2*3=", "4+4="]
    assert made.demonstration(1, torch.Generator()) == "6"
    assert made.reward(2, "8") == 1
    assert (made.alphabet, made.triggers, made.best_reward) == (None, "", None)
    assert sum(map(len, split(made, train_share=0.5))) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "prompts.jsonl has no prompts; valid: an object in each line"),
        ('{"prompt": "a"}\n{"prompt"', "line 2: Expecting ':' delimiter.*; valid: an object in each line"),
        ('{"prompt": "a"}\n\n["b"]', "line 3 is a list; valid: an object"),
        ('{"text": "a", "x": 1}', "line 1 has no prompt; its columns: text, x"),
        ('{"prompt": 3}', "line 1: prompt = 3; valid: a text, or a list of messages with a role"),
        ('{"prompt": ""}', "line 1: prompt = ''; valid"),
        ('{"prompt": [{"content": "a"}]}', "line 1: prompt = .*; valid: a text, or a list of messages with a role"),
        ('{"prompt": "a", "x": 1}\n{"prompt": "b"}', "line 2 has columns prompt; valid, as before: prompt, x"),
    ],
)
def test_files_that_are_wrong_are_told_where(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_prompts(written(tmp_path, text))


def test_functions_see_the_whole_batch_in_the_signature_of_trl() -> None:
    calls = []

    def spy(**arguments: Any) -> list[float]:
        calls.append(arguments)
        return [0.0] * 3

    task(spy).rewards([2, 0, 2], ["8", "2", "9"], tokens=[(5, 2), (3,), (6, 6)])
    assert calls == [
        {
            "prompts": ["4+4=", "1+1=", "4+4="],
            "completions": ["8", "2", "9"],
            "completion_ids": [[5, 2], [3], [6, 6]],
            "answer": ["8", "2", "8"],
            "kind": ["sum", "sum", "sum"],
        }
    ]
    task(spy).rewards([0, 1, 2], ["", "", ""])
    assert "completion_ids" not in calls[1]
    assert task(spy).rewards([], []) == []
    assert len(calls) == 2


def test_conversations_are_answered_by_a_message() -> None:
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1"}]
    rows = [{"prompt": messages, "completion": [{"role": "assistant", "content": "2"}]}]

    def polite(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        assert prompts == [messages]
        assert completions == [[{"role": "assistant", "content": "two"}]]
        return [0.25]

    made = task(polite, rows=rows)
    assert made.prompt(0) == messages
    assert made.reward(0, "two") == 0.25
    assert made.demonstration(0, torch.Generator()) == "2"


def test_weights_and_functions_that_judge_only_some_rows() -> None:
    made = task(exact, only_sums, weights=[1.0, -0.25])
    assert made.rewards([0, 1, 2], ["2", "6", "123"]) == [1 - 0.25, 1.0, -0.75]
    assert task(exact, only_sums).rewards([0, 1], ["2", "7"]) == [2.0, 0.0]
    with pytest.raises(RewardFunctionError, match="only_sums: None for row 1; valid: a number from at least one"):
        task(only_sums).rewards([0, 1], ["2", "6"])


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, iter])
def test_rewards_of_any_number_type(kind: Callable[[list[float]], Any]) -> None:
    made = task(lambda completions, **columns: kind([0.5, 2.0]))
    rewards = made.rewards([0, 1], ["a", "b"])
    assert rewards == [0.5, 2.0]
    assert [type(reward) for reward in rewards] == [float, float]
    assert task(lambda **columns: [True, np.int64(3)]).rewards([0, 1], ["a", "b"]) == [1.0, 3.0]


def test_a_function_that_raises_is_named_and_its_error_kept() -> None:
    def broken(completions: list[str], **columns: Any) -> list[float]:
        raise KeyError("score")

    with pytest.raises(RewardFunctionError, match=r"^broken, rows 2, 0: KeyError: 'score'$") as caught:
        task(exact, broken).rewards([2, 0], ["a", "b"])
    assert isinstance(caught.value.__cause__, KeyError)

    def needs_ids(prompts: list[str], completions: list[str], completion_ids: list[list[int]]) -> list[float]:
        return [float(len(ids)) for ids in completion_ids]

    with pytest.raises(RewardFunctionError, match=r"TypeError: .*completion_ids"):
        task(needs_ids, rows=[{"prompt": "a"}]).reward(0, "b")
    assert task(needs_ids, rows=[{"prompt": "a"}]).rewards([0], ["b"], tokens=[[4, 5]]) == [2.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "faulty returned 1 rewards for 2 rows, from 2 on"),
        (None, "faulty returned None; valid: a list with a reward for each row"),
        (1.0, "faulty returned 1.0; valid: a list"),
        ([1.0, math.nan], "faulty returned nan for row 0; valid: a finite number of float32, or None"),
        ([1.0, -math.inf], "faulty returned -inf for row 0"),
        ([1.0, "0.5"], "faulty returned '0.5' for row 0"),
        ([[1.0], 0.5], r"faulty returned \[1.0\] for row 2"),
        (np.ones((2, 2)), "faulty returned array.* for row 2"),
        (torch.tensor([0.0, math.nan]), "faulty returned nan for row 0"),
        ([1.0, 1e300], r"faulty returned 1e\+300 for row 0; valid: a finite number of float32, or None"),
        ([1.0, 10**400], r"faulty returned 10+ for row 0"),
        ({1.0, 2.0}, "faulty returned {1.0, 2.0}; valid: a list"),
        ((1 / number for number in (1, 0)), "faulty, rows 2, 0: ZeroDivisionError: division by zero"),
        ({"a": 1.0, "b": 2.0}, "faulty returned {'a': 1.0, 'b': 2.0}; valid: a list"),
    ],
)
def test_what_is_no_reward_is_named_with_its_row(returned: object, message: str) -> None:
    def faulty(**columns: Any) -> object:
        return returned

    with pytest.raises(RewardFunctionError, match=message):
        task(exact, faulty).rewards([2, 0], ["a", "b"])


def test_a_sum_that_is_no_reward_is_named_with_its_row() -> None:
    def large(**columns: Any) -> list[float]:
        return [0.0, -3e38]

    with pytest.raises(
        RewardFunctionError, match=r"large: -6e\+38 in all for row 0; valid: a finite number of float32"
    ):
        task(large, weights=[2.0]).rewards([2, 0], ["a", "b"])


def test_options_that_are_wrong() -> None:
    async def slow(**columns: Any) -> list[float]:
        return []

    for changes, message in (
        ({"rows": []}, "prompts: rows is empty"),
        ({"rows": "train.jsonl"}, "prompts: rows is a str; valid: a list of dicts"),
        ({"rows": {"prompt": ["a"]}}, "prompts: rows is a dict; valid: a list of dicts"),
        ({"rows": ["my prompt"]}, "prompts, row 0 is a str; valid: a dict with a prompt"),
        ({"reward_functions": exact}, "reward_functions = .*; valid: a list of functions"),
        ({"rows": [{"question": "a"}]}, "prompts, row 0 has no prompt; its columns: question"),
        ({"rows": [{"prompt": "a", "completions": 1}]}, "prompts has a column completions; valid: other names"),
        ({"reward_functions": []}, "reward_functions is empty; valid: at least one function"),
        ({"reward_functions": [slow]}, "valid: functions that are not async"),
        ({"reward_functions": ["exact"]}, "reward_functions has 'exact'"),
        ({"weights": [1.0, 2.0]}, "weights has 2; valid: 1, one a function"),
        ({"weights": [math.nan]}, "weights = .*nan.*; valid: finite numbers"),
        ({"max_tokens": 0}, "max_tokens = 0; valid: a whole number >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            task(**{"reward_functions": [exact], **changes})
    with pytest.raises(ValueError, match="responses has 1; valid: 2, one for each index"):
        task(exact).rewards([0, 1], ["a"])
    with pytest.raises(ValueError, match="tokens has 0; valid: 1, one for each index"):
        task(exact).rewards([0], ["a"], tokens=[])
    with pytest.raises(ValueError, match="prompts: index = 3; valid: whole numbers from 0 to 2"):
        task(exact).prompt(3)


def test_rows_that_are_wrong_are_found_when_they_are_used() -> None:
    rows = [*ROWS, {"prompt": "5+5=", "kind": "sum"}, {"prompt": None, "answer": "1", "kind": "sum"}]
    made = task(exact, rows=rows)
    with pytest.raises(PromptError, match="prompts, row 3 has no answer; valid: the columns of row 0"):
        made.rewards([0, 3], ["2", "10"])
    with pytest.raises(PromptError, match="prompts, row 4: prompt = None"):
        made.prompt(4)
    with pytest.raises(PromptError, match="prompts, row 3: completion = None; valid: a text, or one message"):
        made.demonstration(3, torch.Generator())


def test_a_dataset_is_as_good_as_a_list() -> None:
    datasets = pytest.importorskip("datasets")
    made = task(exact, only_sums, rows=datasets.Dataset.from_list(ROWS))
    assert made.num_prompts == 3
    assert made.prompt(1) == "2*3="
    assert made.rewards([0, 1], ["2", "6"]) == [2.0, 1.0]
    messages = [{"role": "user", "content": "1+1"}]
    assert task(exact, rows=datasets.Dataset.from_list([{"prompt": messages}])).prompt(0) == messages
