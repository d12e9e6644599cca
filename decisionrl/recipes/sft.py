"""Supervised fine-tuning on what was preferred: the baseline of preference methods (arXiv 2310.13639, section 4)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.composition import Phase, PhasedLearner
from decisionrl.experiment import Experiment
from decisionrl.objectives.imitation import BehaviorCloning
from decisionrl.recipes.control import own_options
from decisionrl.recipes.offline import PreferenceOptions, Preferences, at_least
from decisionrl.recipes.offline_presets import tuned_offline

METADATA = {
    "title": "Supervised fine-tuning on preferred segments",
    "arxiv": "2310.13639",
    "changes": "after behavior cloning of everything, only what was preferred is cloned",
    "limit": "every pair a tie: behavior cloning",
    "kinds": "recorded segments with preferences",
}


@tuned_offline
def sft(*, cloning_steps: int = 200_000, **common: Unpack[PreferenceOptions]) -> Experiment:
    """Behavior cloning of all segments for ``cloning_steps`` updates, then of the preferred of each pair (of both in a
    tie). One optimizer goes through both."""
    options = own_options(locals())
    at_least(0, cloning_steps=cloning_steps)
    offline = Preferences(**common)
    policy = offline.policy()
    optimizer = offline.adam(policy)
    chosen = offline.learner(policy, BehaviorCloning(which="preferred"), optimizer=optimizer)
    everything = offline.learner(policy, BehaviorCloning(), optimizer=optimizer)
    first = [Phase(learner=everything, updates=cloning_steps)] if cloning_steps else []
    return offline.experiment(
        "sft",
        learner=PhasedLearner([*first, Phase(learner=chosen)]),
        draw=offline.draw,
        metadata=METADATA,
        options=options,
    )
