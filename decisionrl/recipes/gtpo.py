"""Group-relative trajectory-based policy optimization (arXiv 2508.03772)."""

from __future__ import annotations

import math
from typing import Unpack

import torch
from jaxtyping import Int
from torch import Tensor

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experience.trajectories import Trajectories
from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import seq_mean_token_mean
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.step_filters import BatchWeight
from decisionrl.objectives.surrogates import Reinforce
from decisionrl.pipeline.curricula import FreshStarts
from decisionrl.pipeline.rewards import ScaleReward
from decisionrl.pipeline.shaped_advantages import EntropyShaped
from decisionrl.pipeline.weights import ConflictWeights
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Group-relative trajectory-based policy optimization",
    "arxiv": "2508.03772",
    "changes": "what good and bad episodes share is not unlearned; uncertain episodes count less or not at all",
    "limit": "entropy_weight = 0, threshold = infinity and nothing shared: REINFORCE with the group's mean (Dr. GRPO)",
    "kinds": "any environment that can be started from a seed; best with few different observations and actions",
}


@tuned
def gtpo(
    *,
    groups: int = 8,
    group_size: int = 8,
    entropy_weight: float = 0.1,
    entropy_threshold: float = math.log(2),
    reward_scale: float = 1.0,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """One step on ``-lambda_t (R - mean R - entropy_weight <H>) log pi(a_t | s_t)``, mean over steps, then episodes.

    lambda_t is 0 (bad episodes) or 2 (good ones) on the steps with equal observation and action (on text: equal tokens)
    that good and bad episodes of a group have in common, from the first on or back from the last. <H> is the mean
    entropy over an episode; above entropy_threshold the episode does not count, unless the initial policy's was above
    it, too.
    reward_scale: brings returns to the unit of the entropy (the paper's rewards are about 1).
    """
    options = own_options(locals())
    control = Control(**common)
    control.require_entropy("GTPO")
    policy = control.policy(critic=False)
    return control.experiment(
        "gtpo",
        policy=policy,
        source=EpisodeSource(
            control.world,
            policy,
            starts=FreshStarts(groups=groups, group_size=group_size),
            pipeline=[
                ScaleReward(factor=reward_scale),
                EntropyShaped(gamma=entropy_weight, threshold=entropy_threshold),
                ConflictWeights(key=observation_and_action if control.language is None else None),
            ],
            seed=control.seed,
        ),
        objective=PolicyGradient(
            surrogate=Reinforce(),
            aggregate=seq_mean_token_mean,
            weights=(BatchWeight(),),
            entropy_coefficient=control.entropy_coefficient,
        ),
        epochs=1,
        minibatch=None,
        unit="sequence",
        metadata=METADATA,
        options=options,
    )


def observation_and_action(batch: Trajectories) -> Int[Tensor, "batch step"]:
    """Equal numbers at steps of equal observation and action."""
    seen = batch.observation if isinstance(batch.observation, dict) else {"": batch.observation}
    parts = (each[batch.mask] for each in (*seen.values(), batch.action))
    columns = [part.double().reshape(len(part), -1) for part in parts]
    key = torch.zeros_like(batch.mask, dtype=torch.int64)
    key[batch.mask] = torch.unique(torch.cat(columns, 1), dim=0, return_inverse=True)[1]
    return key
