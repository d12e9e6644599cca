"""Soft adaptive policy optimization (arXiv 2511.20347)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.objectives.surrogates import SoftGate
from decisionrl.recipes.bases import BasedControl, BasedOptions
from decisionrl.recipes.control import own_options
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
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
    **common: Unpack[BasedOptions],
) -> Experiment:
    """GRPO, or PPO, with the loss ``-(4 / tau) sigmoid(tau (r - 1)) A``.

    tau_positive, tau_negative: how fast steps with A > 0, and the others, fade. The paper's 1 leaves a ratio of 2 four
    fifths of its weight: enough of a bound for GRPO's groups, but a critic with many epochs wants a larger one.
    What the base is: see ``BasedControl``.
    """
    options = own_options(locals())
    control = BasedControl(**common)
    base = control.based()
    return control.experiment_on(
        base,
        "sapo",
        objective=base.objective(SoftGate(tau_positive=tau_positive, tau_negative=tau_negative)),
        metadata=METADATA,
        options=options,
    )
