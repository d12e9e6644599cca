"""Variance-aware distributionally robust pessimistic value iteration (arXiv 2403.09621, Algorithm 3)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.recipes.control import own_options
from decisionrl.recipes.linear_mdp import LinearOptions, LinearWorld
from decisionrl.robust.ambiguity import Divergence
from decisionrl.robust.learners import VarianceWeights
from decisionrl.robust.planning import BonusKind, Greedy, Ties

METADATA = {
    "title": "Variance-aware distributionally robust pessimistic value iteration",
    "arxiv": "2403.09621",
    "changes": "DRPVI with every step weighted by the inverse of the estimated variance of the next value",
    "limit": "variances of at most 1: DRPVI with the ridge weight of the weighted regression",
    "kinds": "linear MDPs",
}


def va_drpvi(
    *,
    divergence: Divergence = "tv",
    ridge: float = 0.1,
    weighted_ridge: float | None = None,
    beta: float = 1.0,
    bonus: BonusKind = "d1",
    ties: Ties = "uniform",
    part: int | None = None,
    **common: Unpack[LinearOptions],
) -> Experiment:
    """Plans twice on the same data, first for the variances.

    ridge: of the first plan. weighted_ridge: of the second; None is the paper's 1 / H^2. The other arguments are those
    of ``drpvi``.
    """
    options = own_options(locals())
    world = LinearWorld(**common)
    if weighted_ridge is None:
        weighted_ridge = 1 / world.built.mdp.horizon**2
    return world.offline(
        "va_drpvi",
        part=part,
        ridge=ridge,
        bonus=bonus,
        beta=beta,
        ambiguity=world.ball(divergence),
        improvement=Greedy(ties=ties),
        variance=VarianceWeights(ridge=weighted_ridge),
        metadata=METADATA,
        options=options,
    )
