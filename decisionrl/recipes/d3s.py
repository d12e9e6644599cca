"""Dynamic dual-level down-sampling (arXiv 2509.22115)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experience.trajectories import Trajectories
from decisionrl.experiment import Experiment
from decisionrl.objectives.step_filters import Kept
from decisionrl.objectives.surrogates import Clip
from decisionrl.pipeline.filters import DownSample
from decisionrl.recipes.bases import BaseName
from decisionrl.recipes.bases import base as make_base
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Dynamic dual-level down-sampling",
    "arxiv": "2509.22115",
    "changes": "learns from the episodes whose advantages vary most, and of those from the steps of largest abs(A) H",
    "limit": "all shares 1: the base, GRPO or PPO",
    "kinds": "discrete actions; any with all steps kept",
}


@tuned
def d3s(
    *,
    base: BaseName = "group",
    groups: int = 8,
    group_size: int = 8,
    horizon: int = 256,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    group_rows_first: float = 0.5,
    group_rows_last: float = 1.0,
    rows_first: float = 0.25,
    rows_last: float = 1.0,
    steps_first: float = 0.2,
    steps_last: float = 1.0,
    clip: float = 0.2,
    epochs: int = 4,
    minibatch: int | None = None,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """GRPO, or PPO, on a part of the batch that grows linearly over the training.

    group_rows_first, group_rows_last: the share of a group's episodes that is kept, at first and at the end. rows_...:
    the share of the batch's episodes that is kept of those; with a critic, of its single steps. steps_...: the share
    of their steps. The paper does not state its numbers. Steps are ranked by |A| times the entropy, which must not be
    negative and so must be that of discrete actions.
    base: "group" compares ``group_size`` episodes from each of ``groups`` starts, as GRPO does; "critic" has windows of
    ``horizon`` steps and generalized advantage estimation, as PPO does. minibatch: episodes in one, or single steps
    with a critic; None: all.

    Raises:
        ValueError: continuous actions, unless both shares of steps are 1; a critic and a recurrent policy, whose steps
            cannot be taken out of their sequence.
    """
    options = own_options(locals())
    control = Control(**common)
    if min(steps_first, steps_last) < 1:
        control.require_probabilities("D3S with less than all steps, ranked by their entropy,")
    if base == "critic" and control.recurrent:
        raise ValueError("recurrent = True with base = 'critic', which chooses single steps; valid: base = 'group'")
    down_sample = DownSample(
        group_rows=(group_rows_first, group_rows_last), rows=(rows_first, rows_last), steps=(steps_first, steps_last)
    )
    parts = make_base(
        control,
        base,
        groups=groups,
        group_size=group_size,
        horizon=horizon,
        gamma=gamma,
        gae_lambda=gae_lambda,
        then=[down_sample] if base == "group" else [Trajectories.flat, down_sample],
    )
    return control.experiment(
        "d3s",
        policy=parts.policy,
        source=parts.source,
        objective=parts.objective(Clip(low=clip, high=clip), filters=(Kept(),)),
        epochs=epochs,
        minibatch=minibatch,
        unit=parts.unit,
        metadata=METADATA,
        options=options,
        on_progress=(down_sample.set_progress,),
    )
