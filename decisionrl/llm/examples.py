"""Solved examples in front of prompts that were never solved: XRPO's seeding (arXiv 2510.06672)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch

from decisionrl.experience.trajectories import Trajectories


class SolvedExamples:
    """A corpus of prompts with right responses; a prompt whose last responses all failed is shown some of them.

        examples = SolvedExamples(success=1.0)
        world = TextWorld(..., examples=examples)
        source = EpisodeSource(world, ..., pipeline=[..., examples])        # as a step, to be saved

    ``[prompt, response] * shown + [prompt]``, the most alike last: by the share of pairs of neighboring tokens that
    two prompts have in common. (The paper compares embeddings.) The policy's log-probabilities are of responses to
    the prompt with its examples; the paper does not say what its loss is of.

    Args:
        success: the reward from which a response is right.
        shown: K, examples in front of a prompt; fewer while there are not as many.
        capacity: prompts in the corpus; the oldest go first.
        longest: tokens of the examples in front of a prompt; those that do not fit are left out.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(self, *, success: float, shown: int = 2, capacity: int = 512, longest: int = 512) -> None:
        for name, value in (("shown", shown), ("capacity", capacity), ("longest", longest)):
            if value < 1:
                raise ValueError(f"{name} = {value}; valid: a whole number >= 1")
        self.success, self.shown, self.capacity, self.longest = success, shown, capacity, longest
        self._solved: OrderedDict[int, tuple[list[int], list[int]]] = OrderedDict()
        self._failed: set[int] = set()
        self._seeded = self._asked = 0

    def before(self, number: int, prompt: Sequence[int]) -> list[int]:
        """The tokens of the examples to stand in front of prompt ``number``; none unless it has failed."""
        self._asked += 1
        if number not in self._failed:
            return []
        own = _pairs(prompt)
        alike = sorted(
            (other for other in self._solved if other != number),
            key=lambda other: _overlap(own, _pairs(self._solved[other][0])),
        )
        shown: list[int] = []
        for other in reversed(alike[-self.shown :]):
            example = [token for part in self._solved[other] for token in part]
            if len(example) + len(shown) <= self.longest:
                shown = example + shown
        self._seeded += bool(shown)
        return shown

    def heard(
        self,
        numbers: Sequence[int],
        prompts: Sequence[Sequence[int]],
        said: Sequence[Sequence[int]],
        rewards: Sequence[float],
    ) -> None:
        """Take in whole responses to prompts, without examples in front of them."""
        right = {number for number, reward in zip(numbers, rewards, strict=True) if reward >= self.success}
        self._failed = (self._failed | set(numbers)) - right
        for number, prompt, response, reward in zip(numbers, prompts, said, rewards, strict=True):
            if reward >= self.success:
                self._solved[number] = (list(prompt), list(response))
                self._solved.move_to_end(number)
        while len(self._solved) > self.capacity:
            self._solved.popitem(last=False)

    def __call__(self, batch: Trajectories) -> Trajectories:
        """The batch as it is, with the metric ``seeded``: the share of its responses that had examples."""
        share = self._seeded / max(1, self._asked)
        self._seeded = self._asked = 0
        return batch.replace(metrics={**batch.metrics, "seeded": torch.tensor(share)})

    def state_dict(self) -> dict[str, Any]:
        solved = [[number, prompt, response] for number, (prompt, response) in self._solved.items()]
        return {"solved": solved, "failed": sorted(self._failed)}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._solved = OrderedDict((number, (prompt, response)) for number, prompt, response in state["solved"])
        self._failed = set(state["failed"])


def _pairs(tokens: Sequence[int]) -> set[tuple[int, int]]:
    return set(pairwise(tokens))


def _overlap(one: set[tuple[int, int]], other: set[tuple[int, int]]) -> float:
    return len(one & other) / max(1, len(one | other))
