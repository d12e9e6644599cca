"""Decision-pretrained transformers (arXiv 2306.14892), on filtered learning histories if asked for (2505.15143)."""

from __future__ import annotations

from functools import partial
from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.objectives.in_context import Positions, action_nll, check_options
from decisionrl.recipes.control import own_options
from decisionrl.recipes.in_context import Histories, InContextOptions, tuned_on_histories

METADATA = {
    "title": "Decision-pretrained transformer",
    "arxiv": "2306.14892",
    "changes": "a transformer predicts the optimal action from what a learner saw before, which amounts to posterior "
    "sampling",
    "limit": "histories of optimal policies: algorithm distillation",
    "kinds": "learning histories of tasks whose optimal actions are known",
}


@tuned_on_histories
def dpt(*, positions: Positions = "all", **common: Unpack[InContextOptions]) -> Experiment:
    """-log pi(a*_t | C_{t-1}, s_t) at every step of windows of learning histories, a* being the optimal action.

    positions: "last" trains the last step of a window only.
    """
    options = own_options(locals())
    check_options(positions=positions)
    histories = Histories(**common)
    return histories.experiment(
        "dpt",
        learner=histories.learner(histories.policy(), partial(action_nll, target="label", positions=positions)),
        windows=histories.windows(teacher=histories.teacher),
        metadata=METADATA,
        options=options,
    )
