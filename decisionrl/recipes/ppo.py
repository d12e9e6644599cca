"""Proximal policy optimization (arXiv 1707.06347)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.objectives.policy_gradient import PolicyGradient
from decisionrl.objectives.regularizers import ValueLoss
from decisionrl.objectives.surrogates import Clip
from decisionrl.pipeline.advantages import GAE
from decisionrl.pipeline.normalization import NormalizeReward
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Proximal policy optimization",
    "arxiv": "1707.06347",
    "changes": "several epochs on each window of experience, with the probability ratio clipped",
    "limit": "one epoch in one minibatch: the policy gradient with generalized advantage estimation (A2C)",
    "kinds": "any environment",
}


@tuned
def ppo(
    *,
    horizon: int = 2048,
    epochs: int = 10,
    minibatch: int = 64,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    clip: float = 0.2,
    value_coefficient: float = 0.5,
    value_clip: float | None = None,
    normalize_rewards: bool = False,
    target_kl: float | None = None,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """PPO with generalized advantage estimation; defaults are those of Stable-Baselines3 and, where the environment
    has one, its preset (``recipes/presets.py``).

    horizon: steps of each copy in a window. minibatch: steps in one. Others as in the parts they are given to.
    """
    options = own_options(locals())
    control = Control(**common)
    policy = control.policy(critic=True)
    unit, size = control.unit(minibatch, horizon)
    shaping = [NormalizeReward(gamma=gamma)] if normalize_rewards else []
    return control.experiment(
        "ppo",
        policy=policy,
        source=control.stream(policy, horizon=horizon, pipeline=[*shaping, GAE(gamma=gamma, lam=gae_lambda)]),
        objective=PolicyGradient(
            surrogate=Clip(low=clip, high=clip),
            value_loss=ValueLoss(coefficient=value_coefficient, clip=value_clip),
            entropy_coefficient=control.entropy_coefficient,
            normalize_advantage=True,
        ),
        epochs=epochs,
        minibatch=size,
        unit=unit,
        target_kl=target_kl,
        metadata=METADATA,
        options=options,
    )
