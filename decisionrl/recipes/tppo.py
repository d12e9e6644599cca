"""Truncated proximal policy optimization (arXiv 2506.15050)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.regularizers import ValueLoss
from decisionrl.objectives.step_filters import Kept
from decisionrl.objectives.surrogates import Clip
from decisionrl.pipeline.advantages import GAE, TruncatedGAE
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Truncated proximal policy optimization",
    "arxiv": "2506.15050",
    "changes": "the policy learns from short windows at once, the value function from finished episodes only",
    "limit": "windows as long as the episodes: PPO with generalized advantages and Monte-Carlo value targets",
    "kinds": "any environment with episodes that end",
}


@tuned
def tppo(
    *,
    horizon: int = 64,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    clip: float = 0.2,
    value_coefficient: float = 0.5,
    epochs: int = 4,
    minibatch: int | None = 256,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """PPO on windows that are shorter than the episodes, which go on in the next one.

    The policy learns from the window's steps, with ``V(s_l) = V(s_(l-1))`` assumed for the state behind its end; the
    value function from the Monte-Carlo returns of the episodes that ended in the window. horizon: steps of each copy in
    a window (the paper: 8k of 24k tokens); many, as the last step of a window that ends within an episode has no
    advantage of its own. gamma: the paper has 1. minibatch: steps in one, or sequences if the policy remembers.
    """
    options = own_options(locals())
    control = Control(**common)
    policy = control.policy(critic=True)
    return control.experiment(
        "tppo",
        policy=policy,
        source=control.windows(
            policy,
            horizon=horizon,
            estimator=TruncatedGAE(estimator=GAE(gamma=gamma, lam=gae_lambda, whiten=True)),
            gamma=gamma,
        ),
        objective=PolicyGradient(
            surrogate=Clip(low=clip, high=clip),
            filters=(Kept(),),
            value_loss=ValueLoss(coefficient=value_coefficient, key="valued"),
            entropy_coefficient=control.entropy_coefficient,
        ),
        epochs=epochs,
        minibatch=minibatch,
        unit="sequence" if control.remembers else "step",
        metadata=METADATA,
        options=options,
    )
