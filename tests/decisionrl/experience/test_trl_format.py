"""TRL's columns: records of every kind, prompts that must be found, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decisionrl.experience.store import DatasetError
from decisionrl.experience.trl_format import (
    Message,
    TextPair,
    TextSteps,
    TextVerdict,
    read_jsonl,
    text_pairs,
    text_steps,
    text_verdicts,
    to_records,
    write_jsonl,
)


def said(*contents: str) -> list[dict[str, str]]:
    """A chat whose turns alternate."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def answer(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def test_pairs_with_a_prompt() -> None:
    plain, chat = text_pairs(
        [
            {"prompt": "The sky is", "chosen": " blue.", "rejected": " green.", "score": 1},
            {"prompt": said("Hi"), "chosen": answer("Hello"), "rejected": answer("No")},
        ]
    )
    assert plain == TextPair(prompt="The sky is", chosen=" blue.", rejected=" green.")
    assert chat == TextPair(
        prompt=(Message("user", "Hi"),),
        chosen=(Message("assistant", "Hello"),),
        rejected=(Message("assistant", "No"),),
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("Q: 2+2? A:4", "Q: 2+2? A:5", "Q: 2+2? A:"),
        ("yes", "no", ""),
        (" yes", " no", ""),
    ],
)
def test_an_implicit_prompt_of_strings(chosen: str, rejected: str, prompt: str) -> None:
    (pair,) = text_pairs([{"chosen": chosen, "rejected": rejected}])
    assert pair.prompt == prompt
    assert isinstance(pair.chosen, str)
    assert isinstance(pair.rejected, str)
    assert prompt + pair.chosen == chosen
    assert prompt + pair.rejected == rejected


@pytest.mark.parametrize("extra", [{}, {"prompt": "Hi"}])
def test_an_implicit_prompt_of_chats(extra: dict[str, str]) -> None:
    record = {"chosen": said("Hi", "Hello", "Sky?", "Blue"), "rejected": said("Hi", "Hello", "Sky?", "Green"), **extra}
    (pair,) = text_pairs([record])
    assert pair.prompt == (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Sky?"))
    assert pair.chosen == (Message("assistant", "Blue"),)
    assert pair.rejected == (Message("assistant", "Green"),)


def test_verdicts_and_steps() -> None:
    assert text_verdicts([{"prompt": "a", "completion": "b", "label": np.bool_(True)}]) == [
        TextVerdict(prompt="a", completion="b", label=True)
    ]
    assert text_verdicts([{"prompt": said("a"), "completion": answer("b"), "label": False}]) == [
        TextVerdict(prompt=(Message("user", "a"),), completion=(Message("assistant", "b"),), label=False)
    ]
    assert text_steps([{"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}]) == [
        TextSteps(prompt="a", completions=("b", "c"), labels=(True, False))
    ]


def test_records_come_back_from_a_file(tmp_path: Path) -> None:
    pairs: list[dict[str, Any]] = [
        {"prompt": "Größe?\n", "chosen": " 2 m", "rejected": " \u2028 3 m"},
        {"prompt": said("Hi"), "chosen": answer("Hello"), "rejected": answer("No")},
    ]
    verdicts = [{"prompt": said("a"), "completion": answer("b"), "label": False}]
    steps = [{"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}]
    for read, records in ((text_pairs, pairs), (text_verdicts, verdicts), (text_steps, steps)):
        write_jsonl(tmp_path / "data.jsonl", to_records(read(records)))  # type: ignore[operator]
        assert read_jsonl(tmp_path / "data.jsonl") == records
    assert [each.name for each in tmp_path.iterdir()] == ["data.jsonl"]


def test_whatever_iterates_dicts_is_read() -> None:
    class Table:
        def __iter__(self) -> Any:
            yield {"chosen": "a b", "rejected": "a c"}

    assert text_pairs(Table()) == [TextPair(prompt="a", chosen=" b", rejected=" c")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "record 1: rejected is missing; there are chosen, prompt"),
        ({"chosen": "b", "rejected": 3}, "record 1: rejected = 3; valid: a string"),
        ({"chosen": "b", "rejected": "b"}, "chosen and rejected are equal"),
        ({"chosen": "bc", "rejected": "b"}, "is the beginning of the other; valid: give prompt"),
        ({"chosen": said("a", "b"), "rejected": said("a")}, "is the beginning of the other; valid: give prompt"),
        ({"chosen": answer("b"), "rejected": "b"}, "one of chosen and rejected is a chat; valid: both or none"),
        ({"chosen": ["b"], "rejected": ["c"]}, r"chosen\[0\] = 'b'; valid: a message with role and content"),
        ({"chosen": [{"role": "user"}], "rejected": "b"}, r"record 1, chosen\[0\]: content is missing; there are role"),
        (
            {"chosen": [{"role": "user", "content": None}], "rejected": "b"},
            r"chosen\[0\].content = None; valid: a string",
        ),
    ],
)
def test_pairs_that_do_not_fit(record: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        text_pairs([{"chosen": "a", "rejected": "b"}, record])


def test_verdicts_and_steps_that_do_not_fit() -> None:
    with pytest.raises(DatasetError, match="record 0: label = 1; valid: True or False"):
        text_verdicts([{"prompt": "a", "completion": "b", "label": 1}])
    with pytest.raises(DatasetError, match="record 0: completion is missing"):
        text_verdicts([{"prompt": "a", "label": True}])
    steps = {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}
    with pytest.raises(DatasetError, match="record 0: 2 completions and 1 labels; valid: as many"):
        text_steps([{**steps, "labels": [True]}])
    with pytest.raises(DatasetError, match="record 0: completions = 'bc'; valid: a list"):
        text_steps([{**steps, "completions": "bc"}])
    with pytest.raises(DatasetError, match=r"record 0: labels\[1\] = None; valid: True or False"):
        text_steps([{**steps, "labels": [True, None]}])


def test_lines_that_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(DatasetError, match=r"line 3: .*; valid: a JSON object"):
        read_jsonl(path)
    path.write_text("[1]\n")
    with pytest.raises(DatasetError, match=r"line 1: '\[1\]'; valid: a JSON object"):
        read_jsonl(path)
