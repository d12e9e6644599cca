"""What policies that learn in their context are trained to predict, over windows of learning histories.

GradientLearner(policy, action_nll, optimizer)                                           AD, arXiv 2210.14215
GradientLearner(policy, partial(action_nll, target="label"), optimizer)                  DPT, arXiv 2306.14892
GradientLearner(policy, planning_nll, optimizer)                                         DICP, arXiv 2502.19009
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from decisionrl.experience.history_windows import InContextBatch
from decisionrl.learner import Loss
from decisionrl.policies.in_context import InContextPolicy, PlanningPolicy

Target = Literal["action", "label"]
Positions = Literal["all", "last"]


def action_nll(
    policy: InContextPolicy, batch: InContextBatch, /, *, target: Target = "action", positions: Positions = "all"
) -> Loss:
    """``-mean_t log pi(x_t | C_{t-1}, s_t)``, averaged over windows with their weights.

    Args:
        target: x_t is the action a_t that the history took (AD) or the optimal one (DPT).
        positions: t is every step, or the last only, as in DICP's release, so that a window teaches a single action.
            Every step includes the first, where the context is empty.

    Raises:
        ValueError: an option is not valid, or the batch has no labels.
    """
    check_options(target=target, positions=positions)
    loss = _mean(-policy.head.log_prob(policy(batch), _target(batch, target)), batch.weight, positions)
    return Loss(loss, {"action_nll": loss.detach()})


def planning_nll(
    policy: PlanningPolicy,
    batch: InContextBatch,
    /,
    *,
    model_weight: float = 1.0,
    weigh_model: bool = True,
    target: Target = "action",
    positions: Positions = "all",
) -> Loss:
    """:func:`action_nll` and ``-xi mean_t [log p(r_t | C_{t-1}, s_t, a_t) + log p(s_{t+1} | C_{t-1}, s_t, a_t)]``
    (DICP, arXiv 2502.19009); xi is ``model_weight``, and a_t is always the action that was taken.

    The weights of windows are those of both losses, or, without ``weigh_model``, of the action's only.

    Raises:
        ValueError: an option is not valid, a reward is none of the policy's, or the batch has no labels or next
            observations.
    """
    check_options(target=target, positions=positions, model_weight=model_weight)
    if batch.next_observation is None:
        raise ValueError("next_observation = None; valid for a model of the world: a tensor [batch, step, ...]")
    outputs, reward_logits, next_logits = policy(batch)
    log_prob = policy.base.head.log_prob(outputs, _target(batch, target))
    reward, following = policy.model_log_prob(reward_logits, next_logits, batch.reward, batch.next_observation)
    action_loss = _mean(-log_prob, batch.weight, positions)
    model_weights = batch.weight if weigh_model else None
    reward_loss, next_loss = (_mean(-each, model_weights, positions) for each in (reward, following))
    metrics = {"action_nll": action_loss, "reward_nll": reward_loss, "next_observation_nll": next_loss}
    return Loss(
        action_loss + model_weight * (reward_loss + next_loss),
        {name: value.detach() for name, value in metrics.items()},
    )


def check_options(*, target: Target = "action", positions: Positions = "all", model_weight: float = 1.0) -> None:
    """ValueError unless these options of the losses are valid."""
    if target not in get_args(Target):
        raise ValueError(f"target = {target!r}; valid: {', '.join(get_args(Target))}")
    if positions not in get_args(Positions):
        raise ValueError(f"positions = {positions!r}; valid: {', '.join(get_args(Positions))}")
    if not 0 <= model_weight < math.inf:
        raise ValueError(f"model_weight = {model_weight}; valid: finite, at least 0")


def _target(batch: InContextBatch, target: Target) -> Tensor:
    if target == "action":
        return batch.action
    if batch.label is None:
        raise ValueError("label = None; valid with target = 'label': optimal actions, [batch, step, ...]")
    return batch.label


def _mean(
    nll: Float[Tensor, "batch step"], weight: Float[Tensor, " batch"] | None, positions: Positions
) -> Float[Tensor, ""]:
    window = nll.mean(1) if positions == "all" else nll[:, -1]
    if weight is None:
        return window.mean()
    weight = weight.to(window.dtype)
    # A small batch may have no weight at all; its loss is 0.
    return torch.dot(weight, window) / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
