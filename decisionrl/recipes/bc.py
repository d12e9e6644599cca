"""Behavior cloning, of everything or of the best episodes."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.datasets import Windows
from decisionrl.experience.relabel import top_episodes
from decisionrl.experiment import Experiment
from decisionrl.objectives.imitation import BehaviorCloning
from decisionrl.recipes.control import own_options
from decisionrl.recipes.offline import Offline, OfflineOptions
from decisionrl.recipes.offline_presets import tuned_offline

METADATA = {
    "title": "Behavior cloning",
    "arxiv": None,
    "changes": "nothing: the likelihood of recorded actions; of the best episodes with fraction < 1",
    "limit": "fraction = 1: all episodes",
    "kinds": "recorded episodes",
}


@tuned_offline
def bc(*, fraction: float = 1.0, length: int = 1, **common: Unpack[OfflineOptions]) -> Experiment:
    """``-mean log pi(a | s)``, the squared error of the action in a Box.

    fraction: of all steps, those of the episodes with the highest returns (percentile cloning, arXiv 2106.01345).
    length: steps in a window; ``batch`` windows are an update.
    """
    options = own_options(locals())
    offline = Offline(**common)
    policy = offline.policy()
    episodes = offline.episodes if fraction == 1 else top_episodes(offline.episodes, fraction)
    return offline.experiment(
        "bc",
        learner=offline.learner(policy, BehaviorCloning()),
        draw=Windows(episodes=episodes, size=offline.batch, length=length),
        metadata=METADATA,
        options=options,
    )
