"""Implicit Q-learning (arXiv 2110.06169)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.datasets import Windows
from decisionrl.experience.relabel import rescaled_rewards
from decisionrl.experiment import Experiment
from decisionrl.recipes.control import own_options
from decisionrl.recipes.implicit_q import implicit_q_learner
from decisionrl.recipes.offline import Offline, OfflineOptions
from decisionrl.recipes.offline_presets import tuned_offline

METADATA = {
    "title": "Implicit Q-learning",
    "arxiv": "2110.06169",
    "changes": "values of the best recorded actions by expectile regression, and cloning weighted by their advantage",
    "limit": "temperature to infinity: behavior cloning",
    "kinds": "recorded episodes with rewards",
}


@tuned_offline
def iql(
    *,
    gamma: float = 0.99,
    expectile: float = 0.7,
    temperature: float = 1 / 3,
    target_rate: float = 0.005,
    rescale_rewards: bool = True,
    **common: Unpack[OfflineOptions],
) -> Experiment:
    """IQL on single transitions, ``batch`` of them an update.

    rescale_rewards: to a range of 1000 between the returns of the worst and the best episode. Others as in
    :class:`~decisionrl.objectives.implicit_q.ImplicitQLearning`.
    """
    options = own_options(locals())
    offline = Offline(**common)
    episodes = rescaled_rewards(offline.episodes) if rescale_rewards else offline.episodes
    learner = implicit_q_learner(
        offline, gamma=gamma, expectile=expectile, temperature=temperature, target_rate=target_rate
    )
    return offline.experiment(
        "iql",
        learner=learner,
        draw=Windows(episodes=episodes, size=offline.batch, following=True),
        metadata=METADATA,
        options=options,
    )
