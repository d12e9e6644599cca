"""REINFORCE (Williams 1992), with or without a learned baseline."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import seq_mean_token_sum
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.regularizers import ValueLoss
from decisionrl.objectives.surrogates import Reinforce
from decisionrl.pipeline.advantages import MonteCarlo
from decisionrl.pipeline.curricula import FreshStarts
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "REINFORCE",
    "arxiv": None,
    "changes": "nothing: the log-likelihood of every action times the return that followed it",
    "limit": "with a baseline of V: the policy gradient with Monte-Carlo advantages (A2C at lambda = 1)",
    "kinds": "any environment with episodes",
}


@tuned
def reinforce(
    *,
    episodes: int = 16,
    gamma: float = 0.99,
    baseline: bool = True,
    value_coefficient: float = 0.5,
    normalize_advantage: bool = True,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """One step on the mean over ``episodes`` whole episodes of ``sum_t -A_t log pi(a_t | s_t)``.

    A_t is the discounted return from t on, less V(s_t) with a ``baseline``, brought to variance 1 over the batch if
    normalize_advantage (which makes the step's size independent of the rewards' unit).
    """
    options = own_options(locals())
    control = Control(**common)
    policy = control.policy(critic=baseline)
    return control.experiment(
        "reinforce",
        policy=policy,
        source=EpisodeSource(
            control.world,
            policy,
            starts=FreshStarts(groups=episodes, group_size=1),
            pipeline=[MonteCarlo(gamma=gamma, baseline=baseline)],
            seed=control.seed,
        ),
        objective=PolicyGradient(
            surrogate=Reinforce(),
            aggregate=seq_mean_token_sum,
            value_loss=ValueLoss(coefficient=value_coefficient) if baseline else None,
            entropy_coefficient=control.entropy_coefficient,
            normalize_advantage=normalize_advantage,
        ),
        epochs=1,
        minibatch=None,
        unit="sequence",
        metadata=METADATA,
        options=options,
    )
