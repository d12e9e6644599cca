"""Contexts of bandits: arms pulled by who does not learn, for decision-pretrained transformers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from decisionrl.envs.gridworld.bandit_family import BanditFamily
from decisionrl.envs.gridworld.family import check_whole
from decisionrl.envs.seeded import uniform
from decisionrl.experience.histories import Transitions
from decisionrl.recording.tabular_sources import stream_seeds

_BEHAVIOR, _NOISE, _ARM = -1, -2, 0
"""What the random numbers of a stream are for; arms of episode e: _ARM + e."""


def mixture_pulls(
    family: BanditFamily,
    tasks: Int[Tensor, " task"],
    *,
    streams: int = 1,
    episodes: int = 1,
    noise: float = 0.0,
    seed: int = 0,
    expert: bool = False,
) -> Iterator[Transitions]:
    """Arms drawn independently with the probabilities (1 - omega) Dirichlet(1, ..., 1) + omega [one arm], omega uniform
    on {0, 0.1, ..., 1}, which every stream draws for itself (arXiv 2306.14892, appendix).

    Args:
        noise: none of the streams learns, so a share of random ones means nothing; 0.
        expert: the one arm is the best, and not one at random.

    Raises:
        ValueError: an argument is out of its range.
    """
    check_whole("streams", streams, 1)
    check_whole("episodes", episodes, 1)
    if noise:
        raise ValueError(f"noise = {noise}; valid with pulls that nobody learns from: 0")
    return _pulled(family, tasks, streams=streams, episodes=episodes, seed=seed, expert=expert)


def _pulled(
    family: BanditFamily, tasks: Int[Tensor, " task"], *, streams: int, episodes: int, seed: int, expert: bool
) -> Iterator[Transitions]:
    seeds, arms = stream_seeds(tasks, streams, seed).flatten(), int(family.action_space.n)
    shape, task = (len(tasks), streams), tasks[:, None].expand(-1, streams)

    def numbers(purpose: int, count: int) -> Tensor:
        return uniform(seeds, torch.full_like(seeds, purpose), count).view(*shape, count)

    drawn = numbers(_BEHAVIOR, arms + 2)
    dirichlet = -drawn[..., :arms].log()
    dirichlet = dirichlet / dirichlet.sum(-1, keepdim=True)
    omega = ((11 * drawn[..., arms:-1]).long().clamp(max=10)) / 10
    favored = (arms * drawn[..., -1]).long().clamp(max=arms - 1)
    if expert:
        favored = family.bandits.optimal_arm[task]
    probability = (1 - omega) * dirichlet + omega * torch.nn.functional.one_hot(favored, arms)
    # The last is 1 and not a little less, so that every number has its arm.
    upper = probability.cumsum(-1) / probability.sum(-1, keepdim=True)

    start = numbers(_NOISE, episodes)
    for episode in range(episodes):
        action = torch.searchsorted(upper, numbers(_ARM + episode, family.horizon)).clamp(max=arms - 1)
        state = family.start(start[..., episode : episode + 1])
        step = torch.arange(family.horizon, device=tasks.device)
        states = torch.stack([state[..., :1].expand(*shape, len(step)), step.expand(*shape, -1)], -1)
        _, reward = family.step(states, action, task[..., None])
        seen = family.observation(states)
        yield Transitions(seen, action, reward, seen)
