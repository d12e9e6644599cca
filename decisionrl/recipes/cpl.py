"""Contrastive preference learning (arXiv 2310.13639)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.objectives.preference_methods import build
from decisionrl.recipes.control import own_options
from decisionrl.recipes.offline import PreferenceOptions, Preferences
from decisionrl.recipes.offline_presets import tuned_offline

METADATA = {
    "title": "Contrastive preference learning",
    "arxiv": "2310.13639",
    "changes": "preferences compare advantages alpha log pi, so that a policy is learned from them without a reward",
    "limit": "bias to 0: weighted behavior cloning of the preferred segments",
    "kinds": "recorded segments with preferences",
}


@tuned_offline
def cpl(
    *,
    alpha: float = 0.1,
    bias: float = 0.5,
    gamma: float = 1.0,
    cloning_steps: int = 200_000,
    warmup: int = 10_000,
    **common: Unpack[PreferenceOptions],
) -> Experiment:
    """Behavior cloning of all segments, then ``-log sigmoid(S+ - bias S-)`` with ``S = alpha sum_t gamma^t log pi_t``.

    cloning_steps: updates of pre-training, which count among the steps. warmup: updates over which the learning rate
    of what follows rises. Defaults are the paper's (Tables 5 and 6).
    """
    options = own_options(locals())
    offline = Preferences(**common)
    policy = offline.policy()
    objective = build("cpl", alpha=alpha, bias=bias, gamma=gamma)
    learner = offline.learner(policy, objective, warmup=warmup)
    return offline.experiment(
        "cpl",
        learner=offline.pretrained(learner, updates=cloning_steps),
        draw=offline.draw,
        metadata=METADATA,
        options=options,
    )
