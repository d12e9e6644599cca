"""Soft adaptive policy optimization (arXiv 2511.20347)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.objectives.surrogates import SoftGate
from decisionrl.recipes.bases import BaseName
from decisionrl.recipes.bases import base as make_base
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Soft adaptive policy optimization",
    "arxiv": "2511.20347",
    "changes": "a smooth gate in place of the clip: steps fade with the distance of their ratio from 1",
    "limit": "an update before the policy has moved: the policy gradient; tau to 0: the ratio without a clip",
    "kinds": "any environment; with groups, one that can be started from a seed",
}


@tuned
def sapo(
    *,
    base: BaseName = "group",
    groups: int = 8,
    group_size: int = 8,
    horizon: int = 256,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
    entropy_coefficient: float = 0.0,
    epochs: int = 4,
    minibatch: int | None = None,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """GRPO, or PPO, with the loss ``-(4 / tau) sigmoid(tau (r - 1)) A``.

    tau_positive, tau_negative: how fast steps with A > 0, and the others, fade. The paper's 1 leaves a ratio of 2 four
    fifths of its weight: enough of a bound for GRPO's groups, but CartPole with a critic and 8 epochs took about 20.
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
    return control.experiment(
        "sapo",
        policy=parts.policy,
        source=parts.source,
        objective=parts.objective(
            SoftGate(tau_positive=tau_positive, tau_negative=tau_negative), entropy_coefficient=entropy_coefficient
        ),
        epochs=epochs,
        minibatch=minibatch,
        unit=parts.unit,
        metadata=METADATA,
        options=options,
    )
