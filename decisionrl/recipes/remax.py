"""ReMax: REINFORCE with the return of the greedy episode as its baseline (arXiv 2310.10505)."""

from __future__ import annotations

from typing import Unpack

import torch

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experience.trajectories import Trajectories
from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import seq_mean_token_sum
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.surrogates import Reinforce
from decisionrl.pipeline.advantages import GreedyBaseline
from decisionrl.pipeline.curricula import FreshStarts
from decisionrl.pipeline.returns import outcomes
from decisionrl.pipeline.rewards import add_to_last_step
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "ReMax",
    "arxiv": "2310.10505",
    "changes": "the baseline is the return of the deterministic actions from the same start",
    "limit": "a greedy return of 0 and rewards at the end: REINFORCE without a baseline",
    "kinds": "any environment that can be started from a seed",
}


@tuned
def remax(
    *,
    episodes: int = 32,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """One step on the mean over ``episodes`` episodes of ``sum_t -A log pi(a_t | s_t)``, each from a start of its own.

    A is the return of the episode less that of a greedy one from the same start; the steps of those count, too.
    """
    options = own_options(locals())
    control = Control(**common)
    policy = control.policy(critic=False)
    return control.experiment(
        "remax",
        policy=policy,
        source=EpisodeSource(
            control.world,
            policy,
            starts=FreshStarts(groups=episodes, group_size=1),
            greedy=True,
            pipeline=[rewarded_at_the_end, GreedyBaseline()],
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


def rewarded_at_the_end(batch: Trajectories) -> Trajectories:
    """The whole return as the reward of the last step, as a language model is rewarded."""
    return add_to_last_step(batch.replace(reward=torch.zeros_like(batch.reward)), outcomes(batch.reward, batch.mask))
