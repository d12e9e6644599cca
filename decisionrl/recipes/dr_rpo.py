"""Distributionally robust policy optimization with a reference policy (arXiv 2510.14246)."""

from __future__ import annotations

import math
from typing import Literal, Unpack, get_args

import torch

from decisionrl.experiment import Experiment
from decisionrl.recipes.control import own_options
from decisionrl.recipes.linear_mdp import LinearOptions, LinearWorld
from decisionrl.robust.ambiguity import Ambiguity, Divergence, Penalty
from decisionrl.robust.planning import BonusKind, Greedy, Improvement, Order, Proximal, Ties
from decisionrl.robust.reference import Reference

METADATA = {
    "title": "Distributionally robust regularized policy optimization",
    "arxiv": "2510.14246",
    "changes": "policies are softmax, held near a reference policy, against the worst case of the transitions",
    "limit": "eta and alpha infinite: DR-LSVI-UCB",
    "kinds": "linear MDPs",
}

Transitions = Literal["constrained", "regularized"]


def dr_rpo(
    *,
    eta: float | None = 20.0,
    alpha: float | None = None,
    reference: list[float] | None = None,
    order: Order = "evaluate_new",
    transitions: Transitions = "constrained",
    divergence: Divergence = "tv",
    weight: float = 1.0,
    ridge: float = 0.1,
    beta: float = 1.0,
    bonus: BonusKind = "d2",
    ties: Ties = "uniform",
    rare_switching: bool = False,
    **common: Unpack[LinearOptions],
) -> Experiment:
    """Online policy optimization with optimistic, robust action values.

    eta: strength of the values against KL(pi || reference) / eta; None is infinite, no regularization. alpha: mirror
    descent step, for KL(pi || last pi) / alpha; None is infinite, the best policy at once (soft value iteration).
    reference: probabilities of the actions in every state; None is uniform. order: V is that of the new policy or of
    the old one. transitions: "constrained" to the ball of ``radius``, or "regularized" with ``weight`` on the
    divergence. ridge, beta, bonus, ties (where neither eta nor alpha is finite), rare_switching: as in ``dr_lsvi_ucb``.

    The paper's step sizes and constants are not fixed here by its text; these defaults are ours.
    """
    options = own_options(locals())
    world = LinearWorld(**common)
    if transitions not in get_args(Transitions):
        raise ValueError(f"transitions = {transitions!r}; valid: {', '.join(get_args(Transitions))}")
    ambiguity: Ambiguity
    if transitions == "constrained":
        ambiguity = world.ball(divergence, unseen="cap")
    else:
        ambiguity = Penalty(weight=weight, divergence=divergence, unseen="cap")
    actions = world.built.mdp.num_actions
    if reference is not None and len(reference) != actions:
        raise ValueError(f"reference = {reference}; valid: a probability for each of the {actions} actions")
    regularizer = Reference(
        eta=math.inf if eta is None else eta,
        policy=None if reference is None else torch.tensor(reference, dtype=torch.float64, device=world.device),
    )
    improvement: Improvement
    if eta is None and alpha is None:
        improvement = Greedy(ties=ties)
    else:
        improvement = Proximal(reference=regularizer, alpha=math.inf if alpha is None else alpha, order=order)
    return world.online(
        "dr_rpo",
        ridge=ridge,
        bonus=bonus,
        beta=beta,
        ambiguity=ambiguity,
        improvement=improvement,
        rare_switching=rare_switching,
        reference=regularizer,
        metadata=METADATA,
        options=options,
    )
