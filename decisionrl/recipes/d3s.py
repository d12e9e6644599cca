"""Dynamic dual-level down-sampling (arXiv 2509.22115)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.trajectories import Trajectories
from decisionrl.experiment import Experiment
from decisionrl.objectives.step_filters import Kept
from decisionrl.objectives.surrogates import Clip
from decisionrl.pipeline.filters import DownSample
from decisionrl.recipes.bases import BasedControl, BasedOptions
from decisionrl.recipes.control import own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Dynamic dual-level down-sampling",
    "arxiv": "2509.22115",
    "changes": "learns from the episodes whose advantages vary most, and of those from the steps of largest abs(A) H",
    "limit": "all shares 1: the base, GRPO or PPO (with advantages normalized over the batch)",
    "kinds": "discrete actions; any with all steps kept",
}


@tuned
def d3s(
    *,
    group_rows_first: float = 0.5,
    group_rows_last: float = 1.0,
    rows_first: float = 0.25,
    rows_last: float = 1.0,
    steps_first: float = 0.2,
    steps_last: float = 1.0,
    clip: float = 0.2,
    **common: Unpack[BasedOptions],
) -> Experiment:
    """GRPO, or PPO, on a part of the batch that grows linearly over the training.

    group_rows_first, group_rows_last: the share of a group's episodes that is kept, at first and at the end. rows_...:
    the share of the batch's episodes that is kept of those; with a critic, of its single steps. steps_...: the share
    of their steps. The paper does not state its numbers. Steps are ranked by |A| times the entropy, which must not be
    negative and so must be that of discrete actions.
    What the base is: see ``BasedControl``.

    Raises:
        ValueError: continuous actions, unless both shares of steps are 1; a critic and a recurrent policy, whose steps
            cannot be taken out of their sequence.
    """
    options = own_options(locals())
    control = BasedControl(**common)
    if min(steps_first, steps_last) < 1:
        control.require_probabilities("D3S with less than all steps, ranked by their entropy,")
    if control.base == "critic" and control.remembers:
        raise ValueError("recurrent = True with base = 'critic', which chooses single steps; valid: base = 'group'")
    down_sample = DownSample(
        group_rows=(group_rows_first, group_rows_last), rows=(rows_first, rows_last), steps=(steps_first, steps_last)
    )
    base = control.based(
        then=[down_sample] if control.base == "group" else [Trajectories.flat, down_sample],
        normalize="batch",  # before the choice, which would mean nothing to advantages that are centered anew
    )
    return control.experiment_on(
        base,
        "d3s",
        objective=base.objective(Clip(low=clip, high=clip), filters=(Kept(),)),
        metadata=METADATA,
        options=options,
        on_progress=(down_sample.set_progress,),
    )
