"""Addition modulo a number."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from decisionrl.envs.gridworld.family import check_whole
from decisionrl.envs.text.task import TextTaskDefaults, checked_index


@dataclass(frozen=True, kw_only=True)
class ModularAddition(TextTaskDefaults):
    """``"a+b="`` is answered by the decimal digits of (a + b) mod ``modulus``, without leading zeros.

    Prompt a * modulus + b; there is one for each pair of 0 <= a, b < modulus. The reward is 1 for the answer, else 0.

    Raises:
        ValueError: modulus is not a whole number >= 2.
    """

    modulus: int = 23

    name = "text/modular-addition"
    alphabet = "0123456789+="
    best_reward = 1.0

    def __post_init__(self) -> None:
        check_whole("modulus", self.modulus, 2)

    @property
    def num_prompts(self) -> int:
        return self.modulus**2

    @property
    def max_tokens(self) -> int:
        return len(str(self.modulus - 1)) + 1

    def prompt(self, index: int, /) -> str:
        a, b = self._pair(index)
        return f"{a}+{b}="

    def answer(self, index: int) -> str:
        """The only right response."""
        return str(sum(self._pair(index)) % self.modulus)

    def reward(self, index: int, response: str, /) -> float:
        return float(response == self.answer(index))

    def demonstration(self, index: int, generator: torch.Generator, /) -> str:
        return self.answer(index)

    def _pair(self, index: int) -> tuple[int, int]:
        return divmod(checked_index(self, index), self.modulus)
