"""Distributionally robust pessimistic value iteration (arXiv 2403.09621; with KL, 2209.06620)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.recipes.control import own_options
from decisionrl.recipes.linear_mdp import LinearOptions, LinearWorld
from decisionrl.robust.ambiguity import Divergence
from decisionrl.robust.planning import BonusKind, Greedy, Ties

METADATA = {
    "title": "Distributionally robust pessimistic value iteration",
    "arxiv": "2403.09621",
    "changes": "the worst next value over a ball around each factor, minus what is uncertain; DRVI-L with a KL ball",
    "limit": "radius 0: PEVI with known rewards",
    "kinds": "linear MDPs",
}


def drpvi(
    *,
    divergence: Divergence = "tv",
    ridge: float = 0.1,
    beta: float = 1.0,
    bonus: BonusKind = "d1",
    ties: Ties = "uniform",
    part: int | None = None,
    **common: Unpack[LinearOptions],
) -> Experiment:
    """``radius`` is that of the ball; rewards are known.

    divergence: "tv", "kl" (DRVI-L, arXiv 2209.06620) or "chi2". bonus: "d1" is the paper's, "d2" its code's. The other
    arguments are those of ``pevi``.
    """
    options = own_options(locals())
    world = LinearWorld(**common)
    return world.offline(
        "drpvi",
        part=part,
        ridge=ridge,
        bonus=bonus,
        beta=beta,
        ambiguity=world.ball(divergence),
        improvement=Greedy(ties=ties),
        metadata=METADATA,
        options=options,
    )
