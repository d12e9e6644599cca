"""Offline preference-guided policy optimization (arXiv 2305.16217)."""

from __future__ import annotations

from typing import Unpack

from decisionrl.composition import ChainedLearner
from decisionrl.experience.datasets import Draw, Shortened
from decisionrl.experience.hindsight import FutureReturnPairs, with_future_returns
from decisionrl.experiment import Experiment
from decisionrl.learner import Learner
from decisionrl.names import pick
from decisionrl.objectives.hindsight import ContextObjective, HindsightObjective
from decisionrl.recipes.control import own_options
from decisionrl.recipes.hindsight import SIZES, SizesName, context_learner, hindsight_policy, network_learner
from decisionrl.recipes.offline import ComparedOptions, Preferences
from decisionrl.recipes.offline_presets import tuned_offline

METADATA = {
    "title": "Offline preference-guided policy optimization",
    "arxiv": "2305.16217",
    "changes": "windows are encoded in hindsight, and a learned vector near the preferred ones conditions the policy",
    "limit": "preference_weight = 0 and a fixed vector: hindsight information matching",
    "kinds": "recorded episodes, with or without preferences",
}


@tuned_offline
def oppo(
    *,
    sizes: SizesName = "reference",
    horizon: int | None = 200,
    preference_weight: float = 0.1,
    norm_weight: float = 0.1,
    context_learning_rate: float = 1e-3,
    context_std: float = 2.0,
    joint: bool = False,
    weight_decay: float = 1e-4,
    warmup: int = 10_000,
    legacy_context_padding: bool = False,
    **common: Unpack[ComparedOptions],
) -> Experiment:
    """Encoder and policy by hindsight matching, the triplet loss and a norm term; z* by the triplet loss.

    sizes: "reference" is the released code's (1.5 million parameters for Hopper), "human" that for human labels,
    "small" suits a CPU. horizon: the scripted teacher prefers the window with the larger reward over so many steps, on
    ``batch`` pairs of fresh windows; None has the preferences over segments that stand beside the data, cut down to the
    policy's window. context_std: of each coordinate of z* before the training; encodings are held near norm 1, so that
    the release's 2 begins far from all of them. joint: take z*'s step together with the networks', which saves an
    encoding; the release takes it after theirs, with windows encoded anew. legacy_context_padding: act as the release
    does, with z* at the last step of the window only. Other defaults are the release's.
    """
    options = own_options(locals())
    offline = Preferences(**common)
    shape = pick("sizes", sizes, SIZES)
    policy = hindsight_policy(offline, shape, context_std=context_std, legacy_context_padding=legacy_context_padding)
    draw: Draw
    if horizon is None:
        draw = Shortened(draw=offline.draw, length=min(shape.window, offline.segment_length))
    else:
        followed = with_future_returns(offline.episodes, horizon)
        draw = FutureReturnPairs(episodes=followed, size=offline.batch, length=shape.window)
    learner: Learner = network_learner(
        offline,
        policy,
        HindsightObjective(preference_weight=preference_weight, norm_weight=norm_weight, learn_context=joint),
        networks=[policy.contextual, policy.encoder],
        context_learning_rate=context_learning_rate if joint else None,
        warmup=warmup,
        weight_decay=weight_decay,
    )
    if not joint:
        context = context_learner(
            policy, ContextObjective(), learning_rate=context_learning_rate, weight_decay=weight_decay
        )
        learner = ChainedLearner({"model": learner, "context": context})
    return offline.experiment("oppo", learner=learner, draw=draw, metadata=METADATA, options=options)
