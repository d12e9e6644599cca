"""How often a language model is right: pass@1 and pass@k on prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from decisionrl.evaluation.statistics import bootstrap_mean
from decisionrl.experience.episodes import Played, Task
from decisionrl.modes import evaluating
from decisionrl.seeding import generator

if TYPE_CHECKING:
    from decisionrl.llm.world import TextWorld
    from decisionrl.policies.language import LanguagePolicy

ENDLESS = 2**31


def pass_at_k(correct: Int[Tensor, " prompts"], samples: int, k: int) -> Float[Tensor, " prompts"]:
    """The probability that one of k responses is right, from c right ones of n: ``1 - C(n - c, k) / C(n, k)``, which is
    unbiased (arXiv 2107.03374, section 2.1), in float64.

    Raises:
        ValueError: k is not in 1, ..., n.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k = {k}; valid: from 1 to samples = {samples}")
    wrong = (samples - correct).double()
    of = torch.arange(samples - k + 1, samples + 1, dtype=torch.float64, device=correct.device)
    return 1 - ((wrong[:, None] - samples + of).clamp(min=0) / of).prod(1)


@dataclass(frozen=True, kw_only=True)
class PassEvaluator:
    """Samples responses to prompts that training does not see, where there are such.

    Attributes:
        make_world: the world of those prompts.
        samples: n, responses to each prompt.
        success: the reward from which a response is right.
        k: of pass@k; at most n.
    """

    make_world: Callable[[], TextWorld]
    success: float
    samples: int = 8
    k: int = 8

    def __call__(
        self, policy: LanguagePolicy, *, episodes: int | None = None, seed: int = 1, long: bool = True
    ) -> dict[str, Any]:
        """``mean_return``, the mean reward, with a 95 % bootstrap interval over prompts, ``pass_1``, ``pass_k``, and
        ``mean_length`` in tokens.

        episodes: responses in all, by default 2,048 (not ``long``: 256), rounded to as many to each prompt:
        ``samples``, or more where there are not prompts enough.
        """
        episodes = episodes or (2048 if long else 256)
        world = self.make_world()
        prompts = max(1, episodes // self.samples)
        samples = self.samples
        if world.num_starts is not None and world.num_starts < prompts:
            prompts, samples = world.num_starts, episodes // world.num_starts
        played = sampled(policy, world, prompts=prompts, samples=samples, seed=seed)
        outcome = played.outcome.view(prompts, samples).cpu()
        correct = (outcome >= self.success).sum(1)  # in the precision of the rewards: 0.7 is 0.7
        rewards = outcome.double()
        estimate = bootstrap_mean(rewards.mean(1).numpy(), rng=np.random.default_rng(seed))
        return {
            "mean_return": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "episodes": prompts * samples,
            "pass_1": pass_at_k(correct, samples, 1).mean().item(),
            f"pass_{self.k}": pass_at_k(correct, samples, self.k).mean().item(),
            "mean_length": played.mask.sum(1).double().mean().item(),
        }


def sampled_rewards(
    policy: LanguagePolicy, world: TextWorld, *, prompts: int, samples: int, seed: int
) -> Float[Tensor, "prompts samples"]:
    """The rewards of responses to different prompts, chosen by the seed."""
    return sampled(policy, world, prompts=prompts, samples=samples, seed=seed).outcome.view(-1, samples)


def sampled(policy: LanguagePolicy, world: TextWorld, *, prompts: int, samples: int, seed: int) -> Played:
    """``samples`` responses to each of ``prompts`` different prompts, or of all if there are no more, side by side."""
    draws = generator(seed, "prompts")
    if world.num_starts is None:
        chosen = torch.randint(ENDLESS, (prompts,), generator=draws)
    else:
        chosen = torch.randperm(world.num_starts, generator=draws)[:prompts]
    tasks = [Task(start, noise=n) for start in chosen.tolist() for n in range(samples)]
    with torch.no_grad(), evaluating(policy):
        return world.play(policy, tasks, generator=generator(seed, "responses", world.device))
