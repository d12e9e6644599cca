"""Group relative policy optimization (arXiv 2402.03300)."""

from __future__ import annotations

from typing import Literal, Unpack

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import aggregation
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.regularizers import KLPenalty
from decisionrl.objectives.surrogates import Clip
from decisionrl.pipeline.curricula import FreshStarts
from decisionrl.pipeline.group_advantages import GroupNormalized, ProcessNormalized, Scale
from decisionrl.pipeline.rewards import ReferenceLogProb
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Group relative policy optimization",
    "arxiv": "2402.03300",
    "changes": "the critic gives way to the other episodes from the same start",
    "limit": "one epoch, no scale: REINFORCE with the mean of the group as its baseline",
    "kinds": "any environment that can be started from a seed",
}


@tuned
def grpo(
    *,
    groups: int = 8,
    group_size: int = 8,
    supervision: Literal["outcome", "process"] = "outcome",
    scale: Scale = "group",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    aggregate: str = "seq-mean-token-mean",
    kl_coefficient: float = 0.0,
    epochs: int = 4,
    minibatch: int | None = None,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """``group_size`` episodes from each of ``groups`` starts, compared with each other.

    supervision: "outcome" gives all steps of an episode the normalized return; "process" normalizes every step's
    reward over the group and adds up those to come. scale: what the differences are divided by, the standard deviation
    of the "group", of the "batch", or "none" (Dr. GRPO). aggregate: a name of ``objectives.aggregation``.
    kl_coefficient: of the penalty (k3) for leaving the initial policy. minibatch: episodes in one.
    """
    options = own_options(locals())
    control = Control(**common)
    policy = control.policy(critic=False)
    reference = [ReferenceLogProb(policy)] if kl_coefficient else []
    advantage = GroupNormalized(scale=scale) if supervision == "outcome" else ProcessNormalized(every_step=True)
    return control.experiment(
        "grpo",
        policy=policy,
        source=EpisodeSource(
            control.world,
            policy,
            starts=FreshStarts(groups=groups, group_size=group_size),
            pipeline=[*reference, advantage],
            seed=control.seed,
        ),
        objective=PolicyGradient(
            surrogate=Clip(low=clip_low, high=clip_high),
            aggregate=aggregation(aggregate),
            kl=KLPenalty(coefficient=kl_coefficient) if kl_coefficient else None,
            entropy_coefficient=control.entropy_coefficient,
        ),
        epochs=epochs,
        minibatch=minibatch,
        unit="sequence",
        metadata=METADATA,
        options=options,
    )
