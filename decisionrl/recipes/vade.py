"""Variance-aware dynamic sampling (arXiv 2511.18902)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import seq_mean_token_mean
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.surrogates import Clip
from decisionrl.pipeline.curricula import VADE
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Variance-aware dynamic sampling",
    "arxiv": "2511.18902",
    "changes": "GRPO on the starts that are hard but not hopeless, by a belief about the success rate of each",
    "limit": "groups = num_starts: GRPO on all starts",
    "kinds": "an environment that can be started from a seed, with a return from which an episode succeeds",
}


@tuned
def vade(
    *,
    num_starts: int | None = None,
    groups: int = 8,
    group_size: int = 8,
    success: float | None = None,
    lambda1: float = 0.2,
    lambda2: float = 0.999,
    gain: str = "p(1-p)^2",
    clip: float = 0.2,
    epochs: int = 4,
    minibatch: int | None = None,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """GRPO whose starts are drawn by what is to be learned from them.

    num_starts: ``groups`` of them are in a batch; by default all, or 64 of an endless number. success: the return from
    which an episode succeeds, by default the environment's reward threshold; only the choice of starts looks at it,
    advantages are of returns. lambda1, lambda2: what is remembered of a start that was played, and of the others.
    gain: see ``curricula.VADE``. minibatch: episodes in one.
    """
    options = own_options(locals())
    control = Control(**common)
    options["num_starts"] = control.starts(num_starts)
    policy = control.policy(critic=False)
    return control.experiment(
        "vade",
        policy=policy,
        source=EpisodeSource(
            control.world,
            policy,
            starts=VADE(
                num_starts=options["num_starts"],
                groups=groups,
                group_size=group_size,
                lambda1=lambda1,
                lambda2=lambda2,
                gain=gain,
            ),
            score=control.success_score(success),
            pipeline=[GroupNormalized()],
            seed=control.seed,
        ),
        objective=PolicyGradient(
            surrogate=Clip(low=clip, high=clip),
            aggregate=seq_mean_token_mean,
            entropy_coefficient=control.entropy_coefficient,
        ),
        epochs=epochs,
        minibatch=minibatch,
        unit="sequence",
        metadata=METADATA,
        options=options,
    )
