"""Countdown with three numbers: several answers are right."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement, permutations, product
from typing import NamedTuple

import torch

from decisionrl.envs.gridworld.family import check_whole
from decisionrl.envs.text.task import TextTaskDefaults, checked_index

_EXPRESSION = re.compile(r"[0-9]+(?:[+-][0-9]+)*")


class CountdownProblem(NamedTuple):
    """Three numbers in ascending order, what is to be made of them, and all ways to do it in alphabetical order."""

    numbers: tuple[int, int, int]
    target: int
    solutions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Countdown(TextTaskDefaults):
    """``"3,5,8:6="`` is answered by any sum and difference of these numbers, each used once, that is 6: ``"3+8-5"``.

    There is a prompt for every three numbers from 1 to ``max_number`` and every target from 1 to ``max_target`` that
    can be made of them. Expressions have neither signs in front nor parentheses. The reward is 1 or 0.

    Raises:
        ValueError: max_number or max_target is not a whole number >= 1.
    """

    max_number: int = 9
    max_target: int = 20

    name = "text/countdown"
    alphabet = "0123456789+-,:="
    best_reward = 1.0

    def __post_init__(self) -> None:
        check_whole("max_number", self.max_number, 1)
        check_whole("max_target", self.max_target, 1)

    @cached_property
    def problems(self) -> tuple[CountdownProblem, ...]:
        """All problems, in the order of their indices; found by trying everything."""
        return tuple(
            CountdownProblem(numbers, target, tuple(sorted(ways)))
            for numbers in combinations_with_replacement(range(1, self.max_number + 1), 3)
            for target, ways in sorted(_reachable(numbers).items())
            if 1 <= target <= self.max_target
        )

    @property
    def num_prompts(self) -> int:
        return len(self.problems)

    @property
    def max_tokens(self) -> int:
        return 3 * len(str(self.max_number)) + 2 + 1

    def prompt(self, index: int, /) -> str:
        numbers, target, _ = self.problem(index)
        return f"{','.join(map(str, numbers))}:{target}="

    def problem(self, index: int) -> CountdownProblem:
        return self.problems[checked_index(self, index)]

    def reward(self, index: int, response: str, /) -> float:
        numbers, target, _ = self.problem(index)
        if not _EXPRESSION.fullmatch(response):
            return 0.0
        # Compared as texts, so that digits are read as a number only if they are one of the numbers given.
        if sorted(re.findall("[0-9]+", response)) != sorted(map(str, numbers)):
            return 0.0
        return float(sum(int(term) for term in re.findall("[+-]?[0-9]+", response)) == target)

    def demonstration(self, index: int, generator: torch.Generator, /) -> str:
        """One of the solutions, each as likely."""
        solutions = self.problem(index).solutions
        return solutions[int(torch.randint(len(solutions), (), generator=generator, device=generator.device))]


def _reachable(numbers: tuple[int, ...]) -> dict[int, set[str]]:
    """Every value that can be made of all the numbers, and the expressions that make it."""
    ways: dict[int, set[str]] = {}
    for first, *rest in permutations(numbers):
        for signs in product((1, -1), repeat=len(rest)):
            value = first + sum(sign * number for sign, number in zip(signs, rest, strict=True))
            text = str(first) + "".join(f"{sign * number:+d}" for sign, number in zip(signs, rest, strict=True))
            ways.setdefault(value, set()).add(text)
    return ways
