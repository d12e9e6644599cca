"""Responses that somebody else wrote, as trajectories: for supervised warm starts and for recorded data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

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
    """``draw(generator) -> Trajectories``: correct responses to ``size`` prompts at random, with the end token."""

    world: TextWorld
    size: int

    def __call__(self, generator: torch.Generator) -> Trajectories:
        starts: Int[Tensor, " size"] = torch.randint(
            self.world.num_starts or ENDLESS, (self.size,), generator=generator
        )
        prompts = [self.world.prompt(start) for start in starts.tolist()]
        written, own = zip(*(self.world.demonstration(start, generator) for start in starts.tolist()), strict=True)
        return responses(prompts, written, own).to(self.world.device)
