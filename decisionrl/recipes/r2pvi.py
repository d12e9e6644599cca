"""Robust regularized pessimistic value iteration (arXiv 2411.18612)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.recipes.control import own_options
from decisionrl.recipes.linear_mdp import LinearOptions, LinearWorld
from decisionrl.robust.ambiguity import Divergence, Penalty
from decisionrl.robust.operators import Unseen
from decisionrl.robust.planning import BonusKind, Greedy, Ties

METADATA = {
    "title": "Robust regularized pessimistic value iteration",
    "arxiv": "2411.18612",
    "changes": "nature may choose any factor at a price for its divergence, which TV and KL solve in closed form",
    "limit": "infinite weight: PEVI with known rewards",
    "kinds": "linear MDPs",
}


def r2pvi(
    *,
    divergence: Divergence = "tv",
    weight: float = 1.0,
    unseen: Unseen = "zero",
    ridge: float = 0.1,
    beta: float = 1.0,
    bonus: BonusKind = "d2",
    ties: Ties = "uniform",
    part: int | None = None,
    **common: Unpack[LinearOptions],
) -> Experiment:
    """Rewards are known.

    divergence: "tv", "kl" or "chi2". weight: lambda of the divergence; smaller is more robust. unseen: what KL makes of
    factors without data: "zero" is pessimistic, "cap" the authors' code. The other arguments are those of ``drpvi``.
    """
    options = own_options(locals())
    return LinearWorld(**common).offline(
        "r2pvi",
        part=part,
        ridge=ridge,
        bonus=bonus,
        beta=beta,
        ambiguity=Penalty(weight=weight, divergence=divergence, unseen=unseen),
        improvement=Greedy(ties=ties),
        metadata=METADATA,
        options=options,
    )
