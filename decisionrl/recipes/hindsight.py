"""The policy and the learners of OPPO, which ``oppo`` and ``oppo_human`` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from decisionrl.learner import GradientLearner, Objective
from decisionrl.policies.hindsight import HUMAN, REFERENCE, SMALL, HindsightPolicy, HindsightSizes
from decisionrl.recipes.offline import Offline, at_least, positive, rising
from decisionrl.seeding import generator

SizesName = Literal["reference", "human", "small"]

SIZES: dict[str, HindsightSizes] = {"reference": REFERENCE, "human": HUMAN, "small": SMALL}


def hindsight_policy(offline: Offline, sizes: HindsightSizes, **options: Any) -> HindsightPolicy:
    """The policy for the data; ``options`` are further arguments of it.

    Raises:
        DatasetError: observations or actions are in no Box.
    """
    recorded = offline.episodes
    offline.require_boxes("a hindsight policy")
    policy = HindsightPolicy(
        recorded.observation_space,
        recorded.action_space,
        sizes=sizes,
        timesteps=offline.timesteps,
        generator=generator(offline.seed, "policy"),
        **options,
    ).to(offline.device)
    policy.update_normalizer(recorded.observation)
    return policy


def network_learner(
    offline: Offline,
    policy: HindsightPolicy,
    objective: Objective,
    *,
    networks: Sequence[nn.Module],
    context_learning_rate: float | None = None,
    warmup: int = 0,
    weight_decay: float,
) -> GradientLearner:
    """AdamW on some of the policy's networks, and on z* too if that has a learning rate here.

    The gradient of each is clipped by itself, and the learning rate of the contextual policy alone rises.
    """
    at_least(0, warmup=warmup)
    groups: list[dict[str, Any]] = [{"params": list(network.parameters())} for network in networks]
    factors = [rising(warmup if network is policy.contextual else 0) for network in networks]
    if context_learning_rate is not None:
        positive(context_learning_rate=context_learning_rate)
        groups.append({"params": [policy.context], "lr": context_learning_rate})
        factors.append(rising(0))
    optimizer = torch.optim.AdamW(groups, offline.learning_rate, weight_decay=weight_decay, fused=True)
    schedule = LambdaLR(optimizer, factors)
    return GradientLearner(
        policy,
        objective,
        optimizer,
        clip_norm=offline.clip_norm,
        clip_each_group=True,
        components={"schedule": schedule},
        after_update=[schedule.step],
    )


def context_learner(
    policy: HindsightPolicy, objective: Objective, *, learning_rate: float, weight_decay: float
) -> GradientLearner:
    """AdamW on z* alone."""
    positive(context_learning_rate=learning_rate)
    optimizer = torch.optim.AdamW([policy.context], learning_rate, weight_decay=weight_decay)
    return GradientLearner(policy, objective, optimizer)
