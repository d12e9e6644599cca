"""Rewards from preferences (arXiv 1706.03741), and how a method that needs rewards learns from those meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from decisionrl.composition import ChainedLearner, Phase, PhasedLearner
from decisionrl.experience.preferences import PreferenceBatch
from decisionrl.experience.relabel import consecutive_steps
from decisionrl.experience.trajectories import Trajectories
from decisionrl.learner import Learner, Loss, Objective


class RewardModel(Protocol):
    """What says how good steps and segments are, such as :class:`~decisionrl.policies.critics.RewardMLP`."""

    def rewards(self, batch: Trajectories, /) -> Float[Tensor, "batch step"]:
        """Of every step; 0 where masked."""
        ...

    def segment_scores(self, batch: Trajectories, /) -> Float[Tensor, " batch"]:
        """Of every row."""
        ...


@dataclass(frozen=True, kw_only=True)
class BradleyTerryReward:
    """``-mean [y log P + (1 - y) log(1 - P)]`` with ``P = sigmoid(S(second) - S(first))``, the second preferred.

    S is the model's score of a segment and y the label, which may be soft; pairs count by their weight. For segments of
    one length a constant added to all rewards changes nothing. Source: arXiv 1706.03741, eq. 1.
    """

    def __call__(self, model: RewardModel, batch: PreferenceBatch, /) -> Loss:
        score = model.segment_scores(batch.segments)
        logit = score[batch.second] - score[batch.first]
        label = batch.label.to(logit.dtype)
        weight = torch.ones_like(label) if batch.weight is None else batch.weight.to(logit.dtype)
        loss = functional.binary_cross_entropy_with_logits(logit, label, reduction="none")
        strict = weight * (label != 0.5)
        right = (logit > 0) == (label > 0.5)
        return Loss(_mean(loss, weight), {"accuracy": _mean(right.to(logit.dtype), strict)})


@dataclass(frozen=True, kw_only=True)
class OnLearnedReward:
    """An objective on the consecutive steps of a PreferenceBatch's segments, with what a model says as their reward.

    objective: of Trajectories with ``extras["next_observation"]``, such as
        :class:`~decisionrl.objectives.implicit_q.ImplicitQLearning`.
    reward: the model; it is not trained here.
    """

    objective: Objective
    reward: RewardModel

    def __call__(self, policy: nn.Module, batch: PreferenceBatch, /) -> Loss:
        steps = consecutive_steps(batch.segments)
        with torch.no_grad():
            rewards = self.reward.rewards(steps)
        return self.objective(policy, steps.replace(reward=rewards))


def with_reward_model(learner: Learner, reward: Learner, *, updates: int) -> PhasedLearner:
    """``learner`` on every batch, and before that many updates are done, ``reward`` after it on the same batch.

    The schedule of P-IQL in arXiv 2310.13639: policy and values learn from the first update on, from a reward that
    moves and then stays. Metrics of the reward model are reported as ``reward/...``.
    """
    both = ChainedLearner({"policy": learner, "reward": reward})
    return PhasedLearner([Phase(learner=both, updates=updates), Phase(learner=learner)])


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean, 0 if all weights are."""
    total = weight.sum()
    return torch.where(weight > 0, weight * values, 0.0).sum() / torch.where(total > 0, total, 1.0)
