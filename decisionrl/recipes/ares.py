"""ARES: entropy reward and KL budget by the difficulty of a start (arXiv 2510.08457)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import token_mean
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.regularizers import KLPenalty
from decisionrl.objectives.surrogates import Clip
from decisionrl.pipeline import PipelineStep
from decisionrl.pipeline.curricula import FreshStarts
from decisionrl.pipeline.entropy_windows import Difficulty, EntropyReward, HighEntropyWindows, KLController
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.pipeline.rewards import ReferenceLogProb, ScaleReward
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "ARES",
    "arxiv": "2510.08457",
    "changes": "failed episodes pay for hesitation where the task is easy and for haste where it is hard",
    "limit": "before the first drift of the entropy counts, or with no failed episode: GRPO with a mean over steps",
    "kinds": "an environment that can be started from a seed, with a return from which an episode succeeds",
}


@tuned
def ares(
    *,
    groups: int = 8,
    group_size: int = 8,
    success: float | None = None,
    window: int = 4,
    quantile: float = 0.95,
    target_decay: float = 0.9,
    reward_scale: float = 1.0,
    kl_coefficient: float = 0.0,
    kl_target: float = 0.01,
    kl_in_windows: float = 0.5,
    clip_low: float = 0.2,
    clip_high: float = 0.3,
    dual_clip: float | None = 3.0,
    epochs: int = 4,
    minibatch: int | None = None,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """GRPO whose rewards and KL penalty look at windows of high entropy and at the difficulty of the start.

    success: the return above which an episode is a success, by default the environment's reward threshold; the rate of
    successes in a group is its difficulty. window, quantile: a window of as many steps is one of high entropy from
    this quantile on. target_decay: of the average number of windows that an episode is measured by. reward_scale:
    brings returns to the unit of the penalty (the paper's are 0 or 1). kl_coefficient: of the penalty for leaving the
    initial policy, 0.01 in the release; 0 leaves it out, for an untrained network is nothing to stay near to.
    kl_target, kl_in_windows: see ``KLController``. clip_low, clip_high, dual_clip: see ``Clip``; those of the release,
    which also drops groups whose mean reward is below 0.01 or above 0.99. Here such groups stay: their episodes differ
    by what they are charged for windows. minibatch: episodes in one.
    """
    options = own_options(locals())
    control = Control(**common)
    control.require_entropy("ARES")
    policy = control.policy(critic=False)
    budget: list[PipelineStep] = []
    if kl_coefficient:
        budget = [ReferenceLogProb(policy), KLController(rho=kl_in_windows, target=kl_target)]
    return control.experiment(
        "ares",
        policy=policy,
        source=EpisodeSource(
            control.world,
            policy,
            starts=FreshStarts(groups=groups, group_size=group_size),
            pipeline=[
                Difficulty(success=control.success(success)),
                ScaleReward(factor=reward_scale),
                HighEntropyWindows(width=window, quantile=quantile),
                EntropyReward(decay=target_decay),
                *budget,
                GroupNormalized(),
            ],
            seed=control.seed,
        ),
        objective=PolicyGradient(
            surrogate=Clip(low=clip_low, high=clip_high, dual=dual_clip),
            aggregate=token_mean,
            kl=KLPenalty(coefficient=kl_coefficient, weighted=True) if kl_coefficient else None,
            entropy_coefficient=control.entropy_coefficient,
        ),
        epochs=epochs,
        minibatch=minibatch,
        unit="sequence",
        metadata=METADATA,
        options=options,
    )
