"""Implicit Q-learning (arXiv 2110.06169): values of the best recorded actions, and a policy that imitates those."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from decisionrl.experience.store import DatasetError
from decisionrl.experience.trajectories import Trajectories
from decisionrl.learner import Loss
from decisionrl.policies.actor_critic import Steps
from decisionrl.policies.critics import StateValue, TwinQ
from decisionrl.reference import Reference


class ImplicitQLearning(nn.Module):
    """Value, action values and policy at once, each learning from the others as they were before the update.

    With Q' the smaller of the two target values, over the valid steps (s, a, r, s'):

        L_V  = mean  |tau - 1(u < 0)| u^2,  u = Q'(s, a) - V(s)                     (eq. 5)
        L_Q  = mean  sum_i (r + discount (1 - terminated) V(s') - Q_i(s, a))^2      (eq. 6)
        L_pi = mean -min(exp(u / temperature), weight_limit) log pi(a | s)          (eq. 7)

    No gradient of one passes through another, and they share no weight, so that one step of an optimizer that works
    element by element on their sum is a step on each. It is an objective with weights of its own; a learner for it is::

        target = Reference(q, every=1, rate=0.005)
        objective = ImplicitQLearning(q, value, target)
        optimizer = torch.optim.Adam([*policy.parameters(), *objective.parameters()], lr=3e-4)
        GradientLearner(policy, objective, optimizer, components={"critics": objective, "target": target},
                        after_update=[target.follow])

    Batches are windows with ``extras["next_observation"]``, such as those of ``Windows(following=True)``.

    Args:
        q, value: Q_1 and Q_2, and V; trained.
        target: what follows q; not trained.
        discount: gamma.
        expectile: tau; 0.5 is the mean, and the nearer to 1, the nearer to the best action of the data.
        temperature: 1 / beta of the paper's eq. 7.
        weight_limit: of the policy's weights.

    Raises:
        ValueError: an option out of its range.
        DatasetError: a batch without ``next_observation``.
    """

    def __init__(
        self,
        q: TwinQ,
        value: StateValue,
        target: Reference[TwinQ],
        *,
        discount: float = 0.99,
        expectile: float = 0.7,
        temperature: float = 1 / 3,
        weight_limit: float = 100.0,
    ) -> None:
        super().__init__()
        if not 0 <= discount <= 1:
            raise ValueError(f"discount = {discount}; valid: in [0, 1]")
        if not 0 < expectile < 1:
            raise ValueError(f"expectile = {expectile}; valid: above 0 and below 1")
        for name, number in (("temperature", temperature), ("weight_limit", weight_limit)):
            if not number > 0:
                raise ValueError(f"{name} = {number}; valid: positive")
        self.q, self.value, self.target = q, value, target
        self.discount, self.expectile = discount, expectile
        self.temperature, self.weight_limit = temperature, weight_limit

    def forward(self, policy: Any, batch: Trajectories) -> Loss:
        if "next_observation" not in batch.extras:
            raise DatasetError(f"extras has {sorted(batch.extras)}; valid: with next_observation, what a step led to")
        steps = Steps(batch.mask)
        observation, action = steps.take_observation(batch.observation), steps.take(batch.action)
        reward, terminated = steps.take(batch.reward), steps.take(batch.terminated)
        with torch.no_grad():
            best = self.target.module(observation, action).min(0).values
            ahead = self.value(steps.take(batch.extras["next_observation"]))
            goal = reward + self.discount * torch.where(terminated, 0.0, ahead)
        value, q = self.value(observation), self.q(observation, action)
        advantage = best - value
        weight = (advantage.detach() / self.temperature).exp().clamp(max=self.weight_limit)
        value_loss = expectile_loss(advantage, self.expectile).mean()
        q_loss = (goal - q).square().mean(1).sum()
        actor_loss = -(weight * steps.take(policy.evaluate(batch).log_prob)).mean()
        return Loss(
            value_loss + q_loss + actor_loss,
            {
                "value_loss": value_loss,
                "q_loss": q_loss,
                "actor_loss": actor_loss,
                "value": value.mean(),
                "advantage": advantage.mean(),
                "weight": weight.mean(),
            },
        )


def expectile_loss(error: Float[Tensor, ...], expectile: float) -> Float[Tensor, ...]:
    """``|tau - 1(u < 0)| u^2`` of u = target - estimate (arXiv 2110.06169, sec. 4.1), elementwise.

    Its minimizer over a sample is the mean for tau = 1/2, for which it is half the square, and tends to the maximum as
    tau goes to 1.
    """
    return torch.where(error < 0, 1 - expectile, expectile) * error.square()
