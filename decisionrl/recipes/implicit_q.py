"""The networks and the learner of implicit Q-learning, which ``iql`` and ``p_iql`` share."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from decisionrl.learner import GradientLearner
from decisionrl.objectives.implicit_q import ImplicitQLearning
from decisionrl.objectives.reward_model import OnLearnedReward, RewardModel
from decisionrl.policies.behavior import BehaviorPolicy
from decisionrl.policies.critics import StateValue, TwinQ
from decisionrl.recipes.offline import Offline, rising
from decisionrl.reference import Reference
from decisionrl.seeding import generator


def implicit_q_learner(
    offline: Offline,
    *,
    gamma: float,
    expectile: float,
    temperature: float,
    target_rate: float,
    reward: RewardModel | None = None,
) -> GradientLearner:
    """One Adam over the policy and its critics; the policy's learning rate falls to 0 along a half cosine.

    reward: what says the rewards, on batches of preferences; None takes those of the data, on batches of windows.
    """
    policy: BehaviorPolicy = offline.policy()
    spaces = offline.episodes.observation_space, offline.episodes.action_space
    hidden, normalize = tuple(offline.hidden), offline.normalize_observations
    q = TwinQ(*spaces, hidden=hidden, normalize_observations=normalize, generator=generator(offline.seed, "q")).to(
        offline.device
    )
    value = StateValue(
        spaces[0], hidden=hidden, normalize_observations=normalize, generator=generator(offline.seed, "value")
    ).to(offline.device)
    for critic in (q, value):
        critic.update_normalizer(offline.episodes.observation)
    target = Reference(q, every=1, rate=target_rate)
    objective = ImplicitQLearning(q, value, target, discount=gamma, expectile=expectile, temperature=temperature).to(
        offline.device
    )
    groups = [{"params": list(policy.parameters())}, {"params": list(objective.parameters())}]
    optimizer = torch.optim.Adam(groups, offline.learning_rate, fused=True)
    schedule = LambdaLR(
        optimizer, [lambda done: 0.5 * (1 + math.cos(math.pi * min(1, done / offline.steps))), rising(0)]
    )
    return offline.learner(
        policy,
        objective if reward is None else OnLearnedReward(objective=objective, reward=reward),
        optimizer=optimizer,
        components={"critics": objective, "target": target, "schedule": schedule},
        after_update=[target.follow, schedule.step],
    )
