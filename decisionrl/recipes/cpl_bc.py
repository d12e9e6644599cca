"""Contrastive preference learning with behavior cloning (arXiv 2310.13639, appendix B)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.objectives.preference_methods import build
from decisionrl.recipes.control import own_options
from decisionrl.recipes.offline import PreferenceOptions, Preferences
from decisionrl.recipes.offline_presets import tuned_offline

METADATA = {
    "title": "Contrastive preference learning with behavior cloning",
    "arxiv": "2310.13639",
    "changes": "CPL without its bias; a behavior-cloning term keeps the policy near the data instead",
    "limit": "beta = 0: cpl with bias = 1",
    "kinds": "recorded segments with preferences",
}


@tuned_offline
def cpl_bc(
    *,
    alpha: float = 0.1,
    beta: float = 1.0,
    gamma: float = 1.0,
    cloning_steps: int = 200_000,
    warmup: int = 10_000,
    **common: Unpack[PreferenceOptions],
) -> Experiment:
    """As :func:`~decisionrl.recipes.cpl.cpl` with bias 1, and ``beta`` times the mean of -log pi over all steps."""
    options = own_options(locals())
    offline = Preferences(**common)
    policy = offline.policy()
    objective = build("cpl_bc", alpha=alpha, beta=beta, gamma=gamma)
    learner = offline.learner(policy, objective, warmup=warmup)
    return offline.experiment(
        "cpl_bc",
        learner=offline.pretrained(learner, updates=cloning_steps),
        draw=offline.draw,
        metadata=METADATA,
        options=options,
    )
