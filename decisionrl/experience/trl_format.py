"""Preferences over text in the columns of TRL, as typed records and back.

TRL (https://huggingface.co/docs/trl/dataset_formats) keeps a data set as records of named columns, of which each kind
has its own. Text is a string, or a chat: messages with a role and a content. Whatever iterates dicts can be read, a
``datasets.Dataset`` included; columns that are not named here are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from decisionrl.experience.store import DatasetError
from decisionrl.files import replacing


@dataclass(frozen=True)
class Message:
    """One turn of a chat; ``role`` is ``system``, ``user``, ``assistant`` or ``tool``."""

    role: str
    content: str


Text = str | tuple[Message, ...]
"""A string, or the messages of a chat."""


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """Two answers to a prompt, one of them preferred."""

    prompt: Text
    chosen: Text
    rejected: Text


@dataclass(frozen=True, kw_only=True)
class TextVerdict:
    """One answer to a prompt, and whether it was found good."""

    prompt: Text
    completion: Text
    label: bool


@dataclass(frozen=True, kw_only=True)
class TextSteps:
    """The steps of an answer to a prompt, and whether each of them is right."""

    prompt: str
    completions: tuple[str, ...]
    labels: tuple[bool, ...]


Record = TextPair | TextVerdict | TextSteps


def text_pairs(records: Iterable[Mapping[str, Any]]) -> list[TextPair]:
    """TRL's *preference* columns ``prompt``, ``chosen``, ``rejected``; without ``prompt`` it is what both answers begin
    with, as it is where the prompt is a string and the answers are whole chats.

    The common beginning of strings ends before a space that both answers begin with, of chats after a message.

    Raises:
        DatasetError: a missing column or one of another type, equal answers, an answer that is nothing but the prompt.
    """
    return [_pair(record, where) for where, record in _numbered(records)]


def text_verdicts(records: Iterable[Mapping[str, Any]]) -> list[TextVerdict]:
    """TRL's *unpaired preference* columns ``prompt``, ``completion``, ``label``.

    Raises:
        DatasetError: a missing column or one of another type.
    """
    return [
        TextVerdict(
            prompt=_text(record, "prompt", where),
            completion=_text(record, "completion", where),
            label=_bool(_column(record, "label", where), "label", where),
        )
        for where, record in _numbered(records)
    ]


def text_steps(records: Iterable[Mapping[str, Any]]) -> list[TextSteps]:
    """TRL's *stepwise supervision* columns ``prompt``, ``completions``, ``labels``.

    Raises:
        DatasetError: a missing column or one of another type, or not as many labels as completions.
    """
    return [_steps(record, where) for where, record in _numbered(records)]


def to_records(values: Iterable[Record]) -> list[dict[str, Any]]:
    """The columns of TRL again, in plain lists and dicts; the prompt is always explicit."""
    return [{name: _plain(value) for name, value in asdict(each).items()} for each in values]


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The records of a file with one JSON object a line; empty lines are skipped.

    Raises:
        DatasetError: a line that is no JSON object.
    """
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DatasetError(f"{path}, line {number}: {error}; valid: a JSON object") from None
        if not isinstance(record, dict):
            raise DatasetError(f"{path}, line {number}: {line.strip()[:40]!r}; valid: a JSON object")
        records.append(record)
    return records


def write_jsonl(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line; a crash leaves the old file."""
    with replacing(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(dict(record), ensure_ascii=False) + "\n")


def _numbered(records: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, Mapping[str, Any]]]:
    return ((f"record {number}", record) for number, record in enumerate(records))


def _pair(record: Mapping[str, Any], where: str) -> TextPair:
    chosen, rejected = (_text(record, name, where) for name in ("chosen", "rejected"))
    if type(chosen) is not type(rejected):
        raise DatasetError(f"{where}: one of chosen and rejected is a chat; valid: both or none")
    if chosen == rejected:
        raise DatasetError(f"{where}: chosen and rejected are equal; valid: two different answers")
    prompt = _text(record, "prompt", where) if "prompt" in record else None
    if prompt is None or (isinstance(prompt, str) and not isinstance(chosen, str)):
        prompt, chosen, rejected = _split(chosen, rejected, where)
    return TextPair(prompt=prompt, chosen=chosen, rejected=rejected)


def _split(chosen: Text, rejected: Text, where: str) -> tuple[Text, Text, Text]:
    """The common beginning, and what is left of both."""
    shared = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))
    if isinstance(chosen, str) and chosen[shared - 1 : shared] == " ":
        shared -= 1
    if shared in (len(chosen), len(rejected)):
        raise DatasetError(f"{where}: one of chosen and rejected is the beginning of the other; valid: give prompt")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _steps(record: Mapping[str, Any], where: str) -> TextSteps:
    prompt = _column(record, "prompt", where)
    completions, labels = (_column(record, name, where) for name in ("completions", "labels"))
    for name, value in (("completions", completions), ("labels", labels)):
        if not _is_list(value):
            raise DatasetError(f"{where}: {name} = {value!r}; valid: a list")
    if len(completions) != len(labels):
        raise DatasetError(f"{where}: {len(completions)} completions and {len(labels)} labels; valid: as many")
    return TextSteps(
        prompt=_string(prompt, "prompt", where),
        completions=tuple(_string(each, f"completions[{i}]", where) for i, each in enumerate(completions)),
        labels=tuple(_bool(each, f"labels[{i}]", where) for i, each in enumerate(labels)),
    )


def _column(record: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in record:
        raise DatasetError(f"{where}: {name} is missing; there are {', '.join(sorted(record)) or 'no columns'}")
    return record[name]


def _text(record: Mapping[str, Any], name: str, where: str) -> Text:
    value = _column(record, name, where)
    if not _is_list(value):
        return _string(value, name, where)
    return tuple(_message(each, f"{name}[{i}]", where) for i, each in enumerate(value))


def _message(value: Any, name: str, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise DatasetError(f"{where}: {name} = {value!r}; valid: a message with role and content")
    role, content = (_column(value, each, f"{where}, {name}") for each in ("role", "content"))
    return Message(_string(role, f"{name}.role", where), _string(content, f"{name}.content", where))


def _string(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DatasetError(f"{where}: {name} = {value!r}; valid: a string")
    return value


def _bool(value: Any, name: str, where: str) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise DatasetError(f"{where}: {name} = {value!r}; valid: True or False")
    return bool(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
