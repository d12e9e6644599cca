"""Contrastive preference learning relative to the cloned policy (arXiv 2310.13639, appendix B)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.objectives.preference_methods import build
from decisionrl.recipes.control import own_options
from decisionrl.recipes.offline import PreferenceOptions, Preferences, positive
from decisionrl.recipes.offline_presets import tuned_offline
from decisionrl.reference import Reference

METADATA = {
    "title": "Contrastive preference learning with a KL constraint",
    "arxiv": "2310.13639",
    "changes": "CPL of log (pi / mu), mu the policy after pre-training; a tenth of the learning rate from there",
    "limit": "bias = 1 and segments of one step from one state: DPO",
    "kinds": "recorded segments with preferences",
}


@tuned_offline
def cpl_kl(
    *,
    alpha: float = 0.1,
    bias: float = 0.75,
    gamma: float = 1.0,
    cloning_steps: int = 200_000,
    warmup: int = 10_000,
    rate_after: float = 0.1,
    **common: Unpack[PreferenceOptions],
) -> Experiment:
    """Behavior cloning to mu, then ``-log sigmoid(S+ - bias S-)`` with ``S = alpha sum_t gamma^t log (pi_t / mu_t)``.

    rate_after: times the learning rate once mu is there. alpha is 0.1 in the paper's Table 6, 0.2 in its release.
    """
    options = own_options(locals())
    positive(rate_after=rate_after)
    offline = Preferences(**common)
    policy = offline.policy()
    mu = Reference(policy)
    objective = build("cpl_kl", alpha=alpha, bias=bias, gamma=gamma, reference=mu)
    learner = offline.learner(
        policy,
        objective,
        optimizer=offline.adam(policy, learning_rate=rate_after * offline.learning_rate),
        warmup=warmup,
        components=objective.components(),
    )
    return offline.experiment(
        "cpl_kl",
        learner=offline.pretrained(learner, updates=cloning_steps, begin=mu.snapshot),
        draw=offline.draw,
        metadata=METADATA,
        options=options,
    )
