"""Sorting of digits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from decisionrl.envs.gridworld.family import check_flag, check_whole
from decisionrl.envs.text.task import TextTaskDefaults, checked_index, random_numbers


@dataclass(frozen=True, kw_only=True)
class Sorting(TextTaskDefaults):
    """``"51423>"`` is answered by the same digits in ascending order.

    The number of digits is uniform on min_digits, ..., max_digits, and so is every digit; digits may be equal.

    Args:
        partial_credit: the reward is the share of places with the right digit, of those of the answer or of the
            response, whichever is longer; otherwise it is 1 for the answer and else 0.

    Raises:
        ValueError: the numbers of digits are not 1 <= min_digits <= max_digits.
    """

    min_digits: int = 4
    max_digits: int = 6
    partial_credit: bool = False

    name = "text/sorting"
    alphabet = "0123456789>"
    num_prompts = None
    best_reward = 1.0

    def __post_init__(self) -> None:
        check_flag("partial_credit", self.partial_credit)
        check_whole("min_digits", self.min_digits, 1)
        check_whole("max_digits", self.max_digits, self.min_digits)

    @property
    def max_tokens(self) -> int:
        return self.max_digits + 1

    def prompt(self, index: int, /) -> str:
        return f"{self._digits(index)}>"

    def answer(self, index: int) -> str:
        """The only right response."""
        return "".join(sorted(self._digits(index)))

    def reward(self, index: int, response: str, /) -> float:
        answer = self.answer(index)
        if not self.partial_credit:
            return float(response == answer)
        right = sum(given == wanted for given, wanted in zip(response, answer, strict=False))
        return right / max(len(response), len(answer))

    def demonstration(self, index: int, generator: torch.Generator, /) -> str:
        return self.answer(index)

    def _digits(self, index: int) -> str:
        rng = random_numbers(self.name, checked_index(self, index))
        return "".join(rng.choices("0123456789", k=rng.randint(self.min_digits, self.max_digits)))
