"""Optimistic least-squares value iteration (arXiv 1907.05388)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.recipes.control import own_options
from decisionrl.recipes.linear_mdp import LinearOptions, LinearWorld
from decisionrl.robust.planning import BonusKind, Greedy, Ties

METADATA = {
    "title": "Least-squares value iteration with upper confidence bounds",
    "arxiv": "1907.05388",
    "changes": "rewards and next values by ridge regression on features, plus a bonus for what is uncertain",
    "limit": "beta = 0: greedy on the estimates",
    "kinds": "linear MDPs",
}


def lsvi_ucb(
    *,
    ridge: float = 0.1,
    beta: float = 1.0,
    bonus: BonusKind = "full",
    known_rewards: bool = False,
    ties: Ties = "uniform",
    **common: Unpack[LinearOptions],
) -> Experiment:
    """The nominal method, and the baseline of the robust ones.

    ridge: lambda. beta: of the bonus; bonus: "full", "d1" or "d2". known_rewards: they need not be learned. ties:
    "uniform" draws among the best actions, "first" takes the first.
    """
    options = own_options(locals())
    return LinearWorld(**common).online(
        "lsvi_ucb",
        ridge=ridge,
        bonus=bonus,
        beta=beta,
        ambiguity=None,
        improvement=Greedy(ties=ties),
        learn_rewards=not known_rewards,
        metadata=METADATA,
        options=options,
    )
