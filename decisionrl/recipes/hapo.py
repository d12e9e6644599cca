"""Heterogeneous adaptive policy optimization (arXiv 2509.16591)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.objectives.aggregation import token_mean
from decisionrl.objectives.heterogeneous import HeterogeneousClip
from decisionrl.pipeline.group_advantages import TokenGroupAverage
from decisionrl.recipes.bases import BasedControl, BasedOptions
from decisionrl.recipes.control import own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Heterogeneous adaptive policy optimization",
    "arxiv": "2509.16591",
    "changes": "clip and advantage follow the entropy of each step; long episodes count with all their steps",
    "limit": "alpha = beta = 0 and episodes of equal length: GRPO with advantages sqrt(G / (G - 1)) times as large",
    "kinds": "discrete actions; with groups, an environment that can be started from a seed",
}


@tuned
def hapo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    alpha: float = 1.0,
    beta: float = 1.0,
    rho: float = 0.8,
    tau: float = 0.1,
    **common: Unpack[BasedOptions],
) -> Experiment:
    """GRPO, or PPO, that treats a step by the policy's entropy there.

    alpha, beta: how far the clip and the advantage follow it; rho: the quantile of log-entropies that divides
    uncertain steps from confident ones. tau: how far the temperature of a token follows it in sampling; in control all
    actions are sampled at 1. log H needs H > 0, which an entropy of continuous actions need not be. With
    base = "critic" the advantages are PPO's.
    What the base is: see ``BasedControl``.
    """
    options = own_options(locals())
    control = BasedControl(**common)
    control.require_probabilities("HAPO, which takes the logarithm of the entropy,")
    base = control.based(
        aggregate=token_mean,
        advantage=TokenGroupAverage(),
        then=control.entropy_temperature(tau=tau, rho=rho),
    )
    return control.experiment_on(
        base,
        "hapo",
        objective=base.objective(HeterogeneousClip(low=clip_low, high=clip_high, alpha=alpha, beta=beta, rho=rho)),
        metadata=METADATA,
        options=options,
    )
