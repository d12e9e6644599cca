"""Curvature-aware policy optimization (arXiv 2510.00819)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.objectives.curvature import CurvatureMask
from decisionrl.objectives.surrogates import Clip
from decisionrl.recipes.bases import BasedControl, BasedOptions
from decisionrl.recipes.control import own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Curvature-aware policy optimization",
    "arxiv": "2510.00819",
    "changes": "steps whose own update would move the objective or the policy too far are left out",
    "limit": "delta_fisher = delta_hessian = infinity: the base, GRPO or PPO",
    "kinds": "any environment; with groups, one that can be started from a seed",
}


@tuned
def capo(
    *,
    delta_fisher: float = 0.01,
    delta_hessian: float = 0.3,
    clip: float = 0.2,
    **common: Unpack[BasedOptions],
) -> Experiment:
    """GRPO, or PPO, on the steps that a second-order model of the last layer predicts to be harmless.

    delta_fisher, delta_hessian: bounds on the predicted change of the policy and of the objective by the step's own
    update at the optimizer's present learning rate. The paper's 1e-4 and 0.01 belong to learning rates of 1.5e-5; the
    first prediction grows with the square of the rate, the second in proportion to it. The step is that of plain
    gradient ascent, whatever the optimizer; ``AdamDirection`` in ``CurvatureMask`` predicts Adam's, at the price of its
    memory.
    What the base is: see ``BasedControl``.
    """
    options = own_options(locals())
    control = BasedControl(**common)
    base = control.based()
    optimizer = control.optimizer(base.policy)
    harmless = CurvatureMask(
        delta_fisher=delta_fisher,
        delta_hessian=delta_hessian,
        learning_rate=lambda: optimizer.param_groups[0]["lr"],
    )
    return control.experiment_on(
        base,
        "capo",
        objective=base.objective(Clip(low=clip, high=clip), filters=(harmless,)),
        optimizer=optimizer,
        metadata=METADATA,
        options=options,
    )
