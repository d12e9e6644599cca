"""REINFORCE with a leave-one-out baseline (arXiv 2402.14740)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import seq_mean_token_sum
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.surrogates import Reinforce
from decisionrl.pipeline.curricula import FreshStarts
from decisionrl.pipeline.group_advantages import LeaveOneOut
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "REINFORCE leave-one-out",
    "arxiv": "2402.14740",
    "changes": "the baseline of an episode is the mean return of the others from the same start",
    "limit": "A = G / (G - 1) (R - mean R): REINFORCE with the mean of the group, in expectation with no bias",
    "kinds": "any environment that can be started from a seed",
}


@tuned
def rloo(
    *,
    groups: int = 8,
    group_size: int = 8,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """One step on the mean over episodes of ``sum_t -A log pi(a_t | s_t)``.

    A is the return of the episode less the mean return of the others from the same start.

    groups: starts in a batch. group_size: episodes of each, 2 or more. The paper has 2 or 4 and, on language models,
    learning rates of 1e-6.
    """
    options = own_options(locals())
    control = Control(**common)
    policy = control.policy(critic=False)
    return control.experiment(
        "rloo",
        policy=policy,
        source=EpisodeSource(
            control.world,
            policy,
            starts=FreshStarts(groups=groups, group_size=group_size),
            pipeline=[LeaveOneOut()],
            seed=control.seed,
        ),
        objective=PolicyGradient(
            surrogate=Reinforce(), aggregate=seq_mean_token_sum, entropy_coefficient=control.entropy_coefficient
        ),
        epochs=1,
        minibatch=None,
        unit="sequence",
        metadata=METADATA,
        options=options,
    )
