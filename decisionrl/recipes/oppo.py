"""Offline preference-guided policy optimization (arXiv 2305.16217)."""

from __future__ import annotations

from typing import Literal, Unpack

import torch
from torch.optim.lr_scheduler import LambdaLR

from decisionrl.composition import ChainedLearner
from decisionrl.experience.datasets import Draw, Shortened
from decisionrl.experience.hindsight import FutureReturnPairs, with_future_returns
from decisionrl.experiment import Experiment
from decisionrl.learner import GradientLearner, Learner
from decisionrl.names import pick
from decisionrl.objectives.hindsight import ContextObjective, HindsightObjective
from decisionrl.policies.hindsight import REFERENCE, SMALL, HindsightPolicy
from decisionrl.recipes.control import own_options
from decisionrl.recipes.offline import PreferenceOptions, Preferences
from decisionrl.recipes.offline_presets import tuned_offline
from decisionrl.seeding import generator

METADATA = {
    "title": "Offline preference-guided policy optimization",
    "arxiv": "2305.16217",
    "changes": "windows are encoded in hindsight, and a learned vector near the preferred ones conditions the policy",
    "limit": "preference_weight = 0 and a fixed vector: hindsight information matching",
    "kinds": "recorded episodes, with or without preferences",
}

SIZES = {"reference": REFERENCE, "small": SMALL}
SizesName = Literal["reference", "small"]


@tuned_offline
def oppo(
    *,
    sizes: SizesName = "reference",
    horizon: int | None = 200,
    preference_weight: float = 0.1,
    norm_weight: float = 0.1,
    context_learning_rate: float = 1e-3,
    joint: bool = False,
    weight_decay: float = 1e-4,
    warmup: int = 10_000,
    legacy_context_padding: bool = False,
    **common: Unpack[PreferenceOptions],
) -> Experiment:
    """Encoder and policy by hindsight matching, the triplet loss and a norm term; z* by the triplet loss.

    sizes: "reference" is the released code's (1.3 million parameters for Hopper), "small" suits a CPU. horizon: the
    scripted teacher prefers the window with the larger reward over so many steps, on ``batch`` pairs of fresh windows;
    None has the preferences over segments that stand beside the data, cut down to the policy's window. joint: take
    z*'s step together with the networks', which saves an encoding; the release takes it after theirs, with windows
    encoded anew. legacy_context_padding: act as the release does, with z* at the last step of the window only. Other defaults are the release's.
    """
    options = own_options(locals())
    offline = Preferences(**common)
    shape = pick("sizes", sizes, SIZES)
    recorded = offline.episodes
    policy = HindsightPolicy(
        recorded.observation_space,
        recorded.action_space,
        sizes=shape,
        timesteps=int(recorded.length.max()),
        legacy_context_padding=legacy_context_padding,
        generator=generator(offline.seed, "policy"),
    ).to(offline.device)
    policy.update_normalizer(recorded.observation)
    draw: Draw
    if horizon is None:
        draw = Shortened(draw=offline.draw, length=min(shape.window, offline.segments.length))
    else:
        draw = FutureReturnPairs(
            episodes=with_future_returns(recorded, horizon), size=offline.batch, length=shape.window
        )
    networks = [
        {"params": list(policy.contextual.parameters())},
        {"params": list(policy.encoder.parameters())},
    ]
    context = {"params": [policy.context], "lr": context_learning_rate}
    optimizer = torch.optim.AdamW(
        [*networks, context] if joint else networks, offline.learning_rate, weight_decay=weight_decay, fused=True
    )
    rising = [lambda done: min(1.0, done / warmup) if warmup else 1.0]
    schedule = LambdaLR(optimizer, rising + [_constant] * (len(optimizer.param_groups) - 1))
    model = GradientLearner(
        policy,
        HindsightObjective(preference_weight=preference_weight, norm_weight=norm_weight, learn_context=joint),
        optimizer,
        clip_norm=offline.clip_norm,
        clip_each_group=True,
        components={"schedule": schedule},
        after_update=[schedule.step],
    )
    learner: Learner = model
    if not joint:
        context_optimizer = torch.optim.AdamW([policy.context], context_learning_rate, weight_decay=weight_decay)
        learner = ChainedLearner(
            {"model": model, "context": GradientLearner(policy, ContextObjective(), context_optimizer)}
        )
    return offline.experiment("oppo", learner=learner, draw=draw, metadata=METADATA, options=options)


def _constant(done: int) -> float:
    return 1.0
