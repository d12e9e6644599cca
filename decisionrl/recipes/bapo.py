"""Balanced policy optimization with adaptive clipping (arXiv 2510.18927)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.objectives.adaptive_clipping import BalancedClip, Contribution
from decisionrl.recipes.bases import BasedControl, BasedOptions
from decisionrl.recipes.control import own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Balanced policy optimization with adaptive clipping",
    "arxiv": "2510.18927",
    "changes": "the clip widens in every minibatch until good steps have their share of the loss",
    "limit": "low = (1 - eps, 1 - eps), high = (1 + eps, 1 + eps): PPO's clip",
    "kinds": "discrete actions; any with old_probability = False",
}


@tuned
def bapo(
    *,
    target: float = 0.4,
    low_start: float = 0.6,
    low_end: float = 0.9,
    high_start: float = 1.2,
    high_end: float = 3.0,
    contribution: Contribution = "value",
    old_probability: bool = True,
    **common: Unpack[BasedOptions],
) -> Experiment:
    """GRPO, or PPO, with bounds on the ratio that are found anew for every minibatch.

    target: the share of the loss that steps with A > 0 are to have. low_start, low_end: the range of the lower bound;
    high_start, high_end: of the upper one. contribution: see ``BalancedClip``. old_probability: weigh steps by pi_old,
    as in the paper; not for continuous actions.
    What the base is: see ``BasedControl``.
    """
    options = own_options(locals())
    control = BasedControl(**common)
    if old_probability:
        control.require_probabilities("BAPO with old_probability = True")
    base = control.based()
    return control.experiment_on(
        base,
        "bapo",
        objective=base.objective(
            BalancedClip(
                target=target,
                low=(low_start, low_end),
                high=(high_start, high_end),
                contribution=contribution,
                old_probability=old_probability,
            )
        ),
        metadata=METADATA,
        options=options,
    )
