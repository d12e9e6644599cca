"""ReMax: REINFORCE with the return of the greedy episode as its baseline (arXiv 2310.10505)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import seq_mean_token_sum
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.surrogates import Reinforce
from decisionrl.pipeline.advantages import GreedyBaseline
from decisionrl.pipeline.curricula import FreshStarts
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "ReMax",
    "arxiv": "2310.10505",
    "changes": "the baseline is the return of the deterministic actions from the same start",
    "limit": "a greedy return of 0: REINFORCE without a baseline",
    "kinds": "any environment that can be started from a seed",
}


@tuned
def remax(
    *,
    episodes: int = 32,
    entropy_coefficient: float = 0.0,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """One step on the mean over ``episodes`` episodes of ``sum_t -A_t log pi(a_t | s_t)``.

    Each episode has a start of its own. A_t is the return from t on, less the return of a greedy episode from the same
    start. The steps of those episodes count, too. A language model's reward comes at the end, so that there A is the
    same at all steps.
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
            pipeline=[GreedyBaseline()],
            seed=control.seed,
        ),
        objective=PolicyGradient(
            surrogate=Reinforce(), aggregate=seq_mean_token_sum, entropy_coefficient=entropy_coefficient
        ),
        epochs=1,
        minibatch=None,
        unit="sequence",
        metadata=METADATA,
        options=options,
    )
