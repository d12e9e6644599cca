"""Algorithm distillation (arXiv 2210.14215), on filtered learning histories if asked for (2505.15143)."""

from __future__ import annotations

from functools import partial
from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.objectives.in_context import Positions, action_nll, check_options
from decisionrl.recipes.control import own_options
from decisionrl.recipes.in_context import Histories, InContextOptions, tuned_on_histories

METADATA = {
    "title": "Algorithm distillation",
    "arxiv": "2210.14215",
    "changes": "a transformer imitates learners over several of their episodes, and so learns new tasks in its context",
    "limit": "filter = none: the original; histories of one optimal policy: behavior cloning",
    "kinds": "learning histories",
}


@tuned_on_histories
def ad(*, positions: Positions = "all", **common: Unpack[InContextOptions]) -> Experiment:
    """-log pi(a_t | C_{t-1}, s_t) at every step of windows of learning histories.

    positions: "last" trains the last step of a window only, as DICP's release does.
    """
    options = own_options(locals())
    check_options(positions=positions)
    histories = Histories(**common)
    return histories.experiment(
        "ad",
        learner=histories.learner(histories.policy(), partial(action_nll, positions=positions)),
        windows=histories.windows(),
        metadata=METADATA,
        options=options,
    )
