"""Curvature-aware policy optimization (arXiv 2510.00819)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.objectives.curvature import CurvatureMask
from decisionrl.objectives.surrogates import Clip
from decisionrl.recipes.bases import BaseName
from decisionrl.recipes.bases import base as make_base
from decisionrl.recipes.control import Control, ControlOptions, own_options
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
    base: BaseName = "group",
    groups: int = 8,
    group_size: int = 8,
    horizon: int = 256,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    delta_fisher: float = 0.01,
    delta_hessian: float = 0.3,
    clip: float = 0.2,
    epochs: int = 4,
    minibatch: int | None = None,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """GRPO, or PPO, on the steps that a second-order model of the last layer predicts to be harmless.

    delta_fisher, delta_hessian: bounds on the predicted change of the policy and of the objective by the step's own
    update at the optimizer's present learning rate. The paper's 1e-4 and 0.01 belong to learning rates of 1.5e-5; the
    first prediction grows with the square of the rate, the second in proportion to it.
    base: "group" compares ``group_size`` episodes from each of ``groups`` starts, as GRPO does; "critic" has windows of
    ``horizon`` steps and generalized advantage estimation, as PPO does. minibatch: episodes in one, or single steps
    with a critic; None: all.
    """
    options = own_options(locals())
    control = Control(**common)
    parts = make_base(
        control,
        base,
        groups=groups,
        group_size=group_size,
        horizon=horizon,
        gamma=gamma,
        gae_lambda=gae_lambda,
    )
    optimizer = control.optimizer(parts.policy)
    harmless = CurvatureMask(
        delta_fisher=delta_fisher,
        delta_hessian=delta_hessian,
        learning_rate=lambda: optimizer.param_groups[0]["lr"],
    )
    return control.experiment(
        "capo",
        policy=parts.policy,
        source=parts.source,
        objective=parts.objective(Clip(low=clip, high=clip), filters=(harmless,)),
        optimizer=optimizer,
        epochs=epochs,
        minibatch=minibatch,
        unit=parts.unit,
        metadata=METADATA,
        options=options,
    )
