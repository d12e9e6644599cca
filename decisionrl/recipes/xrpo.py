"""XRPO: exploring where returns are uncertain, exploiting unlikely successes (arXiv 2510.06672)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.episodes import EpisodeSource
from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import seq_mean_token_mean
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.surrogates import Clip
from decisionrl.pipeline.curricula import XRPO
from decisionrl.pipeline.group_advantages import GroupNormalized
from decisionrl.pipeline.shaped_advantages import Sharpened
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "XRPO",
    "arxiv": "2510.06672",
    "changes": "GRPO with more episodes from uncertain starts, and a bonus for unlikely successes",
    "limit": "kappa = 0 and budget = groups x base_size: GRPO",
    "kinds": "an environment that can be started from a seed, with a return from which an episode succeeds",
}


@tuned
def xrpo(
    *,
    num_starts: int | None = None,
    groups: int = 8,
    budget: int = 64,
    base_size: int = 4,
    phases: int = 3,
    ucb_lambda: float = 0.1,
    success: float | None = None,
    novelty: float = 2.5,
    kappa: float = 0.5,
    shown: int = 2,
    shown_in_loss: bool = True,
    clip: float = 0.2,
    epochs: int = 4,
    minibatch: int | None = None,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """GRPO with groups of unequal size.

    num_starts: ``groups`` of them are in a batch, each with ``base_size`` episodes at first; by default all, or 64 of
    an endless number. What is left of the ``budget`` of episodes goes, in further ``phases``, where the mean return is
    least certain. success: the return above which an episode is a success, by default the environment's reward
    threshold. novelty, kappa: the bonus of unlikely successes, see ``Sharpened``. shown: solved examples in front of
    prompts that have only failed, 0 for none; for which control has no counterpart. shown_in_loss: the loss is of
    responses to prompts with their examples; if not, to the prompts alone. minibatch: episodes in one.
    """
    options = own_options(locals())
    control = Control(**common)
    options["num_starts"] = control.starts(num_starts)
    policy = control.policy(critic=False)
    return control.experiment(
        "xrpo",
        policy=policy,
        source=EpisodeSource(
            control.world,
            policy,
            starts=XRPO(
                num_starts=options["num_starts"],
                groups=groups,
                budget=budget,
                base=base_size,
                phases=phases,
                ucb_lambda=ucb_lambda,
            ),
            pipeline=[
                GroupNormalized(),
                Sharpened(novelty=novelty, kappa=kappa, threshold=control.success(success)),
                *control.solved_examples(shown=shown, success=control.success(success), in_loss=shown_in_loss),
            ],
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
