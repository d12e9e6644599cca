"""Pessimistic value iteration (arXiv 2012.15085)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.recipes.control import own_options
from decisionrl.recipes.linear_mdp import LinearOptions, LinearWorld
from decisionrl.robust.planning import BonusKind, Greedy, Ties

METADATA = {
    "title": "Pessimistic value iteration",
    "arxiv": "2012.15085",
    "changes": "least-squares value iteration on a dataset, minus what is uncertain",
    "limit": "beta = 0: least-squares value iteration",
    "kinds": "linear MDPs",
}


def pevi(
    *,
    ridge: float = 0.1,
    beta: float = 1.0,
    bonus: BonusKind = "full",
    known_rewards: bool = False,
    ties: Ties = "uniform",
    part: int | None = None,
    **common: Unpack[LinearOptions],
) -> Experiment:
    """The nominal offline method; ``steps`` episodes of the instance's behavior policy are the dataset.

    part: episodes in one update, after which there is a policy of the data so far; None is the whole dataset. The other
    arguments are those of ``lsvi_ucb``.
    """
    options = own_options(locals())
    return LinearWorld(**common).offline(
        "pevi",
        part=part,
        ridge=ridge,
        bonus=bonus,
        beta=beta,
        ambiguity=None,
        improvement=Greedy(ties=ties),
        learn_rewards=not known_rewards,
        metadata=METADATA,
        options=options,
    )
