"""Dynamic clipping policy optimization (arXiv 2509.02333)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.experiment import Experiment
from decisionrl.objectives.adaptive_clipping import DynamicClip
from decisionrl.objectives.aggregation import only_token_mean
from decisionrl.pipeline.curricula import UniformStarts
from decisionrl.pipeline.trackers import SmoothStandardized
from decisionrl.recipes.bases import BasedControl, BasedOptions
from decisionrl.recipes.control import own_options
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
    num_starts: int | None = None,
    clip_low: float = 0.16,
    clip_high: float = 0.2,
    clip_cap: float = 10.0,
    **common: Unpack[BasedOptions],
) -> Experiment:
    """Groups whose starts come back, and bounds ``|r - 1| pi <= eps`` on the ratio r.

    num_starts: the groups' starts are drawn from as many, so that a start is visited again; by default from all, or
    from 64 of an endless number. clip_low, clip_high: eps below and above. clip_cap: the largest upper bound. With
    base = "critic" the clip is all that is left of the method. What the base is: see ``BasedControl``.
    """
    options = own_options(locals())
    control = BasedControl(**common)
    control.require_probabilities("DCPO's clip")
    starts = None
    if control.base == "group":
        options["num_starts"] = control.starts(num_starts)
        starts = UniformStarts(num_starts=options["num_starts"], groups=control.groups, group_size=control.group_size)
    base = control.based(aggregate=only_token_mean, advantage=SmoothStandardized(), starts=starts)
    return control.experiment_on(
        base,
        "dcpo",
        objective=base.objective(DynamicClip(low=clip_low, high=clip_high, cap=clip_cap)),
        metadata=METADATA,
        options=options,
    )
