"""Solved examples in front of prompts that were never solved: XRPO's seeding (arXiv 2510.06672)."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import itemgetter
from typing import Any

import torch

from decisionrl.experience.trajectories import Trajectories


class SolvedExamples:
    """A corpus of prompts with right responses; a prompt that failed in its last batch is shown some of them.

        examples = SolvedExamples(success=1.0)
        world = TextWorld(..., examples=examples)
        source = EpisodeSource(world, ..., pipeline=[..., examples])        # as a step, to be saved

    ``[prompt, response] * shown + [prompt]``, the most alike last: by the share of pairs of neighboring tokens that
    two prompts have in common. (The paper compares embeddings.) A prompt has failed if none of its responses is right
    in the batch that is being collected, or in the last one that it was in. A batch ends where it passes through this
    step.

    Args:
        success: the reward from which a response is right.
        shown: K, examples in front of a prompt; fewer while there are not as many.
        capacity: prompts in the corpus; the oldest go first.
        longest: tokens of the examples in front of a prompt; those that do not fit are left out.
        in_loss: log-probabilities, and so the loss, are of responses to the prompt with its examples, as they were
            sampled; otherwise to the prompt alone, so that what was found with examples is learned without them. The
            paper does not say which.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self, *, success: float, shown: int = 2, capacity: int = 512, longest: int = 512, in_loss: bool = True
    ) -> None:
        for name, value in (("shown", shown), ("capacity", capacity), ("longest", longest)):
            if value < 1:
                raise ValueError(f"{name} = {value}; valid: a whole number >= 1")
        self.success, self.shown, self.capacity, self.longest = success, shown, capacity, longest
        self.in_loss = in_loss
        self._solved: OrderedDict[int, _Example] = OrderedDict()
        self._failed: set[int] = set()
        self._solved_now: set[int] = set()
        self._seeded = self._asked = 0

    def before(self, number: int, prompt: Sequence[int], *, responses: int = 1, room: int | None = None) -> list[int]:
        """The tokens of the examples to stand in front of prompt ``number``; none unless it has failed.

        responses: how many are asked for, which the metric ``seeded`` counts. room: tokens there is room for.
        """
        longest = self.longest if room is None else min(self.longest, room)
        self._asked += responses
        if number not in self._failed:
            return []
        own = _pairs(prompt)
        alike = heapq.nlargest(
            self.shown,
            (
                (_overlap(own, each.pairs), place, each)
                for place, (other, each) in enumerate(self._solved.items())
                if other != number
            ),
            key=itemgetter(0, 1),  # of those as much alike, the newest
        )
        shown: list[int] = []
        for _, _, each in alike:
            example = each.prompt + each.response
            if len(example) + len(shown) <= longest:
                shown = example + shown
        self._seeded += responses * bool(shown)
        return shown

    def heard(
        self,
        numbers: Sequence[int],
        prompts: Sequence[Sequence[int]],
        said: Sequence[Sequence[int]],
        right: Sequence[bool],
    ) -> None:
        """Take in whole responses to prompts, without examples in front of them, and which of them are right."""
        self._solved_now |= {number for number, is_right in zip(numbers, right, strict=True) if is_right}
        self._failed = (self._failed | set(numbers)) - self._solved_now
        for number, prompt, response, is_right in zip(numbers, prompts, said, right, strict=True):
            if is_right:
                self._solved[number] = _Example(list(prompt), list(response))
                self._solved.move_to_end(number)
        while len(self._solved) > self.capacity:
            self._solved.popitem(last=False)

    def __call__(self, batch: Trajectories) -> Trajectories:
        """The batch as it is, with the metric ``seeded``: the share of its responses that had examples."""
        share = self._seeded / max(1, self._asked)
        self._seeded = self._asked = 0
        self._solved_now = set()
        return batch.replace(metrics={**batch.metrics, "seeded": torch.tensor(share)})

    def state_dict(self) -> dict[str, Any]:
        solved = [[number, each.prompt, each.response] for number, each in self._solved.items()]
        return {"solved": solved, "failed": sorted(self._failed)}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        self._solved = OrderedDict((number, _Example(prompt, response)) for number, prompt, response in state["solved"])
        self._failed = set(state["failed"])


@dataclass(frozen=True)
class _Example:
    prompt: list[int]
    response: list[int]

    @cached_property
    def pairs(self) -> set[tuple[int, int]]:
        return _pairs(self.prompt)


def _pairs(tokens: Sequence[int]) -> set[tuple[int, int]]:
    return set(pairwise(tokens))


def _overlap(one: set[tuple[int, int]], other: set[tuple[int, int]]) -> float:
    both = len(one & other)
    return both / max(1, len(one) + len(other) - both)
