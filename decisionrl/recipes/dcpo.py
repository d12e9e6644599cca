"""Dynamic clipping policy optimization (arXiv 2509.02333)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.objectives.adaptive_clipping import DynamicClip
from decisionrl.objectives.aggregation import only_token_mean
from decisionrl.pipeline.curricula import UniformStarts
from decisionrl.pipeline.trackers import SmoothStandardized
from decisionrl.recipes.bases import BaseName
from decisionrl.recipes.bases import base as make_base
from decisionrl.recipes.control import Control, ControlOptions, own_options
from decisionrl.recipes.presets import tuned

METADATA = {
    "title": "Dynamic clipping policy optimization",
    "arxiv": "2509.02333",
    "changes": "rare actions get a wider clip; returns are standardized by all visits to a start",
    "limit": "the first visit to every start: GRPO's advantages without epsilon",
    "kinds": "discrete actions; with groups, an environment that can be started from a seed",
}


@tuned
def dcpo(
    *,
    base: BaseName = "group",
    num_starts: int = 64,
    groups: int = 8,
    group_size: int = 8,
    horizon: int = 256,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    clip_low: float = 0.16,
    clip_high: float = 0.2,
    clip_cap: float = 10.0,
    epochs: int = 4,
    minibatch: int | None = None,
    **common: Unpack[ControlOptions],
) -> Experiment:
    """Groups whose starts come back, and bounds ``|r - 1| pi <= eps`` on the ratio r.

    num_starts: the groups' starts are drawn from as many, so that a start is visited again. clip_low, clip_high: eps
    below and above. clip_cap: the largest upper bound. With base = "critic" the clip is all that is left of the
    method.
    base: "group" compares ``group_size`` episodes from each of ``groups`` starts, as GRPO does; "critic" has windows of
    ``horizon`` steps and generalized advantage estimation, as PPO does. minibatch: episodes in one, or single steps
    with a critic; None: all.
    """
    options = own_options(locals())
    control = Control(**common)
    control.require_probabilities("DCPO's clip")
    parts = make_base(
        control,
        base,
        groups=groups,
        group_size=group_size,
        horizon=horizon,
        gamma=gamma,
        gae_lambda=gae_lambda,
        aggregate=only_token_mean,
        advantage=SmoothStandardized(),
        starts=UniformStarts(num_starts=num_starts, groups=groups, group_size=group_size),
    )
    return control.experiment(
        "dcpo",
        policy=parts.policy,
        source=parts.source,
        objective=parts.objective(DynamicClip(low=clip_low, high=clip_high, cap=clip_cap)),
        epochs=epochs,
        minibatch=minibatch,
        unit=parts.unit,
        metadata=METADATA,
        options=options,
    )
