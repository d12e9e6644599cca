"""The tokenizer of characters: nothing is lost, nothing is special, and files hold all of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from transformers import AutoTokenizer

from decisionrl.envs.text import TASKS, make_task
from decisionrl.envs.text.tokenizer import UnknownCharacterError, character_tokenizer, encode

ALPHABET = "ab <>eos/pd\n\t.,?n'é漢🙂"
TEXTS = ["", "a", "ab  ba ", " a\nb\t ", "<eos>", "<pad><eos>", "a .b , n ? é漢🙂", "\n\n"]


def test_ids_are_those_of_the_alphabet() -> None:
    tokenizer = character_tokenizer("xyz")
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert encode(tokenizer, "zxy") == [5, 3, 4]
    assert len(tokenizer) == 6


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_back_the_text(text: str) -> None:
    tokenizer = character_tokenizer(ALPHABET)
    ids = encode(tokenizer, text)
    assert len(ids) == len(text)
    assert not {0, 1, 2} & set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([1, *ids, 2, 0], skip_special_tokens=True) == text


def test_a_folder_holds_the_tokenizer(tmp_path: Path) -> None:
    character_tokenizer(ALPHABET).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert encode(loaded, text) == encode(character_tokenizer(ALPHABET), text)
        assert loaded.decode(encode(loaded, text)) == text
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)
    padded = loaded(["a", "ab"], padding=True)
    assert padded["input_ids"] == [[0, 3], [3, 4]]
    assert padded["attention_mask"] == [[0, 1], [1, 1]]


def test_unknown_characters_are_named_with_their_place() -> None:
    tokenizer = character_tokenizer("01+=")
    with pytest.raises(UnknownCharacterError, match=r"'x' at position 2 of '0\+x=y' has no token; valid: '\+01='"):
        encode(tokenizer, "0+x=y")


def test_alphabets_that_are_none() -> None:
    with pytest.raises(ValueError, match="alphabet = ''; valid: at least one character"):
        character_tokenizer("")
    with pytest.raises(ValueError, match=r"alphabet = 'abcab'; .* none twice: 'ab'"):
        character_tokenizer("abcab")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_can_be_encoded(name: str) -> None:
    task = make_task(name)
    tokenizer = character_tokenizer(task.alphabet)
    for index in range(8):
        assert tokenizer.decode(encode(tokenizer, task.prompt(index))) == task.prompt(index)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'decisionrl\[llm\]'"):
        character_tokenizer("ab")
