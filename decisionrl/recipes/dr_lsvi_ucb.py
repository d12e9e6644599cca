"""Distributionally robust optimistic least-squares value iteration (arXiv 2402.15399)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.recipes.control import own_options
from decisionrl.recipes.linear_mdp import LinearOptions, LinearWorld
from decisionrl.robust.ambiguity import Divergence
from decisionrl.robust.planning import BonusKind, Greedy, Ties

METADATA = {
    "title": "Distributionally robust least-squares value iteration with upper confidence bounds",
    "arxiv": "2402.15399",
    "changes": "the worst next value over a ball around each factor, by its dual, in place of the mean",
    "limit": "radius 0: LSVI-UCB with known rewards",
    "kinds": "linear MDPs",
}


def dr_lsvi_ucb(
    *,
    divergence: Divergence = "tv",
    ridge: float = 0.1,
    beta: float = 1.0,
    bonus: BonusKind = "d2",
    ties: Ties = "uniform",
    rare_switching: bool = False,
    **common: Unpack[LinearOptions],
) -> Experiment:
    """``radius`` is that of the ball; rewards are known.

    divergence: "tv", "kl" or "chi2". ridge, beta, bonus, ties: as in ``lsvi_ucb``; the paper's bonus is "d1", its
    code's "d2". rare_switching: plan again only when a determinant has doubled (arXiv 2409.20521).
    """
    options = own_options(locals())
    world = LinearWorld(**common)
    return world.online(
        "dr_lsvi_ucb",
        ridge=ridge,
        bonus=bonus,
        beta=beta,
        ambiguity=world.ball(divergence, unseen="cap"),
        improvement=Greedy(ties=ties),
        rare_switching=rare_switching,
        metadata=METADATA,
        options=options,
    )
