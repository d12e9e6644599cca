"""A tokenizer of single characters, and text as token ids or an error that says where it cannot be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


class UnknownCharacterError(ValueError):
    """A text with a character that the tokenizer does not know."""


def character_tokenizer(alphabet: str) -> PreTrainedTokenizerFast:
    """One token for each character: ids 0, 1, 2 pad, begin and end, the others are the alphabet in its order.

    Nothing is added to a text that is encoded, and nothing in it is read as a special token, so that decoding gives
    back every text. Padding is on the left, as generation needs it. ``save_pretrained(folder)`` writes what
    ``AutoTokenizer.from_pretrained(folder)`` reads, so a model may lie in the same folder. Characters that are not in
    the alphabet are refused; :func:`encode` says which.

    Raises:
        ValueError: the alphabet is empty, or has a character twice.
        ImportError: transformers and tokenizers, of the extra ``decisionrl[llm]``, are not installed.
    """
    twice = sorted({character for character in alphabet if alphabet.count(character) > 1})
    if not alphabet or twice:
        raise ValueError(f"alphabet = {alphabet!r}; valid: at least one character, and none twice: {''.join(twice)!r}")
    try:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise ImportError(f"character tokenizers: {error}; pip install 'decisionrl[llm]'") from error
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate([PAD, BOS, EOS, *alphabet])}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = fast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return made


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text, without any that the tokenizer would add to it.

    Raises:
        UnknownCharacterError: the tokenizer has no token for a character.
    """
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    except Exception as error:  # tokenizers raises nothing more special
        known = tokenizer.get_vocab()
        unknown = [(position, character) for position, character in enumerate(text) if character not in known]
        if not unknown:
            raise
        position, character = unknown[0]
        valid = "".join(sorted(token for token in known if len(token) == 1))
        raise UnknownCharacterError(
            f"character {character!r} at position {position} of {text!r} has no token; valid: {valid!r}"
        ) from error
    return ids
