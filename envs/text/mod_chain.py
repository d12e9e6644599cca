"""Chains of operations modulo 11, written in symbols that a rulebook explains."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from decisionrl.envs.gridworld.family import check_flag, check_whole
from decisionrl.envs.text.task import TextTaskDefaults, checked_index, random_numbers


class Chain(NamedTuple):
    """A start value, the symbols of the operations, and the value after each of them."""

    start: int
    symbols: str
    values: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ModChain(TextTaskDefaults):
    """``"a+3,b*2;7ab="`` asks for ((7 + 3) * 2) mod 11 and is answered by ``"9"``, or by ``"10,9"`` with its steps.

    What a symbol means is drawn once for the task: adding 1, ..., modulus - 1 or multiplying by 2, ..., modulus - 1, no
    two symbols the same. The number of operations is uniform on min_length, ..., max_length; start and symbols are
    uniform. The reward is 1 for the right answer, else 0, and the last value decides it. Tasks that differ in
    ``rulebook`` or ``steps`` alone ask the same questions.

    Args:
        symbols: how many there are.
        rulebook: prompts begin with the meaning of all symbols; without it they begin with the start value, and the
            meanings must be found out from rewards.
        steps: responses may show values before the answer, with commas in between, and demonstrations do.
        rulebook_seed: draws the meanings.

    Raises:
        ValueError: an option has no valid value.
    """

    modulus: int = 11
    min_length: int = 1
    max_length: int = 8
    symbols: int = 6
    rulebook: bool = True
    steps: bool = False
    rulebook_seed: int = 0

    name = "text/mod-chain"
    num_prompts = None
    best_reward = 1.0

    def __post_init__(self) -> None:
        check_flag("rulebook", self.rulebook)
        check_flag("steps", self.steps)
        check_whole("modulus", self.modulus, 2)
        check_whole("min_length", self.min_length, 1)
        check_whole("max_length", self.max_length, self.min_length)
        check_whole("symbols", self.symbols, 1)
        check_whole("rulebook_seed", self.rulebook_seed, 0)
        most = min(len(string.ascii_lowercase), len(self._operations))
        if self.symbols > most:
            raise ValueError(f"symbols = {self.symbols}; valid: 1 to {most}")

    @property
    def letters(self) -> str:
        """The symbols."""
        return string.ascii_lowercase[: self.symbols]

    @property
    def alphabet(self) -> str:
        return f"0123456789+*,;={self.letters}"

    @property
    def max_tokens(self) -> int:
        values = self.max_length if self.steps else 1
        return values * (len(str(self.modulus - 1)) + 1)

    @cached_property
    def rules(self) -> dict[str, str]:
        """What each symbol means: ``"+3"`` or ``"*2"``."""
        meanings = random_numbers(self.name, self.rulebook_seed).sample(self._operations, self.symbols)
        return dict(zip(self.letters, meanings, strict=True))

    def prompt(self, index: int, /) -> str:
        start, symbols, _ = self.chain(index)
        rules = ",".join(letter + rule for letter, rule in self.rules.items())
        return f"{rules};{start}{symbols}=" if self.rulebook else f"{start}{symbols}="

    def chain(self, index: int) -> Chain:
        """The question of a prompt, with the value after each operation."""
        rng = random_numbers(self.name, checked_index(self, index))
        symbols = "".join(rng.choices(self.letters, k=rng.randint(self.min_length, self.max_length)))
        start = value = rng.randrange(self.modulus)
        values = []
        for symbol in symbols:
            operator, number = self.rules[symbol][0], int(self.rules[symbol][1:])
            value = (value + number if operator == "+" else value * number) % self.modulus
            values.append(value)
        return Chain(start, symbols, tuple(values))

    def answer(self, index: int) -> str:
        """The last value."""
        return str(self.chain(index).values[-1])

    def reward(self, index: int, response: str, /) -> float:
        if self.steps and re.fullmatch("(?:[0-9]+,)*[0-9]+", response):
            response = response.rpartition(",")[2]
        return float(response == self.answer(index))

    def demonstration(self, index: int, generator: torch.Generator, /) -> str:
        values = self.chain(index).values
        return ",".join(map(str, values if self.steps else values[-1:]))

    @property
    def _operations(self) -> list[str]:
        added = [f"+{number}" for number in range(1, self.modulus)]
        return added + [f"*{number}" for number in range(2, self.modulus)]
