"""The library's methods in verl's registries of advantage estimators and policy losses.

Importing this module registers every published method as ``decisionrl_NAME``, which is how verl loads it: by itself, as
the plugin that an installed decisionrl declares, or with ``VERL_USE_EXTERNAL_MODULES=decisionrl.llm.verl``. Select with
``algorithm.adv_estimator=decisionrl_NAME`` and ``actor_rollout_ref.actor.policy_loss.loss_mode=decisionrl_NAME``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decisionrl.experience.trajectories import Trajectories
from decisionrl.llm.methods import METHODS, Evaluated, Method, RolloutNeed
from decisionrl.objectives.step_filters import BatchWeight
from decisionrl.pipeline.returns import final_step
from decisionrl.pipeline.rewards import add_to_last_step
from decisionrl.policies.evaluation import Evaluation

try:
    from verl.trainer.ppo.core_algos import agg_loss, register_adv_est, register_policy_loss
except ImportError as error:
    raise ImportError(
        "verl is not installed; how to: https://verl.readthedocs.io/en/latest/start/install.html"
    ) from error

PREFIX = "decisionrl_"

GIVEN: frozenset[RolloutNeed] = frozenset({"group"})
"""What verl tells an advantage estimator besides rewards and mask."""


@dataclass(frozen=True)
class AdvantageEstimator:
    """A method's pipeline as verl calls it.

    The reward of an answer is the sum of its tokens' rewards. The method's memory is that of this object, in verl's
    driver process; verl's checkpoints do not hold it.
    """

    method: Method

    def __call__(
        self,
        token_level_rewards: Tensor,
        response_mask: Tensor,
        config: Any = None,
        index: NDArray[Any] | None = None,
        **unused: Any,
    ) -> tuple[Tensor, Tensor]:
        """Advantages and returns, both [batch, step] and here the same.

        Args:
            token_level_rewards: [batch, step].
            response_mask: the policy's own tokens, [batch, step].
            config: of verl's algorithm; the method has its own.
            index: equal for answers to one prompt, [batch].

        Raises:
            ValueError: the method compares answers to one prompt, and there is no index or no prompt has two.
        """
        mask = response_mask.bool()
        group = self._groups(index, mask) if "group" in self.method.rollout_needs else None
        batch = _answers(mask, torch.full_like(token_level_rewards, torch.nan), group=group)
        advantage = self.method.prepare(add_to_last_step(batch, token_level_rewards.sum(1))).advantage
        assert advantage is not None
        return advantage, advantage

    def _groups(self, index: NDArray[Any] | None, mask: Tensor) -> Tensor:
        if index is None:
            raise ValueError(f"index is None; valid for {self.method.name}: which prompt each answer is to, [batch]")
        distinct, group = np.unique(index, return_inverse=True)
        if len(distinct) == len(index):
            raise ValueError(
                f"each of the {len(index)} prompts has one answer; valid for {self.method.name}, which compares the "
                "answers to a prompt: rollout.n of 2 or more"
            )
        return torch.as_tensor(group, device=mask.device)


@dataclass(frozen=True)
class PolicyLoss:
    """A method's objective as verl calls it.

    Bounds and other settings are the method's, not those of verl's configuration. How steps become one number is
    verl's ``loss_agg_mode``, with the numbers of the global batch, so that micro-batches and processes add up.
    """

    method: Method

    def __call__(
        self,
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss, and metrics under ``actor/``; all tensors are [batch, step].

        config: verl's of the actor, whose ``global_batch_info`` is read. rollout_is_weights: factors on the loss.
        """
        mask = response_mask.bool()
        batch = _answers(mask, old_log_prob, advantage=advantages)
        numbers = {} if config is None else config.global_batch_info

        def aggregate(loss: Tensor, kept: Tensor | None) -> Tensor:
            kept = mask if kept is None else kept
            total: Tensor = agg_loss(loss_mat=loss, loss_mask=kept, loss_agg_mode=loss_agg_mode, **numbers)
            return total

        objective = dataclasses.replace(self.method.objective, aggregate=aggregate)
        if rollout_is_weights is not None:
            weights = (*objective.weights, BatchWeight(key="rollout_is_weights"))
            objective = dataclasses.replace(objective, weights=weights)
            batch = batch.replace(extras={"rollout_is_weights": rollout_is_weights})
        result = objective(Evaluated(Evaluation(log_prob)), batch)
        values = torch.stack([each.float() for each in result.metrics.values()]).tolist()
        return result.value, {f"actor/{name}": value for name, value in zip(result.metrics, values, strict=True)}


def register(*methods: Method) -> None:
    """Make methods known to verl as ``decisionrl_`` and their name; without any, the published ones at their defaults.

    Of a method, what verl can run is registered: the advantages, the loss, or both. To run one with other options,
    register it under a name of its own, in a module of yours that ``VERL_USE_EXTERNAL_MODULES`` names:

    >>> register(dataclasses.replace(method("grpo", dual=3.0), name="grpo_dual"))

    Raises:
        ValueError: verl can run neither part of a method, or knows other advantages of that name.
    """
    for each in methods or _published():
        if not _has_advantages(each) and not _has_loss(each):
            missing = sorted({*(each.rollout_needs - GIVEN), *each.loss_needs})
            raise ValueError(f"{each.name} needs {', '.join(missing)}, which verl does not give; valid: other methods")
        if _has_advantages(each):
            register_adv_est(PREFIX + each.name)(AdvantageEstimator(each))
        if _has_loss(each):
            register_policy_loss(PREFIX + each.name)(PolicyLoss(each))


@cache
def _published() -> tuple[Method, ...]:
    """Those of which verl can run a part; always the same objects, which verl may be told of again."""
    made = (make() for make in METHODS.values())
    return tuple(each for each in made if _has_advantages(each) or _has_loss(each))


def _has_advantages(method: Method) -> bool:
    return method.rollout_needs <= GIVEN


def _has_loss(method: Method) -> bool:
    return not method.loss_needs


def _answers(mask: Tensor, log_prob: Tensor, **more: Any) -> Trajectories:
    """Answers without rewards, of which verl does not say what the tokens are (-1)."""
    unknown = torch.full(mask.shape, -1, device=mask.device)
    return Trajectories(
        observation=unknown,
        action=unknown,
        reward=torch.zeros_like(log_prob),
        mask=mask,
        log_prob=log_prob,
        terminated=final_step(mask),
        truncated=torch.zeros_like(mask),
        **more,
    )


register()
