"""Decoupled clip and dynamic sampling policy optimization (arXiv 2503.14476)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import token_mean
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.surrogates import Clip
from decisionrl.pipeline.curricula import FreshStarts, ResampleUntilUseful
from decisionrl.pipeline.filters import DynamicSampling
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.pipeline.rewards import OverlongPenalty
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Decoupled clip and dynamic sampling policy optimization",
    "arxiv": "2503.14476",
    "changes": "GRPO with more room upwards, a mean over steps, and new starts in place of those that say nothing",
    "limit": "max_rounds = 1, clip_high = clip_low: GRPO with a mean over the steps of groups of unequal returns",
    "kinds": "any environment that can be started from a seed",
}


@tuned
def dapo(
    *,
    groups: int = 8,
    group_size: int = 8,
    max_rounds: int = 4,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    overlong_length: int | None = None,
    overlong_buffer: int = 50,
    overlong_factor: float = 1.0,
    epochs: int = 4,
    minibatch: int | None = None,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """GRPO with DAPO's four changes.

    Rounds of ``groups`` fresh starts with ``group_size`` episodes each are played until there are ``groups`` starts
    with unequal returns, but at most ``max_rounds``; starts of equal returns are dropped. The loss is a mean over
    steps. overlong_length: longer episodes are punished, from ``overlong_buffer`` steps earlier on, by up to
    ``overlong_factor`` (the paper: 16,384 tokens and more, buffer 4,096, factor 1 where a success is worth 1); None for
    tasks in which length is no fault. minibatch: episodes in one.
    """
    options = own_options(locals())
    control = Control(**common)
    policy = control.policy(critic=False)
    overlong = (
        []
        if overlong_length is None
        else [OverlongPenalty(max_length=overlong_length, buffer=overlong_buffer, factor=overlong_factor)]
    )
    return control.experiment(
        "dapo",
        policy=policy,
        source=EpisodeSource(
            control.world,
            policy,
            starts=ResampleUntilUseful(
                FreshStarts(groups=groups, group_size=group_size), min_groups=groups, max_rounds=max_rounds
            ),
            pipeline=[DynamicSampling(), *overlong, GroupNormalized()],
            seed=control.seed,
        ),
        objective=PolicyGradient(
            surrogate=Clip(low=clip_low, high=clip_high),
            aggregate=token_mean,
            entropy_coefficient=control.entropy_coefficient,
        ),
        epochs=epochs,
        minibatch=minibatch,
        unit="sequence",
        metadata=METADATA,
        options=options,
    )
