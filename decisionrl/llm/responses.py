"""Responses that somebody else wrote, as trajectories: for supervised warm starts and for recorded data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from decisionrl.experience.trajectories import NO_TOKEN, Trajectories
from decisionrl.llm.world import TextWorld, padded

ENDLESS = 2**31
"""Of endless prompts, the first so many are drawn from."""


def responses(
    prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]], own: Sequence[Sequence[bool]]
) -> Trajectories:
    """Rows whose state is the prompt and whose actions are the tokens after it; own: those in the mask.

    There are no rewards, and log-probabilities are 0.
    """
    state, token = padded(prompts), padded(written)
    there, mask = token >= 0, padded(own) > 0
    newest = torch.tensor([each[-1] for each in prompts])
    none = torch.zeros(token.shape)
    last = there & ~torch.cat([there[:, 1:], torch.zeros_like(there[:, :1])], 1)
    return Trajectories(
        observation=torch.where(there, torch.cat([newest[:, None], token[:, :-1]], 1), NO_TOKEN),
        action=token.clamp(min=0),
        reward=none,
        mask=mask,
        log_prob=none,
        terminated=last,
        truncated=torch.zeros_like(last),
        state=state,
    )


@dataclass(frozen=True, kw_only=True)
class Demonstrations:
    """``draw(generator) -> Trajectories``: correct responses to ``size`` prompts at random, with the end token.

    examples: in front of each prompt are from 0 to as many others with right responses, all numbers as likely, as
        :class:`~decisionrl.llm.examples.SolvedExamples` shows them.
    """

    world: TextWorld
    size: int
    examples: int = 0

    def __call__(self, generator: torch.Generator) -> Trajectories:
        starts = self._starts(self.size, generator)
        prompts = [self.world.prompt(start) for start in starts]
        written, own = zip(*(self.world.demonstration(start, generator) for start in starts), strict=True)
        if self.examples:
            counts = torch.randint(self.examples + 1, (self.size,), generator=generator).tolist()
            prompts = [self._shown(count, generator) + prompt for count, prompt in zip(counts, prompts, strict=True)]
        return responses(prompts, written, own).to(self.world.device)

    def _starts(self, count: int, generator: torch.Generator) -> list[int]:
        return torch.randint(self.world.num_starts or ENDLESS, (count,), generator=generator).tolist()

    def _shown(self, count: int, generator: torch.Generator) -> list[int]:
        """So many prompts with right responses, one after the other."""
        shown: list[int] = []
        for start in self._starts(count, generator):
            shown += self.world.prompt(start) + self.world.demonstration(start, generator)[0]
        return shown
