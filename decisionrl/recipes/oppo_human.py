"""OPPO from human labels: few comparisons, and much behavior that nobody has compared (arXiv 2305.16217)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.composition import ChainedLearner
from decisionrl.experience.datasets import Shortened, Windows
from decisionrl.experience.hindsight import LabeledAndUnlabeled, NoisyWindows
from decisionrl.experiment import Experiment
from decisionrl.names import pick
from decisionrl.objectives.hindsight import (
    WITH_TIES,
    ContextObjective,
    HindsightObjective,
    MatchingObjective,
    OnPart,
    hinge_norm,
)
from decisionrl.recipes.control import own_options
from decisionrl.recipes.hindsight import SIZES, SizesName, context_learner, hindsight_policy, network_learner
from decisionrl.recipes.offline import ComparedOptions, Preferences, at_least
from decisionrl.recipes.offline_presets import tuned_offline

METADATA = {
    "title": "Offline preference-guided policy optimization from human labels",
    "arxiv": "2305.16217",
    "changes": "OPPO whose policy learns from all recorded windows and whose encoder alone learns from the comparisons",
    "limit": "preference_weight = 0 and a fixed vector: hindsight information matching",
    "kinds": "recorded episodes, some segments of which somebody has compared",
}


@tuned_offline
def oppo_human(
    *,
    sizes: SizesName = "human",
    preference_weight: float = 10.0,
    norm_weight: float = 0.1,
    context_learning_rate: float = 1e-2,
    matching_every: int = 2,
    observation_noise: float = 0.1,
    weight_decay: float = 1e-4,
    warmup: int = 10_000,
    legacy_context_padding: bool = False,
    **common: Unpack[ComparedOptions],
) -> Experiment:
    """On every second batch, encoder and policy by hindsight matching of windows of all episodes, which the policy sees
    with noise; on every batch, the encoder by matching, the triplet loss and a hinge on the norm of the compared
    segments, and then z* by the triplet loss. Equal preferences have a triplet loss with margin 0.

    pairs: the comparisons, such as a file of labels; segments longer than the policy's window are cut down to it.
    batch: pairs, and as many windows. Other arguments are those of :func:`~decisionrl.recipes.oppo.oppo`; defaults are
    the release's, but each of the three learners has moments of its own.
    """
    options = own_options(locals())
    at_least(1, matching_every=matching_every)
    offline = Preferences(**common)
    shape = pick("sizes", sizes, SIZES)
    policy = hindsight_policy(
        offline,
        shape,
        timed_context=False,
        reconstruct_observations=True,
        context_std=1.0,
        legacy_context_padding=legacy_context_padding,
    )
    windows = Windows(episodes=offline.episodes, size=offline.batch, length=shape.window)
    draw = LabeledAndUnlabeled(
        pairs=Shortened(draw=offline.draw, length=min(shape.window, offline.segment_length)),
        windows=NoisyWindows(windows=windows, std=observation_noise),
    )
    compared = HindsightObjective(
        preference_weight=preference_weight, norm_weight=norm_weight, preference=WITH_TIES, norm=hinge_norm
    )
    learner = ChainedLearner(
        {
            "matching": network_learner(
                offline,
                policy,
                OnPart("windows", MatchingObjective()),
                networks=[policy.contextual, policy.encoder],
                warmup=warmup,
                weight_decay=weight_decay,
            ),
            "encoder": network_learner(
                offline,
                policy,
                OnPart("pairs", compared),
                networks=[policy.encoder],
                weight_decay=weight_decay,
            ),
            "context": context_learner(
                policy,
                OnPart("pairs", ContextObjective(preference=WITH_TIES)),
                learning_rate=context_learning_rate,
                weight_decay=weight_decay,
            ),
        },
        every={"matching": matching_every},
    )
    return offline.experiment("oppo_human", learner=learner, draw=draw, metadata=METADATA, options=options)
