"""Group sequence policy optimization (arXiv 2507.18071)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import seq_mean_token_mean
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.sequence_ratios import SequenceClip
from decisionrl.pipeline.curricula import FreshStarts
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Group sequence policy optimization",
    "arxiv": "2507.18071",
    "changes": "GRPO with one ratio for a whole episode, the geometric mean over its steps",
    "limit": "episodes of one step, or an update before the policy has moved: GRPO",
    "kinds": "any environment that can be started from a seed",
}


@tuned
def gspo(
    *,
    groups: int = 8,
    group_size: int = 8,
    clip_low: float = 0.03,
    clip_high: float = 0.04,
    epochs: int = 4,
    minibatch: int | None = None,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """GRPO whose clip keeps or drops whole episodes.

    clip_low, clip_high: bounds on the sequence ratio's distance from 1. The paper has 3e-4 and 4e-4 for answers of
    thousands of tokens and learning rates of 1e-6; a small network on a control task moves a hundred times as far in
    a step. minibatch: episodes in one.
    """
    options = own_options(locals())
    control = Control(**common)
    policy = control.policy(critic=False)
    return control.experiment(
        "gspo",
        policy=policy,
        source=EpisodeSource(
            control.world,
            policy,
            starts=FreshStarts(groups=groups, group_size=group_size),
            pipeline=[GroupNormalized()],
            seed=control.seed,
        ),
        objective=PolicyGradient(
            surrogate=SequenceClip(low=clip_low, high=clip_high),
            aggregate=seq_mean_token_mean,
            entropy_coefficient=control.entropy_coefficient,
        ),
        epochs=epochs,
        minibatch=minibatch,
        unit="sequence",
        metadata=METADATA,
        options=options,
    )
